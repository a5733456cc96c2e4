"""Tables of 3D structures to examples.

Reads our Parquet (flat x, y, z lists for each atom) and Kaggle's `train_sequences.csv` with `train_labels.csv`
beside it (Stanford RNA 3D Folding). Knows nothing of tensors, networks or superpositions.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int64, UInt8

from ribonanzamamba.data.columns import (
    column_names,
    flag_array,
    flat_lists,
    number_array,
    read_columns,
    require_columns,
    rna_letters,
    running_numbers,
    text_list,
)
from ribonanzamamba.data.example import Example
from ribonanzamamba.data.splits import HASHED_SPLITS, check_split, hashed_split
from ribonanzamamba.rna.records import ATOMS

ATOM_COLUMNS: dict[str, str] = {"P": "p_xyz", "C4'": "c4p_xyz", "C1'": "c1p_xyz", "N": "n9n1_xyz"}
"""Column of our Parquet for each atom."""
MAX_COORDINATE = 1e6
"""Angstrom; a larger value is a placeholder (Kaggle writes -1e18), not a position."""
REPORTING_SPLITS = ("main", "target", "neighbour")
"""Parts of a table with a column `val_role`: the rows to score, all of val_role target, all of val_role neighbour."""

logger = logging.getLogger(__name__)


def read_coordinate_table(
    path: str | Path, split: str | None = None, *, labels: str | Path | None = None
) -> list[Example]:
    """Examples with `coordinates` in angstrom from a table of 3D structures, in the order of its rows.

    Our Parquet: any of the columns c1p_xyz, p_xyz, c4p_xyz, n9n1_xyz may be missing, null or empty; that atom is
    then missing (NaN). Kaggle's CSV: `path` is the file of sequences; the labels are `labels` or the file beside it
    with `labels` for `sequences` in its name. They hold C1' alone; of several conformations (x_1, x_2, ...) the first
    with a value is taken. A target whose labels contradict its sequence keeps none of them, and a warning is
    logged. An atom is missing as a whole where one of x, y, z is missing or absurd (beyond 1e6); an example without
    any position has `coordinates` None.

    `split`: a table with a column `val_role` is for reporting and has the parts `main`, `target` and `neighbour`
    instead; any other is divided into `train` and `valid` (8 %) by a hash of the cluster, or of the sequence where
    there are no clusters.

    Raises:
        ValueError: no such columns or split; a list of the wrong length (with the id of the row).
        FileNotFoundError: no labels beside Kaggle's sequences.
    """
    path = Path(path)
    names = column_names(path)
    require_columns(path, names, ["target_id"], ["sequence"])
    wanted = ("target_id", "sequence", "source", "cluster80", "val_role", "is_main", *ATOM_COLUMNS.values())
    table = _with_clusters(pa.concat_tables(read_columns(path, wanted)))
    table = _select_split(table, split, path)
    ids = text_list(table, "target_id")
    sequences = [rna_letters(text) for text in text_list(table, "sequence")]
    if set(names).isdisjoint(ATOM_COLUMNS.values()):
        flat = _kaggle_coordinates(ids, sequences, _label_path(path, labels))
    else:
        flat = _list_coordinates(table, ids, sequences, path)
    flat[~(np.abs(flat) <= MAX_COORDINATE).all(axis=-1)] = np.nan
    flat.flags.writeable = False
    datasets = text_list(table, "source", path.stem)
    clusters, sizes = table["row_cluster"].to_pylist(), table["row_cluster_size"].to_pylist()
    starts = [0, *np.cumsum([len(sequence) for sequence in sequences]).tolist()]
    examples = []
    for row, sequence in enumerate(sequences):
        coordinates = flat[starts[row] : starts[row + 1]]
        examples.append(
            Example(
                id=ids[row],
                sequence=sequence,
                cluster=clusters[row],
                cluster_size=sizes[row],
                dataset=datasets[row],
                coordinates=coordinates if np.isfinite(coordinates).any() else None,
            )
        )
    return examples


def _with_clusters(table: pa.Table) -> pa.Table:
    """The table with columns `row_cluster` and `row_cluster_size`, and its sequences spelled A C G U N."""
    sequences = [rna_letters(text) for text in text_list(table, "sequence")]
    if "cluster80" in table.column_names:
        clusters = number_array(table, "cluster80", -1.0, np.int64).tolist()
        counts = Counter(clusters)
        sizes = [counts[cluster] for cluster in clusters]
    else:
        clusters = running_numbers(sequences).tolist()
        sizes = [1] * len(clusters)
    table = table.set_column(table.column_names.index("sequence"), "sequence", pa.array(sequences, pa.string()))
    table = table.append_column("row_cluster", pa.array(clusters, pa.int64()))
    return table.append_column("row_cluster_size", pa.array(sizes, pa.int64()))


def _select_split(table: pa.Table, split: str | None, path: Path) -> pa.Table:
    if "val_role" in table.column_names:
        check_split(split, REPORTING_SPLITS, path)
        if split is None:
            return table
        if split == "main":
            return table.filter(pa.array(flag_array(table, "is_main", True)))
        return table.filter(pc.equal(table["val_role"], split))
    check_split(split, HASHED_SPLITS, path)
    if split is None:
        return table
    # Whole clusters go to one side; without clusters, equal sequences do.
    keys = table["row_cluster"] if "cluster80" in table.column_names else table["sequence"]
    return table.filter(pa.array([hashed_split(str(key)) == split for key in keys.to_pylist()], pa.bool_()))


def _list_coordinates(
    table: pa.Table, ids: Sequence[str], sequences: Sequence[str], path: Path
) -> Float32[np.ndarray, "position atom 3"]:
    """Coordinates of all rows end to end, from the flat lists of our Parquet."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    flat = np.full((int(lengths.sum()), len(ATOMS), 3), np.nan, dtype=np.float32)
    for atom, column in ATOM_COLUMNS.items():
        values, counts = flat_lists(table, column)
        wrong = (counts != 0) & (counts != 3 * lengths)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"{path}: {ids[row]}: expected {3 * lengths[row]} values in {column}, got {counts[row]}")
        flat[np.repeat(counts != 0, lengths), ATOMS.index(atom)] = values.reshape(-1, 3)
    return flat


