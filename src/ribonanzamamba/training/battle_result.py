"""What a finished run of a battle leaves: `result.json` and `predictions.npz`, from which any report can be written."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Shaped, UInt8
from torch import nn

from ribonanzamamba import __version__
from ribonanzamamba.data.batch import collate
from ribonanzamamba.data.example import Example, reverse
from ribonanzamamba.data.splits import length_sorted_batches
from ribonanzamamba.training.config import Config
from ribonanzamamba.training.metrics import read_metrics, series
from ribonanzamamba.training.processes import joined
from ribonanzamamba.training.run_folder import METRICS, STATE, write_atomically
from ribonanzamamba.training.tables import read_tables
from ribonanzamamba.training.validation import LONGEST, HeldOut, prior_of

RESULT, PREDICTIONS, LONGER = "result.json", "predictions.npz", "longer.npz"
TOKENS = 16384
"""Nucleotides of a batch of predictions, at most."""
LEVELS = 255
"""Steps from 0 to 1 in which predictions are kept: their rounding moves an MAE by about a millionth."""


@dataclass(frozen=True)
class RunKey:
    """Which run of a battle."""

    contestant: str
    budget: str
    seed: int

    @property
    def folder(self) -> str:
        """The name of its folder.

        >>> RunKey("ours", "6-epochs", 0).folder
        'ours--6-epochs--seed0'
        """
        return f"{self.contestant}--{self.budget}--seed{self.seed}"

    def __str__(self) -> str:
        """As the command line spells it.

        >>> str(RunKey("ours", "6-epochs", 0))
        'ours:6-epochs:0'
        """
        return f"{self.contestant}:{self.budget}:{self.seed}"

    def matches(self, text: str) -> bool:
        """Whether NAME, NAME:BUDGET or NAME:BUDGET:SEED names this run.

        >>> key = RunKey("ours", "6-epochs", 0)
        >>> key.matches("ours"), key.matches("ours:6-epochs:1")
        (True, False)
        """
        parts = text.split(":")
        return parts == str(self).split(":")[: len(parts)]


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was measured of the held-out RNAs, replicates merged; positions end to end."""

    ids: Shaped[np.ndarray, " rna"]
    sequences: Shaped[np.ndarray, " rna"]
    datasets: Shaped[np.ndarray, " rna"]
    lengths: Int32[np.ndarray, " rna"]
    probes: Shaped[np.ndarray, " probe"]
    reactivity: Float[np.ndarray, "position probe"]
    """Dimensionless, NaN = not measured."""
    weight: Float[np.ndarray, "position probe"]
    """Trust, s / (1 + s) of a single row with signal to noise s."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network says of the held-out RNAs; positions end to end. Nothing of what was measured: results can be
    passed on where data cannot."""

    ids: Shaped[np.ndarray, " rna"]
    lengths: Int32[np.ndarray, " rna"]
    probes: Shaped[np.ndarray, " probe"]
    levels: UInt8[np.ndarray, "position probe"]
    """Reactivity clipped to [0, 1], as the metric does, in steps of 1 / LEVELS."""

    @property
    def reactivity(self) -> Float32[np.ndarray, "position probe"]:
        """Dimensionless, 0 to 1."""
        return self.levels.astype(np.float32) / LEVELS

    def check(self, measurements: Measurements) -> None:
        """Nothing, if these are predictions of those RNAs, in their order.

        Raises:
            ValueError: otherwise.
        """
        for name in ("ids", "lengths", "probes"):
            if not np.array_equal(getattr(self, name), getattr(measurements, name)):
                raise ValueError(f"predictions of other held-out RNAs than the tables have: their {name} differ")


@dataclass(frozen=True, eq=False, kw_only=True)
class RunResult:
    """A finished run."""

    contestant: str
    budget: str
    seed: int
    settings: dict[str, Any]
    hardware: dict[str, str]
    parameters: int
    steps: int
    epochs: float
    minutes: float
    """Of steps, on one device."""
    warm_up_seconds: float
    """Before the first step, compiling; all sittings together, in no other number."""
    rnas_per_second: float
    memory_gib: float | None
    """Peak of the allocator; None without a GPU."""
    both_directions: bool
    """Predictions are the mean of those of the RNA and of its reverse read backwards."""
    curve: dict[str, list[float]]
    """`minutes`, `epochs`, and the held-out MAE of each probe at these times, as in the run's log."""
    predictions: Predictions | None = field(default=None, repr=False)
    longer: Predictions | None = field(default=None, repr=False)
    """Of RNAs longer than those trained on, where the battle has any."""

    def write(self, folder: Path) -> None:
        """Write the files; `result.json` last: it is what says that the run is finished."""
        folder.mkdir(parents=True, exist_ok=True)
        values = asdict(self)
        for name, arrays in ((PREDICTIONS, values.pop("predictions")), (LONGER, values.pop("longer"))):
            if arrays is not None:
                np.savez_compressed(folder / name, **arrays)
        write_atomically(folder / RESULT, (json.dumps(values, indent=2) + "\n").encode())


def result_folder(out: str | Path, key: RunKey) -> Path:
    return Path(out) / "results" / key.folder


def read_result(out: str | Path, key: RunKey) -> RunResult | None:
    """What a run left in `out`; None where it is not finished.

    Raises:
        ValueError: a result of another version.
    """
    folder = result_folder(out, key)
    if not (folder / RESULT).is_file():
        return None
    try:
        return RunResult(
            **json.loads((folder / RESULT).read_text()),
            predictions=read_predictions(folder / PREDICTIONS),
            longer=read_predictions(folder / LONGER) if (folder / LONGER).is_file() else None,
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder}: written by another version: {error}") from None


