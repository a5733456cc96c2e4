"""`BiMamba` against a definition with plain loops, its reversal symmetry, and what stands beyond a row's length."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ribonanzamamba.layers import BiMamba
from ribonanzamamba.ops.scan_reference import ssd_reference


@pytest.fixture
def layer() -> BiMamba:
    torch.manual_seed(0)
    layer = BiMamba(12, d_state=5, head_width=8).double()
    # away from their neutral values at the start; steps large enough that the recurrence counts beside the skip
    for parameter in (layer.D, layer.conv_bias, layer.norm.weight, layer.dt_bias):
        parameter.data = torch.randn_like(parameter)
    layer.A_log.data -= 2
    return layer


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def defined(layer: BiMamba, x: Tensor) -> Tensor:
    """One RNA (length, width) by loops: shared convolution, one recurrence from each end, mean, skip, gate, norm."""
    n, heads, inner = layer.d_state, layer.heads, layer.d_inner
    length, taps = len(x), layer.conv_weight.shape[1]
    projected = x @ layer.in_proj.weight.T
    gate, mixed, dt = projected[:, :inner], projected[:, inner : -2 * heads], projected[:, -2 * heads :]
    rows = []
    for t in range(length):
        total = layer.conv_bias
        for k in range(taps):
            if 0 <= t + k - taps // 2 < length:
                total = total + layer.conv_weight[:, k] * mixed[t + k - taps // 2]
        rows.append(F.silu(total))
    mixed = torch.stack(rows)
    u = mixed[:, :inner].reshape(1, length, heads, -1)
    B, C = mixed[:, inner : inner + 2 * n], mixed[:, inner + 2 * n :]
    directions = []
    for k, reverse in enumerate((False, True)):
        own = slice(k * heads, (k + 1) * heads)
        matrices = (matrix[:, k * n : (k + 1) * n].reshape(1, length, 1, n) for matrix in (B, C))
        step = F.softplus(dt[:, own] + layer.dt_bias[own])[None]
        directions.append(ssd_reference(u, step, -torch.exp(layer.A_log[own]), *matrices, reverse=reverse))
    y = sum(directions)[0] / 2 + layer.D[:, None] * u[0]
    y = y.reshape(length, inner) * F.silu(gate)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight
    return y @ layer.out_proj.weight.T


@pytest.mark.parametrize("length", [1, 2, 7, 12, 13, 36, 70, 288])
def test_equals_definition_with_gradients(layer, length):
    x = normal(3, length, 12).requires_grad_()
    lengths = torch.tensor([length, (length + 1) // 2, 1])
    weight = normal(3, length, 12, seed=2)
    names = ["x", *(name for name, _ in layer.named_parameters())]
    results = []
    for y in (
        layer(x, lengths),
        torch.stack([padded(defined(layer, r[:n]), length) for r, n in zip(x, lengths, strict=True)]),
    ):
        gradients = torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])
        results.append((y, *gradients))
    for name, got, expected in zip(["y", *names], *results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def padded(y: Tensor, length: int) -> Tensor:
    return F.pad(y, (0, 0, 0, length - len(y)))


def test_without_lengths_all_positions_count(layer):
    x = normal(2, 9, 12)
    torch.testing.assert_close(layer(x), layer(x, torch.tensor([9, 9])), rtol=1e-12, atol=1e-12)


def test_beyond_the_length_nothing_counts_and_zero_returns(layer):
    x = normal(2, 20, 12)
    lengths = torch.tensor([20, 8])
    y = layer(x, lengths)
    other = x.clone()
    other[1, 8:] = 1e3
    assert torch.equal(layer(other, lengths), y)
    assert (y[1, 8:] == 0).all()
    torch.testing.assert_close(layer(x[1:, :8])[0], y[1, :8], rtol=1e-12, atol=1e-12)


def test_empty_row_gives_zeros_and_finite_gradients(layer):
    x = normal(2, 5, 12).requires_grad_()
    y = layer(x, torch.tensor([5, 0]))
    y.square().sum().backward()
    assert (y[1] == 0).all() and (x.grad[1] == 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def with_directions_swapped(layer: BiMamba) -> BiMamba:
    """The layer that does from right to left what `layer` does from left to right."""
    n, inner, heads = layer.d_state, layer.d_inner, layer.heads
    u, B, C = torch.arange(inner), inner + torch.arange(2 * n), inner + 2 * n + torch.arange(2 * n)
    channels = torch.cat([u, B.roll(n), C.roll(n)])
    swapped = copy.deepcopy(layer)
    start = 2 * inner + 4 * n
    rows = torch.cat([u, inner + channels, start + torch.arange(2 * heads).roll(heads)])
    swapped.in_proj.weight.data = layer.in_proj.weight.data[rows]
    swapped.conv_weight.data = layer.conv_weight.data[channels].flip(1)
    swapped.conv_bias.data = layer.conv_bias.data[channels]
    swapped.dt_bias.data = layer.dt_bias.data.roll(heads)
    swapped.A_log.data = layer.A_log.data.roll(heads)
    return swapped


def test_swapped_directions_mirror_the_output(layer):
    x = normal(2, 70, 12)
    mirrored = with_directions_swapped(layer)(x.flip(1)).flip(1)
    torch.testing.assert_close(mirrored, layer(x), rtol=1e-10, atol=1e-10)
    assert (layer(x.flip(1)).flip(1) - layer(x)).abs().max() > 1e-2, "the directions do not differ"


@pytest.mark.parametrize("changed", [0, 39], ids=["first", "last"])
def test_every_position_reaches_every_other(layer, changed):
    x = normal(1, 40, 12)
    other = x.clone()
    other[0, changed] += 1
    assert ((layer(x) - layer(other)).abs().amax(-1) > 0).all()


def test_head_width_that_does_not_fit():
    with pytest.raises(ValueError, match="head_width: expected a divisor of 24, got 16"):
        BiMamba(12, head_width=16)
