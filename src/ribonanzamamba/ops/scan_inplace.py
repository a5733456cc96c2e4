"""The state-space recurrence with a decay for every channel and state, in plain PyTorch that stays in the cache.

Sixteen positions at a time: the decays and outer products of the whole chunk fill two buffers that are used again for
every chunk, then one in-place multiply-add a position turns the products into states, and one small matrix product
reads the outputs off. The backward pass keeps only the state that enters each chunk and recomputes the rest, so that
memory grows with length / 16 instead of length. `README.md` has the derivation.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribonanzamamba.ops.recurrence import copies_a_position
from ribonanzamamba.ops.scan_chunked import SMALLEST_LOG_DECAY

CHUNK = 16
"""Positions a chunk: two buffers of 16 x batch x state x width floats still fit the cache of a core at usual sizes."""


def without_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def selective_scan_inplace(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    *,
    present: Tensor | None = None,
    reverse: bool = False,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs (b, l, d) and last state (b, d, n) of the recurrence, without skip and gate.

    Args:
        x, dt: (b, l, d); A: (d, n), negative; B, C: (b, l, g, n), each group serves d / g neighbouring channels;
        initial_state: (b, d, n) or None. All of one dtype, float32 or float64.
        present: (b, l) bool, False where a position contributes nothing, returns 0 and gets no gradient.
        reverse: from the last position to the first.
        order: (k, steps); shapes and meaning as in `selective_scan`. Without `present` and `reverse`.

    Differentiable once with respect to all of them, from the outputs and from the last state.
    """
    walk = Walk(*x.shape[:2], present, reverse, order, copies_a_position(x, dt))
    b, d, n = x.shape[0], *A.shape
    g = B.shape[2] * walk.directions // walk.copies
    # d last: neighbouring channels lie side by side in every elementwise operation
    grouped_A = A.reshape(g, d // g, n).transpose(1, 2).contiguous()  # g n d/g
    if initial_state is None:
        state = x.new_zeros(b, g, n, d // g)
    else:
        state = initial_state.reshape(b, g, d // g, n).transpose(2, 3)
    tensors = (x, dt, grouped_A, B, C, state)
    # autocast would round the states before the outputs are read off
    with without_autocast(x.device.type):
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            y, last = InplaceScan.apply(*tensors, walk)
        else:
            y, last, _ = scan(*tensors, walk, keep=False)
    return y, last.transpose(2, 3).reshape(b, d, n)


class InplaceScan(torch.autograd.Function):
    """`scan` and its gradient; grouped layout, arguments as there."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, state, walk):
        y, last, entering = scan(x, dt, A, B, C, state, walk, keep=True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, dt, A, B, C, entering)
        ctx.walk = walk
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        return (*scan_gradients(*ctx.saved_tensors, ctx.walk, dy, dlast), None)


@dataclass(frozen=True)
class Walk:
    """Which memory positions the steps of the recurrence take."""

    batch: int
    length: int
    """Of the memory."""
    present: Tensor | None
    reverse: bool
    order: Tensor | None
    copies: int
    """What each position holds of dt, B and C: one, or one for every direction of `order`."""

    @property
    def directions(self) -> int:
        return 1 if self.order is None else self.order.shape[0]

    @property
    def steps(self) -> int:
        return self.length if self.order is None else self.order.shape[1]

    def chunks(self) -> "list[Stretch] | list[Visits]":
        """In the order of the recurrence; a short one comes last."""
        if self.order is None:
            return [Stretch(*ends, self.present, self.reverse) for ends in chunks(self.length, self.reverse)]
        return visits(self.order, self.batch, self.length, self.copies) if self.order.numel() else []

    def rows(self, tensor: Tensor, copies: int = 1) -> Tensor:
        """(b, l, copies c, ...) as the rows that `Visits` numbers, (b l copies, c, ...); as it is without an order."""
        return tensor if self.order is None else tensor.unflatten(2, (copies, -1)).flatten(0, 2)


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    walk: Walk,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Outputs (b, l, d), last state (b, g, n, d/g) and, with `keep`, the state that enters each chunk in order."""
    b, l, d = x.shape
    g, n, width = A.shape
    y = x.new_empty(b, l, walk.copies * d)
    x_rows = walk.rows(x)
    y_rows, dt_rows, B_rows, C_rows = (walk.rows(tensor, walk.copies) for tensor in (y, dt, B, C))
    state = state.clone(memory_format=torch.contiguous_format)
    parts = walk.chunks()
    entering = x.new_empty(len(parts), b, g, n, width) if keep else None
    decays = x.new_empty(min(CHUNK, walk.steps), b, g, n, width)
    states = torch.empty_like(decays)
    for index, chunk in enumerate(parts):
        if entering is not None:
            entering[index] = state
        steps = chunk.steps
        x_c = chunk.read_shared(x_rows).reshape(steps, b, g, width)
        dt_c = chunk.read(dt_rows).reshape(steps, b, g, width)
        fill_chunk(decays[:steps], states[:steps], x_c, dt_c, A, chunk.read(B_rows), state)
        state.copy_(states[steps - 1])
        y_c = chunk.read(C_rows)[..., None, :] @ states[:steps]  # t b g 1 d/g
        chunk.write(y_rows, y_c.reshape(steps, b, -1))
    return (y if walk.copies == 1 else y.view(b, l, walk.copies, d).mean(2)), state, entering


def scan_gradients(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    entering: Tensor,
    walk: Walk,
    dy: Tensor | None,
    dlast: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C and the initial state from those of the outputs and of the last state."""
    b, l, d = x.shape
    g, n, width = A.shape
    dx = x.new_empty(b, l, walk.copies * d)
    ddt, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (dt, B, C))
    dt_rows, B_rows, C_rows = (walk.rows(tensor, walk.copies) for tensor in (dt, B, C))
    dx_rows, ddt_rows, dB_rows, dC_rows = (walk.rows(tensor, walk.copies) for tensor in (dx, ddt, dB, dC))
    dA = x.new_zeros(b, g, n, width)
    dy = torch.zeros_like(x) if dy is None else dy
    x_rows, dy_rows = walk.rows(x), walk.rows(dy)
    carry = x.new_zeros(b, g, n, width) if dlast is None else dlast.clone(memory_format=torch.contiguous_format)
    buffers = [x.new_empty(min(CHUNK, walk.steps), b, g, n, width) for _ in range(3)]
    # one pass over dt here saves one over every chunk in the usual case
    clamped = bool(dt.numel()) and bool((dt.amax() * A.amin() < SMALLEST_LOG_DECAY).item())
    for index, chunk in reversed(list(enumerate(walk.chunks()))):
        steps = chunk.steps
        decays, states, dstates = (buffer[:steps] for buffer in buffers)
        x_c, dy_c = (chunk.read_shared(tensor).reshape(steps, b, g, width) for tensor in (x_rows, dy_rows))
        if walk.copies > 1:
            dy_c = dy_c / walk.copies
        dt_c = chunk.read(dt_rows).reshape(steps, b, g, width)
        B_c, C_c = chunk.read(B_rows), chunk.read(C_rows)
        fill_chunk(decays, states, x_c, dt_c, A, B_c, entering[index])
        chunk.write(dC_rows, (states @ dy_c[..., None])[..., 0])
        # dstates[t] = C_t dy_t + decay_{t+1} dstates[t+1]
        torch.mul(C_c[..., None], dy_c[..., None, :], out=dstates)
        dstates[-1].add_(carry)
        decay_at, dstate_at = decays.unbind(0), dstates.unbind(0)
        for t in range(steps - 2, -1, -1):
            dstate_at[t].addcmul_(decay_at[t + 1], dstate_at[t + 1])
        chunk.write(dB_rows, (dstates @ (dt_c * x_c)[..., None])[..., 0])
        du = (B_c[..., None, :] @ dstates)[..., 0, :]  # t b g d/g
        chunk.write(dx_rows, (du * dt_c).reshape(steps, b, -1))
        # the gradient of the log decays: dstates[t] decay_t state_{t-1}, in the buffer of the decays
        dlog = decays.mul_(dstates)
        carry.copy_(dlog[0])
        dlog[1:].mul_(states[:-1])
        dlog[0].mul_(entering[index])
        if clamped:
            dlog.masked_fill_(torch.mul(dt_c[..., None, :], A, out=states) < SMALLEST_LOG_DECAY, 0)
        for dlog_t, dt_t in zip(dlog.unbind(0), dt_c[..., None, :].unbind(0), strict=True):
            dA.addcmul_(dlog_t, dt_t)
        ddt_c = torch.mul(dlog, A, out=states).sum(dim=3).addcmul_(du, x_c).reshape(steps, b, -1)
        if walk.present is not None:
            # dt was set to 0 there: what moves it has no effect
            ddt_c.masked_fill_(~chunk.read(walk.present)[..., None], 0)
        chunk.write(ddt_rows, ddt_c)
    dx = dx if walk.copies == 1 else dx.view(b, l, walk.copies, d).sum(2)
    return dx, ddt, dA.sum(dim=0), dB, dC, carry


def fill_chunk(decays: Tensor, states: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, state: Tensor) -> None:
    """Write exp(dt A) into `decays` and h_t = decay_t h_{t-1} + dt_t B_t x_t into `states`; `state` comes before.

    decays, states: (t, b, g, n, d/g); x, dt: (t, b, g, d/g); A: (g, n, d/g); B: (t, b, g, n); state: (b, g, n, d/g).
    """
    torch.mul(dt[..., None, :], A, out=decays).clamp_(min=SMALLEST_LOG_DECAY).exp_()
    torch.mul((dt * x)[..., None, :], B[..., None], out=states)
    for decay, new in zip(decays.unbind(0), states.unbind(0), strict=True):
        state = new.addcmul_(decay, state)


def chunks(length: int, reverse: bool) -> Iterator[tuple[int, int]]:
    """Start and stop of each chunk in the order of the recurrence; a short one comes last.

    >>> list(chunks(40, reverse=False)), list(chunks(40, reverse=True))
    ([(0, 16), (16, 32), (32, 40)], [(24, 40), (8, 24), (0, 8)])
    """
    for done in range(0, length, CHUNK):
        end = min(done + CHUNK, length)
        yield (length - end, length - done) if reverse else (done, end)


@dataclass(frozen=True)
class Stretch:
    """Neighbouring positions, from one end to the other."""

    start: int
    stop: int
    present: Tensor | None
    reverse: bool

    @property
    def steps(self) -> int:
        return self.stop - self.start

    def read(self, tensor: Tensor) -> Tensor:
        """(b, l, ...) as (t, b, ...) in the order of the recurrence, 0 where not present."""
        part = tensor[:, self.start : self.stop].transpose(0, 1)
        if self.present is not None:
            mask = self.present[:, self.start : self.stop].transpose(0, 1)
            part = part.masked_fill(~mask.reshape(mask.shape + (1,) * (part.dim() - 2)), 0)
        # a chunk is small: turning it round costs less than a second form of every loop
        return part.flip(0) if self.reverse else part.contiguous()

    read_shared = read

    def write(self, target: Tensor, part: Tensor) -> None:
        """Put (t, b, ...) in the order of the recurrence to its place in (b, l, ...)."""
        target[:, self.start : self.stop] = (part.flip(0) if self.reverse else part).transpose(0, 1)


@dataclass(frozen=True)
class Visits:
    """Positions anywhere, one for every direction at every step, or none."""

    steps: int
    batch: int
    positions: Tensor
    """(t b k,) rows of the inputs that all directions share, seen as (b l, ...); the first where there is none."""
    slots: Tensor
    """(t b k,) rows of what has one part for each direction, seen as (b l copies, ...)."""
    absent: Tensor | None
    """(t b k,) bool; None where no chunk has such a step."""

    def read(self, rows: Tensor) -> Tensor:
        """(b l copies, c, ...) as (t, b, k c, ...) in the order of the recurrence, 0 where there is no position."""
        return self.select(rows, self.slots)

    def read_shared(self, rows: Tensor) -> Tensor:
        """(b l, c, ...) as (t, b, k c, ...): all directions read the same."""
        return self.select(rows, self.positions)

    def select(self, rows: Tensor, index: Tensor) -> Tensor:
        part = rows.index_select(0, index)
        if self.absent is not None:
            part.masked_fill_(self.absent.view(-1, *(1,) * (part.dim() - 1)), 0)
        return part.view(self.steps, self.batch, -1, *part.shape[2:])

    def write(self, rows: Tensor, part: Tensor) -> None:
        """Put (t, b, k c, ...) in the order of the recurrence to its place in (b l copies, c, ...)."""
        part, slots = part.reshape(-1, *rows.shape[1:]), self.slots
        if self.absent is not None:
            present = ~self.absent
            part, slots = part[present], slots[present]
        rows.index_copy_(0, slots, part)


def visits(order: Tensor, batch: int, length: int, copies: int) -> list[Visits]:
    """The chunks of an order (k, steps).

    >>> [chunk.slots.tolist() for chunk in visits(torch.tensor([[0, 1, 2], [2, 1, 0]]), 1, 3, copies=2)]
    [[0, 5, 2, 3, 4, 1]]
    """
    turned = order.T.long()[:, None]  # t 1 k
    row = torch.arange(batch, device=order.device)[:, None] * length
    absent = (turned < 0).expand(-1, batch, -1)
    positions = turned.clamp(min=0) + row
    slots = positions if copies == 1 else positions * copies + torch.arange(copies, device=order.device)
    somewhere = bool(absent.any())
    parts = zip(*(tensor.split(CHUNK) for tensor in (positions, slots, absent)), strict=True)
    return [
        Visits(len(p), batch, p.flatten(), s.flatten(), nowhere.flatten() if somewhere else None)
        for p, s, nowhere in parts
    ]
