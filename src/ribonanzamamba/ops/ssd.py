"""`ssd`: the state-space recurrence with a scalar decay a head (Mamba-2), from one end or from both. The contract, and
the only place that chooses an implementation."""

import torch
from torch import Tensor

from ribonanzamamba.ops.backend import Explanation, choose
from ribonanzamamba.ops.recurrence import present_positions, skip_and_gate, step_sizes
from ribonanzamamba.ops.scan_chunked import ssd_chunked
from ribonanzamamba.ops.scan_reference import ssd_reference

BACKENDS = ("auto", "triton", "chunked", "reference")
MERGES = ("mean", "sum", "concat")


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
        return_state: also return the state after the last position taken, (b, h, n, p); differentiable too.
        backend: "auto" (Triton kernels for tensors on a GPU, "chunked" elsewhere; `explain` says why), "triton",
        "chunked" (plain PyTorch, parallel) or "reference" (the definition, a loop).

    Returns:
        (b, l, h, p) in the dtype of x, and the state in at least float32 if asked for.

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or one that cannot run.

    Source: Dao and Gu 2024, "Transformers are SSMs", section 6.
    """
    check_shapes(x, dt, A, B, C)
    chosen = explain_ssd(x, B, backend).backend
    wide = torch.promote_types(x.dtype, torch.float32)
    if chosen == "reference":
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
    if x.numel() == 0:
        b, _, h, p = x.shape
        state = x.new_zeros(b, h, B.shape[-1], p, dtype=wide) if initial_state is None else initial_state
        return (x, state) if return_state else x
    if chosen == "triton":
        from ribonanzamamba.ops.ssd_triton import ssd_triton

        y, state = ssd_triton(
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
        )
        return (y, state) if return_state else y
    dt = step_sizes(dt, dt_bias, dt_softplus=dt_softplus, dtype=wide)
    present = present_positions(x.shape[1], lengths)  # b l
    if present is not None:
        dt = dt.masked_fill(~present[..., None], 0)
        x = x.masked_fill(~present[..., None, None], 0)
    steps = (x, dt, B, C)
    if reverse:
        steps = tuple(tensor.flip(1) for tensor in steps)
    y, state = ssd_chunked(steps[0], steps[1], A, steps[2], steps[3], initial_state)
    if reverse:
        y = y.flip(1)
    y = skip_and_gate(y, x, None if D is None else D[:, None], z, present).to(x.dtype)
    return (y, state) if return_state else y


def bidirectional_ssd(
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
    """`ssd` from the left and from the right in one launch, merged, then skipped and gated as there.

    Args:
        x, z: (b, l, h, p), shared by the directions. D: (h,).
        dt: (b, l, 2 h), A and dt_bias: (2 h,), B and C: (b, l, 2 g, n); the first half of each belongs to the direction
        from left to right, the second to the other.
        merge: "mean" (the sum has twice the magnitude, which overflows in half precision), "sum", or "concat":
        (b, l, 2 h, p), each half skipped and gated.
        dt_softplus, lengths, backend: as in `ssd`.

    Returns:
        (b, l, h, p) in the dtype of x; (b, l, 2 h, p) for "concat".

    Raises:
        ValueError: shapes that do not fit, an unknown merge, an unknown backend or one that cannot run.
    """
    if merge not in MERGES:
        raise ValueError(f"merge: expected one of {MERGES}, got {merge!r}")
    h = x.shape[2] if x.dim() == 4 else 0
    check_shapes(x, dt, A, B, C, directions=2)
    if merge == "concat":
        halves = [
            ssd(
                x,
                *(tensor.chunk(2, dim=axis)[k] for tensor, axis in ((dt, 2), (A, 0), (B, 2), (C, 2))),
                D,
                z,
                None if dt_bias is None else dt_bias.chunk(2)[k],
                dt_softplus=dt_softplus,
                reverse=bool(k),
                lengths=lengths,
                backend=backend,
            )
            for k in range(2)
        ]
        return torch.cat(halves, dim=2)
    scale = 0.5 if merge == "mean" else 1.0
    chosen = explain_ssd(x, B, backend).backend
    if x.numel() == 0:
        return x
    if chosen == "triton":
        from ribonanzamamba.ops.ssd_triton import ssd_triton

        return ssd_triton(
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
    wide = torch.promote_types(x.dtype, torch.float32)
    dt = step_sizes(dt, dt_bias, dt_softplus=dt_softplus, dtype=wide)
    present = present_positions(x.shape[1], lengths)
    if present is not None:
        dt = dt.masked_fill(~present[..., None], 0)
        x = x.masked_fill(~present[..., None, None], 0)
    # the directions are groups of heads of one call: the second half sees the sequence reversed, padding first,
    # where dt = 0 leaves the state at zero
    both = ssd(
        torch.cat([x, x.flip(1)], dim=2),
        *(torch.cat([t.chunk(2, dim=2)[0], t.chunk(2, dim=2)[1].flip(1)], dim=2) if k != 1 else t
          for k, t in enumerate((dt, A, B, C))),
        backend=chosen,
    )  # fmt: skip
    left, right = both.split(h, dim=2)
    y = (left + right.flip(1)) * scale
    return skip_and_gate(y, x, None if D is None else D[:, None], z, present).to(x.dtype)


def explain_ssd(x: Tensor, B: Tensor, backend: str = "auto") -> Explanation:
    """Which implementation of `ssd` runs for these tensors, and why.

    Raises:
        ValueError: an unknown backend, or one that cannot run.
    """
    return choose(backend, "chunked", BACKENDS, x.device, x.dtype, B.shape[-1])


def check_shapes(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, directions: int = 1) -> None:
    if x.dim() != 4:
        raise ValueError(f"x: expected (batch, length, heads, width), got {tuple(x.shape)}")
    b, l, h, _ = x.shape
    if dt.shape != (b, l, directions * h):
        raise ValueError(f"dt: expected {(b, l, directions * h)}, got {tuple(dt.shape)}")
    if A.shape != (directions * h,):
        raise ValueError(f"A: expected {(directions * h,)}, got {tuple(A.shape)}")
    if B.shape != C.shape or B.dim() != 4 or B.shape[:2] != (b, l):
        raise ValueError(f"B and C: expected ({b}, {l}, groups, state), got {tuple(B.shape)} and {tuple(C.shape)}")
    if B.shape[2] == 0 or B.shape[2] % directions or h % (B.shape[2] // directions):
        raise ValueError(f"groups: {h} heads cannot be shared by {B.shape[2]} groups in {directions} directions")
