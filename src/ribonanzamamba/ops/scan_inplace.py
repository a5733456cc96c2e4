"""The state-space recurrence with a decay for every channel and state, in plain PyTorch that stays in the cache.

Sixteen positions at a time: the decays and outer products of the whole chunk fill two buffers that are used again for
every chunk, then one in-place multiply-add a position turns the products into states, and one small matrix product
reads the outputs off. The backward pass keeps only the state that enters each chunk and recomputes the rest, so that
memory grows with length / 16 instead of length. `README.md` has the derivation.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ribonanzamamba.ops.scan_chunked import SMALLEST_LOG_DECAY

CHUNK = 16
"""Positions a chunk: two buffers of 16 x batch x state x width floats still fit the cache of a core at usual sizes."""


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
) -> tuple[Tensor, Tensor]:
    """Outputs (b, l, d) and last state (b, d, n) of the recurrence, without skip and gate.

    Args:
        x, dt: (b, l, d); A: (d, n), negative; B, C: (b, l, g, n), each group serves d / g neighbouring channels;
        initial_state: (b, d, n) or None. All of one dtype, float32 or float64.
        present: (b, l) bool, False where a position contributes nothing, returns 0 and gets no gradient.
        reverse: from the last position to the first.

    Differentiable once with respect to all of them, from the outputs and from the last state.
    """
    b, _, d = x.shape
    g, n = B.shape[2:]
    # d last: neighbouring channels lie side by side in every elementwise operation
    grouped_A = A.reshape(g, d // g, n).transpose(1, 2).contiguous()  # g n d/g
    if initial_state is None:
        state = x.new_zeros(b, g, n, d // g)
    else:
        state = initial_state.reshape(b, g, d // g, n).transpose(2, 3)
    tensors = (x, dt, grouped_A, B, C, state)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        y, last = InplaceScan.apply(*tensors, present, reverse)
    else:
        y, last, _ = scan(*tensors, present, reverse, keep=False)
    return y, last.transpose(2, 3).reshape(b, d, n)


class InplaceScan(torch.autograd.Function):
    """`scan` and its gradient; grouped layout, arguments as there."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, state, present, reverse):
        y, last, entering = scan(x, dt, A, B, C, state, present, reverse, keep=True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, dt, A, B, C, entering, present)
        ctx.reverse = reverse
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        gradients = scan_gradients(*ctx.saved_tensors, ctx.reverse, dy, dlast)
        return (*gradients, None, None)


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    present: Tensor | None,
    reverse: bool,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Outputs (b, l, d), last state (b, g, n, d/g) and, with `keep`, the state that enters each chunk in order."""
    b, l, d = x.shape
    g, n, width = A.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    state = state.clone(memory_format=torch.contiguous_format)
    entering = x.new_empty(-(-l // CHUNK), b, g, n, width) if keep else None
    decays = x.new_empty(min(CHUNK, l), b, g, n, width)
    states = torch.empty_like(decays)
    for index, (start, stop) in enumerate(chunks(l, reverse)):
        take = reader(start, stop, present, reverse)
        if entering is not None:
            entering[index] = state
        steps = stop - start
        x_c, dt_c = (take(tensor).reshape(steps, b, g, width) for tensor in (x, dt))
        fill_chunk(decays[:steps], states[:steps], x_c, dt_c, A, take(B), state)
        state.copy_(states[steps - 1])
        y_c = take(C)[..., None, :] @ states[:steps]  # t b g 1 d/g
        put(y, y_c.reshape(steps, b, d), start, stop, reverse)
    return y, state, entering


def scan_gradients(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    entering: Tensor,
    present: Tensor | None,
    reverse: bool,
    dy: Tensor | None,
    dlast: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C and the initial state from those of the outputs and of the last state."""
    b, l, d = x.shape
    g, n, width = A.shape
    dx, ddt, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, dt, B, C))
    dA = x.new_zeros(b, g, n, width)
    dy = torch.zeros_like(x) if dy is None else dy
    carry = x.new_zeros(b, g, n, width) if dlast is None else dlast.clone(memory_format=torch.contiguous_format)
    buffers = [x.new_empty(min(CHUNK, l), b, g, n, width) for _ in range(3)]
    # one pass over dt here saves one over every chunk in the usual case
    clamped = bool(dt.numel()) and bool((dt.amax() * A.amin() < SMALLEST_LOG_DECAY).item())
    for index, (start, stop) in reversed(list(enumerate(chunks(l, reverse)))):
        take = reader(start, stop, present, reverse)
        steps = stop - start
        decays, states, dstates = (buffer[:steps] for buffer in buffers)
        x_c, dt_c, dy_c = (take(tensor).reshape(steps, b, g, width) for tensor in (x, dt, dy))
        B_c, C_c = take(B), take(C)
        fill_chunk(decays, states, x_c, dt_c, A, B_c, entering[index])
        put(dC, (states @ dy_c[..., None])[..., 0], start, stop, reverse)
        # dstates[t] = C_t dy_t + decay_{t+1} dstates[t+1]
        torch.mul(C_c[..., None], dy_c[..., None, :], out=dstates)
        dstates[-1].add_(carry)
        decay_at, dstate_at = decays.unbind(0), dstates.unbind(0)
        for t in range(steps - 2, -1, -1):
            dstate_at[t].addcmul_(decay_at[t + 1], dstate_at[t + 1])
        put(dB, (dstates @ (dt_c * x_c)[..., None])[..., 0], start, stop, reverse)
        du = (B_c[..., None, :] @ dstates)[..., 0, :]  # t b g d/g
        put(dx, (du * dt_c).reshape(steps, b, d), start, stop, reverse)
        # the gradient of the log decays: dstates[t] decay_t state_{t-1}, in the buffer of the decays
        dlog = decays.mul_(dstates)
        carry.copy_(dlog[0])
        dlog[1:].mul_(states[:-1])
        dlog[0].mul_(entering[index])
        if clamped:
            dlog.masked_fill_(torch.mul(dt_c[..., None, :], A, out=states) < SMALLEST_LOG_DECAY, 0)
        for dlog_t, dt_t in zip(dlog.unbind(0), dt_c[..., None, :].unbind(0), strict=True):
            dA.addcmul_(dlog_t, dt_t)
        ddt_c = torch.mul(dlog, A, out=states).sum(dim=3).addcmul_(du, x_c).reshape(steps, b, d)
        if present is not None:
            # dt was set to 0 there: what moves it has no effect
            ddt_c.masked_fill_(~take(present)[..., None], 0)
        put(ddt, ddt_c, start, stop, reverse)
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


def reader(start: int, stop: int, present: Tensor | None, reverse: bool) -> Callable[[Tensor], Tensor]:
    """A function from (b, l, ...) to the chunk's (t, b, ...) in the order of the recurrence, 0 where not present."""

    def take(tensor: Tensor) -> Tensor:
        part = tensor[:, start:stop].transpose(0, 1)
        if present is not None:
            mask = present[:, start:stop].transpose(0, 1)
            part = part.masked_fill(~mask.reshape(mask.shape + (1,) * (part.dim() - 2)), 0)
        # a chunk is small: turning it round costs less than a second form of every loop
        return part.flip(0) if reverse else part.contiguous()

    return take


def put(target: Tensor, part: Tensor, start: int, stop: int, reverse: bool) -> None:
    """Write a chunk (t, b, ...) in the order of the recurrence to its place in (b, l, ...)."""
    target[:, start:stop] = (part.flip(0) if reverse else part).transpose(0, 1)
