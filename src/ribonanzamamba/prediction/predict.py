"""Records in, predictions out: batches of similar length through the network, each RNA decoded on its own.

Knows nothing of files; a record that cannot be predicted becomes a `PredictionProblem` and the others go on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch

from ribonanzamamba.baselines.folding import INSTALL, ViennaMissing, available, vienna_version
from ribonanzamamba.data.batch import Batch, collate
from ribonanzamamba.data.example import Example
from ribonanzamamba.data.prior import Prior, fold_priors
from ribonanzamamba.data.splits import length_sorted_batches
from ribonanzamamba.prediction import TASKS, check_tasks
from ribonanzamamba.prediction.decode import decode_structure
from ribonanzamamba.prediction.template_files import Templates, read_templates
from ribonanzamamba.prediction.template_model import add_templates
from ribonanzamamba.prediction.templates import TemplateLibrary
from ribonanzamamba.rna.alphabet import normalize_sequence
from ribonanzamamba.rna.records import Prediction, Record

if TYPE_CHECKING:
    from ribonanzamamba.model.network import RibonanzaMamba

logger = logging.getLogger(__name__)

MAX_LENGTH = 10_000
"""Nucleotides of the longest RNA that is tried."""
MAX_TOKENS = 16_384
"""Nucleotides of a batch, padding counted."""
MAX_RECORDS = {"cpu": 1, "cuda": 256}
"""RNAs of a batch by device. On a CPU batches gain nothing, and an RNA alone has the same answer, bit by bit,
whatever else is asked for. So has one alone on a GPU, which matters for coordinates: these amplify the rounding of a
padded batch to 5e-4 angstrom, so RNAs go one by one wherever coordinates are asked for."""
PRIORS = ("auto", "vienna", "none")
"""Where the pair probabilities come from that a network may take as an input: from ViennaRNA if it is installed, from
ViennaRNA or not at all, or nowhere."""
LONGEST_PRIOR = 2_000
"""Nucleotides of the longest RNA whose prior is computed: 19 s of a core beside the network's 63 s; it grows with the
cube of the length."""
PRIOR_SHARE = 0.2
"""Weight of the prior in the pair probabilities, the network's being the rest. On families that it has not seen the
network is surer than it should be, although it sees the prior. Chosen on valid RNAs: docs/experiments.md."""
MAX_CELLS = 2**22
"""Cells (batch x length^2, padding counted) of a batch: 256 RNAs of 128 nt."""
BYTES_PER_CELL = 1_100
"""Peak memory of one cell of the pair track. Source: the released sizes on a CPU (float32), all tasks: 4.3 GiB at
2,000 nt, of which 0.3 are the program's and the weights'."""


@dataclass(frozen=True)
class PredictionProblem:
    """A record that could not be predicted, and why, in words for its owner."""

    record: Record
    message: str


class PredictionError(RuntimeError):
    """`Predictor.predict` met a record that cannot be predicted; `problems` says which and why."""

    def __init__(self, problems: Sequence[PredictionProblem]) -> None:
        super().__init__("; ".join(f"{problem.record.id}: {problem.message}" for problem in problems))
        self.problems = tuple(problems)


class Predictor:
    """Predicts RNAs with one network on one device.

    Args:
        network: called as `network(tokens, mask, tasks=...)`; it is moved to the device and put into evaluation mode.
        name, weights_hash: identify the network in what is written about its predictions.
        device: "cpu", "cuda", "cuda:1", ... or "auto": the GPU where PyTorch sees one.
        max_tokens: nucleotides of a batch, padding counted; an RNA of more goes alone.
        max_cells: batch x length^2 of a batch, padding counted; an RNA of more goes alone.
        max_records: RNAs of a batch. None: by device, and one where coordinates are asked for.
        max_length: nucleotides; a longer RNA is a problem, not an attempt.
        prior: one of PRIORS. A network without `pair_prior` has none, whatever is said here but "vienna".
        templates: chains of known structure that coordinate models may be made from: a library, or what
            `prediction.template_files.read_templates` reads. None: the network alone.

    Raises:
        ValueError: a device that is not there, a prior for a network that takes none, or templates that cannot be used.
        OSError: templates that are not there.
        ViennaMissing: `prior` is "vienna", and ViennaRNA is not installed.
        BiotiteMissing: there are templates, and biotite is not installed.
    """

    def __init__(
        self,
        network: RibonanzaMamba,
        *,
        name: str = "",
        weights_hash: str = "",
        device: str = "auto",
        max_tokens: int = MAX_TOKENS,
        max_cells: int = MAX_CELLS,
        max_records: int | None = None,
        max_length: int = MAX_LENGTH,
        prior: str = "auto",
        templates: Templates | None = None,
    ) -> None:
        self.uses_prior, self.warnings = choose_prior(prior, network.config.pair_prior)
        self.templates = _library(templates)
        if self.templates is not None:
            self.warnings += self.templates.warnings
        self.device = choose_device(device)
        self.name = name
        self.weights_hash = weights_hash
        self.network = network.to(self.device).eval()
        self.max_tokens = max_tokens
        self.max_cells = max_cells
        self.max_records = max_records
        self.max_length = max_length

    @property
    def prior(self) -> str:
        """What the network gets beside the sequence, in words."""
        return f"ViennaRNA {vienna_version()} up to {LONGEST_PRIOR} nt" if self.uses_prior else "none"

    @overload
    def predict(self, records: str | Record, tasks: Sequence[str] = TASKS, models: int = 5) -> Prediction: ...

    @overload
    def predict(
        self, records: Sequence[str | Record], tasks: Sequence[str] = TASKS, models: int = 5
    ) -> list[Prediction]: ...

    def predict(
        self, records: str | Record | Sequence[str | Record], tasks: Sequence[str] = TASKS, models: int = 5
    ) -> Prediction | list[Prediction]:
        """Prediction of a sequence or record; a list of them in the order given.

        A sequence gets the id "sequence", in a list "sequence_1", "sequence_2", ... by its place.

        Raises:
            ValueError: a letter that is no nucleotide, an unknown task, or more models than the network has.
            PredictionError: a record is empty, too long, or does not fit into memory.
        """
        alone = isinstance(records, str | Record)
        asked = [
            _record_of(item, "sequence" if alone else f"sequence_{number}") if isinstance(item, str) else item
            for number, item in enumerate([records] if alone else records, start=1)
        ]
        predictions: list[Prediction | None] = [None] * len(asked)
        problems = []
        for index, result in self._iterate_indexed(asked, self._check(tasks, models), models):
            if isinstance(result, PredictionProblem):
                problems.append(result)
            else:
                predictions[index] = result
        if problems:
            raise PredictionError(problems)
        done = [prediction for prediction in predictions if prediction is not None]
        return done[0] if alone else done

    def iterate(
        self, records: Iterable[Record], tasks: Sequence[str] = TASKS, models: int = 5
    ) -> Iterator[Prediction | PredictionProblem]:
        """Predictions as batches finish, shortest RNAs first; a `PredictionProblem` in place of one that failed.

        Raises:
            ValueError: an unknown task, or a number of models the network does not have.
        """
        # checked here, not at the first step: a caller learns of it before anything is done
        asked = self._check(tasks, models)
        return (result for _, result in self._iterate_indexed(list(records), asked, models))

    def _check(self, tasks: Sequence[str], models: int) -> frozenset[str]:
        asked = frozenset(check_tasks(tuple(tasks)))
        most = self.network.config.coordinate_models
        if "coordinates" in asked and not 1 <= models <= most:
            raise ValueError(f"expected 1 to {most} coordinate models, as many as the network has, got {models}")
        return asked

    def _iterate_indexed(
        self, records: Sequence[Record], tasks: frozenset[str], models: int
    ) -> Iterator[tuple[int, Prediction | PredictionProblem]]:
        """The results with their places in `records`."""
        possible = []
        for index, record in enumerate(records):
            if record.length == 0:
                yield index, PredictionProblem(record, "the sequence is empty")
            elif reason := self._too_long(record.length):
                yield index, PredictionProblem(record, f"{record.length:,} nt: {reason}")
            else:
                possible.append(index)
        lengths = [records[index].length for index in possible]
        most = self.max_records
        if most is None:
            most = 1 if "coordinates" in tasks else MAX_RECORDS.get(self.device.type, 1)
        batches = length_sorted_batches(lengths, self.max_tokens, self.max_cells, most)
        priors = self._priors([records[possible[place]].sequence for batch in batches for place in batch])
        for batch in batches:
            places = [possible[place] for place in batch]
            results = self._predict_batch(
                [records[place] for place in places], list(islice(priors, len(places))), tasks, models
            )
            yield from zip(places, results, strict=True)

    def _priors(self, sequences: Sequence[str]) -> Iterator[Prior | None]:
        """The prior of each sequence in turn, made as it is taken or ahead of it."""
        wanted = [self.uses_prior and len(sequence) <= LONGEST_PRIOR for sequence in sequences]
        folded = iter(fold_priors([sequence for sequence, it in zip(sequences, wanted, strict=True) if it]))
        return (next(folded) if it else None for it in wanted)

    def _too_long(self, length: int) -> str:
        """Why an RNA of this length is not tried; empty where it is."""
        need = f"{estimate_memory(length) / 2**30:,.1f} GiB"
        if length > self.max_length:
            return f"the limit is {self.max_length:,} nt, and this one needs about {need} of memory"
        # on a CPU no error would come: the operating system ends the whole process
        machine = physical_memory() if self.device.type == "cpu" else None
        if machine is not None and estimate_memory(length) > machine:
            return f"needs about {need} of memory, this machine has {machine / 2**30:,.1f} GiB"
        return ""

    def _predict_batch(
        self, records: Sequence[Record], priors: Sequence[Prior | None], tasks: frozenset[str], models: int
    ) -> list[Prediction | PredictionProblem]:
        """One result a record; where memory is short the batch is halved until single records are left."""
        try:
            return self._run_network(records, priors, tasks, models)
        except (MemoryError, RuntimeError) as error:
            # torch.cuda.OutOfMemoryError and the CPU allocator's complaint are both RuntimeErrors
            if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "memory" in str(error).lower()):
                raise
        # outside of the handler, whose traceback keeps the tensors of the attempt alive
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(records) == 1:
            gibibytes = estimate_memory(records[0].length) / 2**30
            message = f"out of memory: {records[0].length:,} nt need about {gibibytes:,.1f} GiB on {self.device}"
            return [PredictionProblem(records[0], message)]
        half = len(records) // 2
        return [
            *self._predict_batch(records[:half], priors[:half], tasks, models),
            *self._predict_batch(records[half:], priors[half:], tasks, models),
        ]

    def _run_network(
        self, records: Sequence[Record], priors: Sequence[Prior | None], tasks: frozenset[str], models: int
    ) -> list[Prediction | PredictionProblem]:
        start = time.perf_counter()
        batch = to_batch(records, priors).to(self.device)
        known = {} if batch.prior is None else {"prior": batch.prior, "prior_known": batch.prior_known}
        with torch.inference_mode():
            output = self.network(batch.tokens, batch.mask, tasks=tasks, **known)
            pair_probability = output.pair_probability
            if pair_probability is not None and batch.prior is not None:
                share = PRIOR_SHARE * batch.prior_known[:, None, None]
                pair_probability = (1 - share) * pair_probability + share * batch.prior
            answer = _Answer(
                _to_numpy(output.reactivity),
                _to_numpy(output.reactivity_error),
                _to_numpy(pair_probability),
                _to_numpy(output.coordinates),
                _to_numpy(output.plddt),
            )
        # the copies to the CPU have waited for the GPU
        seconds = (time.perf_counter() - start) / sum(record.length for record in records)
        return [
            _to_prediction(
                record, answer.row(row, record.length), self.network.config.probes, models, seconds, self.templates
            )
            for row, record in enumerate(records)
        ]


@dataclass(frozen=True)
class _Answer:
    """What a network said, on the CPU in float32: of a batch with its padding, or of one RNA; None where not asked."""

    reactivity: np.ndarray | None
    reactivity_error: np.ndarray | None
    pair_probability: np.ndarray | None
    coordinates: np.ndarray | None
    plddt: np.ndarray | None

    def row(self, row: int, length: int) -> _Answer:
        """The part of one RNA: copies, so that one prediction that is kept does not keep its whole batch."""
        return _Answer(
            None if self.reactivity is None else self.reactivity[row, :length].copy(),
            None if self.reactivity_error is None else self.reactivity_error[row, :length].copy(),
            None if self.pair_probability is None else self.pair_probability[row, :length, :length].copy(),
            None if self.coordinates is None else self.coordinates[row, :, :length].copy(),
            None if self.plddt is None else self.plddt[row, :, :length].copy(),
        )

    def is_finite(self) -> bool:
        arrays = (self.reactivity, self.reactivity_error, self.pair_probability, self.coordinates, self.plddt)
        return all(array is None or bool(np.isfinite(array).all()) for array in arrays)


def _to_prediction(
    record: Record,
    answer: _Answer,
    probes: tuple[str, ...],
    models: int,
    seconds_per_nucleotide: float,
    templates: TemplateLibrary | None,
) -> Prediction | PredictionProblem:
    """Prediction from what the network said of one RNA: the structure decoded, the best `models` models by pLDDT, those
    made from templates among them."""
    if not answer.is_finite():
        return PredictionProblem(record, "the network's answer holds numbers that are not finite")
    start = time.perf_counter()
    structure = None if answer.pair_probability is None else decode_structure(answer.pair_probability)
    coordinates, plddt, sources = answer.coordinates, answer.plddt, ()
    if coordinates is not None and plddt is not None:
        best_first = np.argsort(-plddt.mean(axis=-1), kind="stable")[:models]
        coordinates, plddt = coordinates[best_first], plddt[best_first]
        hits = [] if templates is None else templates.search(record.sequence)
        coordinates, plddt, sources = add_templates(hits, coordinates, plddt)
    return Prediction(
        record,
        reactivity=_by_probe(answer.reactivity, probes),
        reactivity_error=_by_probe(answer.reactivity_error, probes),
        pair_probability=answer.pair_probability,
        structure=structure,
        coordinates=coordinates,
        plddt=plddt,
        model_sources=sources,
        seconds=seconds_per_nucleotide * record.length + time.perf_counter() - start,
    )


def _by_probe(values: np.ndarray | None, probes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Probe to its column of (length, probe)."""
    return {} if values is None else {probe: values[:, column] for column, probe in enumerate(probes)}


