"""Triton kernels of `ssd`, forward and backward, and nothing else; `ssd_triton.py` launches them.

`step_kernel` makes step sizes and summed log decays of what layers give. `state_kernel` walks the chunks of one head
with the state in registers and keeps the one that enters each chunk; given the gradient of y and C instead of x and B,
it walks the other way and keeps gradients of states. Then all chunks are independent: a program of `output_kernel`,
`gradient_kernel` or `matrix_gradient_kernel` takes one chunk, of one head or several that share B and C, and
`step_gradient_kernel` turns gradients of sums into those of dt. `gate_gradient_kernel` comes before all of these. A
long sequence of few heads is walked in segments side by side: first from nothing, to find what each adds to the state;
`pass_kernel` then finds the states that enter segments, and they are walked again. `sum_kernel` adds up what programs
left apart. `README.md` derives both passes.

Chunks lie in memory order in both directions: a reversed one sums its log decays from the other end and is masked the
other way, so that no tensor is ever flipped and two directions share what they load.

Numerics: loads go to float32, products have operands of DOT type and float32 sums; decays, their sums and the state
that is walked stay in float32; every mask comes before its exponential.
"""

import triton
import triton.language as tl

SMALLEST_LOG_DECAY = tl.constexpr(-20.0)
"""As in `scan_chunked.py`."""
LEAST_STEP = tl.constexpr(1e-30)
"""Step sizes divide by no less."""
GRID = tl.constexpr(2.0**-12)
"""Sums of 64 multiples of it down to 64 times -20 / ln 2 are exact in float32."""
LOG2_E = tl.constexpr(1.4426950408889634)
VARYING = ["batch", "L", "chunks_a_segment", "segments", "chunks"]
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


@triton.jit
def summed_up(values, reverse):
    """Each row (chunk, q) summed up to each step, from its end if `reverse`, a number."""
    if reverse:
        sums = tl.cumsum(values, 1, reverse=True)
    else:
        sums = tl.cumsum(values, 1)
    return sums


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
        fine = summed_up(fine, reverse)
    coarse = summed_up(coarse, reverse)
    part = tl.num_programs(0).to(tl.int64) * chunks * Q
    to = steps + row * chunks * Q + position
    inside = (c < chunks)[:, None] & (q >= 0)[None, :]
    tl.store(to, d, mask=inside)
    tl.store(to + part, coarse, mask=inside)
    if EXACT:
        second = fine
    else:
        second = coarse - tl.log2(tl.maximum(d, LEAST_STEP))
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
def load_state(states, row, n, N, p, P, present, WHOLE: tl.constexpr, DOT: tl.constexpr, KEPT: tl.constexpr = False):
    """The state (n, p) of a row, 0 where it is not present."""
    mask = tl.full((1, 1), True, dtype=tl.int1) & present
    if not WHOLE:
        mask = mask & (n < N)[:, None] & (p < P)[None, :]
    policy: tl.constexpr = "" if KEPT else "evict_first"
    offsets = n[:, None] * P + p[None, :]
    return tl.load(states + row * N * P + offsets, mask=mask, other=0.0, eviction_policy=policy).to(DOT)


@triton.jit
def store_state(pointer, n, N, p, P, value, WHOLE: tl.constexpr, KEPT: tl.constexpr = True):
    """The opposite of `load_state`."""
    policy: tl.constexpr = "" if KEPT else "evict_first"
    pointers = pointer + n[:, None] * P + p[None, :]
    if WHOLE:
        tl.store(pointers, value, eviction_policy=policy)
    else:
        tl.store(pointers, value, mask=(n < N)[:, None] & (p < P)[None, :], eviction_policy=policy)


