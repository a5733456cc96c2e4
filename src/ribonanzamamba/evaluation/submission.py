"""Submissions to Kaggle's two RNA contests: what a test table asks for, and whether a file answers it.

Knows nothing of networks. "ribonanza" (Stanford Ribonanza RNA Folding, 2023): a row a nucleotide, DMS and 2A3
reactivity, numbered through all sequences. "folding" (Stanford RNA 3D Folding, 2025): a row a nucleotide, C1' of five
models.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import numpy as np

from ribonanzamamba.evaluation.reactivity_files import read_measured_reactivity
from ribonanzamamba.evaluation.reactivity_report import ReactivityPair, ReactivityReport, summarize_reactivity
from ribonanzamamba.evaluation.tables import (
    PARQUET_ENDINGS,
    column_names,
    ending,
    number_matrix,
    read_columns,
    read_pieces,
    require_columns,
    text_list,
)
from ribonanzamamba.rna.alphabet import LetterError, normalize_sequence
from ribonanzamamba.rna.formats import FormatError
from ribonanzamamba.rna.records import Record

if TYPE_CHECKING:
    import pyarrow

CONTESTS = ("ribonanza", "folding")
SUBMISSION_ENDINGS = (".csv", *PARQUET_ENDINGS)
PROBE_COLUMNS = {"DMS": "reactivity_DMS_MaP", "2A3": "reactivity_2A3_MaP"}
"""Of "ribonanza": probe to column, in the order of the columns."""
MODELS = 5
"""Of "folding", a target."""
COORDINATE_COLUMNS = tuple(f"{axis}_{model}" for model in range(1, MODELS + 1) for axis in "xyz")
SMALLEST_COORDINATE, LARGEST_COORDINATE = -999.999, 9999.999
"""Angstrom: what a PDB file, which the contest's metric writes, has columns for. The contest clips to these."""
TARGETS_AT_ONCE = 4096
"""Targets whose rows are written together."""
DECIMALS = {"ribonanza": 4, "folding": 3}


@dataclass(frozen=True)
class Target:
    """One RNA of a test table."""

    record: Record
    letters: str
    """The sequence as the table spells it."""
    first: int = 0
    """Of "ribonanza": the number of its first nucleotide."""

    @property
    def length(self) -> int:
        return len(self.letters)


def read_targets(path: str | os.PathLike[str], contest: str) -> list[Target]:
    """The RNAs of a contest's test table, in its order.

    `path`: CSV or Parquet with the columns `id_min`, `id_max`, `sequence_id`, `sequence` ("ribonanza") or `target_id`,
    `sequence` ("folding"), such as Kaggle's `test_sequences.csv`.

    Raises:
        FormatError: other columns, an id twice, a sequence that is none, or numbers that do not fit the sequences.
    """
    path = Path(path)
    names = column_names(path)
    id_column = {"ribonanza": "sequence_id", "folding": "target_id"}[contest]
    numbered = ("id_min", "id_max") if contest == "ribonanza" else ()
    wanted = (*numbered, id_column, "sequence")
    require_columns(path, names, *wanted)
    targets: list[Target] = []
    seen: set[str] = set()
    for line, (*numbers, id, letters) in _test_rows(path, names, wanted):
        if not id or id in seen:
            raise FormatError(path, line, "the id occurs twice" if id else "the id is empty", id or None)
        seen.add(id)
        try:
            sequence = normalize_sequence(letters).sequence
        except LetterError as error:
            raise FormatError(path, line, str(error), id) from error
        if len(sequence) != len(letters) or not letters:
            raise FormatError(path, line, "expected a sequence without spaces", id)
        first = _first_number(path, line, id, numbers, len(letters), targets) if numbered else 0
        targets.append(Target(Record(id, sequence, str(path), line), letters, first))
    if not targets:
        raise FormatError(path, 0, "the table has no rows")
    return targets


