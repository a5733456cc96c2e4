"""Launches the kernels of `ssd_kernels.py`: shapes, buffers, launch tables, the gradient, and operators that
torch.compile sees as one node. A launch needs Triton; `backend.py` says when it can run."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribonanzamamba.ops.backend import as_seen, cdiv, device_of, dot_type, next_power_of_2, on_launch, processors

LONGEST_CHUNK, LONGEST_WIDE_CHUNK = 64, 32
"""Positions a chunk: 64 rows are what a matrix unit takes at a time; float32 tiles of them would spill registers."""
WIDEST_TILE = 64
"""Channels of a head that one program takes."""
LARGEST_STATE_TILE = 64 * 64
"""Numbers of the state that one program of the backward pass takes."""
STATE_LAUNCH = {"num_warps": 4, "num_stages": 3}
OUTPUT_LAUNCH = {"num_warps": 4, "num_stages": 1}
GRADIENT_LAUNCH = {"num_warps": 4, "num_stages": 1, "maxnreg": 168}
"""Three programs a multiprocessor; 100 bytes spilled cost less than the third one gains."""
WIDE_GRADIENT_LAUNCH = GRADIENT_LAUNCH | {"maxnreg": 255}
"""Of float32. Left to itself, the assembler can choose 32 registers (Triton 3.6)."""
STEPS_A_PROGRAM = 512
"""Of the kernels that see step sizes only."""
PROGRAMS_A_PROCESSOR = 2
"""Walks side by side. With more, in shorter segments, finding the states that enter them costs more than the waiting
that it hides."""
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
    def walks(self) -> tuple[int, int]:
        """Grid of what goes from chunk to chunk."""
        return self.rows * self.tiles, self.segments

    @functools.cached_property
    def all_chunks(self) -> tuple[int, int]:
        """Grid of what takes each chunk by itself."""
        return self.batch * self.heads * self.tiles, self.chunks

    @functools.cached_property
    def chunks_a_program(self) -> int:
        """Of the kernels that see step sizes only."""
        return min(next_power_of_2(self.chunks), max(1, STEPS_A_PROGRAM // self.Q))

    @functools.cached_property
    def all_steps(self) -> tuple[int, int]:
        return self.rows, cdiv(self.chunks, self.chunks_a_program)


def chunk_size(length: int, dtype: torch.dtype) -> int:
    longest = LONGEST_WIDE_CHUNK if dtype == torch.float32 else LONGEST_CHUNK
    return min(longest, max(16, next_power_of_2(length)))


def plan(x: Tensor, B: Tensor, directions: int, *, backward: bool = False) -> Plan:
    """How the pass over these tensors is cut."""
    Q = chunk_size(x.shape[1], x.dtype)
    return planned(*x.shape, B.shape[2] // directions, B.shape[3], directions, Q, backward, processors(x.device))


@functools.lru_cache(maxsize=1024)
def planned(
    batch: int, length: int, heads: int, width: int, groups: int, state: int, directions: int, Q: int, backward: bool,
    processors: int,
) -> Plan:  # fmt: skip
    """Tile and segment sizes: enough programs for the device, no more segments than it needs for that."""
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, last state, and for the gradient the step sizes with their sums, the entering states and the output
    before the gate.

    What is not asked for is an empty tensor. x (b, l, h, p), dt (b, l, directions h), A (directions h,),
    B, C (b, l, directions g, n); start and last (b, h, n, p) float32, of one direction.
    """
    cut = plan(x, B, directions)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    last = x.new_empty((cut.batch, cut.heads, cut.state, cut.width) if return_last else 0, dtype=torch.float32)
    ungated = x.new_empty(x.shape if keep and z is not None else 0)
    dot, precision = dot_type(x.dtype)
    exact = x.dtype == torch.float32
    with device_of(x):
        steps = summed_steps(dt, A, bias, lengths, softplus, reverse, cut, exact)
        states = x.new_empty(0)
        if has_states(cut.chunks, start) or return_last:
            states = entering_states(x, B, None, lengths, steps, start, last, reverse, 1.0, cut, exact, False)
        kernels().output_kernel[cut.all_chunks](
            x, B, C, D, z, lengths, steps, states, y, ungated,
            cut.batch, cut.length, cut.heads, cut.width, cut.state, cut.tiles, cut.heads // cut.groups, cut.chunks,
            scale, *strides(x), *strides(B), *strides(C), *strides(z),
            DIRECTIONS=directions, REVERSE=reverse, HAS_D=D is not None, HAS_Z=z is not None,
            HAS_LENGTHS=lengths is not None, HAS_STATES=has_states(cut.chunks, start), KEEP=keep, DOT=dot,
            PRECISION=precision, EXACT=exact, **cut.tile, **OUTPUT_LAUNCH,
        )  # fmt: skip
    if not keep:
        steps, states = steps.new_empty(0), states.new_empty(0)
    elif not has_states(cut.chunks, start):
        states = states.new_empty(0)
    return y, last, steps, states, ungated


