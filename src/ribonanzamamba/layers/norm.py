"""Root mean square normalisation that keeps the dtype of its input."""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """x / rms(x) times a learned gain, statistics in float32; the result has the dtype of x, also under autocast.

    PyTorch's default epsilon depends on the dtype: a network trained in bfloat16 would differ in float32.
    """

    def __init__(self, width: int):
        super().__init__(width, eps=1e-5)

        self.rms_norm = rms_norm

    def fuse(self) -> None:
        """Compile the norm: PyTorch's own kernel is slow on millions of short rows, as the pair track has them."""
        self.rms_norm = compiled_rms_norm()

    def forward(self, x: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width"]:
        return self.rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, gain.shape, gain.to(x.dtype), eps)


@functools.cache
def compiled_rms_norm():
    """`rms_norm` written out and fused by torch.compile, for any shape."""

    def written_out(x: Tensor, gain: Tensor, eps: float) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * gain).to(x.dtype)

    return torch.compile(written_out, dynamic=True)
