"""The training loop: batches of every task in each step, one optimizer step, weights averaged, validated and saved."""

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ribonanzamamba.data.batch import Batch, collate, prefetch
from ribonanzamamba.data.batch import batches as make_batches
from ribonanzamamba.data.example import Example, drop_priors
from ribonanzamamba.data.splits import cluster_weights, sample_batches
from ribonanzamamba.model.checkpoint import load_checkpoint
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.training.calibration import divide_pair_logits, fit_pair_temperature
from ribonanzamamba.training.config import Config, DataConfig, read_config
from ribonanzamamba.training.loss import Losses, losses
from ribonanzamamba.training.optimizer import averaged, build_optimizers, learning_rate_share, set_learning_rate
from ribonanzamamba.training.run_folder import RunFolder
from ribonanzamamba.training.tables import read_tables
from ribonanzamamba.training.validation import HeldOut, prior_of, validate

logger = logging.getLogger(__name__)

PASSES = (("reactivity", "structure"), ("coordinates",))
"""Tasks that share a batch, and so a pass through the trunk: short chains with coordinates need a pass of their own."""


def train(config_path: str | Path, out: str | Path | None = None, overrides: Sequence[str] = ()) -> Path:
    """Train as the TOML file says; returns the run folder (`runs/<name>` by default). An existing one is continued."""
    began = time.monotonic()
    config = read_config(config_path, overrides)
    folder = RunFolder(Path(out) if out is not None else Path("runs") / config.name, config)
    device = torch.device(pick_device(config.training.device))
    torch.manual_seed(config.training.seed)
    network = RibonanzaMamba(config.model).to(device)
    if config.training.start_from:
        start_weights(network, config.training.start_from)
    average = averaged(network, config.training.average_decay)
    optimizers = build_optimizers(network, config.training)
    start = folder.restore(network, average, optimizers, device)
    if config.training.fuse:
        network.fuse()
    training, held_out = read_tables(config.data)
    held_out = held_out.sample(config.training.valid_examples)
    streams = {
        tasks: task_batches(
            tasks, training, config.data, np.random.default_rng([config.training.seed, start, k]), device
        )
        for k, tasks in enumerate(PASSES)
        if any(training[task] for task in tasks)
    }
    logger.info(
        "%d parameters, %s, training examples %s",
        sum(parameter.numel() for parameter in network.parameters()),
        device,
        {task: sum(map(len, tables)) for task, tables in training.items()},
    )
    recent: list[Tensor] = []
    last = time.monotonic()
    rnas = 0
    for step in range(start, config.training.steps):
        progress = step / config.training.steps
        if config.training.minutes:
            progress = max(progress, (time.monotonic() - began) / 60 / config.training.minutes)
        rate = config.training.learning_rate * learning_rate_share(step, progress, config.training)
        set_learning_rate(optimizers, rate, config.training)
        batches = {
            tasks: next(stream)
            for tasks, stream in streams.items()
            if "coordinates" not in tasks or step % config.data.coordinate_steps == 0
        }
        rnas += sum(map(len, batches.values()))
        recent.append(train_step(network, optimizers, batches, config))
        average.update_parameters(network)
        done = step + 1
        over = done == config.training.steps or progress >= 1
        if done % config.training.log_steps == 0 or over:
            now = time.monotonic()
            # the only synchronisation with the device between two log lines; NaN: the term was in no batch
            row = torch.stack(recent).nanmean(0).tolist()
            speed = rnas / (now - last)
            folder.log_step(done, now - began, rate, dict(zip(LOGGED, row, strict=True)), speed)
            recent, rnas, last = [], 0, now
        if done % config.training.valid_steps == 0 or over:
            released = average.module
            if over and held_out.structure:
                released = calibrated(released, held_out, device)
            folder.save(done, released, network, average, optimizers)
            folder.log_scores(done, validate(released, held_out, device, config.training.bfloat16))
        if over:
            break
    return folder.path


