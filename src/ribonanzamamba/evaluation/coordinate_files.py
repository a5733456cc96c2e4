"""Files of known and of predicted C1' coordinates.

Reads our Parquet tables, mmCIF and PDB files and folders of them, the `coordinates/` of a prediction folder, and
Kaggle's layout with one row a nucleotide (labels and submissions). Knows nothing of scores.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ribonanzamamba.evaluation.lookup import Lookup
from ribonanzamamba.evaluation.tables import (
    TABLE_ENDINGS,
    column_names,
    ending,
    flag_array,
    number_lists,
    number_matrix,
    read_columns,
    record_rows,
    require_columns,
    stem,
    text_list,
)
from ribonanzamamba.rna.formats import FormatError, safe_file_name
from ribonanzamamba.rna.mmcif import ChainCoordinates, read_mmcif
from ribonanzamamba.rna.records import ATOMS

C1_PRIME = ATOMS.index("C1'")
COORDINATE_ENDINGS = (".cif", ".mmcif", ".pdb", ".ent")
MAX_COORDINATE = 1e6
"""Angstrom; a larger value is a placeholder (Kaggle writes -1e18), not a position."""
FOLDER_NAME = "coordinates"
"""The folder inside a prediction folder."""
RANKING_NAME = "ranking.csv"
MAIN_SPLIT = "main"
"""The rows to score in a table with a column `val_role`."""

_MODEL_FILE = re.compile(r"(?P<name>.+)_model_(?P<model>\d+)")


@dataclass(frozen=True, eq=False)
class CoordinateRecord:
    """One RNA with one or more conformations: known ones, or predicted models, best first."""

    id: str
    sequence: str
    conformations: np.ndarray
    """(conformation, length, 3), C1', angstrom, NaN = missing."""
    aliases: tuple[str, ...] = ()
    """Other names it goes by: those of its file and of the entry in it."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.id, *self.aliases)


def read_reference_coordinates(path: str | os.PathLike[str], split: str | None = None) -> list[CoordinateRecord]:
    """Known conformations of each RNA of a table, a coordinate file or a folder of these, in order (files by name).

    In our Parquet, rows of one `group_id` are conformations of one RNA, named after the first of them. A table with a
    column `val_role` is for reporting: its rows with `is_main` name the RNAs to score, and other rows of val_role
    target are further conformations; `split="neighbour"` takes the rows of that role instead, and any other table
    has the splits of its column `split`.

    Raises:
        FormatError: no such file, layout or split, or a record that cannot be used.
    """
    path = Path(path)
    if not path.is_dir() and ending(path) in TABLE_ENDINGS:
        names = column_names(path)
        if "ID" in names and split is None:
            return list(_read_kaggle(path, names))
        return _read_parquet(path, names, split)
    if split is not None:
        raise FormatError(path, 0, f"has no column 'split', so no {split!r} either")
    return [record for file in _coordinate_files(path) for record in _read_chains(file)]


def read_predicted_coordinates(path: str | os.PathLike[str]) -> Lookup[np.ndarray]:
    """Predicted models (model, length, 3) of each RNA, best first, to be found by id or sequence.

    `path` is a prediction folder, its `coordinates/` (the order of models is that of `ranking.csv`, or the number in
    the file's name), another folder of coordinate files, a single one, or a Kaggle submission.

    Raises:
        FormatError: no such file or layout, or a record that cannot be used.
    """
    path = Path(path)
    if path.is_dir() and (path / FOLDER_NAME).is_dir():
        path = path / FOLDER_NAME
    if not path.is_dir() and ending(path) in TABLE_ENDINGS:
        names = column_names(path)
        records = list(_read_kaggle(path, names))
    elif (path / RANKING_NAME).is_file():
        records = [_read_models(path, id, files) for id, files in _ranked_files(path).items()]
    else:
        groups: dict[str, list[tuple[int, Path]]] = {}
        records = []
        for file in _coordinate_files(path):
            match = _MODEL_FILE.fullmatch(stem(file))
            if match:
                groups.setdefault(match["name"], []).append((int(match["model"]), file))
            else:
                records.extend(_read_chains(file))
        records += [_read_models(path, name, [file for _, file in sorted(files)]) for name, files in groups.items()]
    # the name of a file is not always the id, but always made of it
    return Lookup(((record.names, record.sequence, record.conformations) for record in records), spell=safe_file_name)


def _coordinate_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and ending(file) in COORDINATE_ENDINGS)
    if not files:
        raise FormatError(path, 0, f"holds no files ending in {', '.join(COORDINATE_ENDINGS)}")
    return files


def _ranked_files(folder: Path) -> dict[str, list[Path]]:
    """Files of the models of each id, in the order of ranking.csv."""
    path = folder / RANKING_NAME
    require_columns(path, column_names(path), "id", "model")
    files: dict[str, list[Path]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name = f"{safe_file_name(row['id'])}_model_{row['model']}.cif"
            files.setdefault(row["id"], []).append(folder / name)
    return files


def _read_models(path: Path, id: str, files: Sequence[Path]) -> CoordinateRecord:
    """The only chain of each of several files, as models of one RNA."""
    models = []
    for file in files:
        chains = read_mmcif(file)
        if len(chains) != 1:
            raise FormatError(file, 0, f"expected one RNA chain, got {len(chains)}", id)
        models.append(chains[0])
    if len({chain.sequence for chain in models}) != 1:
        raise FormatError(path, 0, "its models have different sequences", id)
    conformations = np.stack([_c1_prime(chain) for chain in models])
    return CoordinateRecord(id, models[0].sequence, conformations, _aliases((models[0].entry,)))


def _read_chains(file: Path) -> Iterator[CoordinateRecord]:
    """Each RNA chain of a file: named after the file if it is alone there, file_chain otherwise."""
    chains = read_mmcif(file)
    if not chains:
        raise FormatError(file, 0, "holds no RNA chain")
    for chain in chains:
        names = tuple(f"{name}_{chain.id}" for name in (stem(file), chain.entry) if name)
        if len(chains) == 1:
            names = (stem(file), *names, chain.entry)
        yield CoordinateRecord(names[0], chain.sequence, _c1_prime(chain)[None], _aliases(names[1:]))


def _c1_prime(chain: ChainCoordinates) -> np.ndarray:
    return _placed(chain.coordinates[:, C1_PRIME])


def _aliases(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name)


def _placed(coordinates: np.ndarray) -> np.ndarray:
    """Coordinates (..., 3), float64, NaN for a residue where one of x, y, z is missing or absurd."""
    coordinates = np.array(coordinates, dtype=np.float64)
    # NaN compares as False
    coordinates[~(np.abs(coordinates) <= MAX_COORDINATE).all(axis=-1)] = np.nan
    return coordinates


def _read_kaggle(path: Path, names: list[str]) -> Iterator[CoordinateRecord]:
    """Kaggle's layout: a row a nucleotide, ID = target_resid, x_1, y_1, z_1, x_2, ...; empty conformations go."""
    require_columns(path, names, "ID", "resname", "resid", "x_1", "y_1", "z_1")
    n_conformations = 1
    while f"x_{n_conformations + 1}" in names:
        n_conformations += 1
    places = [f"{axis}_{k}" for k in range(1, n_conformations + 1) for axis in "xyz"]
    require_columns(path, names, *places)
    table = read_columns(path, ("ID", "resname", "resid", *places))
    letters, values = text_list(table, "resname"), number_matrix(table, places)
    targets = [id.rpartition("_")[0] for id in text_list(table, "ID")]
    for id, rows in record_rows(path, targets, table["resid"].to_numpy()):
        coordinates = _placed(values[rows].reshape(-1, n_conformations, 3).transpose(1, 0, 2))
        present = np.isfinite(coordinates).any(axis=(1, 2))
        yield CoordinateRecord(id, "".join(letters[rows]), coordinates[present])


def _read_parquet(path: Path, names: list[str], split: str | None) -> list[CoordinateRecord]:
    """Our Parquet: x1, y1, z1, x2, ... in a list."""
    require_columns(path, names, "target_id", "sequence", "c1p_xyz")
    reporting = "val_role" in names
    wanted = ("target_id", "sequence", "c1p_xyz", "group_id", "val_role", "is_main")
    table = read_columns(path, wanted, None if reporting else split)
    ids, sequences = text_list(table, "target_id"), text_list(table, "sequence")
    groups = table["group_id"].to_pylist() if "group_id" in names else list(range(len(ids)))
    order = list(range(len(ids)))
    if reporting:
        role = {None: "target", MAIN_SPLIT: "target"}.get(split, split)
        roles, main = text_list(table, "val_role"), flag_array(table, "is_main").tolist()
        if role not in roles:
            raise FormatError(path, 0, f"no split {split!r}; splits found: {', '.join(sorted({MAIN_SPLIT, *roles}))}")
        order = [row for row in order if roles[row] == role]
        if split in (None, MAIN_SPLIT):
            scored = {groups[row] for row in order if main[row]}
            order = [row for row in order if groups[row] in scored]
        # the main row gives its name to the group
        order.sort(key=lambda row: not main[row])
    conformations = number_lists(table, "c1p_xyz")
    members: dict[object, list[int]] = {}
    for row in order:
        if len(conformations[row]) != 3 * len(sequences[row]):
            message = f"expected {3 * len(sequences[row])} coordinates, got {len(conformations[row])}"
            raise FormatError(path, 0, message, ids[row])
        members.setdefault(groups[row], []).append(row)
    records = []
    for rows in members.values():
        if len({len(sequences[row]) for row in rows}) != 1:
            raise FormatError(path, 0, "conformations of one group differ in length", ids[rows[0]])
        coordinates = np.stack([_placed(conformations[row].reshape(-1, 3)) for row in rows])
        records.append(CoordinateRecord(ids[rows[0]], sequences[rows[0]], coordinates, tuple(ids[r] for r in rows[1:])))
    return records
