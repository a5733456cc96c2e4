"""Launches the kernels of `ssd_kernels.py`: shapes, buffers, launch tables, the gradient, and operators that
torch.compile sees as one node. A launch needs Triton; `backend.py` says when it can run."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribonanzamamba.ops.backend import as_seen, cdiv, device_of, dot_type, next_power_of_2, on_launch, processors

LONGEST_CHUNK = 32
"""Positions a chunk: the tiles of 64 spill registers in the backward pass, which then takes half as long again."""
WIDEST_TILE = 64
"""Channels of a head that one program takes."""
LARGEST_STATE_TILE = 64 * 64
"""Numbers of the state that one program of the backward pass holds: half of it spills nothing, but is no faster."""
FORWARD_LAUNCH = {"num_warps": 4, "num_stages": 3}
BACKWARD_LAUNCH = {"num_warps": 4, "num_stages": 1}
PROGRAMS_A_PROCESSOR = 2
"""With more, in shorter segments, finding the states that enter them costs more than the waiting that it hides."""
FEWEST_CHUNKS = 4
"""Chunks a segment: shorter ones spend more on finding the state that enters them than they gain."""


kernels = on_launch("ssd_kernels")


@dataclass(frozen=True)
class Plan:
    """How one call is cut into programs."""

    batch: int
    length: int
    heads: int
    width: int
    groups: int
    """Of one direction."""
    state: int
    directions: int
    Q: int
    BN: int
    BP: int
    tiles: int
    chunks: int
    segments: int
    chunks_a_segment: int

    @functools.cached_property
    def rows(self) -> int:
        return self.directions * self.batch * self.heads

    @functools.cached_property
    def tile(self) -> dict[str, int | bool]:
        """What every kernel of matrix products is compiled for."""
        whole = self.state == self.BN and self.width % self.BP == 0
        return {"Q": self.Q, "BN": self.BN, "BP": self.BP, "WHOLE": whole}

    @functools.cached_property
    def grid(self) -> tuple[int, int]:
        return self.rows * self.tiles, self.segments


def chunk_size(length: int) -> int:
    return min(LONGEST_CHUNK, max(16, next_power_of_2(length)))


def plan(x: Tensor, B: Tensor, directions: int, *, backward: bool = False) -> Plan:
    """How the pass over these tensors is cut."""
    return planned(*x.shape, B.shape[2] // directions, B.shape[3], directions, backward, processors(x.device))


@functools.lru_cache(maxsize=1024)
def planned(
    batch: int, length: int, heads: int, width: int, groups: int, state: int, directions: int, backward: bool,
    processors: int,
) -> Plan:  # fmt: skip
    """Chunk, tile and segment sizes: enough programs for the device, no more segments than it needs for that."""
    Q = chunk_size(length)
    BN = max(16, next_power_of_2(state))
    widest = max(16, min(WIDEST_TILE, LARGEST_STATE_TILE // BN)) if backward else WIDEST_TILE
    BP = min(widest, max(16, next_power_of_2(width)))
    tiles = cdiv(width, BP)
    chunks = cdiv(length, Q)
    programs = directions * batch * heads * tiles
    wanted = max(1, PROGRAMS_A_PROCESSOR * processors // max(1, programs))
    segments = max(1, min(wanted, chunks // FEWEST_CHUNKS))
    chunks_a_segment = cdiv(chunks, segments)
    segments = cdiv(chunks, chunks_a_segment)
    return Plan(
        batch, length, heads, width, groups, state, directions,
        Q, BN, BP, tiles, chunks, segments, chunks_a_segment,
    )  # fmt: skip


def dense_rows(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors with a dense last axis and steps (axis 1) whose distance in a chunk 32 bits hold, copied only where
    they are not so."""
    return [tensor if tensor is None or is_dense(tensor) else tensor.contiguous() for tensor in tensors]


def is_dense(tensor: Tensor) -> bool:
    rows = tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    return rows and tensor.stride(1) < 2**31 // LONGEST_CHUNK


