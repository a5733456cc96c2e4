"""Triton kernels of `ssd`, forward and backward, and nothing else; `ssd_triton.py` launches them.

`step_kernel` makes step sizes and summed log decays of what layers give. `state_kernel` walks the chunks of one head
with the state in registers and keeps the one that enters each chunk; given the gradient of y and C instead of x and B,
it walks the other way and keeps gradients of states. Then all chunks are independent: `output_kernel` and
`gradient_kernel` take one chunk of one head a program, and `step_gradient_kernel` turns gradients of sums into those of
dt. A long sequence of few heads is walked in segments side by side, each from nothing; `pass_kernel` then finds the
states that enter segments, and who takes a chunk adds what is left of that of its segment. `sum_kernel` adds up what
programs left apart. `README.md` derives both passes.

Chunks lie in memory order in both directions: a reversed one sums its log decays from the other end and is masked the
other way, so that no tensor is ever flipped and two directions share what they load.

Numerics: loads go to float32, products have operands of DOT type and float32 sums; decays, their sums and the state
that is walked stay in float32; every mask comes before its exponential.
"""

import triton
import triton.language as tl

SMALLEST_LOG_DECAY = tl.constexpr(-20.0)
"""As in `scan_chunked.py`."""
GRID = tl.constexpr(2.0**-12)
"""Sums of 64 multiples of it down to 64 times -20 / ln 2 are exact in float32."""
LOG2_E = tl.constexpr(1.4426950408889634)
VARYING = ["batch", "L", "chunks_a_segment", "segments", "dchunks_a_segment", "dsegments", "chunks"]
"""Numbers that change from batch to batch: a kernel compiled for one value serves all."""


@triton.jit
def step_size(raw, SOFTPLUS: tl.constexpr):
    """softplus(raw), or raw; log(1 + e) in a form that keeps the digits of a small e."""
    if SOFTPLUS:
        e = tl.exp(tl.minimum(raw, 20.0))
        w = 1.0 + e
        small = w == 1.0
        log1p = tl.where(small, e, tl.log(w) * (e / tl.where(small, 1.0, w - 1.0)))
        return tl.where(raw > 20.0, raw, log1p)
    return raw


@triton.jit
def reciprocal(w):
    """1 / w of w from 1e-19, 0 from 2e19: two instructions, where a division makes sure of the range of its divisor."""
    return tl.rsqrt(w * w)


@triton.jit
def sigmoid(x):
    return reciprocal(1.0 + tl.exp2(-x * LOG2_E))


@triton.jit
def silu(x):
    return x * sigmoid(x)


