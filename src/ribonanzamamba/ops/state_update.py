"""One position of the state-space recurrences, for sequences that arrive position by position."""

import torch
from torch import Tensor

from ribonanzamamba.ops.scan_chunked import SMALLEST_LOG_DECAY
from ribonanzamamba.ops.selective_scan import skip_and_gate, step_sizes


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Output of one position and the state after it; the state given is not modified.

    Two forms, told apart by A:

    - A (d, n), as `selective_scan`: x, dt, z (b, d), D, dt_bias (d,), state (b, d, n);
    - A (h,), as `ssd`: x, z (b, h, p), dt (b, h), D, dt_bias (h,), state (b, h, n, p).

    B, C: (b, g, n), each group serves neighbouring channels or heads.

    Returns:
        y like x, and the state, in at least float32.

    Raises:
        ValueError: shapes that do not fit.
    """
    b, served = x.shape[:2]
    heads = A.dim() == 1
    expected = (b, served, B.shape[-1], x.shape[-1]) if heads else (b, served, B.shape[-1])
    if x.dim() != 2 + heads or A.shape[0] != served or state.shape != expected:
        raise ValueError(
            f"state: expected {expected} for x {tuple(x.shape)}, A {tuple(A.shape)}, B {tuple(B.shape)}, "
            f"got {tuple(state.shape)}"
        )
    if B.shape != C.shape or B.dim() != 3 or B.shape[0] != b or served % B.shape[1]:
        raise ValueError(f"B and C: expected ({b}, groups, state), got {tuple(B.shape)} and {tuple(C.shape)}")
    wide = torch.promote_types(x.dtype, torch.float32)
    dt = step_sizes(dt, dt_bias, dt_softplus=dt_softplus, dtype=wide)
    B, C = (matrix.to(wide).repeat_interleave(served // B.shape[1], dim=1) for matrix in (B, C))  # b h n or b d n
    rates = A.to(wide)[:, None] if heads else A.to(wide)
    decay = (dt[..., None] * rates).clamp(min=SMALLEST_LOG_DECAY).exp()  # b h 1 or b d n
    if heads:
        u = dt[..., None] * x
        state = decay[..., None] * state + B[..., None] * u[..., None, :]
        y = (C[..., None] * state).sum(-2)
    else:
        state = decay * state + B * (dt * x)[..., None]
        y = (C * state).sum(-1)
    skip = D[:, None] if heads and D is not None else D
    return skip_and_gate(y, x, skip, None if z is None else z.to(wide), None).to(x.dtype), state
