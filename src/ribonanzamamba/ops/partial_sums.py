"""Sums of what the programs of a backward pass left apart, all of them in one launch, in a fixed order."""

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
    sizes, tiles, ends = [], [], []
    for source, _, axis in sums:
        shape = source.shape
        outer, count, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
        BK = min(next_power_of_2(count), MOST_TERMS_AT_ONCE)
        BI = min(next_power_of_2(inner), TILE // BK)
        BO = min(next_power_of_2(outer), TILE // (BK * BI))
        sizes.append((outer, count, inner))
        tiles.append((BO, BK, BI))
        ends.append((ends[-1] if ends else 0) + cdiv(outer, BO) * cdiv(inner, BI))
    # what is not there is never reached
    more = SUMS - len(sums)
    sums = [*sums, *[sums[0]] * more]
    sizes, tiles, ends = sizes + [(1, 1, 1)] * more, tiles + [(1, 1, 1)] * more, ends + [ends[-1]] * more
    with device_of(sums[0][0]):
        kernels().sums_kernel[(ends[-1],)](
            *[source for source, _, _ in sums], *[out for _, out, _ in sums], *ends,
            *[size[k] for k in range(3) for size in sizes], *[tile[k] for k in range(3) for tile in tiles],
            num_warps=4,
        )  # fmt: skip
