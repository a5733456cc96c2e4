"""State-space layers written from the papers with plain loops, and ways to compare a layer with such a definition."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribonanzamamba.layers import BiMamba, BiMamba1, Mamba, Mamba2


def bimamba_by_loops(layer: BiMamba, x: Tensor) -> Tensor:
    """One row (length, width): shared centred convolution, one recurrence from each end, mean, skip, gate, norm."""
    n, heads, inner = layer.d_state, layer.heads, layer.d_inner
    length, taps, p = len(x), layer.conv_weight.shape[1], inner // heads
    projected = [layer.in_proj.weight @ x_t for x_t in x]
    mixed = []
    for t in range(length):
        total = layer.conv_bias
        for k in range(taps):
            if 0 <= t + k - taps // 2 < length:
                source = projected[t + k - taps // 2][inner : 2 * inner + 4 * n]
                total = total + layer.conv_weight[:, k] * source
        mixed.append(F.silu(total))
    sums = [layer.D.repeat_interleave(p) * mixed[t][:inner] for t in range(length)]
    for direction in range(2):
        own = slice(direction * heads, (direction + 1) * heads)
        h = x.new_zeros(heads, p, n)
        for t in range(length) if direction == 0 else reversed(range(length)):
            u = mixed[t][:inner].reshape(heads, p)
            B = mixed[t][inner + direction * n : inner + (direction + 1) * n]
            C = mixed[t][inner + (2 + direction) * n : inner + (3 + direction) * n]
            dt = F.softplus(projected[t][2 * inner + 4 * n :][own] + layer.dt_bias[own])
            decay = torch.exp(-torch.exp(layer.A_log[own]) * dt)
            h = decay[:, None, None] * h + dt[:, None, None] * u[:, :, None] * B
            sums[t] = sums[t] + (h @ C).flatten() / 2
    rows = []
    for t in range(length):
        y = sums[t] * F.silu(projected[t][:inner])
        rows.append(layer.out_proj.weight @ (y / (y.square().mean() + 1e-5).sqrt() * layer.norm.weight))
    return torch.stack(rows)


def mamba2_by_loops(layer: Mamba2, x: Tensor) -> Tensor:
    """One row (length, width): causal convolution, recurrence with one group of B and C, skip, gate, norm."""
    n, heads, inner = layer.d_state, layer.heads, layer.d_inner
    taps, p = layer.conv1d.weight.shape[2], inner // heads
    projected = [layer.in_proj.weight @ x_t for x_t in x]
    h, rows = x.new_zeros(heads, p, n), []
    for t in range(len(x)):
        total = layer.conv1d.bias
        for back in range(min(t + 1, taps)):
            total = total + layer.conv1d.weight[:, 0, taps - 1 - back] * projected[t - back][inner:-heads]
        u, B, C = F.silu(total).split((inner, n, n))
        dt = F.softplus(projected[t][-heads:] + layer.dt_bias)
        decay = torch.exp(-torch.exp(layer.A_log) * dt)
        h = decay[:, None, None] * h + dt[:, None, None] * u.reshape(heads, p)[:, :, None] * B
        y = ((h @ C).flatten() + layer.D.repeat_interleave(p) * u) * F.silu(projected[t][:inner])
        rows.append(layer.out_proj.weight @ (y / (y.square().mean() + 1e-5).sqrt() * layer.norm.weight))
    return torch.stack(rows)


def mamba1_scan(u: list[Tensor], selected: list[Tensor], dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, order):
    """Outputs (d_inner) of one direction at each position: selected holds low-rank step sizes, B and C."""
    d, n = A_log.shape
    h, outputs = u[0].new_zeros(d, n), {}
    for t in order:
        low, B, C = selected[t].split((dt_weight.shape[1], n, n))
        dt = F.softplus(dt_weight @ low + dt_bias)
        h = torch.exp(-torch.exp(A_log) * dt[:, None]) * h + (dt * u[t])[:, None] * B
        outputs[t] = h @ C
    return [outputs[t] for t in range(len(u))]


def mamba1_by_loops(layer: Mamba, x: Tensor) -> Tensor:
    """One row (length, width): causal convolution, recurrence, skip, gate."""
    taps = layer.conv1d.weight.shape[2]
    u, z = zip(*((layer.in_proj.weight @ x_t).chunk(2) for x_t in x), strict=True)
    mixed = []
    for t in range(len(x)):
        total = layer.conv1d.bias
        for back in range(min(t + 1, taps)):
            total = total + layer.conv1d.weight[:, 0, taps - 1 - back] * u[t - back]
        mixed.append(F.silu(total))
    selected = [layer.x_proj.weight @ u_t for u_t in mixed]
    y = mamba1_scan(mixed, selected, layer.dt_proj.weight, layer.dt_proj.bias, layer.A_log, range(len(x)))
    rows = [(y[t] + layer.D * mixed[t]) * F.silu(z[t]) for t in range(len(x))]
    return torch.stack([layer.out_proj.weight @ row for row in rows])


def bimamba1_by_loops(layer: BiMamba1, x: Tensor) -> Tensor:
    """One row (length, width): shared centred convolution, one recurrence from each end, mean, skip, gate."""
    length, taps, d = len(x), layer.conv_weight.shape[1], layer.d_inner
    u, z = zip(*((layer.in_proj.weight @ x_t).chunk(2) for x_t in x), strict=True)
    mixed = []
    for t in range(length):
        total = layer.conv_bias
        for k in range(taps):
            if 0 <= t + k - taps // 2 < length:
                total = total + layer.conv_weight[:, k] * u[t + k - taps // 2]
        mixed.append(F.silu(total))
    directions = []
    for k in range(2):
        selected = [(layer.x_proj.weight @ u_t).chunk(2)[k] for u_t in mixed]
        own, order = slice(k * d, (k + 1) * d), range(length) if k == 0 else range(length)[::-1]
        directions.append(mamba1_scan(mixed, selected, layer.dt_weight[k], layer.dt_bias[own], layer.A_log[own], order))
    rows = [
        ((left + right) / 2 + layer.D * mixed[t]) * F.silu(z[t])
        for t, (left, right) in enumerate(zip(*directions, strict=True))
    ]
    return torch.stack([layer.out_proj.weight @ row for row in rows])


DEFINITIONS = {
    BiMamba: bimamba_by_loops,
    BiMamba1: bimamba1_by_loops,
    Mamba: mamba1_by_loops,
    Mamba2: mamba2_by_loops,
}


def state_space_by_loops(layer: nn.Module, x: Tensor) -> Tensor:
    return DEFINITIONS[type(layer)](layer, x)


def assert_same_with_gradients(layer: nn.Module, got: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    """Outputs and the gradients of every input and parameter agree; no gradient is zero all over."""
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(9), dtype=got.dtype)
    names = [*(f"input {k}" for k in range(len(inputs))), *(name for name, _ in layer.named_parameters())]
    tensors = [*inputs, *layer.parameters()]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad((y * weight).sum(), tensors, allow_unused=True) for y in (got, expected)]
    for name, ours, theirs in zip(names, *gradients, strict=True):
        ours, theirs = (torch.zeros(1) if gradient is None else gradient for gradient in (ours, theirs))
        if ours.shape != theirs.shape:  # None and zeros mean the same
            assert not ours.any() and not theirs.any(), name
            continue
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def by_loops() -> Callable[[nn.Module, Tensor], Tensor]:
    """(layer, one row) to the row's outputs."""
    return state_space_by_loops


@pytest.fixture
def same_with_gradients() -> Callable[..., None]:
    return assert_same_with_gradients


@pytest.fixture
def stirred() -> Callable[[nn.Module], nn.Module]:
    """A layer to float64 with every parameter away from its initial value, steps long enough that the past counts."""

    def stir(layer: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(3)
        layer = layer.double()
        for name, parameter in layer.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data.add_(0.3 * noise)
            if name.endswith("A_log"):
                parameter.data.sub_(2)
            if name.endswith(("dt_bias", "dt_proj.bias")):
                parameter.data.add_(2)
        return layer

    return stir
