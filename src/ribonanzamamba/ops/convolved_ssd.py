"""What stands between the two projections of a bidirectional state-space layer, as one function. The contract, and the
only place that chooses an implementation."""

from torch import Tensor

from ribonanzamamba.ops.backend import choose
from ribonanzamamba.ops.depthwise_conv import depthwise_conv1d
from ribonanzamamba.ops.norm import rms_norm
from ribonanzamamba.ops.ssd import MERGES, bidirectional_ssd

BACKENDS = ("auto", "triton", "plain")


def convolved_bidirectional_ssd(
    projected: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    *,
    heads: int,
    d_state: int,
    lengths: Tensor | None = None,
    merge: str = "mean",
    gated: bool = True,
    gain: Tensor | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """`bidirectional_ssd` with softplus of x, B and C that a centred short convolution and silu made of a projection,
    and, with a gain, `rms_norm` of the result.

    Args:
        projected: (b, l, 2 d + 4 n + 2 h) for h heads in d channels and states of size n: the gate z (d), then what is
        convolved, x (d), B (2 n) and C (2 n), and step sizes dt (2 h); of B, C and dt the first half belongs to the
        direction from left to right. weight: (d + 4 n, taps). bias: (d + 4 n,).
        A, dt_bias: (2 h,). D: (h,).
        lengths, merge: as in `bidirectional_ssd`. gated: whether z counts.
        gain, eps: as in `rms_norm`, over the channels of all heads: (d,), or (2 d,) for "concat".
        backend: "auto" (Triton kernels for tensors on a GPU that read and write their parts of the wide tensors where
        these are; "plain" elsewhere), "triton" or "plain".

    Returns:
        (b, l, h, d / h) in the dtype of projected; (b, l, 2 h, d / h) for "concat".

    Raises:
        ValueError: shapes that do not fit, an unknown merge or backend, or a backend that cannot run.
    """
    if merge not in MERGES:
        raise ValueError(f"merge: expected one of {MERGES}, got {merge!r}")
    width = inner_width(projected, heads, d_state)
    if projected.dim() != 3 or width == 0 or projected.shape[2] != 2 * width + 4 * d_state + 2 * heads:
        raise ValueError(
            f"projected: expected (b, l, 2 d + {4 * d_state} + {2 * heads}) with d a multiple of {heads} heads, "
            f"got {tuple(projected.shape)}"
        )
    channels = width + 4 * d_state
    if weight.dim() != 2 or weight.shape[0] != channels or A.shape != (2 * heads,):
        raise ValueError(
            f"expected weight ({channels}, taps) and A ({2 * heads},), got {tuple(weight.shape)} and {tuple(A.shape)}"
        )
    outputs = width * (2 if merge == "concat" else 1)
    if gain is not None and gain.shape != (outputs,):
        raise ValueError(f"gain: expected ({outputs},), got {tuple(gain.shape)}")
    chosen = choose(backend, "plain", BACKENDS, projected.device, projected.dtype, d_state).backend
    if chosen == "triton" and merge != "concat" and gated and projected.numel():
        from ribonanzamamba.ops.convolved_ssd_triton import convolved_ssd_triton

        scale = 0.5 if merge == "mean" else 1.0
        return convolved_ssd_triton(
            projected, weight, bias, A, D, dt_bias, gain, lengths, heads, d_state, scale, eps
        )  # fmt: skip
    convolution, recurrence = ("triton", "triton") if chosen == "triton" else ("shifted", "chunked")
    z, mixed, dt = cut_projected(projected, heads, d_state)
    mixed = depthwise_conv1d(mixed, weight, bias, activation="silu", lengths=lengths, backend=convolution)
    x, B, C = cut_mixed(mixed, heads, d_state)
    y = bidirectional_ssd(
        x,
        dt,
        A,
        B,
        C,
        D,
        z if gated else None,
        dt_bias,
        dt_softplus=True,
        lengths=lengths,
        merge=merge,
        backend=recurrence,
    )
    if gain is None:
        return y
    return rms_norm(y.flatten(2), gain, eps, backend="triton" if chosen == "triton" else "plain").view_as(y)


def inner_width(projected: Tensor, heads: int, d_state: int) -> int:
    """Channels of x, rounded down to whole heads."""
    return max(0, projected.shape[-1] - 4 * d_state - 2 * heads) // (2 * heads) * heads


def cut_projected(projected: Tensor, heads: int, d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """z (b, l, h, p), what is convolved (b, l, d + 4 n) and dt (b, l, 2 h), parts of the tensor given."""
    width = inner_width(projected, heads, d_state)
    z, mixed, dt = projected.split((width, width + 4 * d_state, 2 * heads), dim=-1)
    return z.unflatten(-1, (heads, -1)), mixed, dt


def cut_mixed(mixed: Tensor, heads: int, d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (b, l, h, p), B and C (b, l, 2, n), parts of the tensor given."""
    matrices = 2 * d_state
    x, B, C = mixed.split((mixed.shape[-1] - 2 * matrices, matrices, matrices), dim=-1)
    return x.unflatten(-1, (heads, -1)), B.unflatten(-1, (2, d_state)), C.unflatten(-1, (2, d_state))
