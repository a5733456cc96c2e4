"""Triton kernels of `pair.py`, forward and backward, and nothing else; `pair_triton.py` launches them.

A map of pairs is (b, l, l, c), dense; a tile holds some of its cells with all channels. Everything is computed in
float32, products of matrices in the type of the operands (DOT). Sums over all cells are partial sums of each program,
which the launcher adds up: no atomics.
"""

import triton
import triton.language as tl

from ribonanzamamba.ops.ssd_kernels import sigmoid, silu


@triton.jit
def present_at(present, position, length):
    """Whether positions of one row are there, False outside."""
    return tl.load(present + position, mask=position < length, other=0) != 0


@triton.jit
def tile_of(base, rows, channels, C, real):
    """(rows, channels) in float32, 0 where not real."""
    return tl.load(base + rows[:, None] * C + channels[None, :], mask=real, other=0.0).to(tl.float32)


@triton.jit
def vector_of(base, channels, C):
    return tl.load(base + channels, mask=channels < C, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["L"])
def outer_forward_kernel(
    pair, projected, gain, present, summed, normed, L, C, eps, BJ: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """summed = pair + left_i right_j + row_i + column_j; normed = its masked RMS norm."""
    tiles = tl.cdiv(L, BJ)
    i = tl.program_id(0) // tiles
    j = tl.program_id(0) % tiles * BJ + tl.arange(0, BJ)
    b = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BC)
    real = (j < L)[:, None] & (c < C)[None, :]
    projected += b * L * 4 * C
    at_i, at_j = projected + i.to(tl.int64) * 4 * C, projected + j[:, None].to(tl.int64) * 4 * C + c[None, :]
    left, row = vector_of(at_i, c, C), vector_of(at_i + 2 * C, c, C)
    right = tl.load(at_j + C, mask=real, other=0.0).to(tl.float32)
    column = tl.load(at_j + 3 * C, mask=real, other=0.0).to(tl.float32)
    cells = (b * L + i) * L * C + j[:, None].to(tl.int64) * C + c[None, :]
    out = tl.load(pair + cells, mask=real, other=0.0).to(tl.float32) + left[None, :] * right + row[None, :] + column
    # the backward pass sees the rounded sum, so the norm is of it
    out = out.to(summed.dtype.element_ty)
    tl.store(summed + cells, out, mask=real)
    out = out.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(out * out, 1) / C + eps)
    there = present_at(present + b * L, j, L) & (tl.load(present + b * L + i) != 0)
    out = out * tl.where(there, inverse, 0.0)[:, None] * vector_of(gain, c, C)[None, :]
    tl.store(normed + cells, out, mask=real)


