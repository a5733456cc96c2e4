"""Root mean square normalisation of rows. The contract, and the only place that chooses an implementation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ribonanzamamba.ops.backend import choose

BACKENDS = ("auto", "triton", "plain")


def rms_norm(x: Tensor, gain: Tensor, eps: float, *, gate: Tensor | None = None, backend: str = "auto") -> Tensor:
    """x / sqrt(mean(x^2) + eps) * gain over the last axis, statistics in at least float32; with a gate of
    x silu(gate) in the place of x, as Mamba-2 ends (Dao and Gu 2024, section 7.1).

    Args:
        x: (..., d), any strides; the kernels copy only what is not dense along d, or has more than two axes of rows
        after those that lie evenly in memory have been merged.
        gain: (d,), of any dtype.
        eps: added to the mean square.
        gate: (..., d) as x, any strides.
        backend: "auto" (one Triton kernel forward and one backward for tensors on a GPU, "plain" elsewhere), "triton"
        or "plain" (a chain of PyTorch functions; also for float64 and for second derivatives).

    Returns:
        (..., d), in the dtype of x, also under autocast.

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or a backend that cannot run.
    """
    if x.dim() == 0 or gain.shape != x.shape[-1:]:
        raise ValueError(f"expected x (..., d) and gain (d,), got {tuple(x.shape)} and {tuple(gain.shape)}")
    if gate is not None and gate.shape != x.shape:
        raise ValueError(f"gate: expected {tuple(x.shape)} as x, got {tuple(gate.shape)}")
    chosen = choose(backend, "plain", BACKENDS, x.device, x.dtype, 1).backend
    if chosen == "triton" and x.numel():
        from ribonanzamamba.ops.norm_triton import rms_norm_triton

        return rms_norm_triton(x, gain, gate, eps)
    return plain_rms_norm(x if gate is None else x * F.silu(gate.to(x.dtype)), gain, eps)


def plain_rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """The formula alone, also for a gain with more axes than one."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # vector_norm reads short rows once: half the time of torch.rms_norm on a CPU
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square()
    return (x * torch.rsqrt(square / x.shape[-1] + eps) * gain).to(x.dtype)