def strides(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if tensor is None else tensor.stride()[:3]


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    lengths: Tensor | None, start: Tensor | None, softplus: bool, reverse: bool, directions: int, scale: float,
    keep: bool, return_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, last state, and for the gradient the entering states and the output before the gate.

    What is not asked for is an empty tensor. x (b, l, h, p), dt (b, l, directions h), A (directions h,),
    B, C (b, l, directions g, n); start and last (b, h, n, p) float32, of one direction.
    """
    cut = plan(x, B, directions)
    both = directions == 2
    y = x.new_empty((directions, *x.shape) if both else x.shape)
    state = (cut.state, cut.width)
    last = x.new_empty((cut.batch, cut.heads, *state) if return_last else 0, dtype=torch.float32)
    # rounded copies: the recurrence itself goes on from the registers
    states = x.new_empty((cut.rows, cut.chunks, *state) if keep else 0)
    ungated = x.new_empty(x.shape if keep and z is not None else 0)
    dot, precision = dot_type(x.dtype)
    entering = start
    with device_of(x):
        if cut.segments > 1:
            entering = segment_states(x, dt, A, B, None, bias, lengths, start, None, softplus, reverse, 1.0, cut, False)
        kernels().forward_kernel[cut.grid](
            x, dt, A, B, C, None if both else D, None if both else z, bias, lengths, entering, y, ungated, last, states,
            cut.batch, cut.length, cut.heads, cut.width, cut.state, cut.tiles, cut.heads // cut.groups,
            cut.chunks_a_segment, cut.segments, cut.chunks,
            *strides(x), *strides(dt), *strides(B), *strides(C), *strides(z),
            REVERSE=reverse, SOFTPLUS=softplus, HAS_D=D is not None and not both, HAS_Z=z is not None and not both,
            HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None, HAS_START=entering is not None, KEEP=keep,
            RETURN_LAST=return_last, DOT=dot, PRECISION=precision, **cut.tile, **FORWARD_LAUNCH,
        )  # fmt: skip
        if both:
            y = merge(y, x, D, z, lengths, ungated, scale, keep)
    return y, last, states, ungated


def merge(
    y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None, lengths: Tensor | None, ungated: Tensor, scale: float,
    keep: bool,
) -> Tensor:  # fmt: skip
    _, batch, length, heads, width = y.shape
    out = torch.empty_like(y[0])
    block = next_power_of_2(heads * width)
    rows = max(1, 4096 // block)
    kernels().merge_kernel[(cdiv(batch * length, rows),)](
        y, x, D, z, lengths, out, ungated, length, heads, width, batch * length, scale, *strides(x), *strides(z),
        HAS_D=D is not None, HAS_Z=z is not None, HAS_LENGTHS=lengths is not None, KEEP=keep, ROWS=rows, BLOCK=block,
        num_warps=8 if block >= 512 else 4,
    )  # fmt: skip
    return out


def segment_states(
    v: Tensor, dt: Tensor, A: Tensor, K: Tensor, z: Tensor | None, bias: Tensor | None, lengths: Tensor | None,
    start: Tensor | None, last: Tensor | None, softplus: bool, reverse: bool, scale: float, cut: Plan, backward: bool,
) -> Tensor:  # fmt: skip
    """The state that enters each segment (rows, segments, n, p); `backward`: its gradient, from the other end."""
    size = cut.state * cut.width
    local = v.new_empty((cut.rows, cut.segments, cut.state, cut.width), dtype=torch.float32)
    left = v.new_empty((cut.rows, cut.segments), dtype=torch.float32)
    dot, precision = dot_type(v.dtype)
    kernels().segment_kernel[cut.grid](
        v, dt, A, K, z, bias, lengths, local, left,
        cut.batch, cut.length, cut.heads, cut.width, cut.state, cut.tiles, cut.heads // cut.groups,
        cut.chunks_a_segment, cut.segments, cut.chunks, scale,
        *strides(v), *strides(dt), *strides(K), *strides(z),
        REVERSE=reverse, SOFTPLUS=softplus, HAS_Z=z is not None, HAS_BIAS=bias is not None,
        HAS_LENGTHS=lengths is not None, BACKWARD=backward, DOT=dot, PRECISION=precision, **cut.tile, **FORWARD_LAUNCH,
    )  # fmt: skip
    block = min(1024, next_power_of_2(size))
    kernels().pass_kernel[(cut.rows, cdiv(size, block))](
        local, left, start, last, size, cut.segments,
        HAS_START=start is not None, BACKWARD=backward, RETURN_LAST=last is not None, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return local


def backward(
    dy: Tensor, dlast: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, bias: Tensor | None, lengths: Tensor | None, states: Tensor, ungated: Tensor, softplus: bool,
    reverse: bool, directions: int, scale: float, return_dstart: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, of dt, of B and C together (2, b, l, directions g, n), of A, dt_bias and D together (3,
    directions, h) in float32 (D's with the first direction), of z and of the initial state (empty: there is none)."""
    cut = plan(x, B, directions, backward=True)
    (dy,) = dense_rows(dy)
    narrow = x.dtype
    dx = x.new_empty((directions, *x.shape))
    ddt = x.new_empty((cut.tiles, *dt.shape), dtype=dt.dtype if cut.tiles == 1 else torch.float32)
    partials = cut.heads // cut.groups * cut.tiles
    shape = (cut.batch, cut.length, directions * cut.groups, partials, cut.state)
    # together: one sum for both
    matrices = x.new_empty((2, *shape), dtype=narrow)
    dB, dC = matrices.unbind()
    dz = torch.empty_like(z, memory_format=torch.contiguous_format) if z is not None else x.new_empty(0)
    state = (cut.batch, cut.heads, cut.state, cut.width)
    dstart = x.new_empty(state if return_dstart else 0, dtype=torch.float32)
    sums = x.new_empty((3, directions, cut.batch, cut.heads, cut.tiles * cut.segments), dtype=torch.float32)
    dot, precision = dot_type(x.dtype)
    with device_of(x):
        entering = dlast
        if cut.segments > 1:
            entering = segment_states(dy, dt, A, C, z, bias, lengths, dlast, None, softplus, reverse, scale, cut, True)
        kernels().backward_kernel[cut.grid](
            x, dt, A, B, C, D, z, bias, lengths, states, ungated, dy, entering, dx, ddt, dB, dC, dz, dstart, sums,
            cut.batch, cut.length, cut.heads, cut.width, cut.state, cut.tiles, cut.heads // cut.groups,
            cut.chunks_a_segment, cut.segments, cut.chunks, scale,
            *strides(x), *strides(dt), *strides(B), *strides(C), *strides(z), *strides(dy),
            REVERSE=reverse, SOFTPLUS=softplus, HAS_D=D is not None, HAS_Z=z is not None, HAS_BIAS=bias is not None,
            HAS_LENGTHS=lengths is not None, HAS_DLAST=entering is not None, RETURN_DSTART=return_dstart,
            DOT=dot, PRECISION=precision, **cut.tile, **BACKWARD_LAUNCH,
        )  # fmt: skip
    return (
        dx[0] if directions == 1 else dx.sum(0),
        ddt[0] if cut.tiles == 1 else ddt.sum(0, dtype=dt.dtype),
        matrices[:, :, :, :, 0] if partials == 1 else matrices.sum(4),
        sums.sum((2, 4)),
        dz,
        dstart,
    )


forward_operator = torch.library.custom_op("ribonanzamamba::ssd_forward", forward, mutates_args=())
backward_operator = torch.library.custom_op("ribonanzamamba::ssd_backward", backward, mutates_args=())


@forward_operator.register_fake
def _(
    x, dt, A, B, C, D, z, bias, lengths, start, softplus, reverse, directions, scale, keep, return_last
):  # fmt: skip
    batch, length, heads, width = x.shape
    state = (B.shape[3], width)
    return (
        x.new_empty(x.shape),
        x.new_empty((batch, heads, *state) if return_last else 0, dtype=torch.float32),
        x.new_empty((directions * batch * heads, -(-length // chunk_size(length)), *state) if keep else 0),
        x.new_empty(x.shape if keep and z is not None else 0),
    )


@backward_operator.register_fake
def _(
    dy, dlast, x, dt, A, B, C, D, z, bias, lengths, states, ungated, softplus, reverse, directions, scale, return_dstart
):  # fmt: skip
    batch, _, heads, width = x.shape
    wide = torch.float32

    dz = x.new_empty(0 if z is None else z.shape)
    dstart = x.new_empty((batch, heads, B.shape[3], width) if return_dstart else 0, dtype=wide)
    matrices, sums = x.new_empty((2, *B.shape)), x.new_empty((3, directions, heads), dtype=wide)
    return x.new_empty(x.shape), dt.new_empty(dt.shape), matrices, sums, dz, dstart


class Ssd(torch.autograd.Function):
    """`forward` and its gradient."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, z, bias, lengths, start, softplus, reverse, directions, scale, return_last):
        operator = as_seen(forward, forward_operator)
        keep = any(ctx.needs_input_grad)
        options = (softplus, reverse, directions, scale)
        y, last, states, ungated = operator(
            x, dt, A, B, C, D, z, bias, lengths, start, *options, keep, return_last
        )  # fmt: skip
        if keep:
            ctx.save_for_backward(x, dt, A, B, C, D, z, bias, lengths, states, ungated)
            ctx.options = options
            ctx.has_start = start is not None and ctx.needs_input_grad[9]
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        x, dt, A, B, C, D, z, bias, lengths, states, ungated = ctx.saved_tensors
        operator = as_seen(backward, backward_operator)
        if dy is None:
            dy = torch.zeros_like(x)
        if dlast is not None:
            dlast = dlast.contiguous()
            if dlast.numel() == 0:
                dlast = None
        dx, ddt, matrices, sums, dz, dstart = operator(
            dy, dlast, x, dt, A, B, C, D, z, bias, lengths, states, ungated, *ctx.options, ctx.has_start
        )  # fmt: skip
        dA, dbias, dD = sums.unbind()
        return (
            dx,
            ddt,
            dA.flatten().to(A.dtype),
            matrices[0],
            matrices[1],
            None if D is None else dD[0].to(D.dtype),
            None if z is None else dz,
            None if bias is None else dbias.flatten().to(bias.dtype),
            None,
            dstart if ctx.has_start else None,
            None, None, None, None, None,
        )  # fmt: skip


def ssd_triton(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    *, lengths: Tensor | None = None, initial_state: Tensor | None = None, dt_softplus: bool, reverse: bool = False,
    directions: int = 1, scale: float = 1.0, return_state: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output and last state (empty unless asked for); with two directions `scale` times their sum, skipped and gated.

    x and z (b, l, h, p), dt (b, l, directions h), A and bias (directions h,), B and C (b, l, directions g, n), D (h,).
    """
    # products take operands of one type
    B, C = B.to(x.dtype), C.to(x.dtype)
    z = None if z is None else z.to(x.dtype)
    x, B, C, z = dense_rows(x, B, C, z)
    start = None if initial_state is None else initial_state.float().contiguous()
    return Ssd.apply(
        x, dt, A.contiguous(), B, C, D, z, bias, lengths, start, dt_softplus, reverse, directions, scale, return_state
    )  # fmt: skip
