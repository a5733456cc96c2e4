"""Sums of what the programs of a backward pass left apart, all of them in one launch, in a fixed order."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ribonanzamamba.ops.backend import cdiv, device_of, next_power_of_2, on_launch

TILE = 2048
"""Numbers a program holds at a time."""
MOST_TERMS_AT_ONCE = 32
"""Of one sum: loads that are under way together."""
MOST_TERMS = 1024
"""Of a sum in one program, which adds them one load after the other: longer ones are PyTorch's, which divides them."""
SUMS = 4
"""Of one launch."""


kernels = on_launch("partial_sums_kernels")


def sum_parts(parts: Sequence[tuple[Tensor, int, torch.dtype]]) -> list[Tensor]:
    """For each (tensor, axis, dtype) the sum over that axis in float32, rounded once to dtype; tensors are contiguous,
    at most SUMS of them. An axis of one term is only taken away."""
    results: list[Tensor | None] = [None] * len(parts)
    left = []
    for index, (tensor, axis, dtype) in enumerate(parts):
        terms = tensor.shape[axis]
        if terms == 1:
            results[index] = tensor.squeeze(axis).to(dtype)
        elif terms > MOST_TERMS or not tensor.numel():
            results[index] = tensor.sum(axis, dtype=torch.float32).to(dtype)
        else:
            left.append((index, tensor, axis))
            results[index] = tensor.new_empty(tensor.shape[:axis] + tensor.shape[axis + 1 :], dtype=dtype)
    if left:
        launch([(tensor, results[index], axis) for index, tensor, axis in left])
    return results


def launch(sums: Sequence[tuple[Tensor, Tensor, int]]) -> None:
    """Write the sum of each (source, out, axis) to out."""
    programs, numbers = geometry(tuple((source.shape, axis) for source, _, axis in sums))
    # what is not there is never reached
    sums = [*sums, *[sums[0]] * (SUMS - len(sums))]
    with device_of(sums[0][0]):
        kernels().sums_kernel[(programs,)](
            *[source for source, _, _ in sums], *[out for _, out, _ in sums], *numbers, num_warps=4
        )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def geometry(sums: tuple[tuple[torch.Size, int], ...]) -> tuple[int, tuple[int, ...]]:
    """Programs of a launch, and the kernel's arguments behind its tensors: where each sum's programs end, its sizes and
    its tiles."""
    columns, end = [], 0
    for shape, axis in sums:
        outer, count, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
        BK = min(next_power_of_2(count), MOST_TERMS_AT_ONCE)
        BI = min(next_power_of_2(inner), TILE // BK)
        BO = min(next_power_of_2(outer), TILE // (BK * BI))
        end += cdiv(outer, BO) * cdiv(inner, BI)
        columns.append((end, outer, count, inner, BO, BK, BI))
    columns += [(end, 1, 1, 1, 1, 1, 1)] * (SUMS - len(sums))
    return end, tuple(number for row in zip(*columns, strict=True) for number in row)
