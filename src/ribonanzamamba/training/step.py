"""One optimizer step: forward and backward passes over a batch of each pass, the gradients' sum over all processes, and
the step, which a bad batch does not reach."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ribonanzamamba.data.batch import Batch, no_examples
from ribonanzamamba.training.config import Config
from ribonanzamamba.training.graphs import StepGraphs
from ribonanzamamba.training.loss import READ, TERMS, Counts, Losses, losses, with_zeros
from ribonanzamamba.training.optimizer import AveragedWeights
from ribonanzamamba.training.processes import ALONE, Processes
from ribonanzamamba.training.sharding import replicated, whole
from ribonanzamamba.training.validation import prior_of

LOGGED = (*TERMS, "gradient_norm", "skipped")
"""What `train_step` returns; "skipped" is 1 where a loss or gradient was not finite and no weight was changed."""


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of everything random on the device in one step of one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def train_step(
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batches: Mapping[tuple[str, ...], Batch | None],
    config: Config,
    processes: Processes = ALONE,
    graphs: StepGraphs | None = None,
    average: AveragedWeights | None = None,
) -> Tensor:
    """One optimizer step over one batch of each pass; returns the values named by LOGGED, on the device.

    Each of several processes gives its part of the batches (None: it has none) and gets the sum's gradient and values.
    Where a loss or the gradient is not finite, no weight and no optimizer's state is changed. `average` follows the
    weights. With `graphs`, passes and the step's end are recorded in them and played back.
    """
    network.train()
    device = next(network.parameters()).device
    terms = torch.full((len(TERMS),), float("nan"), device=device)
    bad = torch.zeros((), device=device)
    for tasks, batch in batches.items():
        counts = whole_counts(batch, processes)
        for part in passes(batch, config, processes):
            row, its_bad = add_gradients(network, tasks, part, config, counts, processes, graphs)
            terms, bad = torch.where(terms.isnan(), row, terms + row.nan_to_num(0)), bad + its_bad
    parameters = list(network.parameters())
    processes.sum_gradients(parameters)
    values = sum_values(terms, bad, processes)

    def end(values: Tensor) -> Tensor:
        return end_step(network, optimizers, average, values, config)

    row = end(values) if graphs is None else graphs.end_step(values, optimizers, end)
    if average is not None:
        average.n_averaged += 1
    for parameter in parameters:
        parameter.grad = None
    return row


def end_step(
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: AveragedWeights | None,
    values: Tensor,
    config: Config,
) -> Tensor:
    """What follows once the gradients are there: the norm, clipping, the optimizers, the average. `values` are the
    TERMS and the count of bad passes; returns the values named by LOGGED. Nothing in it waits for the device."""
    parameters = list(network.parameters())
    terms, bad = values[:-1], values[-1]
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, config.training.clip_norm)).to(values.device)
    skipped = ((bad > 0) | ~norm.isfinite()).float()
    for optimizer in optimizers:
        optimizer.found_inf = replicated(skipped, parameters)
        optimizer.step()
    if average is not None:
        average.follow(network)
    row = torch.cat([terms, norm.float()[None]])
    return torch.cat([torch.where(skipped > 0, float("nan"), row), skipped[None]])


def add_gradients(
    network: nn.Module,
    tasks: tuple[str, ...],
    batch: Batch,
    config: Config,
    counts: Counts,
    processes: Processes = ALONE,
    graphs: StepGraphs | None = None,
) -> tuple[Tensor, Tensor]:
    """Forward and backward pass over a part of a batch, its gradients added to those of the parameters; returns the
    TERMS, NaN where the batch has nothing of the kind, and 1 where they are not finite."""

    def forward(batch: Batch, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        terms = task_losses(network, tasks, batch, config, Counts.from_tensor(counts), processes)
        values = [getattr(terms, name) for name in TERMS]
        device = batch.tokens.device
        nothing = torch.full((), float("nan"), device=device)
        row = torch.stack([nothing if value is None else value.detach().float() for value in values])
        total = terms.total(config.loss)
        bad = torch.zeros((), device=device) if total is None else (~total.detach().isfinite()).float()
        return torch.cat([row, bad[None]]), total if total is not None and total.requires_grad else None

    if graphs is not None:
        row = graphs.add_gradients(tasks, batch, counts.to_tensor(), forward)
    else:
        row, total = forward(batch, counts.to_tensor())
        if total is not None:
            processes.backward(total)
    return row[:-1], row[-1]


def whole_counts(batch: Batch | None, processes: Processes) -> Counts:
    """The counts of a batch of which each process has a part, or none."""
    device = processes.device if batch is None else batch.tokens.device
    counts = torch.zeros(4, device=device) if batch is None else Counts.of(batch).to_tensor()
    return Counts.from_tensor(processes.sum(counts))


def passes(batch: Batch | None, config: Config, processes: Processes) -> Iterable[Batch]:
    """The parts of a process's batch, one after the other on the device."""
    if batch is not None:
        return batch.parts(config.training.pass_examples)
    # where weights are divided, the others wait for this process's part of them: a pass over nothing
    return [no_examples(config.data.pad_multiple).to(processes.device)] if processes.shards else []


def task_losses(
    network: nn.Module, tasks: tuple[str, ...], batch: Batch, config: Config, counts: Counts, processes: Processes
) -> Losses:
    """Forward pass over a part of a batch; the terms are its part of the whole batch's, of which the counts are."""
    device = batch.tokens.device
    with torch.autocast(device.type, torch.bfloat16, enabled=config.training.bfloat16 and device.type == "cuda"):
        output = network(batch.tokens, batch.mask, tasks, *prior_of(network, batch))
    terms = losses(output, batch, counts, config.loss)
    if processes.shards:
        # divided gradients are added up in the backward pass: every process needs those that any has
        present = processes.largest([float(getattr(terms, name) is not None) for name in READ])
        terms = with_zeros([name for name, has in zip(READ, present, strict=True) if has], terms, output)
    return terms


def sum_values(values: Tensor, bad: Tensor, processes: Processes) -> Tensor:
    """Sum over all processes of each value, NaN where none has it, and behind them that of the count of bad passes."""
    if processes.count == 1:
        return torch.cat([values, bad[None]])
    present = ~values.isnan()
    total = processes.sum(torch.cat([values.nan_to_num(0), bad[None], present.float()]))
    count = len(values)
    return torch.cat([torch.where(total[count + 1 :] > 0, total[:count], float("nan")), total[count, None]])
