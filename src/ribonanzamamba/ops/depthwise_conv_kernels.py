"""Triton kernels of `depthwise_conv1d`, forward and backward, and nothing else; `depthwise_conv_triton.py` launches
them. The gradient of the input is a forward convolution with the taps turned round."""

import triton
import triton.language as tl

from ribonanzamamba.ops.ssd_kernels import silu


@triton.jit
def row_of(x, b, position, length, x_b, x_l, d, real):
    """Positions (l,) of one row (l, d) in float32, 0 outside the row."""
    inside = (position >= 0) & (position < length)
    offsets = position[:, None].to(tl.int64) * x_l + d[None, :]
    return tl.load(x + b.to(tl.int64) * x_b + offsets, mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["L", "left"])
def forward_kernel(
    x, weight, bias, lengths, y, L, D, left, x_b, x_l, w_d, w_k,
    K: tl.constexpr, FLIP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, SILU: tl.constexpr,
    BL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """y[t] = sum_k weight[:, k] x[t + k - left] + bias, then silu; FLIP reads the taps from the last to the first."""
    b = tl.program_id(2)
    t = tl.program_id(0) * BL + tl.arange(0, BL)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    real = d < D
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    out = tl.zeros((BL, BD), dtype=tl.float32)
    for k in tl.static_range(K):
        tap = tl.load(weight + d * w_d + (K - 1 - k if FLIP else k) * w_k, mask=real, other=0.0).to(tl.float32)
        out += tap[None, :] * row_of(x, b, t + k - left, length, x_b, x_l, d, real)
    if HAS_BIAS:
        out += tl.load(bias + d, mask=real, other=0.0).to(tl.float32)[None, :]
    if SILU:
        out = silu(out)
    out = tl.where((t < length)[:, None], out, 0.0)
    offsets = (b.to(tl.int64) * L + t[:, None]) * D + d[None, :]
    tl.store(y + offsets, out, mask=(t < L)[:, None] & real[None, :])


@triton.jit(do_not_specialize=["L", "left"])
def backward_kernel(
    x, weight, bias, lengths, dy, dbefore, sums, L, D, left, x_b, x_l, dy_b, dy_l, w_d, w_k,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, SILU: tl.constexpr,
    BL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradient before the activation (b, l, d), and partial sums (b, l tile, K + 1, d), those of taps and bias."""
    b = tl.program_id(2)
    t = tl.program_id(0) * BL + tl.arange(0, BL)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    real = d < D
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    g = row_of(dy, b, t, length, dy_b, dy_l, d, real)
    if SILU:
        before = tl.zeros((BL, BD), dtype=tl.float32)
        for k in tl.static_range(K):
            tap = tl.load(weight + d * w_d + k * w_k, mask=real, other=0.0).to(tl.float32)
            before += tap[None, :] * row_of(x, b, t + k - left, length, x_b, x_l, d, real)
        if HAS_BIAS:
            before += tl.load(bias + d, mask=real, other=0.0).to(tl.float32)[None, :]
        sigmoid = 1.0 / (1.0 + tl.exp(-before))
        g *= sigmoid * (1.0 + before * (1.0 - sigmoid))
        offsets = (b.to(tl.int64) * L + t[:, None]) * D + d[None, :]
        tl.store(dbefore + offsets, g, mask=(t < L)[:, None] & real[None, :])
    sums += (b.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * (K + 1) * D + d
    for k in tl.static_range(K):
        shifted = row_of(x, b, t + k - left, length, x_b, x_l, d, real)
        tl.store(sums + k * D, tl.sum(g * shifted, 0), mask=real)
    tl.store(sums + K * D, tl.sum(g, 0), mask=real)
