"""Triton kernels of `selective_scan`, forward and backward, and nothing else; `selective_scan_triton.py` launches them.

One warp walks the positions of R x W channels, T positions at a time. Tiles are (T, R, N, W): T and R lie in a thread's
registers, neighbouring threads hold neighbouring channels W and then states N. So a step of the recurrence is `pick`ed
from a tile without an instruction, and sums over R need no other thread. What differs only by channel (step sizes and
their softplus) is computed once, in the layout in which it is loaded, a block of positions ahead, and then spread
(`settle`). The backward pass starts each block of T positions from the state that the forward pass kept, recomputes the
states inside in registers and walks back. Positions, reversal and padding as in `ssd_kernels.py`.

What decides the speed (found with Nsight Compute): waiting for shared memory, which every change of layout passes
through. So layouts change where tiles come and go, once, and nowhere else: what is stored is summed by the thread that
stores it (`sum_channels`, `sum_states`), and states are kept in the order of the threads that will read them.

HAS_ORDER: step s of a direction takes position order[direction, s], none where that is negative. Every direction takes
every position, or (SHARED) the directions divide them up: then nothing that has an axis along the sequence has one part
for each direction. Either way each place of the results is written once. Without an order there are L steps.

No bound on the log decays is needed here: nothing is divided, and exp of a very negative number is 0, which differs
from the bound of the plain form by 2e-9 of the state.
"""

import triton
import triton.language as tl

from ribonanzamamba.ops.ssd_kernels import LOG2_E, reciprocal, sigmoid, silu

LN_2 = tl.constexpr(0.6931471805599453)
VARYING = ["batch", "L", "steps", "blocks_a_segment", "segments", "blocks"]
"""Numbers that change from batch to batch: a kernel compiled for one value serves all."""


