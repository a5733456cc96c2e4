"""The heads: pair probabilities worked by hand, and what can never pair."""

import math

import pytest
import torch
from torch import Tensor

from ribonanzamamba.model.heads import (
    IMPOSSIBLE_LOGIT,
    SHORTEST_PAIR,
    PairHead,
    ReactivityHead,
    pair_log_probability,
    pair_probability,
)
from ribonanzamamba.ops import pair_plain


def logits(length: int, pairs: dict[tuple[int, int], float]) -> Tensor:
    """One RNA's logits: log of the given odds at these pairs, impossible elsewhere."""
    logit = torch.full((1, length, length), IMPOSSIBLE_LOGIT)
    for (i, j), odds in pairs.items():
        logit[0, i, j] = logit[0, j, i] = math.log(odds)
    return logit


def test_pair_logits_part_by_part_are_those_of_the_whole_map(monkeypatch):
    torch.manual_seed(0)
    head, mask = PairHead(8, 6), torch.ones(2, 9, dtype=torch.bool)
    x, pair = torch.randn(2, 9, 8), torch.randn(2, 9, 9, 6)
    whole, _ = head(x, pair, mask)
    assert whole.requires_grad
    monkeypatch.setattr(pair_plain, "PART", 120)
    monkeypatch.setattr(pair_plain, "WORTH_PARTS", 0)
    with torch.no_grad():
        torch.testing.assert_close(head(x, pair, mask)[0], whole, rtol=1e-6, atol=1e-6)


def test_nothing_can_pair():
    probability = pair_probability(logits(3, {}), torch.tensor([[0.0, -5, 5]]))
    assert (probability == 0).all()


def test_the_doubting_side_of_a_pair_decides():
    no_partner = torch.tensor([[1.0, 1, 1, 1, 2]]).log()
    probability = pair_probability(logits(5, {(0, 4): 3}), no_partner)
    # nucleotide 0 says 3 / (3 + 1), nucleotide 4 says 3 / (3 + 2)
    expected = torch.zeros(1, 5, 5)
    expected[0, 0, 4] = expected[0, 4, 0] = 3 / 5
    torch.testing.assert_close(probability, expected)


def test_competing_pairs_share():
    probability = pair_probability(logits(6, {(0, 4): 2, (0, 5): 5, (1, 5): 3}), torch.zeros(1, 6))
    # rows: 0 says 2/8 and 5/8, 1 says 3/4, 4 says 2/3, 5 says 5/9 and 3/9
    expected = torch.zeros(6, 6)
    expected[0, 4], expected[0, 5], expected[1, 5] = 2 / 8, 5 / 9, 3 / 9
    torch.testing.assert_close(probability[0], expected + expected.T)


def test_choices_of_a_nucleotide_sum_to_one():
    logit = torch.randn(2, 6, 6)
    logit = logit + logit.transpose(1, 2)
    choice = pair_log_probability(logit, torch.randn(2, 6)).exp()
    assert choice.shape == (2, 6, 7)
    torch.testing.assert_close(choice.sum(-1), torch.ones(2, 6))
    assert (pair_probability(logit, torch.randn(2, 6)).sum(-1) <= 1 + 1e-6).all()


@torch.no_grad()
def test_pair_logits_are_symmetric_and_impossible_where_too_close_or_padded():
    torch.manual_seed(0)
    head = PairHead(8, 6)
    mask = torch.arange(10) < torch.tensor([10, 7])[:, None]
    logit, no_partner = head(torch.randn(2, 10, 8), torch.randn(2, 10, 10, 6), mask)
    torch.testing.assert_close(logit, logit.transpose(1, 2))
    assert no_partner.shape == (2, 10)
    for row, length in enumerate((10, 7)):
        for i in range(10):
            for j in range(10):
                possible = abs(i - j) >= SHORTEST_PAIR and max(i, j) < length
                assert (logit[row, i, j] > IMPOSSIBLE_LOGIT / 2) == possible, (row, i, j)


@torch.no_grad()
@pytest.mark.parametrize("size", [1.0, 1e4], ids=["usual", "huge"])
def test_reactivity_error_is_positive(size):
    torch.manual_seed(0)
    head = ReactivityHead(8, 3)
    head.out.weight *= size
    value, error = head(torch.randn(2, 5, 8))
    assert value.shape == error.shape == (2, 5, 3)
    assert (error >= 1e-3).all() and error.isfinite().all()


@torch.no_grad()
def test_reactivity_head_reads_value_then_error():
    head = ReactivityHead(8, 2)
    head.out.weight.zero_()
    head.out.bias.copy_(torch.tensor([0.25, -0.5, 2.0, 3.0]))
    value, error = head(torch.randn(1, 1, 8))
    assert value[0, 0].tolist() == [0.25, -0.5]
    expected = [math.log1p(math.exp(x)) + 1e-3 for x in (0.0, 1.0)]
    torch.testing.assert_close(error[0, 0], torch.tensor(expected))


def test_error_factors_multiply_predicted_errors_alone():
    torch.manual_seed(0)
    plain, scaled = ReactivityHead(8, 2), ReactivityHead(8, 2, (1.0, 1.5))
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(1, 5, 8)
    value, error = plain(x)
    torch.testing.assert_close(scaled(x)[0], value, rtol=0, atol=0)
    torch.testing.assert_close(scaled(x)[1], error * torch.tensor([1.0, 1.5]))
