"""Triton kernels of `norm.py`, forward and backward, and nothing else; `norm_triton.py` launches them.

Rows are (outer, inner, c) with any two strides: heads cut out of a wider tensor are read where they are.
"""

import triton
import triton.language as tl


@triton.jit
def offsets_of(row, inner, outer_stride, inner_stride):
    """Where rows begin."""
    return (row // inner).to(tl.int64) * outer_stride + (row % inner) * inner_stride


@triton.jit(do_not_specialize=["rows", "inner"])
def forward_kernel(
    x, gain, y, rows, inner, outer_stride, inner_stride, C, eps, BR: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    c = tl.arange(0, BC)
    real = (row < rows)[:, None] & (c < C)[None, :]
    starts = offsets_of(row, inner, outer_stride, inner_stride)
    value = tl.load(x + starts[:, None] + c[None, :], mask=real, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 1) / C + eps)
    value *= inverse[:, None] * tl.load(gain + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    tl.store(y + row[:, None].to(tl.int64) * C + c[None, :], value, mask=real)


@triton.jit(do_not_specialize=["rows", "inner"])
def backward_kernel(
    dy, x, gain, dx, sums, rows, inner, outer_stride, inner_stride, C, eps, BR: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Gradient of x, dense, and partial sums (program, c) of that of the gain."""
    c = tl.arange(0, BC)
    g = tl.load(gain + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    dgain = tl.zeros((BC,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        row = tile * BR + tl.arange(0, BR)
        real = (row < rows)[:, None] & (c < C)[None, :]
        starts = offsets_of(row, inner, outer_stride, inner_stride)
        value = tl.load(x + starts[:, None] + c[None, :], mask=real, other=0.0).to(tl.float32)
        dense = row[:, None].to(tl.int64) * C + c[None, :]
        d = tl.load(dy + dense, mask=real, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(value * value, 1) / C + eps)[:, None]
        value *= inverse
        dgain += tl.sum(d * value, 0)
        d *= g
        tl.store(dx + dense, inverse * (d - value * (tl.sum(d * value, 1) / C)[:, None]), mask=real)
    tl.store(sums + tl.program_id(0) * C + c, dgain, mask=c < C)
