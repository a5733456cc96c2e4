"""Files of known and of predicted secondary structures.

Reads dot-bracket, CT and BPSEQ files and folders of them, the `structures.dbn` of a prediction folder, and tables
(Parquet, CSV, TSV) with a column `dot_bracket` or `structure`. Knows nothing of scores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ribonanzamamba.evaluation.lookup import Lookup
from ribonanzamamba.evaluation.tables import (
    TABLE_ENDINGS,
    column_names,
    ending,
    read_columns,
    require_columns,
    stem,
    text_list,
)
from ribonanzamamba.rna.formats import FormatError, read_bpseq, read_ct, read_dot_bracket
from ribonanzamamba.rna.structure import Structure

READERS = {
    **dict.fromkeys((".dbn", ".db", ".dot"), read_dot_bracket),
    ".ct": read_ct,
    ".bpseq": read_bpseq,
}
"""Endings of file names and what reads them."""
FILE_NAME = "structures.dbn"
"""The file inside a prediction folder."""


@dataclass(frozen=True)
class StructureRecord:
    """One RNA with its secondary structure."""

    id: str
    sequence: str
    """"" where the file does not tell."""
    structure: Structure
    family: str = ""
    aliases: tuple[str, ...] = ()
    """Other names it goes by: that of its file, if it is alone there."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.id, *self.aliases)


def read_structures(path: str | os.PathLike[str], split: str | None = None) -> list[StructureRecord]:
    """Structures of a file, a folder of files, or a prediction folder, in order (files by name).

    `split` takes the rows of a table whose column `split` says so.

    Raises:
        FormatError: no such file, a format that is none of these, no such split, or a record that cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        if split is not None:
            raise FormatError(path, 0, f"a folder has no splits, so no {split!r} either")
        return list(_read_folder(path))
    if ending(path) in TABLE_ENDINGS:
        return list(_read_table(path, split))
    if split is not None:
        raise FormatError(path, 0, f"has no column 'split', so no {split!r} either")
    return list(_read_file(path))


def read_predicted_structures(path: str | os.PathLike[str]) -> Lookup[Structure]:
    """Structures of `read_structures`, to be found by id or sequence.

    Raises:
        FormatError: see `read_structures`.
    """
    return Lookup((record.names, record.sequence, record.structure) for record in read_structures(path))


def _read_folder(folder: Path) -> Iterator[StructureRecord]:
    if (folder / FILE_NAME).is_file():
        yield from _read_file(folder / FILE_NAME)
        return
    files = sorted(file for file in folder.iterdir() if file.is_file() and ending(file) in READERS)
    if not files:
        raise FormatError(folder, 0, f"holds neither {FILE_NAME} nor files ending in {', '.join(READERS)}")
    for file in files:
        yield from _read_file(file)


def _read_file(path: Path) -> Iterator[StructureRecord]:
    reader = READERS.get(ending(path))
    if reader is None:
        known = ", ".join((*READERS, *TABLE_ENDINGS))
        raise FormatError(path, 0, f"expected a file ending in {known}")
    records = reader(path)
    aliases = (stem(path),) if len(records) == 1 else ()
    for record, structure in records:
        yield StructureRecord(record.id, record.sequence, structure, aliases=aliases)


def _read_table(path: Path, split: str | None) -> Iterator[StructureRecord]:
    names = column_names(path)
    text_column = "dot_bracket" if "dot_bracket" in names else "structure"
    require_columns(path, names, "id", text_column)
    table = read_columns(path, ("id", "sequence", text_column, "family"), split)
    columns = (text_list(table, name) for name in ("id", "sequence", text_column, "family"))
    for id, sequence, text, family in zip(*columns, strict=True):
        if sequence and len(sequence) != len(text):
            raise FormatError(path, 0, f"expected a structure of {len(sequence)} letters, got {len(text)}", id)
        try:
            structure = Structure.from_dot_bracket(text)
        except ValueError as error:
            raise FormatError(path, 0, str(error), id) from error
        yield StructureRecord(id, sequence, structure, family)
