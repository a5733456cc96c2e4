"""Root mean square normalisation over the last axis. The contract, and the only place that chooses an
implementation."""

import torch
from torch import Tensor

from ribonanzamamba.ops.backend import choose

BACKENDS = ("auto", "triton", "plain")
WIDEST = 4096
"""Channels that the kernels take: a program holds whole rows."""


def rms_norm(x: Tensor, gain: Tensor, eps: float, *, backend: str = "auto") -> Tensor:
    """x / sqrt(mean(x^2) + eps) * gain over the last axis, statistics in float32 at least, in the dtype of x.

    Args:
        x: (..., c). gain: (c,), of any dtype.
        backend: "auto" (one Triton kernel each way for tensors on a GPU, "plain" elsewhere), "triton" or "plain".

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or one that cannot run.
    """
    if gain.shape != x.shape[-1:]:
        raise ValueError(f"expected x (..., c) and gain (c,), got {tuple(x.shape)} and {tuple(gain.shape)}")
    if backend == "auto" and x.shape[-1] > WIDEST:
        backend = "plain"
    chosen = choose(backend, "plain", BACKENDS, x.device, x.dtype, 1).backend
    if chosen == "triton" and x.shape[-1] > WIDEST:
        raise ValueError(f"backend 'triton' cannot run: rows of at most {WIDEST} channels, not {x.shape[-1]}")
    if chosen == "triton" and x.numel():
        from ribonanzamamba.ops.norm_triton import rms_norm_triton

        return rms_norm_triton(x, gain, eps)
    wide = torch.promote_types(x.dtype, torch.float32)
    # vector_norm reads short rows once: half the time of torch.rms_norm on a CPU
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square()
    return (x * torch.rsqrt(square / x.shape[-1] + eps) * gain).to(x.dtype)
