"""What a run will cost, before anything runs: parameters, peak memory, time a step.

A step of the largest batches that the config allows is traced on tensors without data (no memory, no device): every
tensor that lives, every byte that moves and every multiplication is counted, with any checkpointing, for any network.
What a real GPU adds to that stands in `MEASURED`, in one place.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ribonanzamamba.data.batch import Batch
from ribonanzamamba.data.splits import padded_length
from ribonanzamamba.ops.backend import kernels_assumed
from ribonanzamamba.training.config import Config
from ribonanzamamba.training.loss import losses
from ribonanzamamba.training.start import build_network, freeze

GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """What was fitted to measurements on a GPU (`benchmarks/training_plan.py`)."""

    memory_factor: float = 0.975
    """Peak of the allocator over the traced peak: a GPU's attention keeps fewer tensors."""
    memory_extra_gib: float = 0.0038
    """Independent of the batch: libraries' buffers, GiB."""
    bytes_per_second: float = 2.0e12
    """Of the traced bytes."""
    flops_per_second: float = 1.4e16
    """Of the traced multiplications, bfloat16; more than any GPU does: they take place while the bytes move."""
    kernel_seconds: float = 6.1e-6
    """Of the device, an operation, however small."""
    launch_seconds: float = 1e-4
    """Host time an operation, backward pass and optimizer included: what bounds a step of few nucleotides."""
    step_seconds: float = 2.4e-4
    """Of the end of a recorded step (`training.graphs`): optimizer and average."""


MEASURED = Measured()
"""One H100, bfloat16, PyTorch 2.11 (docs/experiments.md, 2026-11-25). Of the 16 settings that were not fitted (other
networks, lengths, checkpointing) memory is within 4 % of what was measured and time within 20 %, within 15 % for the
others. A host that launches faster needs less time for steps that are not recorded."""


@dataclass(frozen=True)
class Pass:
    """One pass of a step, traced."""

    tasks: tuple[str, ...]
    examples: int
    length: int
    peak_bytes: int
    """Beyond the weights."""
    moved_bytes: int
    flops: int
    operations: int


@dataclass(frozen=True)
class Plan:
    """What a run will cost on each process."""

    parameters: int
    trained: int
    resident_bytes: int
    """Weights, gradients, optimizer and averaged weights."""
    passes: tuple[Pass, ...]
    coordinate_steps: int
    graphs: bool = False
    """Whether the device gets passes and ends of steps as a whole and not an operation at a time."""
    measured: Measured = MEASURED

    @property
    def memory_gib(self) -> float:
        """Peak on a GPU, as `torch.cuda.max_memory_allocated` counts."""
        largest = max(map(self.activations_gib, self.passes))
        return self.resident_bytes / GIB + largest + self.measured.memory_extra_gib

    def activations_gib(self, each: Pass) -> float:
        """What a pass keeps on a GPU, beside the weights."""
        return self.measured.memory_factor * each.peak_bytes / GIB

    def seconds(self, each: Pass) -> float:
        """Time of a pass on a GPU."""
        device = each.moved_bytes / self.measured.bytes_per_second + each.flops / self.measured.flops_per_second
        device += each.operations * self.measured.kernel_seconds
        if self.graphs:
            return device + self.measured.step_seconds
        return max(device, each.operations * self.measured.launch_seconds)

    @property
    def seconds_per_step(self) -> float:
        """Mean over steps with and without coordinates."""
        return sum(
            self.seconds(each) / (self.coordinate_steps if "coordinates" in each.tasks else 1) for each in self.passes
        )

    def to_text(self) -> str:
        lines = [
            f"parameters           {self.parameters:,} ({self.trained:,} trained)",
            f"weights, optimizer   {self.resident_bytes / GIB:.2f} GiB",
        ]
        for each in self.passes:
            name = "+".join(each.tasks)
            lines.append(
                f"batch, at most       {each.examples} x {each.length} nt ({name}): activations "
                f"{self.activations_gib(each):.2f} GiB, {self.seconds(each):.3f} s"
            )
        lines.append(f"peak memory          {self.memory_gib:.2f} GiB (expected)")
        lines.append(f"time a step          {self.seconds_per_step:.3f} s (expected, one H100, bfloat16)")
        return "\n".join(lines)