def read_predictions(path: Path) -> Predictions:
    """What `RunResult.write` wrote."""
    with np.load(path) as arrays:
        return Predictions(**{each.name: arrays[each.name] for each in fields(Predictions)})


def collect_result(
    run: Path, key: RunKey, config: Config, network: nn.Module, settings: dict[str, Any], longer: Sequence[Example] = ()
) -> RunResult:
    """The result of a finished run folder; `network` is one of its kind, whose weights are replaced by the average.
    `longer` are RNAs that are predicted beside the held-out ones."""
    with joined(config.training.device) as processes:
        device = processes.device
    state = torch.load(run / STATE, map_location=device, weights_only=True)
    prefix = "module."
    network.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state["average"].items() if name.startswith(prefix)}
    )
    network.to(device)
    training, held_out = read_tables(config.data, tuple(network.config.probes))
    both = config.data.reverse_share > 0
    rows = read_metrics(run / METRICS)
    steps, seconds = state["run"]["step"], state["run"]["seconds"]
    epoch_steps = sum(map(len, training["reactivity"])) // config.data.batch_examples

    def predicted(examples: Sequence[Example]) -> Predictions:
        values = predict_reactivity(network, examples, device, config.training.bfloat16)
        if both:
            back = predict_reactivity(network, [reverse(each) for each in examples], device, config.training.bfloat16)
            values = [(one + other[::-1]) / 2 for one, other in zip(values, back, strict=True)]
        return join_predictions(examples, values, tuple(network.config.probes))

    return RunResult(
        contestant=key.contestant,
        budget=key.budget,
        seed=key.seed,
        settings=json.loads(json.dumps(settings)),
        hardware=describe_hardware(device),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        steps=steps,
        epochs=steps / epoch_steps,
        minutes=seconds / 60,
        warm_up_seconds=sum(series(rows, "warm_up_seconds")[1]),
        rnas_per_second=steps * config.data.batch_examples / seconds,
        memory_gib=max(series(rows, "memory_gib")[1], default=None),
        both_directions=both,
        curve=learning_curve(rows, epoch_steps, tuple(network.config.probes)),
        predictions=predicted(compared_examples(held_out)),
        longer=predicted(longer) if longer else None,
    )


@torch.no_grad()
def predict_reactivity(
    network: nn.Module, examples: Sequence[Example], device: torch.device, bfloat16: bool
) -> list[Float32[np.ndarray, "length probe"]]:
    """Reactivity of each example, in their order, with its prior where the network takes one; RNAs of one length come
    together, so that there is hardly any padding."""
    network.eval()
    values: list[np.ndarray] = [np.zeros((0, 0), dtype=np.float32)] * len(examples)
    lengths = [example.length for example in examples]
    for indices in length_sorted_batches(lengths, max_tokens=TOKENS, max_cells=TOKENS * 160, max_examples=256):
        batch = collate([examples[index] for index in indices]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16 and device.type == "cuda"):
            output = network(batch.tokens, batch.mask, ("reactivity",), *prior_of(network, batch))
        for index, row in zip(indices, output.reactivity.float().cpu().numpy(), strict=True):
            values[index] = row[: lengths[index]]
    return values


def compared_examples(held_out: HeldOut) -> list[Example]:
    """The RNAs on which contestants are compared.

    Raises:
        ValueError: there are none.
    """
    examples = [example for example in held_out.reactivity if example.length <= LONGEST]
    if not examples:
        raise ValueError("battle: expected held-out reactivity examples, got none")
    return examples


def join_measurements(examples: Sequence[Example], probes: Sequence[str]) -> Measurements:
    """Examples as flat arrays."""
    return Measurements(
        ids=np.array([example.id for example in examples]),
        sequences=np.array([example.sequence for example in examples]),
        datasets=np.array([example.dataset for example in examples]),
        lengths=np.array([example.length for example in examples], dtype=np.int32),
        probes=np.array(probes),
        reactivity=np.concatenate([example.reactivity for example in examples]),
        weight=np.concatenate([example.reactivity_weight for example in examples]),
    )


def join_predictions(
    examples: Sequence[Example], values: Sequence[Float32[np.ndarray, "length probe"]], probes: Sequence[str]
) -> Predictions:
    """The values predicted for examples as flat arrays.

    Raises:
        ValueError: a value that is not finite.
    """
    for example, row in zip(examples, values, strict=True):
        if not np.isfinite(row).all():
            raise ValueError(f"battle: the network predicts values for {example.id} that are not finite")
    return Predictions(
        ids=np.array([example.id for example in examples]),
        lengths=np.array([example.length for example in examples], dtype=np.int32),
        probes=np.array(probes),
        levels=np.rint(np.concatenate(values).clip(0, 1) * LEVELS).astype(np.uint8),
    )


def learning_curve(rows: list[dict[str, Any]], epoch_steps: int, probes: tuple[str, ...]) -> dict[str, list[float]]:
    """Held-out MAE of each probe over minutes and epochs, from the rows of `metrics.jsonl`."""
    steps, seconds = series([row for row in rows if "rnas_per_second" in row], "seconds")
    curve: dict[str, list[float]] = {}
    for probe in probes:
        at, curve[probe] = series(rows, f"valid/mae/{probe}")
        if at:
            curve["minutes"] = [float(value) / 60 for value in np.interp(at, [0, *steps], [0, *seconds])]
            curve["epochs"] = [step / epoch_steps for step in at]
    return curve


def describe_hardware(device: torch.device) -> dict[str, str]:
    """Device and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "ribonanzamamba": __version__,
    }
