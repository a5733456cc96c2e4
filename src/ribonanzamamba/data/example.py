"""One RNA with whatever was measured on it, as NumPy arrays.

Knows nothing of files, tensors or batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, Int32

from ribonanzamamba.data.prior import Prior

UNPAIRED = -1
"""Entry of `partners` for a nucleotide known to pair with none."""
UNKNOWN = -2
"""Entry of `partners` for a nucleotide of which nothing is known: it takes no part in a loss."""


@dataclass(frozen=True, eq=False)
class Example:
    """One RNA, its measurements and a thermodynamic model's pairs; each is None where nothing is known of its kind.

    Arrays that a reader returns are read-only views: copy before changing one.
    """

    id: str
    sequence: str
    """Letters A C G U N."""
    cluster: int
    """Number of the group of related sequences, comparable within one family of tables; negative: not clustered."""
    cluster_size: int
    """Rows of that cluster in the whole table, train and valid together."""
    dataset: str
    reactivity: Float[np.ndarray, "length probe"] | None = None
    """Dimensionless, 1 = 90th percentile of its data set, NaN = not measured; probes in the order of `PROBES`."""
    reactivity_weight: Float32[np.ndarray, "length probe"] | None = None
    """Trust in each value, 0 (not measured) to 1."""
    partners: Int32[np.ndarray, " length"] | None = None
    """0-based partner of each nucleotide, -1 unpaired, -2 unknown."""
    coordinates: Float32[np.ndarray, "length atom 3"] | None = None
    """Angstrom, atoms in the order of `ATOMS`, NaN = missing."""
    prior: Prior | None = None
    """Base pairs a thermodynamic model expects: an input, not a measurement. None = not computed."""
    prior_given: bool = True
    """Whether a network is given the prior; one that is withheld can still teach it."""

    @property
    def length(self) -> int:
        return len(self.sequence)

    @property
    def measured(self) -> bool:
        """Whether anything is known of it but the sequence and what a model says."""
        return any(array is not None for array in (self.reactivity, self.partners, self.coordinates))


def crop(example: Example, start: int, stop: int) -> Example:
    """The nucleotides start to stop (0-based, stop excluded) of an example.

    A nucleotide whose partner lies outside is neither paired nor unpaired there: its partner becomes -2, unknown. The
    prior's pairs inside remain, with their probabilities in the whole RNA.
    Reactivities and coordinates are views of the example's.

    Raises:
        ValueError: not 0 <= start < stop <= length.

    >>> whole = Example("x", "GGAACC", 0, 1, "", partners=np.array([5, 4, -1, -1, 1, 0], dtype=np.int32))
    >>> part = crop(whole, 1, 6)
    >>> part.sequence, part.partners.tolist()
    ('GAACC', [3, -1, -1, 0, -2])
    """
    if not 0 <= start < stop <= example.length:
        raise ValueError(f"expected 0 <= start < stop <= {example.length}, got start {start} and stop {stop}")
    if start == 0 and stop == example.length:
        return example
    return replace(
        example,
        sequence=example.sequence[start:stop],
        reactivity=None if example.reactivity is None else example.reactivity[start:stop],
        reactivity_weight=None if example.reactivity_weight is None else example.reactivity_weight[start:stop],
        partners=None if example.partners is None else _crop_partners(example.partners, start, stop),
        coordinates=None if example.coordinates is None else example.coordinates[start:stop],
        prior=None if example.prior is None else example.prior.crop(start, stop),
    )


def reverse(example: Example) -> Example:
    """The RNA and its reactivity read from the other end: another molecule, whose use is to regularise.

    Raises:
        ValueError: an example with base pairs or coordinates, which mean nothing from the other end.

    >>> reverse(Example("x", "GGAACC", 0, 1, "")).sequence
    'CCAAGG'
    """
    if example.partners is not None or example.coordinates is not None:
        raise ValueError(f"{example.id}: expected reactivity alone, got base pairs or coordinates")
    return replace(
        example,
        sequence=example.sequence[::-1],
        reactivity=None if example.reactivity is None else example.reactivity[::-1],
        reactivity_weight=None if example.reactivity_weight is None else example.reactivity_weight[::-1],
        prior=None if example.prior is None else example.prior.reverse(example.length),
    )


def reverse_some(examples: Sequence[Example], share: float, rng: np.random.Generator) -> list[Example]:
    """The examples, each reversed with a probability of `share`: those with reactivity and neither base pairs nor
    coordinates.

    >>> rng = np.random.default_rng(0)
    >>> example = Example("x", "GC", 0, 1, "", reactivity=np.zeros((2, 1)))
    >>> [each.sequence for each in reverse_some([example] * 4, 0.5, rng)]
    ['GC', 'CG', 'CG', 'CG']
    """
    reversed_ones = rng.random(len(examples)) < share
    return [
        reverse(example)
        if chosen and example.reactivity is not None and example.partners is None and example.coordinates is None
        else example
        for example, chosen in zip(examples, reversed_ones.tolist(), strict=True)
    ]


def withhold_priors(examples: Sequence[Example], share: float, rng: np.random.Generator) -> list[Example]:
    """The examples, the prior of each withheld from the network with a probability of `share`, and always where nothing
    was measured: then it is all that there is to learn.

    >>> rng = np.random.default_rng(0)
    >>> example = Example("x", "GGAACC", 0, 1, "", prior=Prior(np.uint16([0]), np.uint16([5]), np.uint8([255])))
    >>> unpaired = replace(example, partners=np.int32([-1] * 6))
    >>> [each.prior_given for each in withhold_priors([unpaired] * 4, 0.5, rng)]
    [True, False, False, False]
    >>> [each.prior_given for each in withhold_priors([example], 0.0, rng)]
    [False]
    """
    withheld = rng.random(len(examples)) < share
    return [
        replace(example, prior_given=False)
        if example.prior is not None and (withhold or not example.measured)
        else example
        for example, withhold in zip(examples, withheld.tolist(), strict=True)
    ]


def _crop_partners(partners: Int32[np.ndarray, " length"], start: int, stop: int) -> Int32[np.ndarray, " crop"]:
    inside = partners[start:stop]
    shifted = np.where((inside >= start) & (inside < stop), inside - start, UNKNOWN)
    return np.where(inside < 0, inside, shifted).astype(np.int32)
