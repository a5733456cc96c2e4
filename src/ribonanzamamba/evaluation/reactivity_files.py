"""Files of measured and of predicted reactivity.

Reads our Parquet tables, Kaggle's `train_data.csv` (Ribonanza) and the `reactivity.csv` of a prediction folder.
Knows nothing of scores.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ribonanzamamba.evaluation.lookup import Lookup
from ribonanzamamba.evaluation.tables import (
    column_names,
    flag_array,
    number_lists,
    number_matrix,
    read_columns,
    read_pieces,
    record_rows,
    require_columns,
    text_list,
)
from ribonanzamamba.rna.formats import FormatError

REAGENT_PROBES = {"SHAPE_NMIA_or_1M7": "SHAPE", "2A3_MaP": "2A3", "DMS_MaP": "DMS"}
"""Probe of a reagent that the tables spell otherwise."""
ERROR = "_error"
"""Ends the name of a column of predicted errors."""
FILE_NAME = "reactivity.csv"
"""The file inside a prediction folder."""

_PLACE_COLUMNS = ("id", "position", "nucleotide")
_KAGGLE_VALUE = re.compile(r"reactivity_\d+")


@dataclass(frozen=True, eq=False)
class MeasuredReactivity:
    """One sequence in one experiment."""

    id: str
    sequence: str
    probe: str
    reactivity: np.ndarray
    """(length,), dimensionless, NaN = not measured."""
    dataset: str = ""
    passed: bool = True
    """Whether the signal was strong enough (`sn_pass`, Kaggle's `SN_filter`); True where the table does not say."""


PredictedReactivity = Mapping[str, np.ndarray]
"""Probe to reactivity (length,), and `<probe>_error` to its expected absolute error where that is predicted."""


def read_measured_reactivity(path: str | os.PathLike[str], split: str | None = None) -> Iterator[MeasuredReactivity]:
    """Measurements of a table, in the order of its rows; by its columns it is ours, Kaggle's or a `reactivity.csv`.

    Raises:
        FormatError: none of these layouts, no such split, or values of another number than the sequence has letters.
    """
    path = Path(path)
    names = column_names(path)
    if set(_PLACE_COLUMNS) <= set(names):
        if split is not None:
            raise FormatError(path, 0, f"has one row a nucleotide and no splits, so no {split!r} either")
        for id, sequence, probes in _read_positions(path, names):
            for probe, reactivity in probes.items():
                yield MeasuredReactivity(id, sequence, probe, reactivity)
    elif "experiment_type" in names:
        yield from _read_kaggle(path, names, split)
    else:
        yield from _read_lists(path, names, split)


def read_predicted_reactivity(path: str | os.PathLike[str]) -> Lookup[PredictedReactivity]:
    """Predictions of a `reactivity.csv`, or of the prediction folder it lies in.

    Raises:
        FormatError: there is no such file, or it has other columns.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    names = column_names(path)
    return Lookup(((id,), sequence, probes) for id, sequence, probes in _read_positions(path, names, errors=True))


def _read_positions(
    path: Path, names: list[str], *, errors: bool = False
) -> Iterator[tuple[str, str, PredictedReactivity]]:
    """Id, sequence and reactivity of each record of a table with one row a nucleotide; its errors if asked for."""
    require_columns(path, names, *_PLACE_COLUMNS)
    probes = [name for name in names if name not in _PLACE_COLUMNS and (errors or not name.endswith(ERROR))]
    table = read_columns(path, (*_PLACE_COLUMNS, *probes))
    letters, values = text_list(table, "nucleotide"), number_matrix(table, probes)
    for id, rows in record_rows(path, text_list(table, "id"), table["position"].to_numpy()):
        columns = {probe: values[rows, k] for k, probe in enumerate(probes)}
        yield id, "".join(letters[rows]), columns


def _read_lists(path: Path, names: list[str], split: str | None) -> Iterator[MeasuredReactivity]:
    """Our Parquet: a list of values in each row."""
    require_columns(path, names, "id", "sequence", "reagent", "reactivity")
    wanted = ("id", "sequence", "reagent", "reactivity", "sn_pass", "dataset")
    for piece in read_pieces(path, wanted, split):
        columns = (text_list(piece, name) for name in ("id", "sequence", "reagent", "dataset"))
        values = number_lists(piece, "reactivity")
        for id, sequence, reagent, dataset, reactivity, passed in zip(
            *columns, values, flag_array(piece, "sn_pass").tolist(), strict=True
        ):
            if len(reactivity) != len(sequence):
                raise FormatError(path, 0, f"expected {len(sequence)} values, got {len(reactivity)}", id)
            probe = REAGENT_PROBES.get(reagent, reagent)
            yield MeasuredReactivity(id, sequence, probe, reactivity, dataset, passed)


def _read_kaggle(path: Path, names: list[str], split: str | None) -> Iterator[MeasuredReactivity]:
    """Kaggle's layout: values in columns reactivity_0001, ..., as many as the longest sequence needs."""
    require_columns(path, names, "sequence_id", "sequence", "experiment_type")
    places = sorted(name for name in names if _KAGGLE_VALUE.fullmatch(name))
    texts = ("sequence_id", "sequence", "experiment_type", "dataset_name")
    for piece in read_pieces(path, (*texts, "SN_filter", *places), split):
        columns = (text_list(piece, name) for name in texts)
        values = number_matrix(piece, places)
        for id, sequence, reagent, dataset, row, passed in zip(
            *columns, values, flag_array(piece, "SN_filter").tolist(), strict=True
        ):
            reactivity = np.full(len(sequence), np.nan, dtype=np.float32)
            reactivity[: len(row)] = row[: len(sequence)]
            probe = REAGENT_PROBES.get(reagent, reagent)
            yield MeasuredReactivity(id, sequence, probe, reactivity, dataset, passed)
