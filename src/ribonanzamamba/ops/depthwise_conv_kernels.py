"""Triton kernels of `depthwise_conv1d`, forward and backward, and nothing else; `depthwise_conv_triton.py` launches
them.

A run is T neighbouring positions of one row; runs are counted over all rows of the batch. A tile (S, BD) is one
position of each of S runs, BD channels: a thread walks the positions of a run, of a few neighbouring channels. The walk
is unrolled. A row is loaded once, AHEAD steps before its first use (the compiler moves no load past a store), and stays
in registers as long as a tap needs it.

Channels and strides count in units of VECTOR, so many channels are loaded and stored at once.
"""

import triton
import triton.language as tl

from ribonanzamamba.ops.ssd_kernels import sigmoid

VARYING = [
    *("batch", "L", "runs", "tiles", "left", "D", "w_d", "w_k", "parts"),
    *(f"{tensor}_{axis}" for tensor in ("x", "y", "dy", "dx") for axis in "bl"),
]
"""Numbers that a kernel is not compiled for; what their divisors allow, VECTOR says."""


@triton.jit
def place(tile, lengths, batch, L, runs, HAS_LENGTHS: tl.constexpr, S: tl.constexpr, T: tl.constexpr):
    """Row of the batch, first position, and positions and present positions of its row, for each run (S,) of a tile."""
    run = tile * S + tl.arange(0, S)
    b = run // runs
    positions = tl.where(b < batch, L, 0)
    present = positions
    if HAS_LENGTHS:
        present = tl.load(lengths + b, mask=b < batch, other=0).to(tl.int32)
    return b.to(tl.int64), run % runs * T, positions, present


@triton.jit
def rows_from(pointer, b, position, d, stride_b, stride_l, VECTOR: tl.constexpr):
    """Pointers (S, BD) to a position of each run, of channels d."""
    rows = (b * stride_b + position.to(tl.int64) * stride_l) * VECTOR
    return pointer + rows[:, None] + d[None, :]


@triton.jit
def mask_of(position, length, real):
    """(S, BD), whether 0 <= position < length."""
    inside = position.to(tl.uint32, bitcast=True) < length.to(tl.uint32, bitcast=True)
    return inside[:, None] & real[None, :]


