"""`selective_scan`: the state-space recurrence with a decay for every channel and state (Mamba-1), from one end or from
both. The contract, and the only place that chooses an implementation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ribonanzamamba.ops.backend import Explanation, choose
from ribonanzamamba.ops.recurrence import copies_a_position, present_positions, skip_and_gate, step_sizes
from ribonanzamamba.ops.scan_inplace import selective_scan_inplace
from ribonanzamamba.ops.scan_reference import selective_scan_reference

BACKENDS = ("auto", "triton", "inplace", "reference")
MERGES = ("mean", "sum", "concat")


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    reverse: bool = False,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    order: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """y_t = C_t h_t + D x_t with h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, times silu(z_t) where z is given.

    Args:
        x: (b, l, d) inputs.
        dt: (b, l, d) step sizes; after `dt_bias` (d,) is added and, with `dt_softplus`, softplus taken.
        A: (d, n) negative decay rates; n is the size of a channel's state.
        B, C: (b, l, g, n), g groups that each serve d / g neighbouring channels.
        D: (d,) skip weights. z: (b, l, d) gate.
        reverse: run from the last position to the first.
        lengths: (b,) integers; positions at or beyond a row's length contribute nothing and return exactly 0,
        in both directions, whatever finite numbers stand there.
        initial_state: (b, d, n), the state before the first position (after the last one with `reverse`).
        return_state: also return the state after the last position taken, (b, d, n); differentiable too.
        order: (k, steps) integers, k directions over shared inputs: step s of direction j takes position order[j, s],
        or none where that is negative. x stays (b, l, d), and so does the result; A (k d, n), D and dt_bias (k d,) and
        the states (b, k d, n) hold one part for each direction. Two kinds, told apart by dt:
        dt (b, l, k d), B, C (b, l, k g, n): every direction takes every position once; the mean of their outputs.
        dt (b, l, d), B, C (b, l, g, n): each position is taken once, by one of the directions.
        Not with z (gate the result), lengths (step sizes of 0 hand the state on) or reverse (flip the order). Tensors
        on a GPU are trusted: looking at an order there would wait for it.
        backend: "auto" (Triton kernels for tensors on a GPU, "inplace" elsewhere; `explain` says why), "triton",
        "inplace" (plain PyTorch, linear memory) or "reference" (the definition, a loop, in the dtype of its inputs and
        without the bound on decays; differentiable any number of times, the others once).

    Returns:
        (b, l, d) in the dtype of x, and the state in at least float32 if asked for. A step's log decay dt A counts as
        at least -20: exp(-20) = 2e-9 of the state stays.

    Raises:
        ValueError: shapes that do not fit, an order that leaves out or repeats a position, what goes not with an order,
        an unknown backend, or one that cannot run.

    Source: Gu and Dao 2023, "Mamba", equation 2 and section 3.
    """
    check_shapes(x, dt, A, B, C, D, z, dt_bias, initial_state, lengths, order)
    if order is not None:
        for name, given in (("z", z is not None), ("lengths", lengths is not None), ("reverse", reverse)):
            if given:
                raise ValueError(f"{name}: not together with order")
        check_order(order, x.shape[1], copies_a_position(x, dt))
    chosen = explain_selective_scan(x, backend).backend
    if chosen == "reference":
        return selective_scan_reference(
            x,
            dt,
            A,
            B,
            C,
            D,
            z,
            dt_bias,
            dt_softplus=dt_softplus,
            reverse=reverse,
            lengths=lengths,
            initial_state=initial_state,
            return_state=return_state,
            order=order,
        )
    if chosen == "triton" and x.numel():
        from ribonanzamamba.ops.selective_scan_triton import selective_scan_triton

        y, state = selective_scan_triton(
            x,
            dt,
            A,
            B,
            C,
            D,
            z,
            dt_bias,
            lengths=lengths,
            initial_state=initial_state,
            dt_softplus=dt_softplus,
            reverse=reverse,
            return_state=return_state,
            order=order,
        )
        return (y, state) if return_state else y
    wide = torch.promote_types(x.dtype, torch.float32)
    present = present_positions(x.shape[1], lengths)
    if order is not None:
        D, dt_bias = by_position(D, dt_bias, order, *x.shape[1:], copies_a_position(x, dt))
    y, state = selective_scan_inplace(
        x.to(wide),
        step_sizes(dt, dt_bias, dt_softplus=dt_softplus, dtype=wide),
        A.to(wide),
        B.to(wide),
        C.to(wide),
        None if initial_state is None else initial_state.to(wide),
        present=present,
        reverse=reverse,
        order=order,
    )
    y = skip_and_gate(y, x, D, None if z is None else z.to(wide), present).to(x.dtype)
    return (y, state) if return_state else y


def bidirectional_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    lengths: Tensor | None = None,
    merge: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """`selective_scan` from the left and from the right in one launch, merged, then skipped and gated as there.

    Args:
        x, z: (b, l, d), shared by the directions. D: (d,).
        dt: (b, l, 2 d), A: (2 d, n), dt_bias: (2 d,), B and C: (b, l, 2 g, n); the first half of each belongs to the
        direction from left to right, the second to the other.
        merge: "mean" (the sum has twice the magnitude, which overflows in half precision), "sum", or "concat":
        (b, l, 2 d), each half skipped and gated.
        dt_softplus, lengths, backend: as in `selective_scan`.

    Returns:
        (b, l, d) in the dtype of x; (b, l, 2 d) for "concat".

    Raises:
        ValueError: shapes that do not fit, an unknown merge, an unknown backend or one that cannot run.
    """
    if merge not in MERGES:
        raise ValueError(f"merge: expected one of {MERGES}, got {merge!r}")
    halved = ((dt, 2), (A, 0), (B, 2), (C, 2), *(() if dt_bias is None else ((dt_bias, 0),)))
    for tensor, axis in halved:
        if tensor.dim() <= axis or tensor.shape[axis] % 2:
            raise ValueError(f"expected both directions along axis {axis}, got a tensor of shape {tuple(tensor.shape)}")
    halves = []
    for k in range(2):
        parts = [tensor.chunk(2, dim=axis)[k] for tensor, axis in halved]
        halves.append((*parts[:4], None if dt_bias is None else parts[4]))
        check_shapes(x, *parts[:4], D, z, halves[k][4], None, lengths)
    chosen = explain_selective_scan(x, backend).backend
    scale = 0.5 if merge == "mean" else 1.0
    if chosen == "triton" and merge != "concat" and x.numel():
        from ribonanzamamba.ops.selective_scan_triton import selective_scan_triton

        return selective_scan_triton(
            x,
            dt,
            A,
            B,
            C,
            D,
            z,
            dt_bias,
            lengths=lengths,
            dt_softplus=dt_softplus,
            directions=2,
            scale=scale,
        )[0]
    outputs = [
        selective_scan(
            x,
            *(half[:4]),
            D if merge == "concat" else None,
            z if merge == "concat" else None,
            half[4],
            dt_softplus=dt_softplus,
            reverse=bool(k),
            lengths=lengths,
            backend=chosen,
        )
        for k, half in enumerate(halves)
    ]
    if merge == "concat":
        return torch.cat(outputs, dim=2)
    wide = torch.promote_types(x.dtype, torch.float32)
    y = (outputs[0].to(wide) + outputs[1].to(wide)) * scale
    present = present_positions(x.shape[1], lengths)
    return skip_and_gate(y, x, D, None if z is None else z.to(wide), present).to(x.dtype)


def explain_selective_scan(x: Tensor, backend: str = "auto") -> Explanation:
    """Which implementation of `selective_scan` runs for these tensors, and why.

    Raises:
        ValueError: an unknown backend, or one that cannot run.
    """
    return choose(backend, "inplace", BACKENDS, x.device, x.dtype, 1)


def check_shapes(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    order: Tensor | None = None,
) -> None:
    if x.dim() != 3:
        raise ValueError(f"x: expected (batch, length, width), got {tuple(x.shape)}")
    b, l, d = x.shape
    directions = copies = 1
    if order is not None:
        if order.dim() != 2 or not len(order) or order.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"order: expected int32 or int64 (directions, steps), got {order.dtype} {tuple(order.shape)}"
            )
        directions = order.shape[0]
        copies = directions if dt.shape[2:] == (directions * d,) else 1
    if A.dim() != 2 or A.shape[0] != directions * d:
        raise ValueError(f"A: expected ({directions * d}, state), got {tuple(A.shape)}")
    if B.shape != C.shape or B.dim() != 4 or B.shape[:2] != (b, l) or B.shape[3] != A.shape[1]:
        raise ValueError(
            f"B and C: expected ({b}, {l}, groups, {A.shape[1]}), got {tuple(B.shape)} and {tuple(C.shape)}"
        )
    if B.shape[2] == 0 or B.shape[2] % copies or copies * d % B.shape[2]:
        raise ValueError(f"groups: {copies * d} channels cannot be shared by {B.shape[2]} groups")
    expected = {
        "dt": (dt, (b, l, copies * d)),
        "D": (D, (directions * d,)),
        "z": (z, (b, l, d)),
        "dt_bias": (dt_bias, (directions * d,)),
        "initial_state": (initial_state, (b, directions * d, A.shape[1])),
        "lengths": (lengths, (b,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: expected {shape}, got {tuple(tensor.shape)}")


def check_order(order: Tensor, length: int, copies: int) -> None:
    """Whether each direction (one copy of dt for each) or all together (one copy) take every position once."""
    if copies > 1 and order.shape[1] != length:
        raise ValueError(f"order: expected {length} steps, got {order.shape[1]}")
    if order.numel() < length:
        raise ValueError(f"order: expected at least {length} steps together, got {order.numel()}")
    if order.device.type != "cpu" or torch.compiler.is_compiling():
        return
    taken = (order if copies > 1 else order[order >= 0][None]).sort(dim=1).values
    if not torch.equal(taken, torch.arange(length, dtype=order.dtype).expand(copies, -1)):
        who = "each direction" if copies > 1 else "the directions together"
        raise ValueError(f"order: expected that {who} take every position below {length} once")


def by_position(
    D: Tensor | None, dt_bias: Tensor | None, order: Tensor, length: int, width: int, copies: int
) -> tuple[Tensor | None, Tensor | None]:
    """D and dt_bias of all directions, (k d,), as they act on what a position holds: they broadcast to x and dt."""
    if copies > 1:
        return None if D is None else D.unflatten(0, (copies, width)).mean(0), dt_bias
    # the direction that takes each position
    present = order >= 0
    direction = order.new_empty(length)
    direction[order[present].long()] = present.nonzero()[:, 0].to(order.dtype)
    rows = [
        None if tensor is None else F.embedding(direction, tensor.unflatten(0, (-1, width))) for tensor in (D, dt_bias)
    ]
    return rows[0], rows[1]