def _label_path(path: Path, labels: str | Path | None) -> Path:
    labels = path.with_name(path.name.replace("sequences", "labels")) if labels is None else Path(labels)
    if labels == path or not labels.is_file():
        raise FileNotFoundError(f"{path}: expected its labels in {labels}, or named with labels=")
    return labels


def _kaggle_coordinates(
    ids: Sequence[str], sequences: Sequence[str], labels: Path
) -> Float32[np.ndarray, "position atom 3"]:
    """Coordinates of all targets end to end: C1' from the label file, other atoms missing."""
    names = column_names(labels)
    require_columns(labels, names, ["ID"], ["resname"], ["resid"], ["x_1"])
    models = [name[2:] for name in names if name.startswith("x_")]
    axes = [f"{axis}_{model}" for model in models for axis in "xyz"]
    require_columns(labels, names, *[[axis] for axis in axes])
    table = pa.concat_tables(read_columns(labels, ["ID", "resname", "resid", *axes]))

    numbers = {name: number for number, name in enumerate(ids)}
    target = np.array([numbers.get(text.rpartition("_")[0], -1) for text in text_list(table, "ID")], dtype=np.int64)
    position = number_array(table, "resid", 0.0, np.int64) - 1
    letter = _letter_codes(rna_letters(text)[:1] or "N" for text in text_list(table, "resname"))
    xyz = np.stack([number_array(table, axis, np.nan, np.float64) for axis in axes], axis=-1)
    xyz = xyz.reshape(len(target), len(models), 3)

    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    known = np.flatnonzero(target >= 0)
    target, position, letter, xyz = target[known], position[known], letter[known], xyz[known]
    contradicted = _contradicted_targets(target, position, letter, sequences, lengths)
    if len(contradicted):
        shown = ", ".join(ids[number] for number in contradicted[:5])
        logger.warning("%s: labels of %d targets contradict the sequence: %s", labels, len(contradicted), shown)
        keep = ~np.isin(target, contradicted)
        target, position, xyz = target[keep], position[keep], xyz[keep]

    present = (np.abs(xyz) <= MAX_COORDINATE).all(axis=-1)  # row model
    seen = np.zeros((len(ids), len(models)), dtype=bool)
    np.logical_or.at(seen, target, present)
    first = seen.argmax(axis=1)[target]
    flat = np.full((int(lengths.sum()), len(ATOMS), 3), np.nan, dtype=np.float32)
    chosen = np.where(np.abs(xyz) <= MAX_COORDINATE, xyz, np.nan)[np.arange(len(target)), first]
    flat[starts[target] + position, ATOMS.index("C1'")] = chosen
    return flat


def _contradicted_targets(
    target: Int64[np.ndarray, " label"],
    position: Int64[np.ndarray, " label"],
    letter: UInt8[np.ndarray, " label"],
    sequences: Sequence[str],
    lengths: Int64[np.ndarray, " target"],
) -> Int64[np.ndarray, " contradicted"]:
    """Targets with a label outside the sequence, or of another letter than stands there (N fits every letter)."""
    outside = (position < 0) | (position >= lengths[target])
    expected = _letter_codes(sequences)
    where = np.where(outside, 0, (np.cumsum(lengths) - lengths)[target] + position)
    unknown = ord("N")
    different = (expected[where] != letter) & (expected[where] != unknown) & (letter != unknown)
    return np.unique(target[outside | different])


def _letter_codes(texts: Iterable[str]) -> UInt8[np.ndarray, " letter"]:
    return np.frombuffer("".join(texts).encode("ascii"), dtype=np.uint8)
