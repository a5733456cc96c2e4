"""The definition of the state-space recurrence: a loop over positions that one reads beside the paper, in any dtype.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,    y_t = C_t h_t + D x_t,    times silu(z_t) where z is given

Slow on purpose; the other implementations are tested against it, outputs and gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ribonanzamamba.ops.recurrence import copies_a_position


def ssd_reference(
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
) -> Tensor | tuple[Tensor, Tensor]:
    """Outputs (and the last state) of the recurrence with a scalar decay a head; arguments as in `ops.ssd.ssd`.

    Source: Dao and Gu 2024 (Mamba-2), equation 2 with A = a I.
    """
    b, l, h, p = x.shape
    n = B.shape[-1]
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = F.softplus(dt)
    B = B.repeat_interleave(h // B.shape[2], dim=2)  # b l h n
    C = C.repeat_interleave(h // C.shape[2], dim=2)
    state = x.new_zeros(b, h, n, p) if initial_state is None else initial_state
    # unbind, not indexing: the backward of x[:, t] would write a full-size zero tensor at every step
    steps = [tensor.unbind(1) for tensor in (x, dt, B, C)]
    outputs: list[Tensor] = [x.new_zeros(b, h, p)] * l
    for t in reversed(range(l)) if reverse else range(l):
        x_t, dt_t, B_t, C_t = (step[t] for step in steps)
        present = torch.ones(b, dtype=torch.bool, device=x.device) if lengths is None else t < lengths
        new = torch.exp(dt_t * A)[..., None, None] * state + torch.einsum("bh,bhn,bhp->bhnp", dt_t, B_t, x_t)
        state = torch.where(present[:, None, None, None], new, state)
        y_t = torch.einsum("bhn,bhnp->bhp", C_t, state)
        if D is not None:
            y_t = y_t + D[:, None] * x_t
        outputs[t] = torch.where(present[:, None, None], y_t, torch.zeros_like(y_t))
    y = torch.stack(outputs, dim=1) if l else torch.zeros_like(x)
    if z is not None:
        y = y * F.silu(z)
    return (y, state) if return_state else y


def selective_scan_reference(
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
) -> Tensor | tuple[Tensor, Tensor]:
    """Outputs (and the last state) of the recurrence with a decay for every channel and state; arguments as in
    `ops.selective_scan.selective_scan`.

    Source: Gu and Dao 2023 (Mamba), equation 2a with B discretised by Euler's rule as in its section 3.
    """
    if order is not None:
        return scan_paths(x, dt, A, B, C, D, dt_bias, order, dt_softplus, initial_state, return_state)
    b, l, d = x.shape
    n = A.shape[1]
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = F.softplus(dt)
    B = B.repeat_interleave(d // B.shape[2], dim=2)  # b l d n
    C = C.repeat_interleave(d // C.shape[2], dim=2)
    state = x.new_zeros(b, d, n) if initial_state is None else initial_state
    steps = [tensor.unbind(1) for tensor in (x, dt, B, C)]
    outputs: list[Tensor] = [x.new_zeros(b, d)] * l
    for t in reversed(range(l)) if reverse else range(l):
        x_t, dt_t, B_t, C_t = (step[t] for step in steps)
        present = torch.ones(b, dtype=torch.bool, device=x.device) if lengths is None else t < lengths
        new = torch.exp(dt_t[..., None] * A) * state + (dt_t * x_t)[..., None] * B_t
        state = torch.where(present[:, None, None], new, state)
        y_t = (C_t * state).sum(-1)
        if D is not None:
            y_t = y_t + D * x_t
        outputs[t] = torch.where(present[:, None], y_t, torch.zeros_like(y_t))
    y = torch.stack(outputs, dim=1) if l else torch.zeros_like(x)
    if z is not None:
        y = y * F.silu(z)
    return (y, state) if return_state else y


def scan_paths(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    order: Tensor,
    dt_softplus: bool,
    initial_state: Tensor | None,
    return_state: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """What `order` means: read each direction's positions one after the other, scan, add up what each position gets."""
    k, steps = order.shape
    copies = copies_a_position(x, dt)
    direction = torch.arange(k, device=x.device)
    positions = order.T.clamp(min=0).long()  # s k

    def read(tensor: Tensor, copies: int) -> Tensor:
        """(b, l, copies c, ...) to (b, s, k c, ...)."""
        tensor = tensor.unflatten(2, (copies, -1))
        return tensor[:, positions, direction if copies > 1 else torch.zeros_like(direction)].flatten(2, 3)

    x_s, dt_s, B_s, C_s = read(x, 1), read(dt, copies), read(B, copies), read(C, copies)
    if dt_bias is not None:
        dt_s = dt_s + dt_bias
    if dt_softplus:
        dt_s = F.softplus(dt_s)
    nowhere = (order.T < 0)[..., None]  # s k 1
    # a step of size 0 hands the state on unchanged
    dt_s = dt_s.unflatten(2, (k, -1)).masked_fill(nowhere, 0).flatten(2)
    y, state = selective_scan_reference(x_s, dt_s, A, B_s, C_s, D, initial_state=initial_state, return_state=True)
    y = y.unflatten(2, (k, -1)).masked_fill(nowhere, 0).flatten(1, 2)  # b (s k) d
    y = torch.zeros_like(x).index_add(1, positions.flatten(), y) / copies
    return (y, state) if return_state else y
