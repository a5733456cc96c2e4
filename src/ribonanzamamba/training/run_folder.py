"""The folder of a training run: resolved config, versions, log, metrics, weights and the state to continue from."""

import json
import logging
import math
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from ribonanzamamba.model.checkpoint import save_checkpoint
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.training.config import Config

logger = logging.getLogger(__name__)


class RunFolder:
    """Files: config.json, versions.json, run.log, metrics.jsonl, checkpoint/ (averaged
    weights) and state.pt (to continue)."""

    def __init__(self, path: Path, config: Config):
        self.path = path
        self.config = config
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
        if torch.cuda.is_available():
            versions["gpu"] = torch.cuda.get_device_name()
        (path / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
        handler = logging.FileHandler(path / "run.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        package = logging.getLogger("ribonanzamamba")
        for old in [each for each in package.handlers if isinstance(each, logging.FileHandler)]:
            package.removeHandler(old)
            old.close()
        package.addHandler(handler)
        package.setLevel(logging.INFO)

    def log_step(self, step: int, seconds: float, rate: float, losses: dict[str, float], speed: float) -> None:
        row = {"step": step, "seconds": round(seconds, 2), "learning_rate": rate, "rnas_per_second": round(speed, 1)}
        # NaN is no JSON: a term that was in no batch is left out
        row |= {f"loss/{name}": round(value, 5) for name, value in losses.items() if not math.isnan(value)}
        if torch.cuda.is_available():
            row["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        self.append(row)

    def log_scores(self, step: int, scores: dict[str, float]) -> None:
        self.append({"step": step} | {f"valid/{name}": round(value, 5) for name, value in scores.items()})

    def append(self, row: dict[str, Any]) -> None:
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        logger.info(" ".join(f"{key}={value:.5g}" for key, value in row.items()))

    def save(
        self,
        step: int,
        released: RibonanzaMamba,
        network: RibonanzaMamba,
        average: AveragedModel,
        optimizers: list[torch.optim.Optimizer],
    ) -> None:
        """The network to use as a checkpoint, and everything needed to continue."""
        save_checkpoint(released, self.path / "checkpoint", name=self.config.name)
        state = {
            "step": step,
            "network": network.state_dict(),
            "average": average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        torch.save(state, self.path / "state.pt.new")
        os.replace(self.path / "state.pt.new", self.path / "state.pt")

    def restore(
        self,
        network: RibonanzaMamba,
        average: AveragedModel,
        optimizers: list[torch.optim.Optimizer],
        device: torch.device,
    ) -> int:
        """Load what `save` wrote, if anything; returns the step to continue from."""
        if not (self.path / "state.pt").is_file():
            return 0
        state = torch.load(self.path / "state.pt", map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        logger.info("continuing %s at step %d", self.path, state["step"])
        return state["step"]
