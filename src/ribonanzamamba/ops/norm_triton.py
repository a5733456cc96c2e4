"""Launches the kernels of `norm_kernels.py`, with their gradient, and as operators that torch.compile sees as one
node. Needs Triton; `backend.py` says when it can run."""

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribonanzamamba.ops import norm_kernels as kernels
from ribonanzamamba.ops.backend import device_of, processors

ELEMENTS = 4096
"""Of a tile."""
PROGRAMS = 4
"""For each multiprocessor, that add up the gradient of the gain."""


def tile_of(x: Tensor) -> tuple[int, int]:
    """Rows and channels."""
    channels = triton.next_power_of_2(x.shape[-1])
    return max(1, ELEMENTS // channels), channels


def row_strides(x: Tensor) -> tuple[int, int, int] | None:
    """Rows of the second last axis, and the strides of the axes before it, taken as one, and of it; None where that
    cannot be said."""
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        return None
    if x.dim() < 3:
        return 1, x.stride(0) if x.dim() == 2 else 0, 0
    axes = [(size, stride) for size, stride in zip(x.shape[:-2], x.stride()[:-2], strict=True) if size > 1]
    for (_, outer), (size, stride) in zip(axes, axes[1:], strict=False):
        if outer != size * stride:
            return None
    return x.shape[-2], axes[-1][1] if axes else 0, x.stride(-2)


def normed(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, (tile, channels) = x.numel() // x.shape[-1], tile_of(x)
    with device_of(x):
        kernels.forward_kernel[(triton.cdiv(rows, tile),)](
            x, gain, y, rows, *row_strides(x), x.shape[-1], eps, BR=tile, BC=channels, num_warps=4
        )  # fmt: skip
    return y


def gradients(dy: Tensor, x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Of x, dense, and of the gain (c,) in float32."""
    rows, (tile, channels) = x.numel() // x.shape[-1], tile_of(x)
    programs = min(triton.cdiv(rows, tile), PROGRAMS * processors(x.device))
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sums = x.new_empty((programs, x.shape[-1]), dtype=torch.float32)
    with device_of(x):
        kernels.backward_kernel[(programs,)](
            dy, x, gain, dx, sums, rows, *row_strides(x), x.shape[-1], eps, BR=tile, BC=channels, num_warps=4
        )  # fmt: skip
    return dx, sums.sum(0)


normed_operator = torch.library.custom_op("ribonanzamamba::rms_norm", normed, mutates_args=())
gradients_operator = torch.library.custom_op("ribonanzamamba::rms_norm_gradients", gradients, mutates_args=())


@normed_operator.register_fake
def _(x, gain, eps):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@gradients_operator.register_fake
def _(dy, x, gain, eps):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), gain.new_empty(gain.shape, dtype=torch.float32)


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain, eps):
        ctx.save_for_backward(x, gain)
        ctx.eps = eps
        return (normed_operator if torch.compiler.is_compiling() else normed)(x, gain, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        operator = gradients_operator if torch.compiler.is_compiling() else gradients
        dx, dgain = operator(dy.contiguous(), *ctx.saved_tensors, ctx.eps)
        return dx, dgain.to(ctx.saved_tensors[1].dtype), None


def rms_norm_triton(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """As `rms_norm`."""
    return Norm.apply(x if row_strides(x) is not None else x.contiguous(), gain.contiguous(), eps)
