"""Base-pair probabilities of a thermodynamic model, beside a sequence: sparse and rounded.

Training reads them from files, prediction computes them; both go through `make_prior`: a network sees the same numbers.
"""

import logging
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from ribonanzamamba.baselines.folding import pair_probabilities

LEAST_PROBABILITY = 0.01
"""Pairs of a lower probability are not in a prior."""
LEVELS = 255
"""A probability is kept as a level: p = (level / LEVELS)^2, so that small ones are kept finer than large ones."""
SHARD_SEQUENCES = 500
"""Sequences a file of computed probabilities."""

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
        with np.load(path) as file:
            sequences = file["sequences"].tobytes().decode().split("\n")
            ends = np.cumsum(file["counts"])
            i, j, level = file["i"], file["j"], file["level"]
        for sequence, start, end in zip(sequences, [0, *ends[:-1]], ends, strict=True):
            yield sequence, Prior(i[start:end], j[start:end], level[start:end])


def write_priors(path: Path, sequences: Sequence[str], priors: Sequence[Prior]) -> None:
    """One file of at least one sequence, complete or absent."""
    new = path.with_suffix(".part")
    with open(new, "wb") as file:
        np.savez_compressed(
            file,
            sequences=np.frombuffer("\n".join(sequences).encode(), dtype=np.uint8),
            counts=np.array([len(prior.i) for prior in priors], dtype=np.uint32),
            i=np.concatenate([prior.i for prior in priors]),
            j=np.concatenate([prior.j for prior in priors]),
            level=np.concatenate([prior.level for prior in priors]),
        )
    os.replace(new, path)


def _compute_file(job: tuple[list[str], Path]) -> Path:
    sequences, path = job
    write_priors(path, sequences, [fold_prior(sequence) for sequence in sequences])
    return path
