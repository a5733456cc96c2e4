"""The processes that train one network together, one a GPU, as `torchrun` starts them; alone without it.

Gradients are added up once a step, flattened, after all passes: the two passes of a step use different parameters, at
which DistributedDataParallel's hooks stumble, and the sum is the same. Numbers that live on the host (time, signals,
which parameters have a gradient) go through gloo, so that no decision waits for a GPU; tensors of a GPU through NCCL.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=4)
"""How long a process waits for another, such as for the first one's validation, before it gives up."""
PARALLEL = ("replicate", "shard")
"""Whether every process has all weights, or its part."""


@dataclass(frozen=True)
class Processes:
    """This process among all: its number, how many there are, and its device."""

    device: torch.device = torch.device("cpu")
    rank: int = 0
    count: int = 1
    shards: bool = False
    """Whether weights, gradients and moments are divided among the processes (`training.sharding`)."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes, validates and talks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every process's tensor (of one shape and device type)."""
        if self.count == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of every process's values, each by itself; they live on the host."""
        if self.count == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return together.tolist()

    def wait(self) -> None:
        """Return when every process has come here."""
        self.largest([0.0])

    def gather(self, text: str) -> list[str]:
        """Every process's text, by rank."""
        if self.count == 1:
            return [text]
        texts: list[str | None] = [None] * self.count
        # as bytes in host tensors: gathering objects would go through the GPU's backend
        size = int(self.largest([float(len(text.encode()))])[0])
        mine = torch.zeros(size, dtype=torch.uint8)
        mine[: len(text.encode())] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        every = [torch.zeros_like(mine) for _ in texts]
        dist.all_gather(every, mine)
        return [bytes(each.tolist()).rstrip(b"\0").decode() for each in every]

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradient to that of the parameters."""
        # divided gradients are the mean over the processes: times their number it is the sum
        (loss * self.count if self.shards else loss).backward()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every parameter the sum of all processes' gradients; none where no process has one.

        Divided gradients have been added up in the backward pass.
        """
        if self.count == 1 or self.shards:
            return
        parameters = list(parameters)
        present = self.largest([float(parameter.grad is not None) for parameter in parameters])
        used = [parameter for parameter, has in zip(parameters, present, strict=True) if has]
        if not used:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = flat.split([parameter.numel() for parameter in used])
        for parameter, part in zip(used, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    @torch.no_grad()
    def share_weights(self, network: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.count > 1:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, 0)


ALONE = Processes()


@contextmanager
def joined(device: str, parallel: str = "replicate") -> Iterator[Processes]:
    """The processes of this run, and the device of this one: `device` ("auto", "cpu", "cuda", "cuda:1") or, under
    `torchrun` with GPUs, that of its number on this machine.

    Raises:
        ValueError: `parallel` is not in PARALLEL.
    """
    if parallel not in PARALLEL:
        raise ValueError(f"training.parallel: expected one of {PARALLEL}, got {parallel!r}")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(torch.device(pick_device(device)))
        return
    place = torch.device(pick_device(device))
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
    processes = Processes(place, dist.get_rank(), dist.get_world_size(), shards=parallel == "shard")
    try:
        yield processes
        # nobody leaves while another still writes
        processes.wait()
        # gloo's thread says that an exchange is over before it lets go of its tensor, for which it needs the
        # interpreter's lock: a process that asked for it while it ended was aborted (one in some fifty)
        time.sleep(0.2)
    finally:
        dist.destroy_process_group()


def pick_device(name: str) -> str:
    """The device of a setting: "auto" is a GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
