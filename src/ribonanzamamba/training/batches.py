"""Which batches a run sees: the tasks that share a pass, examples drawn and varied, and one batch of every length for
the start. What comes out follows from seeds and numbers of batches alone."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from ribonanzamamba.data.batch import Batch, collate, prefetch
from ribonanzamamba.data.example import Example, crop, reverse_some, withhold_priors
from ribonanzamamba.data.splits import cluster_weights, epoch_batches, padded_length, sample_batches
from ribonanzamamba.training.config import Config, DataConfig
from ribonanzamamba.training.guard import Shard
from ribonanzamamba.training.processes import ALONE, Processes
from ribonanzamamba.training.stream import in_threads

PASSES = (("reactivity", "structure"), ("coordinates",))
"""Tasks that share a batch, and so a pass through the trunk: short chains with coordinates need a pass of their own."""
MOST_LENGTHS = 16
"""Lengths for which kernels are compiled before the first step."""


def check_teachers(config: Config, network: nn.Module, training: Mapping[str, list[list[Example]]]) -> None:
    """Nothing, if base pairs are not to be taught, or can be.

    Raises:
        ValueError: the network does not predict any, no prior is ever withheld, or there are sequences alone, which
            nothing else is for.
    """
    alone = bool(config.data.unlabelled) or any(training["unlabelled"])
    if alone and not config.loss.taught_pairs:
        raise ValueError("data.unlabelled: expected loss.taught_pairs above 0: else sequences alone teach nothing")
    if not config.loss.taught_pairs:
        return
    if "structure" not in getattr(network.config, "tasks", ()):
        raise ValueError("loss.taught_pairs: expected a network with the task structure in model.tasks")
    if not config.data.prior_dropout and not alone:
        raise ValueError("loss.taught_pairs: expected data.prior_dropout above 0: withheld priors are what teaches")
    examples = (example for tables in training.values() for table in tables for example in table)
    if not any(example.prior is not None for example in examples):
        raise ValueError("loss.taught_pairs: expected data.store with priors (`prepare --priors`), got none")
    if alone and not any(training["unlabelled"]):
        raise ValueError("data.unlabelled: expected sequences with a prior (`prepare --priors`), got none")


def kinds_of(tasks: tuple[str, ...], training: Mapping[str, list[list[Example]]]) -> tuple[str, ...]:
    """The kinds of examples that a pass over these tasks reads: theirs, and sequences alone where it predicts pairs."""
    return (*tasks, "unlabelled") if "structure" in tasks and any(training["unlabelled"]) else tasks


def wanted_tasks(
    tasks: tuple[str, ...], training: Mapping[str, list[list[Example]]], config: Config
) -> tuple[str, ...]:
    """Of the tasks of a pass those that something is there to learn for: their heads alone are run. None, if no example
    is for any of them."""
    measured = [task for task in tasks if any(training[task])]
    if config.loss.taught_pairs and (measured or any(training["unlabelled"])) and "structure" in tasks:
        measured.append("structure")
    return tuple(task for task in tasks if task in measured)


def batches_used(tasks: tuple[str, ...], step: int, config: DataConfig) -> int:
    """Batches of these tasks that the first steps of a run take."""
    return -(-step // config.coordinate_steps) if "coordinates" in tasks else step


def task_batches(
    tasks: tuple[str, ...],
    training: dict[str, list[list[Example]]],
    config: DataConfig,
    rng: np.random.Generator,
    device: torch.device,
    *,
    processes: Processes = ALONE,
    skip: int = 0,
    workers: int = 1,
) -> Iterator[Shard]:
    """Endless batches of the examples of some tasks on the device, made ahead by threads.

    Each process draws the same batches and takes its share of each; the first `skip` are left out: a run that goes on
    at its place has used them.
    """
    kinds = kinds_of(tasks, training)
    # of what the two kinds of measurements share
    rest = 1 - config.unlabelled_share if "unlabelled" in kinds else 1.0
    settings = {
        "reactivity": (rest * config.reactivity_share, config.reactivity_shares, config.reactivity_cluster_power),
        "structure": (rest * (1 - config.reactivity_share), config.structure_shares, config.structure_cluster_power),
        "coordinates": (1.0, (), config.coordinate_cluster_power),
        "unlabelled": (config.unlabelled_share, (), 0.0),
    }
    examples, weights = [], []
    for task in kinds:
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
    max_length = config.coordinate_max_length if alone else config.max_length
    if config.batch_examples and not alone:
        drawn = epoch_batches(examples, batch_examples=config.batch_examples, rng=rng, max_length=max_length, skip=skip)
    else:
        weight = np.concatenate(weights)
        drawn = sample_batches(
            examples,
            weights=weight / weight.sum(),
            max_tokens=tokens,
            # a batch of long RNAs has as many pair cells as one of 160 nt
            max_cells=tokens * 160,
            max_examples=1024,
            max_length=max_length,
            rng=rng,
            multiple=config.pad_multiple,
            skip=skip,
        )
    # a generator for each batch, of its number: nothing in what is drawn changes, and a continued run varies it alike
    root = int(rng.spawn(1)[0].integers(2**63))
    reversed_share = 0.0 if alone else config.reverse_share

    def vary(batch: list[Example], number: int) -> list[Example]:
        rng = np.random.default_rng([root, number])
        batch = withhold_priors(batch, config.prior_dropout, rng)
        return reverse_some(batch, reversed_share, rng) if reversed_share else batch

    drawn = (vary(batch, number) for number, batch in enumerate(drawn, start=skip))

    def make(batch: list[Example]) -> Shard:
        mine = batch[processes.rank :: processes.count]
        made = collate(mine, multiple=config.pad_multiple) if mine else None
        if made is not None and device.type == "cuda":
            made = made.pin_memory()
        return Shard(tuple(example.id for example in batch), made)

    ahead = in_threads(make, prefetch(drawn), workers)
    return (
        Shard(shard.ids, None if shard.batch is None else shard.batch.to(device, non_blocking=True)) for shard in ahead
    )


def warm_up_batches(
    training: Mapping[str, list[list[Example]]], config: Config
) -> Iterator[tuple[tuple[str, ...], Batch]]:
    """A batch of `data.batch_examples` of every padded length that the examples of the first pass have, the longest
    first, so that memory is asked for once; nothing without fixed batches.

    More than MOST_LENGTHS are thinned out evenly: kernels that serve all lengths are compiled at the first of them.
    """
    data = config.data
    tasks = wanted_tasks(PASSES[0], training, config)
    examples = [example for kind in kinds_of(tasks, training) for table in training[kind] for example in table]
    if not data.batch_examples or not examples:
        return
    by_length: dict[int, Example] = {}
    for example in examples:
        cropped = crop(example, 0, min(example.length, data.max_length))
        by_length.setdefault(padded_length(cropped.length, data.pad_multiple), cropped)
    lengths = sorted(by_length, reverse=True)
    for length in lengths[:: -(-len(lengths) // MOST_LENGTHS)]:
        yield tasks, collate([by_length[length]] * data.batch_examples, multiple=data.pad_multiple)
