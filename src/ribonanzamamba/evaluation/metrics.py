"""Numbers from arrays: how far a prediction is from a measurement.

Reactivity (MAE, Pearson r), secondary structure (F1, PPV, sensitivity, MCC, crossing pairs), coordinates (RMSD, lDDT;
the TM-score has a module of its own), and the bootstrap over RNAs. Knows nothing of files, networks or tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ribonanzamamba.evaluation.tm_score import tm_distance_scale, tm_score, tm_superposition
from ribonanzamamba.rna.coordinates import superpose
from ribonanzamamba.rna.structure import Structure

__all__ = [
    "PairCounts",
    "best_lddt",
    "best_rmsd",
    "best_tm_score",
    "bootstrap_interval",
    "compare_crossing_pairs",
    "compare_structures",
    "lddt",
    "reactivity_mae",
    "reactivity_pearson",
    "rmsd",
    "tm_distance_scale",
    "tm_score",
    "tm_superposition",
]

REACTIVITY_RANGE = (0.0, 1.0)
"""Both values are clipped to it before they are compared. Source: Kaggle, Stanford Ribonanza RNA Folding."""

LDDT_THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
"""Angstrom. Source: Mariani et al. 2013, Bioinformatics 29:2722, section 2.1."""

LDDT_INCLUSION_RADIUS = 15.0
"""Angstrom. Source: as the thresholds."""

BOOTSTRAP_COVERAGE = 0.95
_BOOTSTRAP_DRAWS_AT_ONCE = 4_000_000
"""Random indices held in memory at a time (32 MB)."""


def reactivity_mae(predicted: np.ndarray, measured: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean absolute error of reactivity over the measured positions, both values clipped to [0, 1].

    A position counts where `mask` is True (everywhere if None) and `measured` is not NaN; without any the result is
    NaN. A NaN in `predicted` at a position that counts makes the result NaN.

    Raises:
        ValueError: shapes that differ.

    >>> reactivity_mae(np.array([0.5, -3.0, 9.0]), np.array([0.25, 0.25, np.nan]))
    0.25
    """
    clipped_prediction, clipped_measurement = _clipped(predicted, measured, mask)
    if clipped_prediction.size == 0:
        return float("nan")
    return float(np.abs(clipped_prediction - clipped_measurement).mean())


def laplace_coverage(predicted: np.ndarray, error: np.ndarray, measured: np.ndarray, share: float = 0.8) -> float:
    """Share of the measured positions that lie in the interval that should hold `share` of them.

    Values are clipped to [0, 1], as in `reactivity_mae`. `error` is the expected absolute error of a Laplace
    distribution, whose interval is predicted +- error ln(1 / (1 - share)). NaN without a measured position.

    >>> laplace_coverage(np.array([0.0, 0.0]), np.array([0.1, 0.1]), np.array([0.16, 0.17]))
    0.5
    """
    known = ~np.isnan(measured)
    clipped_prediction, clipped_measurement = _clipped(predicted, measured, None)
    inside = np.abs(clipped_prediction - clipped_measurement) <= error[known] * np.log(1 / (1 - share))
    return float(inside.mean()) if inside.size else float("nan")


