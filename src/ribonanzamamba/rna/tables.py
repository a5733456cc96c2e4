"""CSV, TSV and Parquet tables with one sequence a row, to entries.

Knows nothing of letters or records: an entry is an id and whatever text the sequence column holds.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence

from ribonanzamamba.rna.entries import Entries, Entry, FormatError, Lines, read_lines

ID_COLUMNS = ("id", "target_id", "sequence_id", "name")
"""Columns that hold ids, the first one found counts."""
LONGEST_FIELD = 2**31 - 1
"""Letters in one CSV field; Python's own limit, 131,072, is shorter than an RNA can be."""
PARQUET_ENDINGS = (".parquet", ".pq")
TABLE_ENDINGS = (".csv", ".tsv", *PARQUET_ENDINGS)


def table_entries(source: str, sequence_column: str, id_column: str | None = None) -> Entries:
    """Entries of a table: CSV or TSV (.gz too), or Parquet, by the ending of the file's name.

    Without an id column (see ID_COLUMNS) the id is the number of the row, from 1. An entry's line is that of the
    text file on which its row ends, or the 1-based row of a Parquet file.

    Raises:
        FormatError: a column is missing (the message names those found), or the file cannot be read.
    """
    name = source.lower().removesuffix(".gz")
    if name.endswith(PARQUET_ENDINGS):
        return _parquet_entries(source, sequence_column, id_column)
    delimiters = ("\t",) if name.endswith(".tsv") else (",", ";", "\t")
    return _text_entries(read_lines(source), source, delimiters, sequence_column, id_column)


def _text_entries(
    lines: Lines, source: str, delimiters: Sequence[str], sequence_column: str, id_column: str | None
) -> Entries:
    """Entries of a CSV or TSV table: the first line with text names the columns.

    The first delimiter that makes a sequence column of the header is taken.
    """
    header_line, header = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if not header_line:
        return
    headers = {delimiter: _split(header, delimiter) for delimiter in delimiters}
    delimiter = next((one for one in delimiters if sequence_column in headers[one]), delimiters[0])
    columns = headers[delimiter]
    sequence_at, id_at = _places(source, columns, sequence_column, id_column)

    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader((line for _, line in lines), delimiter=delimiter)
    number = 0
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        number += 1
        line = header_line + reader.line_num
        if len(cells) <= max(sequence_at, id_at or 0):
            yield FormatError(source, line, f"the row has {len(cells)} columns, the header {len(columns)}")
        else:
            yield _entry(source, line, cells[sequence_at], str(number) if id_at is None else cells[id_at])


def _parquet_entries(source: str, sequence_column: str, id_column: str | None) -> Entries:
    """Entries of a Parquet table, read piece by piece."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            names = file.schema_arrow.names
            sequence_at, id_at = _places(source, names, sequence_column, id_column)
            kind = file.schema_arrow.field(sequence_at).type
            if pyarrow.types.is_dictionary(kind):
                kind = kind.value_type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise FormatError(source, 0, f"column {sequence_column!r} holds {kind}, not text")
            wanted = [names[at] for at in (sequence_at, id_at) if at is not None]
            for piece in file.iter_batches(columns=wanted):
                ids = None if id_at is None else piece.column(names[id_at]).to_pylist()
                for row, sequence in enumerate(piece.column(sequence_column).to_pylist()):
                    number += 1
                    id = number if ids is None else ids[row]
                    yield _entry(source, number, sequence or "", "" if id is None else str(id))
    except (pyarrow.ArrowException, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise FormatError(source, 0, f"cannot be read as Parquet: {first_line}") from error


def _split(header: str, delimiter: str) -> list[str]:
    """Names of the columns in a header line."""
    return [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]


def _places(source: str, names: Sequence[str], sequence_column: str, id_column: str | None) -> tuple[int, int | None]:
    """Places of the sequence column and of the id column (None: there is none)."""
    for wanted in (sequence_column, id_column):
        if wanted is not None and wanted not in names:
            raise FormatError(source, 0, f"no column {wanted!r}; columns found: {', '.join(names)}")
    ids = [id_column] if id_column is not None else [name for name in ID_COLUMNS if name in names]
    return names.index(sequence_column), names.index(ids[0]) if ids else None


def _entry(source: str, line: int, sequence: str, id: str) -> Entry | FormatError:
    return Entry(line, id.strip(), sequence) if id.strip() else FormatError(source, line, "the id is empty")
