"""`PairBiasedAttention` against a softmax written with loops, and its mask."""

import math

import pytest
import torch
from torch import Tensor

from ribonanzamamba.layers import PairBiasedAttention


@pytest.fixture
def layer() -> PairBiasedAttention:
    torch.manual_seed(0)
    return PairBiasedAttention(8, 6, heads=2).double()


def inputs(length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, length, 8, generator=generator, dtype=torch.float64)
    return x, torch.randn(2, length, length, 6, generator=generator, dtype=torch.float64)


def normed(vector: Tensor) -> Tensor:
    return vector / (vector.square().mean() + 1e-5).sqrt()


def defined(layer: PairBiasedAttention, x: Tensor, pair: Tensor, present: list[int]) -> Tensor:
    """One row (length, width): each position a mean of the values of those present, by the softmax of its logits."""
    width, own = x.shape[1], x.shape[1] // layer.heads
    rows = []
    for i in range(len(x)):
        parts = []
        for head in range(layer.heads):
            part = slice(head * own, (head + 1) * own)
            q, k, v = (layer.qkv.weight[kind * width : (kind + 1) * width][part] for kind in range(3))
            query = normed(q @ x[i])
            logits = [
                query @ normed(k @ x[j]) / math.sqrt(own) + layer.bias.weight[head] @ normed(pair[i, j])
                for j in present
            ]
            weights = [math.exp(logit) for logit in logits]
            parts.append(sum(weight * (v @ x[j]) for weight, j in zip(weights, present, strict=True)) / sum(weights))
        rows.append(layer.out.weight @ torch.cat(parts))
    return torch.stack(rows)


@torch.no_grad()
def test_equals_softmax_by_hand(layer):
    x, pair = inputs(5)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    y = layer(x, pair, mask)
    for row, present in enumerate(([0, 1, 2, 3, 4], [0, 1, 2])):
        torch.testing.assert_close(y[row], defined(layer, x[row], pair[row], present))


@torch.no_grad()
def test_padding_and_batch_mates_change_nothing(layer):
    x, pair = inputs(12)
    mask = torch.arange(12) < torch.tensor([12, 5])[:, None]
    x[1, 5:] = 1e3
    pair[1, 5:], pair[1, :, 5:] = -1e3, 1e3
    together = layer(x, pair, mask)
    for row, length in enumerate((12, 5)):
        part = slice(row, row + 1)
        alone = layer(x[part, :length], pair[part, :length, :length], mask[part, :length])
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-12, atol=1e-12)


def test_row_without_any_position_stays_finite(layer):
    x, pair = (tensor.requires_grad_() for tensor in inputs(4))
    y = layer(x, pair, torch.tensor([[True] * 4, [False] * 4]))
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all() and pair.grad.isfinite().all()
    assert (pair.grad[1] == 0).all()


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="heads: expected a divisor of 8, got 3"):
        PairBiasedAttention(8, 6, heads=3)
