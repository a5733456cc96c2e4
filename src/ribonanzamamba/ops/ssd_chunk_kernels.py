"""Triton kernels of `ssd`'s backward pass by chunks, and nothing else; `ssd_triton.py` launches them.

The other way to cut it: first the gradient of the state that leaves each chunk, one chunk after the other, which is
little work; then everything else, all chunks side by side and the heads of a group one after the other in a program,
so that nearly all of what they add to the gradients of B and C is added up in registers. It reads and writes a state a
chunk more, and a sum a head less.

Addresses and numerics are those of `ssd_kernels.py`.
"""

import triton
import triton.language as tl

from ribonanzamamba.ops.ssd_kernels import (
    SMALLEST_LOG_DECAY,
    VARYING,
    decay_between,
    first_position,
    load_steps,
    load_tile,
    log_decay,
    silu,
    step_size,
    store_tile,
    sums_of_log,
)


@triton.jit(do_not_specialize=VARYING)
def state_gradient_kernel(
    dy, dt, A, C, z, bias, lengths, states, last, dlast, steps, dstates, dends, dstart,
    batch, L, heads, P, N, tiles, heads_a_group, chunks_a_segment, segments, chunks, scale,
    dy_b, dy_l, dy_h, dt_b, dt_l, dt_h, C_b, C_l, C_g, z_b, z_l, z_h,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_LAST: tl.constexpr, HAS_DLAST: tl.constexpr, RETURN_DSTART: tl.constexpr,
    Q: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the state that leaves each chunk, from the last chunk to the first, and of the initial state.

    steps: (4, row, chunk, step), what depends on the step sizes alone: they, the slope of softplus, and both sums of
    log decays. dends: (row, tile, chunk), that gradient times the state, summed: the gradient of the summed log decay
    of all steps up to the chunk's end, as far as it comes through the state. `last` is needed where something reads the
    last state.
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
    dy += b * dy_b + head * dy_h
    dt += b * dt_b + (direction * heads + head) * dt_h
    C += b * C_b + group * C_g
    if HAS_Z:
        z += b * z_b + head * z_h
    rate = tl.load(A + direction * heads + head).to(tl.float32)
    shift = 0.0
    if HAS_BIAS:
        shift = tl.load(bias + direction * heads + head).to(tl.float32)
    q = tl.arange(0, Q)
    rows = tl.where(reverse != 0, -q, q)
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
    first = segment * chunks_a_segment
    used = tl.minimum(tl.minimum(first + chunks_a_segment, chunks), (length + Q - 1) // Q)
    step_part = tl.num_programs(0).to(tl.int64) // tiles * chunks * Q
    all_used = (length + Q - 1) // Q
    at = first_position(used - 1, length, reverse, Q)
    ok = q < tl.where(used > first, length - (used - 1) * Q, 0)
    raw = load_steps(dt, at, rows, ok, dt_l)
    C_c = load_tile(C, at, C_l, rows, ok, n, N, WHOLE)
    G = load_tile(dy, at, dy_l, rows, ok, p, P, WHOLE)
    for k in range(first, used):
        c = used - 1 - (k - first)
        tl.store(dstates + (row * chunks + c) * N * P + state_offsets, dh, mask=state_mask)
        # the state that leaves a chunk enters the next one
        inside = state_mask & (n < tl.where(c + 1 < all_used, N, 0))[:, None]
        entered = states + (row * chunks + c + 1) * N * P
        leaving = tl.load(entered + state_offsets, mask=inside, other=0.0).to(tl.float32)
        if HAS_LAST:
            at_end = state_mask & (n < tl.where(c + 1 < all_used, 0, N))[:, None]
            leaving += tl.load(last + row * N * P + state_offsets, mask=at_end, other=0.0)
        tl.store(dends + program.to(tl.int64) * chunks + c, tl.sum(tl.sum(leaving * dh, 1), 0))
        at = first_position(c, length, reverse, Q)
        ok = q < length - c * Q
        # asked for a chunk ahead: none of it goes into a product as it is
        next_at = first_position(c - 1, length, reverse, Q)
        next_ok = q < tl.where(c > first, length - (c - 1) * Q, 0)
        next_raw = load_steps(dt, next_at, rows, next_ok, dt_l)
        next_C = load_tile(C, next_at, C_l, rows, next_ok, n, N, WHOLE)
        next_G = load_tile(dy, next_at, dy_l, rows, next_ok, p, P, WHOLE)
        raw = raw.to(tl.float32) + shift
        d = tl.where(ok, step_size(raw, SOFTPLUS), 0.0)
        coarse, fine, whole_coarse, whole_fine = sums_of_log(log_decay(d, rate, ok))
        if tile == 0:
            place = steps + (row * chunks + c) * Q + q
            tl.store(place, d)
            tl.store(place + step_part, 1.0 / (1.0 + tl.exp(-raw)) if SOFTPLUS else d * 0.0 + 1.0)
            tl.store(place + 2 * step_part, coarse)
            tl.store(place + 3 * step_part, fine)
        V = G.to(tl.float32) * scale
        if HAS_Z:
            V *= silu(load_tile(z, at, z_l, rows, ok, p, P, WHOLE).to(tl.float32))
        weighted = C_c.to(tl.float32) * tl.exp(coarse + fine)[:, None]
        dh = dh * tl.exp(whole_coarse + whole_fine)
        dh += tl.dot(tl.trans(weighted.to(DOT)), V.to(DOT), input_precision=PRECISION)
        raw, C_c, G = next_raw, next_C, next_G
    if RETURN_DSTART and segment == 0:
        tl.store(dstart + row * N * P + state_offsets, dh, mask=state_mask)


@triton.jit(do_not_specialize=[*VARYING, "parts"])
def chunks_backward_kernel(
    x, A, B, C, D, z, lengths, steps, states, dstates, dends, ungated, dy, dx, ddt, dB, dC, dz, sums,
    batch, L, heads, P, N, tiles, heads_a_group, chunks, slices, parts, scale,
    x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h, dy_b, dy_l, dy_h,
    REVERSE: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    Q: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk, of a slice of the heads (and tiles of their width) of one group, one after the other.

    dx: (direction, b, l, h, p). ddt: (tile, ...) partial sums. dB, dC: partial sums, one a slice. sums: (3, direction,
    b, h, tile, chunk), those of A, dt_bias and D.
    """
    program = tl.program_id(0)
    own_slice = program % slices
    c = (program // slices) % chunks
    groups = heads // heads_a_group
    of_all = program // (slices * chunks)  # direction, batch, group
    own_group = of_all % groups
    b = ((of_all // groups) % batch).to(tl.int64)
    direction = of_all // (groups * batch)
    directions = tl.num_programs(0) // (slices * chunks * groups * batch)
    step_part = tl.cast(directions * batch * heads, tl.int64) * chunks * Q
    reverse = direction if not REVERSE else 1
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    group = direction * groups + own_group
    q = tl.arange(0, Q)
    rows = tl.where(reverse != 0, -q, q)
    n = tl.arange(0, BN)
    y_l = heads * P
    all_heads = directions * heads
    at = first_position(c, length, reverse, Q)
    ok = q < length - c * Q
    # (b, l, direction, group, slice, n)
    matrix_row = directions * groups * slices * N
    matrix_base = b * L * matrix_row + (group * slices + own_slice) * N
    dB += matrix_base
    dC += matrix_base
    x += b * x_b
    dy += b * dy_b
    dx += (direction * batch + b) * L * y_l
    before = ungated + b * L * y_l
    if HAS_Z:
        z += b * z_b
        dz += b * L * y_l
    first_part = own_group * heads_a_group * tiles + own_slice * parts
    sum_base = (direction * batch + b) * heads * tiles * chunks
    all_sums = directions * batch * heads * tiles * chunks
    if c * Q < length:
        B_c = load_tile(B + b * B_b + group * B_g, at, B_l, rows, ok, n, N, WHOLE)
        C_c = load_tile(C + b * C_b + group * C_g, at, C_l, rows, ok, n, N, WHOLE)
        all_dB = tl.zeros((Q, BN), dtype=tl.float32)
        all_dC = tl.zeros((Q, BN), dtype=tl.float32)
        all_own = tl.zeros((Q,), dtype=tl.float32)
        for part in range(first_part, first_part + parts):
            head = part // tiles
            tile = part % tiles
            p = tile * BP + tl.arange(0, BP)
            state_offsets = n[:, None] * P + p[None, :]
            state_mask = (n < N)[:, None] & (p < P)[None, :]
            if WHOLE:
                state_mask = tl.full((BN, BP), True, dtype=tl.int1)
            row = (direction * batch + b) * heads + head
            rate = tl.load(A + direction * heads + head).to(tl.float32)
            of_steps = steps + (row * chunks + c) * Q
            d = tl.load(of_steps + q)
            slope = tl.load(of_steps + step_part + q)
            coarse = tl.load(of_steps + 2 * step_part + q)
            fine = tl.load(of_steps + 3 * step_part + q)
            whole_coarse = tl.load(of_steps + 2 * step_part + Q - 1)
            whole_fine = tl.load(of_steps + 3 * step_part + Q - 1)
            X = load_tile(x + head * x_h, at, x_l, rows, ok, p, P, WHOLE)
            G = load_tile(dy + head * dy_h, at, dy_l, rows, ok, p, P, WHOLE).to(tl.float32)
            h = tl.load(states + (row * chunks + c) * N * P + state_offsets, mask=state_mask, other=0.0)
            dh = tl.load(dstates + (row * chunks + c) * N * P + state_offsets, mask=state_mask, other=0.0)
            if HAS_Z:
                Z = load_tile(z + head * z_h, at, z_l, rows, ok, p, P, WHOLE).to(tl.float32)
                sigmoid = 1.0 / (1.0 + tl.exp(-Z))
                if direction == 0:
                    own = load_tile(before + head * P, at, y_l, rows, ok, p, P, WHOLE).to(tl.float32)
                    gated = G * own * sigmoid * (1.0 + Z * (1.0 - sigmoid))
                    store_tile(dz + head * P, at, y_l, rows, ok, p, P, gated, WHOLE)
                G *= Z * sigmoid
            G_s = (G * scale).to(DOT)
            from_start = tl.exp(coarse + fine)
            to_end = tl.exp((whole_coarse - coarse) + (whole_fine - fine))
            decay = decay_between(coarse, fine, q)
            # the same for every head, but where it is needed cheaper to make than to bring
            scores = tl.dot(C_c.to(DOT), tl.trans(B_c.to(DOT)), input_precision=PRECISION)
            dscores = tl.dot(G_s, tl.trans(X.to(DOT)), input_precision=PRECISION) * decay
            own_score = tl.sum(tl.where(q[:, None] == q[None, :], dscores, 0.0), 1)
            dD = 0.0
            skip = 0.0
            if HAS_D:
                # both directions see the skip: one of them counts it
                if direction == 0:
                    skip = tl.load(D + head).to(tl.float32) / scale
                    dD = tl.sum(own_score, 0) / scale
            weights = (scores * decay).to(DOT)
            # a step's part in itself does not decay: left out until all heads are done
            dscores = tl.where(q[:, None] > q[None, :], dscores * d[None, :], 0.0).to(DOT)
            own_score *= d
            dC_s = tl.dot(G_s, tl.trans(h.to(DOT)), input_precision=PRECISION) * from_start[:, None]
            dC_s = tl.dot(dscores, B_c.to(DOT), acc=dC_s, input_precision=PRECISION)
            dB_s = tl.dot(X.to(DOT), tl.trans(dh.to(DOT)), input_precision=PRECISION) * (to_end * d)[:, None]
            dB_s = tl.dot(tl.trans(dscores), C_c.to(DOT), acc=dB_s, input_precision=PRECISION)
            dtotal = tl.sum(dC_s * C_c.to(tl.float32) - dB_s * B_c.to(tl.float32), 1)
            all_dC += dC_s
            all_dB += dB_s
            all_own += own_score
            dU = tl.dot(B_c.to(DOT), dh.to(DOT), input_precision=PRECISION) * to_end[:, None]
            dU = tl.dot(tl.trans(weights), G_s, acc=dU, input_precision=PRECISION)
            ddirect = tl.sum(dU * X.to(tl.float32), 1)
            dX = dU * d[:, None]
            if HAS_D:
                dX += skip * G_s.to(tl.float32)
            store_tile(dx + head * P, at, y_l, rows, ok, p, P, dX, WHOLE)
            dend = tl.load(dends + (row * tiles + tile) * chunks + c)
            dg = tl.cumsum(dtotal, 0, reverse=True) + dend
            dg = tl.where(ok & (d * rate > SMALLEST_LOG_DECAY), dg, 0.0)
            dstep = tl.where(ok, (ddirect + dg * rate) * slope, 0.0)
            of_part = ddt + (tile * batch + b) * L * all_heads + direction * heads + head
            tl.store(of_part + at * all_heads + rows * all_heads, dstep, mask=ok)
            place = sums + sum_base + part * chunks + c
            tl.store(place, tl.sum(dg * d, 0))
            tl.store(place + all_sums, tl.sum(dstep, 0))
            tl.store(place + 2 * all_sums, dD)
        all_dB += all_own[:, None] * C_c.to(tl.float32)
        all_dC += all_own[:, None] * B_c.to(tl.float32)
        store_tile(dB, at, matrix_row, rows, ok, n, N, all_dB, WHOLE)
        store_tile(dC, at, matrix_row, rows, ok, n, N, all_dC, WHOLE)
    if HAS_LENGTHS:
        at = tl.cast(c, tl.int64) * Q
        padding = (q >= length - c * Q) & (q < L - c * Q)
        if length < c * Q + Q:
            no_matrix = tl.zeros((Q, BN), dtype=tl.float32)
            store_tile(dB, at, matrix_row, q, padding, n, N, no_matrix, WHOLE)
            store_tile(dC, at, matrix_row, q, padding, n, N, no_matrix, WHOLE)
            for part in range(first_part, first_part + parts):
                head = part // tiles
                tile = part % tiles
                p = tile * BP + tl.arange(0, BP)
                nothing = tl.zeros((Q, BP), dtype=tl.float32)
                store_tile(dx + head * P, at, y_l, q, padding, p, P, nothing, WHOLE)
                if HAS_Z:
                    if direction == 0:
                        store_tile(dz + head * P, at, y_l, q, padding, p, P, nothing, WHOLE)
                of_part = ddt + (tile * batch + b) * L * all_heads + direction * heads + head
                no_step = tl.zeros((Q,), dtype=tl.float32)
                tl.store(of_part + at * all_heads + q * all_heads, no_step, mask=padding)
                if c * Q >= length:
                    place = sums + sum_base + part * chunks + c
                    for which in range(3):
                        tl.store(place + which * all_sums, 0.0)