@triton.jit(do_not_specialize=VARYING)
def state_kernel(
    v, K, lengths, steps, start, states, after, left,
    batch, L, heads, P, N, tiles, heads_a_group, chunks_a_segment, segments, chunks, scale,
    v_b, v_l, v_h, K_b, K_l, K_g,
    REVERSE: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_START: tl.constexpr,
    BACKWARD: tl.constexpr, KEEP: tl.constexpr, IN_CACHE: tl.constexpr, RETURN_AFTER: tl.constexpr,
    Q: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """KEEP, RETURN_AFTER, one at least: the state that enters each chunk, IN_CACHE or to leave it first; that after the
    segment, and `left`, if given, the base-2 log of what is then left of the state that entered it.

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
    steps += row * chunks * Q
    part = (tl.num_programs(0) // tiles).to(tl.int64) * chunks * Q
    last = tl.where(reverse, 0, Q - 1)
    q = tl.arange(0, Q)
    n = tl.arange(0, BN)
    p = tile * BP + tl.arange(0, BP)
    index = row * segments + segment
    if HAS_START:
        h = load_state(start, index, n, N, p, P, True, WHOLE, tl.float32, True)
    else:
        h = tl.zeros((BN, BP), dtype=tl.float32)
    so_far = tl.zeros((), dtype=tl.float32)
    first = segment * chunks_a_segment
    stop = tl.minimum(tl.minimum(first + chunks_a_segment, chunks), (length + Q - 1) // Q)
    # what the last chunk adds comes after all that is kept
    for k in range(first, stop if RETURN_AFTER else stop - 1):
        c = tl.where(down, stop - 1 - (k - first), k)
        at = (c * Q).to(tl.int64)
        ok = q < length - c * Q
        if KEEP:
            store_state(states + (row * chunks + c) * N * P, n, N, p, P, h, WHOLE, IN_CACHE)
        V = load_tile(v + at * v_l, v_l, q, ok, p, P, WHOLE)
        K_c = load_tile(K + at * K_l, K_l, q, ok, n, N, WHOLE)
        whole_coarse, whole_fine = load_sums(steps + at, part, last, EXACT)
        if BACKWARD:
            coarse, fine = load_sums(steps + at, part, q, EXACT)
            weight = power_of_difference(coarse, fine, 0.0, 0.0, EXACT) * scale
        else:
            coarse, fine, factor = load_entries(steps + at, part, q, EXACT)
            weight = power_of_difference(whole_coarse, whole_fine, coarse, fine, EXACT) * factor
        weighted = (V.to(tl.float32) * weight[:, None]).to(DOT)
        h *= power_of_difference(whole_coarse, whole_fine, 0.0, 0.0, EXACT)
        h = tl.dot(tl.trans(K_c.to(DOT)), weighted, acc=h, input_precision=PRECISION)
        so_far += whole_coarse + whole_fine
    if RETURN_AFTER:
        store_state(after + index * N * P, n, N, p, P, h, WHOLE)
        if left is not None:
            tl.store(left + index, so_far, mask=tile == 0)
    elif first < stop:
        c = tl.where(down, first, stop - 1)
        store_state(states + (row * chunks + c) * N * P, n, N, p, P, h, WHOLE, IN_CACHE)


@triton.jit(do_not_specialize=["segments"])
def pass_kernel(
    added, left, start, last, size, segments, rows_a_direction,
    REVERSE: tl.constexpr, HAS_START: tl.constexpr, BACKWARD: tl.constexpr, RETURN_LAST: tl.constexpr,
    AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Replace what each segment adds by the state that enters it, in place, one segment after the other; RETURN_LAST:
    also that after all."""
    row = tl.program_id(0).to(tl.int64)
    reverse = (row // rows_a_direction if not REVERSE else 1) != 0
    down = reverse != BACKWARD
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = k < size
    if HAS_START:
        h = tl.load(start + row * size + k, mask=mask, other=0.0).to(tl.float32)
    else:
        h = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, segments, AHEAD):
        # all loads first: one wait
        gains = ()
        logs = ()
        for i in tl.static_range(AHEAD):
            segment = row * segments + tl.where(down, segments - 1 - first - i, first + i)
            size_i = tl.where(first + i < segments, size, 0)
            gains = gains + (tl.load(added + segment * size + k, mask=k < size_i, other=0.0),)
            logs = logs + (tl.load(left + segment, mask=size_i > 0, other=0.0),)
        for i in tl.static_range(AHEAD):
            segment = row * segments + tl.where(down, segments - 1 - first - i, first + i)
            tl.store(added + segment * size + k, h, mask=k < tl.where(first + i < segments, size, 0))
            h = h * tl.exp2(logs[i]) + gains[i]
    if RETURN_LAST:
        tl.store(last + row * size + k, h, mask=mask)


@triton.jit
def matrix_sums(own, part, entered, seen, EXACT: tl.constexpr):
    """What `left_between` needs of the sums of one direction."""
    entry, fine_entry, factor = load_entries(own, part, entered, EXACT)
    coarse, fine = load_sums(own, part, seen, EXACT)
    return entry, fine_entry, factor, coarse, fine


@triton.jit
def log_left(sums, log_scale, EXACT: tl.constexpr):
    """Base-2 logs of what is left at some steps of what enters at others, and a factor of that."""
    entry, fine_entry, factor, coarse, fine = sums
    if EXACT:
        return coarse - entry + (fine - fine_entry), factor * tl.exp2(log_scale)
    # the scale is rounded with the sums
    return coarse - (entry - log_scale), factor


@triton.jit
def left_between(
    sums, other_sums, entered, seen, log_scale, DIRECTIONS: tl.constexpr, REVERSE: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """Times 2^log_scale, what is left at steps `seen` of what enters at steps `entered`: of one direction, 0 where the
    former come first; of two, of the one that leads there, and from a step to itself of the first."""
    onward = seen >= entered
    between, factor = log_left(sums, log_scale, EXACT)
    if DIRECTIONS == 2:
        other, other_factor = log_left(other_sums, log_scale, EXACT)
        decay = tl.exp2(tl.where(onward, between, other))
        if EXACT:
            decay *= tl.where(onward, factor, other_factor)
        return decay
    if REVERSE:
        onward = seen <= entered
    return tl.exp2(tl.where(onward, between, float("-inf"))) * factor


@triton.jit
def left_of_start(sums, EXACT: tl.constexpr):
    """What is left at each step of what enters the chunk; (step, 1)."""
    _, _, _, coarse, fine = sums
    return power_of_difference(coarse, fine, 0.0, 0.0, EXACT)


@triton.jit
def chunk_decays(own, part, q, last, EXACT: tl.constexpr):
    """Step sizes; what is left at each step of what enters the chunk; at its end of what enters at each step; and of
    what enters it, of which `last` is the last step."""
    coarse, fine = load_sums(own, part, q, EXACT)
    whole_coarse, whole_fine = load_sums(own, part, last, EXACT)
    return (
        tl.load(own + q),
        power_of_difference(coarse, fine, 0.0, 0.0, EXACT),
        power_of_difference(whole_coarse, whole_fine, coarse, fine, EXACT),
        power_of_difference(whole_coarse, whole_fine, 0.0, 0.0, EXACT),
    )


@triton.jit
def place_of_chunk(
    program, c, lengths, L, heads, tiles,
    HAS_LENGTHS: tl.constexpr, HEADS: tl.constexpr, Q: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Where a program stands that takes chunk c of HEADS heads: tile of their width, programs for all heads of a tile,
    first head, row of the batch, first position, steps q, numbers n of a state, channels p; which steps count, which
    exist, and whether any counts."""
    tile = program % tiles
    turns = heads // HEADS
    first_head = (program // tiles) % turns * HEADS
    b = (program // tiles // turns).to(tl.int64)
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    q = tl.arange(0, Q)
    p = tile * BP + tl.arange(0, BP)
    at = (c * Q).to(tl.int64)
    ok = q < length - c * Q
    return tile, turns, first_head, b, at, q, tl.arange(0, BN), p, ok, q < L - c * Q, c * Q < length


@triton.jit(do_not_specialize=VARYING)
def output_kernel(
    x, B, C, D, z, lengths, steps, states, y, ungated,
    batch, L, heads, P, N, tiles, heads_a_group, chunks, scale,
    x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h,
    DIRECTIONS: tl.constexpr, REVERSE: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_STATES: tl.constexpr, KEEP: tl.constexpr,
    HEADS: tl.constexpr, Q: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """y of one chunk of HEADS heads of a group, one after the other, `scale` times the sum of the directions; KEEP:
    also before the gate. Two directions have one matrix of steps, as in `gradient_kernel`."""
    program = tl.program_id(0)
    c = tl.program_id(1)
    tile, turns, first_head, b, at, q, n, p, ok, inside, present = place_of_chunk(
        program, c, lengths, L, heads, tiles, HAS_LENGTHS, HEADS, Q, BN, BP
    )
    groups = heads // heads_a_group
    group = first_head // heads_a_group
    one_direction = batch * heads
    part = (one_direction * DIRECTIONS).to(tl.int64) * chunks * Q
    log_scale = tl.log2(scale)
    B += b * B_b + group * B_g + at * B_l
    C += b * C_b + group * C_g + at * C_l
    x += b * x_b + at * x_l
    B_c = load_tile(B, B_l, q, ok, n, N, WHOLE).to(DOT)
    C_c = load_tile(C, C_l, q, ok, n, N, WHOLE).to(DOT)
    # (to, from)
    products = tl.dot(C_c, tl.trans(B_c), input_precision=PRECISION)
    if DIRECTIONS == 2:
        other_B = load_tile(B + groups * B_g, B_l, q, ok, n, N, WHOLE).to(DOT)
        other_C = load_tile(C + groups * C_g, C_l, q, ok, n, N, WHOLE).to(DOT)
        other_products = tl.dot(other_C, tl.trans(other_B), input_precision=PRECISION)
        on_diagonal = tl.sum(tl.where(q[:, None] == q[None, :], other_products, 0.0), 1) * scale
        products = tl.where(q[:, None] >= q[None, :], products, other_products)
        # no product needs these, so that the compiler would not load them ahead
        next_other_d = tl.load(steps + ((one_direction + b * heads + first_head) * chunks + c) * Q + q)
    for turn in tl.range(HEADS, disable_licm=True):
        head = first_head + turn
        row = b * heads + head
        other_row = one_direction + row
        own, other = steps + (row * chunks + c) * Q, steps + (other_row * chunks + c) * Q
        # all loads first: one wait
        sums = matrix_sums(own, part, q[None, :], q[:, None], EXACT)
        other_sums = sums
        if DIRECTIONS == 2:
            other_sums = matrix_sums(other, part, q[None, :], q[:, None], EXACT)
        X = load_tile(x + head * x_h, x_l, q, ok, p, P, WHOLE, False).to(DOT)
        if HAS_STATES:
            h = load_state(states, row * chunks + c, n, N, p, P, present, WHOLE, DOT)
            if DIRECTIONS == 2:
                other_h = load_state(states, other_row * chunks + c, n, N, p, P, present, WHOLE, DOT)
        skip = 0.0
        if HAS_D:
            skip = tl.load(D + head).to(tl.float32)
        if DIRECTIONS == 2:
            other_d = next_other_d
            next_other_d = tl.load(other + tl.where(turn + 1 < HEADS, chunks * Q, 0) + q)
        decay = left_between(sums, other_sums, q[None, :], q[:, None], log_scale, DIRECTIONS, REVERSE, EXACT)
        scores = (products * decay).to(DOT)
        out = tl.zeros((Q, BP), dtype=tl.float32)
        if HAS_STATES:
            out = tl.dot(C_c, h, input_precision=PRECISION) * (left_of_start(sums, EXACT) * scale)
            if DIRECTIONS == 2:
                left = left_of_start(other_sums, EXACT) * scale
                out += tl.dot(other_C, other_h, input_precision=PRECISION) * left
        out = tl.dot(scores, X, acc=out, input_precision=PRECISION)
        if DIRECTIONS == 2:
            out += (skip + other_d * on_diagonal)[:, None] * X.to(tl.float32)
        elif HAS_D:
            out += skip * X.to(tl.float32)
        y_l = heads * P
        to = ((b * L + at) * heads + head) * P
        if HAS_Z:
            if KEEP:
                store_tile(ungated + to, y_l, q, inside, p, P, out, WHOLE)
            Z = load_tile(z + b * z_b + head * z_h + at * z_l, z_l, q, ok, p, P, WHOLE).to(tl.float32)
            out *= silu(Z)
        store_tile(y + to, y_l, q, inside, p, P, out, WHOLE)


@triton.jit
def add_flow_to_end(dX, X, B_c, dh, d, to_end, PRECISION: tl.constexpr):
    """dX and what it gains by what steps leave to the end of the chunk; and for each step the gradient of its size
    where that multiplies x."""
    flow = tl.dot(B_c, dh, input_precision=PRECISION)
    return dX + flow * (to_end * d)[:, None], to_end * tl.sum(flow * X.to(tl.float32), 1)


@triton.jit(do_not_specialize=VARYING)
def gradient_kernel(
    x, B, C, D, lengths, steps, dstates, dy, dx, dproducts, dsteps,
    batch, L, heads, P, N, tiles, heads_a_group, chunks, scale,
    x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, dy_b, dy_l, dy_h, dx_l,
    DIRECTIONS: tl.constexpr, REVERSE: tl.constexpr, HAS_D: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    HAS_DSTATES: tl.constexpr,
    HEADS: tl.constexpr, Q: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradients of x and step sizes of one chunk of HEADS heads of a group (or of a tile of their width), one after the
    other, and that of the products B C^T, which they share.

    Two directions have one matrix of steps: where the one leads and, on the other side of the diagonal, where the other
    does; the other's diagonal stands apart.

    dx: rows (h, p) dx_l numbers apart. dproducts: (direction, b, chunk, program of the chunk, Q, Q). dsteps: (tile,
    direction, b, h, chunk, Q, 4): gradients of step sizes where they multiply x; what of these comes from the end of
    the chunk; what each step takes of others in the chunk less what others take of it; and, in the first direction,
    the gradient of D.
    """
    program = tl.program_id(0)
    c = tl.program_id(1)
    tile, turns, first_head, b, at, q, n, p, ok, inside, present = place_of_chunk(
        program, c, lengths, L, heads, tiles, HAS_LENGTHS, HEADS, Q, BN, BP
    )
    groups = heads // heads_a_group
    group = first_head // heads_a_group
    one_direction = batch * heads
    part = (one_direction * DIRECTIONS).to(tl.int64) * chunks * Q
    log_scale = tl.log2(scale)
    B += b * B_b + group * B_g + at * B_l
    C += b * C_b + group * C_g + at * C_l
    x += b * x_b + at * x_l
    dy += b * dy_b + at * dy_l
    dx += (b * L + at) * dx_l
    B_c = load_tile(B, B_l, q, ok, n, N, WHOLE).to(DOT)
    C_c = load_tile(C, C_l, q, ok, n, N, WHOLE).to(DOT)
    onward = q[None, :] >= q[:, None]
    # matrices of steps are (from, to)
    products = tl.dot(B_c, tl.trans(C_c), input_precision=PRECISION)
    if DIRECTIONS == 2:
        other_B = load_tile(B + groups * B_g, B_l, q, ok, n, N, WHOLE).to(DOT)
        other_C = load_tile(C + groups * C_g, C_l, q, ok, n, N, WHOLE).to(DOT)
        other_products = tl.dot(other_B, tl.trans(other_C), input_precision=PRECISION)
        on_diagonal = tl.sum(tl.where(q[:, None] == q[None, :], other_products, 0.0), 1) * scale
        products = tl.where(onward, products, other_products)
        sum_on_diagonal = tl.zeros((Q,), dtype=tl.float32)
    summed = tl.zeros((Q, Q), dtype=tl.float32)
    for turn in tl.range(HEADS, disable_licm=True):
        head = first_head + turn
        # 0, which the compiler does not know: what is made of it takes no registers from head to head
        none = (head >= heads).to(tl.int32)
        again = q + none
        row = (b + none if DIRECTIONS == 2 else b) * heads + head
        chunk = row * chunks + c
        other_chunk = chunk + one_direction.to(tl.int64) * chunks
        own, other = steps + chunk * Q, steps + other_chunk * Q
        # all loads first: one wait
        sums = matrix_sums(own, part, q[:, None], q[None, :], EXACT)
        other_sums = sums
        if DIRECTIONS == 2:
            other_sums = matrix_sums(other, part, q[:, None], q[None, :], EXACT)
        d, _, to_end, _ = chunk_decays(own, part, q, 0 if REVERSE else Q - 1, EXACT)
        if DIRECTIONS == 2:
            other_d, _, other_to_end, _ = chunk_decays(other, part, q, 0, EXACT)
        skip = 0.0
        if HAS_D:
            skip = tl.load(D + head).to(tl.float32)
        X = load_tile(x + head * x_h, x_l, again, ok, p, P, WHOLE).to(DOT)
        G = load_tile(dy + head * dy_h, dy_l, again, ok, p, P, WHOLE).to(DOT)
        if HAS_DSTATES:
            dh = load_state(dstates, chunk, n + none, N, p, P, present, WHOLE, DOT, True)
            if DIRECTIONS == 2:
                other_dh = load_state(dstates, other_chunk, n + none, N, p, P, present, WHOLE, DOT, True)
        decay = left_between(sums, other_sums, q[:, None], q[None, :], log_scale, DIRECTIONS, REVERSE, EXACT)
        scores = products * decay
        dscores = tl.dot(X, tl.trans(G), input_precision=PRECISION)
        dX = tl.dot(scores.to(DOT), G, input_precision=PRECISION)
        summed += dscores * decay
        # of two directions, masks are cheaper to keep than to make again
        diagonal = (again if DIRECTIONS == 1 else q)[:, None] == q[None, :]
        along = tl.sum(tl.where(diagonal, dscores, 0.0), 1)
        inner = scores * dscores
        if DIRECTIONS == 2:
            taken_of = tl.where(onward, inner, 0.0)
            other_taken_of = tl.where(onward, 0.0, inner)
            # of both at once, here and below
            direct, other_given = tl.split(tl.sum(tl.join(taken_of, other_taken_of), 1))
        else:
            taken_of = inner
            direct = tl.sum(taken_of, 1)
        given = direct
        if EXACT:
            # the diagonal enters and leaves the log decays with opposite signs; where its digits count, left out
            taken_of = tl.where(diagonal, 0.0, taken_of)
            given = tl.sum(taken_of, 1)
        if DIRECTIONS == 2:
            taken, other_taken = tl.split(tl.sum(tl.join(taken_of, other_taken_of), 0))
        else:
            taken = tl.sum(taken_of, 0)
        balance = taken - given
        direct /= tl.maximum(d, LEAST_STEP)
        at_end = tl.zeros((Q,), dtype=tl.float32)
        if HAS_DSTATES:
            dX, at_end = add_flow_to_end(dX, X, B_c, dh, d, to_end, PRECISION)
            direct += at_end
        to_step = dsteps + (tile * part + chunk * Q) * 4
        store_four(to_step, again if DIRECTIONS == 1 else q, direct, at_end, balance, along)
        if DIRECTIONS == 2:
            direct = other_given / tl.maximum(other_d, LEAST_STEP) + on_diagonal * along
            balance = other_taken - other_given
            at_end = tl.zeros((Q,), dtype=tl.float32)
            if HAS_DSTATES:
                dX, at_end = add_flow_to_end(dX, X, other_B, other_dh, other_d, other_to_end, PRECISION)
                direct += at_end
            to_step = dsteps + (tile * part + other_chunk * Q) * 4
            store_four(to_step, q, direct, at_end, balance, tl.zeros((Q,), dtype=tl.float32))
            sum_on_diagonal += along * other_d * scale
        if DIRECTIONS == 2:
            dX += (skip + on_diagonal * other_d)[:, None] * G.to(tl.float32)
        elif HAS_D:
            dX += skip * G.to(tl.float32)
        store_tile(dx + head * P, dx_l, again, inside, p, P, dX, WHOLE, False)
    programs = turns * tiles
    to = dproducts + ((b * chunks + c) * programs + program % programs) * Q * Q + (q[:, None] * Q + q[None, :])
    if DIRECTIONS == 2:
        tl.store(to, tl.where(onward, summed, 0.0))
        summed = tl.where(onward, 0.0, summed)
        summed = tl.where(q[:, None] == q[None, :], sum_on_diagonal[:, None], summed)
        to += (batch * chunks).to(tl.int64) * programs * Q * Q
    tl.store(to, summed)


@triton.jit(do_not_specialize=VARYING)
def matrix_gradient_kernel(
    x, B, C, lengths, steps, states, dstates, dy, dproducts, dB, dC, taken, kept,
    batch, L, heads, P, N, tiles, heads_a_group, chunks, scale,
    x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, dy_b, dy_l, dy_h, dB_l, dC_l,
    DIRECTIONS: tl.constexpr, REVERSE: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    HAS_STATES: tl.constexpr, HAS_DSTATES: tl.constexpr,
    HEADS: tl.constexpr, Q: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dB and dC of one direction, of one chunk of HEADS heads of a group (or of a tile of their width).

    dB, dC: rows (direction, group, program of the group, n), dB_l and dC_l numbers apart. taken: (tile, direction, b,
    h, chunk, Q): what steps take of the state that enters. kept: (tile, direction, b, h, chunk, BN): what the chunk
    keeps of each row of it.
    """
    # directions that read the same side by side, and first what `gradient_kernel` read last
    program = tl.program_id(0) // DIRECTIONS
    direction = tl.program_id(0) % DIRECTIONS
    c = chunks - 1 - tl.program_id(1)
    tile, turns, first_head, b, at, q, n, p, ok, inside, present = place_of_chunk(
        program, c, lengths, L, heads, tiles, HAS_LENGTHS, HEADS, Q, BN, BP
    )
    group = direction * (heads // heads_a_group) + first_head // heads_a_group
    part = (batch * heads * DIRECTIONS).to(tl.int64) * chunks * Q
    last = tl.where(direction == 1 or REVERSE, 0, Q - 1)
    C_c = load_tile(C + b * C_b + group * C_g + at * C_l, C_l, q, ok, n, N, WHOLE).to(DOT)
    B_c = load_tile(B + b * B_b + group * B_g + at * B_l, B_l, q, ok, n, N, WHOLE).to(DOT)
    programs = turns * tiles
    row = ((direction * batch + b) * chunks + c) * programs + program % programs
    matrix = tl.load(dproducts + row * Q * Q + (q[:, None] * Q + q[None, :])).to(DOT)
    dB_c = tl.dot(matrix, C_c, input_precision=PRECISION)
    dC_c = tl.dot(tl.trans(matrix), B_c, input_precision=PRECISION)
    if HAS_STATES or HAS_DSTATES:
        for turn in tl.range(HEADS, disable_licm=True):
            head = first_head + turn
            row = (direction * batch + b) * heads + head
            chunk = row * chunks + c
            # all loads first: one wait
            d, of_start, to_end, of_whole = chunk_decays(steps + chunk * Q, part, q, last, EXACT)
            X = load_tile(x + b * x_b + at * x_l + head * x_h, x_l, q, ok, p, P, WHOLE).to(DOT)
            G = load_tile(dy + b * dy_b + at * dy_l + head * dy_h, dy_l, q, ok, p, P, WHOLE).to(DOT)
            h, dh = X, X
            if HAS_DSTATES:
                dh = load_state(dstates, chunk, n, N, p, P, present, WHOLE, DOT)
            if HAS_STATES:
                h = load_state(states, chunk, n, N, p, P, present, WHOLE, DOT)
            if HAS_DSTATES:
                dB_c += tl.dot(X, tl.trans(dh), input_precision=PRECISION) * (to_end * d)[:, None]
            if HAS_STATES:
                gained = tl.dot(G, tl.trans(h), input_precision=PRECISION) * (of_start * scale)[:, None]
                dC_c += gained
                tl.store(taken + tile * part + chunk * Q + q, tl.sum(gained * C_c.to(tl.float32), 1))
            if HAS_STATES and HAS_DSTATES:
                of_chunk = tl.sum(h.to(tl.float32) * dh.to(tl.float32), 1)
                tl.store(kept + (tile * (part // Q) + chunk) * BN + n, of_chunk * of_whole)
    partials = heads_a_group // HEADS * tiles
    column = (group * partials + (first_head % heads_a_group) // HEADS * tiles + tile) * N
    store_tile(dB + (b * L + at) * dB_l + column, dB_l, q, inside, n, N, dB_c, WHOLE)
    store_tile(dC + (b * L + at) * dC_l + column, dC_l, q, inside, n, N, dC_c, WHOLE)


@triton.jit
def store_four(pointer, rows, first, second, third, fourth):
    """Four numbers of each row, together: a change of layout costs as much as one of them."""
    k = tl.arange(0, 2)
    four = tl.join(tl.join(first, third), tl.join(second, fourth))
    tl.store(pointer + (rows[:, None, None] * 4 + k[None, :, None] * 2 + k[None, None, :]), four)


@triton.jit
def load_four(pointer, rows, mask):
    """What `store_four` stored, 0 where masked."""
    k = tl.arange(0, 2)
    offsets = rows[:, :, None, None] * 4 + k[None, None, :, None] * 2 + k[None, None, None, :]
    even, odd = tl.split(tl.load(pointer + offsets, mask=mask[:, :, None, None], other=0.0))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit(do_not_specialize=["L"])
def gate_gradient_kernel(
    z, ungated, lengths, dy, dz, G, L, heads, P, z_b, z_l, z_h, dy_b, dy_l, dy_h, dz_l,
    HAS_LENGTHS: tl.constexpr, ROWS: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """dz, and the gradient G of y before the gate."""
    row = tl.program_id(0)
    b = (row // heads).to(tl.int64)
    head = row % heads
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    first = (tl.program_id(1) * ROWS).to(tl.int64)
    q = tl.arange(0, ROWS)
    p = tl.arange(0, BP)
    ok = q < length - first
    inside = q < L - first
    gradient = load_tile(dy + b * dy_b + first * dy_l + head * dy_h, dy_l, q, ok, p, P, False, False).to(tl.float32)
    Z = load_tile(z + b * z_b + first * z_l + head * z_h, z_l, q, ok, p, P, False, False).to(tl.float32)
    to = ((b * L + first) * heads + head) * P
    before = load_tile(ungated + to, heads * P, q, ok, p, P, False, False).to(tl.float32)
    gate = sigmoid(Z)
    slope = gradient * before * gate * (1.0 + Z * (1.0 - gate))
    store_tile(dz + (b * L + first) * dz_l + head * P, dz_l, q, inside, p, P, slope, False, False)
    store_tile(G + to, heads * P, q, inside, p, P, gradient * Z * gate, False)


@triton.jit(do_not_specialize=VARYING)
def step_gradient_kernel(
    dt, A, bias, lengths, steps, dsteps, taken, kept, ddt, sums,
    batch, L, heads, tiles, chunks, dt_b, dt_l, dt_h, ddt_l,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    HAS_STATES: tl.constexpr, HAS_DSTATES: tl.constexpr,
    Q: tl.constexpr, BN: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """ddt, rows (direction h) ddt_l numbers apart, and sums (3, direction, h, b, chunk), the gradients of A,
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
    direct = tl.zeros((CHUNKS, Q), dtype=tl.float32)
    entered = tl.zeros((CHUNKS, Q), dtype=tl.float32)
    summed = tl.zeros((CHUNKS, Q), dtype=tl.float32)
    whole = tl.zeros((CHUNKS,), dtype=tl.float32)
    along = tl.zeros((CHUNKS, Q), dtype=tl.float32)
    for tile in range(tiles):
        multiplying, at_end, balance, skipped = load_four(dsteps + tile * part * 4, of_step, inside)
        direct += multiplying
        summed += balance
        along += skipped
        if HAS_DSTATES:
            entered += at_end * d
        if HAS_STATES:
            summed += tl.load(taken + tile * part + of_step, mask=inside, other=0.0)
        if HAS_STATES and HAS_DSTATES:
            n = tl.arange(0, BN)
            of_state = ((tile * rows + row) * chunks + c)[:, None] * BN + n[None, :]
            whole += tl.sum(tl.load(kept + of_state, mask=(c < chunks)[:, None], other=0.0), 1)
    # the log decay of a step is in the sums of all that the direction takes from it on in its chunk, and decays what
    # entered before it and is left at the end: a sum of its own, small beside that of all
    dlog = summed_up(summed, (direction if not REVERSE else 1) == 0) + whole[:, None]
    if HAS_DSTATES:
        dlog += summed_up(entered, reverse) - entered
    dlog = tl.where(ok & (d * rate > SMALLEST_LOG_DECAY), dlog, 0.0)
    dstep = direct + dlog * rate
    if SOFTPLUS:
        dstep *= sigmoid(raw)
    dstep = tl.where(ok, dstep, 0.0)
    tl.store(ddt + (b * L + position) * ddt_l + all_head, dstep, mask=position < L)
    to = sums + (all_head * batch + b) * chunks + c
    part = rows.to(tl.int64) * chunks
    tl.store(to, tl.sum(dlog * d, 1), mask=c < chunks)
    tl.store(to + part, tl.sum(dstep, 1), mask=c < chunks)
    tl.store(to + 2 * part, tl.sum(along, 1), mask=c < chunks)


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