def load(
    path_or_preset: str | Path | None = None,
    device: str = "auto",
    prior: str = "auto",
    templates: Templates | None = None,
) -> Predictor:
    """Predictor from a checkpoint folder or the name of a preset; None: the weights that come with the package.

    `prior`: one of PRIORS. `templates`: as `Predictor` takes them.

    Raises:
        ValueError: weights that do not fit their description, a device that is not there, a prior for a network that
            takes none, or templates that cannot be used.
        OSError: no such checkpoint or preset, or it cannot be read.
        ViennaMissing: `prior` is "vienna", and ViennaRNA is not installed.
        BiotiteMissing: there are templates, and biotite is not installed.
    """
    from ribonanzamamba.model.checkpoint import load_checkpoint

    # first what is quickly refused
    library = _library(templates)
    checkpoint = load_checkpoint(path_or_preset)
    return Predictor(
        checkpoint.network,
        name=checkpoint.name,
        weights_hash=checkpoint.weights_hash,
        device=device,
        prior=prior,
        templates=library,
    )


def _library(templates: Templates | None) -> TemplateLibrary | None:
    if templates is None or isinstance(templates, TemplateLibrary):
        return templates
    # an empty list is no library
    return read_templates(templates) if isinstance(templates, Path) or templates else None


def choose_prior(prior: str, possible: bool) -> tuple[bool, tuple[str, ...]]:
    """Whether priors are computed, with the warnings for the user; `possible` says whether the network takes them.

    Raises:
        ValueError: not one of PRIORS, or "vienna" where it is not possible.
        ViennaMissing: "vienna", and ViennaRNA is not installed.

    >>> choose_prior("none", True), choose_prior("auto", False)
    ((False, ()), (False, ()))
    """
    if prior not in PRIORS:
        raise ValueError(f"expected a prior of {', '.join(PRIORS)}, got {prior!r}")
    if prior == "vienna" and not possible:
        raise ValueError("prior vienna was asked for, but these weights take no prior")
    if prior == "none" or not possible:
        return False, ()
    if available():
        return True, ()
    if prior == "vienna":
        raise ViennaMissing
    return False, (f"base pairs are less accurate without ViennaRNA, which is not installed: {INSTALL}",)


