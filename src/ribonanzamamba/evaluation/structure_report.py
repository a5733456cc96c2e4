"""Scores of the secondary structures of many RNAs, from structures in memory.

Knows nothing of files and networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ribonanzamamba.evaluation.metrics import PairCounts, compare_crossing_pairs, compare_structures
from ribonanzamamba.evaluation.summary import Estimate, Report, estimate, number_text
from ribonanzamamba.rna.structure import Structure

LENGTH_BINS = (100, 200, 400, 600)
"""Nucleotides at which a bin of lengths ends and the next begins."""


@dataclass(frozen=True)
class StructurePair:
    """One RNA's structure, known and predicted."""

    id: str
    truth: Structure
    predicted: Structure | None
    """None = there is no prediction: it scores 0."""
    family: str = ""


@dataclass(frozen=True)
class StructureScore:
    """Scores of one RNA."""

    id: str
    family: str
    length: int
    f1: float
    ppv: float
    sensitivity: float
    mcc: float
    has_prediction: bool


@dataclass(frozen=True)
class StructureGroup:
    """Means over the RNAs of a family or a bin of lengths."""

    name: str
    n_rnas: int
    f1: Estimate
    ppv: float
    sensitivity: float
    mcc: float


@dataclass(frozen=True)
class StructureReport(Report):
    """Structures against known ones; an RNA without a prediction has scores of 0."""

    f1: Estimate
    """Mean over RNAs, as the next three."""
    ppv: Estimate
    sensitivity: Estimate
    mcc: Estimate
    family_f1: float
    """Mean over families of their mean F1; RNAs without a family left out, NaN where none has one."""
    crossing: PairCounts
    """Crossing pairs of all RNAs together."""
    crossing_sensitivity: float
    """NaN where no crossing pair is known."""
    crossing_ppv: float
    """NaN where no crossing pair is predicted or known."""
    families: tuple[StructureGroup, ...]
    lengths: tuple[StructureGroup, ...]
    records: tuple[StructureScore, ...]
    scored: int
    """RNAs that have a prediction."""
    missing: int
    """RNAs without one: 0."""

    def rows(self) -> list[tuple[str, ...]]:
        header = ("RNAs", "n", "F1 (95 %)", "PPV", "sensitivity", "MCC")
        means = (number_text(value.mean) for value in (self.ppv, self.sensitivity, self.mcc))
        rows = [header, ("all", str(len(self.records)), str(self.f1), *means)]
        for group in (*self.lengths, *self.families):
            numbers = (number_text(value) for value in (group.ppv, group.sensitivity, group.mcc))
            rows.append((group.name, str(group.n_rnas), str(group.f1), *numbers))
        if self.families:
            rows.append(("mean of families", str(len(self.families)), number_text(self.family_f1), "", "", ""))
        crossing = (number_text(self.crossing_ppv), number_text(self.crossing_sensitivity))
        rows.append(("crossing pairs", str(self.crossing.true), "", *crossing, ""))
        return rows

    def counts(self) -> str:
        return (
            f"{self.scored} RNAs with a prediction, {self.missing} without (scored 0); crossing pairs: "
            f"{self.crossing.true} known, {self.crossing.predicted} predicted, {self.crossing.shared} shared"
        )


def summarize_structure(pairs: Iterable[StructurePair]) -> StructureReport:
    """Scores of structures: each RNA, means over all, over families and over bins of length, crossing pairs pooled.

    Raises:
        ValueError: lengths that differ, with the id.
    """
    pairs = list(pairs)
    records, crossing = [], PairCounts(0, 0, 0, 0)
    for pair in pairs:
        try:
            counts = compare_structures(pair.predicted, pair.truth)
        except ValueError as error:
            raise ValueError(f"record {pair.id!r}: {error}") from error
        crossing += compare_crossing_pairs(pair.predicted, pair.truth)
        # an RNA without pairs is right by default, but not where nothing was predicted at all
        scores = (counts.f1, counts.ppv, counts.sensitivity, counts.mcc) if pair.predicted is not None else (0.0,) * 4
        record = StructureScore(pair.id, pair.family, pair.truth.length, *scores, pair.predicted is not None)
        records.append(record)
    names = sorted({record.family for record in records if record.family})
    families = tuple(_structure_group(name, [r for r in records if r.family == name]) for name in names)
    starts, ends = (0, *LENGTH_BINS), (*LENGTH_BINS, math.inf)
    bins = [
        _structure_group(
            f"{start} nt and more" if end == math.inf else f"{start}-{end - 1} nt",
            [record for record in records if start <= record.length < end],
        )
        for start, end in zip(starts, ends, strict=True)
    ]
    missing = sum(pair.predicted is None for pair in pairs)
    return StructureReport(
        f1=estimate([record.f1 for record in records]),
        ppv=estimate([record.ppv for record in records]),
        sensitivity=estimate([record.sensitivity for record in records]),
        mcc=estimate([record.mcc for record in records]),
        family_f1=float(np.mean([group.f1.mean for group in families])) if families else float("nan"),
        crossing=crossing,
        crossing_sensitivity=crossing.sensitivity if crossing.true else float("nan"),
        crossing_ppv=crossing.ppv if crossing.true or crossing.predicted else float("nan"),
        families=families,
        lengths=tuple(group for group in bins if group.n_rnas),
        records=tuple(records),
        scored=len(pairs) - missing,
        missing=missing,
    )


def _structure_group(name: str, records: Sequence[StructureScore]) -> StructureGroup:
    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else float("nan")

    return StructureGroup(
        name,
        len(records),
        estimate([record.f1 for record in records]),
        mean([record.ppv for record in records]),
        mean([record.sensitivity for record in records]),
        mean([record.mcc for record in records]),
    )
