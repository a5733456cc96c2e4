"""`Mamba` and `Mamba2` against definitions written from the papers with plain loops."""

import pytest
import torch
import torch.nn.functional as F

from ribonanzamamba.layers import Mamba, Mamba2

WIDTH = 8
KINDS = {
    "mamba": lambda: Mamba(WIDTH, d_state=4),
    "mamba2": lambda: Mamba2(WIDTH, d_state=4, headdim=4),
    "mamba2-groups": lambda: Mamba2(WIDTH, d_state=4, headdim=4, ngroups=2),
    "mamba-bias": lambda: Mamba(WIDTH, d_state=4, bias=True, conv_bias=False, d_conv=2, dt_rank=3),
}


def build(kind: str) -> torch.nn.Module:
    """A layer in float64 with every parameter away from its initial value, steps long enough to matter."""
    torch.manual_seed(0)
    layer = KINDS[kind]().double()
    for parameter in layer.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return layer


def sequences(length: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def convolved(inner: torch.Tensor, weights: dict) -> torch.Tensor:
    """silu of the causal convolution of one row (l, d)."""
    taps = weights["conv1d.weight"].shape[2]
    rows = []
    for t in range(len(inner)):
        y = weights.get("conv1d.bias", torch.zeros(inner.shape[1], dtype=inner.dtype)).clone()
        for back in range(min(t + 1, taps)):
            y = y + weights["conv1d.weight"][:, 0, taps - 1 - back] * inner[t - back]
        rows.append(F.silu(y))
    return torch.stack(rows)


def project(x: torch.Tensor, weights: dict, name: str) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def mamba_definition(x: torch.Tensor, weights: dict) -> torch.Tensor:
    """One row (l, d_model) through Mamba-1, from the parameters alone: Gu and Dao 2023, algorithm 2 and figure 3."""
    u, z = project(x, weights, "in_proj").chunk(2, dim=-1)
    u = convolved(u, weights)
    A = -torch.exp(weights["A_log"])
    d, n = A.shape
    rank = weights["dt_proj.weight"].shape[1]
    h = torch.zeros(d, n, dtype=x.dtype)
    rows = []
    for t in range(len(x)):
        selected = weights["x_proj.weight"] @ u[t]
        dt = F.softplus(project(selected[:rank], weights, "dt_proj"))
        B, C = selected[rank : rank + n], selected[rank + n :]
        h = torch.exp(dt[:, None] * A) * h + dt[:, None] * B[None, :] * u[t][:, None]
        y = h @ C + weights["D"] * u[t]
        rows.append(project(y * F.silu(z[t]), weights, "out_proj"))
    return torch.stack(rows)


def mamba2_definition(x: torch.Tensor, weights: dict, groups: int) -> torch.Tensor:
    """One row (l, d_model) through Mamba-2, from the parameters alone: Dao and Gu 2024, section 7 and figure 6."""
    heads = len(weights["A_log"])
    d = len(weights["norm.weight"])
    p = d // heads
    n = (len(weights["conv1d.weight"]) - d) // (2 * groups)
    projected = project(x, weights, "in_proj")
    z, inner, dt = projected[:, :d], projected[:, d:-heads], projected[:, -heads:]
    inner = convolved(inner, weights)
    h = [torch.zeros(p, n, dtype=x.dtype) for _ in range(heads)]
    rows = []
    for t in range(len(x)):
        step = F.softplus(dt[t] + weights["dt_bias"])
        parts = []
        for head in range(heads):
            group = head // (heads // groups)
            u = inner[t, head * p : (head + 1) * p]
            B = inner[t, d + group * n : d + (group + 1) * n]
            C = inner[t, d + (groups + group) * n : d + (groups + group + 1) * n]
            decay = torch.exp(-torch.exp(weights["A_log"][head]) * step[head])
            h[head] = decay * h[head] + step[head] * torch.outer(u, B)
            parts.append(h[head] @ C + weights["D"][head] * u)
        parts = (torch.cat(parts) * F.silu(z[t])).split(d // groups)
        y = torch.cat([part / torch.sqrt(part.square().mean() + 1e-5) for part in parts])
        rows.append(project(y * weights["norm.weight"], weights, "out_proj"))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 12, 13, 36, 288])
