"""`ssd`: the chunked form against the definition, outputs and every gradient."""

import pytest
import torch

from ribonanzamamba.ops import ssd
from ribonanzamamba.ops.scan_reference import ssd_reference

LENGTHS = [1, 2, 63, 64, 65, 100, 206, 457]


def inputs(length: int, *, dtype=torch.float64, heads=4, groups=2, width=3, state=5, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return {
        "x": normal(3, length, heads, width),
        "dt": normal(3, length, heads),
        "A": (-torch.exp(normal(heads).detach())).requires_grad_(),
        "B": normal(3, length, groups, state),
        "C": normal(3, length, groups, state),
        "D": normal(heads),
        "z": normal(3, length, heads, width),
        "dt_bias": normal(heads),
        "initial_state": normal(3, heads, state, width),
    }


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_definition_with_gradients(length, ragged, reverse):
    lengths = torch.tensor([length, length // 2, 0]) if ragged else None
    options = dict(dt_softplus=True, reverse=reverse, lengths=lengths, return_state=True)
    results = []
    for backend in ("reference", "chunked"):
        tensors = inputs(length)
        y, state = ssd(**tensors, **options, backend=backend)
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        ((y * weight).sum() + state.square().sum()).backward()
        results.append((y, state, *(tensor.grad for tensor in tensors.values())))
    for name, expected, got in zip(["y", "state", *inputs(1)], *results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_lengths_give_exact_zeros_and_ignore_what_stands_beyond():
    tensors = inputs(100)
    lengths = torch.tensor([100, 40, 7])
    y = ssd(**tensors, dt_softplus=True, lengths=lengths, reverse=True)
    assert (y[1, 40:] == 0).all() and (y[2, 7:] == 0).all()
    changed = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for name in ("x", "dt", "B", "C"):
        changed[name][2, 7:] = 1e3
    assert torch.equal(ssd(**changed, dt_softplus=True, lengths=lengths, reverse=True)[2], y[2])


def test_split_with_state_equals_whole():
    tensors = inputs(90)
    first, second = (
        {name: tensor[:, part] if name in ("x", "dt", "B", "C", "z") else tensor for name, tensor in tensors.items()}
        for part in (slice(0, 37), slice(37, 90))
    )
    whole = ssd(**tensors, dt_softplus=True)
    y, state = ssd(**first, dt_softplus=True, return_state=True)
    rest = ssd(**(second | {"initial_state": state}), dt_softplus=True)
    torch.testing.assert_close(torch.cat([y, rest], dim=1), whole)


def test_extreme_decays_stay_finite_and_close():
    """Heavy-tailed steps up to 11 with decay rates up to 16: the case that broke half precision in mamba issue 72."""
    tensors = inputs(1024, dtype=torch.float32, seed=1)
    dt = torch.rand(3, 1024, 4, generator=torch.Generator().manual_seed(2)).pow(8) * 11
    arguments = {name: tensor for name, tensor in tensors.items() if name in ("x", "B", "C")}
    A = -torch.tensor([1.0, 4, 8, 16])
    got = ssd(dt=dt, A=A, **arguments)
    got.sum().backward()
    exact = ssd_reference(dt=dt.double(), A=A.double(), **{name: tensor.double() for name, tensor in arguments.items()})
    assert (got - exact).abs().max() / exact.abs().mean() < 2e-3
    assert all(tensor.grad.isfinite().all() for tensor in arguments.values())


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [("A", (3,), "A: expected"), ("dt", (3, 9, 4), "dt: expected"), ("B", (3, 8, 3, 5), "B and C|groups")],
)
def test_wrong_shapes_are_named(name, shape, message):
    tensors = inputs(8)
    with pytest.raises(ValueError, match=message):
        ssd(**(tensors | {name: torch.zeros(shape, dtype=torch.float64)}))


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend"):
        ssd(**inputs(2), backend="fast")