def choose_device(device: str) -> torch.device:
    """The device of a name; "auto" is the GPU where PyTorch sees one, else the CPU.

    Raises:
        ValueError: no such device here.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"expected device auto, cpu or cuda, got {device!r}") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device} was asked for, but PyTorch sees {torch.cuda.device_count()} GPUs")
    return chosen


def estimate_memory(length: int) -> int:
    """Bytes the network needs for one RNA of `length` nucleotides: BYTES_PER_CELL x length^2, the pair track.

    >>> round(estimate_memory(2048) / 2**30, 1)
    4.3
    """
    return BYTES_PER_CELL * length * length


def physical_memory() -> int | None:
    """Bytes of memory of this machine; None where the operating system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def to_batch(records: Sequence[Record], priors: Sequence[Prior | None] | None = None) -> Batch:
    """Batch of records, and of their priors, as the network reads them.

    >>> to_batch([Record("a", "ACG"), Record("b", "NU")]).mask.tolist()
    [[True, True, True], [True, True, False]]
    """
    return collate(
        [
            Example(record.id, record.sequence, cluster=-1, cluster_size=1, dataset="", prior=prior)
            for record, prior in zip(records, priors or [None] * len(records), strict=True)
        ]
    )


def _record_of(text: str, id: str) -> Record:
    normalized = normalize_sequence(text)
    if normalized.n_ambiguous:
        logger.warning("%s: %d ambiguous letters are read as N", id, normalized.n_ambiguous)
    return Record(id, normalized.sequence)


def _to_numpy(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.float().cpu().numpy()
