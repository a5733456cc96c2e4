"""Causal depthwise convolution along the sequence, in either direction, for rows of different lengths."""

from torch import Tensor

from ribonanzamamba.ops.depthwise_conv import depthwise_conv1d


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    reverse: bool = False,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Each channel convolved with its own taps over its past: y[t] = sum_k weight[:, k] x[t + k - (K - 1)] + bias.

    Args:
        x: (b, l, d); positions before the first count as 0. weight: (d, K), the last tap for the position itself.
        bias: (d,). activation: None or "silu", taken last.
        reverse: over the future instead, equal to turning x round, convolving and turning back.
        lengths: (b,) integers; positions at or beyond a row's length count as 0 and return exactly 0.
        backend: as in `depthwise_conv1d`.

    Returns:
        (b, l, d).

    Raises:
        ValueError: shapes that do not fit, an unknown activation or backend, or a backend that cannot run.
    """
    # the taps are turned round, not x
    taps = weight.flip(1) if reverse and weight.dim() == 2 else weight
    left = 0 if reverse else weight.shape[-1] - 1
    return depthwise_conv1d(x, taps, bias, left=left, activation=activation, lengths=lengths, backend=backend)
