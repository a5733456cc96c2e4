"""The temperature of pair logits: found where it is known, and built into the weights."""

import dataclasses

import pytest
import torch

from ribonanzamamba.data.batch import Batch
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.heads import IMPOSSIBLE_LOGIT
from ribonanzamamba.model.network import ModelOutput, RibonanzaMamba
from ribonanzamamba.training.calibration import divide_pair_logits, fit_pair_temperature

LENGTH = 40


class TooSure(RibonanzaMamba):
    """Stand-in for a network that multiplies the right logits, 2 for the pair (k, k + 20) and 1 for no partner."""

    def __init__(self, factor: float):
        super().__init__(ModelConfig(width=16, pair_width=8, blocks=1, heads=2, head_width=16))
        self.factor = factor

    def forward(self, tokens, mask, tasks) -> ModelOutput:
        logit = torch.full((len(tokens), LENGTH, LENGTH), IMPOSSIBLE_LOGIT)
        k = torch.arange(LENGTH // 2)
        logit[:, k, k + 20] = logit[:, k + 20, k] = 2 * self.factor
        return ModelOutput(pair_logit=logit, no_partner_logit=torch.full((len(tokens), LENGTH), self.factor))


def made_batch() -> Batch:
    """RNAs in which a share e / (e + 1) of the possible pairs is there: what logits of 2 and 1 say."""
    count = 50
    there = torch.arange(count * 20).reshape(count, 20) < round(count * 20 * 0.731)
    there = there.flatten()[torch.randperm(count * 20, generator=torch.Generator().manual_seed(0))].reshape(count, 20)
    k = torch.arange(20)
    partners = torch.cat([torch.where(there, k + 20, -1), torch.where(there, k, -1)], dim=1)
    mask = torch.ones(count, LENGTH, dtype=torch.bool)
    return Batch(tuple(map(str, range(count))), torch.zeros(count, LENGTH, dtype=torch.int64), mask, partners=partners)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 3.0, 4.8])
def test_finds_the_factor(factor):
    """Below 1 the network is too modest, above it too sure."""
    assert fit_pair_temperature(TooSure(factor), [made_batch()]) == pytest.approx(factor, rel=0.02)


@pytest.mark.parametrize("factor, limit", [(0.05, 0.2), (50.0, 5.0)])
def test_stays_within_the_limits(factor, limit):
    assert fit_pair_temperature(TooSure(factor), [made_batch()]) == limit


def test_without_structures_it_is_one():
    assert fit_pair_temperature(TooSure(2.0), [dataclasses.replace(made_batch(), partners=None)]) == 1.0


@torch.no_grad()
def test_logits_are_divided_in_the_weights(small_network):
    tokens, mask = torch.randint(0, 4, (2, 15)), torch.ones(2, 15, dtype=torch.bool)
    small_network.eval()
    before = small_network(tokens, mask)
    divide_pair_logits(small_network, 2.0)
    after = small_network(tokens, mask)
    possible = before.pair_logit > IMPOSSIBLE_LOGIT / 2
    torch.testing.assert_close(after.pair_logit[possible], before.pair_logit[possible] / 2)
    torch.testing.assert_close(after.no_partner_logit, before.no_partner_logit / 2)
    assert torch.equal(after.reactivity, before.reactivity)
