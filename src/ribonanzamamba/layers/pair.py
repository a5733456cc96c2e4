"""The pair track: features of every pair of positions, updated from the sequence track and from neighbouring pairs."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ribonanzamamba.layers.norm import EPS, RMSNorm
from ribonanzamamba.ops import gated_convolution, outer_and_norm


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

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        mask: Bool[Tensor, "batch length"],
        overwrite: bool = False,
    ) -> Float[Tensor, "batch length length pair_width"]:
        """The map after its update, perhaps written over `pair` (`ops.outer_and_norm` says when)."""
        pair, h = outer_and_norm(pair, self.project(self.norm(x)), self.pair_gain, mask, EPS, overwrite=overwrite)
        conv, out = self.convolution, self.out
        # the map between is nobody else's
        return gated_convolution(
            pair, h, conv.weight, conv.bias, out.weight, out.bias, dilation=conv.dilation[0], overwrite=True
        )  # fmt: skip