def plan(config: Config, processes: int = 1, build: Callable[[Config], nn.Module] = build_network) -> Plan:
    """The cost of a run with so many processes, for the largest batches its config allows.

    The tables are not read: lengths are taken at the limits. Needs seconds on a CPU.
    """
    data = config.data
    passes = []
    with FakeTensorMode(), kernels_assumed():
        network = build(config).train()
        freeze(network, config.training.freeze)
        if config.training.checkpointing != "off":
            network.checkpoint_activations(config.training.checkpointing)
        if data.reactivity or data.structure:
            taught = ("structure",) if config.loss.taught_pairs else ()
            tasks = tuple(task for task in ("reactivity", "structure") if getattr(data, task) or task in taught)
            if data.batch_examples:
                size = -(-data.batch_examples // processes), padded_length(data.max_length, data.pad_multiple)
            else:
                size = largest_batch(data.tokens, data.max_length, data.pad_multiple, processes)
            passes.append(trace(network, tasks, *size, config))
        if data.coordinates:
            size = largest_batch(data.coordinate_tokens, data.coordinate_max_length, data.pad_multiple, processes)
            passes.append(trace(network, ("coordinates",), *size, config))
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    if not passes:
        raise ValueError("data: expected at least one table, got none")
    trained = sum(count for count, needs in counts if needs)
    total = sum(count for count, _ in counts)
    resident = resident_bytes(total, trained, config.training.optimizer)
    training = config.training
    if training.parallel == "shard":
        resident //= processes
    return Plan(total, trained, resident, tuple(passes), data.coordinate_steps, graphs=training.graphs)


def resident_bytes(parameters: int, trained: int, optimizer: str) -> int:
    """Bytes that stay between steps: weights and their average, of the trained ones gradient and moments; float32."""
    # two moments; of the matrices, nine tenths of the network, Muon keeps one
    moments = 1.1 if optimizer == "muon" else 2.0
    return int(4 * (2 * parameters + (1 + moments) * trained))


def trace_fake(
    config: Config, checkpointing: str, tasks: tuple[str, ...], examples: int, length: int
) -> tuple[Pass, int]:
    """One pass of a network of the config over a batch of a given shape, traced, and the number of parameters."""
    with FakeTensorMode(), kernels_assumed():
        network = build_network(config).train()
        network.checkpoint_activations(checkpointing)
        traced = trace(network, tasks, examples, length, config)
        return traced, sum(parameter.numel() for parameter in network.parameters())


def largest_batch(tokens: int, max_length: int, multiple: int, processes: int = 1) -> tuple[int, int]:
    """Examples and length of the batch with the most pair cells that the limits allow, of each process.

    >>> largest_batch(tokens=20480, max_length=400, multiple=16)
    (128, 160)
    """
    length = min(padded_length(max_length, multiple), 160)
    return -(-max(1, tokens // length) // processes), length


def trace(network: nn.Module, tasks: tuple[str, ...], examples: int, length: int, config: Config) -> Pass:
    """Forward and backward pass over a batch without data."""
    batch = empty_batch(tasks, examples, length, len(network.config.probes), taught=config.loss.taught_pairs > 0)
    with Tracker() as tracker:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.training.bfloat16):
            output = network(batch.tokens, batch.mask, tasks)
        total = losses(output, batch, weights=config.loss).total(config.loss)
        del output
        total.backward()
    network.zero_grad(set_to_none=True)
    return Pass(tasks, examples, length, tracker.peak, tracker.moved, tracker.flops, tracker.operations)


def empty_batch(tasks: tuple[str, ...], examples: int, length: int, probes: int, taught: bool = False) -> Batch:
    """A batch of which only the shapes count; `taught`: with priors."""
    shape = (examples, length)
    return Batch(
        ids=("",) * examples,
        tokens=torch.zeros(shape, dtype=torch.int64),
        mask=torch.ones(shape, dtype=torch.bool),
        reactivity=torch.zeros(*shape, probes) if "reactivity" in tasks else None,
        reactivity_weight=torch.zeros(*shape, probes) if "reactivity" in tasks else None,
        partners=torch.zeros(shape, dtype=torch.int64) if "structure" in tasks else None,
        coordinates=torch.zeros(*shape, 4, 3) if "coordinates" in tasks else None,
        prior=torch.zeros(*shape, length) if taught else None,
        prior_known=torch.ones(examples, dtype=torch.bool) if taught else None,
        prior_given=torch.zeros(examples, dtype=torch.bool) if taught else None,
    )


class Tracker(TorchDispatchMode):
    """Counts the bytes of the tensors that live, at most at once, the bytes that operations read and write, their
    multiplications and additions, and the operations. (PyTorch's FlopCounterMode keeps tensors alive.)"""

    def __init__(self) -> None:
        super().__init__()
        self.living = self.peak = self.moved = self.flops = self.operations = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        own = {tensor.untyped_storage()._cdata for tensor in inputs}
        made = [tensor for tensor in outputs if tensor.untyped_storage()._cdata not in own]
        # a view is neither: it moves nothing
        if made or function._schema.is_mutable:
            self.operations += 1
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *(made or outputs)))
        if function._overloadpacket in flop_registry:
            self.flops += flop_registry[function._overloadpacket](*args, **kwargs, out_val=result)
        for tensor in made:
            self.count(tensor)
        return result

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.living += size
        self.peak = max(self.peak, self.living)

        def gone() -> None:
            self.living -= size
            self.known.discard(key)

        weakref.finalize(storage, gone)
