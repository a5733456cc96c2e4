"""`RMSNorm`: the formula, its dtype, and an epsilon that does not depend on it."""

import pytest
import torch

from ribonanzamamba.layers import RMSNorm


def test_equals_the_formula():
    norm = RMSNorm(6).double()
    norm.weight.data = torch.linspace(-1, 2, 6, dtype=torch.float64)
    x = torch.randn(3, 4, 6, dtype=torch.float64) * 1e-2  # small: the epsilon counts
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=["bf16", "f32", "f64"])
def test_keeps_the_dtype_of_its_input(dtype):
    norm = RMSNorm(8)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == dtype
    # one rounding of the input and one of the result, 2^-8 each in bfloat16, beside the exact norm
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x).double(), exact, rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-6)


def test_zeros_stay_zero_with_a_finite_gradient():
    x = torch.zeros(2, 8, requires_grad=True)
    y = RMSNorm(8)(x)
    y.sum().backward()
    assert (y == 0).all() and x.grad.isfinite().all()
