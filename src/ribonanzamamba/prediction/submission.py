"""Answers to the targets of a Kaggle contest: from a network, or from a prediction folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ribonanzamamba.evaluation.coordinate_files import C1_PRIME, read_predicted_coordinates
from ribonanzamamba.evaluation.reactivity_files import read_predicted_reactivity
from ribonanzamamba.evaluation.submission import MODELS, PROBE_COLUMNS, Target
from ribonanzamamba.prediction.predict import PredictionProblem, Predictor
from ribonanzamamba.rna.records import Record

WINDOW = 4096
"""Targets that are predicted before the first of them is written: their lengths are sorted into batches."""
TASKS_OF = {"ribonanza": ("reactivity",), "folding": ("coordinates",)}

Failed = Callable[[Record, str], None]
"""What to do with a record that has no answer, and why."""


def predicted_answers(
    predictor: Predictor, contest: str, targets: Sequence[Target], failed: Failed
) -> Iterator[np.ndarray | None]:
    """An answer a target, in their order, as `evaluation.submission.write_submission` takes it; None where it failed.

    Raises:
        ValueError: weights that do not predict what the contest asks for.
    """
    config, tasks = predictor.network.config, TASKS_OF[contest]
    lacking = set(tasks) - set(config.tasks) | (
        set(PROBE_COLUMNS) - set(config.probes) if contest == "ribonanza" else set()
    )
    if lacking:
        raise ValueError(f"{predictor.name}: predicts no {' or '.join(sorted(lacking))}, which {contest} asks for")
    models = min(MODELS, config.coordinate_models)
    return _answers(predictor, contest, targets, failed, models)


def _answers(
    predictor: Predictor, contest: str, targets: Sequence[Target], failed: Failed, models: int
) -> Iterator[np.ndarray | None]:
    for start in range(0, len(targets), WINDOW):
        here = targets[start : start + WINDOW]
        answers: dict[str, np.ndarray | None] = {}
        for result in predictor.iterate([target.record for target in here], TASKS_OF[contest], models):
            if isinstance(result, PredictionProblem):
                failed(result.record, result.message)
                answers[result.record.id] = None
            elif contest == "ribonanza":
                answers[result.record.id] = np.stack([result.reactivity[probe] for probe in PROBE_COLUMNS], axis=1)
            else:
                assert result.coordinates is not None
                answers[result.record.id] = result.coordinates[:, :, C1_PRIME]
        for target in here:
            yield answers[target.record.id]


def answers_of_folder(
    path: str | os.PathLike[str], contest: str, targets: Sequence[Target], failed: Failed
) -> Iterator[np.ndarray | None]:
    """The same from what `predict` has written, of which every RNA is found by its id or its sequence.

    Raises:
        FormatError: no such predictions.
    """
    lookup = read_predicted_reactivity(path) if contest == "ribonanza" else read_predicted_coordinates(path)
    for target in targets:
        try:
            found = lookup.find((target.record.id,), target.record.sequence)
        except ValueError as error:
            failed(target.record, str(error))
            yield None
            continue
        if found is None:
            failed(target.record, f"there is no prediction in {path}")
            yield None
        elif contest == "ribonanza":
            if lacking := set(PROBE_COLUMNS) - set(found):
                raise ValueError(f"{path}: predicts no {' or '.join(sorted(lacking))}, which {contest} asks for")
            yield np.stack([found[probe] for probe in PROBE_COLUMNS], axis=1)
        elif not np.isfinite(found).all():
            failed(target.record, "some nucleotides have no coordinates")
            yield None
        else:
            yield found
