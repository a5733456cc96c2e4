"""Depthwise convolution along the sequence, channels last."""

import torch.nn.functional as F
from torch import Tensor


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, left: int | None = None) -> Tensor:
    """Each channel convolved with its own taps: y[t] = sum_k weight[:, k] x[t + k - left] + bias.

    Args:
        x: (b, l, d); positions outside count as 0. weight: (d, k). bias: (d,).
        left: taps that look to the left of a position; (k - 1) // 2, centred, by default;
        k - 1 is causal, 0 anticausal.

    Returns:
        (b, l, d).
    """
    taps = weight.shape[1]
    left = (taps - 1) // 2 if left is None else left
    padded = F.pad(x, (0, 0, left, taps - 1 - left))
    length = x.shape[1]
    if x.is_cuda:
        # few launches; the shifted products below are hundreds, most of a training step's time on the host
        y = F.conv1d(padded.transpose(1, 2), weight[:, None].to(x.dtype), groups=len(weight)).transpose(1, 2)
        return y if bias is None else y + bias
    # shifted products: on a CPU 7 times faster than conv1d with groups
    y = padded[:, :length] * weight[:, 0]
    for k in range(1, taps):
        y = y + padded[:, k : k + length] * weight[:, k]
    return y if bias is None else y + bias
