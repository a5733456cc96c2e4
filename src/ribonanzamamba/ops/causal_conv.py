"""Causal depthwise convolution along the sequence, in either direction, for rows of different lengths."""

import torch.nn.functional as F
from torch import Tensor

from ribonanzamamba.ops.depthwise_conv import depthwise_conv1d
from ribonanzamamba.ops.selective_scan import present_positions

ACTIVATIONS = (None, "silu")


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    reverse: bool = False,
    lengths: Tensor | None = None,
) -> Tensor:
    """Each channel convolved with its own taps over its past: y[t] = sum_k weight[:, k] x[t + k - (K - 1)] + bias.

    Args:
        x: (b, l, d); positions before the first count as 0. weight: (d, K), the last tap for the position itself.
        bias: (d,). activation: None or "silu", taken last.
        reverse: over the future instead, equal to turning x round, convolving and turning back.
        lengths: (b,) integers; positions at or beyond a row's length count as 0 and return exactly 0.

    Returns:
        (b, l, d).

    Raises:
        ValueError: shapes that do not fit, or an unknown activation.
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[2] or weight.shape[1] == 0:
        raise ValueError(f"expected x (b, l, d) and weight (d, taps), got {tuple(x.shape)} and {tuple(weight.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {activation!r}")
    present = present_positions(x.shape[1], lengths)
    if present is not None:
        x = x.masked_fill(~present[..., None], 0)
    # the taps are turned round, not x
    y = depthwise_conv1d(x, weight.flip(1) if reverse else weight, bias, left=0 if reverse else weight.shape[1] - 1)
    if activation == "silu":
        y = F.silu(y)
    return y if present is None else y.masked_fill(~present[..., None], 0)
