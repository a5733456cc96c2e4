"""The pair track: features of every pair of positions, updated from the sequence track and from neighbouring pairs."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ribonanzamamba.layers.norm import EPS, RMSNorm, compiled, rms_norm


def outer_and_norm(
    pair: Tensor, left: Tensor, right: Tensor, row: Tensor, column: Tensor, gain: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """pair + left_i * right_j + row_i + column_j, and its masked RMS norm, both in the dtype of `pair`."""
    left, right, row, column = (projection.to(pair.dtype) for projection in (left, right, row, column))
    pair = torch.addcmul(pair, left[:, :, None], right[:, None, :]) + row[:, :, None] + column[:, None, :]
    return pair, rms_norm(pair, gain, EPS).masked_fill(~mask, 0)


def gated(h: Tensor) -> Tensor:
    """First half of the channels times silu of the second."""
    value, gate = h.chunk(2, dim=-1)
    return value * F.silu(gate)


class PairUpdate(nn.Module):
    """Adds a factorised outer product of the sequence track, then a gated 3 x 3 convolution over the pair map.

    The outer product is a product and a sum of two projections, channel by channel:
    (batch, length, length, pair_width) is the
    largest tensor. A stacked pair (i + 1, j - 1) is a diagonal neighbour of (i, j): the convolution sees helices.
    """

    def __init__(self, width: int, pair_width: int, *, dilation: int = 1):
        super().__init__()
        self.norm = RMSNorm(width)
        self.project = nn.Linear(width, 4 * pair_width)
        self.pair_gain = nn.Parameter(torch.ones(pair_width))
        self.convolution = nn.Conv2d(pair_width, 2 * pair_width, 3, padding=dilation, dilation=dilation)
        self.out = nn.Linear(pair_width, pair_width)
        self.outer_and_norm, self.gated = outer_and_norm, gated

    def fuse(self) -> None:
        """Compile the elementwise chains: on a GPU they cost more than the convolution."""
        self.outer_and_norm, self.gated = compiled(outer_and_norm), compiled(gated)

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        pair_mask: Bool[Tensor, "batch length length 1"],
    ) -> Float[Tensor, "batch length length pair_width"]:
        left, right, row, column = self.project(self.norm(x)).chunk(4, dim=-1)
        pair, h = self.outer_and_norm(pair, left, right, row, column, self.pair_gain, pair_mask)
        # channels last in memory throughout: both permutes are views
        h = self.convolution(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return pair + self.out(self.gated(h))
