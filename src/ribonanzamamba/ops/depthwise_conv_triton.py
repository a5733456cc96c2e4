"""Launches the kernels of `depthwise_conv_kernels.py`, with their gradient, and as operators that torch.compile sees as
one node. A launch needs Triton; `backend.py` says when it can run."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribonanzamamba.ops.backend import as_seen, cdiv, device_of, on_launch

WIDTHS = (128, 64, 32)
"""Channels a program."""
POSITIONS = (16, 8, 4)
"""Of a run: longer ones load fewer rows twice, shorter ones waste fewer where a sequence ends."""
PROGRAMS = 1024
"""Of a backward pass, about and at most: each leaves a part of the sums over positions, and walks tiles until all are
done."""
SUM_TILE = (256, 16)
"""Parts and channels that a program adds up at a time."""


kernels = on_launch("depthwise_conv_kernels")


class Plan(NamedTuple):
    """How a convolution is cut into programs. A program has as many threads as channels: each thread loads the taps of
    one of them, for all runs."""

    runs: int
    """Of a row."""
    tiles: int
    """Of the runs of all rows."""
    channel_tiles: int
    vector: int
    """Neighbouring channels of a thread, and so runs of a tile."""
    positions: int
    """Of a run."""
    width: int
    """Channels of a tile."""
    ahead: int
    """Steps between a row's load and its first use."""

    @property
    def options(self) -> dict[str, int]:
        return dict(S=self.vector, T=self.positions, BD=self.width, AHEAD=self.ahead, num_warps=self.width // 32)


@functools.lru_cache(maxsize=1024)
def planned(batch: int, length: int, width: int, taps: int) -> Plan:
    # the backward pass holds four numbers a tap and channel: tap, sum, row of x and row of the gradient
    vector, ahead = (4, 4) if taps <= 5 else (4, 2) if taps <= 8 else (2, 2)
    # the fewest rows to walk, the fewest channels to cover
    positions = min(POSITIONS, key=lambda T: cdiv(length, T) * (T + taps - 1))
    BD = min(WIDTHS, key=lambda BD: cdiv(width, BD) * BD)
    runs = cdiv(length, positions)
    return Plan(runs, cdiv(batch * runs, vector), cdiv(width, BD), vector, positions, BD, ahead)


def strides(tensors: Sequence[Tensor], vector: int) -> tuple[int, list[int]]:
    """How many channels of these (b, l, d) are loaded and stored at once, vector or 1, and their strides along b and l
    in this unit."""
    numbers = [stride for tensor in tensors for stride in tensor.stride()[:2]]
    if any(number % vector for number in (tensors[0].shape[2], *numbers)):
        return 1, numbers
    return vector, [number // vector for number in numbers]


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, left: int, silu: bool,
    *, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(b, l, d), written to `out` where there is one: any strides along b and l, 1 along d."""
    batch, length, width = x.shape
    y = x.new_empty(x.shape) if out is None else out
    plan = planned(batch, length, width, weight.shape[1])
    vector, steps = strides((x, y), plan.vector)
    with device_of(x):
        kernels().forward_kernel[(plan.tiles * plan.channel_tiles,)](
            x, weight, bias, lengths, y, batch, length, plan.runs, left, width // vector, *steps, *weight.stride(),
            K=weight.shape[1], HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None, SILU=silu, VECTOR=vector,
            **plan.options,
        )  # fmt: skip
    return y


def gradients(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, left: int, silu: bool,
    *, out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, written to `out` where there is one, of the taps (d, K) and of the bias (d,), these two in
    float32, the last also where there is none."""
    batch, length, width = x.shape
    taps = weight.shape[1]
    dx = x.new_empty(x.shape) if out is None else out
    plan = planned(batch, length, width, taps)
    vector, steps = strides((x, dy, dx), plan.vector)
    tiles_a_program = cdiv(plan.tiles, cdiv(PROGRAMS, plan.channel_tiles))
    parts = cdiv(plan.tiles, tiles_a_program)
    sums = x.new_empty((parts, taps + 1, width), dtype=torch.float32)
    dweight = x.new_empty((width, taps), dtype=torch.float32)
    dbias = x.new_empty(width, dtype=torch.float32)
    BP, BD = SUM_TILE
    with device_of(x):
        kernels().backward_kernel[(parts * plan.channel_tiles,)](
            x, weight, bias, lengths, dy, dx, sums, batch, length, plan.runs, plan.tiles, width // vector, *steps,
            *weight.stride(), K=taps, LEFT=left, HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None, SILU=silu,
            VECTOR=vector, **plan.options,
        )  # fmt: skip
        kernels().sum_kernel[(cdiv(width, BD), taps + 1)](
            sums, dweight, dbias, parts, width // vector, K=taps, VECTOR=vector, BP=BP, BD=BD, num_warps=4
        )
    return dx, dweight, dbias


def convolve_apart(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, left: int, silu: bool
) -> Tensor:
    return convolve(x, weight, bias, lengths, left, silu)


def gradients_apart(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, left: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return gradients(dy, x, weight, bias, lengths, left, silu)


convolve_operator = torch.library.custom_op("ribonanzamamba::depthwise_conv", convolve_apart, mutates_args=())
gradients_operator = torch.library.custom_op(
    "ribonanzamamba::depthwise_conv_gradients", gradients_apart, mutates_args=()
)


@convolve_operator.register_fake
def _(x, weight, bias, lengths, left, silu):
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
        return operator(x, weight, bias, lengths, left, silu)

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
