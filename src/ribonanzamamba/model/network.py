"""RibonanzaMamba: sequence to reactivity, base pairs and coordinates.

Choices:
- a sequence track and a pair track that inform each other in every block, as in RibonanzaNet
- sequence track: multi-scale depthwise-separable convolution, then a bidirectional state
  space beside attention, joined by a learned gate
- attention gets a bias from the pair track; the pair track gets a factorised outer
  product, never a (B, L, L, 1024) tensor
- pair updates are 3 x 3 convolutions with growing dilation: helices are diagonals of the pair map
- positions are relative, exact to 32 nt, logarithmic to 256 nt and constant beyond, so that longer RNAs than in
  training mean nothing new
- RMS norms before each branch, queries and keys normalised, no biases where a norm follows
- every mask is bool, made once from the tokens' lengths, never written to
- optionally, what is known of pairs beforehand enters both tracks at the start, linearly and from zero, so that a
  network without it can be trained further with it: the helices that the sequence can form, and pair probabilities of
  a thermodynamic model, of which each RNA says whether it has them
- coordinates by rigid frames and invariant point attention, several models at once
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ribonanzamamba.model.block import Block, recomputed
from ribonanzamamba.model.config import TASKS, ModelConfig
from ribonanzamamba.model.coordinates import CoordinateModule, expected_plddt
from ribonanzamamba.model.embedding import HelixEmbedding, PriorEmbedding
from ribonanzamamba.model.heads import PairHead, ReactivityHead, pair_probability

TOKENS = 5
"""A C G U N; padding is N under a False mask."""
EXACT_OFFSET = 32
LARGEST_OFFSET = 256
OFFSET_BINS = 12
"""Relative positions: exact to the first, logarithmic bins to the second, nucleotides."""
CHECKPOINTING = ("off", "pair", "all")
"""What of the activations of a training step is not kept but computed again."""
CELLS_FOR_ALL_MODELS = 600 * 600
"""Pair cells above which the attention of the coordinate models is computed one after the other, to save memory."""


@dataclass(frozen=True)
class ModelOutput:
    """What the network says of a batch; a field is None where its task was not asked for."""

    reactivity: Float[Tensor, "batch length probe"] | None = None
    reactivity_error: Float[Tensor, "batch length probe"] | None = None
    """Expected absolute error, in the unit of the reactivity."""
    pair_logit: Float[Tensor, "batch length length"] | None = None
    no_partner_logit: Float[Tensor, "batch length"] | None = None
    coordinates: Float[Tensor, "batch model length 4 3"] | None = None
    """Angstrom, atoms as in `rna.records.ATOMS`."""
    plddt_logit: Float[Tensor, "batch model length bin"] | None = None
    distance_logit: Float[Tensor, "batch length length distance"] | None = None
    """C1'-C1' distance bins; in training only."""

    @property
    def pair_probability(self) -> Float[Tensor, "batch length length"] | None:
        """Symmetric, zero diagonal, rows sum to at most 1."""
        return None if self.pair_logit is None else pair_probability(self.pair_logit, self.no_partner_logit)

    @property
    def plddt(self) -> Float[Tensor, "batch model length"] | None:
        """0 to 100."""
        return None if self.plddt_logit is None else expected_plddt(self.plddt_logit)


class RibonanzaMamba(nn.Module):
    """The network."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.nucleotide = nn.Embedding(TOKENS, config.width)
        self.nucleotide_pair = nn.Embedding(TOKENS * TOKENS, config.pair_width)
        self.offset = nn.Embedding(2 * (EXACT_OFFSET + OFFSET_BINS) + 1, config.pair_width)
        updated = [k for k in range(config.blocks) if config.pair_every > 0 and (k + 1) % config.pair_every == 0]
        # the last block's update is for heads that read pairs alone
        inner = [k for k in updated if k < config.blocks - 1]
        scanned = inner[len(inner) - min(config.pair_scans, len(inner)) :]
        self.blocks = nn.ModuleList(
            [
                Block(
                    config,
                    dilation=config.dilations[k % len(config.dilations)],
                    scans=k % config.mamba_every == 0,
                    updates_pair=k in updated,
                    scans_pair=k in scanned,
                )
                for k in range(config.blocks)
            ]
        )
        has = {task: task in config.tasks for task in TASKS}
        self.reactivity_head = (
            ReactivityHead(config.width, len(config.probes), config.error_factors) if has["reactivity"] else None
        )
        self.pair_head = PairHead(config.width, config.pair_width) if has["structure"] else None
        self.coordinate_module = (
            CoordinateModule(
                config.width,
                config.pair_width,
                coordinate_width=config.coordinate_width,
                layers=config.coordinate_layers,
                models=config.coordinate_models,
            )
            if has["coordinates"]
            else None
        )
        # last, so that they take no random numbers from the others
        self.prior = PriorEmbedding(config.width, config.pair_width) if config.pair_prior else None
        self.helices = HelixEmbedding(config.width, config.pair_width) if config.helices else None
        self.checkpointing = "off"

    def checkpoint_activations(self, mode: str) -> None:
        """Keep all activations of a training step ("off"), or compute those of the pair track ("pair") or of whole
        blocks ("all") again in the backward pass.

        Raises:
            ValueError: an unknown mode.
        """
        if mode not in CHECKPOINTING:
            raise ValueError(f"checkpointing: expected one of {CHECKPOINTING}, got {mode!r}")
        self.checkpointing = mode
        for block in self.blocks:
            block.checkpoint_pair = mode == "pair"

    def fuse(self) -> None:
        """Nothing: on a GPU the elementwise chains are kernels of `ops`, without being compiled first."""

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        tasks: Collection[str] = TASKS,
        prior: Float[Tensor, "batch length length"] | None = None,
        prior_known: Bool[Tensor, " batch"] | None = None,
    ) -> ModelOutput:
        """Outputs for the tasks asked for, of those in `config.tasks`; `mask` is True for real nucleotides, which come
        first in each row.

        `prior` holds pair probabilities, symmetric, for the rows where `prior_known` (all, by default); None: for none.

        Raises:
            ValueError: a prior, and a network without `pair_prior`.
        """
        if prior is not None and self.prior is None:
            raise ValueError("the network was made without pair_prior: expected no prior")
        lengths = mask.sum(1)
        tasks = [task for task in tasks if task in self.config.tasks]
        # the last update of the pair track is for the heads that read pairs
        last_read = any(task != "reactivity" for task in tasks)
        reads = [k + 1 < len(self.blocks) or last_read for k in range(len(self.blocks))]
        kept, scanned = self.draw_kept(tokens), self.draw_scanned(tokens)
        wanted = self.checkpointing == "all"
        # the map of pairs goes from block to block: nobody else has it
        overwrite = not torch.is_grad_enabled()
        start = tokens, mask, lengths, reads[0], kept[0], scanned[0], overwrite, prior, prior_known
        x, pair = recomputed(self.first_block, *start, wanted=wanted)
        for k, block in enumerate(self.blocks[1:], start=1):
            choices = reads[k], kept[k], scanned[k], overwrite
            x, pair = recomputed(block, x, pair, mask, lengths, *choices, wanted=wanted)
        return self.read(x, pair, mask, tasks)

    def first_block(
        self,
        tokens: Tensor,
        mask: Tensor,
        lengths: Tensor,
        pair_is_read: bool,
        kept: Tensor | None,
        scanned: Tensor | None,
        overwrite: bool,
        prior: Tensor | None,
        prior_known: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Both tracks after the first block. With their first values, which are as large as any and quickly made: where
        activations are computed again, those are too."""
        x, pair = self.embed(tokens, mask, prior, prior_known)
        return self.blocks[0](x, pair, mask, lengths, pair_is_read, kept, scanned, overwrite)

    def embed(
        self, tokens: Tensor, mask: Tensor, prior: Tensor | None, prior_known: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The first values of both tracks."""
        x = self.nucleotide(tokens)
        pair = self.nucleotide_pair(tokens[:, :, None] * TOKENS + tokens[:, None, :])
        # in place: of the largest tensor, one copy less
        pair.add_(self.offset(offset_bins(tokens.shape[1], tokens.device)))
        if self.helices is not None:
            for_x, for_pair = self.helices(tokens, mask)
            x, pair = x + for_x, pair.add_(for_pair)
            del for_pair  # as large
        if self.prior is not None and (prior is not None or self.training):
            # in training also without: every parameter then has a gradient in every step
            if prior is None:
                prior = torch.zeros(pair.shape[:-1], device=pair.device)
                prior_known = mask.new_zeros(len(mask))
            for_x, for_pair = self.prior(prior, prior_known, mask)
            x, pair = x + for_x, pair.add_(for_pair)
        if torch.is_autocast_enabled(tokens.device.type):
            # the largest tensor stays in the compute dtype; the sequence track's sum stays float32
            pair = pair.to(torch.get_autocast_dtype(tokens.device.type))
        return x, pair

    def draw_kept(self, tokens: Tensor) -> Sequence[Tensor | None]:
        """Dropout's choice for each block, drawn at once and before: what is computed again in the backward pass then
        has nothing random in it, whose state would have to be kept (and cannot be, in a CUDA graph)."""
        return self.draw(tokens, self.config.dropout, (self.blocks[0].branches, *tokens.shape, self.config.width))

    def draw_scanned(self, tokens: Tensor) -> Sequence[Tensor | None]:
        """Likewise for each block which RNAs its state space reads."""
        return self.draw(tokens, self.config.mamba_drop, (len(tokens), 1, 1))

    def draw(self, tokens: Tensor, rate: float, shape: tuple[int, ...]) -> Sequence[Tensor | None]:
        """Ones, zeros at `rate`, of this shape for each block; None outside training or at rate 0."""
        if not self.training or rate == 0:
            return [None] * len(self.blocks)
        device, weight = tokens.device.type, self.nucleotide.weight
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        drawn = weight.new_empty((len(self.blocks), *shape), dtype=dtype, requires_grad=False)
        return drawn.bernoulli_(1 - rate).unbind()

    def read(self, x: Tensor, pair: Tensor, mask: Tensor, tasks: Collection[str]) -> ModelOutput:
        """The heads."""
        outputs = {}
        if "reactivity" in tasks:
            outputs["reactivity"], outputs["reactivity_error"] = self.reactivity_head(x)
        if "structure" in tasks:
            again = self.checkpointing != "off"
            outputs["pair_logit"], outputs["no_partner_logit"] = recomputed(self.pair_head, x, pair, mask, wanted=again)
        if "coordinates" in tasks:
            together = self.training or pair.shape[0] * pair.shape[1] ** 2 <= CELLS_FOR_ALL_MODELS
            read = self.coordinate_module(x, pair, mask, None if together else 1)
            outputs["coordinates"], outputs["plddt_logit"] = read
            if self.training:
                outputs["distance_logit"] = self.coordinate_module.distance_logit(pair)
        return ModelOutput(**outputs)


def offset_bins(length: int, device: torch.device | str = "cpu") -> Int[Tensor, "length length"]:
    """Bin of j - i for every pair: exact to 32, logarithmic to 256, one bin beyond; the sign is kept."""
    position = torch.arange(length, device=device)
    offset = position[None, :] - position[:, None]
    distance = offset.abs()
    # filled on the device: a number copied from the host would make it wait
    all_octaves = torch.full((), LARGEST_OFFSET / EXACT_OFFSET, device=device).log()
    octaves = torch.log(distance.clamp(min=EXACT_OFFSET) / EXACT_OFFSET) / all_octaves
    far = EXACT_OFFSET + (octaves * OFFSET_BINS).long().clamp(max=OFFSET_BINS)
    binned = torch.where(distance <= EXACT_OFFSET, distance, far)
    return EXACT_OFFSET + OFFSET_BINS + offset.sign() * binned