LOGGED = ("reactivity", "reactivity_error", "structure", "coordinates", "gradient_norm")


def train_step(
    network: RibonanzaMamba,
    optimizers: list[torch.optim.Optimizer],
    batches: dict[tuple[str, ...], Batch],
    config: Config,
) -> Tensor:
    """One optimizer step over one batch of each pass; returns the values named by LOGGED, on the device."""
    network.train()
    values = dict.fromkeys(LOGGED, torch.full((), float("nan"), device=next(network.parameters()).device))
    for tasks, batch in batches.items():
        device = batch.tokens.device.type
        with torch.autocast(device, torch.bfloat16, enabled=config.training.bfloat16 and device == "cuda"):
            output = network(batch.tokens, batch.mask, tasks, *prior_of(network, batch))
        terms: Losses = losses(output, batch)
        terms.total(config.loss).backward()
        for name in LOGGED[:-1]:
            if (term := getattr(terms, name)) is not None:
                values[name] = term.detach()
    values["gradient_norm"] = torch.nn.utils.clip_grad_norm_(network.parameters(), config.training.clip_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.stack([values[name].float() for name in LOGGED])


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


def task_batches(
    tasks: tuple[str, ...],
    training: dict[str, list[list[Example]]],
    config: DataConfig,
    rng: np.random.Generator,
    device: torch.device,
) -> Iterator[Batch]:
    """Endless batches of the examples of some tasks on the device, collated ahead by a thread."""
    settings = {
        "reactivity": (config.reactivity_share, config.reactivity_shares, config.reactivity_cluster_power),
        "structure": (1 - config.reactivity_share, config.structure_shares, config.structure_cluster_power),
        "coordinates": (1.0, (), config.coordinate_cluster_power),
    }
    examples, weights = [], []
    for task in tasks:
        tables = training[task]
        share, shares, power = settings[task]
        if shares and len(shares) != len(tables):
            raise ValueError(f"data.{task}_shares: expected {len(tables)} values, one a table, got {len(shares)}")
        together = [example for table in tables for example in table]
        if shares:
            parts = zip(shares, tables, strict=True)
            weight = np.concatenate([part * cluster_weights(table, power) for part, table in parts])
        else:
            weight = cluster_weights(together, power)
        examples += together
        weights.append(share * weight / max(weight.sum(), 1e-12))
    alone = "coordinates" in tasks
    tokens = config.coordinate_tokens if alone else config.tokens
    weight = np.concatenate(weights)
    drawn = sample_batches(
        examples,
        weights=weight / weight.sum(),
        max_tokens=tokens,
        # a batch of long RNAs has as many pair cells as one of 160 nt
        max_cells=tokens * 160,
        max_examples=1024,
        max_length=config.coordinate_max_length if alone else config.max_length,
        rng=rng,
        multiple=config.pad_multiple,
    )
    # a generator of its own: which priors are dropped changes nothing in what is drawn
    dropping = rng.spawn(1)[0]
    ahead = prefetch(
        collate(drop_priors(batch, config.prior_dropout, dropping), multiple=config.pad_multiple) for batch in drawn
    )
    return (batch.to(device, non_blocking=True) for batch in ahead)


def start_weights(network: RibonanzaMamba, checkpoint: str) -> None:
    """Give the network the weights of a checkpoint, which may lack the prior's: these stay as they are, zero.

    Raises:
        ValueError: weights of another network.
    """
    result = network.load_state_dict(load_checkpoint(checkpoint).network.state_dict(), strict=False)
    missing = [name for name in result.missing_keys if not name.startswith("prior.")]
    if missing or result.unexpected_keys:
        names = [*missing, *result.unexpected_keys][:5]
        raise ValueError(f"training.start_from: {checkpoint}: {names} are in one network but not the other")


def pick_device(name: str) -> str:
    """The device of a setting: "auto" is a GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