@triton.jit(do_not_specialize=["L"])
def outer_backward_kernel(
    dsummed, dnormed, summed, projected, gain, present, dpair, dprojected, dgain, L, C, eps,
    BJ: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradient of the map, of left and row, and partial sums (b l, c) of that of the gain; a program has one i."""
    i = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BC)
    g = vector_of(gain, c, C)
    at_i = (b * L + i) * 4 * C
    here = tl.load(present + b * L + i).to(tl.float32)
    dleft, drow, sums = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    for start in range(0, L, BJ):
        j = start + tl.arange(0, BJ)
        real = (j < L)[:, None] & (c < C)[None, :]
        cells = (b * L + i) * L * C + j[:, None].to(tl.int64) * C + c[None, :]
        p = tl.load(summed + cells, mask=real, other=0.0).to(tl.float32)
        there = present_at(present + b * L, j, L)[:, None]
        dn = tl.load(dnormed + cells, mask=real & there, other=0.0).to(tl.float32)
        dn = tl.where(here > 0, dn, 0.0)
        inverse = tl.rsqrt(tl.sum(p * p, 1) / C + eps)[:, None]
        n = p * inverse
        sums += tl.sum(dn * n, 0)
        dn *= g[None, :]
        d = inverse * (dn - n * (tl.sum(dn * n, 1) / C)[:, None])
        d += tl.load(dsummed + cells, mask=real, other=0.0).to(tl.float32)
        d = d.to(dpair.dtype.element_ty)
        tl.store(dpair + cells, d, mask=real)
        d = d.to(tl.float32)
        right = tl.load(
            projected + (b * L + j[:, None]) * 4 * C + C + c[None, :], mask=real, other=0.0
        ).to(tl.float32)  # fmt: skip
        dleft += tl.sum(d * right, 0)
        drow += tl.sum(d, 0)
    tl.store(dprojected + at_i + c, dleft, mask=c < C)
    tl.store(dprojected + at_i + 2 * C + c, drow, mask=c < C)
    tl.store(dgain + (b * L + i) * C + c, sums, mask=c < C)


@triton.jit(do_not_specialize=["L"])
def outer_columns_kernel(dpair, projected, dprojected, L, C, BI: tl.constexpr, BJ: tl.constexpr, BC: tl.constexpr):
    """Gradient of right and column from that of the map: sums over i."""
    b = tl.program_id(1).to(tl.int64)
    # cells of some j beside each other, all channels of one behind the other
    k = tl.arange(0, BJ * BC)
    j, c = tl.program_id(0) * BJ + k // BC, k % BC
    inside = (j < L) & (c < C)
    dright, dcolumn = tl.zeros((BJ * BC,), tl.float32), tl.zeros((BJ * BC,), tl.float32)
    for start in range(0, L, BI):
        i = start + tl.arange(0, BI)
        real = (i < L)[:, None] & inside[None, :]
        cells = (b * L + i[:, None]) * L * C + (j * C + c)[None, :]
        d = tl.load(dpair + cells, mask=real, other=0.0).to(tl.float32)
        left = tl.load(projected + (b * L + i[:, None]) * 4 * C + c[None, :], mask=real, other=0.0).to(tl.float32)
        dright += tl.sum(d * left, 0)
        dcolumn += tl.sum(d, 0)
    out = dprojected + (b * L + j) * 4 * C + c
    tl.store(out + C, dright, mask=inside)
    tl.store(out + 3 * C, dcolumn, mask=inside)


@triton.jit(do_not_specialize=["N"])
def gated_forward_kernel(
    pair, hidden, hidden_bias, weight, bias, out, N, C,
    DOT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """pair + W (value silu(gate)) + bias of BM cells; value and gate are the halves of hidden + hidden_bias."""
    cell = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.arange(0, BC)
    real = (cell < N)[:, None] & (c < C)[None, :]
    value = tile_of(hidden, cell, c, 2 * C, real) + vector_of(hidden_bias, c, C)[None, :]
    gate = tile_of(hidden + C, cell, c, 2 * C, real) + vector_of(hidden_bias + C, c, C)[None, :]
    gated = (value * silu(gate)).to(DOT)
    square = (c < C)[:, None] & (c < C)[None, :]
    turned = tl.load(weight + c[None, :] * C + c[:, None], mask=square, other=0.0).to(DOT)
    y = tl.dot(gated, turned, input_precision=PRECISION)
    y += vector_of(bias, c, C)[None, :] + tile_of(pair, cell, c, C, real)
    tl.store(out + cell[:, None] * C + c[None, :], y, mask=real)


@triton.jit(do_not_specialize=["N"])
def gated_backward_kernel(
    dout, hidden, hidden_bias, weight, dhidden, sums, N, C,
    DOT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradient of hidden; partial sums (program, c c + 3 c): those of the weight, its bias, and the bias of hidden."""
    c = tl.arange(0, BC)
    square = (c < C)[:, None] & (c < C)[None, :]
    w = tl.load(weight + c[:, None] * C + c[None, :], mask=square, other=0.0).to(DOT)
    bias_v, bias_g = vector_of(hidden_bias, c, C)[None, :], vector_of(hidden_bias + C, c, C)[None, :]
    dweight = tl.zeros((BC, BC), tl.float32)
    dbias, dbias_v, dbias_g = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(N, BM), tl.num_programs(0)):
        cell = tile * BM + tl.arange(0, BM).to(tl.int64)
        real = (cell < N)[:, None] & (c < C)[None, :]
        dy = tile_of(dout, cell, c, C, real)
        value = tile_of(hidden, cell, c, 2 * C, real) + bias_v
        gate = tile_of(hidden + C, cell, c, 2 * C, real) + bias_g
        share = sigmoid(gate)
        dbias += tl.sum(dy, 0)
        dweight += tl.dot(tl.trans(dy).to(DOT), (value * gate * share).to(DOT), input_precision=PRECISION)
        dgated = tl.dot(dy.to(DOT), w, input_precision=PRECISION)
        dvalue = tl.where(real, dgated * gate * share, 0.0)
        dgate = tl.where(real, dgated * value * share * (1.0 + gate * (1.0 - share)), 0.0)
        dbias_v += tl.sum(dvalue, 0)
        dbias_g += tl.sum(dgate, 0)
        into = dhidden + cell[:, None] * 2 * C + c[None, :]
        tl.store(into, dvalue, mask=real)
        tl.store(into + C, dgate, mask=real)
    sums += tl.program_id(0).to(tl.int64) * (C * C + 3 * C)
    tl.store(sums + c[:, None] * C + c[None, :], dweight, mask=square)
    sums += C * C + c
    tl.store(sums, dbias, mask=c < C)
    tl.store(sums + C, dbias_v, mask=c < C)
    tl.store(sums + 2 * C, dbias_g, mask=c < C)


