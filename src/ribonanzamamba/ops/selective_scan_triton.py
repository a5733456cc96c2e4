"""Launches the kernels of `selective_scan_kernels.py`: shapes, buffers, launch tables, the gradient, and operators that
torch.compile sees as one node. A launch needs Triton; `backend.py` says when it can run."""

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribonanzamamba.ops.backend import as_seen, cdiv, device_of, next_power_of_2, on_launch, processors
from ribonanzamamba.ops.partial_sums import sum_parts
from ribonanzamamba.ops.recurrence import copies_a_position
from ribonanzamamba.ops.ssd_triton import dense_rows

FORWARD_STEPS, BACKWARD_STEPS = 8, 4
"""Positions a block. The backward pass holds their states in registers; the forward pass keeps one state for each of
its blocks."""
FORWARD_NUMBERS, BACKWARD_NUMBERS = 8, 8
"""State numbers a thread, where the state is large enough: the backward pass needs some ten registers for each."""
FEWEST_BLOCKS = 8
"""Blocks a segment: shorter ones spend more on finding the state that enters them than they gain."""
PARTS_A_SEGMENT, PASS_AHEAD = 2, 4
"""Of what finds what segments add, which fills the GPU with shorter walks of all but one segment; and segments whose
additions are loaded at once."""
PROGRAMS_A_PROCESSOR = 8
"""One warp each: two for each of a multiprocessor's schedulers, so that one's waiting is hidden by the other."""
FORWARD_STAGES, BACKWARD_STAGES = 4, 3
"""Blocks whose loads are under way at once."""


kernels = on_launch("selective_scan_kernels")


