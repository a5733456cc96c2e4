"""The state-space recurrence in parallel PyTorch: chunks of positions as masked matrix products, any device.

Inside a chunk the output is a masked attention (C B^T, weighted by decay); between chunks
a small state is handed on, itself
a masked matrix product over chunks, so that no Python loop depends on the length.
Numerics: decays and their sums in float32 (float64 for float64 inputs), each step's log decay at least -20
(exp(-20) = 2e-9),
differences of sums and never quotients of exponentials, masks before the exponential: an
overflow there would be a NaN gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
"""Positions a chunk: larger ones lose float32 digits by cancellation in the summed log decay."""
SMALLEST_LOG_DECAY = -20.0


def ssd_chunked(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs (b, l, h, p) and last state (b, h, n, p) of the forward recurrence, without skip and gate.

    Args:
        x: (b, l, h, p); dt: (b, l, h), zero where a position does not take part; A: (h,), negative;
        B, C: (b, l, g, n), each group serves h / g heads; initial_state: (b, h, n, p) or None.
    """
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    wide = torch.promote_types(x.dtype, torch.float32)
    q = min(CHUNK, l)
    pad = -l % q
    if pad:
        x, dt, B, C = (F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, pad)) for tensor in (x, dt, B, C))
    c = (l + pad) // q
    log_decay = (dt.to(wide) * A.to(wide)).clamp(min=SMALLEST_LOG_DECAY)
    total = log_decay.reshape(b, c, q, h).cumsum(dim=2).permute(0, 3, 1, 2)  # b h c q
    u = (x * dt[..., None].to(x.dtype)).reshape(b, c, q, h, p).permute(0, 3, 1, 2, 4)  # b h c q p
    B = B.reshape(b, c, q, g, n).permute(0, 3, 1, 2, 4)  # b g c q n
    C = C.reshape(b, c, q, g, n).permute(0, 3, 1, 2, 4)

    def per_head(tensor: Tensor) -> Tensor:
        """(b, g, ...) to (b, h, ...), each group repeated for its heads."""
        return tensor.unsqueeze(2).expand(b, g, h // g, *tensor.shape[2:]).reshape(b, h, *tensor.shape[2:])

    # inside the chunks
    decay = masked_decay(total, total)  # b h c q s
    scores = per_head(C @ B.transpose(-1, -2))
    y = (scores * decay.to(scores.dtype)) @ u

    # what each chunk adds to the state, and the state each chunk starts from
    to_end = torch.exp(total[..., -1:] - total)  # b h c q
    added = (per_head(B) * to_end[..., None].to(B.dtype)).transpose(-1, -2) @ u  # b h c n p
    added = added.to(wide)
    if initial_state is None:
        initial_state = added.new_zeros(b, h, n, p)
    added = torch.cat([initial_state.to(wide)[:, :, None], added], dim=2)
    chunk_total = F.pad(total[..., -1], (1, 0)).cumsum(dim=-1)  # b h c+1
    carried = masked_decay(chunk_total, chunk_total)  # b h c+1 c+1
    states = (carried @ added.reshape(b, h, c + 1, n * p)).reshape(b, h, c + 1, n, p)
    entering, last = states[:, :, :-1], states[:, :, -1]

    from_start = per_head(C) * torch.exp(total)[..., None].to(C.dtype)
    y = y + from_start @ entering.to(C.dtype)
    return y.permute(0, 2, 3, 1, 4).reshape(b, l + pad, h, p)[:, :l], last


def masked_decay(to_total: Tensor, from_total: Tensor) -> Tensor:
    """exp(to[..., q] - from[..., s]) where s <= q, else exactly 0; (..., q, s)."""
    q, s = to_total.shape[-1], from_total.shape[-1]
    later = torch.ones(q, s, dtype=torch.bool, device=to_total.device).triu(1)
    difference = to_total[..., :, None] - from_total[..., None, :]
    return torch.exp(difference.masked_fill(later, float("-inf")))
