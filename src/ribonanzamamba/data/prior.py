"""Base-pair probabilities of a thermodynamic model, beside a sequence: sparse and rounded.

Training reads them from files, prediction computes them; both go through `make_prior`: a network sees the same numbers.
"""

import io
import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from ribonanzamamba.baselines.folding import pair_probabilities

LEAST_PROBABILITY = 0.01
"""Pairs of a lower probability are not in a prior."""
LEVELS = 255
"""A probability is kept as a level: p = (level / LEVELS)^2, so that small ones are kept finer than large ones."""
SHARD_SEQUENCES = 500
"""Sequences a file of computed probabilities."""
WORTH_PROCESSES = 4.0
"""Seconds of folding from which other processes are started: a start takes half a second of a core."""
PART_SECONDS = 3.0
"""Seconds of folding a process gets."""
MOST_WORKERS = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prior:
    """Pairs i < j (0-based) of one RNA with their probability as a level."""

    i: UInt16[np.ndarray, " pair"]
    j: UInt16[np.ndarray, " pair"]
    level: UInt8[np.ndarray, " pair"]

    @property
    def p(self) -> Float32[np.ndarray, " pair"]:
        """Probabilities, 0 to 1."""
        return (self.level / np.float32(LEVELS)) ** 2

    def crop(self, start: int, stop: int) -> "Prior":
        """The pairs within the nucleotides start to stop (excluded), counted from start.

        >>> prior = Prior(np.uint16([0, 1]), np.uint16([9, 8]), np.uint8([255, 255]))
        >>> part = prior.crop(1, 9)
        >>> part.i.tolist(), part.j.tolist()
        ([0], [7])
        """
        inside = (self.i >= start) & (self.j < stop)
        return Prior(self.i[inside] - np.uint16(start), self.j[inside] - np.uint16(start), self.level[inside])

    def reverse(self, length: int) -> "Prior":
        """The pairs of an RNA of so many nucleotides, counted from its other end.

        >>> prior = Prior(np.uint16([0, 1]), np.uint16([9, 8]), np.uint8([255, 100])).reverse(12)
        >>> prior.i.tolist(), prior.j.tolist()
        ([2, 3], [11, 10])
        """
        last = np.uint16(length - 1)
        return Prior(last - self.j, last - self.i, self.level)


def make_prior(i: np.ndarray, j: np.ndarray, p: np.ndarray) -> Prior:
    """Prior from pairs and their probabilities: the rare ones left out, the others rounded to a level.

    >>> prior = make_prior(np.array([0, 1]), np.array([9, 8]), np.array([0.5, 0.001]))
    >>> prior.i.tolist(), prior.level.tolist()
    ([0], [180])
    """
    kept = p >= LEAST_PROBABILITY
    level = np.rint(np.sqrt(np.minimum(p[kept], 1)) * LEVELS)
    return Prior(i[kept].astype(np.uint16), j[kept].astype(np.uint16), level.astype(np.uint8))


def fold_prior(sequence: str) -> Prior:
    """Prior of a sequence, by ViennaRNA.

    Raises:
        baselines.folding.ViennaMissing: ViennaRNA is not installed.
    """
    return make_prior(*pair_probabilities(sequence))


def fold_priors(sequences: Sequence[str], workers: int | None = None) -> Iterator[Prior]:
    """The priors of sequences in their order, as they are asked for.

    Where it pays, other processes compute them ahead (`workers`; None: one a processor, 0: none).
    Closing, or dropping, the generator waits for the few in the making.

    Raises:
        baselines.folding.ViennaMissing: ViennaRNA is not installed.
    """
    workers = min(MOST_WORKERS, os.cpu_count() or 1) if workers is None else workers
    if len(sequences) < 2 or not workers or sum(map(folding_seconds, sequences)) < WORTH_PROCESSES:
        return map(fold_prior, sequences)
    return _folded_ahead(sequences, workers)


def folding_seconds(sequence: str) -> float:
    """About how long a core folds a sequence: 6 ms at 100 nt, 3 s at 1,000 nt."""
    return 0.006 * (len(sequence) / 100) ** 2.7