def reactivity_pearson(predicted: np.ndarray, measured: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Pearson correlation of reactivity over the measured positions, both values clipped to [0, 1].

    Positions as in `reactivity_mae`. NaN for fewer than two positions, or where one side is constant.

    Raises:
        ValueError: shapes that differ.

    >>> round(reactivity_pearson(np.array([0.1, 0.2, 0.3]), np.array([0.0, 0.5, 1.0])), 6)
    1.0
    """
    clipped_prediction, clipped_measurement = _clipped(predicted, measured, mask)
    if clipped_prediction.size < 2:
        return float("nan")
    left = clipped_prediction - clipped_prediction.mean()
    right = clipped_measurement - clipped_measurement.mean()
    scale = np.sqrt((left**2).sum() * (right**2).sum())
    # a constant side leaves rounding noise of about 1e-16 a position
    return float((left * right).sum() / scale) if scale > 1e-12 else float("nan")


def _clipped(predicted: np.ndarray, measured: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The values of the positions that count, both clipped, float64."""
    predicted, measured = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if predicted.shape != measured.shape:
        raise ValueError(f"expected reactivity of one shape, got {predicted.shape} and {measured.shape}")
    used = ~np.isnan(measured)
    if mask is not None:
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != measured.shape:
            raise ValueError(f"expected a mask {measured.shape}, got {mask.shape}")
        used &= mask
    return np.clip(predicted[used], *REACTIVITY_RANGE), np.clip(measured[used], *REACTIVITY_RANGE)


@dataclass(frozen=True)
class PairCounts:
    """How many pairs two structures share, and the scores that follow.

    Where neither structure has a pair every score is 1; where only one of them has, every score is 0.
    """

    shared: int
    """Pairs in both."""
    predicted: int
    true: int
    possible: int
    """Pairs an RNA of this length could have, length (length - 1) / 2."""

    def __add__(self, other: PairCounts) -> PairCounts:
        return PairCounts(
            self.shared + other.shared,
            self.predicted + other.predicted,
            self.true + other.true,
            self.possible + other.possible,
        )

    @property
    def ppv(self) -> float:
        return self._ratio(self.shared, self.predicted)

    @property
    def sensitivity(self) -> float:
        return self._ratio(self.shared, self.true)

    @property
    def f1(self) -> float:
        return self._ratio(2 * self.shared, self.predicted + self.true)

    @property
    def mcc(self) -> float:
        """Matthews correlation over all possible pairs. Source: Matthews 1975, Biochim. Biophys. Acta 405:442."""
        if self.predicted == 0 or self.true == 0:
            return self._ratio(0, 0)
        false_positive, false_negative = self.predicted - self.shared, self.true - self.shared
        true_negative = self.possible - self.shared - false_positive - false_negative
        square = float(self.predicted) * self.true * (true_negative + false_positive) * (true_negative + false_negative)
        if square == 0:  # every possible pair is predicted, or true
            return 1.0 if self.shared == self.predicted == self.true else 0.0
        return (self.shared * true_negative - false_positive * false_negative) / square**0.5

    def _ratio(self, part: int, whole: int) -> float:
        if self.predicted == 0 and self.true == 0:
            return 1.0
        return part / whole if whole else 0.0


def compare_structures(predicted: Structure | None, truth: Structure) -> PairCounts:
    """Pairs shared by two structures, strictly: (i, j) against (i, j), no slip allowed. None predicts no pair.

    Raises:
        ValueError: lengths that differ.

    >>> counts = compare_structures(Structure.from_dot_bracket("((...))."), Structure.from_dot_bracket("(.....)."))
    >>> counts.ppv, counts.sensitivity
    (0.5, 1.0)
    """
    return _compare(predicted, truth, lambda structure: structure.pairs)


def compare_crossing_pairs(predicted: Structure | None, truth: Structure) -> PairCounts:
    """As `compare_structures`, of the pairs that cross another pair of their own structure: both sides of a knot.

    A pair is shared where it crosses in both structures: finding the nested half of a pseudoknot finds none of it.

    >>> truth = Structure.from_dot_bracket("((..[[..))..]]")
    >>> compare_crossing_pairs(Structure.from_dot_bracket("((......))...."), truth).shared
    0
    """
    return _compare(predicted, truth, Structure.crossing_pairs)


def _compare(predicted: Structure | None, truth: Structure, pairs_of) -> PairCounts:
    predicted = Structure(truth.length, ()) if predicted is None else predicted
    if predicted.length != truth.length:
        raise ValueError(f"expected a structure of length {truth.length}, got {predicted.length}")
    found, expected = set(pairs_of(predicted)), set(pairs_of(truth))
    return PairCounts(len(found & expected), len(found), len(expected), truth.length * (truth.length - 1) // 2)


def rmsd(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Root mean square distance in angstrom of (length, 3) from (length, 3) after the best rigid motion.

    Residues with a NaN on either side are left out; NaN where none is left.

    Raises:
        ValueError: shapes that differ.
    """
    predicted, reference = _coordinate_pair(predicted, reference)
    if not _resolved(predicted, reference).any():
        return float("nan")
    return superpose(predicted, reference).rmsd


def lddt(
    predicted: np.ndarray,
    reference: np.ndarray,
    inclusion_radius: float = LDDT_INCLUSION_RADIUS,
    per_residue: bool = False,
) -> float | np.ndarray:
    """Share of the reference's distances within the radius that the prediction keeps, from 0 to 1.

    Every pair of residues resolved in `reference` (length, 3) and at most `inclusion_radius` angstrom apart there
    counts; it is kept where the distance differs by less than 0.5, 1, 2, 4 angstrom, and the four shares are averaged.
    A residue that `predicted` (length, 3) lacks (NaN) keeps nothing. Stereochemistry is not looked at.

    Returns:
        The share over all pairs; with `per_residue` (length,), each over the pairs of one residue. NaN where there is
        no pair, so also at residues the reference lacks.

    Raises:
        ValueError: shapes that differ.

    Source: Mariani et al. 2013, Bioinformatics 29:2722, section 2.1, on one atom a residue.

    >>> line = np.arange(4.0)[:, None] * [[5.0, 0.0, 0.0]]
    >>> lddt(line, line), round(lddt(line * 1.15, line), 4)
    (1.0, 0.5833)
    """
    predicted, reference = _coordinate_pair(predicted, reference)
    resolved = np.flatnonzero(np.isfinite(reference).all(axis=1))
    left, right = resolved[_pairs_within(reference[resolved], inclusion_radius)]
    distance = np.linalg.norm(reference[left] - reference[right], axis=1)
    deviation = np.abs(np.linalg.norm(predicted[left] - predicted[right], axis=1) - distance)
    # NaN compares as False: a missing residue keeps nothing
    kept = (deviation[:, None] < np.array(LDDT_THRESHOLDS)).mean(axis=1)
    if not per_residue:
        return float(kept.mean()) if len(kept) else float("nan")
    ends = np.concatenate([left, right])
    counts = np.bincount(ends, minlength=len(reference)).astype(np.float64)
    counts[counts == 0] = np.nan
    return np.bincount(ends, weights=np.tile(kept, 2), minlength=len(reference)) / counts


def _pairs_within(points: np.ndarray, radius: float) -> np.ndarray:
    """The two numbers (2, pairs), the smaller first, of the points (n, 3) at most `radius` apart."""
    blocks = []
    # rows of distances at a time: some megabytes, however many points there are
    rows = max(1, 1_000_000 // max(len(points), 1))
    for start in range(0, len(points), rows):
        distance = np.linalg.norm(points[start : start + rows, None] - points[None, start:], axis=-1)
        left, right = np.nonzero(distance <= radius)
        later = right > left
        blocks.append(start + np.stack([left[later], right[later]]))
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((2, 0), dtype=np.int64)


def best_tm_score(predicted: np.ndarray, references: Sequence[np.ndarray]) -> float:
    """Largest TM-score of (length, 3) against any of several conformations, each (length, 3)."""
    return max(tm_score(predicted, reference) for reference in references)


def best_lddt(predicted: np.ndarray, references: Sequence[np.ndarray]) -> float:
    """Largest lDDT of (length, 3) against any of several conformations; NaN where none has a pair of residues."""
    return _best([float(lddt(predicted, reference)) for reference in references], max)


def best_rmsd(predicted: np.ndarray, references: Sequence[np.ndarray]) -> float:
    """Smallest RMSD, angstrom, of (length, 3) from any of several conformations; NaN where no residue is shared."""
    return _best([rmsd(predicted, reference) for reference in references], min)


def _best(values: Sequence[float], choose) -> float:
    known = [value for value in values if not np.isnan(value)]
    return choose(known) if known else float("nan")


def _coordinate_pair(predicted: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, reference = np.asarray(predicted, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if predicted.shape != reference.shape or reference.ndim != 2 or reference.shape[1] != 3:
        raise ValueError(f"expected two arrays (length, 3), got {predicted.shape} and {reference.shape}")
    return predicted, reference


def _resolved(predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.isfinite(predicted).all(axis=1) & np.isfinite(reference).all(axis=1)


def bootstrap_interval(
    values: np.ndarray | Sequence[float], n: int = 1000, seed: int = 0, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """95 % interval of the (weighted) mean of one value an RNA, by drawing the RNAs `n` times with replacement.

    NaN values are left out; (NaN, NaN) where none is left. The same seed gives the same interval.

    Args:
        weights: one a value, not negative: a mean over positions weighs each RNA by its positions. Equal if None.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3 (percentile interval).

    >>> bootstrap_interval([0.5, 0.5, 0.5])
    (0.5, 0.5)
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != values.shape:
        raise ValueError(f"expected weights {values.shape}, got {weights.shape}")
    used = ~np.isnan(values) & (weights > 0)
    values, weights = values[used], weights[used]
    if len(values) == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = np.empty(n)
    step = max(1, _BOOTSTRAP_DRAWS_AT_ONCE // len(values))
    for start in range(0, n, step):
        drawn = rng.integers(0, len(values), size=(min(step, n - start), len(values)))
        totals = weights[drawn]
        means[start : start + step] = (totals * values[drawn]).sum(axis=1) / totals.sum(axis=1)
    tail = (1 - BOOTSTRAP_COVERAGE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
