"""What both tracks get of knowledge about pairs that is there before the first block."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ribonanzamamba.model.helix import NUCLEOTIDE_FEATURES, PAIR_FEATURES, Helices

LEAST_PRIOR = 1e-3
"""Prior probability from which the logarithm of it counts."""
GAIN = 4.0
"""Factor of all features. Adam moves every weight by about the same step: with it, weights that start from zero reach
the size of the pair track's embeddings within some hundred steps."""


class FeatureEmbedding(nn.Module):
    """Features of nucleotides and of pairs as summands of both tracks: linear, and zero before training."""

    def __init__(self, nucleotide_features: int, pair_features: int, width: int, pair_width: int):
        super().__init__()
        self.pair = nn.Linear(pair_features, pair_width, bias=False)
        self.nucleotide = nn.Linear(nucleotide_features, width, bias=False)
        nn.init.zeros_(self.pair.weight)
        nn.init.zeros_(self.nucleotide.weight)

    def embed(
        self,
        of_nucleotide: Float[Tensor, "batch length nucleotide_feature"],
        of_pair: Float[Tensor, "batch length length pair_feature"],
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch length length pair_width"]]:
        """What is to be added to the sequence track and to the pair track."""
        return self.nucleotide(GAIN * of_nucleotide), self.pair(GAIN * of_pair)


class PriorEmbedding(FeatureEmbedding):
    """Of pair probabilities of a thermodynamic model; zero where they are unknown."""

    def __init__(self, width: int, pair_width: int):
        # of a pair: p, log p, known; of a nucleotide: paired with a later one, with an earlier one, known
        super().__init__(3, 3, width, pair_width)

    def forward(
        self,
        prior: Float[Tensor, "batch length length"],
        known: Bool[Tensor, " batch"] | None,
        mask: Bool[Tensor, "batch length"],
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch length length pair_width"]]:
        if known is not None:
            mask = mask & known[:, None]
        known_pair = (mask[:, :, None] & mask[:, None, :]).to(prior.dtype)
        prior = prior * known_pair
        log = (prior.clamp(min=LEAST_PRIOR) / LEAST_PRIOR).log() / math.log(1 / LEAST_PRIOR)
        of_pair = torch.stack([prior, log, known_pair], dim=-1)
        of_nucleotide = torch.stack([prior.triu().sum(-1), prior.tril().sum(-1), mask.to(prior.dtype)], dim=-1)
        return self.embed(of_nucleotide, of_pair)


class HelixEmbedding(FeatureEmbedding):
    """Of the helices that the sequence can form."""

    def __init__(self, width: int, pair_width: int):
        super().__init__(NUCLEOTIDE_FEATURES, PAIR_FEATURES, width, pair_width)
        self.helices = Helices()

    def forward(
        self, tokens: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch length length pair_width"]]:
        of_nucleotide, of_pair = self.helices(tokens, mask)
        # float64 networks, of tests, get float64
        dtype = self.pair.weight.dtype
        return self.embed(of_nucleotide.to(dtype), of_pair.to(dtype))
