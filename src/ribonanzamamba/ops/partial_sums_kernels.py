"""The Triton kernel that adds up what many programs left apart; `partial_sums.py` launches it."""

import triton
import triton.language as tl

VARYING = [f"{name}_{k}" for name in ("end", "outer", "count") for k in range(4)]
"""Numbers that change from batch to batch: a kernel compiled for one value serves all."""


@triton.jit
def sum_axis(source, out, program, outer, count, inner, BO: tl.constexpr, BK: tl.constexpr, BI: tl.constexpr):
    """A tile of out (outer, inner): the sums of source (outer, count, inner) over its middle axis, in float32."""
    inner_tiles = tl.cdiv(inner, BI)
    o = (program // inner_tiles).to(tl.int64) * BO + tl.arange(0, BO)
    i = (program % inner_tiles).to(tl.int64) * BI + tl.arange(0, BI)
    k = tl.arange(0, BK)
    mask = (o < outer)[:, None] & (i < inner)[None, :]
    pointers = source + (o[:, None, None] * count + k[None, :, None]) * inner + i[None, None, :]
    total = tl.zeros((BO, BK, BI), dtype=tl.float32)
    for first in tl.range(0, count, BK, loop_unroll_factor=8 if BK == 1 else 1):
        present = mask[:, None, :] & (k < count - first)[None, :, None]
        total += tl.load(pointers, mask=present, other=0.0).to(tl.float32)
        pointers += tl.cast(inner, tl.int64) * BK
    tl.store(out + o[:, None] * inner + i[None, :], tl.sum(total, 1), mask=mask)


@triton.jit(do_not_specialize=VARYING)
def sums_kernel(
    source_0, source_1, source_2, source_3, out_0, out_1, out_2, out_3, end_0, end_1, end_2, end_3,
    outer_0, outer_1, outer_2, outer_3, count_0, count_1, count_2, count_3, inner_0, inner_1, inner_2, inner_3,
    BO_0: tl.constexpr, BO_1: tl.constexpr, BO_2: tl.constexpr, BO_3: tl.constexpr,
    BK_0: tl.constexpr, BK_1: tl.constexpr, BK_2: tl.constexpr, BK_3: tl.constexpr,
    BI_0: tl.constexpr, BI_1: tl.constexpr, BI_2: tl.constexpr, BI_3: tl.constexpr,
):  # fmt: skip
    """Up to four sums in one launch: programs below end_0 work on the first, those below end_1 on the second, ..."""
    program = tl.program_id(0)
    if program < end_0:
        sum_axis(source_0, out_0, program, outer_0, count_0, inner_0, BO_0, BK_0, BI_0)
    elif program < end_1:
        sum_axis(source_1, out_1, program - end_0, outer_1, count_1, inner_1, BO_1, BK_1, BI_1)
    elif program < end_2:
        sum_axis(source_2, out_2, program - end_1, outer_2, count_2, inner_2, BO_2, BK_2, BI_2)
    else:
        sum_axis(source_3, out_3, program - end_2, outer_3, count_3, inner_3, BO_3, BK_3, BI_3)
