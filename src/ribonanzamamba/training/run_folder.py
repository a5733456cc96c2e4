"""The folder of a training run: resolved config, versions, log, metrics, weights and the state to continue from.

Every file is replaced whole or not at all; `state.pt` is written last and is what counts: what the other files hold
beyond its step is dropped when the run continues.
"""

import io
import json
import logging
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ribonanzamamba import __version__
from ribonanzamamba.model.checkpoint import recover_checkpoint, save_checkpoint, sync_folder, write_synced
from ribonanzamamba.training.config import Config
from ribonanzamamba.training.metrics import read_metrics
from ribonanzamamba.training.sharding import whole

logger = logging.getLogger(__name__)

METRICS, STATE, NEWEST, BEST = "metrics.jsonl", "state.pt", "checkpoint", "best"


@dataclass
class RunState:
    """Where a run stands, besides weights and optimizers. With the seed, `step` fixes the batches and the random
    numbers of every step to come."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Wall time used, all sittings of the run together."""
    best: float = -math.inf
    """Highest `overall` score of a validation."""
    finished: int = -1
    """Step at which the run came to its end; -1: it has not."""
    bad_in_a_row: int = 0
    rnas: int = 0
    """Since the last line of the log."""
    rows: list[list[float]] = field(default_factory=list)
    """Values of each step since the last line of the log."""


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Replace a file: after a kill, a power cut or an error it holds all of the old or all of the new data.

    Raises:
        OSError: the disk is full, or the like; the old data is untouched.
    """
    new = path.with_name(path.name + ".new")
    try:
        write_synced(new, data)
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


class RunFolder:
    """Files: config.json, versions.json, run.log, metrics.jsonl, checkpoint/ (averaged weights, newest), best/ (those
    with the best validation) and state.pt (to continue).

    With `writes` false, as on all processes but the first, it only reads.
    """

    def __init__(self, path: Path, config: Config, writes: bool = True):
        self.path = path
        self.config = config
        self.writes = writes
        self.unwritten: list[str] = []
        """Lines of metrics.jsonl that the disk did not take."""
        self.saved: int | None = None
        """Step of state.pt."""
        self.board: Any = None
        if not writes:
            logging.getLogger("ribonanzamamba").setLevel(logging.WARNING)
            return
        path.mkdir(parents=True, exist_ok=True)
        for name in (NEWEST, BEST):
            recover_checkpoint(path / name)
        self._open_log()
        self._write_config()
        if config.training.tensorboard:
            self.board = summary_writer(path / "tensorboard")

    def _open_log(self) -> None:
        handler = logging.FileHandler(self.path / "run.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        package = logging.getLogger("ribonanzamamba")
        for old in [each for each in package.handlers if isinstance(each, logging.FileHandler)]:
            package.removeHandler(old)
            old.close()
        package.addHandler(handler)
        package.setLevel(logging.INFO)

    def _write_config(self) -> None:
        resolved = json.loads(json.dumps(self.config.to_dict()))
        path = self.path / "config.json"
        if path.is_file():
            try:
                before = json.loads(path.read_text())
            except ValueError:
                before = {}
            for line in differences(before, resolved):
                logger.info("config changed: %s", line)
        write_atomically(path, (json.dumps(resolved, indent=2) + "\n").encode())
        versions = {
            "ribonanzamamba": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "machine": platform.machine(),
        }
        if torch.cuda.is_available():
            versions |= {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name()}
        write_atomically(self.path / "versions.json", (json.dumps(versions, indent=2) + "\n").encode())

    def log_step(
        self,
        step: int,
        seconds: float,
        rate: float,
        values: Mapping[str, float],
        speed: float,
        waiting: float = 0.0,
        skipped: int = 0,
    ) -> dict[str, Any]:
        """A line of metrics.jsonl: losses by name, `speed` in RNAs/s, `waiting` the share of time without a batch."""
        row: dict[str, Any] = {"step": step, "seconds": round(seconds, 2), "learning_rate": rate}
        row |= {"rnas_per_second": round(speed, 1), "waiting": round(waiting, 4)}
        # NaN is no JSON: a term that was in no batch is left out
        row |= {f"loss/{name}": round(value, 5) for name, value in values.items() if not math.isnan(value)}
        if skipped:
            row["skipped"] = skipped
        if torch.cuda.is_available():
            row["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        self.append(row)
        return row

    def log_scores(self, step: int, scores: Mapping[str, float]) -> None:
        self.append({"step": step} | {f"valid/{name}": round(value, 5) for name, value in scores.items()})

    def log_bad_batch(self, step: int, ids: Mapping[str, Sequence[str]]) -> None:
        """A line with the record ids of batches that gave no finite loss or gradient, by the tasks of the pass."""
        self.append({"step": step, "bad_batch": {tasks: list(names) for tasks, names in ids.items()}})

    def append(self, row: dict[str, Any]) -> None:
        """A line to metrics.jsonl and the log. What a full disk does not take is written with a later line."""
        if not self.writes:
            return
        self.unwritten.append(json.dumps(row) + "\n")
        path = self.path / METRICS
        whole = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a") as file:
                file.write("".join(self.unwritten))
            self.unwritten.clear()
        except OSError as error:
            logger.error("could not write %s: %s; its lines are kept and written later", path, error)
            if path.exists():
                os.truncate(path, whole)
        numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
        logger.info(" ".join(f"{key}={value:.5g}" for key, value in numbers.items()))
        if "bad_batch" in row:
            logger.warning(
                "step %d skipped: a loss or gradient was not finite; batch %s", row["step"], row["bad_batch"]
            )
        if self.board is not None:
            for key, value in numbers.items():
                if key != "step":
                    self.board.add_scalar(key, value, row["step"])
            self.board.flush()

    def release(self, network: nn.Module, best: bool) -> None:
        """Write the network to use as the newest checkpoint, and as the best one if it is."""
        if self.writes:
            for name in (NEWEST, BEST) if best else (NEWEST,):
                self._attempt(name, lambda name=name: save_checkpoint(network, self.path / name, name=self.config.name))

    def save(
        self, state: RunState, network: nn.Module, average: AveragedModel, optimizers: list[torch.optim.Optimizer]
    ) -> bool:
        """Write everything needed to continue; whether the disk took it. All processes call it.

        Raises:
            ValueError: weights that are not finite: the last good checkpoint is worth more.
        """
        content = {
            "run": asdict(state),
            "network": network.state_dict(),
            "average": average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        # every process has its part to give
        content = whole(content)
        if not self.writes:
            return True
        for weights in (content["network"], content["average"]):
            if not all(tensor.isfinite().all() for tensor in weights.values()):
                raise ValueError(f"{self.path}: weights are not finite at step {state.step}; kept the last checkpoint")
        buffer = io.BytesIO()
        torch.save(content, buffer)
        written = self._attempt(STATE, lambda: write_atomically(self.path / STATE, buffer.getbuffer()))
        if written:
            self.saved = state.step
        return written

    def _attempt(self, name: str, write: Callable[[], None]) -> bool:
        try:
            write()
        except OSError as error:
            kept = "there is none yet" if self.saved is None else f"that of step {self.saved} is untouched"
            logger.error(
                "could not write %s: %s; training goes on and tries again. Checkpoint to continue from: %s",
                self.path / name,
                error.strerror or error,
                kept,
            )
            return False
        return True

    def restore(
        self,
        network: nn.Module,
        average: AveragedModel,
        optimizers: list[torch.optim.Optimizer],
        device: torch.device,
    ) -> RunState:
        """Load what `save` wrote, if anything; returns where the run stands.

        Raises:
            ValueError: a state of another network or optimizer than the config says.
        """
        path = self.path / STATE
        if not path.is_file():
            self._keep_metrics_until(0)
            return RunState()
        saved = torch.load(path, map_location=device, weights_only=True)
        try:
            network.load_state_dict(saved["network"])
            average.load_state_dict(saved["average"])
            for optimizer, each in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(each)
        except (RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{path} was written with another model or optimizer than the config says: {text}"
            ) from None
        state = RunState(**saved["run"])
        self.saved = state.step
        self._keep_metrics_until(state.step)
        logger.info("continuing %s at step %d", self.path, state.step)
        return state

    def roll_back(self) -> None:
        """Leave the folder as its last checkpoint had it; lines on bad batches stay, for whoever looks for them."""
        path = self.path / METRICS
        if path.exists():
            kept = [row for row in read_metrics(path) if row["step"] <= (self.saved or 0) or "bad_batch" in row]
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def _keep_metrics_until(self, step: int) -> None:
        """Drop the lines of steps that will be done again, and a last line cut short by a kill."""
        path = self.path / METRICS
        if self.writes and path.exists():
            before = path.read_bytes()
            after = "".join(json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= step).encode()
            if after != before:
                write_atomically(path, after)


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What changed between two nested configs, a line a key.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c was 2, is 3']
    """
    lines = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key} was {old}, is {new}")
    return lines


def summary_writer(path: Path) -> Any:
    """A TensorBoard writer.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "training.tensorboard: the package tensorboard is missing; pip install 'ribonanzamamba[tensorboard]'"
        ) from None
    return SummaryWriter(str(path))
