"""Training on several GPUs of one machine: speed against one, and the same losses for the same batches.

    torchrun --nproc-per-node 2 benchmarks/scaling.py --out scaling2.jsonl

Speed: the training loop's steps over made tables, batches made ahead by threads, the same work a GPU on one GPU (the
others idle) and on all: with `training.graphs` batches of RECORDED RNAs a GPU, reactivity and structures; without (or
with: --recorded, whose warm-up should see every shape twice), batches of all tasks and of RNAs of 60 to 240 nt, filled
by padded nucleotides. Losses: the same batches on one GPU and
divided among all, without dropout.
Prints JSON lines, from the first process. `--device cpu --tiny` tries the program without GPUs.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from training_memory import GIB, RELEASED, TINY, made_example, step_seconds, where

from ribonanzamamba.data.example import Example
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.training.batches import PASSES, task_batches
from ribonanzamamba.training.config import Config, DataConfig, TrainingConfig
from ribonanzamamba.training.graphs import StepGraphs
from ribonanzamamba.training.optimizer import averaged, build_optimizers, learning_rate_share, set_learning_rate
from ribonanzamamba.training.processes import PARALLEL, Processes, joined
from ribonanzamamba.training.sharding import shard_weights
from ribonanzamamba.training.start import build_network
from ribonanzamamba.training.step import LOGGED, step_seed, train_step

PIECES = 5
"""Parts of the timed steps, whose spread is reported."""
RECORDED = (128, 160)
"""RNAs a GPU, and nucleotides of each."""


def made_tables(count: int, length: int = 0) -> dict[str, list[list[Example]]]:
    """A table a task of RNAs of so many nucleotides (0: 60 to 240)."""
    rng = np.random.default_rng(0)
    names = ("reactivity", "structure", "coordinates")

    def one(task: str, number: int) -> Example:
        others = {name: None for name in names if name != task} | {"reactivity_weight": None}
        others = {"partners" if name == "structure" else name: value for name, value in others.items()}
        if task == "reactivity":
            others.pop("reactivity_weight")
        return replace(made_example(rng, length or int(rng.integers(60, 240)), **others), cluster=number)

    return {task: [[one(task, number) for number in range(count)]] for task in names}


class Steps:
    """Steps of the training loop over made tables."""

    def __init__(self, config: Config, processes: Processes, tables: dict[str, list[list[Example]]]):
        self.config, self.processes, self.number = config, processes, 0
        torch.manual_seed(0)
        self.network: nn.Module = build_network(config).to(processes.device)
        # the seed is the same, so are the weights
        self.average = averaged(self.network, config.training.average_decay)
        self.optimizers = build_optimizers(self.network, config.training)
        if processes.shards:
            shard_weights(self.network, self.average, self.optimizers, processes.device)
        self.rnas = 0
        self.seconds: list[float] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.streams = {
            tasks: task_batches(
                tasks, tables, config.data, np.random.default_rng(k), processes.device,
                processes=processes, workers=config.training.workers,
            )
            for k, tasks in enumerate(PASSES)
            if "coordinates" not in tasks or not config.data.batch_examples
        }  # fmt: skip
        self.graphs = StepGraphs(self.network) if config.training.graphs else None

    def __call__(self) -> Tensor:
        """One step, as `Run.step` does it; its values by LOGGED, on the device."""
        config = self.config
        # the loop asks all processes in every step whether to go on
        self.processes.largest([0.0, 0.0])
        began = time.perf_counter()
        shards = {
            tasks: next(stream)
            for tasks, stream in self.streams.items()
            if "coordinates" not in tasks or self.number % config.data.coordinate_steps == 0
        }
        rate = config.training.learning_rate * learning_rate_share(self.number, 0.0, config.training)
        set_learning_rate(self.optimizers, rate, config.training)
        torch.manual_seed(step_seed(0, self.number, self.processes.rank))
        batches = {tasks: shard.batch for tasks, shard in shards.items()}
        values = train_step(self.network, self.optimizers, batches, config, self.processes, self.graphs, self.average)
        self.shapes |= {tuple(batch.tokens.shape) for batch in batches.values() if batch is not None}
        self.number += 1
        self.seconds.append(time.perf_counter() - began)
        self.rnas += sum(map(len, shards.values()))
        return values


def recorded_config(model: ModelConfig, examples: int, graphs: bool) -> Config:
    """Batches of so many RNAs, recorded steps."""
    data = DataConfig(reactivity=("made",), structure=("made",), batch_examples=examples)
    return Config(model=model, data=data, training=TrainingConfig(graphs=graphs, workers=4))


def config_of(model: ModelConfig, tokens: int, **training) -> Config:
    data = DataConfig(
        reactivity=("made",), structure=("made",), coordinates=("made",), tokens=tokens, coordinate_tokens=tokens // 5
    )
    return Config(model=model, data=data, training=TrainingConfig(**training))


def speed(steps: Steps, warm_up: int, count: int) -> list[tuple[int, float]]:
    """RNAs of the whole batches and seconds, for each of PIECES parts of `count` steps. How long each step took this
    process's host, without waiting for the others', stands in `steps.seconds`."""
    device, speeds = steps.processes.device, []
    for k in range(PIECES + 1):
        steps.processes.wait()
        synchronize(device)
        steps.rnas, began = 0, time.perf_counter()
        for _ in range(count // PIECES if k else warm_up):
            steps()
        if not k:
            steps.seconds.clear()
        synchronize(device)
        if k:
            speeds.append((steps.rnas, time.perf_counter() - began))
    return speeds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def gradient_sum_ms(network: nn.Module, processes: Processes) -> float:
    """Median milliseconds in which the gradients of all parameters are added up, nothing else running; not a number
    where that is part of the backward pass."""
    if processes.shards:
        return float("nan")

    def add() -> None:
        processes.sum_gradients(list(network.parameters()))

    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    add()
    processes.wait()
    seconds = step_seconds(add, 20, processes.device.type)
    network.zero_grad(set_to_none=True)
    return 1000 * statistics.median(seconds)


def measure_speed(config_for: Callable[[int], Config], counts: tuple[int, int], processes: Processes, tables) -> dict:
    """RNAs/s with one process and with all, the config being that of so many; the numbers of the first process."""
    alone: list[tuple[int, float]] = []
    if processes.leads:
        alone = speed(Steps(config_for(1), Processes(processes.device), tables), *counts)
        if processes.device.type == "cuda":
            torch.cuda.empty_cache()
    # the others wait in gloo, without a core and without the GPU
    processes.wait()
    together = Steps(config_for(processes.count), processes, tables)
    if processes.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    all_speeds = speed(together, *counts)
    peak = torch.cuda.max_memory_allocated() / GIB if processes.device.type == "cuda" else float("nan")
    retries = torch.cuda.memory_stats()["num_alloc_retries"] if processes.device.type == "cuda" else 0
    slowest = processes.gather(" ".join(f"{seconds:.3f}" for seconds in sorted(together.seconds)[-5:]))
    adding = gradient_sum_ms(together.network, processes)
    one, every = (
        sum(rnas for rnas, _ in parts) / sum(seconds for _, seconds in parts) if parts else float("nan")
        for parts in (alone, all_speeds)
    )
    return {
        "processes": processes.count,
        "graphs": together.config.training.graphs,
        "rnas_per_second_alone": round(one, 1),
        "alone_parts": [round(rnas / seconds, 1) for rnas, seconds in alone],
        "rnas_per_second": round(every, 1),
        "parts": [round(rnas / seconds, 1) for rnas, seconds in all_speeds],
        "efficiency": round(every / (processes.count * one), 4),
        "gradient_sum_ms": round(adding, 2),
        "memory_gib": round(peak, 2),
        "shapes": len(together.shapes),
        "slowest_steps_of_each_host": slowest,
        "allocator_retries": retries,
    }


def compare_losses(
    model: ModelConfig, tokens: int, steps: int, processes: Processes, tables, *, optimizer: str, bfloat16: bool
) -> dict:
    """Losses and gradient norms of the same batches with one process and with all: the largest relative difference."""
    config = config_of(replace(model, dropout=0.0), tokens, optimizer=optimizer, bfloat16=bfloat16)
    alone = None
    if processes.leads:
        run = Steps(config, Processes(processes.device), tables)
        alone = torch.stack([run() for _ in range(steps)]).cpu()
    processes.wait()
    run = Steps(config, processes, tables)
    together = torch.stack([run() for _ in range(steps)]).cpu()
    row = {"processes": processes.count, "optimizer": optimizer, "bfloat16": bfloat16, "steps": steps}
    if alone is None:
        return row
    columns = LOGGED.index("skipped")
    relative = ((together - alone).abs() / alone.abs().clamp(min=1e-3))[:, :columns]
    # a task that is in no batch of a step has no loss there, for one process as for many
    absent = together.isnan() & alone.isnan()
    relative = torch.where(absent[:, :columns], 0.0, relative.nan_to_num(float("inf")))
    by_name = dict(zip(LOGGED, relative.max(0).values.tolist(), strict=False))
    return row | {
        "gradient_norms_alone": [round(value, 6) for value in alone[:, LOGGED.index("gradient_norm")].tolist()],
        "gradient_norms": [round(value, 6) for value in together[:, LOGGED.index("gradient_norm")].tolist()],
        "largest_relative_difference": {name: float(f"{value:.2g}") for name, value in by_name.items()},
        "in_the_first_step": float(f"{relative[0].max().item():.2g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=20480, help="padded nucleotides of a batch, each GPU")
    parser.add_argument("--warm-up", type=int, default=24, help="steps")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--curve-steps", type=int, default=20)
    parser.add_argument("--recorded", action="store_true", help="record steps over mixed batches too")
    parser.add_argument("--parallel", default="replicate", choices=PARALLEL)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("ribonanzamamba").setLevel(logging.ERROR)
    model, tokens, counts = RELEASED, arguments.tokens, (arguments.warm_up, arguments.steps)
    if arguments.tiny:
        model, tokens, counts = TINY, 2000, (2, PIECES)
    tables = made_tables(24 if arguments.tiny else 1000)
    with joined(arguments.device, arguments.parallel) as processes:
        place = where(processes.device.type)
        began = time.perf_counter()

        def keep(row: dict) -> None:
            row |= {"parallel": arguments.parallel, "after_s": round(time.perf_counter() - began, 1)} | place
            if processes.leads:
                print(json.dumps(row), flush=True)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")

        if processes.leads:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text("")
        if not processes.shards:
            examples, length = (4, 32) if arguments.tiny else RECORDED
            graphs = processes.device.type == "cuda"
            row = measure_speed(
                lambda count: recorded_config(model, examples * count, graphs), counts, processes,
                made_tables(8 * examples, length),
            )  # fmt: skip
            keep({"part": "speed", "examples_each": examples, "length": length} | row)
        row = measure_speed(
            lambda count: config_of(model, tokens * count, workers=4, graphs=arguments.recorded),
            counts, processes, tables,
        )  # fmt: skip
        keep({"part": "speed", "padded_nucleotides_each": tokens} | row)
        for optimizer, bfloat16 in (("adamw", False), ("muon", True)):
            compared = compare_losses(
                model, min(tokens, 8192), arguments.curve_steps, processes, tables,
                optimizer=optimizer, bfloat16=bfloat16,
            )  # fmt: skip
            keep({"part": "losses"} | compared)


if __name__ == "__main__":
    main()
