"""`convolved_bidirectional_ssd` by the kernels of `depthwise_conv1d`, `ssd` and `rms_norm`: one node of the graph,
whose gradients are written into their parts of one tensor; and operators that torch.compile sees as one node."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribonanzamamba.ops import depthwise_conv_triton, norm_triton, ssd_triton
from ribonanzamamba.ops.backend import as_seen
from ribonanzamamba.ops.convolved_ssd import cut_mixed, cut_projected


def forward(
    projected: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    gain: Tensor | None, lengths: Tensor | None, heads: int, d_state: int, scale: float, eps: float, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, and for the gradient what was convolved, step sizes, the states that enter chunks and the output before
    the gate: empty tensors unless `keep`."""
    z, mixed, dt = cut_projected(projected, heads, d_state)
    mixed = depthwise_conv_triton.convolve(mixed, weight, bias, lengths, (weight.shape[1] - 1) // 2, True)
    x, B, C = cut_mixed(mixed, heads, d_state)
    # the norm takes the gate, too
    gate = z if gain is None else None
    y, _, *kept = ssd_triton.forward(
        x, dt, A, B, C, D, gate, dt_bias, lengths, None, True, False, 2, scale, keep, False
    )  # fmt: skip
    if gain is not None:
        kept[-1] = y
        y = norm_triton.normalise(y.flatten(2), gain, z.flatten(2), eps).view_as(y)
    kept = [mixed, *kept]
    return y, *(kept if keep else (tensor.new_empty(0) for tensor in kept))


def backward(
    dy: Tensor, projected: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, D: Tensor | None,
    dt_bias: Tensor | None, gain: Tensor | None, lengths: Tensor | None, mixed: Tensor, steps: Tensor,
    states: Tensor, ungated: Tensor, heads: int, d_state: int, scale: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of projected, of the taps and their bias in float32, of A, dt_bias and D (3, 2, h) in float32, and of
    the gain in float32 (empty: there is none)."""
    z, inner, dt = cut_projected(projected, heads, d_state)
    x, B, C = cut_mixed(mixed, heads, d_state)
    dprojected, dmixed = torch.empty_like(projected), torch.empty_like(mixed)
    dz, dinner, ddt = cut_projected(dprojected, heads, d_state)
    dx, dB, dC = cut_mixed(dmixed, heads, d_state)
    dgain, gate = projected.new_empty(0, dtype=torch.float32), z
    if gain is not None:
        gate = None
        dy, dgain, _ = norm_triton.gradients(
            dy.flatten(2), ungated.flatten(2), gain, z.flatten(2), eps, dgate=dz.flatten(2)
        )  # fmt: skip
        dy = dy.view_as(ungated)
    totals, _ = ssd_triton.backward_into(
        ssd_triton.Gradients(dx, ddt, dB, dC, dz), dy, None, x, dt, A, B, C, D, gate, dt_bias, lengths, steps,
        states, ungated, True, False, 2, scale, False,
    )  # fmt: skip
    left = (weight.shape[1] - 1) // 2
    _, dweight, dbias = depthwise_conv_triton.gradients(dmixed, inner, weight, bias, lengths, left, True, out=dinner)
    return dprojected, dweight, dbias, totals, dgain


forward_operator = torch.library.custom_op("ribonanzamamba::convolved_ssd_forward", forward, mutates_args=())
backward_operator = torch.library.custom_op("ribonanzamamba::convolved_ssd_backward", backward, mutates_args=())


@forward_operator.register_fake
def _(projected, weight, bias, A, D, dt_bias, gain, lengths, heads, d_state, scale, eps, keep):
    z, mixed, dt = cut_projected(projected, heads, d_state)
    mixed = mixed.new_empty(mixed.shape)
    x, B, C = cut_mixed(mixed, heads, d_state)
    y, _, *kept = ssd_triton.forward_operator(
        x, dt, A, B, C, D, z, dt_bias, lengths, None, True, False, 2, scale, keep, False
    )  # fmt: skip
    return y, mixed if keep else mixed.new_empty(0), *kept


@backward_operator.register_fake
def _(dy, projected, weight, bias, A, D, dt_bias, gain, *rest):
    heads, wide = A.shape[0] // 2, torch.float32
    return (
        projected.new_empty(projected.shape),
        projected.new_empty(weight.shape, dtype=wide),
        projected.new_empty(weight.shape[0], dtype=wide),
        projected.new_empty((3, 2, heads), dtype=wide),
        projected.new_empty(0 if gain is None else gain.shape, dtype=wide),
    )


class ConvolvedSsd(torch.autograd.Function):
    """`forward` and its gradient."""

    @staticmethod
    def forward(ctx, projected, weight, bias, A, D, dt_bias, gain, lengths, heads, d_state, scale, eps):
        operator = as_seen(forward, forward_operator)
        keep = any(ctx.needs_input_grad)
        inputs = projected, weight, bias, A, D, dt_bias, gain, lengths
        y, *kept = operator(*inputs, heads, d_state, scale, eps, keep)
        if keep:
            ctx.save_for_backward(*inputs, *kept)
            ctx.options = heads, d_state, scale, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        _, weight, bias, A, D, dt_bias, gain, *_ = saved = ctx.saved_tensors
        operator = as_seen(backward, backward_operator)
        dprojected, dweight, dbias, totals, dgain = operator(dy, *saved, *ctx.options)
        dA, ddt_bias, dD = totals.unbind()
        return (
            dprojected,
            dweight.to(weight.dtype),
            None if bias is None else dbias.to(bias.dtype),
            dA.flatten().to(A.dtype),
            None if D is None else dD[0].to(D.dtype),
            None if dt_bias is None else ddt_bias.flatten().to(dt_bias.dtype),
            None if gain is None else dgain.to(gain.dtype),
            None, None, None, None, None,
        )  # fmt: skip


def convolved_ssd_triton(
    projected: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, D: Tensor | None, dt_bias: Tensor | None,
    gain: Tensor | None, lengths: Tensor | None, heads: int, d_state: int, scale: float, eps: float,
) -> Tensor:  # fmt: skip
    """As `convolved_bidirectional_ssd`, merged and gated: `scale` times the sum of the directions."""
    # its rows of the batch lie one after the other, and so do those of its gradient
    return ConvolvedSsd.apply(
        projected.contiguous(), weight, bias, A.contiguous(), D, dt_bias, gain, lengths, heads, d_state, scale, eps
    )  # fmt: skip
