"""RNAs longer than those that a battle trains on: which contestant still goes along with what was measured there.

Their reagent may be one that no contestant was trained for, so that what is compared is a correlation, not an error.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ribonanzamamba.data.example import Example
from ribonanzamamba.evaluation.comparison import compare_errors
from ribonanzamamba.evaluation.metrics import reactivity_pearson
from ribonanzamamba.rna.records import PROBES
from ribonanzamamba.training.battle_result import RunResult
from ribonanzamamba.training.config import DataConfig
from ribonanzamamba.training.tables import read_tables

FEWEST_POSITIONS = 20
"""Measured positions of an RNA whose correlation counts."""


@dataclass(frozen=True, kw_only=True)
class Longer:
    """Which RNAs, and what is compared there."""

    reactivity: tuple[str, ...]
    """Tables, of which the held-out rows count."""
    measured: str
    """Probe of the tables."""
    predicted: str
    """Probe of the contestants whose prediction is compared with it."""

    def examples(self, data: DataConfig) -> list[Example]:
        """The held-out RNAs measured with that probe, each once; from the store where `data` names one.

        Raises:
            ValueError: a store that lacks one of the tables, or no such RNA.
        """
        of_these = replace(data, reactivity=self.reactivity, structure=(), coordinates=(), unlabelled=())
        _, held_out = read_tables(of_these, (self.measured,))
        examples = {
            example.sequence: example
            for example in held_out.reactivity
            if np.isfinite(example.reactivity).sum() >= FEWEST_POSITIONS
        }
        if not examples:
            raise ValueError(f"longer: expected held-out RNAs measured with {self.measured} in {self.reactivity}")
        return list(examples.values())

    def at_hand(self, data: DataConfig) -> bool:
        """Whether the tables are on this machine, or a store that may hold them."""
        return bool(data.store) or all(Path(path).is_file() for path in self.reactivity)


def read_longer(values: Mapping[str, Any], folder: Path, probes: Sequence[str]) -> Longer | None:
    """The section `longer` of a battle's TOML in `folder`, whose contestants have these probes; None where it is empty.

    Raises:
        ValueError: an unknown or missing key, or a probe that the contestants do not predict.
    """
    if not values:
        return None
    known = [each.name for each in fields(Longer)]
    if set(values) != set(known):
        raise ValueError(f"longer: expected the keys {known}, got {sorted(values)}")
    if not isinstance(values["reactivity"], list) or not values["reactivity"]:
        raise ValueError(f"longer.reactivity: expected a list of tables, got {values['reactivity']!r}")
    for key, choices in (("measured", PROBES), ("predicted", tuple(probes))):
        if values[key] not in choices:
            raise ValueError(f"longer.{key}: expected one of {choices}, got {values[key]!r}")
    tables = tuple(str(folder / table) for table in values["reactivity"])
    return Longer(reactivity=tables, measured=values["measured"], predicted=values["predicted"])


def correlations(run: RunResult, examples: Sequence[Example], longer: Longer) -> Float64[np.ndarray, " rna"]:
    """Pearson correlation of each RNA, over its measured positions, both values clipped to [0, 1]; 0 where the
    prediction is constant.

    Raises:
        ValueError: predictions of other RNAs.
    """
    predictions = run.longer
    if predictions.ids.tolist() != [example.id for example in examples]:
        raise ValueError(f"{run.contestant}, {run.budget}, seed {run.seed}: predictions of other long RNAs")
    column = predictions.reactivity[:, predictions.probes.tolist().index(longer.predicted)]
    rows = np.split(column, np.cumsum(predictions.lengths)[:-1])
    values = [reactivity_pearson(row, example.reactivity[:, 0]) for row, example in zip(rows, examples, strict=True)]
    return np.nan_to_num(np.array(values))


def longer_rows(
    runs: Mapping[str, Sequence[RunResult]], baselines: set[str], examples: Sequence[Example], longer: Longer
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: the mean correlation of every contestant that has predicted these RNAs, and against
    the better baseline among them. RNAs of one cluster are resampled together."""
    per_run = {
        name: [correlations(run, examples, longer) for run in each if run.longer is not None]
        for name, each in runs.items()
    }
    known = {name: np.mean(values, axis=0) for name, values in per_run.items() if values}
    better = max(baselines & set(known), key=lambda name: known[name].mean(), default=None)
    clusters = np.array([example.cluster for example in examples])
    rows = []
    for name in sorted(known, key=lambda name: -known[name].mean()):
        seeds = [float(values.mean()) for values in per_run[name]]
        row = [name, f"{statistics.mean(seeds):.4f}", f"{min(seeds):.4f}-{max(seeds):.4f}", str(len(seeds))]
        if better is None or name == better:
            rows.append([*row, "-"])
            continue
        difference = compare_errors(known[name], known[better], clusters).difference
        rows.append([*row, f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"])
    versus = f"against {better}" if better else "against no baseline"
    return ["contestant", "Pearson r", "seeds from-to", "seeds", f"difference {versus} (95 %)"], rows