@triton.jit
def masked(mask, condition):
    """mask where one scalar condition holds (the interpreter makes integers of `mask & condition`)."""
    return tl.where(condition, mask, mask != mask)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) to 1e-7 of itself: log1p(e) = 2 atanh(e / (2 + e)), a polynomial fitted on 0 < e <= 1 (4e-9)."""
    e = tl.exp2(-tl.abs(x) * LOG2_E)
    s = e * reciprocal(2.0 + e)
    q = s * s
    p = 0.33333157 + q * (0.20012455 + q * (0.13980303 + q * 0.14089163))
    return tl.maximum(x, 0.0) + 2.0 * (s + s * q * p)


@triton.jit
def pick(tile, t, k: tl.constexpr):
    """Row k of the first axis, along which t counts. As a sum of integers, in which zeros cost nothing (adding 0.0 to a
    number does: it turns -0.0 round)."""
    return tl.sum(tl.where(t == k, tile.to(tl.int32, bitcast=True), 0), 0).to(tl.float32, bitcast=True)


@triton.jit
def put(tile, t, k: tl.constexpr, row):
    """tile with `row` in place k of the first axis."""
    return tl.where(t == k, row[None], tile)


@triton.jit
def settle(tile):
    """The same tile. The compiler moves changes of layout up to the loads, and with them all arithmetic into the layout
    in which many threads repeat it; it does not move them over a sum."""
    flat = tl.reshape(tile.to(tl.int32, bitcast=True), (1, tile.numel))
    return tl.reshape(tl.sum(flat, 0).to(tl.float32, bitcast=True), tile.shape)


@triton.jit
def spread(state, t4, T: tl.constexpr, R: tl.constexpr, BN: tl.constexpr, W: tl.constexpr):
    """The same (R, N, W) in the layout of the tiles, whatever that of its load was."""
    return pick(tl.broadcast_to(state[None], (T, R, BN, W)), t4, 0)


@triton.jit
def exists(k, count, WHOLE: tl.constexpr):
    """Which of k are below count: all, known to the compiler, where tiles are WHOLE."""
    ok = k < count
    if WHOLE:
        ok = tl.full(k.shape, True, tl.int1)
    return ok


@triton.jit
def place(
    program, batch, width, tiles_a_group, width_a_group,
    REVERSE: tl.constexpr, R: tl.constexpr, W: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Direction, batch row, group of that direction, tile, channels (R, W) and which of them are real, whether to run
    back."""
    groups = width // width_a_group
    tile = program % tiles_a_group
    rest = program // tiles_a_group
    group = rest % groups
    row = (rest // groups).to(tl.int64)  # direction, batch
    b = row % batch
    direction = row // batch
    inside = tile * (R * W) + tl.arange(0, R)[:, None] * W + tl.arange(0, W)[None, :]
    reverse = direction if not REVERSE else 1
    return direction, b, group, tile, group * width_a_group + inside, exists(inside, width_a_group, WHOLE), reverse


@triton.jit
def positions(s, length, order, direction, steps, reverse, HAS_ORDER: tl.constexpr, OFFSET: tl.constexpr):
    """Which of the steps s take a position, and these."""
    ok = (s >= 0) & (s < length)
    pos = tl.where(reverse != 0, length - 1 - s, s).to(OFFSET)
    if HAS_ORDER:
        pos = tl.load(order + direction * steps + s, mask=ok, other=-1).to(OFFSET)
        ok = pos >= 0
    return ok, pos


@triton.jit
def load_rows(pointer, pos, stride, d, mask):
    """float32 (T, R, W) of the positions pos; 0 where masked."""
    return tl.load(pointer + pos[:, None, None] * stride + d[None, :, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_steps(dt, pos, stride, d, shift, present, ok, SOFTPLUS: tl.constexpr):
    """Step sizes (T, R, W) of the positions pos, 0 where there is none, and what they were before softplus."""
    raw = load_rows(dt, pos, stride, d, present) + shift[None, :, :]
    step = raw
    if SOFTPLUS:
        step = softplus(raw)
    return tl.where(ok[:, None, None], step, 0.0), raw


@triton.jit
def load_walked(v, dt, pos, ok, v_l, dt_l, d, real, shift, SOFTPLUS: tl.constexpr):
    """What a walk over the positions pos needs at least, (T, R, W): v, and what `load_steps` returns."""
    present = ok[:, None, None] & real[None, :, :]
    V = load_rows(v, pos, v_l, d, present)
    step, raw = load_steps(dt, pos, dt_l, d, shift, present, ok, SOFTPLUS)
    return V, step, raw


@triton.jit
def load_rate(
    A, direction, d, n, width, N, mask, t4, T: tl.constexpr, R: tl.constexpr, BN: tl.constexpr, W: tl.constexpr
):
    """A (R, N, W) in units of log 2, laid out as the tiles."""
    offsets = (direction * width + d[:, None, :]) * N + n[None, :, None]
    return spread(tl.load(A + offsets, mask=mask, other=0.0).to(tl.float32) * LOG2_E, t4, T, R, BN, W)


@triton.jit
def load_matrix(
    pointer, pos, ok, stride, n, N,
    T: tl.constexpr, R: tl.constexpr, BN: tl.constexpr, W: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """B or C of the positions pos as a tile (T, R, N, W)."""
    mask = ok[:, None] & exists(n, N, WHOLE)[None, :]
    matrix = tl.load(pointer + pos[:, None] * stride + n[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.broadcast_to(settle(matrix)[:, None, :, None], (T, R, BN, W))


@triton.jit
def widen(rows, T: tl.constexpr, R: tl.constexpr, BN: tl.constexpr, W: tl.constexpr):
    """(T, R, W) as a tile (T, R, N, W)."""
    return tl.broadcast_to(settle(rows)[:, :, None, :], (T, R, BN, W))


@triton.jit
def sum_channels(tile, A: tl.constexpr, BN: tl.constexpr, W: tl.constexpr):
    """(A, N, W) summed over W, whose numbers are in as many threads.

    `sum` alone would have every thread add up, in steps, what its neighbours have. `split` makes the compiler move each
    number once, to the thread that adds it; here that is the one which stores the sum.
    """
    LANES: tl.constexpr = 32 if A * BN > 32 else A * BN
    pairs = tl.permute(tl.reshape(tile, (LANES, A * BN // LANES, W // 2, 2)), (2, 1, 0, 3))
    even, odd = tl.split(pairs)
    return tl.reshape(tl.permute(tl.sum(even + odd, 0), (1, 0)), (A, BN))


@triton.jit
def sum_states(tile, A: tl.constexpr, T: tl.constexpr, R: tl.constexpr, BN: tl.constexpr, W: tl.constexpr):
    """(A T, R, N, W) summed over N as in `sum_channels`: (T, R, W, A), laid out as 16-bit (T, R, W) are loaded."""
    LANES: tl.constexpr = BN if BN < 32 // W else 32 // W
    EACH: tl.constexpr = 1 if T * R * W < 64 else (2 if T * R * W < 128 else 4)
    tile = tl.sum(tl.reshape(tile, (A * T * R, BN // LANES, LANES, W)), 1)
    if LANES > 1:
        parts = tl.reshape(tile, (A, T, R, LANES // 2, 2, W // EACH, EACH))
        pairs = tl.permute(parts, (3, 0, 6, 2, 1, 5, 4))
        even, odd = tl.split(tl.reshape(pairs, (LANES // 2, A * EACH, R * T * W // EACH, 2)))
        tile = tl.permute(tl.reshape(tl.sum(even + odd, 0), (A, EACH, R, T, W // EACH)), (3, 2, 4, 1, 0))
    else:
        tile = tl.permute(tl.reshape(tile, (A, T, R, W)), (1, 2, 3, 0))
    return tl.reshape(tile, (T, R, W, A))


@triton.jit
def kept_places(
    tile, width_a_group,
    R: tl.constexpr, BN: tl.constexpr, W: tl.constexpr, KW: tl.constexpr, LANES: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Where the states of a tile of a group's channels are kept, and which are real: as threads of the backward pass,
    with KW for W, have them. (R LANES W, N / LANES): an axis along the threads and one inside each."""
    k = tl.arange(0, R * LANES * W)
    c = tile * (R * W) + k // (LANES * W) * W + k % W
    thread = (c // KW * LANES + k // W % LANES) * KW + c % KW
    EACH: tl.constexpr = BN // LANES
    return thread[:, None] * EACH + tl.arange(0, EACH)[None, :], exists(c, width_a_group, WHOLE)[:, None]


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    x, dt, A, B, C, D, z, bias, lengths, order, start, y, ungated, last, states,
    batch, L, steps, width, N, tiles_a_group, width_a_group, blocks_a_segment, segments, blocks,
    x_b, x_l, dt_b, dt_l, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_ORDER: tl.constexpr, SHARED: tl.constexpr,
    HAS_START: tl.constexpr, KEEP: tl.constexpr, KEPT_W: tl.constexpr, RETURN_LAST: tl.constexpr,
    T: tl.constexpr, OFFSET: tl.constexpr, BN: tl.constexpr, R: tl.constexpr, W: tl.constexpr, WHOLE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """y, and the state that enters every KEEP-th step, if KEEP is not 0; RETURN_LAST also that after the last step."""
    segment = tl.program_id(1)
    direction, b, group, tile, d, real, reverse = place(
        tl.program_id(0), batch, width, tiles_a_group, width_a_group, REVERSE, R, W, WHOLE
    )
    length = steps if HAS_ORDER else L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    part = 0 if SHARED else direction
    n = tl.arange(0, BN)
    t = tl.arange(0, T)
    t4 = t[:, None, None, None]
    full_group = part * (width // width_a_group) + group
    x += b * x_b
    dt += b * dt_b + part * width
    B += b * B_b + full_group * B_g
    C += b * C_b + full_group * C_g
    row = direction * batch + b
    y += (part * batch + b) * L * width
    state_offsets = n[None, :, None] * width + d[:, None, :]
    state_mask = exists(n, N, WHOLE)[None, :, None] & real[:, None, :]
    rate = load_rate(A, direction, d, n, width, N, state_mask, t4, T, R, BN, W)
    shift = tl.zeros((R, W), dtype=tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + direction * width + d, mask=real, other=0.0).to(tl.float32)
    skip = tl.zeros((R, W), dtype=tl.float32)
    if HAS_D:
        skip = tl.load(D + (direction * width + d if HAS_ORDER else d), mask=real, other=0.0).to(tl.float32)
    if HAS_Z:
        z += b * z_b
    h = tl.zeros((R, BN, W), dtype=tl.float32)
    if HAS_START:
        h = tl.load(start + (row * segments + segment) * N * width + state_offsets, mask=state_mask, other=0.0)
    h = spread(h, t4, T, R, BN, W)
    if KEEP:
        LANES: tl.constexpr = BN if BN < 32 // KEPT_W else 32 // KEPT_W
        kept_at, kept_real = kept_places(tile, width_a_group, R, BN, W, KEPT_W, LANES, WHOLE)
        kept_size = (width_a_group + KEPT_W - 1) // KEPT_W * KEPT_W * BN
        walked = steps if HAS_ORDER else L
        states += ((row * ((walked + KEEP - 1) // KEEP)) * (width // width_a_group) + group) * kept_size
    first = segment * blocks_a_segment
    stop = tl.minimum(first + blocks_a_segment, blocks)
    used = tl.minimum(stop, (length + T - 1) // T)
    ok, pos = positions(first * T + t, length, order, direction, steps, reverse, HAS_ORDER, OFFSET)
    X, step, _ = load_walked(x, dt, pos, ok, x_l, dt_l, d, real, shift, SOFTPLUS)
    for block in tl.range(first, used, num_stages=STAGES):
        # the next block's rows: nothing of this one waits for their step sizes
        ok, pos = positions((block + 1) * T + t, length, order, direction, steps, reverse, HAS_ORDER, OFFSET)
        X_next, step_next, _ = load_walked(x, dt, pos, ok, x_l, dt_l, d, real, shift, SOFTPLUS)
        s = block * T + t
        ok, pos = positions(s, length, order, direction, steps, reverse, HAS_ORDER, OFFSET)
        present = ok[:, None, None] & real[None, :, :]
        decay = tl.exp2(widen(step, T, R, BN, W) * rate[None])
        added = widen(step * X, T, R, BN, W) * load_matrix(B, pos, ok, B_l, n, N, T, R, BN, W, WHOLE)
        C4 = load_matrix(C, pos, ok, C_l, n, N, T, R, BN, W, WHOLE)
        out = tl.zeros((T, R, BN, W), dtype=tl.float32)
        for k in tl.static_range(T):
            if KEEP:
                if k % KEEP == 0:
                    step_k = block * T + k
                    kept = (step_k // KEEP).to(tl.int64) * (width // width_a_group) * kept_size
                    entering = tl.permute(tl.reshape(h, (R, BN // LANES, LANES, W)), (0, 2, 3, 1))
                    entering = tl.reshape(entering, kept_at.shape)
                    tl.store(states + kept + kept_at, entering, mask=masked(kept_real, step_k < walked))
            h = pick(decay, t4, k) * h + pick(added, t4, k)
            out = put(out, t4, k, h * pick(C4, t4, k))
        h = spread(h, t4, T, R, BN, W)  # as `carry` of the backward pass
        out = tl.reshape(sum_states(out, 1, T, R, BN, W), (T, R, W))
        if HAS_D:
            out += skip[None, :, :] * X
        out = tl.where(ok[:, None, None], out, 0.0)
        at = tl.where(ok & (reverse != 0), length - 1 - s, s).to(OFFSET)
        inside = (s < L)[:, None, None] & real[None, :, :]
        if HAS_ORDER:
            at, inside = pos, present
        offsets = at[:, None, None] * width + d[None, :, :]
        if HAS_Z:
            if KEEP:
                tl.store(ungated + b * L * width + offsets, out, mask=inside)
            out *= silu(load_rows(z, pos, z_l, d, present))
        tl.store(y + offsets, out, mask=inside)
        X = X_next
        step = step_next
    for block in range(tl.maximum(used, first), stop):
        s = block * T + t
        offsets = s[:, None, None].to(OFFSET) * width + d[None, :, :]
        inside = (s < L)[:, None, None] & real[None, :, :]
        nothing = tl.zeros((T, R, W), dtype=tl.float32)
        tl.store(y + offsets, nothing, mask=inside)
        if HAS_Z and KEEP:
            tl.store(ungated + b * L * width + offsets, nothing, mask=inside)
    if RETURN_LAST and segment == segments - 1:
        tl.store(last + row * N * width + state_offsets, h, mask=state_mask)


@triton.jit(do_not_specialize=VARYING)
def segment_kernel(
    v, dt, A, K, z, bias, lengths, order, local, whole_dt,
    batch, L, steps, width, N, tiles_a_group, width_a_group, blocks_a_segment, segments, blocks, scale,
    v_b, v_l, dt_b, dt_l, K_b, K_l, K_g, z_b, z_l,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_ORDER: tl.constexpr, SHARED: tl.constexpr, BACKWARD: tl.constexpr,
    T: tl.constexpr, OFFSET: tl.constexpr, BN: tl.constexpr, R: tl.constexpr, W: tl.constexpr, WHOLE: tl.constexpr,
    PARTS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """What each part of a segment adds to the state, and its summed step sizes; a `segment` is such a part here.
    BACKWARD: for the state's gradient, with v the gradient of y and K = C, from the part's last step to its first, and
    the first segment, which is walked last, is left out."""
    segment = tl.program_id(1) + (PARTS if BACKWARD else 0)
    direction, b, group, tile, d, real, reverse = place(
        tl.program_id(0), batch, width, tiles_a_group, width_a_group, REVERSE, R, W, WHOLE
    )
    length = steps if HAS_ORDER else L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    part = 0 if SHARED else direction
    n = tl.arange(0, BN)
    t = tl.arange(0, T)
    t4 = t[:, None, None, None]
    full_group = part * (width // width_a_group) + group
    v += b * v_b
    dt += b * dt_b + part * width
    K += b * K_b + full_group * K_g
    row = direction * batch + b
    state_mask = exists(n, N, WHOLE)[None, :, None] & real[:, None, :]
    rate = load_rate(A, direction, d, n, width, N, state_mask, t4, T, R, BN, W)
    shift = tl.zeros((R, W), dtype=tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + direction * width + d, mask=real, other=0.0).to(tl.float32)
    if HAS_Z:
        z += b * z_b
    h = spread(tl.zeros((R, BN, W), dtype=tl.float32), t4, T, R, BN, W)
    whole = tl.zeros((T, R, W), dtype=tl.float32)
    first = segment * blocks_a_segment
    used = tl.minimum(tl.minimum(first + blocks_a_segment, blocks), (length + T - 1) // T)
    for i in tl.range(first, used, num_stages=STAGES):
        block = used - 1 - (i - first) if BACKWARD else i
        # a walk's own order: the block's last step first, if it runs back
        s = block * T + (T - 1 - t if BACKWARD else t)
        ok, pos = positions(s, length, order, direction, steps, reverse, HAS_ORDER, OFFSET)
        value, step, _ = load_walked(v, dt, pos, ok, v_l, dt_l, d, real, shift, SOFTPLUS)
        whole += step
        if BACKWARD:
            value *= scale
            if HAS_Z:
                value *= silu(load_rows(z, pos, z_l, d, ok[:, None, None] & real[None, :, :]))
        else:
            value *= step
        decay = tl.exp2(widen(step, T, R, BN, W) * rate[None])
        added = widen(value, T, R, BN, W) * load_matrix(K, pos, ok, K_l, n, N, T, R, BN, W, WHOLE)
        for k in tl.static_range(T):
            if BACKWARD:
                h = pick(decay, t4, k) * (h + pick(added, t4, k))
            else:
                h = pick(decay, t4, k) * h + pick(added, t4, k)
    index = row * segments + segment
    tl.store(local + index * N * width + n[None, :, None] * width + d[:, None, :], h, mask=state_mask)
    tl.store(whole_dt + index * width + d, tl.sum(whole, 0), mask=real)


@triton.jit(do_not_specialize=["batch", "segments"])
def pass_kernel(
    local, whole_dt, A, start, entering, batch, width, N, segments,
    HAS_START: tl.constexpr, BACKWARD: tl.constexpr, PARTS: tl.constexpr, AHEAD: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """The state that enters each segment, from what the PARTS of those before it add, one after the other."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    n = tl.arange(0, BN)
    real = d < width
    mask = (n < N)[:, None] & real[None, :]
    offsets = n[:, None] * width + d[None, :]
    rate = tl.load(A + (row // batch) * width * N + d[None, :] * N + n[:, None], mask=mask, other=0.0).to(tl.float32)
    rate *= LOG2_E
    h = tl.zeros((BN, BD), dtype=tl.float32)
    if HAS_START:
        h = tl.load(start + row * N * width + offsets, mask=mask, other=0.0).to(tl.float32)
    for first in range(0, segments, AHEAD):
        # all loads first: one wait
        gains = ()
        steps = ()
        for i in tl.static_range(AHEAD * PARTS):
            k = first + i // PARTS
            segment = segments - 1 - k if BACKWARD else k
            part = PARTS - 1 - i % PARTS if BACKWARD else i % PARTS
            index = (row * segments + segment) * PARTS + part
            # the last one adds to nothing
            needed = real & (d < tl.where(k < segments - 1, width, 0))
            there = (n < N)[:, None] & needed[None, :]
            gains = gains + (tl.load(local + index * N * width + offsets, mask=there, other=0.0),)
            steps = steps + (tl.load(whole_dt + index * width + d, mask=needed, other=0.0),)
        for i in tl.static_range(AHEAD):
            k = first + i
            segment = segments - 1 - k if BACKWARD else k
            inside = (n < N)[:, None] & (d < tl.where(k < segments, width, 0))[None, :]
            tl.store(entering + (row * segments + segment) * N * width + offsets, h, mask=inside)
            for part in tl.static_range(PARTS):
                h = h * tl.exp2(steps[i * PARTS + part][None, :] * rate) + gains[i * PARTS + part]


@triton.jit
def load_gradient_rows(
    x, dt, dy, z, s, length, order, direction, steps, reverse, x_l, dt_l, dy_l, z_l, d, real, shift,
    HAS_ORDER: tl.constexpr, OFFSET: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr,
):  # fmt: skip
    """What the backward pass reads of the steps s of its channels: x, step sizes, what these were before softplus, and
    the gradient of y before the gate. All (T, R, W)."""
    ok, pos = positions(s, length, order, direction, steps, reverse, HAS_ORDER, OFFSET)
    X, step, raw = load_walked(x, dt, pos, ok, x_l, dt_l, d, real, shift, SOFTPLUS)
    present = ok[:, None, None] & real[None, :, :]
    G = load_rows(dy, pos, dy_l, d, present)
    if HAS_Z:
        G *= silu(load_rows(z, pos, z_l, d, present))
    return X, step, raw, G


@triton.jit(do_not_specialize=VARYING)
def backward_kernel(
    x, dt, A, B, C, D, z, bias, lengths, order, states, ungated, dy, dlast,
    dx, ddt, matrices, dz, dstart, dA, sums,
    batch, L, steps, width, N, tiles_a_group, width_a_group, blocks_a_segment, segments, blocks, scale,
    x_b, x_l, dt_b, dt_l, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, dy_b, dy_l,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_ORDER: tl.constexpr, SHARED: tl.constexpr,
    HAS_DLAST: tl.constexpr, RETURN_DSTART: tl.constexpr,
    T: tl.constexpr, OFFSET: tl.constexpr, BN: tl.constexpr, R: tl.constexpr, W: tl.constexpr, WHOLE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of channels, block by block from the last to the first.

    dx: (part, b, l, d). ddt: (b, l, part d). matrices: (2, b, l, part g, tile, n), of B and C, partial sums over
    channels. A part is a direction's, or what all share.
    dA: (direction, b, segment, d, n). sums: (2, direction, b, segment, d), those of dt_bias and D.
    """
    segment = tl.program_id(1)
    direction, b, group, tile, d, real, reverse = place(
        tl.program_id(0), batch, width, tiles_a_group, width_a_group, REVERSE, R, W, WHOLE
    )
    groups = width // width_a_group
    directions = tl.num_programs(0) // (tiles_a_group * groups * batch)
    parts = 1 if SHARED else directions
    length = steps if HAS_ORDER else L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    part = 0 if SHARED else direction
    n = tl.arange(0, BN)
    t = tl.arange(0, T)
    t4 = t[:, None, None, None]
    row3 = tl.arange(0, 2 * T)[:, None, None]
    row4 = tl.arange(0, 2 * T)[:, None, None, None]
    full_group = part * groups + group
    x += b * x_b
    dt += b * dt_b + part * width
    B += b * B_b + full_group * B_g
    C += b * C_b + full_group * C_g
    dy += b * dy_b
    row = direction * batch + b
    dx += (part * batch + b) * L * width
    ddt += b * L * parts * width + part * width
    matrix_row = parts * groups * tiles_a_group * N
    matrices += b * L * matrix_row + (full_group * tiles_a_group + tile) * N
    half = tl.arange(0, 2)[None, :, None].to(tl.int64) * batch * L * matrix_row  # of B, of C
    state_offsets = n[None, :, None] * width + d[:, None, :]
    state_mask = exists(n, N, WHOLE)[None, :, None] & real[:, None, :]
    rate = load_rate(A, direction, d, n, width, N, state_mask, t4, T, R, BN, W)
    shift = tl.zeros((R, W), dtype=tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + direction * width + d, mask=real, other=0.0).to(tl.float32)
    skip = tl.zeros((R, W), dtype=tl.float32)
    if HAS_D:
        skip = tl.load(D + (direction * width + d if HAS_ORDER else d), mask=real, other=0.0).to(tl.float32)
    if HAS_Z:
        z += b * z_b
    carry = tl.zeros((R, BN, W), dtype=tl.float32)
    if HAS_DLAST:
        carry = tl.load(dlast + (row * segments + segment) * N * width + state_offsets, mask=state_mask, other=0.0)
    carry = spread(carry, t4, T, R, BN, W)
    sum_A = spread(tl.zeros((R, BN, W), dtype=tl.float32), t4, T, R, BN, W)
    sum_shift = tl.zeros((T, R, W), dtype=tl.float32)
    sum_D = tl.zeros((T, R, W), dtype=tl.float32)
    LANES: tl.constexpr = BN if BN < 32 // W else 32 // W
    kept_at, kept_real = kept_places(tile, width_a_group, R, BN, W, W, LANES, WHOLE)
    kept_size = (width_a_group + W - 1) // W * W * BN
    states += (row * blocks * groups + group) * kept_size
    first = segment * blocks_a_segment
    stop = tl.minimum(first + blocks_a_segment, blocks)
    used = tl.minimum(stop, (length + T - 1) // T)
    X, step, raw, G = load_gradient_rows(
        x, dt, dy, z, (used - 1) * T + t, length, order, direction, steps, reverse, x_l, dt_l, dy_l, z_l, d, real,
        shift, HAS_ORDER, OFFSET, SOFTPLUS, HAS_Z,
    )  # fmt: skip
    for i in tl.range(first, used, num_stages=STAGES):
        block = used - 1 - (i - first)
        # as in the forward pass
        X_next, step_next, raw_next, G_next = load_gradient_rows(
            x, dt, dy, z, (block - 1) * T + t, length, order, direction, steps, reverse, x_l, dt_l, dy_l, z_l, d, real,
            shift, HAS_ORDER, OFFSET, SOFTPLUS, HAS_Z,
        )  # fmt: skip
        h = tl.load(states + block.to(tl.int64) * groups * kept_size + kept_at, mask=kept_real, other=0.0)
        h = tl.permute(tl.reshape(h, (R, LANES, W, BN // LANES)), (0, 3, 1, 2))
        h = spread(tl.reshape(h, (R, BN, W)), t4, T, R, BN, W)
        s = block * T + t
        ok, pos = positions(s, length, order, direction, steps, reverse, HAS_ORDER, OFFSET)
        present = ok[:, None, None] & real[None, :, :]
        at = tl.where(ok & (reverse != 0), length - 1 - s, s).to(OFFSET)
        written = s < L
        if HAS_ORDER:
            at, written = pos, ok
        inside = written[:, None, None] & real[None, :, :]
        offsets = at[:, None, None] * width + d[None, :, :]
        if HAS_Z:
            if direction == 0:
                Z = load_rows(z, pos, z_l, d, present)
                gate = sigmoid(Z)
                slope = load_rows(ungated + b * L * width, pos, width, d, present) * gate * (1.0 + Z * (1.0 - gate))
                tl.store(dz + b * L * width + offsets, load_rows(dy, pos, dy_l, d, present) * slope, mask=inside)
        step4 = widen(step, T, R, BN, W)
        u4 = widen(step * X, T, R, BN, W)
        if HAS_ORDER:
            # every direction has a skip of its own, which the mean is taken over too
            G *= scale
            g4 = widen(G, T, R, BN, W)
        else:
            g4 = widen(G * scale, T, R, BN, W)
        B4 = load_matrix(B, pos, ok, B_l, n, N, T, R, BN, W, WHOLE)
        C4 = load_matrix(C, pos, ok, C_l, n, N, T, R, BN, W, WHOLE)
        decay = tl.exp2(step4 * rate[None])
        # summed over states and channels after the walk: until then everything stays in its thread
        dmatrices = tl.zeros((2 * T, BN, W), dtype=tl.float32)
        dvectors = tl.zeros((2 * T, R, BN, W), dtype=tl.float32)
        kept = ()
        for k in tl.static_range(T):
            left = pick(decay, t4, k) * h
            h = left + pick(u4, t4, k) * pick(B4, t4, k)
            kept = kept + (left,)
            dmatrices = put(dmatrices, row3, T + k, tl.sum(h * pick(g4, t4, k), 0))
        for k in tl.static_range(T - 1, -1, -1):
            dh = carry + pick(C4, t4, k) * pick(g4, t4, k)
            dmatrices = put(dmatrices, row3, k, tl.sum(dh * pick(u4, t4, k), 0))
            dvectors = put(dvectors, row4, k, dh * pick(B4, t4, k))
            carry = pick(decay, t4, k) * dh
            dlog = kept[k] * dh
            sum_A += dlog * pick(step4, t4, k)
            dvectors = put(dvectors, row4, T + k, dlog * rate)
        # laid out anew: the compiler would carry two layouts, and walk back in each
        carry = spread(carry, t4, T, R, BN, W)
        du, dlogs = tl.split(sum_states(dvectors, 2, T, R, BN, W))
        dstep = dlogs * LN_2 + du * X
        if SOFTPLUS:
            dstep *= sigmoid(raw)
        dstep = tl.where(ok[:, None, None], dstep, 0.0)
        sum_shift += dstep
        tl.store(ddt + at[:, None, None] * parts * width + d[None, :, :], dstep, mask=inside)
        du *= step
        if HAS_D:
            if HAS_ORDER:
                du += skip[None, :, :] * G
            elif direction == 0:
                du += skip[None, :, :] * G
            sum_D += G * X
        tl.store(dx + offsets, du, mask=inside)
        dmatrices = tl.permute(tl.reshape(sum_channels(dmatrices, 2 * T, BN, W), (2, T, BN)), (1, 0, 2))
        matrix_offsets = at[:, None, None] * matrix_row + n[None, None, :]
        matrix_mask = written[:, None, None] & exists(n, N, WHOLE)[None, None, :]
        tl.store(matrices + half + matrix_offsets, dmatrices, mask=matrix_mask)
        X = X_next
        step = step_next
        raw = raw_next
        G = G_next
    for block in range(tl.maximum(used, first), stop):
        s = block * T + t
        pos = s.to(OFFSET)
        inside = (s < L)[:, None, None] & real[None, :, :]
        offsets = pos[:, None, None] * width + d[None, :, :]
        nothing = tl.zeros((T, R, W), dtype=tl.float32)
        tl.store(dx + offsets, nothing, mask=inside)
        tl.store(ddt + pos[:, None, None] * parts * width + d[None, :, :], nothing, mask=inside)
        if HAS_Z:
            if direction == 0:
                tl.store(dz + b * L * width + offsets, nothing, mask=inside)
        matrix_offsets = pos[:, None, None] * matrix_row + n[None, None, :]
        matrix_mask = (s < L)[:, None, None] & exists(n, N, WHOLE)[None, None, :]
        tl.store(matrices + half + matrix_offsets, tl.zeros((T, 2, BN), dtype=tl.float32), mask=matrix_mask)
    index = row * segments + segment
    tl.store(dA + index * width * N + d[:, None, :] * N + n[None, :, None], sum_A, mask=state_mask)
    tl.store(sums + index * width + d, tl.sum(sum_shift, 0), mask=real)
    index += directions * batch * segments
    if not HAS_ORDER:
        sum_D = tl.where(direction == 0, sum_D, 0.0)
    tl.store(sums + index * width + d, tl.sum(sum_D, 0), mask=real)
    if RETURN_DSTART and segment == 0:
        tl.store(dstart + row * N * width + state_offsets, carry, mask=state_mask)


@triton.jit(do_not_specialize=["L", "rows"])
def merge_kernel(
    y, x, D, z, lengths, out, ungated, L, width, rows, scale, x_b, x_l, z_b, z_l,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_LENGTHS: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = (scale (y_0 + y_1) + D x) silu(z) for y (2, b, l, d), 0 beyond each row's length."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # b l
    k = tl.arange(0, BLOCK)
    b = row // L
    position = row % L
    ok = row < rows
    mask = ok[:, None] & (k < width)[None, :]
    flat = row[:, None] * width + k[None, :]
    value = tl.load(y + flat, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(y + flat + rows * width, mask=mask, other=0.0).to(tl.float32)
    value *= scale
    present = mask
    if HAS_LENGTHS:
        present = mask & (position < tl.load(lengths + b, mask=ok, other=0))[:, None]
    if HAS_D:
        skip = tl.load(D + k, mask=k < width, other=0.0).to(tl.float32)
        offsets = (b * x_b + position * x_l)[:, None] + k[None, :]
        value += skip[None, :] * tl.load(x + offsets, mask=present, other=0.0).to(tl.float32)
    value = tl.where(present, value, 0.0)
    if HAS_Z:
        if KEEP:
            tl.store(ungated + flat, value, mask=mask)
        offsets = (b * z_b + position * z_l)[:, None] + k[None, :]
        value *= silu(tl.load(z + offsets, mask=present, other=0.0).to(tl.float32))
    tl.store(out + flat, value, mask=mask)
