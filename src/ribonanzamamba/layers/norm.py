"""Root mean square normalisation that keeps the dtype of its input."""

from jaxtyping import Float
from torch import Tensor, nn

from ribonanzamamba.ops import rms_norm

EPS = 1e-5


class RMSNorm(nn.RMSNorm):
    """x / rms(x) times a learned gain, statistics in float32; the result has the dtype of x, also under autocast.

    PyTorch's default epsilon depends on the dtype: a network trained in bfloat16 would differ in float32.
    """

    def __init__(self, width: int):
        super().__init__(width, eps=EPS)

    def forward(self, x: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width"]:
        return rms_norm(x, self.weight, self.eps)
