"""Launches the kernels of `pair_kernels.py`, with their gradients, and as operators that torch.compile sees as one
node. A launch needs Triton; `backend.py` says when it can run."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribonanzamamba.ops.backend import as_seen, cdiv, device_of, dot_type, next_power_of_2, on_launch, processors

PROGRAMS = 2
"""For each multiprocessor, of kernels whose programs add up over many tiles."""
CELLS = 64
"""Of a tile."""
HELD = 64 * 64 * 2
"""Bytes of a tile of which the gradients of `gated` still fit into registers."""
COLUMNS = 8
"""Positions j of a program that sums over i."""


kernels = on_launch("pair_kernels")


def width(channels: int) -> int:
    """Of a tile: matrix units take 16 columns at least."""
    return max(16, next_power_of_2(channels))


def cells_of(length: int) -> int:
    """Of a tile within a row: no wider than the row, 16 at least."""
    return min(CELLS, width(length))


def as_bytes(present: Tensor) -> Tensor:
    """The same memory of a dense mask, as kernels read it. Inside the operators: PyTorch 2.11 does not compile it."""
    return present.view(torch.uint8)


def few(tiles: int, device: torch.device) -> int:
    """Programs that share the tiles."""
    return min(tiles, PROGRAMS * processors(device))


def outer(pair: Tensor, projected: Tensor, gain: Tensor, present: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    b, l, _, c = pair.shape
    summed, normed, tile = torch.empty_like(pair), torch.empty_like(pair), cells_of(l)
    with device_of(pair):
        kernels().outer_forward_kernel[l * cdiv(l, tile), b](
            pair, projected, gain, as_bytes(present), summed, normed, l, c, eps, BJ=tile, BC=width(c), num_warps=4
        )  # fmt: skip
    return summed, normed


def outer_gradients(
    dsummed: Tensor, dnormed: Tensor, summed: Tensor, projected: Tensor, gain: Tensor, present: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the map, of `projected`, and of the gain (c,) in float32."""
    b, l, _, c = summed.shape
    dpair, dprojected = torch.empty_like(summed), torch.empty_like(projected)
    sums = summed.new_empty((b * l, c), dtype=torch.float32)
    with device_of(summed):
        kernels().outer_backward_kernel[l, b](
            dsummed, dnormed, summed, projected, gain, as_bytes(present), dpair, dprojected, sums, l, c, eps,
            BJ=cells_of(l), BC=width(c), num_warps=2,
        )  # fmt: skip
        kernels().outer_columns_kernel[cdiv(l, COLUMNS), b](
            dpair, projected, dprojected, l, c, BI=4, BJ=COLUMNS, BC=width(c), num_warps=2
        )  # fmt: skip
    return dpair, dprojected, sums.sum(0)


