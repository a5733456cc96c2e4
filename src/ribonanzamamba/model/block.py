"""One block of the trunk: convolution, then state space beside attention joined by a
gate (or one of the two alone), then feed-forward, then the pair track."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ribonanzamamba.layers import BiMamba, PairBiasedAttention, PairUpdate, RMSNorm, SeparableConvolution
from ribonanzamamba.model.config import ModelConfig

DROPPED = 3
"""Branches of a block with dropout: convolution, mixer, feed-forward."""


class Block(nn.Module):
    """Sequence track and pair track, each informed by the other; without `updates_pair` the pair track stays."""

    def __init__(self, config: ModelConfig, *, dilation: int, updates_pair: bool = True):
        super().__init__()
        width = config.width
        self.convolution = SeparableConvolution(width, config.kernels)
        self.mixer_norm = RMSNorm(width)
        self.attention = PairBiasedAttention(width, config.pair_width, heads=config.heads) if config.attention else None
        self.mamba = (
            BiMamba(width, d_state=config.d_state, expand=config.expand, head_width=config.head_width)
            if config.mamba
            else None
        )
        self.gate = nn.Linear(2 * width, width) if config.attention and config.mamba else None
        self.feed_norm = RMSNorm(width)
        self.feed_in = nn.Linear(width, config.feed_forward * width)
        self.feed_out = nn.Linear(config.feed_forward * width, width)
        self.pair_update = PairUpdate(width, config.pair_width, dilation=dilation) if updates_pair else None
        self.dropout = config.dropout
        self.checkpoint_pair = False
        """Whether what reads and writes the pair track is computed again in the backward pass."""

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        mask: Bool[Tensor, "batch length"],
        lengths: Int[Tensor, " batch"],
        pair_is_read: bool = True,
        kept: Float[Tensor, "branch batch length width"] | None = None,
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch length length pair_width"]]:
        """Both tracks; the pair track unchanged where nothing reads it afterwards. `kept` is dropout's: 1 where a value
        of the DROPPED branches stays, 0 elsewhere; None: all stay."""
        convolution, mixer, feed_forward = (None, None, None) if kept is None else kept
        x = self.add(x, self.convolution(x, mask), convolution)
        x = self.add(x, self.mix(self.mixer_norm(x), pair, mask, lengths), mixer)
        x = self.add(x, self.feed_out(F.gelu(self.feed_in(self.feed_norm(x)))), feed_forward)
        if self.pair_update is None or not pair_is_read:
            return x, pair
        return x, recomputed(self.pair_update, x, pair, mask, wanted=self.checkpoint_pair)

    def add(self, x: Tensor, branch: Tensor, kept: Tensor | None) -> Tensor:
        """The track with a branch added, of which those values are kept."""
        return x + branch if kept is None else torch.add(x, branch * kept, alpha=1 / (1 - self.dropout))

    def mix(
        self,
        h: Float[Tensor, "batch length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        mask: Bool[Tensor, "batch length"],
        lengths: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch length width"]:
        """What the positions learn of each other: by attention, by the state space, or by a gate's share of both."""
        if self.attention is None:
            return self.mamba(h, lengths)
        attended = recomputed(self.attention, h, pair, mask, wanted=self.checkpoint_pair)
        if self.mamba is None:
            return attended
        scanned = self.mamba(h, lengths)
        gate = torch.sigmoid(self.gate(torch.cat([attended, scanned], dim=-1)))
        return gate * attended + (1 - gate) * scanned


def recomputed(module: nn.Module, *inputs, wanted: bool):
    """What a module makes of its inputs; where `wanted`, in training, its activations are not kept but computed again
    in the backward pass: value and gradients are the same bits. There is nothing random inside."""
    if wanted and module.training and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)
    return module(*inputs)