def has_states(chunks: int, start: Tensor | None) -> bool:
    """Whether anything enters a chunk from outside."""
    return chunks > 1 or start is not None


def summed_steps(
    dt: Tensor, A: Tensor, bias: Tensor | None, lengths: Tensor | None, softplus: bool, reverse: bool, cut: Plan,
    exact: bool,
) -> Tensor:  # fmt: skip
    """Step sizes and sums of log decays (3, rows, chunks, Q): `step_kernel`."""
    steps = dt.new_empty((3, cut.rows, cut.chunks, cut.Q), dtype=torch.float32)
    kernels().step_kernel[cut.all_steps](
        dt, A, bias, lengths, steps, cut.batch, cut.length, cut.heads, cut.chunks, *strides(dt),
        REVERSE=reverse, SOFTPLUS=softplus, HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None, EXACT=exact,
        Q=cut.Q, CHUNKS=cut.chunks_a_program, num_warps=4,
    )  # fmt: skip
    return steps


def entering_states(
    v: Tensor, K: Tensor, z: Tensor | None, lengths: Tensor | None, steps: Tensor, start: Tensor | None,
    last: Tensor | None, reverse: bool, scale: float, cut: Plan, exact: bool, backward: bool,
) -> Tensor:  # fmt: skip
    """The state that enters each chunk (rows, chunks, n, p), rounded copies of what is walked in float32, and in
    `last`, unless that is empty, the one after all of them; `backward`: its gradient, from the other end."""
    states = v.new_empty((cut.rows, cut.chunks, cut.state, cut.width))
    dot, precision = dot_type(v.dtype)
    return_last = last is not None and last.numel() > 0

    def walk(start: Tensor | None, after: Tensor | None, left: Tensor | None, keep: bool) -> None:
        kernels().state_kernel[cut.walks](
            v, K, z, lengths, steps, start, states, after, left,
            cut.batch, cut.length, cut.heads, cut.width, cut.state, cut.tiles, cut.heads // cut.groups,
            cut.chunks_a_segment, cut.segments, cut.chunks, scale, *strides(v), *strides(K), *strides(z),
            REVERSE=reverse, HAS_Z=z is not None, HAS_LENGTHS=lengths is not None, HAS_START=start is not None,
            BACKWARD=backward, KEEP=keep, RETURN_AFTER=after is not None, RETURN_LEFT=left is not None, DOT=dot,
            PRECISION=precision, EXACT=exact, **cut.tile, **STATE_LAUNCH,
        )  # fmt: skip

    if cut.segments == 1:
        walk(start, last if return_last else None, None, True)
        return states
    size = cut.state * cut.width
    local = v.new_empty((cut.rows, cut.segments, cut.state, cut.width), dtype=torch.float32)
    left = v.new_empty((cut.rows, cut.segments), dtype=torch.float32)
    walk(None, local, left, False)
    block = min(1024, next_power_of_2(size))
    kernels().pass_kernel[(cut.rows, cdiv(size, block))](
        local, left, start, last, size, cut.segments, cut.batch * cut.heads,
        REVERSE=reverse, HAS_START=start is not None, BACKWARD=backward, RETURN_LAST=return_last, BLOCK=block,
        num_warps=4,
    )  # fmt: skip
    walk(local, None, None, True)
    return states


