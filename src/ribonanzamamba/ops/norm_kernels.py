"""Triton kernels of `rms_norm`, forward and backward, and nothing else; `norm_triton.py` launches them."""

import triton
import triton.language as tl

from ribonanzamamba.ops.ssd_kernels import sigmoid

VARYING = ["rows", "x_inner", "gate_inner", "dy_inner"]
"""Numbers that a kernel is not compiled for."""


@triton.jit
def rows_of(x, row, column, inner, slow, fast, SPLIT: tl.constexpr):
    """Pointers to rows (r, d). Row i lies at i fast, if SPLIT at (i // inner) slow + (i % inner) fast."""
    if SPLIT:
        # 64-bit division is slow, and fewer than 2^31 rows are split
        narrow = row.to(tl.int32)
        offsets = (narrow // inner).to(tl.int64) * slow + (narrow % inner).to(tl.int64) * fast
    else:
        offsets = row * fast
    return x + offsets[:, None] + column[None, :]


@triton.jit
def tile_of(x, row, column, inside, inner, slow, fast, SPLIT: tl.constexpr):
    """Rows (r, d) in float32, 0 outside."""
    pointers = rows_of(x, row, column, inner, slow, fast, SPLIT)
    return tl.load(pointers, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def inverse_rms(x, real, D, eps):
    """1 / sqrt(mean(x^2) + eps) of rows (r,); 1 for rows that are not there, finite also where eps is 0."""
    return tl.rsqrt(tl.where(real, tl.sum(x * x, 1) / D + eps, 1.0))


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    x, gain, gate, y, rows, D, eps, x_inner, x_slow, x_fast, gate_inner, gate_slow, gate_fast, gain_d,
    HAS_GATE: tl.constexpr, X_SPLIT: tl.constexpr, GATE_SPLIT: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """y = x / rms(x) gain, dense; HAS_GATE: of x silu(gate) in the place of x."""
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    column = tl.arange(0, BD)
    inside = (row < rows)[:, None] & (column < D)[None, :]
    gains = tl.load(gain + column * gain_d, mask=column < D, other=0.0).to(tl.float32)
    values = tile_of(x, row, column, inside, x_inner, x_slow, x_fast, X_SPLIT)
    if HAS_GATE:
        gates = tile_of(gate, row, column, inside, gate_inner, gate_slow, gate_fast, GATE_SPLIT)
        values *= gates * sigmoid(gates)
    out = values * inverse_rms(values, row < rows, D, eps)[:, None] * gains[None, :]
    tl.store(y + row[:, None] * D + column[None, :], out, mask=inside)


@triton.jit(do_not_specialize=VARYING)
def backward_kernel(
    x, gain, gate, dy, dx, dgate, sums, rows, D, eps, x_inner, x_slow, x_fast, gate_inner, gate_slow, gate_fast,
    dy_inner, dy_slow, dy_fast, dgate_fast, gain_d,
    HAS_GATE: tl.constexpr, X_SPLIT: tl.constexpr, GATE_SPLIT: tl.constexpr, DY_SPLIT: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dx, dense, and partial sums (program, d) of the gradient of the gain; HAS_GATE: dgate, rows dgate_fast apart. A
    program takes every tile of its own turn.

    With r = 1 / rms(x): dx = r (gain dy - x r^2 mean(gain dy x)), dgain = sum over rows of dy x r; with a gate that of
    x silu(gate), passed on to both.
    """
    column = tl.arange(0, BD)
    gains = tl.load(gain + column * gain_d, mask=column < D, other=0.0).to(tl.float32)
    total = tl.zeros((BR, BD), dtype=tl.float32)
    first = tl.program_id(0).to(tl.int64) * BR
    for start in range(first, rows, tl.num_programs(0) * BR):
        row = start + tl.arange(0, BR)
        inside = (row < rows)[:, None] & (column < D)[None, :]
        values = tile_of(x, row, column, inside, x_inner, x_slow, x_fast, X_SPLIT)
        if HAS_GATE:
            gates = tile_of(gate, row, column, inside, gate_inner, gate_slow, gate_fast, GATE_SPLIT)
            share = sigmoid(gates)
            before = values
            values *= gates * share
        g = tile_of(dy, row, column, inside, dy_inner, dy_slow, dy_fast, DY_SPLIT)
        inverse = inverse_rms(values, row < rows, D, eps)[:, None]
        normed = values * inverse
        total += g * normed
        g *= gains[None, :]
        out = inverse * (g - normed * (tl.sum(g * normed, 1) / D)[:, None])
        if HAS_GATE:
            dgates = out * before * share * (1.0 + gates * (1.0 - share))
            tl.store(dgate + row[:, None] * dgate_fast + column[None, :], dgates, mask=inside)
            out *= gates * share
        tl.store(dx + row[:, None] * D + column[None, :], out, mask=inside)
    tl.store(sums + tl.program_id(0).to(tl.int64) * D + column, tl.sum(total, 0), mask=column < D)
