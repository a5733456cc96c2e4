"""`PairUpdate` against a form written channel by channel, and its mask."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ribonanzamamba.layers import PairUpdate
from ribonanzamamba.ops import pair_plain


def layer_of(dilation: int = 1) -> PairUpdate:
    torch.manual_seed(0)
    layer = PairUpdate(8, 4, dilation=dilation)
    layer.pair_gain.data = torch.randn(4)
    return layer


def inputs(length: int, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), length, 8, generator=generator)
    pair = torch.randn(len(lengths), length, length, 4, generator=generator)
    return x, pair, mask


def defined(layer: PairUpdate, x: Tensor, pair: Tensor, dilation: int) -> Tensor:
    """One row without padding: x (length, width), pair (length, length, channel)."""
    length = len(x)
    left, right, row, column = layer.project(layer.norm(x)).chunk(4, dim=-1)
    h = torch.empty_like(pair)
    for i in range(length):
        for j in range(length):
            h[i, j] = pair[i, j] + left[i] * right[j] + row[i] + column[j]
    normed = h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.pair_gain
    kernel, bias = layer.convolution.weight, layer.convolution.bias
    result = torch.empty_like(pair)
    for i in range(length):
        for j in range(length):
            total = bias
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    k, l = i + di * dilation, j + dj * dilation
                    if 0 <= k < length and 0 <= l < length:
                        total = total + kernel[:, :, di + 1, dj + 1] @ normed[k, l]
            result[i, j] = h[i, j] + layer.out(total[:4] * F.silu(total[4:]))
    return result


@torch.no_grad()
@pytest.mark.parametrize("dilation", [1, 2])
def test_equals_the_form_by_hand(dilation):
    layer = layer_of(dilation)
    lengths = [6, 4]
    x, pair, mask = inputs(6, lengths)
    x[1, 4:], pair[1, 4:], pair[1, :, 4:] = 1e3, 1e3, -1e3
    y = layer(x, pair, mask)
    for row, length in enumerate(lengths):
        expected = defined(layer, x[row, :length], pair[row, :length, :length], dilation)
        # float32 sums of 36 products
        torch.testing.assert_close(y[row, :length, :length], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_map_given_is_overwritten_only_where_it_may_be(monkeypatch):
    layer = layer_of()
    x, pair, mask = inputs(6, [6, 4])
    expected, before = layer(x, pair, mask), pair.clone()
    monkeypatch.setattr(pair_plain, "WORTH_PARTS", 0)
    monkeypatch.setattr(pair_plain, "PART", 6 * 4 * 2)
    torch.testing.assert_close(layer(x, pair, mask), expected)
    assert torch.equal(pair, before)
    got = layer(x, pair, mask, overwrite=True)
    torch.testing.assert_close(got, expected)
    assert got is pair
