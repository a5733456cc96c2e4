"""`ssd`: the state-space recurrence with a scalar decay a head (Mamba-2). The contract, and the only place that
chooses an implementation."""

import torch
from torch import Tensor

from ribonanzamamba.ops.recurrence import present_positions, skip_and_gate, step_sizes
from ribonanzamamba.ops.scan_chunked import ssd_chunked
from ribonanzamamba.ops.scan_reference import ssd_reference

BACKENDS = ("auto", "chunked", "reference")


def ssd(
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
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """y_t = C_t h_t + D x_t with h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, times silu(z_t) where z is given.

    Args:
        x: (b, l, h, p) inputs, h heads of width p.
        dt: (b, l, h) step sizes; after `dt_bias` (h,) is added and, with `dt_softplus`, softplus taken.
        A: (h,) negative decay rates.
        B, C: (b, l, g, n), g groups that each serve h / g neighbouring heads; n is the size of the state.
        D: (h,) skip weights. z: (b, l, h, p) gate.
        reverse: run from the last position to the first.
        lengths: (b,) integers; positions at or beyond a row's length contribute nothing
        and return exactly 0, in both directions.
        initial_state: (b, h, n, p), the state before the first position (after the last one with `reverse`).
        return_state: also return the state after the last position taken, (b, h, n, p).
        backend: "auto", "chunked" (plain PyTorch, parallel) or "reference" (the definition, a loop).

    Returns:
        (b, l, h, p) in the dtype of x, and the state in at least float32 if asked for.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.

    Source: Dao and Gu 2024, "Transformers are SSMs", section 6.
    """
    check_shapes(x, dt, A, B, C)
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    if backend == "reference":
        return ssd_reference(
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
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    dt = step_sizes(dt, dt_bias, dt_softplus=dt_softplus, dtype=wide)
    present = present_positions(x.shape[1], lengths)  # b l
    if present is not None:
        dt = dt.masked_fill(~present[..., None], 0)
        x = x.masked_fill(~present[..., None, None], 0)
    if x.shape[1] == 0:
        b, l, h, p = x.shape
        state = x.new_zeros(b, h, B.shape[-1], p, dtype=wide) if initial_state is None else initial_state
        return (x, state) if return_state else x
    steps = (x, dt, B, C)
    if reverse:
        steps = tuple(tensor.flip(1) for tensor in steps)
    y, state = ssd_chunked(steps[0], steps[1], A, steps[2], steps[3], initial_state)
    if reverse:
        y = y.flip(1)
    y = skip_and_gate(y, x, None if D is None else D[:, None], z, present).to(x.dtype)
    return (y, state) if return_state else y


def check_shapes(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"x: expected (batch, length, heads, width), got {tuple(x.shape)}")
    b, l, h, _ = x.shape
    if dt.shape != (b, l, h):
        raise ValueError(f"dt: expected {(b, l, h)}, got {tuple(dt.shape)}")
    if A.shape != (h,):
        raise ValueError(f"A: expected {(h,)}, got {tuple(A.shape)}")
    if B.shape != C.shape or B.dim() != 4 or B.shape[:2] != (b, l):
        raise ValueError(f"B and C: expected ({b}, {l}, groups, state), got {tuple(B.shape)} and {tuple(C.shape)}")
    if h % B.shape[2]:
        raise ValueError(f"groups: {h} heads cannot be shared by {B.shape[2]} groups")
