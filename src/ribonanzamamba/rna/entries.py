"""Text of FASTA, dot-bracket, CT and BPSEQ to entries, line by line, one entry in memory at a time.

An entry is what a file spells out, letters unchecked; what cannot be an entry comes out as a `FormatError` in its
place and the next entries follow. A parser raises only where nothing can follow: a file that breaks off or is no
text. Knows nothing of records and alphabets. CT and BPSEQ count from 1 here and in `formats.py`'s writers only.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import os
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ribonanzamamba.rna.structure import Structure

GZIP_START = b"\x1f\x8b"
"""First bytes of gzip data. Source: RFC 1952, section 2.3.1."""
SNIFFED = 8192
"""Bytes that are looked at to tell a binary file."""
NO_TEXT = "is no text (a binary file, or not in UTF-8)"

_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
# Letters are brackets too, but no structure consists of letters alone.
_STRUCTURE_LINE = re.compile(r"[-.,:_~()\[\]{}<>]")
_COUNT = re.compile(r"\d{1,9}")
_CT_TITLE = re.compile(r"(\d{1,9})\b\s*(?:(?:ENERGY|dG)\s*=\s*\S+\s*)?(.*)", re.IGNORECASE)
_BPSEQ_TITLE = re.compile(r"(?:[#>]\s*(?:Name:)?|Filename:)\s*(\S+)", re.IGNORECASE)

Lines = Iterator[tuple[int, str]]
"""1-based number and text of each line, without its end."""


class FormatError(ValueError):
    """Something in a file that cannot be used: `path`, 1-based `line` (0: the whole file), `record` (id, if known)."""

    def __init__(self, path: str | os.PathLike[str], line: int, message: str, record: str | None = None) -> None:
        # All arguments go to the base class, so that the error survives pickling between processes.
        super().__init__(os.fspath(path), line, message, record)
        self.path = os.fspath(path)
        self.line = line
        self.message = message
        self.record = record

    def __str__(self) -> str:
        where = [{"-": "standard input", "": "sequence given"}.get(self.path, self.path)]
        if self.line:
            where.append(f"line {self.line}")
        if self.record is not None:
            where.append(f"record {self.record!r}")
        return f"{', '.join(where)}: {self.message}"


@dataclass(frozen=True)
class Entry:
    """One record as the file spells it; `structure` where the format has one."""

    line: int
    id: str
    sequence: str
    structure: Structure | None = None


Entries = Iterator[Entry | FormatError]


@dataclass(frozen=True)
class _PairRow:
    """One row of CT or BPSEQ, 1-based as in the file; partner 0 is unpaired."""

    line: int
    position: int
    letter: str
    partner: int


def read_lines(source: str) -> Lines:
    """Lines of a file (gzip is recognised by its content) or of standard input ("-").

    Bytes that are no UTF-8 become U+FFFD: harmless in a description, refused in a sequence.

    Raises:
        FormatError: no text, a truncated or damaged .gz, a folder, or a file that cannot be opened.
    """
    number = 0
    try:
        with _open(source) as file:
            # Looked at before any record comes out: the start of a binary file can spell lines of text.
            start = file.peek(SNIFFED) if source != "-" else b""
            control = _CONTROL.search(start)
            if control:
                line = start.count(b"\n", 0, control.start()) + 1
                raise FormatError(source, line, NO_TEXT)
            while raw := file.readline():
                if number == 0:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                if _CONTROL.search(raw):
                    raise FormatError(source, number + 1, NO_TEXT)
                # Files of old Macintosh programs end their lines with a carriage return alone.
                for line in raw.decode("utf-8", "replace").rstrip("\r\n").split("\r"):
                    number += 1
                    yield number, line
    except EOFError:
        raise FormatError(source, number + 1, "the gzip file is truncated here") from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(source, number + 1, f"the gzip file is damaged here ({error})") from error
    except OSError as error:
        raise FormatError(source, 0, f"cannot be read: {error.strerror or error}") from error


def _open(source: str) -> AbstractContextManager[Any]:
    """The bytes of a file, unpacked if it is gzip, or of standard input (which is left open)."""
    if source == "-":
        # A program that embeds us may have put a text buffer in place of standard input.
        return nullcontext(getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode()))
    if os.path.isdir(source):
        raise FormatError(source, 0, "is a folder, not a file")
    file = open(source, "rb")
    if file.peek(2)[:2] != GZIP_START:
        return file
    file.close()
    return gzip.open(source, "rb")


def fasta_entries(lines: Lines, source: str) -> Entries:
    """Entries of FASTA text: the id is the first word after ">"; lines that start with ";" are comments."""
    header: tuple[int, str] | None = None
    parts: list[str] = []
    stray = False
    try:
        for number, line in lines:
            if line.startswith(">"):
                if header:
                    yield _fasta_entry(source, header, parts)
                header, parts = (number, _first_word(line[1:])), []
            elif line.startswith(";"):
                continue
            elif header:
                parts.append(line)
            elif line.strip() and not stray:
                stray = True
                yield FormatError(source, number, f"text before the first header; expected '>', got {line[:20]!r}")
    except FormatError as error:
        # The record in which the file breaks off may lack its end: it is named and left out.
        raise FormatError(source, error.line, error.message, header[1] if header else None) from error
    if header:
        yield _fasta_entry(source, header, parts)


def _fasta_entry(source: str, header: tuple[int, str], parts: Sequence[str]) -> Entry | FormatError:
    number, id = header
    return Entry(number, id, "".join(parts)) if id else FormatError(source, number, "the header has no id")


def fasta_or_bare_entries(lines: Lines, source: str) -> Entries:
    """Entries of FASTA text, or of bare sequences one a line: the first line with text tells which."""
    filled = ((number, line) for number, line in lines if line.strip())
    first = next(filled, None)
    if first is None:
        return
    filled = itertools.chain([first], filled)
    if first[1].startswith((">", ";")):
        yield from fasta_entries(filled, source)
    else:
        yield from (Entry(line, f"sequence_{n}", text) for n, (line, text) in enumerate(filled, start=1))


def dot_bracket_entries(lines: Lines, source: str) -> Entries:
    """Entries of dot-bracket text: a line with a bracket or a dot belongs to a structure, any other to a sequence.

    What follows the structure on its line (an energy) is dropped, and so are further structures of the same record.
    """
    header: tuple[int, str] | None = None
    sequence = structure = ""
    n_nameless = 0
    for number, line in lines:
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        titled = text.startswith(">")
        spells_structure = not titled and _STRUCTURE_LINE.search(text)
        if titled or header is None or (structure and not spells_structure):
            if header:
                yield _dot_bracket_entry(source, header, sequence, structure)
            n_nameless += not titled
            header = (number, _first_word(text[1:]) if titled else f"sequence_{n_nameless}")
            sequence = structure = ""
        if spells_structure:
            structure += text.split()[0] if len(structure) < len(sequence) or not sequence else ""
        elif not titled:
            sequence += "".join(text.split())
    if header:
        yield _dot_bracket_entry(source, header, sequence, structure)


def _dot_bracket_entry(source: str, header: tuple[int, str], sequence: str, structure: str) -> Entry | FormatError:
    number, id = header
    if not id:
        return FormatError(source, number, "the header has no id")
    if len(sequence) != len(structure):
        message = f"the sequence has {len(sequence)} letters, the structure {len(structure)}"
        return FormatError(source, number, message, id)
    try:
        return Entry(number, id, sequence, Structure.from_dot_bracket(structure))
    except ValueError as error:
        return FormatError(source, number, f"structure, {error}", id)


def ct_entries(lines: Lines, source: str) -> Entries:
    """Entries of CT text: a title "length [ENERGY = x] id", then position, letter, previous, next, partner, ..."""
    title: tuple[int, str, int] | None = None
    rows: list[_PairRow | FormatError] = []
    stray = False
    n_records = 0
    for number, line in lines:
        cells = line.split()
        if not cells or cells[0].startswith("#"):
            continue
        spells_row = len(cells) >= 5 and len(cells[1]) == 1
        if title and spells_row and (len(rows) < title[2] or cells[0] == str(len(rows) + 1)):
            rows.append(_pair_row(source, number, title[1], cells[0], cells[1], cells[4]))
            continue
        if title:
            yield _ct_entry(source, title, rows)
        found = _CT_TITLE.match(line.strip())
        title, rows = None, []
        if found:
            n_records += 1
            title = (number, _first_word(found[2]) or _nameless(source, n_records), int(found[1]))
        elif not stray:
            stray = True
            yield FormatError(source, number, f"expected a title that starts with the length, got {line[:20]!r}")
    if title:
        yield _ct_entry(source, title, rows)


def _ct_entry(source: str, title: tuple[int, str, int], rows: Sequence[_PairRow | FormatError]) -> Entry | FormatError:
    number, id, length = title
    entry = _paired_entry(source, number, id, rows)
    if isinstance(entry, Entry) and len(rows) != length:
        return FormatError(source, number, f"the title says {length} nucleotides, {len(rows)} follow", id)
    return entry


def bpseq_entries(lines: Lines, source: str) -> Entries:
    """Entries of BPSEQ text: position, letter, partner. Lines that start with no digit are titles and part records."""
    start, id = 0, ""
    rows: list[_PairRow | FormatError] = []
    n_records = 0
    for number, line in lines:
        cells = line.split()
        if not cells:
            continue
        in_title = not cells[0][0].isdigit()
        if rows and (in_title or (cells[0] == "1" and len(rows) > 1)):
            yield _paired_entry(source, start, id, rows)
            id, rows = "", []
        if in_title:
            found = _BPSEQ_TITLE.match(line.strip())
            id = id or (found[1] if found else "")
            continue
        if not rows:
            n_records += 1
            start, id = number, id or _nameless(source, n_records)
        letter, partner = (cells[1], cells[2]) if len(cells) == 3 else ("", "")
        rows.append(_pair_row(source, number, id, cells[0], letter, partner))
    if rows:
        yield _paired_entry(source, start, id, rows)


def _pair_row(source: str, line: int, id: str, position: str, letter: str, partner: str) -> _PairRow | FormatError:
    if _COUNT.fullmatch(position) and _COUNT.fullmatch(partner) and len(letter) == 1:
        return _PairRow(line, int(position), letter, int(partner))
    return FormatError(source, line, "expected a row of position, letter and partner", id)


def _paired_entry(source: str, line: int, id: str, rows: Sequence[_PairRow | FormatError]) -> Entry | FormatError:
    """Entry of rows that count from 1 and whose partners agree; otherwise the first row that does not."""
    good: list[_PairRow] = []
    for row in rows:
        if isinstance(row, FormatError):
            return row
        before = good[-1] if good else None
        if before and row.position == before.position:
            message = f"position {row.position} stands here with partner {row.partner} and on line {before.line} "
            message += f"with {before.partner}; a nucleotide in two pairs cannot be read"
            return FormatError(source, row.line, message, id)
        if row.position != len(good) + 1:
            return FormatError(source, row.line, f"expected position {len(good) + 1}, got {row.position}", id)
        good.append(row)
    for row in good:
        if row.partner == 0:
            continue
        message = f"position {row.position} pairs with {row.partner}, "
        if row.partner > len(good) or row.partner == row.position:
            return FormatError(source, row.line, message + f"of 1 to {len(good)}", id)
        back = good[row.partner - 1]
        if back.partner == 0:
            return FormatError(source, row.line, message + f"which line {back.line} leaves unpaired", id)
        if back.partner != row.position:
            message += f"which line {back.line} pairs with {back.partner}; a nucleotide in two pairs cannot be read"
            return FormatError(source, row.line, message, id)
    structure = Structure.from_partners([row.partner - 1 for row in good])
    return Entry(line, id, "".join(row.letter for row in good), structure)


def _first_word(text: str) -> str:
    return text.split(maxsplit=1)[0] if text.strip() else ""


def _nameless(source: str, number: int) -> str:
    """Id of a record without one: the name of its file, numbered from the second record on."""
    stem = "sequence" if source == "-" else Path(source.removesuffix(".gz")).stem
    return stem if number == 1 else f"{stem}_{number}"