def _folded_ahead(sequences: Sequence[str], workers: int) -> Iterator[Prior]:
    parts: list[list[str]] = [[]]
    seconds = 0.0
    for sequence in sequences:
        if seconds > PART_SECONDS:
            parts.append([])
            seconds = 0.0
        parts[-1].append(sequence)
        seconds += folding_seconds(sequence)
    with ThreadPoolExecutor(min(workers, len(parts)), thread_name_prefix="prior") as threads:
        ahead = [threads.submit(_fold_in_process, part) for part in parts]
        try:
            for future in ahead:
                yield from future.result()
        finally:
            for future in ahead:
                future.cancel()


def _fold_in_process(sequences: list[str]) -> list[Prior]:
    # not multiprocessing: its children run a caller's script again where it has no __main__ guard
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", "from ribonanzamamba.data.prior import answer_stdin; answer_stdin()"]
    done = subprocess.run(command, input="\n".join(sequences).encode(), stdout=PIPE, check=True, env=environment)
    return [prior for _, prior in _unpacked(io.BytesIO(done.stdout))]


def answer_stdin() -> None:
    """What `fold_priors` runs in another process: priors of the lines of standard input to standard output."""
    sequences = sys.stdin.read().split("\n")
    packed = io.BytesIO()
    np.savez(packed, **_packed(sequences, [fold_prior(sequence) for sequence in sequences]))
    sys.stdout.buffer.write(packed.getvalue())


def compute_priors(sequences: Iterable[str], folder: str | Path, workers: int = 1) -> None:
    """Priors of all sequences in files of a folder; those that are there already are not computed again.

    A file is complete or absent, so a computation that was stopped goes on where it was. Time with ViennaRNA: about
    5 ms of a core for 100 nt, 30 ms for 177 nt, 3 s for 1,000 nt.

    Raises:
        baselines.folding.ViennaMissing: ViennaRNA is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    known = {sequence for sequence, _ in read_priors(folder)}
    waiting = [sequence for sequence in dict.fromkeys(sequences) if sequence not in known]
    parts = [waiting[start : start + SHARD_SEQUENCES] for start in range(0, len(waiting), SHARD_SEQUENCES)]
    first = 1 + max((int(path.stem.rpartition("-")[2]) for path in folder.glob("prior-*.npz")), default=0)
    jobs = [(part, folder / f"prior-{number:05d}.npz") for number, part in enumerate(parts, start=first)]
    logger.info("priors of %d sequences are there, %d to compute", len(known), len(waiting))
    if workers <= 1:
        for job in jobs:
            logger.info("wrote %s", _compute_file(job))
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for path in pool.imap_unordered(_compute_file, jobs):
            logger.info("wrote %s", path)


def read_priors(folder: str | Path) -> Iterator[tuple[str, Prior]]:
    """Sequences with their priors, from the files `compute_priors` wrote."""
    for path in sorted(Path(folder).glob("prior-*.npz")):
        yield from _unpacked(path)


def write_priors(path: Path, sequences: Sequence[str], priors: Sequence[Prior]) -> None:
    """One file of at least one sequence, complete or absent."""
    new = path.with_suffix(".part")
    with open(new, "wb") as file:
        np.savez_compressed(file, **_packed(sequences, priors))
    os.replace(new, path)


def _packed(sequences: Sequence[str], priors: Sequence[Prior]) -> dict[str, np.ndarray]:
    return {
        "sequences": np.frombuffer("\n".join(sequences).encode(), dtype=np.uint8),
        "counts": np.array([len(prior.i) for prior in priors], dtype=np.uint32),
        "i": np.concatenate([prior.i for prior in priors]),
        "j": np.concatenate([prior.j for prior in priors]),
        "level": np.concatenate([prior.level for prior in priors]),
    }


def _unpacked(source: Path | io.BytesIO) -> Iterator[tuple[str, Prior]]:
    with np.load(source) as file:
        sequences = file["sequences"].tobytes().decode().split("\n")
        ends = np.cumsum(file["counts"])
        i, j, level = file["i"], file["j"], file["level"]
    for sequence, start, end in zip(sequences, [0, *ends[:-1]], ends, strict=True):
        yield sequence, Prior(i[start:end], j[start:end], level[start:end])


def _compute_file(job: tuple[list[str], Path]) -> Path:
    sequences, path = job
    write_priors(path, sequences, [fold_prior(sequence) for sequence in sequences])
    return path
