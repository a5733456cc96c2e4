"""The training loop: batches of every task in each step, one optimizer step, weights averaged, validated and saved.

Everything in a step follows from (seed, step): which examples, which windows of them, which dropout. So a run that was
killed and goes on ends with the same weights as one that was not, and no random state has to be stored.
"""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ribonanzamamba.data.batch import Batch
from ribonanzamamba.data.batch import batches as make_batches
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.training.batches import (
    PASSES,
    batches_used,
    check_teachers,
    task_batches,
    wanted_tasks,
    warm_up_batches,
)
from ribonanzamamba.training.calibration import divide_pair_logits, fit_pair_temperature
from ribonanzamamba.training.config import Config, read_config
from ribonanzamamba.training.display import Display
from ribonanzamamba.training.graphs import StepGraphs
from ribonanzamamba.training.guard import BAD_IN_A_ROW, NonFiniteError, Step, Watch, find_nonfinite
from ribonanzamamba.training.loss import Counts
from ribonanzamamba.training.optimizer import averaged, build_optimizers, learning_rate_share, set_learning_rate
from ribonanzamamba.training.processes import ALONE, Processes, joined
from ribonanzamamba.training.run_folder import RunFolder
from ribonanzamamba.training.sharding import shard_weights, whole_network
from ribonanzamamba.training.signals import Signals, noted_signals
from ribonanzamamba.training.start import build_network, starting_network
from ribonanzamamba.training.step import LOGGED, TERMS, add_gradients, step_seed, task_losses, train_step
from ribonanzamamba.training.stream import Waiting
from ribonanzamamba.training.tables import read_tables
from ribonanzamamba.training.validation import HeldOut, overall, validate

logger = logging.getLogger(__name__)

STOP_FOR_BAD_BATCHES = 1000.0
"""Beside the numbers of signals, which are smaller."""


def train(
    config_path: str | Path,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    build: Callable[[Config], nn.Module] = build_network,
    display: Display | None = None,
) -> Path:
    """Train as the TOML file says; returns the run folder (`runs/<name>` by default). An existing one is continued.

    `build` makes another network than RibonanzaMamba: a module with `config.probes`, `config.to_dict()`, `blocks` and
    `forward(tokens, mask, tasks) -> ModelOutput`. Under `torchrun` each process takes its share of every batch.

    Raises:
        ValueError: a config or tables that cannot be used.
        NonFiniteError: several batches in a row without a finite loss and gradient.
        Terminated, KeyboardInterrupt: a signal; the checkpoint has been written.
        OSError: the disk did not take the last checkpoint.
    """
    began = time.monotonic()
    config = read_config(config_path, overrides)
    path = Path(out) if out is not None else Path("runs") / config.name
    return train_config(config, path, build=build, display=display, began=began)


def train_config(
    config: Config,
    path: Path,
    *,
    build: Callable[[Config], nn.Module] = build_network,
    display: Display | None = None,
    began: float | None = None,
) -> Path:
    """`train` with a config in memory and the run folder `path`; `began` is the moment (monotonic) from which the run's
    minutes count.

    Raises:
        ValueError, NonFiniteError, Terminated, KeyboardInterrupt, OSError: as `train`.
    """
    began = time.monotonic() if began is None else began
    with (
        noted_signals() as signals,
        joined(config.training.device, config.training.parallel) as processes,
        display or Display() as shown,
    ):
        folder = RunFolder(path, config, writes=processes.leads)
        Run(config, folder, processes, signals, shown, build, began).go()
    return folder.path


