"""Scores of the reactivity of many RNAs, from arrays.

Knows nothing of files and networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ribonanzamamba.evaluation.metrics import laplace_coverage, reactivity_mae, reactivity_pearson
from ribonanzamamba.evaluation.summary import Estimate, Report, estimate, number_text

NUCLEOTIDES_APART: dict[str, tuple[str, ...]] = {"DMS": ("AC", "A", "C")}
"""Probes scored at some nucleotides apart: DMS says little of G and U (N3 of C and N1 of A are what it reads)."""


@dataclass(frozen=True, eq=False)
class ReactivityPair:
    """One RNA and probe, measured and predicted."""

    id: str
    probe: str
    measured: np.ndarray
    """(length,), NaN = not measured."""
    predicted: np.ndarray | None
    """(length,); None = there is no prediction."""
    sequence: str = ""
    """Rows of one sequence are one RNA to the bootstrap; without it every id is one, and no nucleotide is apart."""
    dataset: str = ""
    error: np.ndarray | None = None
    """(length,), predicted expected absolute error; None = not predicted."""


@dataclass(frozen=True)
class ReactivityScore:
    """Reactivity of one probe in one data set, at some nucleotides."""

    probe: str
    """"all" for the positions of all probes together."""
    dataset: str
    """"all" for all data sets together."""
    nucleotides: str
    """"all", or the letters at which positions count."""
    mae: Estimate
    """Over positions; the interval is over RNAs."""
    pearson: float
    """Over positions."""
    n_rnas: int
    n_positions: int
    coverage: float = float("nan")
    """Share of the positions in the 80 % interval of the predicted error; NaN where a row has none."""


@dataclass(frozen=True)
class ReactivityReport(Report):
    """Reactivity against measurements; only rows with a prediction count."""

    scores: tuple[ReactivityScore, ...]
    scored: int
    """Rows (RNA, probe, experiment) that have a prediction."""
    missing: int
    """Rows without one: left out."""
    noisy: int = 0
    """Rows left out since their signal was too weak (`sn_pass`)."""

    def rows(self) -> list[tuple[str, ...]]:
        header = ("probe", "data set", "at", "MAE (95 %)", "Pearson r", "in 80 % interval", "RNAs", "positions")
        return [header] + [
            (
                s.probe,
                s.dataset,
                s.nucleotides,
                str(s.mae),
                number_text(s.pearson),
                number_text(s.coverage),
                str(s.n_rnas),
                str(s.n_positions),
            )
            for s in self.scores
        ]

    def counts(self) -> str:
        return (
            f"{self.scored} rows scored, {self.missing} without a prediction (left out), "
            f"{self.noisy} too noisy (left out)"
        )


def summarize_reactivity(pairs: Iterable[ReactivityPair], noisy: int = 0) -> ReactivityReport:
    """Scores of reactivity: all together, each probe, each probe in each data set, DMS at A and C apart.

    Raises:
        ValueError: lengths that differ, or a measured position without a predicted value, with the id.
    """
    pairs = list(pairs)
    known = [pair for pair in pairs if pair.predicted is not None]
    for pair in known:
        _check_reactivity(pair)
    scores = []
    probes = list(dict.fromkeys(pair.probe for pair in known))
    if len(probes) > 1:
        scores.append(_reactivity_score(known, "all", "all", "all"))
    for probe in probes:
        rows = [pair for pair in known if pair.probe == probe]
        for nucleotides in ("all", *NUCLEOTIDES_APART.get(probe, ())):
            scores.append(_reactivity_score(rows, probe, "all", nucleotides))
        datasets = list(dict.fromkeys(pair.dataset for pair in rows))
        if len(datasets) > 1:
            for dataset in datasets:
                chosen = [pair for pair in rows if pair.dataset == dataset]
                scores.append(_reactivity_score(chosen, probe, dataset, "all"))
    scored = tuple(score for score in scores if score.n_positions)
    return ReactivityReport(scored, len(known), len(pairs) - len(known), noisy)


def _check_reactivity(pair: ReactivityPair) -> None:
    measured, predicted = np.asarray(pair.measured), np.asarray(pair.predicted)
    if measured.shape != predicted.shape:
        raise ValueError(
            f"record {pair.id!r}: expected {pair.probe} reactivity of length {len(measured)}, got {len(predicted)}"
        )
    gaps = np.flatnonzero(~np.isnan(measured) & np.isnan(predicted))
    if len(gaps):
        raise ValueError(f"record {pair.id!r}: no {pair.probe} reactivity is predicted at position {gaps[0] + 1}")


def _reactivity_score(pairs: Sequence[ReactivityPair], probe: str, dataset: str, nucleotides: str) -> ReactivityScore:
    by_rna: dict[str, list[tuple[np.ndarray, ...]]] = {}
    for pair in pairs:
        used = ~np.isnan(pair.measured)
        if nucleotides != "all":
            letters = np.array(list(pair.sequence.ljust(len(used))), dtype="U1")
            used &= np.isin(letters, list(nucleotides))
        if used.any():
            error = np.full(len(used), np.nan) if pair.error is None else np.asarray(pair.error)
            values = np.asarray(pair.predicted)[used], np.asarray(pair.measured)[used], error[used]
            by_rna.setdefault(pair.sequence or pair.id, []).append(values)
    rnas = [tuple(np.concatenate(side) for side in zip(*values, strict=True)) for values in by_rna.values()]
    if not rnas:
        return ReactivityScore(probe, dataset, nucleotides, estimate([]), float("nan"), 0, 0)
    sizes = [len(measured) for _, measured, _ in rnas]
    errors = [reactivity_mae(predicted, measured) for predicted, measured, _ in rnas]
    predicted, measured, error = (np.concatenate(side) for side in zip(*rnas, strict=True))
    return ReactivityScore(
        probe,
        dataset,
        nucleotides,
        estimate(errors, sizes),
        reactivity_pearson(predicted, measured),
        len(rnas),
        sum(sizes),
        float("nan") if np.isnan(error).any() else laplace_coverage(predicted, error, measured),
    )