def _test_rows(path: Path, names: Sequence[str], wanted: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of each row of a test table; line by line, since Kaggle's have cells of several lines."""
    if ending(path) in PARQUET_ENDINGS:
        table = read_columns(path, wanted)
        columns = [text_list(table, name) for name in wanted]
        yield from enumerate(map(list, zip(*columns, strict=True)), start=1)
        return
    places = [names.index(name) for name in wanted]
    with _opened(path) as file:
        reader = csv.reader(file, delimiter="\t" if ending(path) == ".tsv" else ",")
        next(reader)
        for cells in reader:
            if len(cells) != len(names):
                raise FormatError(path, reader.line_num, f"the row has {len(cells)} columns, the header {len(names)}")
            yield reader.line_num, [cells[place] for place in places]


def _first_number(path: Path, line: int, id: str, numbers: Sequence[str], length: int, before: Sequence[Target]) -> int:
    """The first of an RNA's `numbers`, which must be as many as its nucleotides and above those of the RNA before."""
    try:
        first, last = map(int, numbers)
    except ValueError:
        raise FormatError(path, line, f"id_min and id_max: expected whole numbers, got {numbers}", id) from None
    if last - first + 1 != length:
        raise FormatError(path, line, f"id_min {first} to id_max {last} for a sequence of {length} nt", id)
    reached = before[-1].first + before[-1].length - 1 if before else -1
    if first <= reached:
        raise FormatError(path, line, f"id_min {first}: the RNA before goes to {reached}", id)
    return first


def check_ending(path: Path, contest: str) -> None:
    """Nothing, if a submission may have this name.

    Raises:
        ValueError: otherwise.
    """
    endings = SUBMISSION_ENDINGS if contest == "ribonanza" else (".csv",)
    if ending(path) not in endings:
        raise ValueError(f"{path}: expected a name that ends with {' or '.join(endings)} (.csv.gz too)")


def write_submission(
    path: str | os.PathLike[str], contest: str, targets: Sequence[Target], answers: Iterable[np.ndarray | None]
) -> None:
    """Write the answers to the targets, in their order, check what was written, and only then give it its name.

    An answer is (length, 2), DMS and 2A3 reactivity, clipped to [0, 1] as the contest's measurements are; or (model,
    length, 3), C1' in angstrom, of which the first five models are written, the last one again where there are fewer.
    The rows of None are zeros.

    Raises:
        ValueError: an ending that is none, an answer of another shape or not finite, or too few answers.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_ending(path, contest)
    path.parent.mkdir(parents=True, exist_ok=True)
    # hidden, with the ending by which it is read
    part = path.with_name(f".part-{path.name}")
    try:
        with _writer(part, contest) as write:
            for target, answer in zip(targets, answers, strict=True):
                write(_rows(contest, target, answer))
        check_submission(part, contest, targets)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_submission(path: str | os.PathLike[str], contest: str, targets: Sequence[Target]) -> list[str]:
    """What is odd about a submission that answers a test table: a sentence each; none, if nothing is.

    Raises:
        FormatError: what the contest would refuse: other columns, rows that are missing, out of order or too many, or a
            value that is no finite number.
    """
    path = Path(path)
    wanted = _columns(contest)
    names = column_names(path)
    if names != list(wanted):
        raise FormatError(path, 1, f"expected the columns {_short(wanted)}, got {_short(names)}")
    expected = _Expected(contest, targets)
    oddities = _Oddities(contest)
    row = 0
    for piece in _pieces(path, wanted):
        expected.check(path, row, piece)
        values = number_matrix(piece, wanted[len(_keys(contest)) :]).astype(np.float64)
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            at, column = bad[0]
            name = wanted[len(_keys(contest)) + column]
            raise FormatError(
                path, _line(path, row + at), f"{name}: expected a finite number, got {values[at, column]}"
            )
        oddities.see(values)
        row += len(values)
    if row < expected.total:
        target = targets[expected.target_of(row)]
        message = f"expected {expected.total:,} rows, got {row:,}: those from here on are missing"
        raise FormatError(path, _line(path, row), message, target.record.id)
    return oddities.sentences()


def score_ribonanza(
    path: str | os.PathLike[str], targets: Sequence[Target], truth: str | os.PathLike[str]
) -> ReactivityReport:
    """The contest's metric, and more, of a submission that was checked, against measurements of some of its RNAs
    (`train_data.csv` or another table of `score reactivity`), which are found by id, then by sequence.

    Raises:
        FormatError: a file that cannot be used.
    """
    rows = list(read_measured_reactivity(truth))
    wanted = {row.id for row in rows} | {row.sequence for row in rows}
    here = [target for target in targets if {target.record.id, target.letters, target.record.sequence} & wanted]
    values = dict(zip((target.record.id for target in here), _submitted(Path(path), here), strict=True))
    by_sequence = {target.record.sequence: target.record.id for target in here}
    lengths = {target.record.id: target.length for target in here}
    pairs = []
    for row in rows:
        id = row.id if lengths.get(row.id) == len(row.sequence) else by_sequence.get(row.sequence, "")
        if row.passed:
            column = list(PROBE_COLUMNS).index(row.probe) if row.probe in PROBE_COLUMNS else None
            predicted = values[id][:, column] if id and column is not None else None
            pairs.append(ReactivityPair(row.id, row.probe, row.reactivity, predicted, row.sequence, row.dataset))
    return summarize_reactivity(pairs, noisy=sum(not row.passed for row in rows))


def _submitted(path: Path, targets: Sequence[Target]) -> list[np.ndarray]:
    """The (length, 2) values of some targets of a submission that was checked."""
    values = [np.zeros((target.length, len(PROBE_COLUMNS)), dtype=np.float32) for target in targets]
    starts = np.array([target.first for target in targets], dtype=np.int64)
    for piece in read_pieces(path, _columns("ribonanza")):
        ids = _whole(path, 0, piece, "id")
        matrix = number_matrix(piece, tuple(PROBE_COLUMNS.values()))
        first, last = np.searchsorted(starts, [ids[0], ids[-1]], side="right")
        for place in range(max(0, first - 1), last):
            target = targets[place]
            inside = (ids >= target.first) & (ids < target.first + target.length)
            values[place][ids[inside] - target.first] = matrix[inside]
    return values


class _Expected:
    """The rows that a submission must have, one after the other."""

    def __init__(self, contest: str, targets: Sequence[Target]) -> None:
        self.contest, self.targets = contest, targets
        self.offsets = np.concatenate([[0], np.cumsum([target.length for target in targets], dtype=np.int64)])
        self.firsts = np.array([target.first for target in targets], dtype=np.int64)

    @property
    def total(self) -> int:
        return int(self.offsets[-1])

    def target_of(self, row: int) -> int:
        """The place of the target to which a row belongs."""
        return int(np.searchsorted(self.offsets, row, side="right")) - 1

    def check(self, path: Path, start: int, piece: pyarrow.Table) -> None:
        """Nothing, if the rows of a piece that begins with row `start` are those of the targets.

        Raises:
            FormatError: at the first one that is not.
        """
        stop = start + piece.num_rows
        if stop > self.total:
            raise FormatError(path, _line(path, self.total), f"expected {self.total:,} rows, and the file goes on")
        rows = np.arange(start, stop)
        place = np.searchsorted(self.offsets, rows, side="right") - 1
        within = rows - self.offsets[place]
        if self.contest == "ribonanza":
            self._compare(path, start, place, "id", _whole(path, start, piece, "id"), self.firsts[place] + within)
            return
        pairs = list(zip(place.tolist(), within.tolist(), strict=True))
        ids = [f"{self.targets[target].record.id}_{position + 1}" for target, position in pairs]
        letters = [self.targets[target].letters[position] for target, position in pairs]
        for name, found, wanted in (
            ("ID", np.array(text_list(piece, "ID")), np.array(ids)),
            ("resname", np.array(text_list(piece, "resname")), np.array(letters)),
            ("resid", piece["resid"].to_numpy(), within + 1),
        ):
            self._compare(path, start, place, name, found, wanted)

    def _compare(
        self, path: Path, start: int, place: np.ndarray, name: str, found: np.ndarray, wanted: np.ndarray
    ) -> None:
        wrong = np.flatnonzero(found != wanted)
        if len(wrong):
            at = wrong[0]
            record = self.targets[place[at]].record.id
            raise FormatError(path, _line(path, start + at), f"expected {name} {wanted[at]}, got {found[at]}", record)


class _Oddities:
    """Values that a contest takes, but that nobody means."""

    def __init__(self, contest: str) -> None:
        self.contest = contest
        self.rows = self.zero = self.outside = 0

    def see(self, values: np.ndarray) -> None:
        low, high = (0, 1) if self.contest == "ribonanza" else (SMALLEST_COORDINATE, LARGEST_COORDINATE)
        # as it is written: the nearest float32 to the largest coordinate is a little larger
        values = values.round(DECIMALS[self.contest])
        self.rows += len(values)
        self.zero += int((values == 0).all(axis=1).sum())
        self.outside += int(((values < low) | (values > high)).any(axis=1).sum())

    def sentences(self) -> list[str]:
        said = []
        if self.zero:
            said.append(f"{self.zero:,} of {self.rows:,} rows hold nothing but zeros: they were not predicted")
        if self.outside and self.contest == "ribonanza":
            said.append(f"{self.outside:,} rows hold reactivity outside of 0 to 1, where all measurements are clipped")
        elif self.outside:
            said.append(f"{self.outside:,} rows hold coordinates that the contest clips to -999.999 to 9999.999")
        return said


def _keys(contest: str) -> tuple[str, ...]:
    return ("id",) if contest == "ribonanza" else ("ID", "resname", "resid")


def _columns(contest: str) -> tuple[str, ...]:
    values = tuple(PROBE_COLUMNS.values()) if contest == "ribonanza" else COORDINATE_COLUMNS
    return (*_keys(contest), *values)


def _rows(contest: str, target: Target, answer: np.ndarray | None) -> dict[str, np.ndarray | list[str]]:
    """The columns of one target."""
    shape = (target.length, len(PROBE_COLUMNS)) if contest == "ribonanza" else (MODELS, target.length, 3)
    values = np.zeros(shape) if answer is None else np.asarray(answer, dtype=np.float64)
    if contest == "folding" and values.ndim == 3 and 0 < len(values) != MODELS:
        values = values[np.minimum(np.arange(MODELS), len(values) - 1)]
    if values.shape != shape or not np.isfinite(values).all():
        found = "numbers that are not finite" if values.shape == shape else f"shape {values.shape}"
        raise ValueError(f"record {target.record.id!r}: expected finite numbers of shape {shape}, got {found}")
    if contest == "ribonanza":
        columns: dict[str, np.ndarray | list[str]] = {"id": target.first + np.arange(target.length)}
        values = values.clip(0, 1)
    else:
        numbers = range(1, target.length + 1)
        columns = {
            "ID": [f"{target.record.id}_{number}" for number in numbers],
            "resname": list(target.letters),
            "resid": np.arange(1, target.length + 1),
        }
        # around the origin: PDB columns hold little below it
        values = values - values.mean(axis=1, keepdims=True) if answer is not None else values
        values = values.transpose(1, 0, 2).reshape(target.length, -1).clip(SMALLEST_COORDINATE, LARGEST_COORDINATE)
    rounded = values.round(DECIMALS[contest])
    return columns | {name: rounded[:, k] for k, name in enumerate(_columns(contest)[len(columns) :])}


@contextmanager
def _writer(path: Path, contest: str) -> Iterator:
    """A function that appends columns to a CSV (.gz too) or Parquet file."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    types = {"ID": pyarrow.string(), "resname": pyarrow.string(), "resid": pyarrow.int64(), "id": pyarrow.int64()}
    number = pyarrow.float32() if contest == "ribonanza" else pyarrow.float64()
    schema = pyarrow.schema([(name, types.get(name, number)) for name in _columns(contest)])
    waiting: list[pyarrow.Table] = []

    def flush() -> None:
        if waiting:
            writer.write_table(pyarrow.concat_tables(waiting).combine_chunks())
            waiting.clear()

    def write(columns: dict[str, np.ndarray | list[str]]) -> None:
        waiting.append(
            pyarrow.table(
                [pyarrow.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema
            )
        )
        if len(waiting) >= TARGETS_AT_ONCE:
            flush()

    with pyarrow.output_stream(str(path), compression="gzip" if path.name.endswith(".gz") else None) as stream:
        if ending(path) in PARQUET_ENDINGS:
            opened = pyarrow.parquet.ParquetWriter(stream, schema)
        else:
            # PyArrow would put every text and every name into quotes
            stream.write(",".join(schema.names).encode() + b"\n")
            options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
            opened = pyarrow.csv.CSVWriter(stream, schema, write_options=options)
        with opened as writer:
            yield write
            flush()


def _whole(path: Path, start: int, piece: pyarrow.Table, name: str) -> np.ndarray:
    """A column of whole numbers, which a CSV has as text."""
    import pyarrow

    try:
        numbers = piece[name].cast(pyarrow.int64())
        if numbers.null_count:
            raise pyarrow.ArrowInvalid(f"{name} is empty")
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        _find_no_number(path, (name,))
        raise FormatError(path, 0, f"{name}: expected whole numbers from row {start + 1} on: {reason}") from error
    return numbers.to_numpy()


def _pieces(path: Path, wanted: Sequence[str]) -> Iterator[pyarrow.Table]:
    """The pieces of a table, whose first cell that is no number is named with its line."""
    try:
        yield from read_pieces(path, wanted)
    except FormatError:
        _find_no_number(path, [name for name in wanted if name not in ("ID", "resname")])
        raise


def _find_no_number(path: Path, names: Sequence[str]) -> None:
    """Nothing, where every cell of these columns of a CSV is a number.

    Raises:
        FormatError: at the first one that is none.
    """
    if ending(path) in PARQUET_ENDINGS:
        return
    with _opened(path) as file:
        reader = csv.reader(file)
        places = [(name, place) for place, name in enumerate(next(reader)) if name in names]
        for cells in reader:
            for name, place in places:
                cell = cells[place] if place < len(cells) else ""
                kind = int if name in ("id", "resid") else float
                try:
                    kind(cell)
                except ValueError:
                    word = "whole number" if kind is int else "number"
                    message = f"{name}: expected a {word}, got {cell!r}"
                    raise FormatError(path, reader.line_num, message) from None


def _opened(path: Path) -> AbstractContextManager[TextIO]:
    """A text file, .gz too."""
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    return cast(AbstractContextManager[TextIO], opened(path, "rt", encoding="utf-8-sig", newline=""))


def _line(path: Path, row: int) -> int:
    """The 1-based line of a CSV's 0-based row, below its header, or the 1-based row of a Parquet file."""
    return int(row) + (1 if ending(path) in PARQUET_ENDINGS else 2)


def _short(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:6])}, ... {names[-1]}"