def gated(pair: Tensor, hidden: Tensor, hidden_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    c = pair.shape[-1]
    out, cells = torch.empty_like(pair), pair.numel() // c
    dot, precision = dot_type(pair.dtype)
    with device_of(pair):
        kernels().gated_forward_kernel[(cdiv(cells, CELLS),)](
            pair, hidden, hidden_bias, weight, bias, out, cells, c,
            DOT=dot, PRECISION=precision, BM=CELLS, BC=width(c), num_warps=4,
        )  # fmt: skip
    return out


def gated_gradients(
    dout: Tensor, hidden: Tensor, hidden_bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of `hidden`, and in float32 of its bias (2 c,), of the weight (c, c), and of the bias (c,)."""
    c = dout.shape[-1]
    cells = dout.numel() // c
    tile = CELLS if CELLS * width(c) * dout.element_size() <= HELD else CELLS // 2
    programs = few(cdiv(cells, tile), dout.device)
    dhidden = torch.empty_like(hidden)
    sums = dout.new_empty((programs, c * c + 3 * c), dtype=torch.float32)
    dot, precision = dot_type(dout.dtype)
    with device_of(dout):
        kernels().gated_backward_kernel[(programs,)](
            dout, hidden, hidden_bias, weight, dhidden, sums, cells, c,
            DOT=dot, PRECISION=precision, BM=tile, BC=width(c), num_warps=8,
        )  # fmt: skip
    dweight, dbias, dhidden_bias = sums.sum(0).split((c * c, c, 2 * c))
    return dhidden, dhidden_bias.clone(), dweight.reshape(c, c).clone(), dbias.clone()


def heads(pair: Tensor, weight: Tensor, present: Tensor, eps: float, fill: float) -> Tensor:
    b, l, _, c = pair.shape
    out, tile = pair.new_empty((b, len(weight), l, l)), cells_of(l)
    dot, precision = dot_type(pair.dtype)
    with device_of(pair):
        kernels().heads_forward_kernel[l * cdiv(l, tile), b](
            pair, weight, as_bytes(present), out, l, c, len(weight), eps, fill,
            DOT=dot, PRECISION=precision, BJ=tile, BC=width(c), BH=width(len(weight)), num_warps=2,
        )  # fmt: skip
    return out


def heads_gradients(dout: Tensor, pair: Tensor, weight: Tensor, present: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Of the map, and of the weight (h, c) in float32."""
    b, l, _, c = pair.shape
    tile = cells_of(l)
    programs = few(b * l * cdiv(l, tile), pair.device)
    dpair = torch.empty_like(pair)
    sums = pair.new_empty((programs, len(weight), c), dtype=torch.float32)
    dot, precision = dot_type(pair.dtype)
    with device_of(pair):
        kernels().heads_backward_kernel[(programs,)](
            dout, pair, weight, as_bytes(present), dpair, sums, l, c, len(weight), b * l, eps,
            DOT=dot, PRECISION=precision, BJ=tile, BC=width(c), BH=width(len(weight)), num_warps=4,
        )  # fmt: skip
    return dpair, sums.sum(0)


def operator(function):
    return torch.library.custom_op(f"ribonanzamamba::pair_{function.__name__}", function, mutates_args=())


outer_operator, outer_gradients_operator = operator(outer), operator(outer_gradients)
gated_operator, gated_gradients_operator = operator(gated), operator(gated_gradients)
heads_operator, heads_gradients_operator = operator(heads), operator(heads_gradients)


@outer_operator.register_fake
def _(pair, projected, gain, present, eps):
    return torch.empty_like(pair), torch.empty_like(pair)


@outer_gradients_operator.register_fake
def _(dsummed, dnormed, summed, projected, gain, present, eps):
    return torch.empty_like(summed), torch.empty_like(projected), gain.new_empty(gain.shape, dtype=torch.float32)


@gated_operator.register_fake
def _(pair, hidden, hidden_bias, weight, bias):
    return torch.empty_like(pair)


@gated_gradients_operator.register_fake
def _(dout, hidden, hidden_bias, weight):
    c = dout.shape[-1]
    shapes = ((2 * c,), (c, c), (c,))
    return torch.empty_like(hidden), *(weight.new_empty(shape, dtype=torch.float32) for shape in shapes)


@heads_operator.register_fake
def _(pair, weight, present, eps, fill):
    return pair.new_empty((pair.shape[0], weight.shape[0], *pair.shape[1:3]))


@heads_gradients_operator.register_fake
def _(dout, pair, weight, present, eps):
    return torch.empty_like(pair), weight.new_empty(weight.shape, dtype=torch.float32)


class OuterAndNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pair, projected, gain, present, eps):
        summed, normed = as_seen(outer, outer_operator)(pair, projected, gain, present, eps)
        ctx.save_for_backward(summed, projected, gain, present)
        ctx.eps = eps
        return summed, normed

    @staticmethod
    @once_differentiable
    def backward(ctx, dsummed, dnormed):
        summed, projected, gain, present = ctx.saved_tensors
        dpair, dprojected, dgain = as_seen(outer_gradients, outer_gradients_operator)(
            dsummed.contiguous(), dnormed.contiguous(), summed, projected, gain, present, ctx.eps
        )
        return dpair, dprojected, dgain.to(gain.dtype), None, None


class GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pair, hidden, hidden_bias, weight, bias):
        ctx.save_for_backward(hidden, hidden_bias, weight)
        ctx.bias_dtype = bias.dtype
        return as_seen(gated, gated_operator)(pair, hidden, hidden_bias, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        hidden, hidden_bias, weight = ctx.saved_tensors
        dhidden, dhidden_bias, dweight, dbias = as_seen(gated_gradients, gated_gradients_operator)(
            dout.contiguous(), hidden, hidden_bias, weight
        )
        return dout, dhidden, dhidden_bias.to(hidden_bias.dtype), dweight.to(weight.dtype), dbias.to(ctx.bias_dtype)


class NormAndHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pair, weight, present, eps, fill):
        ctx.save_for_backward(pair, weight, present)
        ctx.eps = eps
        return as_seen(heads, heads_operator)(pair, weight, present, eps, fill)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        pair, weight, present = ctx.saved_tensors
        dpair, dweight = as_seen(heads_gradients, heads_gradients_operator)(
            dout.contiguous(), pair, weight, present, ctx.eps
        )
        return dpair, dweight.to(weight.dtype), None, None, None


def outer_and_norm_triton(
    pair: Tensor, projected: Tensor, gain: Tensor, present: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `outer_and_norm`."""
    return OuterAndNorm.apply(pair.contiguous(), projected.contiguous(), gain, present.contiguous(), eps)


def gated_residual_triton(pair: Tensor, hidden: Tensor, hidden_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """pair + weight (value silu(gate)) + bias, value and gate being the halves of hidden + hidden_bias."""
    return GatedResidual.apply(pair.contiguous(), hidden.contiguous(), hidden_bias, weight.contiguous(), bias)


def norm_and_heads_triton(
    pair: Tensor, gain: Tensor, weight: Tensor, present: Tensor, eps: float, fill: float
) -> Tensor:
    """As `norm_and_heads`; the gain is a factor of the weight's columns."""
    return NormAndHeads.apply(pair.contiguous(), (weight * gain).contiguous(), present.contiguous(), eps, fill)