def backward(
    dy: Tensor, dlast: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, bias: Tensor | None, lengths: Tensor | None, steps: Tensor, states: Tensor, ungated: Tensor,
    softplus: bool, reverse: bool, directions: int, scale: float, return_dstart: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, of dt, of B and C together (2, b, l, directions g, n), of A, dt_bias and D together (3,
    directions, h) in float32 (D's with the first direction), of z and of the initial state (empty: there is none)."""
    cut = plan(x, B, directions, backward=True)
    (dy,) = dense_rows(dy)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    ddt = torch.empty_like(dt, memory_format=torch.contiguous_format)
    partials = cut.heads // cut.groups * cut.tiles
    # together: one sum for both
    matrices = x.new_empty((2, cut.batch, cut.length, directions * cut.groups, partials, cut.state))
    dB, dC = matrices.unbind()
    dz = torch.empty_like(z, memory_format=torch.contiguous_format) if z is not None else x.new_empty(0)
    state = (cut.batch, cut.heads, cut.state, cut.width)
    dstart = x.new_empty(state if return_dstart else 0, dtype=torch.float32)
    dsteps = steps.new_empty((5, cut.tiles, cut.rows, cut.chunks, cut.Q))
    dwhole = steps.new_empty((2, cut.tiles, directions, cut.batch, cut.heads, cut.chunks))
    sums = steps.new_empty((3, directions, cut.batch, cut.heads, cut.all_steps[1]))
    dot, precision = dot_type(x.dtype)
    exact = x.dtype == torch.float32
    with device_of(x):
        dstates = states.new_empty(0)
        if has_states(cut.chunks, dlast) or return_dstart:
            dstates = entering_states(dy, C, z, lengths, steps, dlast, dstart, reverse, scale, cut, exact, True)
        # one after the other: the second adds to what the first wrote of dx
        for direction in range(directions):
            kernels().gradient_kernel[cut.all_chunks](
                x, B, C, D, z, lengths, steps, states, dstates, ungated, dy, dx, dB, dC, dz, dsteps, dwhole,
                cut.batch, cut.length, cut.heads, cut.width, cut.state, cut.tiles, cut.heads // cut.groups, cut.chunks,
                scale, *strides(x), *strides(B), *strides(C), *strides(z), *strides(dy),
                DIRECTION=direction, DIRECTIONS=directions, REVERSE=reverse,
                HAS_D=D is not None, HAS_Z=z is not None, HAS_LENGTHS=lengths is not None,
                HAS_STATES=states.numel() > 0, HAS_DSTATES=has_states(cut.chunks, dlast), DOT=dot, PRECISION=precision,
                EXACT=exact, **cut.tile, **(WIDE_GRADIENT_LAUNCH if exact else GRADIENT_LAUNCH),
            )  # fmt: skip
        kernels().step_gradient_kernel[cut.all_steps](
            dt, A, bias, lengths, steps, dsteps, dwhole, ddt, sums,
            cut.batch, cut.length, cut.heads, cut.tiles, cut.chunks, *strides(dt),
            REVERSE=reverse, SOFTPLUS=softplus, HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None,
            HAS_STATES=states.numel() > 0, HAS_DSTATES=has_states(cut.chunks, dlast), Q=cut.Q,
            CHUNKS=cut.chunks_a_program, num_warps=4,
        )  # fmt: skip
    return (
        dx,
        ddt,
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
    rows, Q = directions * batch * heads, chunk_size(length, x.dtype)
    chunks = -(-length // Q)
    return (
        x.new_empty(x.shape),
        x.new_empty((batch, heads, *state) if return_last else 0, dtype=torch.float32),
        x.new_empty((3, rows, chunks, Q) if keep else 0, dtype=torch.float32),
        x.new_empty((rows, chunks, *state) if keep and has_states(chunks, start) else 0),
        x.new_empty(x.shape if keep and z is not None else 0),
    )


@backward_operator.register_fake
def _(
    dy, dlast, x, dt, A, B, C, D, z, bias, lengths, steps, states, ungated, softplus, reverse, directions, scale,
    return_dstart,
):  # fmt: skip
    batch, _, heads, width = x.shape
    wide = torch.float32

    return (
        x.new_empty(x.shape),
        dt.new_empty(dt.shape),
        x.new_empty((2, *B.shape)),
        x.new_empty((3, directions, heads), dtype=wide),
        x.new_empty(0 if z is None else z.shape),
        x.new_empty((batch, heads, B.shape[3], width) if return_dstart else 0, dtype=wide),
    )


class Ssd(torch.autograd.Function):
    """`forward` and its gradient."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, z, bias, lengths, start, softplus, reverse, directions, scale, return_last):
        operator = as_seen(forward, forward_operator)
        keep = any(ctx.needs_input_grad)
        options = (softplus, reverse, directions, scale)
        y, last, steps, states, ungated = operator(
            x, dt, A, B, C, D, z, bias, lengths, start, *options, keep, return_last
        )  # fmt: skip
        if keep:
            ctx.save_for_backward(x, dt, A, B, C, D, z, bias, lengths, steps, states, ungated)
            ctx.options = options
            ctx.has_start = start is not None and ctx.needs_input_grad[9]
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        x, dt, A, B, C, D, z, bias, *_ = saved = ctx.saved_tensors
        operator = as_seen(backward, backward_operator)
        if dy is None:
            dy = torch.zeros_like(x)
        if dlast is not None:
            dlast = dlast.contiguous()
            if dlast.numel() == 0:
                dlast = None
        dx, ddt, matrices, sums, dz, dstart = operator(dy, dlast, *saved, *ctx.options, ctx.has_start)
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