def test_equals_definition(kind, length, same_with_gradients):
    layer, x = build(kind), sequences(length).requires_grad_()
    weights = dict(layer.named_parameters())
    if isinstance(layer, Mamba):
        expected = torch.stack([mamba_definition(row, weights) for row in x])
    else:
        expected = torch.stack([mamba2_definition(row, weights, layer.groups) for row in x])
    same_with_gradients(layer, layer(x), expected, x)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_whole(kind):
    layer, x = build(kind), sequences(20)
    state = layer.initial_state(batch=2)
    outputs = []
    for t in range(20):
        y, state = layer.step(x[:, t], state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, dim=1), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_contributes_nothing(kind):
    layer, x = build(kind), sequences(40)
    lengths = torch.tensor([40, 13])
    got = layer(x, lengths)
    torch.testing.assert_close(got[1, :13], layer(x[1:, :13])[0])
    bias = torch.zeros(WIDTH, dtype=x.dtype) if layer.out_proj.bias is None else layer.out_proj.bias
    assert (got[1, 13:] == bias).all()
    x[1, 13:] = 1e3
    assert torch.equal(layer(x, lengths), got)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind):
    layer = build(kind)
    layer(sequences(20)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_parameters_have_the_names_and_shapes_of_mamba_ssm():
    """Shapes of `mamba_ssm` 2.3.2 for d_model 64, read from its constructors."""
    assert {name: tuple(tensor.shape) for name, tensor in Mamba(64).state_dict().items()} == {
        "in_proj.weight": (256, 64),
        "conv1d.weight": (128, 1, 4),
        "conv1d.bias": (128,),
        "x_proj.weight": (36, 128),
        "dt_proj.weight": (128, 4),
        "dt_proj.bias": (128,),
        "A_log": (128, 16),
        "D": (128,),
        "out_proj.weight": (64, 128),
    }
    assert {name: tuple(tensor.shape) for name, tensor in Mamba2(64).state_dict().items()} == {
        "in_proj.weight": (2 * 128 + 2 * 128 + 2, 64),
        "conv1d.weight": (128 + 2 * 128, 1, 4),
        "conv1d.bias": (128 + 2 * 128,),
        "dt_bias": (2,),
        "A_log": (2,),
        "D": (2,),
        "norm.weight": (128,),
        "out_proj.weight": (64, 128),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_recurrence_parameters_stay_float32(kind, dtype):
    layer = build(kind).float()
    layer(sequences(5).float()).sum().backward()
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in layer.named_parameters()}
    # as part of a larger module, as in use
    torch.nn.Sequential(layer).to(dtype)
    for name, parameter in layer.named_parameters():
        if name in layer.wide_parameters:
            assert torch.equal(parameter, before[name][0]) and torch.equal(parameter.grad, before[name][1]), name
        else:
            assert parameter.dtype == parameter.grad.dtype == dtype, name
    x = sequences(5).to(dtype)
    y = layer(x)
    assert y.dtype == dtype and y.isfinite().all()
    stepped, state = layer.step(x[:, 0], layer.initial_state(2))
    assert stepped.dtype == dtype and state.scan.dtype == torch.float32
    layer.double()
    assert all(parameter.dtype == torch.float64 for parameter in layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_runs_under_autocast(kind):
    layer, x = build(kind).float(), sequences(30).float()
    exact = layer(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(x).detach().float()
    # bfloat16 keeps 8 bits, and three products follow each other
    assert (got - exact).norm() / exact.norm() < 0.03


def test_wrong_head_sizes_are_errors():
    with pytest.raises(ValueError, match="headdim"):
        Mamba2(8, headdim=5)
    with pytest.raises(ValueError, match="ngroups"):
        Mamba2(8, headdim=8, ngroups=3)
