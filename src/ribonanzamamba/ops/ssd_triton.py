"""Launches the kernels of `ssd_kernels.py`: shapes, buffers, launch tables, the gradient, and operators that
torch.compile sees as one node. A launch needs Triton; `backend.py` says when it can run."""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribonanzamamba.ops.backend import as_seen, cdiv, device_of, dot_type, next_power_of_2, on_launch, processors

LONGEST_CHUNK, LONGEST_WIDE_CHUNK = 64, 32
"""Positions a chunk: 64 rows are what a matrix unit takes at a time; float32 tiles of them would spill registers, and
those of B and C of more than WIDEST_STATE numbers leave no shared memory."""
WIDEST_STATE = 128
"""Numbers of a state for each channel whose chunks are long."""
WIDEST_TILE, WIDEST_WALK, NARROWEST_WALK = 64, 64, 16
"""Channels of a head that one program takes: all others, and those that go from chunk to chunk, at most and, where
that spares segments, at least."""
LARGEST_STATE_TILE = 64 * 64
"""Numbers of the state that one program of the backward pass takes where chunks are short."""
STATE_STAGES, NARROW_STATE_STAGES = 3, 4
"""Of loads in a walk, and in a narrow one, which takes less shared memory and has less to do while it waits."""
CACHED_STATES = 24 * 2**20
"""Bytes of states that a walk leaves in the cache (50 MB on an H100). More would drive out what is read on the way."""
OUTPUT_REGISTERS = {1: 128, 2: 255}
"""By directions: four programs a multiprocessor of one head each, and two of several."""
GRADIENT_LAUNCH = {"num_warps": 4, "maxnreg": 255}
"""Left to itself, the assembler can choose 32 registers (Triton 3.6)."""
HEAD_STAGES, WIDE_HEAD_STAGES = 3, 2
"""Of loads, where a program takes one head after the other and states have up to 64 numbers, of 16 and of 32 bits: more
take the shared memory of GPUs other than Hopper, 99 KiB of a program."""
MATRIX_GRADIENT_LAUNCH = {"num_stages": 1, "maxnreg": 255}
"""It waits for memory with any number of stages."""
STEPS_A_PROGRAM = 256
"""Of the kernels that see step sizes only."""
PROGRAMS_A_PROCESSOR = 2
"""Walks side by side."""
FEWEST_CHUNKS = 4
"""Chunks a segment: in shorter ones, states that enter segments cost more than the waiting that they spare."""
MOST_HEADS = 8
"""Heads that a program takes one after the other, which share B C^T and its gradient, where enough programs remain; of
one direction in the backward pass only."""
FEWEST_PROGRAMS = 1
"""A multiprocessor, of several heads each."""
GATE_TILE = 4096
"""Numbers that a program of `gate_gradient_kernel` takes, whole rows of a head."""
PASS_NUMBERS, PASS_AHEAD = 512, 8
"""Of a state that one program of `pass_kernel` takes, and segments whose loads are under way at once."""
SUM_ROWS, SUM_TERMS = 32, 256
"""Rows of dB or dC that a program adds up, and terms of another sum that it takes at a time."""


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
    heads_a_program: int
    """Of what takes chunks by themselves: heads of one group."""
    walk_BP: int
    walk_tiles: int
    """BP and tiles of what goes from chunk to chunk."""
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
    def walk_tile(self) -> dict[str, int | bool]:
        """As `tile`, of what goes from chunk to chunk."""
        whole = self.state == self.BN and self.width % self.walk_BP == 0
        return {"Q": self.Q, "BN": self.BN, "BP": self.walk_BP, "WHOLE": whole}

    @functools.cached_property
    def walks(self) -> tuple[int, int]:
        """Grid of what goes from chunk to chunk."""
        return self.rows * self.walk_tiles, self.segments

    @functools.cached_property
    def programs_a_chunk(self) -> int:
        """Of what takes chunks by themselves, for each row of the batch."""
        return self.heads // self.heads_a_program * self.tiles

    def head_stages(self, dtype: torch.dtype) -> int:
        """Of loads of what takes heads of one chunk in turns."""
        if self.BN > 64:
            return 1
        return WIDE_HEAD_STAGES if dtype == torch.float32 else HEAD_STAGES

    @functools.cached_property
    def chunks_a_program(self) -> int:
        """Of the kernels that see step sizes only."""
        return min(next_power_of_2(self.chunks), max(1, STEPS_A_PROGRAM // self.Q))

    @functools.cached_property
    def all_steps(self) -> tuple[int, int]:
        return self.rows, cdiv(self.chunks, self.chunks_a_program)


def chunk_size(length: int, state: int, dtype: torch.dtype) -> int:
    longest = LONGEST_WIDE_CHUNK if dtype == torch.float32 or state > WIDEST_STATE else LONGEST_CHUNK
    return min(longest, max(16, next_power_of_2(length)))


def plan(x: Tensor, B: Tensor, directions: int, *, backward: bool = False) -> Plan:
    """How the pass over these tensors is cut."""
    # the sizes that torch.compile leaves open are decided here
    batch, length, heads, width, groups, state = map(int, (*x.shape, *B.shape[2:]))
    Q = chunk_size(length, state, x.dtype)
    return planned(
        batch, length, heads, width, groups // directions, state, directions, Q, backward, processors(x.device)
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def planned(
    batch: int, length: int, heads: int, width: int, groups: int, state: int, directions: int, Q: int, backward: bool,
    processors: int,
) -> Plan:  # fmt: skip
    """Tile and segment sizes: enough programs for the device, no more segments than it needs for that."""
    BN = max(16, next_power_of_2(state))
    BP, walk_BP = (min(most, max(16, next_power_of_2(width))) for most in (WIDEST_TILE, WIDEST_WALK))
    if Q == LONGEST_CHUNK:
        # of narrower tiles of matrix units ptxas 12.8, which Triton 3.6 brings, can take wrong addresses
        BP = WIDEST_TILE
    elif backward and BN > 64:
        BP = max(16, LARGEST_STATE_TILE // BN)
    chunks = cdiv(length, Q)
    rows, wanted = max(1, directions * batch * heads), PROGRAMS_A_PROCESSOR * processors
    if chunks >= 2 * FEWEST_CHUNKS:
        narrower = (walk_BP // parts for parts in (1, 2, 4) if walk_BP // parts >= NARROWEST_WALK)
        walk_BP = next((BP for BP in narrower if wanted // (rows * cdiv(width, BP)) == 1), walk_BP)
    tiles, walk_tiles = cdiv(width, BP), cdiv(width, walk_BP)
    heads_a_program = math.gcd(heads // groups, MOST_HEADS if backward or directions > 1 else 1)
    while heads_a_program > 1 and batch * heads // heads_a_program * tiles * chunks < FEWEST_PROGRAMS * processors:
        heads_a_program //= 2
    segments = max(1, min(wanted // (rows * walk_tiles), chunks // FEWEST_CHUNKS))
    chunks_a_segment = cdiv(chunks, segments)
    segments = cdiv(chunks, chunks_a_segment)
    return Plan(
        batch, length, heads, width, groups, state, directions,
        Q, BN, BP, tiles, heads_a_program, walk_BP, walk_tiles, chunks, segments, chunks_a_segment,
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
    """Output, last state, and for the gradient the step sizes with their sums, the states that enter chunks and the
    output before the gate.

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
        states = entering_states(x, B, lengths, steps, start, last, reverse, 1.0, cut, exact, False)
        kernels().output_kernel[(cut.batch * cut.programs_a_chunk, cut.chunks)](
            x, B, C, D, z, lengths, steps, states, y, ungated,
            cut.batch, cut.length, cut.heads, cut.width, cut.state, cut.tiles, cut.heads // cut.groups, cut.chunks,
            scale, *strides(x), *strides(B), *strides(C), *strides(z),
            DIRECTIONS=directions, REVERSE=reverse and directions == 1, HAS_D=D is not None, HAS_Z=z is not None,
            HAS_LENGTHS=lengths is not None, HAS_STATES=states.numel() > 0, KEEP=keep, DOT=dot, PRECISION=precision,
            EXACT=exact, HEADS=cut.heads_a_program, **cut.tile, num_warps=4, num_stages=cut.head_stages(x.dtype),
            maxnreg=OUTPUT_REGISTERS[directions],
        )  # fmt: skip
    if not keep:
        steps, states = steps.new_empty(0), x.new_empty(0)
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
    v: Tensor, K: Tensor, lengths: Tensor | None, steps: Tensor, start: Tensor | None, last: Tensor,
    reverse: bool, scale: float, cut: Plan, exact: bool, backward: bool,
) -> Tensor:  # fmt: skip
    """What enters each chunk (rows, chunks, n, p), rounded copies of what is walked in float32, and in `last`, unless
    that is empty, the state after all of them; `backward`: its gradient, from the other end. Empty, and nothing is
    walked that nobody needs: nothing enters."""
    enters, last = has_states(cut.chunks, start), last if last.numel() else None
    if not enters and last is None:
        return v.new_empty(0)
    state, wide = (cut.state, cut.width), torch.float32
    states = v.new_empty((cut.rows, cut.chunks, *state) if enters else 0)
    dot, precision = dot_type(v.dtype)
    stages = NARROW_STATE_STAGES if cut.walk_BP < WIDEST_WALK and cut.BN <= 64 else STATE_STAGES

    def walk(start: Tensor | None, after: Tensor | None, left: Tensor | None, *, keep: bool):
        kernels().state_kernel[cut.walks](
            v, K, lengths, steps, start, states, after, left,
            cut.batch, cut.length, cut.heads, cut.width, cut.state, cut.walk_tiles, cut.heads // cut.groups,
            cut.chunks_a_segment, cut.segments, cut.chunks, scale, *strides(v), *strides(K),
            REVERSE=reverse, HAS_LENGTHS=lengths is not None, HAS_START=start is not None, BACKWARD=backward,
            KEEP=keep, IN_CACHE=states.nbytes <= CACHED_STATES, RETURN_AFTER=after is not None,
            DOT=dot, PRECISION=precision, EXACT=exact, **cut.walk_tile, num_warps=4, num_stages=stages,
        )  # fmt: skip

    if cut.segments > 1:
        entering = v.new_empty((cut.rows, cut.segments, *state), dtype=wide)
        left = v.new_empty((cut.rows, cut.segments), dtype=wide)
        walk(None, entering, left, keep=False)
        size = cut.state * cut.width
        block = min(PASS_NUMBERS, next_power_of_2(size))
        kernels().pass_kernel[(cut.rows, cdiv(size, block))](
            entering, left, start, last, size, cut.segments, cut.batch * cut.heads,
            REVERSE=reverse, HAS_START=start is not None, BACKWARD=backward, RETURN_LAST=last is not None,
            AHEAD=PASS_AHEAD, BLOCK=block, num_warps=4,
        )  # fmt: skip
        start, last = entering, None
    walk(start, last, None, keep=enters)
    return states


def ungated_gradient(dy: Tensor, z: Tensor, ungated: Tensor, lengths: Tensor | None, dz: Tensor, cut: Plan) -> Tensor:
    """The gradient of the output before the gate, and that of the gate in `dz`: `gate_gradient_kernel`."""
    G = torch.empty_like(ungated)
    BP = next_power_of_2(cut.width)
    rows = max(1, GATE_TILE // BP)
    kernels().gate_gradient_kernel[(cut.batch * cut.heads, cdiv(cut.length, rows))](
        z, ungated, lengths, dy, dz, G, cut.length, cut.heads, cut.width, *strides(z), *strides(dy), apart(dz),
        HAS_LENGTHS=lengths is not None, ROWS=rows, BP=BP, num_warps=4,
    )  # fmt: skip
    return G


class Gradients(NamedTuple):
    """What a backward pass writes, perhaps parts of wider tensors: the last axis is dense, and so are the heads of dx
    and dz; the rows of a batch lie one after the other. dz may be empty."""

    dx: Tensor
    ddt: Tensor
    dB: Tensor
    dC: Tensor
    dz: Tensor


def apart(tensor: Tensor) -> int:
    """Numbers from a position to the next; the stride along an axis of one position may be anything."""
    return tensor.stride(1) if tensor.shape[1] > 1 else tensor.stride(0)


def backward(
    dy: Tensor, dlast: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, bias: Tensor | None, lengths: Tensor | None, steps: Tensor, states: Tensor, ungated: Tensor,
    softplus: bool, reverse: bool, directions: int, scale: float, return_dstart: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, dt, B, C and z (empty: there is none), and what `backward_into` returns."""
    tensors = (x, dt, B, C, x.new_empty(0) if z is None else z)
    into = Gradients(*(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors))
    rest = backward_into(
        into, dy, dlast, x, dt, A, B, C, D, z, bias, lengths, steps, states, ungated, softplus, reverse, directions,
        scale, return_dstart,
    )  # fmt: skip
    return *into, *rest


def backward_into(
    into: Gradients, dy: Tensor, dlast: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, bias: Tensor | None, lengths: Tensor | None, steps: Tensor, states: Tensor,
    ungated: Tensor, softplus: bool, reverse: bool, directions: int, scale: float, return_dstart: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of A, dt_bias and D together (3, directions, h) in float32 (D's with the first direction), and of the
    initial state (empty: there is none)."""
    cut = plan(x, B, directions, backward=True)
    (dy,) = dense_rows(dy)
    dx, ddt, dB, dC, dz = into
    groups, positions = directions * cut.groups, cut.batch * cut.length
    partials = cut.heads // cut.groups // cut.heads_a_program * cut.tiles
    # of one program each, dB and dC need no sums
    matrices = x.new_empty((2, positions, groups, partials, cut.state) if partials > 1 else 0)
    to_B, to_C = matrices.unbind() if partials > 1 else (dB, dC)
    of_matrices = (groups * partials * cut.state,) * 2 if partials > 1 else (apart(dB), apart(dC))
    state = (cut.batch, cut.heads, cut.state, cut.width)
    dstart = x.new_empty(state if return_dstart else 0, dtype=torch.float32)
    dproducts = x.new_empty((directions, cut.batch, cut.chunks, cut.programs_a_chunk, cut.Q, cut.Q))
    dsteps = steps.new_empty((cut.tiles, cut.rows, cut.chunks, cut.Q, 4))
    taken = steps.new_empty((cut.tiles, cut.rows, cut.chunks, cut.Q))
    kept = steps.new_empty((cut.tiles, cut.rows, cut.chunks, cut.BN))
    sums = steps.new_empty((3, directions, cut.heads, cut.batch, cut.chunks))
    totals = steps.new_empty((3, directions, cut.heads))
    dot, precision = dot_type(x.dtype)
    exact = x.dtype == torch.float32
    with device_of(x):
        G = dy if z is None else ungated_gradient(dy, z, ungated, lengths, dz, cut)
        dstates = entering_states(G, C, lengths, steps, dlast, dstart, reverse, scale, cut, exact, True)
        entered = {"HAS_STATES": states.numel() > 0, "HAS_DSTATES": dstates.numel() > 0}
        sizes = (
            cut.batch, cut.length, cut.heads, cut.width, cut.state, cut.tiles, cut.heads // cut.groups, cut.chunks,
            scale,
        )  # fmt: skip
        apart_by = (*strides(x), *strides(B), *strides(C), *strides(G))
        options = {
            "DIRECTIONS": directions, "REVERSE": reverse and directions == 1, "HAS_LENGTHS": lengths is not None,
            "HEADS": cut.heads_a_program, "DOT": dot, "PRECISION": precision, "EXACT": exact, **cut.tile,
        }  # fmt: skip
        kernels().gradient_kernel[(cut.batch * cut.programs_a_chunk, cut.chunks)](
            x, B, C, D, lengths, steps, dstates, G, dx, dproducts, dsteps, *sizes, *apart_by, apart(dx),
            HAS_D=D is not None, HAS_DSTATES=entered["HAS_DSTATES"], **options, **GRADIENT_LAUNCH,
            num_stages=cut.head_stages(x.dtype),
        )  # fmt: skip
        kernels().matrix_gradient_kernel[(cut.batch * cut.programs_a_chunk * directions, cut.chunks)](
            x, B, C, lengths, steps, states, dstates, G, dproducts, to_B, to_C, taken, kept,
            *sizes, *apart_by, *of_matrices, **entered, **options, **MATRIX_GRADIENT_LAUNCH,
            num_warps=4 if cut.BN <= 64 else 8,
        )  # fmt: skip
        kernels().step_gradient_kernel[cut.all_steps](
            dt, A, bias, lengths, steps, dsteps, taken, kept, ddt, sums,
            cut.batch, cut.length, cut.heads, cut.tiles, cut.chunks, *strides(dt), apart(ddt),
            REVERSE=reverse, SOFTPLUS=softplus, HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None,
            Q=cut.Q, BN=cut.BN, CHUNKS=cut.chunks_a_program, num_warps=4, **entered,
        )  # fmt: skip
        summed = positions * groups if partials > 1 else 0
        kernels().sum_kernel[(2 * cdiv(summed, SUM_ROWS) + totals.numel(),)](
            matrices, dB, dC, sums, totals, summed // groups, groups, cut.state, cut.batch * cut.chunks,
            apart(dB), dB.stride(2), PARTIALS=partials, ROWS=SUM_ROWS, BN=next_power_of_2(cut.state), BLOCK=SUM_TERMS,
            num_warps=4,
        )  # fmt: skip
    return totals, dstart


forward_operator = torch.library.custom_op("ribonanzamamba::ssd_forward", forward, mutates_args=())
backward_operator = torch.library.custom_op("ribonanzamamba::ssd_backward", backward, mutates_args=())


@forward_operator.register_fake
def _(
    x, dt, A, B, C, D, z, bias, lengths, start, softplus, reverse, directions, scale, keep, return_last
):  # fmt: skip
    cut, wide = plan(x, B, directions), torch.float32
    state = (cut.state, cut.width)
    kept = keep and has_states(cut.chunks, start)
    return (
        x.new_empty(x.shape),
        x.new_empty((cut.batch, cut.heads, *state) if return_last else 0, dtype=wide),
        x.new_empty((3, cut.rows, cut.chunks, cut.Q) if keep else 0, dtype=wide),
        x.new_empty((cut.rows, cut.chunks, *state) if kept else 0),
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
        B.new_empty(B.shape),
        C.new_empty(C.shape),
        x.new_empty(0 if z is None else z.shape),
        x.new_empty((3, directions, heads), dtype=wide),
        x.new_empty((batch, heads, B.shape[3], width) if return_dstart else 0, dtype=wide),
    )


class Ssd(torch.autograd.Function):
    """`forward` and its gradient."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, z, bias, lengths, start, softplus, reverse, directions, scale, return_last):
        operator = as_seen(forward, forward_operator)
        keep = any(ctx.needs_input_grad)
        options = (softplus, reverse, directions, scale)
        y, last, *kept = operator(
            x, dt, A, B, C, D, z, bias, lengths, start, *options, keep, return_last
        )  # fmt: skip
        if keep:
            ctx.save_for_backward(x, dt, A, B, C, D, z, bias, lengths, *kept)
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
        dx, ddt, dB, dC, dz, totals, dstart = operator(dy, dlast, *saved, *ctx.options, ctx.has_start)
        dA, dbias, dD = totals.unbind()
        return (
            dx,
            ddt,
            dA.flatten().to(A.dtype),
            dB,
            dC,
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
