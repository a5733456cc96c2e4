"""The network: nothing but an RNA itself changes its prediction, all of the RNA does, and all parameters learn."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from ribonanzamamba.data.batch import Batch
from ribonanzamamba.model.checkpoint import load_checkpoint, save_checkpoint
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import EXACT_OFFSET, LARGEST_OFFSET, OFFSET_BINS, TASKS, RibonanzaMamba, offset_bins
from ribonanzamamba.ops import pair_plain
from ribonanzamamba.training.config import LossConfig
from ribonanzamamba.training.loss import losses

FIELDS = ("reactivity", "reactivity_error", "pair_probability", "coordinates", "plddt")


def random_rna(length: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 4, (length,), generator=torch.Generator().manual_seed(seed))


def pad(rnas: list[torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.full((len(rnas), length), 4)
    mask = torch.zeros(len(rnas), length, dtype=torch.bool)
    for row, rna in enumerate(rnas):
        tokens[row, : len(rna)] = rna
        mask[row, : len(rna)] = True
    return tokens, mask


def crop(output, row: int, length: int) -> dict[str, torch.Tensor]:
    cut = {name: getattr(output, name)[row] for name in FIELDS}
    return {
        "reactivity": cut["reactivity"][:length],
        "reactivity_error": cut["reactivity_error"][:length],
        "pair_probability": cut["pair_probability"][:length, :length],
        "coordinates": cut["coordinates"][:, :length],
        "plddt": cut["plddt"][:, :length],
    }


@torch.inference_mode()
def test_padding_and_batch_mates_change_nothing(small_network):
    rnas = [random_rna(length, seed) for seed, length in enumerate((20, 1, 63, 64, 65, 130))]
    together = small_network(*pad(rnas, 171))
    for row, rna in enumerate(rnas):
        alone = small_network(*pad([rna], len(rna)))
        for name, value in crop(alone, 0, len(rna)).items():
            difference = (crop(together, row, len(rna))[name] - value).abs().max()
            assert difference < 1e-4, f"{name} of RNA {row}: {difference}"


@torch.inference_mode()
@pytest.mark.parametrize("changed", [0, 149], ids=["first", "last"])
def test_a_far_nucleotide_changes_everything(small_network, changed):
    rna = random_rna(150, 3)
    other = rna.clone()
    other[changed] = (other[changed] + 1) % 4
    before, after = (small_network(*pad([each], 150)) for each in (rna, other))
    far = 149 - changed
    for name in ("reactivity", "coordinates", "plddt"):
        position = (0, far) if name == "reactivity" else (0, slice(None), far)
        assert not torch.equal(getattr(before, name)[position], getattr(after, name)[position]), name
    assert not torch.equal(before.pair_logit[0, far], after.pair_logit[0, far])


def test_every_parameter_gets_a_gradient(small_network):
    tokens, mask = pad([random_rna(30, 1), random_rna(24, 2)], 32)
    generator = torch.Generator().manual_seed(0)
    probes = len(small_network.config.probes)
    partners = torch.where(mask, -1, -2)
    partners[0, 3], partners[0, 20] = 20, 3
    batch = Batch(
        ids=("a", "b"),
        tokens=tokens,
        mask=mask,
        reactivity=torch.rand(2, 32, probes, generator=generator),
        reactivity_weight=mask[..., None].float().expand(2, 32, probes),
        partners=partners,
        coordinates=torch.randn(2, 32, 4, 3, generator=generator) * 10,
    )
    small_network.train()
    output = small_network(tokens, mask)
    losses(output, batch).total(LossConfig()).backward()
    without = [
        name
        for name, parameter in small_network.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert without == []


def test_tasks_not_asked_for_are_none(small_network):
    output = small_network(*pad([random_rna(12, 0)], 12), ("structure",))
    present = {field.name for field in dataclasses.fields(output) if getattr(output, field.name) is not None}
    assert present == {"pair_logit", "no_partner_logit"}
    assert set(TASKS) == {"reactivity", "structure", "coordinates"}


@torch.inference_mode()
def test_pair_probability_is_a_probability(small_network):
    tokens, mask = pad([random_rna(40, 5), random_rna(9, 6)], 48)
    probability = small_network(tokens, mask).pair_probability
    assert torch.equal(probability, probability.transpose(1, 2))
    assert (probability.diagonal(dim1=1, dim2=2) == 0).all()
    assert (probability.sum(-1) <= 1 + 1e-5).all()
    assert (probability[1, 9:] == 0).all()


@torch.inference_mode()
def test_models_one_by_one_equal_models_together(small_network, monkeypatch):
    tokens, mask = pad([random_rna(30, 8)], 30)
    together = small_network(tokens, mask)
    monkeypatch.setattr("ribonanzamamba.model.network.CELLS_FOR_ALL_MODELS", 0)
    apart = small_network(tokens, mask)
    torch.testing.assert_close(apart.coordinates, together.coordinates, atol=1e-4, rtol=0)


def test_part_by_part_and_overwritten_the_map_of_pairs_gives_the_same(small_network, monkeypatch):
    inputs = pad([random_rna(length, length) for length in (21, 30)], 30)
    whole = small_network(*inputs)
    monkeypatch.setattr(pair_plain, "WORTH_PARTS", 0)
    monkeypatch.setattr(pair_plain, "PART", 4 * 30 * small_network.config.pair_width)
    with torch.inference_mode():
        parts = small_network(*inputs)
    for name in FIELDS:
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-3, atol=1e-4, msg=name)


def test_offsets_extrapolate():
    bins = offset_bins(1000)
    assert bins.min() == 0 and bins.max() == 2 * (EXACT_OFFSET + OFFSET_BINS)
    assert (bins[0, LARGEST_OFFSET:] == bins.max()).all()
    assert (bins[0, : EXACT_OFFSET + 1].diff() == 1).all()
    assert torch.equal(bins - (EXACT_OFFSET + OFFSET_BINS), -(bins.T - (EXACT_OFFSET + OFFSET_BINS)))


@pytest.fixture
def with_prior(small_network) -> RibonanzaMamba:
    """The small network with a prior input that has learned something."""
    network = RibonanzaMamba(dataclasses.replace(small_network.config, pair_prior=True)).eval()
    network.load_state_dict(small_network.state_dict(), strict=False)
    torch.manual_seed(1)
    torch.nn.init.normal_(network.prior.pair.weight)
    torch.nn.init.normal_(network.prior.nucleotide.weight)
    return network


def random_prior(length: int, seed: int) -> torch.Tensor:
    prior = torch.rand(length, length, generator=torch.Generator().manual_seed(seed)).triu(1) / length
    return prior + prior.T


@torch.inference_mode()
def test_an_untrained_prior_changes_nothing(small_network):
    torch.manual_seed(0)
    network = RibonanzaMamba(dataclasses.replace(small_network.config, pair_prior=True)).eval()
    tokens, mask = pad([random_rna(30, 1), random_rna(20, 2)], 32)
    before = small_network(tokens, mask)
    for output in (network(tokens, mask), network(tokens, mask, prior=torch.rand(2, 32, 32))):
        assert all(torch.equal(getattr(before, name), getattr(output, name)) for name in FIELDS)


@torch.inference_mode()
def test_without_prior_a_trained_one_changes_nothing(small_network, with_prior):
    tokens, mask = pad([random_rna(30, 1), random_rna(20, 2)], 32)
    before = small_network(tokens, mask)
    unknown = torch.zeros(2, dtype=torch.bool)
    for output in (
        with_prior(tokens, mask),
        with_prior(tokens, mask, prior=torch.rand(2, 32, 32), prior_known=unknown),
    ):
        assert all(torch.equal(getattr(before, name), getattr(output, name)) for name in FIELDS)


@torch.inference_mode()
def test_prior_of_batch_mates_and_pads_changes_nothing(with_prior):
    rnas = [random_rna(length, seed) for seed, length in enumerate((20, 1, 63, 64))]
    # pads of the prior hold nonsense on purpose
    prior = torch.full((4, 80, 80), 7.0)
    for row, rna in enumerate(rnas):
        prior[row, : len(rna), : len(rna)] = random_prior(len(rna), row)
    known = torch.tensor([True, True, False, True])
    together = with_prior(*pad(rnas, 80), prior=prior, prior_known=known)
    for row, rna in enumerate(rnas):
        own = random_prior(len(rna), row)[None] if known[row] else None
        alone = with_prior(*pad([rna], len(rna)), prior=own)
        for name, value in crop(alone, 0, len(rna)).items():
            difference = (crop(together, row, len(rna))[name] - value).abs().max()
            assert difference < 1e-4, f"{name} of RNA {row}: {difference}"


@torch.inference_mode()
def test_every_task_sees_the_prior(with_prior):
    tokens, mask = pad([random_rna(30, 1)], 30)
    prior = random_prior(30, 0)[None]
    before, after = with_prior(tokens, mask, prior=prior), with_prior(tokens, mask, prior=prior * 2)
    assert not any(torch.equal(getattr(before, name), getattr(after, name)) for name in FIELDS)


def test_a_network_without_pair_prior_refuses_one(small_network):
    with pytest.raises(ValueError, match="without pair_prior"):
        small_network(*pad([random_rna(9, 0)], 9), prior=torch.zeros(1, 9, 9))


@pytest.mark.parametrize("known", [True, False], ids=["with", "without"])
def test_the_prior_input_gets_a_gradient_from_zero(small_network, known):
    network = RibonanzaMamba(dataclasses.replace(small_network.config, pair_prior=True)).train()
    prior = random_prior(30, 0)[None] if known else None
    output = network(*pad([random_rna(30, 1)], 30), ("structure",), prior=prior)
    output.pair_logit[:, :10, 20:].sum().backward()
    for weight in network.prior.parameters():
        assert (weight.grad.abs().sum(0) > 0).all() if known else not weight.grad.any()


def test_a_checkpoint_with_prior_comes_back(with_prior, tmp_path):
    save_checkpoint(with_prior, tmp_path / "net", name="test", dtype=torch.float32)
    loaded = load_checkpoint(tmp_path / "net").network
    assert loaded.config.pair_prior and torch.equal(loaded.prior.pair.weight, with_prior.prior.pair.weight)


@pytest.mark.parametrize(
    ("values", "updated"),
    [({"pair_every": 2}, [False, True]), ({"pair_every": 0}, [False, False]), ({"mamba": False}, [True, True])],
    ids=str,
)
def test_parts_can_be_left_out(values, updated):
    config = ModelConfig(width=16, pair_width=8, blocks=2, heads=2, d_state=4, head_width=8, **values)
    network = RibonanzaMamba(dataclasses.replace(config, tasks=("reactivity",)))
    assert [block.pair_update is not None for block in network.blocks] == updated
    tokens, mask = pad([random_rna(9, 0)], 9)
    output = network(tokens, mask)
    assert output.reactivity.shape == (1, 9, len(config.probes))
    # heads that the network lacks are not asked
    assert network.pair_head is None and output.pair_logit is None and output.coordinates is None


@torch.inference_mode()
def test_reactivity_alone_is_the_same(small_network):
    tokens, mask = pad([random_rna(30, 0)], 32)
    alone, with_pairs = small_network(tokens, mask, ("reactivity",)), small_network(tokens, mask)
    assert torch.equal(alone.reactivity, with_pairs.reactivity)


def test_importing_makes_no_tensor():
    """PyTorch reads THP_MEM_ALLOC_ENABLE, a third of the time of long RNAs, when it makes its first."""
    code = """
import sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode

class Nothing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        sys.exit(f"{function} while importing")

with Nothing():
    import ribonanzamamba.cli, ribonanzamamba.prediction.folder, ribonanzamamba.training.loop
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
