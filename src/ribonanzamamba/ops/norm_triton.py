"""Launches the kernels of `norm_kernels.py`, with their gradient, and as operators that torch.compile sees as one node.
A launch needs Triton; `backend.py` says when it can run."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribonanzamamba.ops.backend import as_seen, cdiv, device_of, next_power_of_2, on_launch
from ribonanzamamba.ops.partial_sums import sum_parts

TILE = 1024
"""Numbers a program holds at a time, whole rows."""
PROGRAMS = 528
"""Most programs of the backward pass, each with a partial sum of the gain's gradient: four a multiprocessor of an H100;
of twice as many the sums took longer than they gained."""
MOST_SPLIT_ROWS = 2**31 - 1
"""Of a tensor whose rows two strides place: their numbers are 32-bit."""


kernels = on_launch("norm_kernels")


def tile(x: Tensor) -> dict[str, int]:
    """Rows and columns a program, and its warps."""
    columns = next_power_of_2(x.shape[-1])
    rows = max(TILE // columns, 1)
    return {"BR": rows, "BD": columns, "num_warps": min(max(rows * columns // 1024, 4), 32)}


def place(x: Tensor) -> tuple[int, int, int, bool] | None:
    """How the rows of x lie in memory: `inner`, `slow`, `fast` and `SPLIT` of `kernels.tile_of`.

    None where they have to be copied together.
    """
    width = x.shape[-1]
    if x.is_contiguous():
        return 0, 0, width, False
    if x.stride(-1) != 1 and width > 1:
        return None
    axes: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == size * stride:
            axes[-1] = axes[-1][0] * size, stride
        else:
            axes.append((size, stride))
    if len(axes) > 2 or (len(axes) == 2 and x.numel() // width > MOST_SPLIT_ROWS):
        return None
    if len(axes) == 2:
        return axes[1][0], axes[0][1], axes[1][1], True
    return 0, 0, axes[0][1] if axes else width, False


def placed(x: Tensor) -> Tensor:
    """x, or a copy of it, with rows that the kernels can find."""
    return x if place(x) is not None else x.contiguous()


def place_of_gate(gate: Tensor | None) -> tuple[int, int, int, bool]:
    return (0, 0, 0, False) if gate is None else place(gate)


def normalise(x: Tensor, gain: Tensor, gate: Tensor | None, eps: float) -> Tensor:
    y = x.new_empty(x.shape)
    x, gate = placed(x), None if gate is None else placed(gate)
    (*strides, split), (*gate_strides, gate_split) = place(x), place_of_gate(gate)
    rows, options = x.numel() // x.shape[-1], tile(x)
    with device_of(x):
        kernels().forward_kernel[cdiv(rows, options["BR"]),](
            x, gain, gate, y, rows, x.shape[-1], eps, *strides, *gate_strides, *gain.stride(),
            HAS_GATE=gate is not None, X_SPLIT=split, GATE_SPLIT=gate_split, **options,
        )  # fmt: skip
    return y


def gradients(
    dy: Tensor, x: Tensor, gain: Tensor, gate: Tensor | None, eps: float, *, dgate: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, dense, of the gain in float32, and of the gate (empty: there is none), written to `dgate` where
    there is one: rows that lie evenly in memory."""
    dx = x.new_empty(x.shape)
    if dgate is None:
        dgate = x.new_empty(0 if gate is None else gate.shape)
    x, dy, gate = placed(x), placed(dy), None if gate is None else placed(gate)
    (*x_strides, x_split), (*dy_strides, dy_split) = place(x), place(dy)
    *gate_strides, gate_split = place_of_gate(gate)
    _, _, dgate_fast, _ = place(dgate)
    rows, options = x.numel() // x.shape[-1], tile(x)
    programs = min(cdiv(rows, options["BR"]), PROGRAMS)
    sums = x.new_empty((programs, x.shape[-1]), dtype=torch.float32)
    with device_of(x):
        kernels().backward_kernel[programs,](
            x, gain, gate, dy, dx, dgate, sums, rows, x.shape[-1], eps, *x_strides, *gate_strides, *dy_strides,
            dgate_fast, *gain.stride(),
            HAS_GATE=gate is not None, X_SPLIT=x_split, GATE_SPLIT=gate_split, DY_SPLIT=dy_split, **options,
        )  # fmt: skip
    (dgain,) = sum_parts([(sums, 0, torch.float32)])
    return dx, dgain, dgate


def gradients_apart(
    dy: Tensor, x: Tensor, gain: Tensor, gate: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return gradients(dy, x, gain, gate, eps)


normalise_operator = torch.library.custom_op("ribonanzamamba::rms_norm", normalise, mutates_args=())
gradients_operator = torch.library.custom_op("ribonanzamamba::rms_norm_gradients", gradients_apart, mutates_args=())


@normalise_operator.register_fake
def _(x, gain, gate, eps):
    return x.new_empty(x.shape)


@gradients_operator.register_fake
def _(dy, x, gain, gate, eps):
    dgate = x.new_empty(0 if gate is None else gate.shape)
    return x.new_empty(x.shape), x.new_empty(gain.shape, dtype=torch.float32), dgate


class RootMeanSquareNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain, gate, eps):
        operator = as_seen(normalise, normalise_operator)
        ctx.save_for_backward(x, gain, gate)
        ctx.eps = eps
        return operator(x, gain, gate, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, gain, gate = ctx.saved_tensors
        operator = as_seen(gradients, gradients_operator)
        dx, dgain, dgate = operator(dy, x, gain, gate, ctx.eps)
        return dx, dgain.to(gain.dtype), None if gate is None else dgate, None


def rms_norm_triton(x: Tensor, gain: Tensor, gate: Tensor | None, eps: float) -> Tensor:
    """As `rms_norm`."""
    return RootMeanSquareNorm.apply(x, gain, None if gate is None else gate.to(x.dtype), eps)
