"""Validation: scores of a network that knows the answers, and what is held out."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from ribonanzamamba.data.example import Example
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.coordinates import PLDDT_BINS
from ribonanzamamba.model.heads import IMPOSSIBLE_LOGIT
from ribonanzamamba.model.network import ModelOutput, RibonanzaMamba
from ribonanzamamba.rna.records import PROBES
from ribonanzamamba.training.validation import LONGEST, HeldOut, validate

LENGTH = 24
STEM = [(k, LENGTH - 1 - k) for k in range(5)]


def example(name: str, length: int = LENGTH, **arrays) -> Example:
    return Example(name, "A" * length, 0, 1, "made", **arrays)


class Knowing(RibonanzaMamba):
    """A stand-in for a network: the same output for every RNA."""

    def __init__(self, coordinates: Tensor, reactivity: float, pairs: list[tuple[int, int]]):
        super().__init__(ModelConfig(width=16, pair_width=8, blocks=1, heads=2, head_width=16))
        self.coordinates, self.reactivity, self.pairs = coordinates, reactivity, pairs

    def forward(self, tokens: Tensor, mask: Tensor, tasks: tuple[str, ...]) -> ModelOutput:
        assert not self.training
        batch, length = tokens.shape
        pair = torch.full((batch, length, length), IMPOSSIBLE_LOGIT)
        for i, j in self.pairs:
            pair[:, i, j] = pair[:, j, i] = 30.0
        plddt = torch.full((batch, len(self.coordinates), length, PLDDT_BINS), -30.0)
        for model in range(len(self.coordinates)):
            plddt[:, model, :, 10 * (model + 1)] = 30.0  # pLDDT 21, 41, ...: the last model is trusted most
        return ModelOutput(
            reactivity=torch.full((batch, length, len(PROBES)), self.reactivity),
            pair_logit=pair,
            no_partner_logit=torch.zeros(batch, length),
            coordinates=self.coordinates.expand(batch, -1, -1, -1, -1),
            plddt_logit=plddt,
        )


@pytest.fixture
def held_out(helix_atoms) -> HeldOut:
    reactivity = np.full((LENGTH, len(PROBES)), np.nan, dtype=np.float16)
    reactivity[:10, 0], reactivity[:4, 1] = 0.25, 3.0
    weight = np.where(np.isnan(reactivity), 0, 0.9).astype(np.float32)
    reactivity[20, 1], weight[20, 1] = 0.0, 0.05  # too noisy to count
    partners = np.full(LENGTH, -1, dtype=np.int32)
    for i, j in STEM:
        partners[i], partners[j] = j, i
    return HeldOut(
        [example("r", reactivity=reactivity, reactivity_weight=weight)],
        [example("s", partners=partners)],
        [example("c", coordinates=helix_atoms.numpy())],
    )


def test_a_network_that_knows_everything(held_out, helix_atoms):
    network = Knowing(helix_atoms[None], 0.25, STEM)
    scores = validate(network, held_out, torch.device("cpu"), bfloat16=False)
    assert scores == pytest.approx(
        {
            f"mae/{PROBES[0]}": 0.0,
            f"mae/{PROBES[1]}": 0.75,  # the measured 3.0 is clipped to 1
            "f1": 1.0,
            "tm/best": 1.0,
            "tm/first": 1.0,
            "lddt/first": 1.0,
            "plddt/first": 21.0,
        },
        abs=1e-3,
    )


def test_first_is_the_most_trusted_and_best_the_best(held_out, helix_atoms):
    noisy = helix_atoms + torch.randn(helix_atoms.shape, generator=torch.Generator().manual_seed(0)) * 4
    scores = validate(
        Knowing(torch.stack([helix_atoms, noisy]), 2.0, STEM[:3]), held_out, torch.device("cpu"), bfloat16=False
    )
    assert scores["tm/best"] == pytest.approx(1.0, abs=1e-3) and scores["tm/first"] < 0.8
    assert scores["plddt/first"] == pytest.approx(41.0)
    assert scores["f1"] == pytest.approx(2 * 3 / (3 + 5))
    assert scores[f"mae/{PROBES[0]}"] == pytest.approx(0.75)  # the predicted 2.0 is clipped to 1


def test_the_network_goes_back_to_training(held_out, helix_atoms):
    network = Knowing(helix_atoms[None], 0.0, STEM).train()
    validate(network, dataclasses.replace(held_out, structure=[], coordinates=[]), torch.device("cpu"), bfloat16=False)
    assert network.training


def test_nothing_held_out_gives_no_scores(helix_atoms):
    assert validate(Knowing(helix_atoms[None], 0.0, STEM), HeldOut([], [], []), torch.device("cpu"), False) == {}


def test_sample_is_even_and_of_usual_length():
    examples = [example(str(k)) for k in range(9)]
    odd = [example("short", 19), example("long", LONGEST + 1)]
    sample = HeldOut([*odd, *examples], examples[:1], []).sample(3)
    assert [each.id for each in sample.reactivity] == ["0", "4", "8"]
    assert [each.id for each in sample.structure] == ["0"] and sample.coordinates == []
