"""Files of sequences and secondary structures: files in, records out, and back.

`entries.py` and `tables.py` say how each format is spelled; here its letters and ids are checked, so that a bad
record is reported and the others come out. Knows nothing of networks and metrics.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from ribonanzamamba.rna.alphabet import LetterError, normalize_sequence
from ribonanzamamba.rna.entries import (
    Entries,
    Entry,
    FormatError,
    Lines,
    bpseq_entries,
    ct_entries,
    dot_bracket_entries,
    fasta_entries,
    fasta_or_bare_entries,
    read_lines,
)
from ribonanzamamba.rna.records import Record
from ribonanzamamba.rna.structure import Structure
from ribonanzamamba.rna.tables import TABLE_ENDINGS, table_entries

__all__ = [
    "FormatError",
    "ReadResult",
    "read_bpseq",
    "read_ct",
    "read_dot_bracket",
    "read_fasta",
    "read_inputs",
    "read_records",
    "replacing",
    "safe_file_name",
    "write_bpseq",
    "write_ct",
    "write_dot_bracket",
    "write_fasta",
]

FASTA_WIDTH = 80
"""Letters of a line written to FASTA."""
FILE_NAME_LENGTH = 120
"""Longest name made of an id; with an ending it stays below the 143 bytes of encrypted home folders."""

Parser = Callable[[Lines, str], Entries]
PARSERS: dict[str, Parser] = {
    **dict.fromkeys((".fa", ".fasta", ".fas", ".fna", ".ffn", ".frn"), fasta_entries),
    **dict.fromkeys((".dbn", ".db", ".dot"), dot_bracket_entries),
    ".ct": ct_entries,
    ".bpseq": bpseq_entries,
}
"""Endings of file names and what reads them."""


@dataclass(frozen=True)
class ReadResult:
    """What could be read, what could not, and what was changed on the way."""

    records: tuple[Record, ...]
    problems: tuple[FormatError, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Read:
    """A good record, with its structure where the format has one."""

    record: Record
    structure: Structure | None
    n_ambiguous: int


def read_records(
    source: str | os.PathLike[str], *, sequence_column: str = "sequence", id_column: str | None = None
) -> ReadResult:
    """Records of a file, of standard input ("-": FASTA, or one sequence a line), or of a sequence given as text.

    By the name's ending (.gz may follow): CSV, TSV, Parquet, dot-bracket (.dbn, .db, .dot), .ct, .bpseq; anything
    else is FASTA, or bare sequences one a line if the name has no FASTA ending. A bad record becomes a problem and
    the others still come out. A bare sequence gets the id "sequence".

    Raises:
        FormatError: there is no such file. Everything else that is wrong is in `problems`.

    >>> read_records("gggaaaccc").records
    (Record(id='sequence', sequence='GGGAAACCC', source='', line=0),)
    """
    name = os.fspath(source)
    if name != "-" and not os.path.exists(name):
        if isinstance(source, os.PathLike) or re.search(r"[/\\.]", name):
            raise FormatError(name, 0, "no such file")
        result = _collect("", iter([Entry(0, "sequence", name)]))
        hint = f"{name[:20]!r} is no file; as a sequence, " if name.strip() else ""
        problems = tuple(FormatError("", 0, hint + error.message, error.record) for error in result.problems)
        return replace(result, problems=problems)
    return _collect(name, _entries(name, sequence_column, id_column))


def read_inputs(
    sources: Sequence[str | os.PathLike[str]], *, sequence_column: str = "sequence", id_column: str | None = None
) -> ReadResult:
    """Records of several sources, in order, as one result: an id may occur once in all of them.

    Several bare sequences are called sequence_1, sequence_2, ... by their place among the sources. A missing file is
    a problem like any other.
    """
    records: dict[str, Record] = {}
    problems: list[FormatError] = []
    warnings: list[str] = []
    for place, source in enumerate(sources, start=1):
        try:
            result = read_records(source, sequence_column=sequence_column, id_column=id_column)
        except FormatError as error:
            problems.append(error)
            continue
        problems.extend(result.problems)
        warnings.extend(result.warnings)
        for record in result.records:
            if not record.source and len(sources) > 1:
                record = replace(record, id=f"{record.id}_{place}")
            first = records.setdefault(record.id, record)
            if first is not record:
                message = f"the id occurs in {first.source or 'a sequence given'} already; that one is kept"
                problems.append(FormatError(record.source, record.line, message, record.id))
    return ReadResult(tuple(records.values()), tuple(problems), tuple(warnings))


def read_fasta(path: str | os.PathLike[str]) -> tuple[Record, ...]:
    """Records of a FASTA file (.gz too); the id is the first word after ">".

    Raises:
        FormatError: the first record that cannot be used.
    """
    return tuple(item.record for item in _strict(path, fasta_entries))


def read_dot_bracket(path: str | os.PathLike[str]) -> tuple[tuple[Record, Structure], ...]:
    """Sequences and structures of a dot-bracket file: ">id", sequence, structure, each of one or more lines.

    An energy after the structure is dropped, and so are further structures of the same record (as RNAfold -p writes
    them). Records without header are called sequence_1, sequence_2, ...

    Raises:
        FormatError: the first record that cannot be used.
    """
    return _strict_structures(path, dot_bracket_entries)


def read_ct(path: str | os.PathLike[str]) -> tuple[tuple[Record, Structure], ...]:
    """Sequences and structures of a CT (connectivity table) file; the id is the first word of the title.

    Raises:
        FormatError: the first record that cannot be used, such as one with a nucleotide in two pairs.

    Source: https://rna.urmc.rochester.edu/Text/File_Formats.html, "CT File Format".
    """
    return _strict_structures(path, ct_entries)


def read_bpseq(path: str | os.PathLike[str]) -> tuple[tuple[Record, Structure], ...]:
    """Sequences and structures of a BPSEQ file; the id is the first word of a "#" line before a record.

    Raises:
        FormatError: the first record that cannot be used, such as one with a nucleotide in two pairs.
    """
    return _strict_structures(path, bpseq_entries)


def write_fasta(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """FASTA file of the records; whitespace inside an id is written as "_", here and in the writers below."""
    with replacing(path) as file:
        for record in records:
            rows = (record.sequence[i : i + FASTA_WIDTH] for i in range(0, record.length, FASTA_WIDTH))
            file.write("\n".join((f">{one_word(record.id)}", *rows)) + "\n")


def write_dot_bracket(path: str | os.PathLike[str], entries: Iterable[tuple[Record, Structure]]) -> None:
    """Dot-bracket file: ">id", sequence, structure, one line each.

    Raises:
        ValueError: a structure that is not as long as its sequence, here and in the writers below.
    """
    with replacing(path) as file:
        for record, structure in entries:
            _check_lengths(record, structure)
            file.write(f">{one_word(record.id)}\n{record.sequence}\n{structure.to_dot_bracket()}\n")


def write_ct(path: str | os.PathLike[str], entries: Iterable[tuple[Record, Structure]]) -> None:
    """CT file: for each record its length and id, then position, letter, previous, next, partner, position."""
    with replacing(path) as file:
        for record, structure in entries:
            _check_lengths(record, structure)
            file.write(f"{record.length}\t{one_word(record.id)}\n")
            for i, (letter, partner) in enumerate(zip(record.sequence, structure.to_partners(), strict=True), start=1):
                file.write(f"{i}\t{letter}\t{i - 1}\t{(i + 1) % (record.length + 1)}\t{partner + 1}\t{i}\n")


def write_bpseq(path: str | os.PathLike[str], entries: Iterable[tuple[Record, Structure]]) -> None:
    """BPSEQ file: for each record "# id", then position, letter, partner (0: none)."""
    with replacing(path) as file:
        for record, structure in entries:
            _check_lengths(record, structure)
            file.write(f"# {one_word(record.id)}\n")
            for i, (letter, partner) in enumerate(zip(record.sequence, structure.to_partners(), strict=True), start=1):
                file.write(f"{i} {letter} {partner + 1}\n")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file that takes the place of `path` at once, when all was written; an error leaves `path` as it was."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def safe_file_name(id: str) -> str:
    """File name of an id: letters, digits, ".", "_" and "-" stay, so most ids are their own name.

    Anything else becomes "_", leading dots go, and 120 characters are the most; a changed name ends in a hash of the
    id, and an id that looks as if it had such a hash gets another, so that two ids never share a name. Ids that
    differ in upper and lower case alone do on a file system that ignores case.

    >>> safe_file_name("1EHZ_A"), safe_file_name("../x y")
    ('1EHZ_A', '_x_y-46c740c677b0')
    """
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", id).lstrip(".")
    # Windows keeps names such as NUL to itself, with any ending, and drops dots at the end.
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", stem) or stem.endswith(".")
    hashed = re.search(r"-[0-9a-f]{12}$", stem)
    if stem and stem == id and not reserved and not hashed and len(stem) <= FILE_NAME_LENGTH:
        return stem
    suffix = "-" + hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return stem[: FILE_NAME_LENGTH - len(suffix)] + suffix


def _strict(path: str | os.PathLike[str], parse: Parser) -> Iterator[_Read]:
    """Records of a file; the first problem is raised."""
    name = os.fspath(path)
    if name != "-" and not os.path.exists(name):
        raise FormatError(name, 0, "no such file")
    for item in _checked(name, parse(read_lines(name), name)):
        if isinstance(item, FormatError):
            raise item
        yield item


def _strict_structures(path: str | os.PathLike[str], parse: Parser) -> tuple[tuple[Record, Structure], ...]:
    pairs = []
    for item in _strict(path, parse):
        assert item.structure is not None
        pairs.append((item.record, item.structure))
    return tuple(pairs)


def _collect(source: str, entries: Entries) -> ReadResult:
    """All good records, all problems, and one warning if letters became N."""
    items = list(_checked(source, entries))
    good = [item for item in items if isinstance(item, _Read)]
    problems = tuple(item for item in items if isinstance(item, FormatError))
    ambiguous = [item.n_ambiguous for item in good if item.n_ambiguous]
    warnings = ()
    if ambiguous:
        name = source or "the sequence given"
        warnings = (f"{name}: {sum(ambiguous)} ambiguous letters in {len(ambiguous)} record(s) are read as N",)
    return ReadResult(tuple(item.record for item in good), problems, warnings)


def _checked(source: str, entries: Entries) -> Iterator[_Read | FormatError]:
    """Record of each entry, or what is wrong with it; a file that breaks off or holds nothing is a problem too."""
    lines_of_ids: dict[str, int] = {}
    nothing = True
    try:
        for item in entries:
            nothing = False
            yield item if isinstance(item, FormatError) else _to_record(source, item, lines_of_ids)
    except FormatError as error:
        yield error
        return
    if nothing:
        empty = source != "-" and os.path.getsize(source) == 0
        yield FormatError(source, 0, "the file is empty" if empty else "holds no record")


def _to_record(source: str, entry: Entry, lines_of_ids: dict[str, int]) -> _Read | FormatError:
    """Record of an entry, or what is wrong with it; the ids of good records go into `lines_of_ids`."""
    if entry.id in lines_of_ids:
        message = f"the id occurs on line {lines_of_ids[entry.id]} already; that one is kept"
        return FormatError(source, entry.line, message, entry.id)
    try:
        normalized = normalize_sequence(entry.sequence)
    except LetterError as error:
        return FormatError(source, entry.line, str(error), entry.id)
    if not normalized.sequence:
        return FormatError(source, entry.line, "the sequence is empty", entry.id)
    lines_of_ids[entry.id] = entry.line
    record = Record(entry.id, normalized.sequence, source, entry.line)
    return _Read(record, entry.structure, normalized.n_ambiguous)


def _entries(source: str, sequence_column: str, id_column: str | None) -> Entries:
    """Entries of a file or of standard input, in the format its name tells."""
    ending = Path(source.lower().removesuffix(".gz")).suffix
    if ending in TABLE_ENDINGS:
        return table_entries(source, sequence_column, id_column)
    return PARSERS.get(ending, fasta_or_bare_entries)(read_lines(source), source)


def _check_lengths(record: Record, structure: Structure) -> None:
    if record.length != structure.length:
        raise ValueError(f"record {record.id!r} has {record.length} nucleotides, its structure {structure.length}")


def one_word(id: str) -> str:
    """The id as one word: what a header can hold and give back."""
    return "_".join(id.split()) or "_"
