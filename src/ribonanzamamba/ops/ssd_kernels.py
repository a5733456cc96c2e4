"""Triton kernels of `ssd`, forward and backward, and nothing else; `ssd_triton.py` launches them.

One program walks the chunks of one head (or a tile of its width) with the state in registers; a long sequence is cut
into segments of chunks whose entering states `segment_kernel` and `pass_kernel` find first. Position s of a program is
its s-th step: memory position s, or length - 1 - s in a reversed direction, so that no tensor is ever flipped and a
padded row starts at its real end. `README.md` derives both passes.

Addresses: a chunk's first step is a scalar in 64 bits, its steps are offsets from there that stay the same: addresses
of whole tiles, made anew in each chunk, were a third of the instructions and most of the registers.

Numerics: loads go to float32, products have operands of DOT type and float32 sums; decays, their sums and the state
stay in float32; every mask comes before its exponential.
"""

import triton
import triton.language as tl

SMALLEST_LOG_DECAY = tl.constexpr(-20.0)
"""As in `scan_chunked.py`."""
GRID = tl.constexpr(2.0**-12)
"""Sums of 64 multiples of it down to 64 times -20 are exact in float32."""
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
def silu(z):
    return z / (1.0 + tl.exp(-z))


@triton.jit
def first_position(c, length, reverse, Q: tl.constexpr):
    """Memory position of the first step of a chunk, in 64 bits."""
    return tl.where(reverse != 0, length - 1 - c * Q, c * Q).to(tl.int64)


@triton.jit
def log_decay(dt, rate, ok):
    return tl.where(ok, tl.maximum(dt * rate, SMALLEST_LOG_DECAY), 0.0)


@triton.jit
def sums_of_log(g):
    """Sums of log decays up to each step, as an exact part and a small one, and both over all steps.

    Differences of plain float32 sums lose the digits that the sums have before the point. The first part is a multiple
    of GRID, whose sums over a chunk are exact; what is left sums to less than a chunk's length times GRID.
    """
    coarse = tl.floor(g / GRID + 0.5) * GRID
    fine = g - coarse
    return tl.cumsum(coarse, 0), tl.cumsum(fine, 0), tl.sum(coarse, 0), tl.sum(fine, 0)


@triton.jit
def decay_between(coarse, fine, q):
    """exp of the summed log decays after step j up to step i; 0 where i < j."""
    between = (coarse[:, None] - coarse[None, :]) + (fine[:, None] - fine[None, :])
    return tl.exp(tl.where(q[:, None] >= q[None, :], between, float("-inf")))


@triton.jit
def load_tile(pointer, at, stride, rows, ok, columns, width, WHOLE: tl.constexpr):
    """Rows of a matrix, `rows` steps from position `at`, 0 where not ok; WHOLE: all columns are there."""
    pointers = pointer + at * stride + (rows[:, None] * stride + columns[None, :])
    mask = ok[:, None] if WHOLE else ok[:, None] & (columns < width)[None, :]
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def store_tile(pointer, at, stride, rows, ok, columns, width, value, WHOLE: tl.constexpr):
    """The opposite of `load_tile`."""
    pointers = pointer + at * stride + (rows[:, None] * stride + columns[None, :])
    mask = ok[:, None] if WHOLE else ok[:, None] & (columns < width)[None, :]
    tl.store(pointers, value, mask=mask)