@triton.jit
def raw_steps(
    dt, bias, lengths, batch, L, heads, dt_b, dt_l, dt_h,
    HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, Q: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Where a program that sees step sizes only stands: row (direction, batch, head), its batch row, direction and head
    of all directions, chunks, their steps q, positions (chunk, q) and which are there; and what the step sizes are made
    of."""
    row = tl.program_id(0).to(tl.int64)
    b = (row // heads) % batch
    direction = row // (heads * batch)
    all_head = direction * heads + row % heads
    c = tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS)
    q = tl.arange(0, Q)
    position = c[:, None] * Q + q[None, :]
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    ok = position < length
    raw = tl.load(dt + b * dt_b + all_head * dt_h + position.to(tl.int64) * dt_l, mask=ok, other=0.0).to(tl.float32)
    if HAS_BIAS:
        raw += tl.load(bias + all_head).to(tl.float32)
    return row, b, direction, all_head, c, q, position, ok, raw


@triton.jit(do_not_specialize=VARYING)
def step_kernel(
    dt, A, bias, lengths, steps, batch, L, heads, chunks, dt_b, dt_l, dt_h,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    EXACT: tl.constexpr, Q: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """steps: (3, direction, b, h, chunk, Q): step sizes d, 0 beyond a row's length; within each chunk of a direction
    the base-2 log decays s summed up to each step; and, EXACT, a second part of s, else s - log2 d, since what enters
    at a step counts d times.

    Differences of plain float32 sums lose the digits that the sums have before the point. EXACT: the first part is a
    multiple of GRID, whose sums over a chunk are exact; what is left sums to less than a chunk's length times GRID.
    What 16 bits hold does not see those digits.
    """
    row, b, direction, all_head, c, q, position, ok, raw = raw_steps(
        dt, bias, lengths, batch, L, heads, dt_b, dt_l, dt_h, HAS_BIAS, HAS_LENGTHS, Q, CHUNKS
    )
    d = tl.where(ok, step_size(raw, SOFTPLUS), 0.0)
    g = tl.maximum(d * tl.load(A + all_head).to(tl.float32), SMALLEST_LOG_DECAY) * LOG2_E
    reverse = (direction if not REVERSE else 1) != 0
    coarse = g
    if EXACT:
        coarse = tl.floor(g / GRID + 0.5) * GRID
        fine = g - coarse
        fine = tl.where(reverse, tl.cumsum(fine, 1, reverse=True), tl.cumsum(fine, 1))
    coarse = tl.where(reverse, tl.cumsum(coarse, 1, reverse=True), tl.cumsum(coarse, 1))
    part = tl.num_programs(0).to(tl.int64) * chunks * Q
    to = steps + row * chunks * Q + position
    inside = (c < chunks)[:, None] & (q >= 0)[None, :]
    tl.store(to, d, mask=inside)
    tl.store(to + part, coarse, mask=inside)
    if EXACT:
        second = fine
    else:
        second = tl.where(d > 0.0, coarse - tl.log2(tl.where(d > 0.0, d, 1.0)), float("inf"))
    tl.store(to + 2 * part, second, mask=inside)


@triton.jit
def load_sums(steps, part, q, EXACT: tl.constexpr):
    """The two parts of the sums up to some steps of a chunk."""
    coarse = tl.load(steps + part + q)
    fine = 0.0
    if EXACT:
        fine = tl.load(steps + 2 * part + q)
    return coarse, fine


@triton.jit
def load_entries(steps, part, q, EXACT: tl.constexpr):
    """Two parts of sums whose difference to those of a later step says how much enters at some steps and is left then,
    but for a factor: 1, or EXACT the step size."""
    fine, factor = 0.0, 1.0
    if EXACT:
        coarse = tl.load(steps + part + q)
        fine = tl.load(steps + 2 * part + q)
        factor = tl.load(steps + q)
    else:
        coarse = tl.load(steps + 2 * part + q)
    return coarse, fine, factor


@triton.jit
def power_of_difference(coarse, fine, less_coarse, less_fine, EXACT: tl.constexpr):
    """2^(sum - less): what is left after the steps between."""
    between = coarse - less_coarse
    if EXACT:
        between += fine - less_fine
    return tl.exp2(between)


@triton.jit
def decay_between(to_coarse, to_fine, coarse, fine, to_order, order, EXACT: tl.constexpr):
    """What is left at one step of what entered at another; 0 where the former comes before the latter: `order` are
    positions times a number far above any sum."""
    between = to_coarse - coarse
    if EXACT:
        between += to_fine - fine
    # a minimum costs less than a comparison and a choice; the same position has order 0
    return tl.exp2(tl.minimum(between, to_order - order + 1e29))


@triton.jit
def load_tile(pointer, stride, rows, ok, columns, width, WHOLE: tl.constexpr, KEPT: tl.constexpr = True):
    """Rows of a matrix, 0 where not ok; WHOLE: all columns are there. Not KEPT: nobody reads it soon, the cache is for
    something else."""
    mask = ok[:, None] if WHOLE else ok[:, None] & (columns < width)[None, :]
    policy: tl.constexpr = "" if KEPT else "evict_first"
    return tl.load(
        pointer + (rows[:, None] * stride + columns[None, :]), mask=mask, other=0.0, eviction_policy=policy
    )  # fmt: skip


@triton.jit
def store_tile(pointer, stride, rows, ok, columns, width, value, WHOLE: tl.constexpr, KEPT: tl.constexpr = True):
    """The opposite of `load_tile`."""
    mask = ok[:, None] if WHOLE else ok[:, None] & (columns < width)[None, :]
    policy: tl.constexpr = "" if KEPT else "evict_first"
    tl.store(pointer + (rows[:, None] * stride + columns[None, :]), value, mask=mask, eviction_policy=policy)


@triton.jit
def prefetch_tile(pointer, stride, rows, WIDTH: tl.constexpr):
    """Have rows of a matrix, which exist, brought into the level 2 cache of an NVIDIA GPU. Nothing waits for them."""
    bits: tl.constexpr = pointer.dtype.element_ty.primitive_bitwidth
    sectors: tl.constexpr = WIDTH * bits // 256 if WIDTH * bits > 256 else 1
    addresses = pointer + (rows[:, None] * stride + tl.arange(0, sectors)[None, :] * (256 // bits))
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [addresses.to(tl.int64)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def load_state(pointer, n, N, p, P, present, WHOLE: tl.constexpr, KEPT: tl.constexpr = True):
    """A state (n, p), 0 where it is not present."""
    mask = tl.full((1, 1), True, dtype=tl.int1) & present
    if not WHOLE:
        mask = mask & (n < N)[:, None] & (p < P)[None, :]
    policy: tl.constexpr = "" if KEPT else "evict_first"
    return tl.load(pointer + n[:, None] * P + p[None, :], mask=mask, other=0.0, eviction_policy=policy)


@triton.jit
def load_entering(
    states, entering, passed, row, c, chunks, chunks_a_segment, segments, n, N, p, P, present,
    SEGMENTS: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The state (n, p) that enters chunk c: that of a walk through its segment from nothing, and SEGMENTS, what is
    left of the state that entered the segment."""
    chunk = row * chunks + c
    h = load_state(states + chunk * N * P, n, N, p, P, present, WHOLE, False)
    if SEGMENTS:
        index = row * segments + c // chunks_a_segment
        before = load_state(entering + index * N * P, n, N, p, P, present, WHOLE)
        h = h.to(tl.float32) + before.to(tl.float32) * tl.exp2(tl.load(passed + chunk, mask=present, other=0.0))
    return h.to(DOT)


@triton.jit
def store_state(pointer, n, N, p, P, value, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(pointer + n[:, None] * P + p[None, :], value)
    else:
        tl.store(pointer + n[:, None] * P + p[None, :], value, mask=(n < N)[:, None] & (p < P)[None, :])


@triton.jit(do_not_specialize=VARYING)
def state_kernel(
    v, K, z, lengths, steps, start, states, after, passed, left,
    batch, L, heads, P, N, tiles, heads_a_group, chunks_a_segment, segments, chunks, scale,
    v_b, v_l, v_h, K_b, K_l, K_g, z_b, z_l, z_h,
    REVERSE: tl.constexpr, HAS_Z: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_START: tl.constexpr,
    BACKWARD: tl.constexpr, RETURN_AFTER: tl.constexpr, SEGMENTS: tl.constexpr,
    Q: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The state that enters each chunk; RETURN_AFTER: that after the segment; SEGMENTS: the base-2 logs of what is left
    of the state that enters the segment, before each of its chunks and after all.

    Forward v is x and K is B; BACKWARD v is the gradient of y and K is C, and the state is its gradient, which travels
    against the direction: what enters a chunk is the gradient of the state that leaves it.
    """
    program = tl.program_id(0)
    segment = tl.program_id(1)
    tile = program % tiles
    row = (program // tiles).to(tl.int64)  # direction, batch, head
    head = row % heads
    b = (row // heads) % batch
    direction = row // (heads * batch)
    reverse = (direction if not REVERSE else 1) != 0
    down = reverse != BACKWARD
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    group = direction * (heads // heads_a_group) + head // heads_a_group
    v += b * v_b + head * v_h
    K += b * K_b + group * K_g
    if HAS_Z:
        z += b * z_b + head * z_h
    steps += row * chunks * Q
    part = (tl.num_programs(0) // tiles).to(tl.int64) * chunks * Q
    last = tl.where(reverse, 0, Q - 1)
    q = tl.arange(0, Q)
    n = tl.arange(0, BN)
    p = tile * BP + tl.arange(0, BP)
    index = row * segments + segment
    if HAS_START:
        h = load_state(start + index * N * P, n, N, p, P, True, WHOLE).to(tl.float32)
    else:
        h = tl.zeros((BN, BP), dtype=tl.float32)
    so_far = tl.zeros((), dtype=tl.float32)
    first = segment * chunks_a_segment
    stop = tl.minimum(tl.minimum(first + chunks_a_segment, chunks), (length + Q - 1) // Q)
    for k in range(first, stop):
        c = tl.where(down, stop - 1 - (k - first), k)
        at = (c * Q).to(tl.int64)
        ok = q < length - c * Q
        store_state(states + (row * chunks + c) * N * P, n, N, p, P, h, WHOLE)
        if SEGMENTS:
            tl.store(passed + row * chunks + c, so_far, mask=tile == 0)
        V = load_tile(v + at * v_l, v_l, q, ok, p, P, WHOLE)
        K_c = load_tile(K + at * K_l, K_l, q, ok, n, N, WHOLE)
        whole_coarse, whole_fine = load_sums(steps + at, part, last, EXACT)
        if BACKWARD:
            coarse, fine = load_sums(steps + at, part, q, EXACT)
            # scaled here: what goes into a product as it is in memory is loaded ahead
            weight = power_of_difference(coarse, fine, 0.0, 0.0, EXACT) * scale
            if HAS_Z:
                V = V.to(tl.float32) * silu(load_tile(z + at * z_l, z_l, q, ok, p, P, WHOLE).to(tl.float32))
        else:
            coarse, fine, factor = load_entries(steps + at, part, q, EXACT)
            weight = power_of_difference(whole_coarse, whole_fine, coarse, fine, EXACT) * factor
        weighted = (K_c.to(tl.float32) * weight[:, None]).to(DOT)
        h *= power_of_difference(whole_coarse, whole_fine, 0.0, 0.0, EXACT)
        h = tl.dot(tl.trans(weighted), V.to(DOT), acc=h, input_precision=PRECISION)
        so_far += whole_coarse + whole_fine
    if RETURN_AFTER:
        store_state(after + index * N * P, n, N, p, P, h, WHOLE)
    if SEGMENTS:
        tl.store(left + index, so_far, mask=tile == 0)


@triton.jit(do_not_specialize=["segments"])
def pass_kernel(
    added, left, start, entering, last, size, segments, rows_a_direction,
    REVERSE: tl.constexpr, HAS_START: tl.constexpr, BACKWARD: tl.constexpr, RETURN_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The state that enters each segment from what each adds, one segment after the other, and the one after all."""
    row = tl.program_id(0).to(tl.int64)
    reverse = (row // rows_a_direction if not REVERSE else 1) != 0
    down = reverse != BACKWARD
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = k < size
    if HAS_START:
        h = tl.load(start + row * size + k, mask=mask, other=0.0).to(tl.float32)
    else:
        h = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(segments):
        segment = tl.where(down, segments - 1 - i, i)
        at = (row * segments + segment) * size + k
        tl.store(entering + at, h, mask=mask)
        h = h * tl.exp2(tl.load(left + row * segments + segment)) + tl.load(added + at, mask=mask, other=0.0)
    if RETURN_LAST:
        tl.store(last + row * size + k, h, mask=mask)


@triton.jit(do_not_specialize=VARYING)
def output_kernel(
    x, B, C, D, z, lengths, steps, states, entering, passed, y, ungated,
    batch, L, heads, P, N, tiles, heads_a_group, chunks_a_segment, segments, chunks, scale,
    x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h,
    DIRECTIONS: tl.constexpr, REVERSE: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_STATES: tl.constexpr, SEGMENTS: tl.constexpr, KEEP: tl.constexpr,
    Q: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """y of one chunk of one head, `scale` times the sum of the directions; KEEP: also before the gate."""
    program = tl.program_id(0)
    c = tl.program_id(1)
    tile = program % tiles
    head = (program // tiles) % heads
    b = (program // tiles // heads).to(tl.int64)
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    at = (c * Q).to(tl.int64)
    q = tl.arange(0, Q)
    n = tl.arange(0, BN)
    p = tile * BP + tl.arange(0, BP)
    ok = q < length - c * Q
    part = (tl.num_programs(0) // tiles * DIRECTIONS).to(tl.int64) * chunks * Q
    X = load_tile(x + b * x_b + head * x_h + at * x_l, x_l, q, ok, p, P, WHOLE, False)
    out = tl.zeros((Q, BP), dtype=tl.float32)
    for direction in range(DIRECTIONS):
        reverse = REVERSE or direction == 1
        group = direction * (heads // heads_a_group) + head // heads_a_group
        row = (direction * batch + b) * heads + head
        own = steps + (row * chunks + c) * Q
        B_c = load_tile(B + b * B_b + group * B_g + at * B_l, B_l, q, ok, n, N, WHOLE).to(DOT)
        C_c = load_tile(C + b * C_b + group * C_g + at * C_l, C_l, q, ok, n, N, WHOLE).to(DOT)
        coarse, fine = load_sums(own, part, q, EXACT)
        if HAS_STATES:
            h = load_entering(
                states, entering, passed, row, c, chunks, chunks_a_segment, segments, n, N, p, P, c * Q < length,
                SEGMENTS, WHOLE, DOT,
            )  # fmt: skip
            from_start = power_of_difference(coarse, fine, 0.0, 0.0, EXACT)
            out += tl.dot(C_c, h, input_precision=PRECISION) * from_start[:, None]
        entry, fine_entry, factor = load_entries(own, part, q[None, :], EXACT)
        coarse, fine = load_sums(own, part, q[:, None], EXACT)
        order = tl.where(reverse, -q, q).to(tl.float32) * 1e30
        decay = decay_between(coarse, fine, entry, fine_entry, order[:, None], order[None, :], EXACT) * factor
        scores = (tl.dot(C_c, tl.trans(B_c), input_precision=PRECISION) * decay).to(DOT)
        out = tl.dot(scores, X.to(DOT), acc=out, input_precision=PRECISION)
    out *= scale
    if HAS_D:
        out += tl.load(D + head).to(tl.float32) * X.to(tl.float32)
    y_l = heads * P
    to = ((b * L + at) * heads + head) * P
    inside = q < L - c * Q
    if HAS_Z:
        if KEEP:
            store_tile(ungated + to, y_l, q, inside, p, P, out, WHOLE)
        out *= silu(load_tile(z + b * z_b + head * z_h + at * z_l, z_l, q, ok, p, P, WHOLE).to(tl.float32))
    store_tile(y + to, y_l, q, inside, p, P, out, WHOLE)


@triton.jit(do_not_specialize=VARYING)
def gradient_kernel(
    x, B, C, D, z, lengths, steps, states, entering, passed, dstates, dentering, dpassed, ungated, dy,
    dx, dB, dC, dz, dsteps, dwhole,
    batch, L, heads, P, N, tiles, heads_a_group, chunks_a_segment, segments, dchunks_a_segment, dsegments, chunks,
    scale,
    x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h, dy_b, dy_l, dy_h, dx_l, dz_l,
    DIRECTIONS: tl.constexpr, REVERSE: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_STATES: tl.constexpr, HAS_DSTATES: tl.constexpr, SEGMENTS: tl.constexpr,
    DSEGMENTS: tl.constexpr, HEADS: tl.constexpr, AHEAD: tl.constexpr, Q: tl.constexpr, BN: tl.constexpr,
    BP: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk of HEADS heads (or of a tile of their width), one after the other, and of both directions.

    dx, dz: rows (h, p) dx_l, dz_l numbers apart. dB, dC: partial sums of the heads of each program. States and their
    gradients have segments of their own. dsteps: (5, tile, direction, b, h, chunk, Q): of the step sizes where they
    multiply x; what each step leaves to the end of the chunk (with HAS_DSTATES) and to its later steps; what it takes
    of earlier ones and of the state (with HAS_STATES). dwhole: (2, tile, direction, b, h, chunk): what the chunk keeps
    of the state that enters, and the gradient of D. AHEAD: a program prefetches for the one that comes so many
    later; of one turn, and one tile.
    """
    program = tl.program_id(0)
    c = tl.program_id(1)
    tile = program % tiles
    turns = heads // HEADS
    first_head = (program // tiles) % turns * HEADS
    b = (program // tiles // turns).to(tl.int64)
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    at = (c * Q).to(tl.int64)
    q = tl.arange(0, Q)
    n = tl.arange(0, BN)
    p = tile * BP + tl.arange(0, BP)
    ok = q < length - c * Q
    inside = q < L - c * Q
    groups = heads // heads_a_group
    partials = heads_a_group // HEADS * tiles
    matrix_row = DIRECTIONS * groups * partials * N
    rows = batch * heads * DIRECTIONS
    part = rows.to(tl.int64) * chunks * Q
    own_x = x + b * x_b + at * x_l
    own_dy = dy + b * dy_b + at * dy_l
    if HAS_Z:
        own_z = z + b * z_b + at * z_l
    # kept for all turns, addresses and masks would take the registers of what is computed
    for turn in tl.range(HEADS * DIRECTIONS, disable_licm=True):
        head = first_head + turn // DIRECTIONS
        direction = turn % DIRECTIONS
        reverse = REVERSE or direction == 1
        first = direction == 0
        if HEADS * DIRECTIONS > 1:
            # what this program wrote before and adds to now, still in the cache
            tl.debug_barrier()
        group = direction * groups + head // heads_a_group
        row = (direction * batch + b) * heads + head
        own = steps + (row * chunks + c) * Q
        before_gate = ((b * L + at) * heads + head) * P
        to_x = dx + (b * L + at) * dx_l + head * P
        # all loads first: one wait
        B_c = load_tile(B + b * B_b + group * B_g + at * B_l, B_l, q, ok, n, N, WHOLE).to(DOT)
        C_c = load_tile(C + b * C_b + group * C_g + at * C_l, C_l, q, ok, n, N, WHOLE).to(DOT)
        G = load_tile(own_dy + head * dy_h, dy_l, q, ok, p, P, WHOLE).to(tl.float32)
        X = load_tile(own_x + head * x_h, x_l, q, ok, p, P, WHOLE).to(DOT)
        if HAS_DSTATES:
            dh = load_entering(
                dstates, dentering, dpassed, row, c, chunks, dchunks_a_segment, dsegments, n, N, p, P, c * Q < length,
                DSEGMENTS, WHOLE, DOT,
            )  # fmt: skip
        if HAS_STATES:
            h = load_entering(
                states, entering, passed, row, c, chunks, chunks_a_segment, segments, n, N, p, P, c * Q < length,
                SEGMENTS, WHOLE, DOT,
            )  # fmt: skip
        d = tl.load(own + q)
        whole_coarse, whole_fine = load_sums(own, part, tl.where(reverse, 0, Q - 1), EXACT)
        coarse, fine = load_sums(own, part, q, EXACT)
        if HAS_Z:
            Z = load_tile(own_z + head * z_h, z_l, q, ok, p, P, WHOLE).to(tl.float32)
            gate = sigmoid(Z)
            if first:
                before = load_tile(ungated + before_gate, heads * P, q, ok, p, P, WHOLE).to(tl.float32)
                slope = G * before * gate * (1.0 + Z * (1.0 - gate))
                store_tile(dz + (b * L + at) * dz_l + head * P, dz_l, q, inside, p, P, slope, WHOLE)
            G *= Z * gate
        if AHEAD:
            # after this program's own requests; the last ones ask for what comes last
            later = program + c * tl.num_programs(0) + AHEAD
            later_c = tl.minimum(later // tl.num_programs(0), chunks - 1)
            later %= tl.num_programs(0)
            later_head = later % heads
            later_b = (later // heads).to(tl.int64)
            there = tl.where(q < L - later_c * Q, q, 0)
            later_at = (later_c * Q).to(tl.int64)
            prefetch_tile(x + later_b * x_b + later_at * x_l + later_head * x_h, x_l, there, BP)
            prefetch_tile(dy + later_b * dy_b + later_at * dy_l + later_head * dy_h, dy_l, there, BP)
            if HAS_Z:
                prefetch_tile(z + later_b * z_b + later_at * z_l + later_head * z_h, z_l, there, BP)
                later_gate = ((later_b * L + later_at) * heads + later_head) * P
                prefetch_tile(ungated + later_gate, heads * P, there, BP)
            state = ((later_b * heads + later_head) * chunks + later_c) * N * P
            if HAS_STATES:
                prefetch_tile(states + state, P, n, BP)
            if HAS_DSTATES:
                prefetch_tile(dstates + state, P, n, BP)
        # both directions see the skip: one of them counts it
        dD = 0.0
        skip = 0.0
        if HAS_D:
            dD = tl.where(first, tl.sum(tl.sum(G * X.to(tl.float32), 1), 0), 0.0)
            skip = tl.where(first, tl.load(D + head).to(tl.float32) / scale, 0.0)
        G = (G * scale).to(DOT)
        from_start = power_of_difference(coarse, fine, 0.0, 0.0, EXACT)
        to_end = power_of_difference(whole_coarse, whole_fine, coarse, fine, EXACT)
        to_step = dsteps + ((tile * rows + row) * chunks + c) * Q + q
        to_whole = dwhole + (tile * rows + row) * chunks + c
        kept = 0.0
        if HAS_STATES and HAS_DSTATES:
            kept = tl.sum(tl.sum(h.to(tl.float32) * dh.to(tl.float32), 1), 0)
            kept *= power_of_difference(whole_coarse, whole_fine, 0.0, 0.0, EXACT)
        tl.store(to_whole, kept)
        tl.store(to_whole + tiles * rows * chunks, dD)
        # of u = d x; matrices of steps are (from, to)
        dU = tl.zeros((Q, BP), dtype=tl.float32)
        direct = tl.zeros((Q,), dtype=tl.float32)
        if HAS_DSTATES:
            dU = tl.dot(B_c, dh, input_precision=PRECISION) * to_end[:, None]
            direct = tl.sum(dU * X.to(tl.float32), 1)
            tl.store(to_step + tiles * part, direct * d)
        order = tl.where(reverse, -q, q).to(tl.float32) * 1e30
        coarse, fine = load_sums(own, part, q[:, None], EXACT)
        to_coarse, to_fine = load_sums(own, part, q[None, :], EXACT)
        decay = decay_between(to_coarse, to_fine, coarse, fine, order[None, :], order[:, None], EXACT)
        scores = tl.dot(B_c, tl.trans(C_c), input_precision=PRECISION) * decay
        dU = tl.dot(scores.to(DOT), G, acc=dU, input_precision=PRECISION)
        dX = dU * d[:, None] + skip * G.to(tl.float32)
        if DIRECTIONS > 1:
            dX += load_tile(to_x, dx_l, q, q < tl.where(first, 0, L - c * Q), p, P, WHOLE).to(tl.float32)
        store_tile(to_x, dx_l, q, inside, p, P, dX, WHOLE, DIRECTIONS > 1)
        dscores = tl.dot(X, tl.trans(G), input_precision=PRECISION)
        inner = scores * dscores
        tl.store(to_step, direct + tl.sum(inner, 1))
        inner *= d[:, None]
        if EXACT:
            # the diagonal enters and leaves the log decays with opposite signs; where its digits count, left out
            inner = tl.where(q[:, None] == q[None, :], 0.0, inner)
        tl.store(to_step + 2 * tiles * part, tl.sum(inner, 1))
        tl.store(to_step + 3 * tiles * part, tl.sum(inner, 0))
        dscores = (dscores * decay * d[:, None]).to(DOT)
        dB_c = tl.zeros((Q, BN), dtype=tl.float32)
        if HAS_DSTATES:
            dB_c = tl.dot(X, tl.trans(dh), input_precision=PRECISION) * (to_end * d)[:, None]
        dB_c = tl.dot(dscores, C_c, acc=dB_c, input_precision=PRECISION)
        dC_c = tl.zeros((Q, BN), dtype=tl.float32)
        if HAS_STATES:
            dC_c = tl.dot(G, tl.trans(h), input_precision=PRECISION) * from_start[:, None]
            tl.store(to_step + 4 * tiles * part, tl.sum(dC_c * C_c.to(tl.float32), 1))
        dC_c = tl.dot(tl.trans(dscores), B_c, acc=dC_c, input_precision=PRECISION)
        partial = (head % heads_a_group) // HEADS * tiles + tile
        matrix = (((b * L + at) * DIRECTIONS * groups + group) * partials + partial) * N
        if HEADS > 1:
            again = q < tl.where(turn < DIRECTIONS, 0, L - c * Q)
            dB_c += load_tile(dB + matrix, matrix_row, q, again, n, N, WHOLE).to(tl.float32)
            dC_c += load_tile(dC + matrix, matrix_row, q, again, n, N, WHOLE).to(tl.float32)
        store_tile(dB + matrix, matrix_row, q, inside, n, N, dB_c, WHOLE)
        store_tile(dC + matrix, matrix_row, q, inside, n, N, dC_c, WHOLE)


@triton.jit(do_not_specialize=VARYING)
def step_gradient_kernel(
    dt, A, bias, lengths, steps, dsteps, dwhole, ddt, sums,
    batch, L, heads, tiles, chunks, dt_b, dt_l, dt_h, ddt_l,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    HAS_STATES: tl.constexpr, HAS_DSTATES: tl.constexpr, Q: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """ddt, rows (direction h) ddt_l numbers apart, and sums (3, direction, h, b, block of chunks), the gradients of A,
    dt_bias and D."""
    rows = tl.num_programs(0)
    row, b, direction, all_head, c, q, position, ok, raw = raw_steps(
        dt, bias, lengths, batch, L, heads, dt_b, dt_l, dt_h, HAS_BIAS, HAS_LENGTHS, Q, CHUNKS
    )
    rate = tl.load(A + all_head).to(tl.float32)
    inside = (c < chunks)[:, None] & (q >= 0)[None, :]
    of_step = row * chunks * Q + position
    part = rows.to(tl.int64) * chunks * Q
    d = tl.load(steps + of_step, mask=inside, other=0.0)
    reverse = (direction if not REVERSE else 1) != 0
    before = tl.where(reverse, q + 1, q - 1)
    direct = tl.zeros((CHUNKS, Q), dtype=tl.float32)
    entered = tl.zeros((CHUNKS, Q), dtype=tl.float32)
    summed = tl.zeros((CHUNKS, Q), dtype=tl.float32)
    whole = tl.zeros((CHUNKS,), dtype=tl.float32)
    dD = tl.zeros((CHUNKS,), dtype=tl.float32)
    for tile in range(tiles):
        direct += tl.load(dsteps + tile * part + of_step, mask=inside, other=0.0)
        if HAS_DSTATES:
            there = inside & ((before >= 0) & (before < Q))[None, :]
            one_before = row * chunks * Q + c[:, None] * Q + before[None, :]
            entered += tl.load(dsteps + (tiles + tile) * part + one_before, mask=there, other=0.0)
        summed -= tl.load(dsteps + (2 * tiles + tile) * part + of_step, mask=inside, other=0.0)
        summed += tl.load(dsteps + (3 * tiles + tile) * part + of_step, mask=inside, other=0.0)
        if HAS_STATES:
            summed += tl.load(dsteps + (4 * tiles + tile) * part + of_step, mask=inside, other=0.0)
        whole += tl.load(dwhole + (tile * rows + row) * chunks + c, mask=c < chunks, other=0.0)
        dD += tl.load(dwhole + ((tiles + tile) * rows + row) * chunks + c, mask=c < chunks, other=0.0)
    # the log decay of a step is in the sums of all that the direction takes from it on in its chunk, and decays what
    # entered before it and is left at the end: a sum of its own, small beside that of all
    summed = tl.where(reverse, tl.cumsum(summed, 1), tl.cumsum(summed, 1, reverse=True))
    entered = tl.where(reverse, tl.cumsum(entered, 1, reverse=True), tl.cumsum(entered, 1))
    dlog = summed + entered + whole[:, None]
    dlog = tl.where(ok & (d * rate > SMALLEST_LOG_DECAY), dlog, 0.0)
    dstep = direct + dlog * rate
    if SOFTPLUS:
        dstep *= sigmoid(raw)
    dstep = tl.where(ok, dstep, 0.0)
    tl.store(ddt + (b * L + position) * ddt_l + all_head, dstep, mask=position < L)
    to = sums + (all_head * batch + b) * tl.num_programs(1) + tl.program_id(1)
    tl.store(to, tl.sum(tl.sum(dlog * d, 1), 0))
    part = rows.to(tl.int64) * tl.num_programs(1)
    tl.store(to + part, tl.sum(tl.sum(dstep, 1), 0))
    tl.store(to + 2 * part, tl.sum(dD, 0))


@triton.jit(do_not_specialize=["positions", "terms"])
def sum_kernel(
    matrices, dB, dC, sums, totals, positions, groups, N, terms, d_l, d_g,
    PARTIALS: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dB and dC, (position, group, n) with strides d_l and d_g: sums of matrices (2, position, group, partial, n); and
    the gradients of A, dt_bias and D, totals of rows of sums (., terms). One launch: the small sums take no time."""
    program = tl.program_id(0)
    rows = positions * groups
    tiles = tl.cdiv(rows, ROWS)
    if program < 2 * tiles:
        which = program // tiles
        n = tl.arange(0, BN)
        row = program % tiles * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (n < N)[None, :]
        pointers = matrices + (which.to(tl.int64) * rows + row)[:, None] * PARTIALS * N + n[None, :]
        total = tl.zeros((ROWS, BN), dtype=tl.float32)
        for _ in tl.range(0, PARTIALS, loop_unroll_factor=8):
            total += tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
            pointers += N
        to = ((row // groups).to(tl.int64) * d_l + row % groups * d_g)[:, None] + n[None, :]
        if which == 0:
            tl.store(dB + to, total, mask=mask)
        else:
            tl.store(dC + to, total, mask=mask)
    else:
        small = (program - 2 * tiles).to(tl.int64)
        k = tl.arange(0, BLOCK)
        summed = tl.zeros((BLOCK,), dtype=tl.float32)
        for first in range(0, terms, BLOCK):
            summed += tl.load(sums + small * terms + first + k, mask=k < terms - first, other=0.0)
        tl.store(totals + small, tl.sum(summed, 0))
