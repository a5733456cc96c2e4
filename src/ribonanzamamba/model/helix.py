"""The helices that a sequence can form, each pair told how stable the longest of them around it is.

Folding is first of all a contest of helices, and a network needs hundreds of steps until it sees that (docs/battle.md).
Here each pair of nucleotides gets the free energy of the unbroken helix it would be part of, and what remains of it in
the contest with the other partners of both nucleotides. No folding: helices may cross, and loops cost only what their
length says. Stacks have a direction: an RNA that is read backwards in training has those of its letters as they then
stand.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ribonanzamamba.rna.alphabet import LETTERS

PAIRS = ("CG", "GC", "GU", "UG", "AU", "UA")
STACKS = (
    (2.4, 3.3, 2.1, 1.4, 2.1, 2.1),
    (3.3, 3.4, 2.5, 1.5, 2.2, 2.4),
    (2.1, 2.5, -1.3, 0.5, 1.4, 1.3),
    (1.4, 1.5, 0.5, -0.3, 0.6, 1.0),
    (2.1, 2.2, 1.4, 0.6, 1.1, 0.9),
    (2.1, 2.4, 1.3, 1.0, 0.9, 1.3),
)
"""Stability (minus the free energy, kcal/mol, 37 C) of two neighbouring pairs, both read 5' to 3' from their own
strand: row i-j, column (j-1)-(i+1). Source: Mathews et al. 2004, PNAS 101:7287 (the "Turner 2004" parameters)."""
LEAST_HAIRPIN = 3
"""Unpaired nucleotides in a hairpin loop, at least."""
DOUBLINGS = 5
"""A helix is followed for 2 to this power pairs in each direction."""
LOOP_START = 4.0
"""What closing a loop costs, kcal/mol, about that of a hairpin."""
LOOP_SLOPE = 1.7
"""And for every e-fold of its length beyond `LOOP_REFERENCE`."""
LOOP_REFERENCE = 9
TEMPERATURE = 1.5
"""kcal/mol. Far above kT (0.6): what is not modelled, such as bulges and neighbouring helices, decides as much. Of the
values tried on 256 training sequences the one whose contest correlates best with ViennaRNA's pair probabilities."""
STRONG = 10.0
"""kcal/mol: the unit in which a network reads stabilities."""
MOST = 40.0
"""kcal/mol: a helix that is more stable is not more certain, and its Boltzmann weight is no float32."""
NUCLEOTIDE_FEATURES, PAIR_FEATURES = 3, 4


class Helices(torch.nn.Module):
    """What is said of all pairs and nucleotides of a batch; the tables lie where the module does, in no checkpoint."""

    def __init__(self):
        super().__init__()
        none = len(PAIRS)
        pair_type = torch.full((len(LETTERS), len(LETTERS)), none)
        for k, (first, second) in enumerate(PAIRS):
            pair_type[LETTERS.index(first), LETTERS.index(second)] = k
        stack = torch.zeros(none + 1, none + 1)
        stack[:none, :none] = torch.tensor(STACKS)
        # an inner pair is read from its second nucleotide
        turned = [PAIRS.index(pair[::-1]) for pair in PAIRS] + [none]
        self.register_buffer("pair_type", pair_type, persistent=False)
        self.register_buffer("stack", stack[:, turned].contiguous(), persistent=False)

    @torch.no_grad()
    def forward(
        self, tokens: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch length 3"], Float[Tensor, "batch length length 4"]]:
        """Features of nucleotides (share of the contest won with later partners, with earlier ones, how contested) and
        of pairs (can be, stability, share of the contest, its logarithm), float32, symmetric, 0 in padding."""
        possible, stability = self.stability(tokens, mask)
        share, contested = contest(possible, stability)
        # as much as can be told apart: e^-10 and less is 0
        logarithm = (share.log() / 10 + 1).clamp(min=0)
        of_pair = torch.stack([possible.float(), stability / STRONG, share, logarithm], dim=-1)
        of_nucleotide = torch.stack([share.triu().sum(-1), share.tril().sum(-1), contested.log1p() / 10], dim=-1)
        return of_nucleotide, of_pair

    def stability(
        self, tokens: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> tuple[Bool[Tensor, "batch length length"], Float[Tensor, "batch length length"]]:
        """Which pairs can be, and the stability (kcal/mol) of the longest unbroken helix around each; 0 where a pair
        would stand alone or cannot be."""
        none = len(PAIRS)
        position = torch.arange(tokens.shape[1], device=tokens.device)
        kind = self.pair_type[tokens[:, :, None], tokens[:, None, :]]
        # i < j only; the other half is its mirror image
        can_be = mask[:, :, None] & mask[:, None, :] & (position[None, :] - position[:, None] > LEAST_HAIRPIN)
        kind = torch.where(can_be, kind, none)
        inner = shifted(kind, 1, fill=none)
        stacked = (kind < none) & (inner < none)
        step = torch.where(stacked, self.stack[kind, inner], 0.0)
        energy = run_sum(step, stacked, 1) + run_sum(shifted(step, -1), shifted(stacked, -1), -1)
        energy = energy.clamp(max=MOST)
        possible = kind < none
        return possible | possible.mT, energy + energy.mT


def contest(
    possible: Bool[Tensor, "batch length length"], stability: Float[Tensor, "batch length length"]
) -> tuple[Float[Tensor, "batch length length"], Float[Tensor, "batch length"]]:
    """The share of each pair among all that its two nucleotides could be in, or be in none: Boltzmann weights of the
    helices less what their loops cost. And the sum of a nucleotide's weights."""
    position = torch.arange(possible.shape[-1], device=possible.device)
    distance = (position[None, :] - position[:, None]).abs()
    loop = LOOP_START + LOOP_SLOPE * (distance / LOOP_REFERENCE).clamp(min=1).log()
    weight = torch.where(possible & (stability > 0), ((stability - loop) / TEMPERATURE).exp(), 0.0)
    total = weight.sum(-1)
    return weight / (1 + total[:, :, None] + total[:, None, :] - weight), total


def shifted(x: Tensor, by: int, fill: int = 0) -> Tensor:
    """The map whose cell (i, j) is cell (i + by, j - by) of this one: `by` pairs further in, or out where negative."""
    length = x.shape[-1]
    out = torch.full_like(x, fill)
    if by >= 0:
        out[:, : length - by, by:] = x[:, by:, : length - by]
    else:
        out[:, -by:, :by] = x[:, :by, -by:]
    return out


def run_sum(value: Tensor, goes_on: Tensor, direction: int) -> Tensor:
    """Sum of `value` from each cell on, inwards (1) or outwards (-1), as long as `goes_on`."""
    total, alive = value, goes_on.to(value.dtype)
    for doubling in range(DOUBLINGS):
        by = direction * min(2**doubling, value.shape[-1])
        total = total + alive * shifted(total, by)
        alive = alive * shifted(alive, by)
    return total
