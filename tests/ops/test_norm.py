"""`rms_norm`: the plain form against its definition, and the Triton kernels in the interpreter, no GPU needed.

The same kernels on a GPU: test_triton_gpu.py.
"""

import contextlib
import importlib.util
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ribonanzamamba.ops import rms_norm
from ribonanzamamba.ops.backend import interpreted

needs_interpreter = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not interpreted(), reason="needs Triton and its interpreter"
)
EPS = 1e-5
WIDTHS = [1, 3, 16, 24, 64, 100, 256]
SHAPES = [(5,), (2, 5), (2, 3, 5)]
"""Axes before the last."""
LAYOUTS = {
    "dense": lambda x: x.clone(),
    "q": lambda x: torch.stack([x, x + 1, x + 2], -3)[..., 0, :, :],
    "k": lambda x: torch.stack([x - 1, x, x + 2], -3)[..., 1, :, :],
    "part of wider rows": lambda x: torch.cat([x + 1, x], -1)[..., x.shape[-1] :],
    "batch and length exchanged": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "three axes of rows": lambda x: x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3),
    "columns": lambda x: x.mT.contiguous().mT,
    "one row again and again": lambda x: x[:1, :1, :1].expand(x.shape),
}
"""Of (batch, length, heads, width): q and k lie in (b, l, 3, h, d), as attention projects them."""
COPIED = ("batch and length exchanged", "three axes of rows", "columns")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def defined(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * gain


def value_and_gradients(function, x: Tensor, gain: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    x, gain = x.detach().requires_grad_(), gain.detach().requires_grad_()
    y = function(x, gain)
    return y.detach(), *torch.autograd.grad(y, (x, gain), weight.to(y.dtype))


@contextlib.contextmanager
def nan_in_fresh_memory() -> Iterator[None]:
    """Whatever a kernel does not write stays NaN."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_kernels_close(x: Tensor, gain: Tensor, weight: Tensor) -> None:
    """Value and both gradients against the definition in float64, of numbers that x and gain hold exactly."""
    expected = value_and_gradients(defined, x.double(), gain.double(), weight.double())
    with nan_in_fresh_memory():
        got = value_and_gradients(lambda x, gain: rms_norm(x, gain, EPS, backend="triton"), x, gain, weight)
    assert [tensor.dtype for tensor in got] == [x.dtype, x.dtype, gain.dtype]
    # the gradient of x is a difference: at width 1 all but eps cancels
    scales = [expected[0].norm(), value_and_gradients(torch.mul, *map(Tensor.double, (x, gain, weight)))[1].norm()]
    scales = [*scales, expected[2].norm()]
    for name, a, b, scale in zip(("y", "dx", "dgain"), got, expected, scales, strict=True):
        # the interpreter cuts bfloat16 off where a GPU rounds it: up to 2^-7
        tolerance = 8e-3 if a.dtype == torch.bfloat16 else 2e-6
        error = (a.double() - b).norm() / scale.clamp(min=1e-30)
        assert error <= tolerance, f"{name}: {error:.1e}"


def example(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x of a dtype, a float32 gain, and the gradient of the result."""
    gain = normal(shape[-1], seed=1).float()
    return normal(*shape).to(dtype), gain, normal(*shape, seed=2).to(dtype)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plain_form_equals_the_definition(shape, width):
    x, gain = normal(*shape, width), normal(width, seed=1)
    torch.testing.assert_close(rms_norm(x, gain, EPS), defined(x, gain), rtol=1e-12, atol=1e-12)
    x.requires_grad_(), gain.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, gain: rms_norm(x, gain, EPS), (x, gain), fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_form_of_any_layout(layout):
    x, gain = LAYOUTS[layout](normal(2, 5, 3, 16)), normal(16, seed=1)
    torch.testing.assert_close(rms_norm(x, gain, EPS), defined(x, gain), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "plain", pytest.param("triton", marks=needs_interpreter)])
def test_no_rows(backend):
    x = torch.zeros(0, 3, 8, requires_grad=True)
    gain = torch.ones(8, requires_grad=True)
    y = rms_norm(x, gain, EPS, backend=backend)
    dx, dgain = torch.autograd.grad(y.sum(), (x, gain))
    assert y.shape == dx.shape == (0, 3, 8) and (dgain == 0).all()


@pytest.mark.parametrize("backend", ["plain", pytest.param("triton", marks=needs_interpreter)])
@pytest.mark.parametrize("gain", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_keeps_the_dtype_of_its_input(dtype, gain, backend):
    gains = torch.ones(8, dtype=gain, requires_grad=True)
    x = normal(5, 8).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = rms_norm(x, gains, EPS, backend=backend)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, gains.grad.dtype) == (dtype, dtype, gain)


@pytest.mark.parametrize(("x", "gain"), [((), ()), ((2, 8), (7,)), ((2, 8), (1, 8)), ((2, 8), (1,))], ids=str)
def test_shapes_that_do_not_fit(x, gain):
    with pytest.raises(ValueError, match=r"expected x \(\.\.\., d\) and gain \(d,\), got"):
        rms_norm(torch.zeros(x), torch.zeros(gain), EPS)


def test_backends_that_cannot_run():
    x, gain = torch.zeros(2, 8, dtype=torch.float64), torch.ones(8)
    with pytest.raises(ValueError, match="backend: expected one of"):
        rms_norm(x, gain, EPS, backend="fused")
    with pytest.raises(ValueError, match="backend 'triton' cannot run: the kernels take float32"):
        rms_norm(x, gain, EPS, backend="triton")


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_the_definition(shape, width, dtype):
    assert_kernels_close(*example(*shape, width, dtype=dtype))


@needs_interpreter
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_read_any_layout(layout):
    from ribonanzamamba.ops.norm_triton import placed

    x, gain, weight = example(2, 5, 3, 24, dtype=torch.float32)
    laid = LAYOUTS[layout](x)
    assert (placed(laid) is not laid) == (layout in COPIED)
    assert_kernels_close(laid, gain, weight)
    assert_kernels_close(x, gain, LAYOUTS[layout](weight))
    assert_kernels_close(x, torch.stack([gain, gain], -1)[:, 0], weight)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_programs_that_take_several_tiles(dtype, monkeypatch):
    from ribonanzamamba.ops import norm_triton

    monkeypatch.setattr(norm_triton, "TILE", 64)
    monkeypatch.setattr(norm_triton, "PROGRAMS", 3)
    # of 4 rows each: the last tile of 50 rows is half empty
    assert_kernels_close(*example(2, 25, 13, dtype=dtype))


@needs_interpreter
def test_kernels_without_epsilon():
    """Rows beyond the last, which count as 0, stay out of the sums."""
    x, gain, weight = example(3, 8, dtype=torch.float32)
    results = [
        value_and_gradients(lambda x, gain, b=backend: rms_norm(x, gain, 0.0, backend=b), x, gain, weight)
        for backend in ("plain", "triton")
    ]
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@needs_interpreter
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_for_compilers(layout):
    """Schema, fake tensors and what is traced agree with the operator itself."""
    from ribonanzamamba.ops import norm_triton

    x, gain, weight = example(2, 5, 3, 16, dtype=torch.float32)
    x, tests = LAYOUTS[layout](x), ("test_schema", "test_faketensor")
    for gate in (None, weight):
        torch.library.opcheck(norm_triton.normalise_operator, (x, gain, gate, EPS), test_utils=tests)
        torch.library.opcheck(norm_triton.gradients_operator, (weight, x, gain, gate, EPS), test_utils=tests)


def gated_and_gradients(function, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Value and gradients of a function of x, gain and gate; the fourth is the gradient of the result."""
    *leaves, weight = leaves
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    y = function(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, weight.to(y.dtype))


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 5, 24)], ids=str)
def test_plain_form_with_a_gate_equals_the_definition(shape):
    x, gain, gate = normal(*shape), normal(shape[-1], seed=1), normal(*shape, seed=3)
    expected = defined(x * gate / (1 + (-gate).exp()), gain)
    torch.testing.assert_close(rms_norm(x, gain, EPS, gate=gate), expected, rtol=1e-12, atol=1e-12)
    leaves = tuple(leaf.requires_grad_() for leaf in (x, gain, gate))
    assert torch.autograd.gradcheck(lambda x, gain, gate: rms_norm(x, gain, EPS, gate=gate), leaves, fast_mode=True)


@needs_interpreter
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_with_a_gate(layout, dtype):
    dense, gain, weight = example(2, 5, 3, 24, dtype=dtype)
    laid = LAYOUTS[layout](normal(2, 5, 3, 24, seed=3).to(dtype))
    for x, gate in ((dense, laid), (laid, dense)):
        expected = gated_and_gradients(
            lambda x, gain, gate: rms_norm(x, gain, EPS, gate=gate),
            *(tensor.double() for tensor in (x, gain, gate, weight)),
        )
        with nan_in_fresh_memory():
            got = gated_and_gradients(
                lambda x, gain, gate: rms_norm(x, gain, EPS, gate=gate, backend="triton"), x, gain, gate, weight
            )
        assert [tensor.dtype for tensor in got] == [dtype, dtype, gain.dtype, dtype]
        for name, a, b in zip(("y", "dx", "dgain", "dgate"), got, expected, strict=True):
            error = (a.double() - b).norm() / b.norm()
            assert error <= (8e-3 if a.dtype == torch.bfloat16 else 2e-6), f"{name}: {error:.1e}"


def test_a_gate_of_another_shape():
    with pytest.raises(ValueError, match=r"gate: expected \(2, 8\) as x, got \(2, 1\)"):
        rms_norm(torch.zeros(2, 8), torch.ones(8), EPS, gate=torch.zeros(2, 1))
