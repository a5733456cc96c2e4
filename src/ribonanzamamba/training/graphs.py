"""Training steps as CUDA graphs: a pass, recorded once for each shape of batch, and a step's end, each then started by
one call.

A pass of the released network is some thousand kernels, most of them short, and the end of a step another thousand: the
host needs longer to start them one by one than the GPU to run them, whatever the batch. Played back, the same kernels
follow each other without the host.

The numbers are the same: the same kernels in the same order, with the random numbers of the seed that is set before the
pass. What a graph cannot hold is refused by PyTorch while it is recorded: the forward pass may not read values from the
device nor copy from ordinary host memory.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ribonanzamamba.data.batch import Batch
from ribonanzamamba.training.optimizer import device_rates, groups, read_from

logger = logging.getLogger(__name__)

MOST_GRAPHS = 64
"""Graphs kept; batches of further shapes run without. Each holds some megabytes of the device for its kernels'
arguments; the activations of all are in the same memory."""

Forward = Callable[[Batch, Tensor], tuple[Tensor, Tensor | None]]
"""Values, and the loss whose gradient is wanted (None: there is none), of a batch and its counts."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """A pass on the device, and where it reads and writes."""

    replay: Callable[[], None]
    """Runs it on the current stream."""
    batch: Batch
    counts: Tensor
    values: Tensor
    used: tuple[int, ...]
    """Numbers of the parameters that get a gradient."""


@dataclass(frozen=True, eq=False)
class RecordedEnd:
    """The end of a step on the device, and where it reads and writes; gradients it reads from `StepGraphs.sums`."""

    replay: Callable[[], None]
    values: Tensor
    rates: list[Tensor]
    row: Tensor


class StepGraphs:
    """The recorded passes of one network over batches of the shapes that came so far, and the ends of its steps.

    The first batch of a shape runs as ever (kernels are compiled and loaded by it), the second is recorded, and all
    from the second are played back; so does the end of a step, for each set of parameters that have a gradient then.
    One process, one device, the network's parameters and the optimizers' states where they were: what moves them
    (`.to`, sharding, loading a checkpoint) has to come before.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        """Where the graphs add the gradient of each parameter."""
        self.recorded: dict[Hashable, Recorded] = {}
        self.ends: dict[tuple[int, ...], RecordedEnd | None] = {}
        """By the numbers of the parameters with a gradient; None: it came once, and made the optimizers' states."""
        self.seen: set[Hashable] = set()
        """Shapes that came with something to minimise."""
        self.full = False
        """Whether a shape came beyond MOST_GRAPHS."""
        self.pool: tuple[int, int] | None = None

    def add_gradients(self, tasks: tuple[str, ...], batch: Batch, counts: Tensor, forward: Forward) -> Tensor:
        """The values of `forward`, the gradient of its loss added to that of the parameters. `forward` has to be the
        same function for the same `tasks`, shapes and mode of the network."""
        key = tasks, batch.shapes(), self.network.training
        if key in self.seen and key not in self.recorded and self.has_room():
            self.recorded[key] = self.record(batch, counts, forward)
        if key in self.recorded:
            return self.play(self.recorded[key], batch, counts)
        values, loss = forward(batch, counts)
        if loss is not None:
            self.seen.add(key)
            loss.backward()
        return values

    def has_room(self) -> bool:
        """Whether another graph may be kept; says once when there is none left."""
        room = len(self.recorded) < MOST_GRAPHS
        if not room and not self.full:
            logger.warning("training.graphs: more than %d shapes; batches of others run without", MOST_GRAPHS)
        self.full = not room
        return room

    def record(self, batch: Batch, counts: Tensor, forward: Forward) -> Recorded:
        """The graph of a pass over a batch of these shapes; nothing runs."""
        own, own_counts = batch.clone(), counts.clone()
        with self.recording() as graph:
            values, used = self.pass_over(own, own_counts, forward)
        return Recorded(graph.replay, own, own_counts, values, used)

    def pass_over(self, batch: Batch, counts: Tensor, forward: Forward) -> tuple[Tensor, tuple[int, ...]]:
        """A pass whose gradients are added to `sums`; its values, and which parameters have a gradient."""
        values, loss = forward(batch, counts)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        used = tuple(k for k, gradient in enumerate(gradients) if gradient is not None)
        torch._foreach_add_([self.sums[k] for k in used], [gradients[k] for k in used])
        return values, used

    def play(self, recorded: Recorded, batch: Batch, counts: Tensor) -> Tensor:
        """The values of a recorded pass over this batch; its gradients are added."""
        recorded.batch.copy_(batch)
        recorded.counts.copy_(counts)
        self.take_sums(recorded.used)
        recorded.replay()
        # the next of the same shape writes them again
        return recorded.values.clone()

    def end_step(
        self, values: Tensor, optimizers: list[torch.optim.Optimizer], end: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`end(values)`, which reads the gradients of the parameters and is always the same function."""
        used = tuple(k for k, parameter in enumerate(self.parameters) if parameter.grad is not None)
        if used not in self.ends:
            self.ends[used] = None
            return end(values)
        # where a pass ran without a graph, its gradients are elsewhere
        self.take_sums(used)
        recorded = self.ends[used]
        if recorded is None:
            recorded = self.ends[used] = self.record_end(values, optimizers, end)
        recorded.values.copy_(values)
        for rate, group in zip(recorded.rates, groups(optimizers), strict=True):
            rate.fill_(group["lr"])
        recorded.replay()
        return recorded.row.clone()

    def record_end(
        self, values: Tensor, optimizers: list[torch.optim.Optimizer], end: Callable[[Tensor], Tensor]
    ) -> RecordedEnd:
        """The graph of a step's end; nothing runs."""
        own, rates = values.clone(), device_rates(optimizers)
        with read_from(rates, optimizers), self.recording() as graph:
            row = end(own)
        return RecordedEnd(graph.replay, own, rates, row)

    @contextmanager
    def recording(self) -> Iterator[torch.cuda.CUDAGraph]:
        """A graph of what is started inside."""
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # other threads may ask the device meanwhile: they make batches
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            yield graph

    def take_sums(self, used: Iterable[int]) -> None:
        """Make what the graphs add to the gradient of these parameters, with what it holds so far."""
        fresh, sums, gradients = [], [], []
        for k in used:
            parameter, own = self.parameters[k], self.sums[k]
            if parameter.grad is None:
                fresh.append(own)
            elif parameter.grad is not own:
                sums.append(own)
                gradients.append(parameter.grad)
            parameter.grad = own
        if fresh:
            torch._foreach_zero_(fresh)
        if sums:
            torch._foreach_copy_(sums, gradients)