class Run:
    """A run from its tables to its end."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        processes: Processes,
        signals: Signals,
        display: Display,
        build: Callable[[Config], nn.Module],
        began: float,
    ):
        self.config, self.folder, self.processes = config, folder, processes
        self.signals, self.display, self.build = signals, display, build
        device, settings = processes.device, config.training
        if processes.shards and settings.pass_examples:
            raise ValueError(
                "training.pass_examples: every process needs the same passes, so not with parallel = shard"
            )
        if settings.graphs and processes.shards:
            raise ValueError("training.graphs: a recorded pass holds whole weights, so not with parallel = shard")
        self.network = starting_network(config, build).to(device)
        self.average = averaged(self.network, settings.average_decay)
        self.optimizers = build_optimizers(self.network, settings)
        self.state = folder.restore(self.network, self.average, self.optimizers, device)
        processes.share_weights(self.network)
        if settings.checkpointing != "off":
            self.network.checkpoint_activations(settings.checkpointing)
        if settings.fuse:
            self.network.fuse()
        if processes.shards:
            shard_weights(self.network, self.average, self.optimizers, device)
        self.graphs = StepGraphs(self.network) if settings.graphs and device.type == "cuda" else None
        training, held_out = read_tables(config.data, tuple(self.network.config.probes))
        check_teachers(config, self.network, training)
        self.training = training
        self.held_out = held_out.sample(settings.valid_examples)
        self.waiting = Waiting(device)
        self.streams = {
            wanted: self.waiting.measured(
                task_batches(
                    wanted,
                    training,
                    config.data,
                    np.random.default_rng([settings.seed, k]),
                    device,
                    processes=processes,
                    skip=batches_used(wanted, self.state.step, config.data),
                    workers=settings.workers,
                )
            )
            for k, tasks in enumerate(PASSES)
            if (wanted := wanted_tasks(tasks, training, config))
        }
        if not self.streams:
            raise ValueError("data: expected at least one table with a training example, got none")
        self.watch = Watch()
        self.bad: Step | None = None
        """The last step without a finite loss and gradient."""
        self.clock = began - self.state.seconds
        """The moment the run would have begun, had it never been interrupted."""
        self.last_save = self.last_log = time.monotonic()
        logger.info(
            "%d parameters, %d of them trained, %s, training examples %s",
            sum(parameter.numel() for parameter in self.network.parameters()),
            sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad),
            f"{processes.count} x {device}" if processes.count > 1 else device,
            {task: sum(map(len, tables)) for task, tables in training.items()},
        )

    def go(self) -> None:
        """Steps until the run is over or ended."""
        settings, state = self.config.training, self.state
        if settings.steps_only and state.finished != state.step:
            self.warm_up()
        while True:
            progress, stop, late = self.agree()
            if stop == STOP_FOR_BAD_BATCHES:
                self.give_up()
            if stop:
                self.end_by_signal(int(stop))
            if progress >= 1:
                break
            self.step(progress)
            if state.step % settings.log_steps == 0:
                self.log(progress)
            due = settings.save_steps and state.step % settings.save_steps == 0
            if state.step % settings.valid_steps == 0 and state.step < settings.steps:
                self.validate(self.averaged_network())
                self.save()
            elif due or late:
                self.save()
        if state.finished != state.step:
            self.finish(progress)

    def warm_up(self) -> None:
        """A pass over a batch of every length that will come, which changes no weight: kernels are compiled and tuned
        for it. The run's time begins (or goes on) after it."""
        began = time.monotonic()
        device = self.processes.device
        for tasks, batch in warm_up_batches(self.training, self.config):
            self.network.train()
            for part in batch.to(device).parts(self.config.training.pass_examples):
                # the second of a shape is recorded
                for _ in range(1 if self.graphs is None else 2):
                    add_gradients(self.network, tasks, part, self.config, Counts.of(part), self.processes, self.graphs)
            self.network.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.monotonic()
        self.folder.append({"step": self.state.step, "warm_up_seconds": round(now - began, 2)})
        self.clock, self.last_log = now - self.state.seconds, now

    def agree(self) -> tuple[float, float, float]:
        """Share of the run that is over, why to stop (0: no reason), and whether the next step is to be followed by a
        checkpoint because of the time, the same for all processes."""
        settings = self.config.training
        progress = self.state.step / settings.steps
        if settings.minutes and self.processes.leads:
            progress = max(progress, (time.monotonic() - self.clock) / 60 / settings.minutes)
        stop = float(self.signals.number)
        if self.state.bad_in_a_row >= BAD_IN_A_ROW:
            stop = STOP_FOR_BAD_BATCHES
        late = settings.save_minutes and time.monotonic() - self.last_save > 60 * settings.save_minutes
        progress, stop, late = self.processes.largest([progress, stop, float(late)])
        return progress, stop, late

    def step(self, progress: float) -> None:
        config, state = self.config, self.state
        set_learning_rate(self.optimizers, self.rate(progress), config.training)
        shards = {
            tasks: next(stream)
            for tasks, stream in self.streams.items()
            if "coordinates" not in tasks or state.step % config.data.coordinate_steps == 0
        }
        torch.manual_seed(step_seed(config.training.seed, state.step, self.processes.rank))
        batches = {tasks: shard.batch for tasks, shard in shards.items()}
        values = train_step(self.network, self.optimizers, batches, config, self.processes, self.graphs, self.average)
        self.waiting.mark()
        state.step += 1
        state.rnas += sum(map(len, shards.values()))
        self.watch.add(state.step, shards, values)
        self.take_note()
        self.display.advance(state.step, config.training.steps, progress)

    def rate(self, progress: float) -> float:
        """AdamW's learning rate of the next step."""
        settings = self.config.training
        return settings.learning_rate * learning_rate_share(self.state.step, progress, settings)

    def take_note(self, wait: bool = False) -> None:
        """Read the values of the steps that the device has finished; with `wait`, of all."""
        for done in self.watch.finished(wait):
            self.state.rows.append(done.values)
            if done.values[LOGGED.index("skipped")]:
                self.bad = done
                self.state.bad_in_a_row += 1
                self.folder.log_bad_batch(
                    done.number, {"+".join(tasks): shard.ids for tasks, shard in done.shards.items()}
                )
            else:
                self.state.bad_in_a_row = 0

    def log(self, progress: float) -> None:
        state = self.state
        # the only place where the host waits for the device between two validations
        self.take_note(wait=True)
        now = time.monotonic()
        row = dict(zip(LOGGED, torch.tensor(state.rows, dtype=torch.float64).nanmean(0).tolist(), strict=True))
        skipped = round(row.pop("skipped") * len(state.rows))
        seconds = max(now - self.last_log, 1e-9)
        # NaN: the term was in no batch
        row = self.folder.log_step(
            state.step,
            now - self.clock,
            self.rate(progress),
            row,
            state.rnas / seconds,
            self.waiting.seconds / seconds,
            skipped,
        )
        self.display.show(row)
        state.rows, state.rnas, self.last_log, self.waiting.seconds = [], 0, now, 0.0

    def validate(self, network: nn.Module) -> None:
        """Score and release a network: the first process does, the others wait."""
        began = time.monotonic()
        if self.processes.leads:
            scores = validate(network, self.held_out, self.processes.device, self.config.training.bfloat16)
            self.folder.log_scores(self.state.step, scores)
            # without anything held out the newest weights are the best known
            score = overall(scores) if scores else self.state.best
            self.folder.release(network, best=score > self.state.best or not scores)
            self.state.best = max(self.state.best, score)
        self.processes.wait()
        # the speed in the log is that of training
        self.last_log += time.monotonic() - began
        if self.config.training.steps_only:
            self.clock += time.monotonic() - began

    def averaged_network(self) -> nn.Module:
        """The averaged weights in a network that this process has whole; all processes call it."""
        return self.undivided(self.average.module)

    def undivided(self, network: nn.Module) -> nn.Module:
        """A network that this process has whole, for what it does alone; all processes call it."""
        if not self.processes.shards:
            return network
        return whole_network(network, lambda: self.build(self.config), self.processes.device)

    def save(self) -> bool:
        self.take_note(wait=True)
        self.state.seconds = time.monotonic() - self.clock
        self.last_save = time.monotonic()
        return self.folder.save(self.state, self.network, self.average, self.optimizers)

    def finish(self, progress: float) -> None:
        if self.state.rows or self.watch.waiting:
            self.log(progress)
        released = self.averaged_network()
        if self.held_out.structure and self.processes.leads:
            released = calibrated(released, self.held_out, self.processes.device)
        self.validate(released)
        self.state.finished = self.state.step
        if not self.save():
            raise OSError(f"{self.folder.path}: the last checkpoint could not be written; run the same command again")

    def end_by_signal(self, number: int) -> None:
        self.signals.number = number
        if self.save() and self.processes.leads:
            logger.info("signal %d: checkpoint of step %d written; the same command continues", number, self.state.step)
        self.processes.wait()
        self.signals.leave()

    def give_up(self) -> None:
        """Say where the values stopped being finite, and leave with the last good checkpoint as it is."""
        self.take_note(wait=True)
        place = self.find_nonfinite()
        places = [place for place in self.processes.gather(place) if place]
        where = f"first non-finite value: {places[0]}" if places else "a second pass over the last of them was finite"
        ids = ", ".join(name for shard in self.bad.shards.values() for name in shard.ids[:8])
        kept = "no checkpoint yet" if self.folder.saved is None else f"the checkpoint of step {self.folder.saved}"
        message = (
            f"{BAD_IN_A_ROW} batches in a row without a finite loss and gradient, the last in step {self.bad.number} "
            f"({ids}, ...); {where}. No weight was changed by them. The run is back at {kept}"
        )
        logger.error("%s", message)
        if self.processes.leads:
            self.folder.roll_back()
        raise NonFiniteError(message)

    def find_nonfinite(self) -> str:
        """The first non-finite value of the last bad step's second pass, over this process's part of it."""
        if self.bad is None:
            return ""
        network = self.undivided(self.network).train()
        torch.manual_seed(step_seed(self.config.training.seed, self.bad.number - 1, self.processes.rank))
        for tasks, shard in self.bad.shards.items():
            if shard.batch is None:
                continue

            counts = Counts.of(shard.batch)
            for part in shard.batch.parts(self.config.training.pass_examples):

                def backward(
                    tasks: tuple[str, ...] = tasks, batch: Batch = part, counts: Counts = counts
                ) -> dict[str, Tensor]:
                    terms = task_losses(network, tasks, batch, self.config, counts, ALONE)
                    if (total := terms.total(self.config.loss)) is not None:
                        total.backward()
                    return {name: term.detach() for name in TERMS if (term := getattr(terms, name)) is not None}

                if place := find_nonfinite(network, backward):
                    return place
        return ""


def calibrated(network: RibonanzaMamba, held_out: HeldOut, device: torch.device) -> RibonanzaMamba:
    """A copy whose pair probabilities have the temperature that fits the held-out structures, in the weights."""
    # a copy: the average itself goes on where the run is continued
    network = copy.deepcopy(network)
    held_out_batches = [
        batch.to(device)
        for batch in make_batches(held_out.structure, max_tokens=8192, max_cells=2**20, max_examples=256)
    ]
    temperature = fit_pair_temperature(network, held_out_batches)
    divide_pair_logits(network, temperature)
    logger.info("pair logits divided by %.3f", temperature)
    return network
