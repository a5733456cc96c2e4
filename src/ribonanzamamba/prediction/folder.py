"""The files of `--out`: written record by record, whole after any kill, continued by `--resume`.

A record is complete when its row stands in summary.csv, the last thing written of it. Tables are appended a record at a
time, every other file is renamed into place. Knows nothing of networks or of the command line.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from importlib.metadata import version
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ribonanzamamba import __version__
from ribonanzamamba.prediction import check_tasks
from ribonanzamamba.rna.formats import one_word, safe_file_name
from ribonanzamamba.rna.mmcif import write_mmcif
from ribonanzamamba.rna.records import Prediction, Record

LEAST_PROBABILITY = 0.001
"""Pairs of a lower probability are left out of pairs/<id>.npz."""
SUMMARY = ("id", "length", "structure", "mean_pair_confidence", "mean_plddt", "seconds")
RANKING = ("id", "model", "confidence", "source")
REACTIVITY = ("id", "position", "nucleotide")
"""Leading columns of reactivity.csv; the probes and their errors follow."""
UNKNOWN_LETTER = "?"
"""Stands for a nucleotide of which only the length of its sequence is known; no record holds it."""


class FolderError(Exception):
    """The folder cannot be used or written to; the message is one line for the user and names the file."""


class IdTaken(FolderError):
    """The folder holds another RNA under this id: a problem of one record, not of the folder."""


class Existing(Enum):
    """What to do with results that are already there."""

    REFUSE = "refuse"
    RESUME = "resume"
    OVERWRITE = "overwrite"


@dataclass(frozen=True)
class Origin:
    """What made the predictions of a folder."""

    model: str = ""
    model_hash: str = ""
    """SHA-256 of the weights."""
    device: str = ""
    inputs: tuple[str, ...] = ()
    prior: str = "none"
    """What the network got beside the sequence."""
    templates: str = "none"
    """How many chains coordinate models could be made from, and the hash of their content."""
    template_paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunOptions:
    """The options of a run, as run.json holds them."""

    inputs: tuple[str, ...]
    tasks: tuple[str, ...]
    models: int
    templates: tuple[str, ...]
    """Where they were read from."""


@dataclass(frozen=True)
class RunDescription:
    """Content of run.json; `finished` is None until the run ends, times are UTC in ISO 8601."""

    version: str
    model: str
    model_hash: str
    options: RunOptions
    prior: str
    templates: str
    device: str
    torch: str
    started: str
    finished: str | None = None
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class PredictionFolder:
    """The files of one prediction run in `path`, which is made where it is missing.

    Args:
        path: the folder of `--out`.
        tasks: decide which files there are.
        models: coordinate models of each RNA.
        origin: goes into run.json; a run is resumed only by the same model with the same prior and templates.
        existing: what to do with results that are already there.

    Raises:
        FolderError: the folder cannot be made or written to, holds results, or results of another model or other tasks.
    """

    def __init__(
        self,
        path: str | Path,
        tasks: Sequence[str],
        models: int,
        *,
        origin: Origin | None = None,
        existing: Existing = Existing.REFUSE,
    ) -> None:
        self.path = Path(path)
        self.tasks = check_tasks(tuple(tasks))
        self.models = models
        origin = origin or Origin()
        self._summary = _Table(self.path / "summary.csv", _read_summary)
        self._reactivity = _Table(self.path / "reactivity.csv", _read_reactivity)
        self._structures = _Table(self.path / "structures.dbn", _read_structures)
        self._ranking = _Table(self.path / "coordinates" / "ranking.csv", _read_ranking)
        self._tables = (self._summary, self._reactivity, self._structures, self._ranking)
        self._complete: dict[str, str] = {}
        """Id to sequence, or to as many UNKNOWN_LETTERs where no file of the tasks holds the sequence."""
        self._run = RunDescription(
            version=__version__,
            model=origin.model,
            model_hash=origin.model_hash,
            options=RunOptions(origin.inputs, self.tasks, models, origin.template_paths),
            prior=origin.prior,
            templates=origin.templates,
            device=origin.device,
            torch=version("torch"),
            started=_now(),
        )
        with _named(self.path):
            results = self._results()
            if results and existing is Existing.REFUSE:
                message = f"holds results already ({results[0].name}); use --resume or --overwrite"
                raise FolderError(f"{self.path}: {message}")
            if existing is Existing.OVERWRITE:
                for file in results:
                    file.unlink()
            for folder in (self.path, *(self.path / name for name in self._subfolders())):
                folder.mkdir(parents=True, exist_ok=True)
                for unfinished in folder.glob(".*.part"):
                    unfinished.unlink()
        if results and existing is Existing.RESUME:
            self._check_same_run()
            self._cut_incomplete()
        self._write_run()

    @property
    def complete_ids(self) -> tuple[str, ...]:
        """Ids of the records that are done, in the order of summary.csv."""
        return tuple(self._complete)

    def is_complete(self, record: Record) -> bool:
        """Whether everything of the record is written.

        Raises:
            IdTaken: the folder holds another sequence under this id.
        """
        if record.id not in self._complete:
            return False
        if self._complete[record.id] not in (record.sequence, UNKNOWN_LETTER * record.length):
            raise IdTaken(f"{self.path}: holds another sequence named {record.id!r}; use another folder")
        return True

    def write(self, prediction: Prediction) -> None:
        """Write everything of one prediction, its row in summary.csv last.

        Raises:
            IdTaken: an RNA of this id is written already, or one whose id differs by whitespace and underscores only.
            FolderError: a file cannot be written.
            ValueError: the prediction lacks a task or a model of the folder.
        """
        record = prediction.record
        if record.id in self._complete or one_word(record.id) in self._structures.blocks:
            raise IdTaken(f"{self.path}: holds an RNA named {record.id!r} already; ids must differ")
        self._check_fits(prediction)
        name = safe_file_name(record.id)
        if "reactivity" in self.tasks:
            self._write_reactivity(prediction)
        if prediction.structure is not None and "structure" in self.tasks:
            self._write_pairs(self.path / "pairs" / f"{name}.npz", prediction)
            text = f">{one_word(record.id)}\n{record.sequence}\n{prediction.structure.to_dot_bracket()}\n"
            self._structures.append(one_word(record.id), text, rows=3, sequence=record.sequence)
        if prediction.coordinates is not None and "coordinates" in self.tasks:
            self._write_coordinates(name, prediction)
        self._summary.append(
            record.id, _summary_row(prediction), rows=1, sequence=record.sequence, header=_csv_row(SUMMARY)
        )
        self._complete[record.id] = record.sequence

    @contextmanager
    def picture(self, prediction: Prediction) -> Iterator[Path]:
        """A path to save the picture of an RNA to, pictures/<id>.png once all went well.

        Raises:
            FolderError: it cannot be written.
        """
        path = self.path / "pictures" / f"{safe_file_name(prediction.record.id)}.png"
        with _named(path):
            path.parent.mkdir(exist_ok=True)
        with _replacing(path) as temporary:
            yield temporary

    def finish(self, order: Iterable[str] = (), *, warnings: Sequence[str] = (), problems: Sequence[str] = ()) -> None:
        """Bring the tables into the given order of ids (others follow), and write when and how the run ended.

        Raises:
            FolderError: a file cannot be written.
        """
        ids = [id for id in dict.fromkeys(order) if id in self._complete]
        named = set(ids)
        self._keep(ids + [id for id in self._complete if id not in named])
        self._run = replace(self._run, finished=_now(), warnings=tuple(warnings), problems=tuple(problems))
        self._write_run()

    def _check_fits(self, prediction: Prediction) -> None:
        found = len(prediction.coordinates) if prediction.coordinates is not None else 0
        if "reactivity" in self.tasks and not prediction.reactivity:
            raise ValueError(f"{prediction.record.id}: the prediction has no reactivity")
        if "structure" in self.tasks and (prediction.structure is None or prediction.pair_probability is None):
            raise ValueError(f"{prediction.record.id}: the prediction has no structure")
        if "coordinates" in self.tasks and found != self.models:
            raise ValueError(f"{prediction.record.id}: expected {self.models} coordinate models, got {found}")

    def _write_reactivity(self, prediction: Prediction) -> None:
        record, probes = prediction.record, tuple(prediction.reactivity)
        header = _csv_row((*REACTIVITY, *probes, *(f"{probe}_error" for probe in probes)))
        columns = [*prediction.reactivity.values(), *(prediction.reactivity_error[probe] for probe in probes)]
        # the id is quoted once; numbers and nucleotides need no quotes
        row = _csv_row((record.id,)).rstrip("\n").replace("%", "%%") + ",%d,%s" + ",%.4f" * len(columns) + "\n"
        rows = zip(range(1, record.length + 1), record.sequence, *(column.tolist() for column in columns), strict=True)
        self._reactivity.append(
            record.id,
            "".join(row % values for values in rows),
            rows=record.length,
            sequence=record.sequence,
            header=header,
        )

    def _write_pairs(self, path: Path, prediction: Prediction) -> None:
        probability = prediction.pair_probability
        assert probability is not None
        left, right = np.nonzero(np.triu(probability >= LEAST_PROBABILITY, k=1))
        with _replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file, i=left.astype(np.int32), j=right.astype(np.int32), p=probability[left, right].astype(np.float32)
            )

    def _write_coordinates(self, name: str, prediction: Prediction) -> None:
        record, coordinates, plddt = prediction.record, prediction.coordinates, prediction.plddt
        assert coordinates is not None and plddt is not None
        rows = []
        sources = prediction.model_sources or ("network",) * self.models
        confidence = plddt.mean(axis=-1)
        for k, (source, xyz, quality) in enumerate(zip(sources, coordinates, plddt, strict=True), start=1):
            path = self.path / "coordinates" / f"{name}_model_{k}.cif"
            # it renames the file into place itself
            with _named(path):
                write_mmcif(path, record.sequence, xyz, quality, id=record.id, model=k, provenance=source)
            rows.append(_csv_row((record.id, k, f"{confidence[k - 1]:.2f}", source)))
        self._ranking.append(
            record.id, "".join(rows), rows=len(rows), sequence=record.sequence, header=_csv_row(RANKING)
        )

    def _write_run(self) -> None:
        with _replacing(self.path / "run.json") as temporary:
            temporary.write_text(json.dumps(asdict(self._run), indent=2) + "\n", encoding="utf-8")

    def _subfolders(self) -> tuple[str, ...]:
        return tuple(
            name for name, task in (("pairs", "structure"), ("coordinates", "coordinates")) if task in self.tasks
        )

    def _results(self) -> list[Path]:
        """Files of an earlier run, summary.csv first."""
        named = [*(table.path for table in self._tables), self.path / "run.json"]
        found = [path for path in named if path.exists()]
        found += sorted(self.path.glob("pairs/*.npz")) + sorted(self.path.glob("pictures/*.png"))
        return found + sorted(self.path.glob("coordinates/*_model_*.cif"))

    def _check_same_run(self) -> None:
        path = self.path / "run.json"
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            options, model_hash, started = before["options"], before["model_hash"], before["started"]
            # earlier versions knew none
            prior, templates = before.get("prior", "none"), before.get("templates", "none")
            tasks, models = tuple(options["tasks"]), options["models"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FolderError(f"{path}: missing or damaged, so the run cannot be resumed; use --overwrite") from error
        for what, old, new in (
            ("tasks", ",".join(tasks), ",".join(self.tasks)),
            ("models", models, self.models),
            ("weights", model_hash, self._run.model_hash),
            ("the prior", prior, self._run.prior),
            ("the templates", templates, self._run.templates),
        ):
            if old != new:
                message = f"was made with {what} {old}, not {new}; use another folder or --overwrite"
                raise FolderError(f"{self.path}: {message}")
        self._run = replace(self._run, started=started)

    def _cut_incomplete(self) -> None:
        """Read what is there, and cut every record of which something is missing out of every table."""
        with _named(self.path):
            for table in self._tables:
                try:
                    table.read()
                except (ValueError, IndexError) as error:
                    raise FolderError(f"{table.path}: not written by ribonanzamamba; use --overwrite") from error
            whole = [id for id, block in self._summary.blocks.items() if self._is_whole(id, len(block.sequence))]
        for id in whole:
            holder = self._reactivity.blocks.get(id) or self._structures.blocks.get(one_word(id))
            self._complete[id] = (holder or self._summary.blocks[id]).sequence
        self._keep(whole)

    def _is_whole(self, id: str, length: int) -> bool:
        """Whether each table and file of the tasks holds the record in full."""
        name, files = safe_file_name(id), []
        if "reactivity" in self.tasks:
            block = self._reactivity.blocks.get(id)
            if block is None or block.rows != length:
                return False
        if "structure" in self.tasks:
            block = self._structures.blocks.get(one_word(id))
            if block is None or len(block.sequence) != length:
                return False
            files.append(self.path / "pairs" / f"{name}.npz")
        if "coordinates" in self.tasks:
            block = self._ranking.blocks.get(id)
            if block is None or block.rows != self.models:
                return False
            files += [self.path / "coordinates" / f"{name}_model_{k}.cif" for k in range(1, self.models + 1)]
        return all(file.exists() and file.stat().st_size > 0 for file in files)

    def _keep(self, ids: Sequence[str]) -> None:
        """Make `ids`, in this order, all that the tables hold."""
        for table in self._tables:
            table.keep([one_word(id) for id in ids] if table is self._structures else ids)
        self._complete = {id: self._complete[id] for id in ids}


@dataclass(frozen=True)
class _Block:
    """The bytes of one record in a table, from `start` to before `end`."""

    start: int
    end: int
    rows: int
    sequence: str


class _Table:
    """A text file that grows by whole records and knows where each of them stands."""

    def __init__(self, path: Path, reader: Callable[[Path], Iterator[tuple[str, _Block]]]) -> None:
        self.path = path
        self.blocks: dict[str, _Block] = {}
        self._reader = reader
        self._size = 0

    def read(self) -> None:
        """Find the records that are there, up to the first that is torn."""
        self._size = self.path.stat().st_size if self.path.exists() else 0
        if self._size:
            self.blocks = dict(self._reader(self.path))

    def append(self, id: str, text: str, *, rows: int, sequence: str, header: str = "") -> None:
        """Add a record at the end, the header before the first."""
        start = self._size + (0 if self._size else len(header.encode()))
        data = (("" if self._size else header) + text).encode()
        with _named(self.path), open(self.path, "ab") as file:
            # what an earlier attempt left torn, on a disk that was full, must not end up in the middle
            file.truncate(self._size)
            file.write(data)
        self._size += len(data)
        self.blocks[id] = _Block(start, self._size, rows, sequence)

    def keep(self, ids: Sequence[str]) -> None:
        """Make the records of `ids` that are there, in this order, all that is there, unless they are already."""
        ids = [id for id in ids if id in self.blocks]
        ordered = sorted(self.blocks, key=lambda id: self.blocks[id].start)
        end = self.blocks[ordered[-1]].end if ordered else 0
        if ids == ordered and end == self._size:
            return
        kept = {}
        with _replacing(self.path) as temporary, open(self.path, "rb") as old, open(temporary, "wb") as new:
            if ids:
                new.write(old.read(self.blocks[ordered[0]].start))
            for id in ids:
                block = self.blocks[id]
                old.seek(block.start)
                start = new.tell()
                new.write(old.read(block.end - block.start))
                kept[id] = replace(block, start=start, end=new.tell())
            self._size = new.tell()
        self.blocks = kept


def _csv_blocks(path: Path) -> Iterator[tuple[list[list[str]], int, int]]:
    """The rows of each record (neighbours that share their first column) and their bytes, up to a torn row."""
    end = 0

    def lines(file: BinaryIO) -> Iterator[str]:
        nonlocal end
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield line.decode("utf-8", errors="replace")

    def rows(reader: Iterator[list[str]], columns: int) -> Iterator[tuple[list[str], int, int]]:
        start = end
        for row in reader:
            if len(row) != columns:
                return
            yield row, start, end
            start = end

    with open(path, "rb") as file:
        reader = csv.reader(lines(file))
        header = next(reader, [])
        for _, group in groupby(rows(reader, len(header)), key=lambda row: row[0][0]):
            block = list(group)
            yield [row for row, _, _ in block], block[0][1], block[-1][2]


def _read_summary(path: Path) -> Iterator[tuple[str, _Block]]:
    for rows, start, end in _csv_blocks(path):
        yield rows[0][0], _Block(start, end, len(rows), UNKNOWN_LETTER * int(rows[0][1]))


def _read_reactivity(path: Path) -> Iterator[tuple[str, _Block]]:
    for rows, start, end in _csv_blocks(path):
        yield rows[0][0], _Block(start, end, len(rows), "".join(row[2] for row in rows))


def _read_ranking(path: Path) -> Iterator[tuple[str, _Block]]:
    for rows, start, end in _csv_blocks(path):
        yield rows[0][0], _Block(start, end, len(rows), "")


def _read_structures(path: Path) -> Iterator[tuple[str, _Block]]:
    with open(path, "rb") as file:
        end = 0
        while lines := [line for line in islice(file, 3) if line.endswith(b"\n")]:
            if len(lines) < 3 or len(lines[1]) != len(lines[2]):
                return
            start, end = end, end + sum(len(line) for line in lines)
            id, sequence = (line.decode("utf-8", errors="replace").rstrip("\n") for line in lines[:2])
            yield id.removeprefix(">"), _Block(start, end, 3, sequence)


def _csv_row(cells: Sequence[object]) -> str:
    """One line of CSV with its line break.

    >>> _csv_row(("a,b", 1))
    '"a,b",1\\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _summary_row(prediction: Prediction) -> str:
    """A row of summary.csv; a cell is empty where its task was not asked for, or no pair was predicted."""
    structure, confidence = prediction.structure, prediction.model_confidence
    pair_confidence = prediction.pair_confidence
    return _csv_row(
        (
            prediction.record.id,
            prediction.record.length,
            "" if structure is None else structure.to_dot_bracket(),
            "" if np.isnan(pair_confidence) else f"{pair_confidence:.4f}",
            "" if confidence is None else f"{confidence[0]:.2f}",
            f"{prediction.seconds:.3f}",
        )
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror or error}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` when all went well, at once."""
    temporary = path.with_name(f".{path.name}.part")
    with _named(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
