"""Launches the kernels of `depthwise_conv_kernels.py`, with their gradient, and as operators that torch.compile sees as
one node. A launch needs Triton; `backend.py` says when it can run."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribonanzamamba.ops.backend import as_seen, cdiv, device_of, on_launch

ROWS, CHANNELS = 32, 64
"""Positions and channels a program."""


kernels = on_launch("depthwise_conv_kernels")


def grid(x: Tensor) -> tuple[int, int, int]:
    batch, length, width = x.shape
    return cdiv(length, ROWS), cdiv(width, CHANNELS), batch


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, left: int, silu: bool, flip: bool
) -> Tensor:  # fmt: skip
    y = x.new_empty(x.shape)
    with device_of(x):
        kernels().forward_kernel[grid(x)](
            x, weight, bias, lengths, y, x.shape[1], x.shape[2], left, *x.stride()[:2], *weight.stride(),
            K=weight.shape[1], FLIP=flip, HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None, SILU=silu,
            BL=ROWS, BD=CHANNELS, num_warps=4,
        )  # fmt: skip
    return y


def gradients(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, left: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, the taps (d, K) and the bias (d,) in float32, the last also where there is none."""
    taps = weight.shape[1]
    dbefore = x.new_empty(x.shape if silu else 0)
    rows, _, batch = grid(x)
    sums = x.new_empty((batch * rows, taps + 1, x.shape[2]), dtype=torch.float32)
    with device_of(x):
        kernels().backward_kernel[grid(x)](
            x, weight, bias, lengths, dy, dbefore, sums, x.shape[1], x.shape[2], left, *x.stride()[:2],
            *dy.stride()[:2], *weight.stride(), K=taps, HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None,
            SILU=silu, BL=ROWS, BD=CHANNELS, num_warps=4,
        )  # fmt: skip
    dx = convolve(dbefore if silu else dy, weight, None, lengths, taps - 1 - left, False, True)
    sums = sums.sum(0)
    return dx, sums[:taps].T.contiguous(), sums[taps].clone()


convolve_operator = torch.library.custom_op("ribonanzamamba::depthwise_conv", convolve, mutates_args=())
gradients_operator = torch.library.custom_op("ribonanzamamba::depthwise_conv_gradients", gradients, mutates_args=())


@convolve_operator.register_fake
def _(x, weight, bias, lengths, left, silu, flip):
    return x.new_empty(x.shape)


@gradients_operator.register_fake
def _(dy, x, weight, bias, lengths, left, silu):
    wide = torch.float32
    return x.new_empty(x.shape), x.new_empty(weight.shape, dtype=wide), x.new_empty(weight.shape[0], dtype=wide)


class DepthwiseConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, lengths, left, silu):
        operator = as_seen(convolve, convolve_operator)
        ctx.save_for_backward(x, weight, bias, lengths)
        ctx.options = left, silu
        return operator(x, weight, bias, lengths, left, silu, False)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias, lengths = ctx.saved_tensors
        operator = as_seen(gradients, gradients_operator)
        if dy.stride(-1) != 1:
            dy = dy.contiguous()
        dx, dweight, dbias = operator(dy, x, weight, bias, lengths, *ctx.options)
        return dx, dweight.to(weight.dtype), None if bias is None else dbias.to(bias.dtype), None, None, None


def depthwise_conv_triton(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, left: int, silu: bool, lengths: Tensor | None
) -> Tensor:
    """As `depthwise_conv1d`."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return DepthwiseConvolution.apply(x, weight, bias, lengths, left, silu)