@triton.jit(do_not_specialize=["L"])
def heads_forward_kernel(
    pair, weight, present, out, L, C, H, eps, fill,
    DOT: tl.constexpr, PRECISION: tl.constexpr, BJ: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """out[b, h, i, j] = weight[h] . pair[b, i, j] / rms(pair[b, i, j]), `fill` where j is not there."""
    tiles = tl.cdiv(L, BJ)
    i = tl.program_id(0) // tiles
    j = tl.program_id(0) % tiles * BJ + tl.arange(0, BJ)
    b = tl.program_id(1).to(tl.int64)
    c, h = tl.arange(0, BC), tl.arange(0, BH)
    p = tile_of(pair + (b * L + i) * L * C, j.to(tl.int64), c, C, (j < L)[:, None] & (c < C)[None, :])
    w = tl.load(weight + h[:, None] * C + c[None, :], mask=(h < H)[:, None] & (c < C)[None, :], other=0.0).to(DOT)
    inverse = tl.rsqrt(tl.sum(p * p, 1) / C + eps)
    y = tl.dot(w, tl.trans(p).to(DOT), input_precision=PRECISION) * inverse[None, :]
    y = tl.where(present_at(present + b * L, j, L)[None, :], y, fill)
    offsets = ((b * H + h[:, None]) * L + i) * L + j[None, :]
    tl.store(out + offsets, y, mask=(h < H)[:, None] & (j < L)[None, :])


@triton.jit(do_not_specialize=["L", "rows"])
def heads_backward_kernel(
    dout, pair, weight, present, dpair, sums, L, C, H, rows, eps,
    DOT: tl.constexpr, PRECISION: tl.constexpr, BJ: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Gradient of the map; partial sums (program, h, c) of that of the weight. `rows` is b l."""
    c, h = tl.arange(0, BC), tl.arange(0, BH)
    both = (h < H)[:, None] & (c < C)[None, :]
    w = tl.load(weight + h[:, None] * C + c[None, :], mask=both, other=0.0).to(DOT)
    dweight = tl.zeros((BH, BC), tl.float32)
    tiles = tl.cdiv(L, BJ)
    for tile in range(tl.program_id(0), rows * tiles, tl.num_programs(0)):
        row = (tile // tiles).to(tl.int64)
        b, i = row // L, row % L
        j = tile % tiles * BJ + tl.arange(0, BJ)
        real = (j < L)[:, None] & (c < C)[None, :]
        p = tile_of(pair + row * L * C, j.to(tl.int64), c, C, real)
        there = present_at(present + b * L, j, L)
        offsets = ((b * H + h[:, None]) * L + i) * L + j[None, :]
        d = tl.load(dout + offsets, mask=(h < H)[:, None] & there[None, :], other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(p * p, 1) / C + eps)
        g = tl.dot(tl.trans(d).to(DOT), w, input_precision=PRECISION) * inverse[:, None]
        n = p * inverse[:, None]
        dp = g - n * (tl.sum(n * g, 1) / C)[:, None]
        tl.store(dpair + row * L * C + j[:, None].to(tl.int64) * C + c[None, :], dp, mask=real)
        dweight += tl.dot(d.to(DOT), n.to(DOT), input_precision=PRECISION)
    tl.store(sums + (tl.program_id(0) * H + h[:, None]) * C + c[None, :], dweight, mask=both)
