"""`rms_norm`: the plain form against the formula, the kernels (on a GPU, or in Triton's interpreter) against that."""

import importlib.util

import pytest
import torch
from torch import Tensor

from ribonanzamamba.ops import rms_norm
from ribonanzamamba.ops.backend import interpreted

EPS = 1e-5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not (interpreted() or DEVICE == "cuda"),
    reason="needs Triton, and a GPU or Triton's interpreter",
)
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
SHAPES = [(3,), (7, 3), (2, 5, 64), (2, 3, 4, 24), (600, 100), (1, 1, 256), (3, 1000)]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def formula(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * gain


def value_and_gradients(function, x: Tensor, gain: Tensor) -> list[Tensor]:
    """Of a loss that sees each output with a weight of its own."""
    x, gain = x.detach().requires_grad_(), gain.detach().requires_grad_()
    y = function(x, gain)
    (y * torch.linspace(-0.5, 1, y.numel()).bfloat16().to(y).view_as(y)).sum().backward()
    return [y.detach(), x.grad, gain.grad]


def assert_near(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for name, a, b in zip(("y", "dx", "dgain"), got, expected, strict=True):
        error = (a.double() - b).norm() / b.norm().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_formula(shape):
    x, gain = normal(*shape), normal(shape[-1])
    got = value_and_gradients(lambda x, gain: rms_norm(x, gain, EPS), x, gain)
    assert_near(got, value_and_gradients(formula, x, gain), 1e-12)


# the interpreter cuts bfloat16 off where a GPU rounds it: up to 2^-7
@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)], ids=str)
def test_the_kernels_compute_the_same(shape, dtype, tolerance):
    x, gain = normal(*shape).to(DEVICE, dtype), normal(shape[-1]).float().to(DEVICE)
    got = value_and_gradients(lambda x, gain: rms_norm(x, gain, EPS, backend="triton"), x, gain)
    assert [tensor.dtype for tensor in got] == [dtype, dtype, torch.float32]
    assert_near(got, value_and_gradients(formula, x.double(), gain.double()), tolerance)


VIEWS = {
    "heads": lambda x: x[..., 6:18].unflatten(-1, (3, 4)),
    "turned": lambda x: x.transpose(0, 1),
    "every other": lambda x: x[..., ::2],
    "last axis moved": lambda x: x.transpose(1, 2),
    "one row": lambda x: x[:1, :, :4].expand(2, -1, -1),
}


@needs_kernels
@pytest.mark.parametrize("view", VIEWS)
def test_views_are_read_where_they_are(view):
    x = VIEWS[view](normal(2, 5, 18)).float().to(DEVICE)
    gain = normal(x.shape[-1]).float().to(DEVICE)
    y = rms_norm(x, gain, EPS, backend="triton")
    assert y.is_contiguous()
    torch.testing.assert_close(y, formula(x, gain))
    parts = VIEWS[view](normal(2, 5, 18).float().to(DEVICE).requires_grad_())
    assert_near(
        value_and_gradients(lambda x, gain: rms_norm(x, gain, EPS, backend="triton"), parts, gain),
        value_and_gradients(formula, parts.double(), gain.double()),
        2e-6,
    )


@pytest.mark.parametrize("backend", ["plain", pytest.param("triton", marks=needs_kernels)])
def test_no_row(backend):
    x = torch.zeros(0, 3, 4, device=DEVICE, requires_grad=True)
    assert rms_norm(x, torch.ones(4, device=DEVICE), EPS, backend=backend).shape == (0, 3, 4)


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"expected x \(..., c\) and gain \(c,\), got \(2, 3\) and \(2,\)"):
        rms_norm(torch.zeros(2, 3), torch.ones(2), EPS)
    with pytest.raises(ValueError, match="backend"):
        rms_norm(torch.zeros(2, 3), torch.ones(3), EPS, backend="fast")


@needs_gpu
@pytest.mark.parametrize("width", [64, 256, 1024])
def test_many_rows_on_a_gpu(width):
    """Every program adds up over many tiles; twice the same bits."""
    x, gain = normal(200_000, width).to(DEVICE, torch.bfloat16), normal(width).float().to(DEVICE)
    first, second = (
        value_and_gradients(lambda x, gain: rms_norm(x, gain, EPS, backend="triton"), x, gain) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))
    assert_near(first, value_and_gradients(formula, x.double(), gain.double()), 4e-3)


@needs_gpu
def test_compiled_as_one_node():
    x, gain = normal(2, 5, 64).float().to(DEVICE), normal(64).float().to(DEVICE)
    plain = value_and_gradients(lambda x, gain: rms_norm(x, gain, EPS), x, gain)
    compiled = torch.compile(lambda x, gain: rms_norm(x, gain, EPS), fullgraph=True)
    for a, b in zip(plain, value_and_gradients(compiled, x, gain), strict=True):
        torch.testing.assert_close(a, b)