@triton.jit
def load_steps(dt, at, rows, ok, stride):
    """What step sizes are made of."""
    return tl.load(dt + at * stride + rows * stride, mask=ok, other=0.0)


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    x, dt, A, B, C, D, z, bias, lengths, start, y, ungated, last, states,
    batch, L, heads, P, N, tiles, heads_a_group, chunks_a_segment, segments, chunks,
    x_b, x_l, x_h, dt_b, dt_l, dt_h, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_START: tl.constexpr, KEEP: tl.constexpr, RETURN_LAST: tl.constexpr,
    Q: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y, and with KEEP the state that enters each chunk; RETURN_LAST also the state after the last step."""
    program = tl.program_id(0)
    segment = tl.program_id(1)
    tile = program % tiles
    row = (program // tiles).to(tl.int64)  # direction, batch, head
    head = row % heads
    b = (row // heads) % batch
    direction = row // (heads * batch)
    reverse = direction if not REVERSE else 1
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    group = direction * (heads // heads_a_group) + head // heads_a_group
    x += b * x_b + head * x_h
    dt += b * dt_b + (direction * heads + head) * dt_h
    B += b * B_b + group * B_g
    C += b * C_b + group * C_g
    y += ((direction * batch + b) * L * heads + head) * P
    before = ungated + (b * L * heads + head) * P
    if HAS_Z:
        z += b * z_b + head * z_h
    rate = tl.load(A + direction * heads + head).to(tl.float32)
    shift = 0.0
    if HAS_BIAS:
        shift = tl.load(bias + direction * heads + head).to(tl.float32)
    q = tl.arange(0, Q)
    rows = tl.where(reverse != 0, -q, q)
    y_l = heads * P
    n = tl.arange(0, BN)
    p = tile * BP + tl.arange(0, BP)
    state_offsets = n[:, None] * P + p[None, :]
    state_mask = (n < N)[:, None] & (p < P)[None, :]
    if WHOLE:
        state_mask = tl.full((BN, BP), True, dtype=tl.int1)
    if HAS_START:
        entering = start + (row * segments + segment) * N * P
        h = tl.load(entering + state_offsets, mask=state_mask, other=0.0).to(tl.float32)
    else:
        h = tl.zeros((BN, BP), dtype=tl.float32)
    skip = 0.0
    if HAS_D:
        skip = tl.load(D + head).to(tl.float32)
    first = segment * chunks_a_segment
    stop = tl.minimum(first + chunks_a_segment, chunks)
    used = tl.minimum(stop, (length + Q - 1) // Q)
    at = first_position(first, length, reverse, Q)
    raw = load_steps(dt, at, rows, q < length - first * Q, dt_l)
    B_c = load_tile(B, at, B_l, rows, q < length - first * Q, n, N, WHOLE)
    for c in range(first, used):
        if KEEP:
            tl.store(states + (row * chunks + c) * N * P + state_offsets, h, mask=state_mask)
        at = first_position(c, length, reverse, Q)
        ok = q < length - c * Q
        # Triton loads ahead what goes into a product as it is; the rest of the next chunk is asked for here
        next_at = first_position(c + 1, length, reverse, Q)
        next_ok = q < length - (c + 1) * Q
        next_raw = load_steps(dt, next_at, rows, next_ok, dt_l)
        next_B = load_tile(B, next_at, B_l, rows, next_ok, n, N, WHOLE)
        d = tl.where(ok, step_size(raw.to(tl.float32) + shift, SOFTPLUS), 0.0)
        X = load_tile(x, at, x_l, rows, ok, p, P, WHOLE)
        C_c = load_tile(C, at, C_l, rows, ok, n, N, WHOLE)
        g = log_decay(d, rate, ok)
        coarse, fine, whole_coarse, whole_fine = sums_of_log(g)
        from_start = tl.exp(coarse + fine)
        to_end = tl.exp((whole_coarse - coarse) + (whole_fine - fine))
        whole_decay = tl.exp(whole_coarse + whole_fine)
        scores = tl.dot(C_c.to(DOT), tl.trans(B_c.to(DOT)), input_precision=PRECISION)
        scores = scores * decay_between(coarse, fine, q) * d[None, :]
        out = tl.dot(C_c.to(DOT), h.to(DOT), input_precision=PRECISION) * from_start[:, None]
        out += tl.dot(scores.to(DOT), X.to(DOT), input_precision=PRECISION)
        weighted = B_c.to(tl.float32) * (to_end * d)[:, None]
        h = h * whole_decay + tl.dot(tl.trans(weighted.to(DOT)), X.to(DOT), input_precision=PRECISION)
        if HAS_D:
            out += skip * X.to(tl.float32)
        raw, B_c = next_raw, next_B
        if HAS_Z:
            if KEEP:
                store_tile(before, at, y_l, rows, ok, p, P, out, WHOLE)
            out *= silu(load_tile(z, at, z_l, rows, ok, p, P, WHOLE).to(tl.float32))
        store_tile(y, at, y_l, rows, ok, p, P, out, WHOLE)
    if HAS_LENGTHS:
        for c in range(tl.maximum(first, length // Q), stop):
            padding = (q >= length - c * Q) & (q < L - c * Q)
            nothing = tl.zeros((Q, BP), dtype=tl.float32)
            store_tile(y, tl.cast(c * Q, tl.int64), y_l, q, padding, p, P, nothing, WHOLE)
            if HAS_Z and KEEP:
                store_tile(before, tl.cast(c * Q, tl.int64), y_l, q, padding, p, P, nothing, WHOLE)
    if RETURN_LAST and segment == segments - 1:
        tl.store(last + row * N * P + state_offsets, h, mask=state_mask)


@triton.jit(do_not_specialize=VARYING)
def segment_kernel(
    v, dt, A, K, z, bias, lengths, local, whole_log,
    batch, L, heads, P, N, tiles, heads_a_group, chunks_a_segment, segments, chunks, scale,
    v_b, v_l, v_h, dt_b, dt_l, dt_h, K_b, K_l, K_g, z_b, z_l, z_h,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, BACKWARD: tl.constexpr,
    Q: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What each segment adds to the state, and the log of what it leaves of the state that enters it.

    Forward v is x and K is B; BACKWARD v is the gradient of y and K is C, and the state is its gradient, which travels
    from the last chunk to the first.
    """
    program = tl.program_id(0)
    segment = tl.program_id(1)
    tile = program % tiles
    row = (program // tiles).to(tl.int64)
    head = row % heads
    b = (row // heads) % batch
    direction = row // (heads * batch)
    reverse = direction if not REVERSE else 1
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    group = direction * (heads // heads_a_group) + head // heads_a_group
    v += b * v_b + head * v_h
    dt += b * dt_b + (direction * heads + head) * dt_h
    K += b * K_b + group * K_g
    rate = tl.load(A + direction * heads + head).to(tl.float32)
    shift = 0.0
    if HAS_BIAS:
        shift = tl.load(bias + direction * heads + head).to(tl.float32)
    q = tl.arange(0, Q)
    rows = tl.where(reverse != 0, -q, q)
    n = tl.arange(0, BN)
    p = tile * BP + tl.arange(0, BP)
    h = tl.zeros((BN, BP), dtype=tl.float32)
    left = tl.zeros((), dtype=tl.float32)
    first = segment * chunks_a_segment
    used = tl.minimum(tl.minimum(first + chunks_a_segment, chunks), (length + Q - 1) // Q)
    for k in range(first, used):
        c = used - 1 - (k - first) if BACKWARD else k
        at = first_position(c, length, reverse, Q)
        ok = q < length - c * Q
        raw = load_steps(dt, at, rows, ok, dt_l)
        d = tl.where(ok, step_size(raw.to(tl.float32) + shift, SOFTPLUS), 0.0)
        g = log_decay(d, rate, ok)
        coarse, fine, whole_coarse, whole_fine = sums_of_log(g)
        V = load_tile(v, at, v_l, rows, ok, p, P, WHOLE)
        K_c = load_tile(K, at, K_l, rows, ok, n, N, WHOLE).to(tl.float32)
        if BACKWARD:
            V = V.to(tl.float32) * scale
            if HAS_Z:
                V *= silu(load_tile(z + b * z_b + head * z_h, at, z_l, rows, ok, p, P, WHOLE).to(tl.float32))
            weighted = K_c * tl.exp(coarse + fine)[:, None]
        else:
            weighted = K_c * (tl.exp((whole_coarse - coarse) + (whole_fine - fine)) * d)[:, None]
        whole = whole_coarse + whole_fine
        h = h * tl.exp(whole) + tl.dot(tl.trans(weighted.to(DOT)), V.to(DOT), input_precision=PRECISION)
        left += whole
    index = row * segments + segment
    tl.store(local + index * N * P + n[:, None] * P + p[None, :], h, mask=(n < N)[:, None] & (p < P)[None, :])
    if tile == 0:
        tl.store(whole_log + index, left)


@triton.jit(do_not_specialize=["segments"])
def pass_kernel(
    local, whole_log, start, last, size, segments,
    HAS_START: tl.constexpr, BACKWARD: tl.constexpr, RETURN_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Replace what each segment adds by the state that enters it, in place, one segment after the other."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = k < size
    if HAS_START:
        h = tl.load(start + row * size + k, mask=mask, other=0.0).to(tl.float32)
    else:
        h = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(segments):
        segment = segments - 1 - i if BACKWARD else i
        pointers = local + (row * segments + segment) * size + k
        added = tl.load(pointers, mask=mask, other=0.0)
        left = tl.exp(tl.load(whole_log + row * segments + segment))
        tl.store(pointers, h, mask=mask)
        h = h * left + added
    if RETURN_LAST:
        tl.store(last + row * size + k, h, mask=mask)


@triton.jit(do_not_specialize=VARYING)
def backward_kernel(
    x, dt, A, B, C, D, z, bias, lengths, states, ungated, dy, dlast,
    dx, ddt, dB, dC, dz, dstart, sums,
    batch, L, heads, P, N, tiles, heads_a_group, chunks_a_segment, segments, chunks, scale,
    x_b, x_l, x_h, dt_b, dt_l, dt_h, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h, dy_b, dy_l, dy_h,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_DLAST: tl.constexpr, RETURN_DSTART: tl.constexpr,
    Q: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one head (or a tile of its width), chunk by chunk from the last to the first.

    dx: (direction, b, l, h, p). ddt, dB, dC: (tile, ...) partial sums. sums: (3, direction, b, h, tile, segment), those
    of A, dt_bias and D.
    """
    program = tl.program_id(0)
    segment = tl.program_id(1)
    tile = program % tiles
    row = (program // tiles).to(tl.int64)
    head = row % heads
    b = (row // heads) % batch
    direction = row // (heads * batch)
    directions = tl.num_programs(0) // (tiles * heads * batch)
    reverse = direction if not REVERSE else 1
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    groups = heads // heads_a_group
    group = direction * groups + head // heads_a_group
    x += b * x_b + head * x_h
    dt += b * dt_b + (direction * heads + head) * dt_h
    B += b * B_b + group * B_g
    C += b * C_b + group * C_g
    dy += b * dy_b + head * dy_h
    before = ungated + (b * L * heads + head) * P
    if HAS_Z:
        z += b * z_b + head * z_h
        dz += (b * L * heads + head) * P
    dx += ((direction * batch + b) * L * heads + head) * P
    all_heads = directions * heads
    ddt += (tile * batch + b) * L * all_heads + direction * heads + head
    # (b, l, direction, group, head of the group and tile, n)
    partials = heads_a_group * tiles
    matrix_row = directions * groups * partials * N
    matrix_base = b * L * matrix_row + (group * partials + (head % heads_a_group) * tiles + tile) * N
    dB += matrix_base
    dC += matrix_base
    rate = tl.load(A + direction * heads + head).to(tl.float32)
    shift = 0.0
    if HAS_BIAS:
        shift = tl.load(bias + direction * heads + head).to(tl.float32)
    q = tl.arange(0, Q)
    rows = tl.where(reverse != 0, -q, q)
    y_l = heads * P
    n = tl.arange(0, BN)
    p = tile * BP + tl.arange(0, BP)
    state_offsets = n[:, None] * P + p[None, :]
    state_mask = (n < N)[:, None] & (p < P)[None, :]
    if WHOLE:
        state_mask = tl.full((BN, BP), True, dtype=tl.int1)
    if HAS_DLAST:
        dh = tl.load(dlast + (row * segments + segment) * N * P + state_offsets, mask=state_mask, other=0.0)
    else:
        dh = tl.zeros((BN, BP), dtype=tl.float32)
    # of each step of a chunk: summed over steps at the end
    dA = tl.zeros((Q,), dtype=tl.float32)
    dshift = tl.zeros((Q,), dtype=tl.float32)
    dD = tl.zeros((Q,), dtype=tl.float32)
    skip = 0.0
    if HAS_D:
        skip = tl.load(D + head).to(tl.float32) / scale
    first = segment * chunks_a_segment
    stop = tl.minimum(first + chunks_a_segment, chunks)
    used = tl.minimum(stop, (length + Q - 1) // Q)
    for k in range(first, used):
        c = used - 1 - (k - first)
        at = first_position(c, length, reverse, Q)
        ok = q < length - c * Q
        raw = load_steps(dt, at, rows, ok, dt_l).to(tl.float32) + shift
        d = tl.where(ok, step_size(raw, SOFTPLUS), 0.0)
        X = load_tile(x, at, x_l, rows, ok, p, P, WHOLE)
        B_c = load_tile(B, at, B_l, rows, ok, n, N, WHOLE)
        C_c = load_tile(C, at, C_l, rows, ok, n, N, WHOLE)
        G = load_tile(dy, at, dy_l, rows, ok, p, P, WHOLE).to(tl.float32)
        if HAS_Z:
            Z = load_tile(z, at, z_l, rows, ok, p, P, WHOLE).to(tl.float32)
            sigmoid = 1.0 / (1.0 + tl.exp(-Z))
            if direction == 0:
                own = load_tile(before, at, y_l, rows, ok, p, P, WHOLE).to(tl.float32)
                slope = G * own * sigmoid * (1.0 + Z * (1.0 - sigmoid))
                store_tile(dz, at, y_l, rows, ok, p, P, slope, WHOLE)
            G *= Z * sigmoid
        if HAS_D:
            dD += tl.sum(G * X.to(tl.float32), 1)
        G_s = (G * scale).to(DOT)
        h = tl.load(states + (row * chunks + c) * N * P + state_offsets, mask=state_mask, other=0.0)
        dwhole = tl.sum(tl.sum(h.to(tl.float32) * dh, 1), 0)
        g = log_decay(d, rate, ok)
        coarse, fine, whole_coarse, whole_fine = sums_of_log(g)
        from_start = tl.exp(coarse + fine)
        to_end = tl.exp((whole_coarse - coarse) + (whole_fine - fine))
        whole_decay = tl.exp(whole_coarse + whole_fine)

        scores = tl.dot(C_c.to(DOT), tl.trans(B_c.to(DOT)), input_precision=PRECISION)
        decay = decay_between(coarse, fine, q)
        dscores = tl.dot(G_s, tl.trans(X.to(DOT)), input_precision=PRECISION) * decay
        inner = dscores * scores
        ddirect = tl.sum(inner, 0)
        # the diagonal enters and leaves the log decays with opposite signs: left out of both
        inner = tl.where(q[:, None] > q[None, :], inner, 0.0) * d[None, :]
        dtotal = tl.sum(inner, 1) - tl.sum(inner, 0)
        weights = (scores * decay * d[None, :]).to(DOT)
        dscores = (dscores * d[None, :]).to(DOT)
        dC_s = tl.dot(G_s, tl.trans(h.to(DOT)), input_precision=PRECISION) * from_start[:, None]
        dtotal += tl.sum(dC_s * C_c.to(tl.float32), 1)
        dC_s += tl.dot(dscores, B_c.to(DOT), input_precision=PRECISION)
        store_tile(dC, at, matrix_row, rows, ok, n, N, dC_s, WHOLE)
        dB_s = tl.dot(X.to(DOT), tl.trans(dh.to(DOT)), input_precision=PRECISION) * to_end[:, None]
        entering = tl.sum(dB_s * B_c.to(tl.float32), 1)
        ddirect += entering
        entering *= d
        dtotal -= entering
        dB_s = dB_s * d[:, None] + tl.dot(tl.trans(dscores), C_c.to(DOT), input_precision=PRECISION)
        store_tile(dB, at, matrix_row, rows, ok, n, N, dB_s, WHOLE)
        dX = tl.dot(tl.trans(weights), G_s, input_precision=PRECISION)
        dX += tl.dot(B_c.to(DOT), dh.to(DOT), input_precision=PRECISION) * (to_end * d)[:, None]
        if HAS_D:
            if direction == 0:
                dX += skip * G_s.to(tl.float32)
        store_tile(dx, at, y_l, rows, ok, p, P, dX, WHOLE)
        dwhole = dwhole * whole_decay + tl.sum(entering, 0)
        dg = tl.cumsum(dtotal, 0, reverse=True) + dwhole
        dg = tl.where(ok & (d * rate > SMALLEST_LOG_DECAY), dg, 0.0)
        dA += dg * d
        dstep = ddirect + dg * rate
        if SOFTPLUS:
            dstep *= 1.0 / (1.0 + tl.exp(-raw))
        dstep = tl.where(ok, dstep, 0.0)
        dshift += dstep
        tl.store(ddt + at * all_heads + rows * all_heads, dstep, mask=ok)
        weighted = C_c.to(tl.float32) * from_start[:, None]
        dh = dh * whole_decay + tl.dot(tl.trans(weighted.to(DOT)), G_s, input_precision=PRECISION)
    if HAS_LENGTHS:
        for c in range(tl.maximum(first, length // Q), stop):
            at = tl.cast(c * Q, tl.int64)
            padding = (q >= length - c * Q) & (q < L - c * Q)
            nothing = tl.zeros((Q, BP), dtype=tl.float32)
            store_tile(dx, at, y_l, q, padding, p, P, nothing, WHOLE)
            if HAS_Z:
                if direction == 0:
                    store_tile(dz, at, y_l, q, padding, p, P, nothing, WHOLE)
            no_matrix = tl.zeros((Q, BN), dtype=tl.float32)
            store_tile(dB, at, matrix_row, q, padding, n, N, no_matrix, WHOLE)
            store_tile(dC, at, matrix_row, q, padding, n, N, no_matrix, WHOLE)
            tl.store(ddt + at * all_heads + q * all_heads, tl.zeros((Q,), dtype=tl.float32), mask=padding)
    sums += program.to(tl.int64) * segments + segment
    all_sums = segments.to(tl.int64) * tl.num_programs(0)
    tl.store(sums, tl.sum(dA, 0))
    tl.store(sums + all_sums, tl.sum(dshift, 0))
    # both directions see the skip: one of them counts it
    tl.store(sums + 2 * all_sums, tl.where(direction == 0, tl.sum(dD, 0), 0.0))
    if RETURN_DSTART and segment == 0:
        tl.store(dstart + row * N * P + state_offsets, dh, mask=state_mask)


@triton.jit(do_not_specialize=["L", "rows"])
def merge_kernel(
    y, x, D, z, lengths, out, ungated, L, heads, P, rows, scale,
    x_b, x_l, x_h, z_b, z_l, z_h,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_LENGTHS: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = (scale (y_0 + y_1) + D x) silu(z) for y (2, b, l, h, p), 0 beyond each row's length."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # b l
    k = tl.arange(0, BLOCK)  # h p
    b = row // L
    position = row % L
    ok = row < rows
    mask = ok[:, None] & (k < heads * P)[None, :]
    flat = row[:, None] * (heads * P) + k[None, :]
    value = tl.load(y + flat, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(y + flat + rows * heads * P, mask=mask, other=0.0).to(tl.float32)
    value *= scale
    head = k // P
    inside = k % P
    present = mask
    if HAS_LENGTHS:
        present = mask & (position < tl.load(lengths + b, mask=ok, other=0))[:, None]
    if HAS_D:
        skip = tl.load(D + head, mask=k < heads * P, other=0.0).to(tl.float32)
        offsets = (b * x_b + position * x_l)[:, None] + (head * x_h + inside)[None, :]
        value += skip[None, :] * tl.load(x + offsets, mask=present, other=0.0).to(tl.float32)
    value = tl.where(present, value, 0.0)
    if HAS_Z:
        if KEEP:
            tl.store(ungated + flat, value, mask=mask)
        offsets = (b * z_b + position * z_l)[:, None] + (head * z_h + inside)[None, :]
        value *= silu(tl.load(z + offsets, mask=present, other=0.0).to(tl.float32))
    tl.store(out + flat, value, mask=mask)
