"""Columns of Parquet, CSV and TSV tables (.gz too), and records that take several rows of a table.

Knows nothing of what the columns mean. PyArrow is imported where it is used.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ribonanzamamba.rna.formats import FormatError

if TYPE_CHECKING:
    import pyarrow

PARQUET_ENDINGS = (".parquet", ".pq")
TABLE_ENDINGS = (*PARQUET_ENDINGS, ".csv", ".tsv")
TEXT_COLUMNS = (
    "id",
    "ID",
    "nucleotide",
    "resname",
    "sequence",
    "sequence_id",
    "experiment_type",
    "dataset_name",
    "dot_bracket",
    "structure",
    "family",
    "split",
)
"""Stay text in a CSV even where they look like numbers, or hold nothing."""
WHOLE_COLUMNS = ("position", "resid")
_CSV_BLOCK_BYTES = 1 << 24


def ending(path: Path) -> str:
    """Ending of a file's name in lower case, without .gz.

    >>> ending(Path("a/b.CSV.gz"))
    '.csv'
    """
    return Path(path.name.lower().removesuffix(".gz")).suffix


def stem(path: Path) -> str:
    """A file's name without its ending and without .gz.

    >>> stem(Path("a/b.c.ct.gz"))
    'b.c'
    """
    return path.name[: len(path.name) - len(".gz") * path.name.lower().endswith(".gz") - len(ending(path))]


def column_names(path: Path) -> list[str]:
    """Names of the columns of a table.

    Raises:
        FormatError: there is no such file, it is empty, or it is no Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise FormatError(path, 0, "no such file")
    if ending(path) in PARQUET_ENDINGS:
        try:
            return pyarrow.parquet.read_schema(path).names
        except (pyarrow.ArrowException, OSError) as error:
            raise FormatError(path, 0, f"cannot be read as Parquet: {error}") from error
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, delimiter=_delimiter(path)), None)
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(path, 1, f"cannot be read as a table: {error}") from error
    if not header:
        raise FormatError(path, 0, "the file is empty")
    return header


def require_columns(path: Path, names: Sequence[str], *wanted: str) -> None:
    """Nothing, if all the wanted names are there.

    Raises:
        FormatError: with the columns that are missing and those found.
    """
    missing = [name for name in wanted if name not in names]
    if missing:
        found = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise FormatError(path, 0, f"no column {', '.join(missing)}; columns found: {found}")


def read_pieces(path: Path, wanted: Sequence[str], split: str | None = None) -> Iterator[pyarrow.Table]:
    """Pieces of a table, in the order of its rows, with those of the wanted columns that it has.

    With `split`, only the rows whose column `split` says so.

    Raises:
        FormatError: the file cannot be read, or has no such split.
    """
    import pyarrow
    import pyarrow.compute
    import pyarrow.csv
    import pyarrow.parquet

    names = column_names(path)
    present = [name for name in names if name in set(wanted)]
    if split is not None:
        require_columns(path, names, "split")
        present = [*(name for name in present if name != "split"), "split"]
    splits: set[str] = set()
    try:
        if ending(path) in PARQUET_ENDINGS:
            pieces = _parquet_pieces(path, present)
        else:
            pieces = _csv_pieces(path, present)
        for piece in pieces:
            if split is not None:
                splits.update(pyarrow.compute.unique(piece["split"]).to_pylist())
                piece = piece.filter(pyarrow.compute.equal(piece["split"], split))
            yield piece
    except pyarrow.ArrowException as error:
        raise FormatError(path, 0, f"cannot be read as a table: {str(error).partition(chr(10))[0]}") from error
    if split is not None and split not in splits:
        raise FormatError(path, 0, f"no split {split!r}; splits found: {', '.join(sorted(filter(None, splits)))}")


def read_columns(path: Path, wanted: Sequence[str], split: str | None = None) -> pyarrow.Table:
    """The wanted columns that a table has, as one piece; otherwise as `read_pieces`."""
    import pyarrow

    pieces = list(read_pieces(path, wanted, split))
    if not pieces:
        raise FormatError(path, 0, "the table has no rows")
    return pyarrow.concat_tables(pieces)


def text_list(table: pyarrow.Table, name: str) -> list[str]:
    """A text column as a list; "" where it is null or the table has no such column."""
    import pyarrow

    if name not in table.column_names:
        return [""] * table.num_rows
    return [value or "" for value in table[name].cast(pyarrow.string()).to_pylist()]


def flag_array(table: pyarrow.Table, name: str) -> np.ndarray:
    """A column of true/false or 1/0, bool (row,); True where the table has no such column, False where it is null."""
    import pyarrow
    import pyarrow.compute

    if name not in table.column_names:
        return np.ones(table.num_rows, dtype=bool)
    numbers = pyarrow.compute.fill_null(table[name].cast(pyarrow.float64()), 0.0)
    return numbers.to_numpy() != 0


def number_matrix(table: pyarrow.Table, names: Sequence[str]) -> np.ndarray:
    """Number columns side by side, float32 (row, column), NaN where null."""
    import pyarrow

    columns = [table[name].cast(pyarrow.float32()).to_numpy() for name in names]
    return np.stack(columns, axis=1) if columns else np.zeros((table.num_rows, 0), dtype=np.float32)


def number_lists(table: pyarrow.Table, name: str) -> list[np.ndarray]:
    """A column of lists of numbers: float32 arrays, NaN where null; an empty one for a null list."""
    import pyarrow
    import pyarrow.compute

    lists = table[name].combine_chunks()
    lengths = pyarrow.compute.fill_null(pyarrow.compute.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []


def record_rows(path: Path, ids: Sequence[str], positions: np.ndarray) -> list[tuple[str, slice]]:
    """Id and rows of each record of a table with one row a nucleotide.

    Raises:
        FormatError: the positions of a record are not 1, 2, 3, ... or its rows are not together.
    """
    starts = [k for k in range(len(ids)) if k == 0 or ids[k] != ids[k - 1]]
    records = [(ids[start], slice(start, stop)) for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True)]
    seen: set[str] = set()
    for id, rows in records:
        if id in seen:
            raise FormatError(path, 0, "its rows are not together, or the id occurs twice", id)
        seen.add(id)
        expected = np.arange(1, rows.stop - rows.start + 1)
        wrong = np.flatnonzero(positions[rows] != expected)
        if len(wrong):
            found = positions[rows.start + wrong[0]]
            raise FormatError(path, 0, f"expected position {expected[wrong[0]]}, got {found}", id)
    return records


def _delimiter(path: Path) -> str:
    return "\t" if ending(path) == ".tsv" else ","


def _parquet_pieces(path: Path, names: list[str]) -> Iterator[pyarrow.Table]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=names)


def _csv_pieces(path: Path, names: list[str]) -> Iterator[pyarrow.Table]:
    """Columns that are neither text nor whole numbers are float32; so a wrong cell is an error, not a text column."""
    import pyarrow
    import pyarrow.csv

    types = {name: pyarrow.float32() for name in names}
    types |= {name: pyarrow.string() for name in TEXT_COLUMNS} | {name: pyarrow.int64() for name in WHOLE_COLUMNS}
    with pyarrow.csv.open_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(delimiter=_delimiter(path)),
        convert_options=pyarrow.csv.ConvertOptions(include_columns=names, column_types=types),
    ) as reader:
        for batch in reader:
            yield pyarrow.Table.from_batches([batch])
