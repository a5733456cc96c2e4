"""Root mean square normalisation that keeps the dtype of its input."""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

EPS = 1e-5


class RMSNorm(nn.RMSNorm):
    """x / rms(x) times a learned gain, statistics in float32; the result has the dtype of x, also under autocast.

    PyTorch's default epsilon depends on the dtype: a network trained in bfloat16 would differ in float32.
    """

    def __init__(self, width: int):
        super().__init__(width, eps=EPS)

        self.rms_norm = rms_norm

    def fuse(self) -> None:
        """Compile the norm: worth it on a GPU for millions of short rows, as the pair track has them."""
        self.rms_norm = compiled(rms_norm)

    def forward(self, x: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width"]:
        return self.rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * gain over the last axis, in the dtype of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # vector_norm reads short rows once: half the time of torch.rms_norm on a CPU
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square()
    return (x * torch.rsqrt(square / x.shape[-1] + eps) * gain).to(x.dtype)


@functools.cache
def compiled(function: Callable) -> Callable:
    """The function fused by torch.compile for any shape; one compilation serves every layer."""
    return torch.compile(function, dynamic=True)
