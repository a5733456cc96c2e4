"""One block of the trunk: convolution, then state space beside attention joined by a
gate (or otherwise, or one of the two alone), then feed-forward, then the pair track."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ribonanzamamba.layers import BiMamba, Mamba2D, PairBiasedAttention, PairUpdate, RMSNorm, SeparableConvolution
from ribonanzamamba.model.config import ModelConfig

PAIR_STATE = 8
"""State size of a scan over the pair map."""


class Block(nn.Module):
    """Sequence track and pair track, each informed by the other; with `scans` there is a state space, where the config
    has one; without `updates_pair` the pair track stays, with `scans_pair` too its update is followed by a scan over
    the map."""

    def __init__(
        self, config: ModelConfig, *, dilation: int, scans: bool = True, updates_pair: bool = True,
        scans_pair: bool = False,
    ):  # fmt: skip
        super().__init__()
        width = config.width
        self.convolution = SeparableConvolution(width, config.kernels)
        self.mixer_norm = RMSNorm(width)
        self.attention = PairBiasedAttention(width, config.pair_width, heads=config.heads) if config.attention else None
        self.mamba = (
            BiMamba(width, d_state=config.d_state, expand=config.expand, head_width=config.head_width)
            if config.mamba and scans
            else None
        )
        both = self.attention is not None and self.mamba is not None
        self.gate = nn.Linear(2 * width, width) if both and config.mixing == "gate" else None
        self.second_norm = RMSNorm(width) if both and config.mixing.endswith("first") else None
        self.mamba_first = config.mixing == "mamba-first"
        self.mamba_drop = config.mamba_drop
        self.feed_norm = RMSNorm(width)
        self.feed_in = nn.Linear(width, config.feed_forward * width)
        self.feed_out = nn.Linear(config.feed_forward * width, width)
        self.pair_update = PairUpdate(width, config.pair_width, dilation=dilation) if updates_pair else None
        self.pair_scan_norm = RMSNorm(config.pair_width) if scans_pair else None
        self.pair_scan = (
            Mamba2D(config.pair_width, directions="efficient", d_state=PAIR_STATE, expand=1) if scans_pair else None
        )
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
        scanned: Float[Tensor, "batch 1 1"] | None = None,
        overwrite: bool = False,
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch length length pair_width"]]:
        """Both tracks; the pair track unchanged where nothing reads it afterwards. `kept` is dropout's, for the
        `branches` of the sequence track: 1 where a value stays, 0 elsewhere; None: all stay. `scanned` is 1 for RNAs
        that the state space reads, 0 for others; None: it reads all. `overwrite`: as of `PairUpdate`."""
        choices = iter([None] * self.branches if kept is None else kept)
        x = self.add(x, self.convolution(x, mask), next(choices))
        if self.second_norm is None:
            x = self.add(x, self.mix(self.mixer_norm(x), pair, mask, lengths, scanned), next(choices))
        else:
            for norm, scans in ((self.mixer_norm, self.mamba_first), (self.second_norm, not self.mamba_first)):
                h = norm(x)
                branch = self.scan(h, lengths, scanned) if scans else self.attend(h, pair, mask)
                x = self.add(x, branch, next(choices))
        x = self.add(x, self.feed_out(F.gelu(self.feed_in(self.feed_norm(x)))), next(choices))
        if self.pair_update is None or not pair_is_read:
            return x, pair
        return x, recomputed(self.update_pair, x, pair, mask, overwrite, wanted=self.checkpoint_pair)

    @property
    def branches(self) -> int:
        """Of the sequence track: convolution, one mixer or two, feed-forward."""
        return 3 if self.second_norm is None else 4

    def update_pair(self, x: Tensor, pair: Tensor, mask: Tensor, overwrite: bool) -> Tensor:
        """The pair track after its update."""
        pair = self.pair_update(x, pair, mask, overwrite)
        if self.pair_scan is None:
            return pair
        return pair + self.pair_scan(self.pair_scan_norm(pair), mask[:, :, None] & mask[:, None, :])

    def attend(self, h: Tensor, pair: Tensor, mask: Tensor) -> Tensor:
        """What the attention says."""
        return recomputed(self.attention, h, pair, mask, wanted=self.checkpoint_pair)

    def scan(self, h: Tensor, lengths: Tensor, scanned: Tensor | None) -> Tensor:
        """What the state space says, to be added: 0 where it is left out, elsewhere as much more."""
        branch = self.mamba(h, lengths)
        return branch if scanned is None else branch * (scanned / (1 - self.mamba_drop))

    def add(self, x: Tensor, branch: Tensor, kept: Tensor | None) -> Tensor:
        """The track with a branch added, of which those values are kept."""
        return x + branch if kept is None else torch.add(x, branch * kept, alpha=1 / (1 - self.dropout))

    def mix(
        self,
        h: Float[Tensor, "batch length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        mask: Bool[Tensor, "batch length"],
        lengths: Int[Tensor, " batch"],
        scanned: Float[Tensor, "batch 1 1"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """What the positions learn of each other: by attention, by the state space, by a gate's share of both, or by
        their sum."""
        if self.attention is None:
            return self.mamba(h, lengths)
        attended = self.attend(h, pair, mask)
        if self.mamba is None:
            return attended
        if self.gate is None:
            return attended + self.scan(h, lengths, scanned)
        branch = self.mamba(h, lengths)
        gate = torch.sigmoid(self.gate(torch.cat([attended, branch], dim=-1)))
        if scanned is None:
            return gate * attended + (1 - gate) * branch
        # attention alone, whole, where the state space is left out
        return attended + scanned * (1 - gate) * (branch - attended)


def recomputed(function: Callable, *inputs, wanted: bool):
    """What a module (or a method of one) makes of its inputs; where `wanted`, in training, its activations are not kept
    but computed again in the backward pass: value and gradients are the same bits. There is nothing random inside."""
    module = function if isinstance(function, nn.Module) else function.__self__
    if wanted and module.training and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return function(*inputs)
