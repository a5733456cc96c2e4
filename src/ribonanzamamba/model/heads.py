"""What is read from the two tracks: reactivity with its uncertainty, and base pairs.
Coordinates have a module of their own."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ribonanzamamba.layers import RMSNorm
from ribonanzamamba.ops.pair_plain import by_parts

SHORTEST_PAIR = 4
"""Smallest j - i of a base pair: a hairpin loop has at least three nucleotides."""
IMPOSSIBLE_LOGIT = -1e9
"""Finite: a row of nothing but padding must not make a NaN."""


class ReactivityHead(nn.Module):
    """Value and expected absolute error of every probe at every position."""

    def __init__(self, width: int, probes: int, error_factors: tuple[float, ...] = ()):
        super().__init__()
        self.norm = RMSNorm(width)
        factors = torch.tensor(error_factors or (1.0,) * probes)
        self.register_buffer("error_factors", factors, persistent=False)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 2 * probes)

    def forward(
        self, x: Float[Tensor, "batch length width"]
    ) -> tuple[Float[Tensor, "batch length probe"], Float[Tensor, "batch length probe"]]:
        value, error = self.out(F.gelu(self.hidden(self.norm(x)))).float().chunk(2, dim=-1)
        # about 0.1 at the start, never exactly zero: the error is a divisor in its likelihood
        return value, (F.softplus(error - 2) + 1e-3) * self.error_factors


class PairHead(nn.Module):
    """Symmetric logit of every pair, and of every nucleotide having no partner."""

    def __init__(self, width: int, pair_width: int):
        super().__init__()
        self.pair_norm = RMSNorm(pair_width)
        self.pair_hidden = nn.Linear(pair_width, pair_width)
        self.pair_out = nn.Linear(pair_width, 1)
        self.norm = RMSNorm(width)
        self.no_partner = nn.Linear(width, 1)

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        mask: Bool[Tensor, "batch length"],
    ) -> tuple[Float[Tensor, "batch length length"], Float[Tensor, "batch length"]]:
        def logits(examples: slice, rows: slice) -> Tensor:
            both = pair[examples, rows] + pair.transpose(1, 2)[examples, rows]
            return self.pair_out(F.gelu(self.pair_hidden(self.pair_norm(both)))).squeeze(-1)

        weights = (layer.weight for layer in (self.pair_norm, self.pair_hidden, self.pair_out))
        logit = by_parts(logits, pair, *weights).float()
        position = torch.arange(mask.shape[1], device=mask.device)
        possible = (position[:, None] - position[None, :]).abs() >= SHORTEST_PAIR
        possible = possible & mask[:, :, None] & mask[:, None, :]
        return logit.masked_fill(~possible, IMPOSSIBLE_LOGIT), self.no_partner(self.norm(x)).squeeze(-1).float()


def pair_log_probability(
    logit: Float[Tensor, "batch length length"], no_partner: Float[Tensor, "batch length"]
) -> Float[Tensor, "batch length choice"]:
    """Log probability of each nucleotide's choice: every partner, then (last) none."""
    return torch.log_softmax(torch.cat([logit, no_partner[..., None]], dim=-1), dim=-1)


def pair_probability(
    logit: Float[Tensor, "batch length length"], no_partner: Float[Tensor, "batch length"]
) -> Float[Tensor, "batch length length"]:
    """Probability of each pair: the smaller of what its two nucleotides say, so symmetric
    and with row sums of at most 1."""
    choice = pair_log_probability(logit, no_partner)[..., :-1].exp()
    return torch.minimum(choice, choice.transpose(1, 2))
