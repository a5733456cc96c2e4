"""Columns of a table, Parquet or CSV, as Python lists and flat NumPy arrays.

Knows nothing of what the columns mean.
"""

import re
from collections.abc import Collection, Hashable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from jaxtyping import Bool, Int64, Num, Shaped

PARQUET_SUFFIXES = (".parquet", ".pq")

_CSV_BLOCK_BYTES = 1 << 24


def column_names(path: str | Path) -> list[str]:
    """Names of the columns of a Parquet, CSV or TSV file (CSV and TSV may be .gz).

    Raises:
        ValueError: the file is no such table.
    """
    path = Path(path)
    try:
        if path.suffix in PARQUET_SUFFIXES:
            return pyarrow.parquet.read_schema(path).names
        with pyarrow.csv.open_csv(path, parse_options=_csv_dialect(path)) as reader:
            return reader.schema.names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable table: {error}") from error


def read_columns(path: str | Path, wanted: Iterable[str]) -> Iterator[pa.Table]:
    """Pieces of a table, in the order of its rows, with those of the wanted columns that it has.

    A Parquet file comes a row group at a time, a CSV a block of 16 MiB, so that a table larger than memory can be
    read. CSV columns are text but for those known to hold numbers, whatever the first block looks like.

    Raises:
        ValueError: the file is no such table.
    """
    path = Path(path)
    present = [name for name in column_names(path) if name in set(wanted)]
    try:
        if path.suffix in PARQUET_SUFFIXES:
            with pyarrow.parquet.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=present)
            return
        convert = pyarrow.csv.ConvertOptions(include_columns=present, column_types=_csv_types(present))
        read = pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES)
        with pyarrow.csv.open_csv(
            path, read_options=read, parse_options=_csv_dialect(path), convert_options=convert
        ) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable table: {error}") from error


def require_columns(path: str | Path, present: Collection[str], *alternatives: Collection[str]) -> None:
    """Nothing, if of every group of alternative names at least one is a column.

    Raises:
        ValueError: with what was expected and what is there.
    """
    for names in alternatives:
        if not any(name in present for name in names):
            raise ValueError(f"{path}: expected a column {' or '.join(names)}, got {', '.join(list(present)[:12])}")


def text_list(table: pa.Table, name: str, default: str = "") -> list[str]:
    """A text column as a list; the default where it is null or the table has no such column."""
    if name not in table.column_names:
        return [default] * table.num_rows
    return pc.fill_null(table[name].cast(pa.string()), default).to_pylist()


def number_array(table: pa.Table, name: str, default: float, dtype: type) -> Num[np.ndarray, " row"]:
    """A number column as an array; the default where it is null or the table has no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, default, dtype=dtype)
    return pc.fill_null(table[name].cast(pa.float64()), default).to_numpy().astype(dtype)


def flag_array(table: pa.Table, name: str, default: bool) -> Bool[np.ndarray, " row"]:
    """A column of true/false or 1/0 as an array; the default where it is null or the table has no such column."""
    return number_array(table, name, float(default), np.float64) != 0


def flat_lists(table: pa.Table, name: str) -> tuple[Shaped[np.ndarray, " value"], Int64[np.ndarray, " row"]]:
    """All values of a list column end to end, and the number of them in each row; null lists are empty.

    Nulls inside a list of floats come out as NaN. A column the table lacks has no values.
    """
    if name not in table.column_names:
        return np.zeros(0, dtype=np.float32), np.zeros(table.num_rows, dtype=np.int64)
    lists = table[name].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lists.flatten().to_numpy(zero_copy_only=False), lengths


def ranges(starts: Int64[np.ndarray, " row"], lengths: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " value"]:
    """The ranges start, ..., start + length - 1 of every row, end to end.

    >>> ranges(np.array([10, 0]), np.array([3, 2])).tolist()
    [10, 11, 12, 0, 1]
    """
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - before, lengths)


def running_numbers(keys: Iterable[Hashable]) -> Int64[np.ndarray, " row"]:
    """A number for each key, counted from 0 in the order in which keys first appear.

    >>> running_numbers(["GG", "AC", "GG"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def rna_letters(text: str) -> str:
    """Any sequence text over A C G U N: T becomes U, everything else N, case is ignored, the length is kept.

    Tables are lenient where `normalize_sequence` is strict: one odd letter must not shift or lose its measurements.

    >>> rna_letters("acgtX-")
    'ACGUNN'
    """
    return re.sub("[^ACGTUacgtu]", "N", text).upper().replace("T", "U")


def _csv_dialect(path: Path) -> pyarrow.csv.ParseOptions:
    return pyarrow.csv.ParseOptions(delimiter="\t" if ".tsv" in path.suffixes else ",")


def _csv_types(names: Iterable[str]) -> dict[str, pa.DataType]:
    """Types of columns that a block full of blanks, or of whole numbers, would make Arrow guess wrongly."""
    types = {}
    for name in names:
        if name.startswith(("reactivity_", "x_", "y_", "z_")):
            types[name] = pa.float64()
        elif name in ("signal_to_noise", "reads", "SN_filter", "cluster", "cluster_size"):
            types[name] = pa.float64()
        elif name == "resid":
            types[name] = pa.int64()
        else:
            types[name] = pa.string()
    return types
