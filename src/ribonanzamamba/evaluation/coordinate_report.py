"""Scores of the coordinates of many RNAs, from arrays.

Knows nothing of files and networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ribonanzamamba.evaluation.metrics import best_lddt, best_rmsd, best_tm_score
from ribonanzamamba.evaluation.summary import Estimate, Report, estimate

MAX_MODELS = 5
"""Models of an RNA that count, as in Kaggle's contest; further ones are not looked at."""


@dataclass(frozen=True, eq=False)
class CoordinatePair:
    """One RNA's C1' coordinates, known and predicted."""

    id: str
    references: np.ndarray
    """(conformation, length, 3), angstrom, NaN = missing: for each number the best one counts."""
    models: np.ndarray | None
    """(model, length, 3), best predicted first; None = there is no prediction: TM and lDDT are 0."""


@dataclass(frozen=True)
class CoordinateScore:
    """Scores of one RNA; `best` is over its models, `first` the model named first. RMSD in angstrom, NaN if missing."""

    id: str
    length: int
    tm_best: float
    tm_first: float
    lddt_best: float
    lddt_first: float
    rmsd_best: float
    rmsd_first: float
    n_models: int


@dataclass(frozen=True)
class CoordinateReport(Report):
    """Coordinates against known ones: means over RNAs; one without a prediction has TM and lDDT 0 and no RMSD."""

    tm_best: Estimate
    tm_first: Estimate
    lddt_best: Estimate
    lddt_first: Estimate
    rmsd_best: Estimate
    """Angstrom; over the RNAs with a prediction."""
    rmsd_first: Estimate
    records: tuple[CoordinateScore, ...]
    scored: int
    """RNAs that have a prediction."""
    missing: int
    """RNAs without one."""

    def rows(self) -> list[tuple[str, ...]]:
        most = max((record.n_models for record in self.records), default=0)
        return [
            ("", f"best of {most} (95 %)", "model 1 (95 %)"),
            ("TM-score", str(self.tm_best), str(self.tm_first)),
            ("lDDT", str(self.lddt_best), str(self.lddt_first)),
            ("RMSD, angstrom", str(self.rmsd_best), str(self.rmsd_first)),
        ]

    def counts(self) -> str:
        return f"{self.scored} RNAs with a prediction, {self.missing} without (TM and lDDT 0, no RMSD)"


def summarize_coordinates(pairs: Iterable[CoordinatePair]) -> CoordinateReport:
    """Scores of coordinates: each RNA, and means over all, for the best of at most five models and for the first.

    Raises:
        ValueError: lengths that differ, or references without a resolved residue, with the id.
    """
    records = []
    for pair in pairs:
        try:
            records.append(_coordinate_score(pair))
        except ValueError as error:
            raise ValueError(f"record {pair.id!r}: {error}") from error
    missing = sum(record.n_models == 0 for record in records)
    names = ("tm_best", "tm_first", "lddt_best", "lddt_first", "rmsd_best", "rmsd_first")
    means = {name: estimate([getattr(record, name) for record in records]) for name in names}
    return CoordinateReport(**means, records=tuple(records), scored=len(records) - missing, missing=missing)


def _coordinate_score(pair: CoordinatePair) -> CoordinateScore:
    references = [reference for reference in pair.references if np.isfinite(reference).all(axis=-1).any()]
    if not references:
        raise ValueError("no reference has a resolved residue")
    length = len(references[0])
    models = [] if pair.models is None else list(pair.models[:MAX_MODELS])
    if not models:
        return CoordinateScore(pair.id, length, 0.0, 0.0, 0.0, 0.0, float("nan"), float("nan"), 0)
    tm = [best_tm_score(model, references) for model in models]
    local = [best_lddt(model, references) for model in models]
    distance = [best_rmsd(model, references) for model in models]
    known = [value for value in distance if not math.isnan(value)]
    return CoordinateScore(
        id=pair.id,
        length=length,
        tm_best=max(tm),
        tm_first=tm[0],
        lddt_best=max(local),
        lddt_first=local[0],
        rmsd_best=min(known, default=float("nan")),
        rmsd_first=distance[0],
        n_models=len(models),
    )