@dataclass(frozen=True)
class Plan:
    """How one pass is cut into programs."""

    batch: int
    length: int
    width: int
    state: int
    steps: int
    """Of one direction: the length, where there is no order."""
    groups: int
    """Of one direction."""
    directions: int
    parts: int
    """What has one part for each direction has so many: one where the directions of an order share the positions."""
    T: int
    BN: int
    R: int
    """Channels of a thread; W times that are a program's."""
    W: int
    tiles_a_group: int
    blocks: int
    segments: int
    blocks_a_segment: int

    @functools.cached_property
    def rows(self) -> int:
        return self.directions * self.batch

    @functools.cached_property
    def grid(self) -> tuple[int, int]:
        return self.rows * self.groups * self.tiles_a_group, self.segments

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """What every kernel is told, in their order."""
        return (
            self.batch, self.length, self.steps, self.width, self.state, self.tiles_a_group, self.width // self.groups,
            self.blocks_a_segment, self.segments, self.blocks,
        )  # fmt: skip

    @functools.cached_property
    def entering(self) -> "Plan":
        """The pass that finds what each segment adds to the state, of y or of its gradient: its segments are parts."""
        R, W = forward_tile(self.state)
        tiles, blocks = cdiv(self.width // self.groups, R * W), cdiv(self.steps, FORWARD_STEPS)
        blocks_a_part = self.blocks_a_segment * self.T // (FORWARD_STEPS * PARTS_A_SEGMENT)
        return dataclasses.replace(
            self, T=FORWARD_STEPS, R=R, W=W, tiles_a_group=tiles, blocks=blocks,
            segments=self.segments * PARTS_A_SEGMENT, blocks_a_segment=blocks_a_part,
        )  # fmt: skip

    @functools.cached_property
    def gradients_apart(self) -> tuple[int, int]:
        """Numbers from a position to the next in the gradient of dt and in the partial sums of those of B and C."""
        return self.parts * self.width, self.parts * self.groups * self.tiles_a_group * self.state

    def order(self, order: Tensor | None) -> dict[str, bool]:
        """What kernels are compiled for that follow an order, or none."""
        return {"HAS_ORDER": order is not None, "SHARED": order is not None and self.parts == 1}

    @functools.cached_property
    def tile(self) -> dict[str, int]:
        """What every kernel is compiled for."""
        whole = self.state == self.BN and self.width // self.groups % (self.R * self.W) == 0
        return {"T": self.T, "BN": self.BN, "R": self.R, "W": self.W, "WHOLE": whole, "num_warps": 1}


def plan(
    x: Tensor, dt: Tensor, B: Tensor, directions: int, order: Tensor | None = None, backward: bool = False
) -> Plan:
    """How the pass over these tensors is cut."""
    parts = copies_a_position(x, dt)
    steps = x.shape[1] if order is None else order.shape[1]
    return planned(
        *x.shape, B.shape[3], steps, B.shape[2] // parts, directions, parts, backward, processors(x.device)
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def planned(
    batch: int, length: int, width: int, state: int, steps: int, groups: int, directions: int, parts: int,
    backward: bool, processors: int,
) -> Plan:  # fmt: skip
    """Tile and segment sizes: enough programs for the device, no more segments than it needs for that."""
    BN = next_power_of_2(state)
    T = BACKWARD_STEPS if backward else FORWARD_STEPS
    if backward:
        W = backward_channels(state)
        R = max(1, 32 * BACKWARD_NUMBERS // (BN * W))
    else:
        R, W = forward_tile(state)
    tiles_a_group = cdiv(width // groups, R * W)
    blocks = cdiv(steps, T)
    programs = directions * batch * groups * tiles_a_group
    wanted = max(1, PROGRAMS_A_PROCESSOR * processors // programs)
    segments = max(1, min(wanted, blocks // FEWEST_BLOCKS))
    blocks_a_segment = cdiv(blocks, segments)
    # whole blocks of `Plan.entering`
    whole = FORWARD_STEPS // T * PARTS_A_SEGMENT
    blocks_a_segment = cdiv(blocks_a_segment, whole) * whole
    segments = cdiv(blocks, blocks_a_segment)
    return Plan(
        batch, length, width, state, steps, groups, directions, parts, T, BN, R, W, tiles_a_group, blocks, segments,
        blocks_a_segment,
    )  # fmt: skip


def forward_tile(state: int) -> tuple[int, int]:
    """Channels of a thread and of neighbouring threads in the forward pass."""
    return 1, min(32, max(4, 32 * FORWARD_NUMBERS // next_power_of_2(state)))


def backward_channels(state: int) -> int:
    """Channels that neighbouring threads of the backward pass have. The forward pass keeps states in their order."""
    return 8 if next_power_of_2(state) < 64 else 4


def kept_states(directions: int, batch: int, steps: int, groups: int, width: int, state: int) -> tuple[int, ...]:
    """Shape of the states that the forward pass keeps: rows, blocks of the backward pass, groups, and for every channel
    of a group those of all numbers; channels and numbers filled up to what threads have."""
    W = backward_channels(state)
    tiles = cdiv(width // groups, W)
    return directions * batch, cdiv(steps, BACKWARD_STEPS), groups, tiles * W * next_power_of_2(state)


def strides(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0) if tensor is None else tensor.stride()[:2]


def apart(*tensors: Tensor | None) -> list[int]:
    """Numbers from a position of each tensor to the next."""
    return [tensor.stride(1) for tensor in tensors if tensor is not None]


@functools.lru_cache(maxsize=1024)
def offset_type(length: int, *distances: int):
    """Integers that hold every offset inside a batch row, whose positions are so many numbers apart in what a kernel
    reads and writes: 64 bits only where they are needed."""
    import triton.language as tl

    return tl.int64 if length * max(distances) >= 2**31 else tl.int32


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    lengths: Tensor | None, order: Tensor | None, start: Tensor | None, softplus: bool, reverse: bool, directions: int,
    scale: float, keep: bool, return_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, last state, and for the gradient the states that enter the blocks and the output before the gate.

    What is not asked for is an empty tensor. x (b, l, d), dt (b, l, directions d), A (directions d, n),
    B, C (b, l, directions g, n); start and last (directions b, n, d) float32. With an order (directions, steps) also
    D and bias (directions d,), and dt (b, l, d), B, C (b, l, g, n) where the directions share the positions; without
    one, two directions are from left to right and back.
    """
    cut = plan(x, dt, B, directions, order)
    both = order is None and directions == 2
    y = x.new_empty((cut.parts, *x.shape) if cut.parts > 1 else x.shape)
    state = (cut.state, cut.width)
    last = x.new_empty((cut.rows, *state) if return_last else 0, dtype=torch.float32)
    kept = kept_states(directions, cut.batch, cut.steps, cut.groups, cut.width, cut.state)
    states = x.new_empty(kept if keep else 0, dtype=torch.float32)
    ungated = x.new_empty(x.shape if keep and z is not None else 0)
    entering = start
    with device_of(x):
        if cut.segments > 1:
            entering = entering_states(
                x, dt, A, B, None, bias, lengths, order, start, softplus, reverse, 1.0, cut, False
            )  # fmt: skip
        kernels().forward_kernel[cut.grid](
            x, dt, A, B, C, None if both else D, None if both else z, bias, lengths, order, entering, y, ungated, last,
            states, *cut.sizes, *strides(x), *strides(dt), *B.stride()[:3], *C.stride()[:3], *strides(z),
            REVERSE=reverse, SOFTPLUS=softplus, HAS_D=D is not None and not both, HAS_Z=z is not None and not both,
            HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None, HAS_START=entering is not None,
            KEEP=BACKWARD_STEPS if keep else 0, KEPT_W=backward_channels(cut.state), RETURN_LAST=return_last,
            OFFSET=offset_type(cut.length, *apart(x, dt, B, C, z), cut.width), STAGES=FORWARD_STAGES,
            **cut.order(order), **cut.tile,
        )  # fmt: skip
        if both:
            y = merge(y, x, D, z, lengths, ungated, scale, keep)
        elif cut.parts > 1:
            # scale is that of a mean, which is summed in float32 and rounded once
            y = y.mean(0)
    return y, last, states, ungated


def merge(
    y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None, lengths: Tensor | None, ungated: Tensor, scale: float,
    keep: bool,
) -> Tensor:  # fmt: skip
    """Both directions in one, skipped and gated: `merge_kernel`."""
    _, batch, length, width = y.shape
    out = torch.empty_like(y[0])
    block = next_power_of_2(width)
    rows = max(1, 4096 // block)
    kernels().merge_kernel[(cdiv(batch * length, rows),)](
        y, x, D, z, lengths, out, ungated, length, width, batch * length, scale, *strides(x), *strides(z),
        HAS_D=D is not None, HAS_Z=z is not None, HAS_LENGTHS=lengths is not None, KEEP=keep, ROWS=rows, BLOCK=block,
        num_warps=8 if block >= 512 else 4,
    )  # fmt: skip
    return out


def entering_states(
    v: Tensor, dt: Tensor, A: Tensor, K: Tensor, z: Tensor | None, bias: Tensor | None, lengths: Tensor | None,
    order: Tensor | None, start: Tensor | None, softplus: bool, reverse: bool, scale: float, cut: Plan, backward: bool,
) -> Tensor:  # fmt: skip
    """The state that enters each segment (rows, segments, n, d) of the pass with this plan; `backward`: its gradient,
    from the other end."""
    parts, wide = cut.entering, torch.float32
    local = v.new_empty((cut.rows, parts.segments, cut.state, cut.width), dtype=wide)
    whole = v.new_empty((cut.rows, parts.segments, cut.width), dtype=wide)
    entering = v.new_empty((cut.rows, cut.segments, cut.state, cut.width), dtype=wide)
    programs, _ = parts.grid
    kernels().segment_kernel[(programs, parts.segments - PARTS_A_SEGMENT)](
        v, dt, A, K, z, bias, lengths, order, local, whole, *parts.sizes, scale,
        *strides(v), *strides(dt), *K.stride()[:3], *strides(z),
        REVERSE=reverse, SOFTPLUS=softplus, HAS_Z=z is not None, HAS_BIAS=bias is not None,
        HAS_LENGTHS=lengths is not None, BACKWARD=backward, OFFSET=offset_type(cut.length, *apart(v, dt, K, z)),
        PARTS=PARTS_A_SEGMENT, STAGES=FORWARD_STAGES, **cut.order(order), **parts.tile,
    )  # fmt: skip
    kernels().pass_kernel[(cut.rows, cdiv(cut.width, 32))](
        local, whole, A, start, entering, cut.batch, cut.width, cut.state, cut.segments,
        HAS_START=start is not None, BACKWARD=backward, PARTS=PARTS_A_SEGMENT, AHEAD=PASS_AHEAD, BN=cut.BN, BD=32,
        num_warps=1,
    )  # fmt: skip
    return entering


def backward(
    dy: Tensor, dlast: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, bias: Tensor | None, lengths: Tensor | None, order: Tensor | None, states: Tensor,
    ungated: Tensor, softplus: bool, reverse: bool, directions: int, scale: float, return_dstart: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, of dt, of A, of B and C together (2, b, l, parts g, n), of dt_bias and D together (2,
    directions, d) in float32 (without order D's with the first direction), of z and of the initial state (empty:
    there is none)."""
    cut = plan(x, dt, B, directions, order, backward=True)
    (dy,) = dense_rows(dy)
    wide = torch.float32
    dx = x.new_empty((cut.parts, *x.shape))
    ddt = torch.empty_like(dt, memory_format=torch.contiguous_format)
    # one partial sum a tile, in the dtype of the result: they are most of what this pass writes. Together: one sum
    shape = (cut.batch, cut.length, cut.parts * cut.groups, cut.tiles_a_group, cut.state)
    matrices = B.new_empty((2, *shape), dtype=torch.promote_types(B.dtype, C.dtype))
    dz = torch.empty_like(z, memory_format=torch.contiguous_format) if z is not None else x.new_empty(0)
    dstart = x.new_empty((cut.rows, cut.state, cut.width) if return_dstart else 0, dtype=wide)
    dA = x.new_empty((directions, cut.batch * cut.segments, cut.width, cut.state), dtype=wide)
    sums = x.new_empty((2, directions, cut.batch * cut.segments, cut.width), dtype=wide)
    with device_of(x):
        entering = dlast
        if cut.segments > 1:
            entering = entering_states(
                dy, dt, A, C, z, bias, lengths, order, dlast, softplus, reverse, scale, cut, True
            )  # fmt: skip
        kernels().backward_kernel[cut.grid](
            x, dt, A, B, C, D, z, bias, lengths, order, states, ungated, dy, entering,
            dx, ddt, matrices, dz, dstart, dA, sums,
            *cut.sizes, scale, *strides(x), *strides(dt), *B.stride()[:3], *C.stride()[:3], *strides(z), *strides(dy),
            REVERSE=reverse, SOFTPLUS=softplus, HAS_D=D is not None, HAS_Z=z is not None, HAS_BIAS=bias is not None,
            HAS_LENGTHS=lengths is not None, HAS_DLAST=entering is not None, RETURN_DSTART=return_dstart,
            OFFSET=offset_type(cut.length, *apart(x, dt, B, C, z, dy), *cut.gradients_apart), STAGES=BACKWARD_STAGES,
            **cut.order(order), **cut.tile,
        )  # fmt: skip
    dx, dA, matrices, sums = sum_parts(
        [(dx, 0, x.dtype), (dA, 1, wide), (matrices, 4, matrices.dtype), (sums, 2, wide)]
    )
    return dx, ddt, dA.view_as(A), matrices, sums, dz, dstart


forward_operator = torch.library.custom_op("ribonanzamamba::selective_scan_forward", forward, mutates_args=())
backward_operator = torch.library.custom_op("ribonanzamamba::selective_scan_backward", backward, mutates_args=())


@forward_operator.register_fake
def _(
    x, dt, A, B, C, D, z, bias, lengths, order, start, softplus, reverse, directions, scale, keep, return_last
):  # fmt: skip
    batch, steps, width = x.shape
    if order is not None:
        steps = order.shape[1]
    groups = B.shape[2] // copies_a_position(x, dt)
    kept = kept_states(directions, batch, steps, groups, width, B.shape[3])
    return (
        x.new_empty(x.shape),
        x.new_empty((directions * batch, B.shape[3], width) if return_last else 0, dtype=torch.float32),
        x.new_empty(kept if keep else 0, dtype=torch.float32),
        x.new_empty(x.shape if keep and z is not None else 0),
    )


@backward_operator.register_fake
def _(
    dy, dlast, x, dt, A, B, C, D, z, bias, lengths, order, states, ungated, softplus, reverse, directions, scale,
    return_dstart,
):  # fmt: skip
    wide = torch.float32

    dA, sums = x.new_empty(A.shape, dtype=wide), x.new_empty((2, directions, x.shape[2]), dtype=wide)
    matrices = B.new_empty((2, *B.shape), dtype=torch.promote_types(B.dtype, C.dtype))
    dz = x.new_empty(0 if z is None else z.shape)
    dstart = x.new_empty((directions * x.shape[0], B.shape[3], x.shape[2]) if return_dstart else 0, dtype=wide)
    return x.new_empty(x.shape), dt.new_empty(dt.shape), dA, matrices, sums, dz, dstart


class SelectiveScan(torch.autograd.Function):
    """`forward` and its gradient."""

    @staticmethod
    def forward(
        ctx, x, dt, A, B, C, D, z, bias, lengths, order, start, softplus, reverse, directions, scale, return_last
    ):  # fmt: skip
        operator = as_seen(forward, forward_operator)
        keep = any(ctx.needs_input_grad)
        options = (softplus, reverse, directions, scale)
        y, last, states, ungated = operator(
            x, dt, A, B, C, D, z, bias, lengths, order, start, *options, keep, return_last
        )  # fmt: skip
        if keep:
            ctx.save_for_backward(x, dt, A, B, C, D, z, bias, lengths, order, states, ungated)
            ctx.options = options
            ctx.has_start = start is not None and ctx.needs_input_grad[10]
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        x, dt, A, B, C, D, z, bias, lengths, order, states, ungated = ctx.saved_tensors
        operator = as_seen(backward, backward_operator)
        if dy is None:
            dy = torch.zeros_like(x)
        if dlast is not None:
            dlast = dlast.contiguous() if dlast.numel() else None
        dx, ddt, dA, matrices, sums, dz, dstart = operator(
            dy, dlast, x, dt, A, B, C, D, z, bias, lengths, order, states, ungated, *ctx.options, ctx.has_start
        )  # fmt: skip
        dbias, dD = sums.unbind()
        if order is None:
            dD = dD[0]
        return (
            dx,
            ddt,
            dA.to(A.dtype),
            matrices[0].to(B.dtype),
            matrices[1].to(C.dtype),
            None if D is None else dD.flatten().to(D.dtype),
            None if z is None else dz,
            None if bias is None else dbias.flatten().to(bias.dtype),
            None,
            None,
            dstart if ctx.has_start else None,
            None, None, None, None, None,
        )  # fmt: skip


def selective_scan_triton(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    *, lengths: Tensor | None = None, initial_state: Tensor | None = None, dt_softplus: bool, reverse: bool = False,
    directions: int = 1, scale: float = 1.0, return_state: bool = False, order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output and last state (b, d, n) (empty unless asked for); with two directions `scale` times their sum, skipped
    and gated.

    x and z (b, l, d), dt (b, l, directions d), A (directions d, n), bias (directions d,), B and C (b, l, directions g,
    n), D (d,). With `order` as in `selective_scan`, which has the directions.
    """
    x, dt, B, C, z = dense_rows(x, dt, B, C, z)
    if order is not None:
        order, directions, scale = order.contiguous(), order.shape[0], 1 / copies_a_position(x, dt)
    # a row for each direction and batch row, channels last, as the kernels read them
    start = None
    if initial_state is not None:
        start = initial_state.float().unflatten(1, (directions, -1)).permute(1, 0, 3, 2).flatten(0, 1).contiguous()
    y, last = SelectiveScan.apply(
        x, dt, A.contiguous(), B, C, D, z, bias, lengths, order, start, dt_softplus, reverse, directions, scale,
        return_state,
    )  # fmt: skip
    if return_state:
        last = last.unflatten(0, (directions, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    return y, last
