"""What both recurrences do alike before and after their own part: step sizes, lengths, skip and gate."""

import torch
import torch.nn.functional as F
from torch import Tensor


def step_sizes(dt: Tensor, dt_bias: Tensor | None, *, dt_softplus: bool, dtype: torch.dtype) -> Tensor:
    """Step sizes (..., d) in `dtype`: bias added, then softplus, neither rounded to a narrower dtype."""
    dt = dt.to(dtype)
    if dt_bias is not None:
        dt = dt + dt_bias.to(dtype)
    return F.softplus(dt) if dt_softplus else dt


def present_positions(length: int, lengths: Tensor | None) -> Tensor | None:
    """(b, length) bool, True before each row's length; None where every position counts.

    >>> present_positions(3, torch.tensor([1, 3]))
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """
    return None if lengths is None else torch.arange(length, device=lengths.device) < lengths[:, None]


def skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None, present: Tensor | None) -> Tensor:
    """(y + D x) silu(z), exactly 0 where not present.

    Args:
        y, x, z: (b, l, ...). D: broadcasts to x from the right, (d,) or (h, 1). present: (b, l) bool.
    """
    if D is not None:
        y = y + D.to(y.dtype) * x
    if z is not None:
        y = y * F.silu(z)
    if present is not None:
        y = y.masked_fill(~present.reshape(present.shape + (1,) * (y.dim() - 2)), 0)
    return y


def copies_a_position(x: Tensor, dt: Tensor) -> int:
    """How many directions have step sizes, B and C of their own at every position, for x (b, l, d) and dt (b, l, k d).

    >>> copies_a_position(torch.zeros(1, 9, 4), torch.zeros(1, 9, 12))
    3
    """
    # a width of 0 is one copy
    return 1 if dt.shape[2] == x.shape[2] else dt.shape[2] // x.shape[2]
