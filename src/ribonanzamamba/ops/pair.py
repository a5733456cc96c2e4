"""Updates of a map of pairs (b, l, l, c), the largest tensor of a network that has one: each reads and writes it once
on a GPU. The contract, and the only place that chooses an implementation.

Plain PyTorch writes every step of a chain to memory and reads it again; on a GPU that, not arithmetic, is what a pair
track costs.
"""

from torch import Tensor

from ribonanzamamba.ops.backend import choose
from ribonanzamamba.ops.pair_plain import convolve, gated_convolution_plain, norm_and_heads_plain, outer_and_norm_plain

BACKENDS = ("auto", "triton", "plain")
WIDEST = 128
"""Channels of a map that the kernels take: a program holds a matrix of their square."""


def chosen(backend: str, pair: Tensor) -> str:
    """The implementation for a map."""
    if backend == "auto" and pair.shape[-1] > WIDEST:
        return "plain"
    name = choose(backend, "plain", BACKENDS, pair.device, pair.dtype, 1).backend
    if name == "triton" and pair.shape[-1] > WIDEST:
        raise ValueError(f"backend 'triton' cannot run: maps of at most {WIDEST} channels, not {pair.shape[-1]}")
    return name if pair.numel() else "plain"


def outer_and_norm(
    pair: Tensor,
    projected: Tensor,
    gain: Tensor,
    present: Tensor,
    eps: float,
    *,
    overwrite: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """pair + left_i right_j + row_i + column_j, and its RMS norm, 0 where i or j is not there.

    Args:
        pair: (b, l, l, c). projected: (b, l, 4 c): left, right, row and column of every position.
        gain: (c,) of the norm. present: (b, l) bool.
        overwrite: the first result may be written over `pair`. Where the map is gone through part by part (on a CPU,
        without a gradient, if it is large), it is: one such map less.
        backend: "auto" (Triton kernels for tensors on a GPU, "plain" elsewhere), "triton" or "plain".

    Returns:
        Two (b, l, l, c) in the dtype of `pair`.

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or one that cannot run.
    """
    b, l, _, c = pair.shape
    if pair.shape[2] != l or projected.shape != (b, l, 4 * c) or gain.shape != (c,) or present.shape != (b, l):
        raise ValueError(
            "expected pair (b, l, l, c), projected (b, l, 4 c), gain (c,) and present (b, l), got "
            f"{tuple(pair.shape)}, {tuple(projected.shape)}, {tuple(gain.shape)} and {tuple(present.shape)}"
        )
    if chosen(backend, pair) == "triton":
        from ribonanzamamba.ops.pair_triton import outer_and_norm_triton

        return outer_and_norm_triton(pair, projected, gain, present, eps)
    return outer_and_norm_plain(pair, projected, gain, present, eps, overwrite)


def gated_convolution(
    pair: Tensor,
    normed: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    dilation: int = 1,
    overwrite: bool = False,
    backend: str = "auto",
) -> Tensor:
    """pair + weight (value silu(gate)) + bias, value and gate being the halves of a convolution of `normed` over both
    positions, as long as the map.

    Args:
        pair, normed: (b, l, l, c). conv_weight: (2 c, c, k, k), k odd. conv_bias: (2 c,). weight: (c, c). bias: (c,).
        dilation: distance of the convolution's taps. overwrite, backend: as of `outer_and_norm`.

    Returns:
        (b, l, l, c) in the dtype of `pair`.

    Raises:
        ValueError: as of `outer_and_norm`.
    """
    c, taps = pair.shape[-1], conv_weight.shape[-1]
    got = [tuple(tensor.shape) for tensor in (normed, conv_weight, conv_bias, weight, bias)]
    if got != [tuple(pair.shape), (2 * c, c, taps, taps), (2 * c,), (c, c), (c,)] or taps % 2 == 0:
        raise ValueError(
            "expected normed (b, l, l, c), conv_weight (2 c, c, k, k) with k odd, its bias (2 c,), weight (c, c) and "
            f"bias (c,), got {', '.join(map(str, got))} for pair {tuple(pair.shape)}"
        )
    if chosen(backend, pair) == "triton":
        from ribonanzamamba.ops.pair_triton import gated_residual_triton

        # the kernel adds the bias: a GPU's convolution would read and write the whole map once more for it, and once
        # more for its gradient
        reach = dilation * (taps // 2)
        hidden = convolve(normed, conv_weight, None, reach, reach, dilation)
        return gated_residual_triton(pair, hidden, conv_bias, weight, bias)
    return gated_convolution_plain(pair, normed, conv_weight, conv_bias, weight, bias, dilation, overwrite)


def norm_and_heads(
    pair: Tensor, gain: Tensor, weight: Tensor, present: Tensor, eps: float, fill: float, *, backend: str = "auto"
) -> Tensor:
    """The RMS norm of every pair, projected to a value for every head; `fill` where j is not there.

    Args:
        pair: (b, l, l, c). gain: (c,) of the norm. weight: (h, c). present: (b, l) bool.
        backend: as of `outer_and_norm`.

    Returns:
        (b, h, l, l), dense, in the dtype of `pair` (of the projection, where autocast has another).

    Raises:
        ValueError: as of `outer_and_norm`.
    """
    b, l, _, c = pair.shape
    if pair.shape[2] != l or gain.shape != (c,) or weight.shape[1:] != (c,) or present.shape != (b, l):
        raise ValueError(
            "expected pair (b, l, l, c), gain (c,), weight (h, c) and present (b, l), got "
            f"{tuple(pair.shape)}, {tuple(gain.shape)}, {tuple(weight.shape)} and {tuple(present.shape)}"
        )
    if chosen(backend, pair) == "triton":
        from ribonanzamamba.ops.pair_triton import norm_and_heads_triton

        return norm_and_heads_triton(pair, gain, weight, present, eps, fill)
    return norm_and_heads_plain(pair, gain, weight, present, eps, fill)
