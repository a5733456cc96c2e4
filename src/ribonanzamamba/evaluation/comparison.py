"""Several predictors of reactivity on the same RNAs: errors by group, and paired intervals of their differences.

Knows nothing of files, networks or training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ribonanzamamba.evaluation.metrics import BOOTSTRAP_COVERAGE, REACTIVITY_RANGE
from ribonanzamamba.evaluation.summary import Estimate

SIGNAL_EDGES = (1.0, 2.0, 5.0, 20.0)
"""Lower ends of the bins of signal to noise."""
LENGTH_EDGES = (0, 120, 200, 400, 1000)
"""Nucleotides; a bin goes from one (excluded) to the next (included), the last one without an end."""
DRAWS = 2000
"""Resamples of a paired bootstrap."""


@dataclass(frozen=True, eq=False)
class Cells:
    """What was measured: one entry a cell (a position of an RNA under a probe) that counts. All arrays (cell,)."""

    rna: np.ndarray
    """Number of the RNA, 0 to the number of RNAs minus 1: what is resampled."""
    probe: np.ndarray
    dataset: np.ndarray
    length: np.ndarray
    """Of the RNA, nucleotides."""
    signal_to_noise: np.ndarray
    measured: np.ndarray
    """Dimensionless."""

    def errors(self, predicted: np.ndarray) -> np.ndarray:
        """Absolute errors (cell,) of predictions (cell,), both clipped to [0, 1].

        Raises:
            ValueError: another number of predictions than of cells, or one that is not finite.
        """
        predicted = np.asarray(predicted, dtype=np.float64)
        if predicted.shape != self.measured.shape:
            raise ValueError(f"expected {len(self.measured)} predictions, one a cell, got shape {predicted.shape}")
        if not np.isfinite(predicted).all():
            raise ValueError("expected finite predictions")
        return np.abs(np.clip(predicted, *REACTIVITY_RANGE) - np.clip(self.measured, *REACTIVITY_RANGE))

    def groups(self, probe: str) -> dict[str, np.ndarray]:
        """Masks (cell,) of the cells of a probe: "all", each data set, bins of signal to noise and of length; those
        without a cell are left out."""
        here = self.probe == probe
        masks = {"all": here}
        masks |= {name: here & (self.dataset == name) for name in dict.fromkeys(self.dataset[here].tolist())}
        for low, high in _bins(SIGNAL_EDGES):
            name = f"S/N {low:g}-{high:g}" if np.isfinite(high) else f"S/N over {low:g}"
            masks[name] = here & (self.signal_to_noise >= low) & (self.signal_to_noise < high)
        for low, high in _bins(LENGTH_EDGES):
            name = f"{low + 1:g}-{high:g} nt" if np.isfinite(high) else f"over {low:g} nt"
            masks[name] = here & (self.length > low) & (self.length <= high)
        return {name: mask for name, mask in masks.items() if mask.any()}


def _bins(edges: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(edges, [*edges[1:], float("inf")], strict=True))


@dataclass(frozen=True)
class Comparison:
    """Mean error of one predictor against another's: intervals from the same resamples of RNAs for both."""

    difference: Estimate
    """First minus second; negative: the first is better."""
    ratio: Estimate
    """First over second."""


def compare_errors(
    first: np.ndarray, second: np.ndarray, rna: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> Comparison:
    """The mean of errors (cell,) of two predictors at the same cells, whose RNAs are resampled with replacement.

    Raises:
        ValueError: no cells, or arrays of different shapes.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3 (percentile interval).

    >>> result = compare_errors(np.array([0.1, 0.1]), np.array([0.2, 0.2]), np.array([0, 1]))
    >>> round(result.difference.mean, 6), round(result.ratio.high, 6)
    (-0.1, 0.5)
    """
    if not (first.shape == second.shape == rna.shape) or not len(rna):
        raise ValueError(f"expected errors of the same cells, got shapes {first.shape}, {second.shape}, {rna.shape}")
    _, number = np.unique(rna, return_inverse=True)
    totals = np.stack([np.bincount(number, values) for values in (first, second, np.ones(len(rna)))])
    count = totals.shape[1]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    one, other, cells = totals @ drawn.T
    return Comparison(
        _estimate(first.mean() - second.mean(), (one - other) / cells),
        _estimate(first.mean() / max(second.mean(), 1e-12), one / np.maximum(other, 1e-12)),
    )


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    tail = (1 - BOOTSTRAP_COVERAGE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def best(errors: Mapping[str, np.ndarray], mask: np.ndarray) -> str:
    """The name of the predictor with the smallest mean error over the cells of a mask.

    Raises:
        ValueError: no predictor.
    """
    return min(errors, key=lambda name: errors[name][mask].mean())
