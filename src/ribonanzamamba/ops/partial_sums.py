"""Sums of what the programs of a backward pass left apart, all of them in one launch, in a fixed order."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ribonanzamamba.ops.backend import cdiv, device_of, next_power_of_2, on_launch

TILE = 2048
"""Numbers a program holds at a time."""
MOST_TERMS_AT_ONCE = 128
"""Of one sum: loads that are under way together."""
MANY, MANY_TILE = 2**18, 1024
"""Sums for whose sake a thread adds up its own, tile by tile: enough tiles for the whole GPU, and nothing to exchange
between threads."""
MOST_TERMS = 1024
"""Of a sum in one program, which adds them one load after the other: longer ones are PyTorch's, which divides them."""
SUMS = 4
"""Of one launch."""


kernels = on_launch("partial_sums_kernels")


class Plan(NamedTuple):
    """How some sums are computed."""

    shapes: tuple[tuple[int, ...] | None, ...]
    """Of each result of the launch; None where a sum is not part of it."""
    programs: int
    numbers: tuple[int, ...]
    """The kernel's arguments behind its tensors: where each sum's programs end, its sizes and its tiles."""


def sum_parts(parts: Sequence[tuple[Tensor, int, torch.dtype]]) -> list[Tensor]:
    """For each (tensor, axis, dtype) the sum over that axis in float32, rounded once to dtype; tensors are contiguous,
    at most SUMS of them. An axis of one term is only taken away."""
    cut = planned(tuple([(tensor.shape, axis) for tensor, axis, _ in parts]))
    results, sources, outs = [], [], []
    for (tensor, axis, dtype), shape in zip(parts, cut.shapes, strict=True):
        if shape is not None:
            result = tensor.new_empty(shape, dtype=dtype)
            sources.append(tensor)
            outs.append(result)
        elif tensor.shape[axis] == 1:
            result = tensor.squeeze(axis).to(dtype)
        else:
            result = tensor.sum(axis, dtype=torch.float32).to(dtype)
        results.append(result)
    if sources:
        launch(sources, outs, cut)
    return results


def launch(sources: list[Tensor], outs: list[Tensor], cut: Plan) -> None:
    """Write the sum of each source to its out."""
    # what is not there is never reached
    missing = SUMS - len(sources)
    sources, outs = sources + sources[:1] * missing, outs + outs[:1] * missing
    with device_of(sources[0]):
        kernels().sums_kernel[(cut.programs,)](*sources, *outs, *cut.numbers, num_warps=4)


@functools.lru_cache(maxsize=1024)
def planned(sums: tuple[tuple[torch.Size, int], ...]) -> Plan:
    """Which of these sums over an axis one launch computes, and its tiles."""
    shapes, columns, end = [], [], 0
    for shape, axis in sums:
        before, count, after = tuple(shape[:axis]), shape[axis], tuple(shape[axis + 1 :])
        if not (1 < count <= MOST_TERMS and shape.numel()):
            shapes.append(None)
            continue
        shapes.append(before + after)
        outer, inner = math.prod(before), math.prod(after)
        many = outer * inner >= MANY
        BK = 1 if many else min(next_power_of_2(count), MOST_TERMS_AT_ONCE)
        tile = MANY_TILE if many else TILE // BK
        BI = min(next_power_of_2(inner), tile)
        BO = min(next_power_of_2(outer), tile // BI)
        end += cdiv(outer, BO) * cdiv(inner, BI)
        columns.append((end, outer, count, inner, BO, BK, BI))
    columns += [(end, 1, 1, 1, 1, 1, 1)] * (SUMS - len(columns))
    return Plan(tuple(shapes), end, tuple(number for row in zip(*columns, strict=True) for number in row))
