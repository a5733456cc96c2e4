"""Triton kernels of `selective_scan`, forward and backward, and nothing else; `selective_scan_triton.py` launches them.

A thread holds all states of its channels and walks the positions: the sum over states stays inside the thread, and
neighbouring threads read neighbouring channels. STEPS positions at a time are loaded ahead of their use. The backward
pass starts each such block from a state that the forward pass kept, recomputes the states inside in registers and walks
back. Positions, reversal and padding as in `ssd_kernels.py`.

No bound on the log decays is needed here: nothing is divided, and exp of a very negative number is 0, which differs
from the bound of the plain form by 2e-9 of the state.
"""

import triton
import triton.language as tl

from ribonanzamamba.ops.ssd_kernels import silu, step_size

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
VARYING = ["batch", "L", "blocks_a_segment", "segments", "blocks"]
"""Numbers that change from batch to batch: a kernel compiled for one value serves all."""


@triton.jit
def masked(mask, condition):
    """mask where one scalar condition holds (the interpreter makes integers of `mask & condition`)."""
    return tl.where(condition, mask, mask != mask)


@triton.jit
def place(program, segment, batch, width, tiles_a_group, width_a_group, REVERSE: tl.constexpr, BD: tl.constexpr):
    """Direction, batch row, group of that direction, channels and which of them are real, and whether to run back."""
    groups = width // width_a_group
    tile = program % tiles_a_group
    rest = program // tiles_a_group
    group = rest % groups
    row = (rest // groups).to(tl.int64)  # direction, batch
    b = row % batch
    direction = row // batch
    inside = tile * BD + tl.arange(0, BD)
    reverse = direction if not REVERSE else 1
    return direction, b, group, tile, group * width_a_group + inside, inside < width_a_group, reverse


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    x, dt, A, B, C, D, z, bias, lengths, start, y, ungated, last, states,
    batch, L, width, N, tiles_a_group, width_a_group, blocks_a_segment, segments, blocks,
    x_b, x_l, dt_b, dt_l, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_START: tl.constexpr, KEEP: tl.constexpr, RETURN_LAST: tl.constexpr,
    STEPS: tl.constexpr, OFFSET: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """y, and with KEEP the state that enters each block of STEPS; RETURN_LAST also the state after the last step."""
    program = tl.program_id(0)
    segment = tl.program_id(1)
    direction, b, group, tile, d, real, reverse = place(
        program, segment, batch, width, tiles_a_group, width_a_group, REVERSE, BD
    )
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    n = tl.arange(0, BN)
    full_group = direction * (width // width_a_group) + group
    x += b * x_b + d
    dt += b * dt_b + direction * width + d
    B += b * B_b + full_group * B_g + n
    C += b * C_b + full_group * C_g + n
    row = direction * batch + b
    y += row * L * width + d
    state_offsets = n[:, None] * width + d[None, :]
    state_mask = (n < N)[:, None] & real[None, :]
    rate = tl.load(A + direction * width * N + d[None, :] * N + n[:, None], mask=state_mask, other=0.0).to(tl.float32)
    rate *= LOG2_E
    shift = tl.zeros((BD,), dtype=tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + direction * width + d, mask=real, other=0.0).to(tl.float32)
    skip = tl.zeros((BD,), dtype=tl.float32)
    if HAS_D:
        skip = tl.load(D + d, mask=real, other=0.0).to(tl.float32)
    if HAS_Z:
        z += b * z_b + d
    h = tl.zeros((BN, BD), dtype=tl.float32)
    if HAS_START:
        h = tl.load(start + (row * segments + segment) * N * width + state_offsets, mask=state_mask, other=0.0)
    first = segment * blocks_a_segment
    stop = tl.minimum(first + blocks_a_segment, blocks)
    used = tl.minimum(stop, (length + STEPS - 1) // STEPS)
    for block in range(first, used):
        if KEEP:
            tl.store(states + (row * blocks + block) * N * width + state_offsets, h, mask=state_mask)
        xs = ()
        dts = ()
        Bs = ()
        Cs = ()
        zs = ()
        for k in tl.static_range(STEPS):
            s = block * STEPS + k
            ok = s < length
            pos = tl.where(reverse != 0, length - 1 - s, s).to(OFFSET)
            xs = xs + (tl.load(x + pos * x_l, mask=masked(real, ok), other=0.0),)
            dts = dts + (tl.load(dt + pos * dt_l, mask=masked(real, ok), other=0.0),)
            Bs = Bs + (tl.load(B + pos * B_l, mask=masked(n < N, ok), other=0.0),)
            Cs = Cs + (tl.load(C + pos * C_l, mask=masked(n < N, ok), other=0.0),)
            if HAS_Z:
                zs = zs + (tl.load(z + pos * z_l, mask=masked(real, ok), other=0.0),)
        for k in tl.static_range(STEPS):
            s = block * STEPS + k
            ok = s < length
            pos = tl.where(ok & (reverse != 0), length - 1 - s, s).to(OFFSET)
            step = tl.where(ok, step_size(dts[k].to(tl.float32) + shift, SOFTPLUS), 0.0)
            u = xs[k].to(tl.float32)
            h = tl.exp2(step[None, :] * rate) * h + (step * u)[None, :] * Bs[k].to(tl.float32)[:, None]
            out = tl.sum(h * Cs[k].to(tl.float32)[:, None], 0)
            if HAS_D:
                out += skip * u
            out = tl.where(ok, out, 0.0)
            if HAS_Z:
                if KEEP:
                    tl.store(ungated + b * L * width + pos * width + d, out, mask=masked(real, s < L))
                out *= silu(zs[k].to(tl.float32))
            tl.store(y + pos * width, out, mask=masked(real, s < L))
    for block in range(tl.maximum(used, first), stop):
        for k in range(STEPS):
            s = block * STEPS + k
            pos = tl.where(s < L, s, 0).to(OFFSET)
            nothing = tl.zeros((BD,), dtype=tl.float32)
            tl.store(y + pos * width, nothing, mask=masked(real, s < L))
            if HAS_Z and KEEP:
                tl.store(ungated + b * L * width + pos * width + d, nothing, mask=masked(real, s < L))
    if RETURN_LAST and segment == segments - 1:
        tl.store(last + row * N * width + state_offsets, h, mask=state_mask)


@triton.jit(do_not_specialize=VARYING)
def segment_kernel(
    v, dt, A, K, z, bias, lengths, local, whole_dt,
    batch, L, width, N, tiles_a_group, width_a_group, blocks_a_segment, segments, blocks, scale,
    v_b, v_l, dt_b, dt_l, K_b, K_l, K_g, z_b, z_l,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, BACKWARD: tl.constexpr,
    STEPS: tl.constexpr, OFFSET: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """What each segment adds to the state, and its summed step sizes. BACKWARD: for the state's gradient, with v the
    gradient of y and K = C, from the segment's last step to its first."""
    program = tl.program_id(0)
    segment = tl.program_id(1)
    direction, b, group, tile, d, real, reverse = place(
        program, segment, batch, width, tiles_a_group, width_a_group, REVERSE, BD
    )
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    n = tl.arange(0, BN)
    full_group = direction * (width // width_a_group) + group
    v += b * v_b + d
    dt += b * dt_b + direction * width + d
    K += b * K_b + full_group * K_g + n
    row = direction * batch + b
    state_mask = (n < N)[:, None] & real[None, :]
    rate = tl.load(A + direction * width * N + d[None, :] * N + n[:, None], mask=state_mask, other=0.0).to(tl.float32)
    rate *= LOG2_E
    shift = tl.zeros((BD,), dtype=tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + direction * width + d, mask=real, other=0.0).to(tl.float32)
    if HAS_Z:
        z += b * z_b + d
    h = tl.zeros((BN, BD), dtype=tl.float32)
    whole = tl.zeros((BD,), dtype=tl.float32)
    first = segment * blocks_a_segment
    used = tl.minimum(tl.minimum(first + blocks_a_segment, blocks), (length + STEPS - 1) // STEPS)
    for i in range(first, used):
        block = used - 1 - (i - first) if BACKWARD else i
        vs = ()
        dts = ()
        Ks = ()
        zs = ()
        for j in tl.static_range(STEPS):
            s = block * STEPS + (STEPS - 1 - j if BACKWARD else j)
            ok = s < length
            pos = tl.where(reverse != 0, length - 1 - s, s).to(OFFSET)
            vs = vs + (tl.load(v + pos * v_l, mask=masked(real, ok), other=0.0),)
            dts = dts + (tl.load(dt + pos * dt_l, mask=masked(real, ok), other=0.0),)
            Ks = Ks + (tl.load(K + pos * K_l, mask=masked(n < N, ok), other=0.0),)
            if HAS_Z:
                zs = zs + (tl.load(z + pos * z_l, mask=masked(real, ok), other=0.0),)
        for j in tl.static_range(STEPS):
            s = block * STEPS + (STEPS - 1 - j if BACKWARD else j)
            step = tl.where(s < length, step_size(dts[j].to(tl.float32) + shift, SOFTPLUS), 0.0)
            decay = tl.exp2(step[None, :] * rate)
            value = vs[j].to(tl.float32)
            if BACKWARD:
                value *= scale
                if HAS_Z:
                    value *= silu(zs[j].to(tl.float32))
                h = decay * (h + value[None, :] * Ks[j].to(tl.float32)[:, None])
            else:
                h = decay * h + (step * value)[None, :] * Ks[j].to(tl.float32)[:, None]
            whole += step
    index = row * segments + segment
    tl.store(local + index * N * width + n[:, None] * width + d[None, :], h, mask=state_mask)
    tl.store(whole_dt + index * width + d, whole, mask=real)


@triton.jit(do_not_specialize=["batch", "segments"])
def pass_kernel(
    local, whole_dt, A, start, last, batch, width, N, segments,
    HAS_START: tl.constexpr, BACKWARD: tl.constexpr, RETURN_LAST: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Replace what each segment adds by the state that enters it, in place, one segment after the other."""
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
    for i in range(segments):
        index = row * segments + (segments - 1 - i if BACKWARD else i)
        pointers = local + index * N * width + offsets
        added = tl.load(pointers, mask=mask, other=0.0)
        decay = tl.exp2(tl.load(whole_dt + index * width + d, mask=real, other=0.0)[None, :] * rate)
        tl.store(pointers, h, mask=mask)
        h = h * decay + added
    if RETURN_LAST:
        tl.store(last + row * N * width + offsets, h, mask=mask)


@triton.jit(do_not_specialize=VARYING)
def backward_kernel(
    x, dt, A, B, C, D, z, bias, lengths, states, ungated, dy, dlast,
    dx, ddt, dB, dC, dz, dstart, dA, sums,
    batch, L, width, N, tiles_a_group, width_a_group, blocks_a_segment, segments, blocks, scale,
    x_b, x_l, dt_b, dt_l, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, dy_b, dy_l,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, HAS_DLAST: tl.constexpr, RETURN_DSTART: tl.constexpr,
    STEPS: tl.constexpr, OFFSET: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of channels, block by block from the last to the first.

    dx: (direction, b, l, d). ddt: (b, l, direction d). dB, dC: (b, l, direction g, tile, n) partial sums over channels.
    dA: (direction, b, segment, n, d). sums: (direction, b, segment, 2, d), those of dt_bias and D.
    """
    program = tl.program_id(0)
    segment = tl.program_id(1)
    direction, b, group, tile, d, real, reverse = place(
        program, segment, batch, width, tiles_a_group, width_a_group, REVERSE, BD
    )
    directions = tl.num_programs(0) // (tiles_a_group * (width // width_a_group) * batch)
    length = L
    if HAS_LENGTHS:
        length = tl.load(lengths + b).to(tl.int32)
    n = tl.arange(0, BN)
    groups = width // width_a_group
    full_group = direction * groups + group
    x += b * x_b + d
    dt += b * dt_b + direction * width + d
    B += b * B_b + full_group * B_g + n
    C += b * C_b + full_group * C_g + n
    dy += b * dy_b + d
    row = direction * batch + b
    dx += row * L * width + d
    ddt += b * L * directions * width + direction * width + d
    matrix_row = directions * groups * tiles_a_group * N
    dB += b * L * matrix_row + (full_group * tiles_a_group + tile) * N + n
    dC += b * L * matrix_row + (full_group * tiles_a_group + tile) * N + n
    state_offsets = n[:, None] * width + d[None, :]
    state_mask = (n < N)[:, None] & real[None, :]
    rate = tl.load(A + direction * width * N + d[None, :] * N + n[:, None], mask=state_mask, other=0.0).to(tl.float32)
    rate *= LOG2_E
    shift = tl.zeros((BD,), dtype=tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + direction * width + d, mask=real, other=0.0).to(tl.float32)
    skip = tl.zeros((BD,), dtype=tl.float32)
    if HAS_D:
        skip = tl.load(D + d, mask=real, other=0.0).to(tl.float32)
    if HAS_Z:
        z += b * z_b + d
    carry = tl.zeros((BN, BD), dtype=tl.float32)
    if HAS_DLAST:
        carry = tl.load(dlast + (row * segments + segment) * N * width + state_offsets, mask=state_mask, other=0.0)
    sum_A = tl.zeros((BN, BD), dtype=tl.float32)
    sum_shift = tl.zeros((BD,), dtype=tl.float32)
    sum_D = tl.zeros((BD,), dtype=tl.float32)
    first = segment * blocks_a_segment
    stop = tl.minimum(first + blocks_a_segment, blocks)
    used = tl.minimum(stop, (length + STEPS - 1) // STEPS)
    for i in range(first, used):
        block = used - 1 - (i - first)
        h = tl.load(states + (row * blocks + block) * N * width + state_offsets, mask=state_mask, other=0.0)
        h = h.to(tl.float32)
        xs = ()
        raws = ()
        Bs = ()
        Cs = ()
        gs = ()
        zs = ()
        for k in tl.static_range(STEPS):
            s = block * STEPS + k
            ok = s < length
            pos = tl.where(reverse != 0, length - 1 - s, s).to(OFFSET)
            xs = xs + (tl.load(x + pos * x_l, mask=masked(real, ok), other=0.0),)
            raws = raws + (tl.load(dt + pos * dt_l, mask=masked(real, ok), other=0.0),)
            Bs = Bs + (tl.load(B + pos * B_l, mask=masked(n < N, ok), other=0.0),)
            Cs = Cs + (tl.load(C + pos * C_l, mask=masked(n < N, ok), other=0.0),)
            gs = gs + (tl.load(dy + pos * dy_l, mask=masked(real, ok), other=0.0),)
            if HAS_Z:
                zs = zs + (tl.load(z + pos * z_l, mask=masked(real, ok), other=0.0),)
        hs = ()
        steps = ()
        for k in tl.static_range(STEPS):
            ok = block * STEPS + k < length
            step = tl.where(ok, step_size(raws[k].to(tl.float32) + shift, SOFTPLUS), 0.0)
            steps = steps + (step,)
            h = (
                tl.exp2(step[None, :] * rate) * h
                + (step * xs[k].to(tl.float32))[None, :] * Bs[k].to(tl.float32)[:, None]
            )
            hs = hs + (h,)
        for k in tl.static_range(STEPS - 1, -1, -1):
            s = block * STEPS + k
            ok = s < length
            pos = tl.where(ok & (reverse != 0), length - 1 - s, s).to(OFFSET)
            g = gs[k].to(tl.float32)
            u = xs[k].to(tl.float32)
            if HAS_Z:
                Z = zs[k].to(tl.float32)
                sigmoid = 1.0 / (1.0 + tl.exp(-Z))
                if direction == 0:
                    own = b * L * width + pos * width + d
                    before = tl.load(ungated + own, mask=masked(real, ok), other=0.0).to(tl.float32)
                    tl.store(dz + own, g * before * sigmoid * (1.0 + Z * (1.0 - sigmoid)), mask=masked(real, s < L))
                g *= Z * sigmoid
            dout = g * scale
            step = steps[k]
            B_k = Bs[k].to(tl.float32)[:, None]
            tl.store(dC + pos * matrix_row, tl.sum(hs[k] * dout[None, :], 1), mask=masked(n < N, s < L))
            dh = carry + Cs[k].to(tl.float32)[:, None] * dout[None, :]
            wide_u = step * u
            tl.store(dB + pos * matrix_row, tl.sum(dh * wide_u[None, :], 1), mask=masked(n < N, s < L))
            du = tl.sum(dh * B_k, 0)
            # decay_t h_{t-1} is h_t without what t added
            W = dh * (hs[k] - wide_u[None, :] * B_k)
            sum_A += W * step[None, :]
            dstep = tl.sum(W * rate, 0) * LN_2 + du * u
            if SOFTPLUS:
                dstep *= 1.0 / (1.0 + tl.exp(-(raws[k].to(tl.float32) + shift)))
            dstep = tl.where(ok, dstep, 0.0)
            sum_shift += dstep
            tl.store(ddt + pos * directions * width, dstep, mask=masked(real, s < L))
            dx_k = du * step
            if HAS_D:
                if direction == 0:
                    dx_k += skip * g
                sum_D += tl.where(ok, g * u, 0.0)
            tl.store(dx + pos * width, tl.where(ok, dx_k, 0.0), mask=masked(real, s < L))
            carry = tl.exp2(step[None, :] * rate) * dh
    for block in range(tl.maximum(used, first), stop):
        for k in range(STEPS):
            s = block * STEPS + k
            pos = tl.where(s < L, s, 0).to(OFFSET)
            nothing = tl.zeros((BD,), dtype=tl.float32)
            tl.store(dx + pos * width, nothing, mask=masked(real, s < L))
            tl.store(ddt + pos * directions * width, nothing, mask=masked(real, s < L))
            if HAS_Z:
                if direction == 0:
                    tl.store(dz + b * L * width + pos * width + d, nothing, mask=masked(real, s < L))
            tl.store(dB + pos * matrix_row, tl.zeros((BN,), dtype=tl.float32), mask=masked(n < N, s < L))
            tl.store(dC + pos * matrix_row, tl.zeros((BN,), dtype=tl.float32), mask=masked(n < N, s < L))
    index = row * segments + segment
    tl.store(dA + index * N * width + state_offsets, sum_A, mask=state_mask)
    tl.store(sums + index * 2 * width + d, sum_shift, mask=real)
    tl.store(sums + (index * 2 + 1) * width + d, tl.where(direction == 0, sum_D, 0.0), mask=real)
    if RETURN_DSTART and segment == 0:
        tl.store(dstart + row * N * width + state_offsets, carry, mask=state_mask)
