"""Files of measurements against files of predictions: read, match, score.

The reports themselves and `summarize_*`, which takes what is in memory, stand in a module for each noun and are named
here too. Knows nothing of networks: any program's predictions are scored.
"""

from __future__ import annotations

import os

from ribonanzamamba.evaluation.coordinate_files import read_predicted_coordinates, read_reference_coordinates
from ribonanzamamba.evaluation.coordinate_report import (
    CoordinatePair,
    CoordinateReport,
    CoordinateScore,
    summarize_coordinates,
)
from ribonanzamamba.evaluation.lookup import spelled
from ribonanzamamba.evaluation.reactivity_files import ERROR, read_measured_reactivity, read_predicted_reactivity
from ribonanzamamba.evaluation.reactivity_report import (
    ReactivityPair,
    ReactivityReport,
    ReactivityScore,
    summarize_reactivity,
)
from ribonanzamamba.evaluation.structure_files import read_predicted_structures, read_structures
from ribonanzamamba.evaluation.structure_report import (
    StructureGroup,
    StructurePair,
    StructureReport,
    StructureScore,
    summarize_structure,
)
from ribonanzamamba.evaluation.summary import Estimate

__all__ = [
    "CoordinatePair",
    "CoordinateReport",
    "CoordinateScore",
    "Estimate",
    "ReactivityPair",
    "ReactivityReport",
    "ReactivityScore",
    "StructureGroup",
    "StructurePair",
    "StructureReport",
    "StructureScore",
    "score_coordinates",
    "score_reactivity",
    "score_structure",
    "summarize_coordinates",
    "summarize_reactivity",
    "summarize_structure",
]

FilePath = str | os.PathLike[str]


def score_reactivity(truth: FilePath, predicted: FilePath, split: str | None = None) -> ReactivityReport:
    """Scores of a file of predicted reactivity against a file of measurements.

    `truth`: our Parquet, Kaggle's `train_data.csv`, or a `reactivity.csv`; rows that fail the signal-to-noise filter
    are left out and counted. `predicted`: a `reactivity.csv` or its folder. RNAs are matched by id, then by sequence.

    Raises:
        FormatError: a file that cannot be used.
        ValueError: a prediction of another length or sequence, or with gaps, with the id.
    """
    lookup = read_predicted_reactivity(predicted)
    rows = list(read_measured_reactivity(truth, split))
    known = {spelled(row.sequence) for row in rows}
    pairs = []
    for row in rows:
        if row.passed:
            probes = lookup.find((row.id,), row.sequence, known) or {}
            sequence = spelled(row.sequence)
            pairs.append(
                ReactivityPair(
                    row.id,
                    row.probe,
                    row.reactivity,
                    probes.get(row.probe),
                    sequence,
                    row.dataset,
                    probes.get(row.probe + ERROR),
                )
            )
    return summarize_reactivity(pairs, noisy=len(rows) - len(pairs))


def score_structure(truth: FilePath, predicted: FilePath, split: str | None = None) -> StructureReport:
    """Scores of a file of predicted structures against a file of known ones.

    Both: a table with `dot_bracket` or `structure`, dot-bracket, CT, BPSEQ, or a folder of them; `predicted` may be a
    prediction folder. RNAs are matched by id, then by sequence.

    Raises:
        FormatError: a file that cannot be used.
        ValueError: a prediction of another length or sequence, with the id.
    """
    lookup = read_predicted_structures(predicted)
    records = read_structures(truth, split)
    known = {spelled(record.sequence) for record in records if record.sequence}
    return summarize_structure(
        StructurePair(record.id, record.structure, lookup.find(record.names, record.sequence, known), record.family)
        for record in records
    )


def score_coordinates(truth: FilePath, predicted: FilePath, split: str | None = None) -> CoordinateReport:
    """Scores of predicted coordinates against known ones.

    `truth`: our Parquet, mmCIF or PDB (a file or a folder), or Kaggle's `train_labels.csv`; `predicted`: a prediction
    folder, its `coordinates/`, other mmCIF or PDB files, or a Kaggle submission. RNAs are matched by id, then by
    sequence.

    Raises:
        FormatError: a file that cannot be used.
        ValueError: a prediction of another length or sequence, with the id.
    """
    lookup = read_predicted_coordinates(predicted)
    records = read_reference_coordinates(truth, split)
    known = {spelled(record.sequence) for record in records}
    return summarize_coordinates(
        CoordinatePair(record.id, record.conformations, lookup.find(record.names, record.sequence, known))
        for record in records
    )
