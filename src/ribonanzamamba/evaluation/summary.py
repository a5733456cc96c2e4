"""What all reports share: means with their intervals, tables as text, and plain data.

Knows nothing of what is scored.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ribonanzamamba.evaluation.metrics import bootstrap_interval


@dataclass(frozen=True)
class Estimate:
    """A mean over RNAs, and its 95 % bootstrap interval; NaN where there is nothing to average."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return "-" if math.isnan(self.mean) else f"{self.mean:.4f} ({self.low:.4f}-{self.high:.4f})"


def estimate(values: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray | None = None) -> Estimate:
    """Mean of one value an RNA with its interval; NaN values are left out.

    >>> estimate([0.25, 0.75, float("nan")], [3, 1, 1]).mean
    0.375
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    known = ~np.isnan(values) & (weights > 0)
    if not known.any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    mean = float(np.average(values[known], weights=weights[known]))
    return Estimate(mean, *bootstrap_interval(values[known], weights=weights[known]))


class Report(ABC):
    """What all reports can do: a table for the terminal, and plain data."""

    @abstractmethod
    def rows(self) -> list[tuple[str, ...]]:
        """Cells of the table, its header first."""

    @abstractmethod
    def counts(self) -> str:
        """How many RNAs the numbers are of, in words."""

    def to_text(self) -> str:
        """The table in columns of even width, and the counts below it."""
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", self.counts()])

    def to_json(self) -> dict[str, object]:
        """All fields as dictionaries, lists, numbers and text; None for NaN, which JSON does not know."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    return value


def number_text(value: float) -> str:
    """A number in a cell of a table; "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:.4f}"
