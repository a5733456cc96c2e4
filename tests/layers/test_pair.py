"""`PairUpdate` against a form written channel by channel, its mask, and its fused form."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ribonanzamamba.layers import PairUpdate, RMSNorm

needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)

compiles = pytest.mark.filterwarnings("ignore")
"""PyTorch's compiler warns of its own old functions, and of gradients it looks for itself."""


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
    return x, pair, (mask[:, :, None] & mask[:, None, :])[..., None]


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


@needs_compiler
@compiles
def test_fused_form_changes_nothing():
    plain, fused = layer_of(), layer_of()
    norms = RMSNorm(4), RMSNorm(4)
    fused.fuse()
    norms[1].fuse()
    results = []
    for layer, norm in zip((plain, fused), norms, strict=True):
        x, pair, mask = inputs(9, [9, 5])
        x.requires_grad_(), pair.requires_grad_()
        y = layer(x, norm(pair), mask)
        y.square().mean().backward()
        results.append((y, x.grad, pair.grad, norm.weight.grad, *(p.grad for p in layer.parameters())))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@compiles
def test_fuse_changes_no_name_of_a_weight():
    fused = layer_of()
    fused.fuse()
    assert list(fused.state_dict()) == list(layer_of().state_dict())
