"""No silent NaN: bad batches are seen without making the host wait for the device, and traced to a module.

A bad step (a loss or gradient that is not finite) changes no weight: the optimizers pass over it on the device
(`found_inf`). Here the host learns of it, a step or two later, and names the batch.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ribonanzamamba.data.batch import Batch

BAD_IN_A_ROW = 3
"""Bad steps, one after the other, after which a run stops."""
LONGEST_WAIT = 8
"""Steps whose values may be on their way from the device; beyond that the host waits for the oldest."""


class NonFiniteError(FloatingPointError):
    """Several batches in a row gave no finite loss and gradient: the run has stopped at its last good checkpoint."""


@dataclass(frozen=True, eq=False)
class Shard:
    """One process's part of a batch."""

    ids: tuple[str, ...]
    """Of the whole batch."""
    batch: Batch | None
    """The examples of this process; None where the batch has fewer examples than there are processes."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Step:
    """A step that the device has finished."""

    number: int
    """Of steps done, this one included."""
    shards: Mapping[tuple[str, ...], Shard]
    """By tasks of the pass."""
    values: list[float]
    """As `train_step` returns them."""


class Watch:
    """Hands out the values of steps when they have come from the device, in the order of the steps."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, Mapping[tuple[str, ...], Shard], Tensor, Any]] = deque()

    def add(self, number: int, shards: Mapping[tuple[str, ...], Shard], values: Tensor) -> None:
        event = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.waiting.append((number, shards, values, event))

    def finished(self, wait: bool = False) -> Iterator[Step]:
        """Steps whose values are here; with `wait`, all that were added."""
        while self.waiting:
            number, shards, values, event = self.waiting[0]
            if event is not None and not event.query():
                if not wait and len(self.waiting) <= LONGEST_WAIT:
                    return
                event.synchronize()
            self.waiting.popleft()
            yield Step(number, shards, values.tolist())


def find_nonfinite(network: nn.Module, backward: Callable[[], Mapping[str, Tensor]]) -> str:
    """Where a value that is not finite first appears in a forward and backward pass: a module by its name, a loss, or
    a gradient; "" where all values are finite.

    `backward` runs the pass over the batch in question and returns its losses by name. A module is named by its own
    output: of a chain, the first to finish; of a module and its parts, the part. Gradients are cleared.
    """
    found: list[str] = []
    gradients: list[str] = []

    def watcher(name: str) -> Callable:
        name = name or type(network).__name__

        def see(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in tensors(output):
                if not found and not tensor.detach().isfinite().all():
                    found.append(f"module {name} (forward pass)")
                if tensor.requires_grad and not found:
                    tensor.register_hook(see_gradient)

        def see_gradient(gradient: Tensor) -> None:
            if not gradients and not gradient.isfinite().all():
                gradients.append(f"gradient at the output of module {name} (backward pass)")

        return see

    handles = [module.register_forward_hook(watcher(name)) for name, module in network.named_modules()]
    try:
        losses = backward()
    finally:
        for handle in handles:
            handle.remove()
    found += [f"loss {name}" for name, value in losses.items() if not value.isfinite().all()]
    found += gradients
    found += [
        f"gradient of parameter {name}"
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    network.zero_grad(set_to_none=True)
    return found[0] if found else ""


def tensors(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module returned."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from tensors(part)
    elif is_dataclass(output):
        for field in fields(output):
            yield from tensors(getattr(output, field.name))