@triton.jit
def load_taps(
    weight, bias, d, real, w_d, w_k, K: tl.constexpr, HAS_BIAS: tl.constexpr, S: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """K tiles (S, BD) in float32, of equal rows, and that of the bias. All loads come before the first change of
    layout, which waits for its own."""
    loaded = ()
    for k in tl.static_range(K):
        loaded = loaded + (tl.load(weight + d * w_d + k * w_k, mask=real, other=0.0).to(tl.float32),)
    if HAS_BIAS:
        loaded = loaded + (tl.load(bias + d, mask=real, other=0.0).to(tl.float32),)
    else:
        loaded = loaded + (tl.zeros((BD,), dtype=tl.float32),)
    tiles = ()
    for k in tl.static_range(K + 1):
        tiles = tiles + (tl.broadcast_to(loaded[k][None, :], (S, BD)),)
    return tiles


@triton.jit
def sum_runs(tile, S: tl.constexpr, BD: tl.constexpr):
    """(S, BD) of two or four runs, summed: (BD,). `split` has each number moved once, to the thread that adds it; `sum`
    would write all to shared memory where many threads meet in a bank."""
    if S == 4:
        even, odd = tl.split(tl.permute(tl.reshape(tile, (2, 2, BD)), (2, 1, 0)))
        even, odd = tl.split(even + odd)
    else:
        even, odd = tl.split(tl.permute(tile, (1, 0)))
    return even + odd


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    x, weight, bias, lengths, y, batch, L, runs, left, D, x_b, x_l, y_b, y_l, w_d, w_k,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, SILU: tl.constexpr,
    VECTOR: tl.constexpr, S: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """y[t] = sum_k weight[:, k] x[t + k - left] + bias, then silu."""
    channel_tiles = tl.cdiv(D * VECTOR, BD)
    d = tl.program_id(0) % channel_tiles * BD + tl.arange(0, BD)
    real = d < D * VECTOR
    tile = tl.program_id(0) // channel_tiles
    b, first, positions, present = place(tile, lengths, batch, L, runs, HAS_LENGTHS, S, T)
    start = first - left
    x_rows = rows_from(x, b, start, d, x_b, x_l, VECTOR)
    y_rows = rows_from(y, b, first, d, y_b, y_l, VECTOR)
    x_step = tl.cast(x_l, tl.int64) * VECTOR
    y_step = tl.cast(y_l, tl.int64) * VECTOR
    rows = ()
    for i in tl.static_range(K - 1):
        rows = rows + (tl.load(x_rows + i * x_step, mask=mask_of(start + i, present, real), other=0.0),)
    taps = load_taps(weight, bias, d, real, w_d, w_k, K, HAS_BIAS, S, BD)
    for j in tl.static_range(-AHEAD, T):
        if j + AHEAD < T:
            i = j + AHEAD + K - 1
            rows = rows + (tl.load(x_rows + i * x_step, mask=mask_of(start + i, present, real), other=0.0),)
        if j >= 0:
            out = taps[K]
            for k in tl.static_range(K):
                out = tl.fma(taps[k], rows[j + k].to(tl.float32), out)
            if SILU:
                out *= sigmoid(out)
            if HAS_LENGTHS:
                out = tl.where((first + j < present)[:, None], out, 0.0)
            tl.store(y_rows + j * y_step, out, mask=mask_of(first + j, positions, real))


@triton.jit(do_not_specialize=VARYING)
def backward_kernel(
    x, weight, bias, lengths, dy, dx, sums, batch, L, runs, tiles, D,
    x_b, x_l, dy_b, dy_l, dx_b, dx_l, w_d, w_k,
    K: tl.constexpr, LEFT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, SILU: tl.constexpr,
    VECTOR: tl.constexpr, S: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """dx (b, l, d), and each program's part of the gradients of taps and bias, sums (program, K + 1, d).

    Row j of a run's gradient before the activation stands at position first - RIGHT + j and needs the rows j to
    j + K - 1 of x; rows j - K + 1 to j make row j - K + 1 of dx.
    """
    RIGHT: tl.constexpr = K - 1 - LEFT
    # without an activation only the run's own rows need x
    SKIPPED: tl.constexpr = 0 if SILU else RIGHT
    channel_tiles = tl.cdiv(D * VECTOR, BD)
    programs = tl.num_programs(0) // channel_tiles
    program = tl.program_id(0) // channel_tiles
    d = tl.program_id(0) % channel_tiles * BD + tl.arange(0, BD)
    real = d < D * VECTOR
    x_step = tl.cast(x_l, tl.int64) * VECTOR
    dy_step = tl.cast(dy_l, tl.int64) * VECTOR
    dx_step = tl.cast(dx_l, tl.int64) * VECTOR
    taps = load_taps(weight, bias, d, real, w_d, w_k, K, HAS_BIAS and SILU, S, BD)
    totals = ()
    for _ in tl.static_range(K + 1):
        totals = totals + (tl.zeros((S, BD), dtype=tl.float32),)
    for tile in range(program, tiles, programs):
        b, first, positions, present = place(tile, lengths, batch, L, runs, HAS_LENGTHS, S, T)
        start = first - (K - 1)
        x_rows = rows_from(x, b, start, d, x_b, x_l, VECTOR)
        dy_rows = rows_from(dy, b, first - RIGHT, d, dy_b, dy_l, VECTOR)
        dx_rows = rows_from(dx, b, first, d, dx_b, dx_l, VECTOR)
        xs = ()
        for i in tl.static_range(SKIPPED, SKIPPED + K - 1):
            xs = xs + (tl.load(x_rows + i * x_step, mask=mask_of(start + i, present, real), other=0.0),)
        dys = ()
        gs = ()
        for j in tl.static_range(-AHEAD, T + K - 1):
            if j + AHEAD < T + K - 1:
                i = j + AHEAD
                in_row = mask_of(first - RIGHT + i, present, real)
                dys = dys + (tl.load(dy_rows + i * dy_step, mask=in_row, other=0.0),)
                if SILU or (j + AHEAD >= RIGHT and j + AHEAD < RIGHT + T):
                    i += K - 1
                    xs = xs + (tl.load(x_rows + i * x_step, mask=mask_of(start + i, present, real), other=0.0),)
            if j >= 0:
                g = dys[j].to(tl.float32)
                if SILU:
                    before = taps[K]
                    for k in tl.static_range(K):
                        before = tl.fma(taps[k], xs[j + k].to(tl.float32), before)
                    s = sigmoid(before)
                    g *= s * (1.0 + before * (1.0 - s))
                gs = gs + (g,)
                if j >= RIGHT and j < RIGHT + T:
                    added = ()
                    for k in tl.static_range(K):
                        added = added + (tl.fma(g, xs[j - SKIPPED + k].to(tl.float32), totals[k]),)
                    totals = added + (totals[K] + g,)
                if j >= K - 1:
                    r = j - (K - 1)
                    out = tl.zeros((S, BD), dtype=tl.float32)
                    for k in tl.static_range(K):
                        out = tl.fma(taps[k], gs[j - k], out)
                    if HAS_LENGTHS:
                        out = tl.where((first + r < present)[:, None], out, 0.0)
                    tl.store(dx_rows + r * dx_step, out, mask=mask_of(first + r, positions, real))
    to = sums + program.to(tl.int64) * (K + 1) * (D * VECTOR) + d
    for k in tl.static_range(K + 1):
        tl.store(to + k * (D * VECTOR), sum_runs(totals[k], S, BD), mask=real)


@triton.jit(do_not_specialize=VARYING)
def sum_kernel(
    sums, dweight, dbias, parts, D, K: tl.constexpr, VECTOR: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Gradients of taps (d, K) and bias (d,) from their parts (parts, K + 1, d): two tensors from one sum, one of them
    transposed, which `partial_sums.py` does not do."""
    k = tl.program_id(1)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    real = d < D * VECTOR
    p = tl.arange(0, BP)
    total = tl.zeros((BP, BD), dtype=tl.float32)
    for first in range(0, parts, BP):
        rows = ((first + p).to(tl.int64) * (K + 1) + k) * D * VECTOR
        mask = (first + p < parts)[:, None] & real[None, :]
        total += tl.load(sums + rows[:, None] + d[None, :], mask=mask, other=0.0)
    out = tl.sum(total, 0)
    if k < K:
        tl.store(dweight + d * K + k, out, mask=real)
    else:
        tl.store(dbias + d, out, mask=real)
