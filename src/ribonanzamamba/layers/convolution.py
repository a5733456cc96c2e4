"""Multi-scale depthwise-separable convolution along the sequence."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ribonanzamamba.layers.norm import RMSNorm
from ribonanzamamba.ops import depthwise_conv1d


class SeparableConvolution(nn.Module):
    """Channels in equal groups, each convolved depthwise with a kernel of its own, then
    mixed by a gated pointwise layer.

    Masked positions count as zero and return values that the caller masks.
    """

    def __init__(self, width: int, kernels: Sequence[int] = (3, 5, 7, 17)):
        super().__init__()
        if width % len(kernels):
            raise ValueError(f"width: expected a multiple of {len(kernels)} (one group a kernel), got {width}")
        self.norm = RMSNorm(width)
        group = width // len(kernels)
        self.taps = nn.ParameterList([nn.Parameter(torch.randn(group, kernel) * kernel**-0.5) for kernel in kernels])
        self.mix_in = nn.Linear(width, 2 * width)
        self.mix_out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length width"]:
        x = self.norm(x).masked_fill(~mask[..., None], 0)
        groups = x.chunk(len(self.taps), dim=-1)
        x = torch.cat([depthwise_conv1d(group, taps) for group, taps in zip(groups, self.taps, strict=True)], dim=-1)
        value, gate = self.mix_in(x).chunk(2, dim=-1)
        return self.mix_out(value * F.silu(gate))
