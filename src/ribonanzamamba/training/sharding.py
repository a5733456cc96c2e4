"""Weights, gradients, moments and averaged weights divided among processes (FSDP), a block of the trunk at a time.

PyTorch's fully_shard gathers a block's weights before it is used and adds up and divides its gradients behind it; the
optimizers then change each process's part. What is written and validated is put together again.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_map


def shard_weights(
    network: nn.Module, average: AveragedModel, optimizers: Sequence[Optimizer], device: torch.device
) -> None:
    """Keep of everything, in place, this process's part; every process has to have the same whole before.

    `network` and `average.module` have `blocks`; the optimizers are of the network's parameters.
    """
    # heads return views of what they computed; nobody writes into them
    warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    names = {parameter: name for name, parameter in network.named_parameters()}
    for module in (network, average.module):
        for block in module.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
    parts = dict(network.named_parameters())
    for optimizer in optimizers:
        states = dict(optimizer.state)
        optimizer.state.clear()
        for group in optimizer.param_groups:
            wholes = group["params"]
            group["params"] = [parts[names[parameter]] for parameter in wholes]
            for parameter, part in zip(wholes, group["params"], strict=True):
                if parameter in states:
                    optimizer.state[part] = {key: part_like(value, part) for key, value in states[parameter].items()}


def part_like(value: Any, part: DTensor) -> Any:
    """This process's part of a tensor of a parameter's shape; other values as they are."""
    if isinstance(value, Tensor) and value.shape == part.shape:
        return distribute_tensor(value, part.device_mesh, part.placements)
    return value


def whole(values: Any) -> Any:
    """Nested values with every divided tensor put together; all processes call it, with the same values."""
    return tree_map(lambda value: value.full_tensor() if isinstance(value, DTensor) else value, values)


def whole_network(network: nn.Module, build: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """An undivided copy of a divided network, which `build` makes; all processes call it."""
    copy = build().to(device)
    copy.load_state_dict(whole(network.state_dict()))
    return copy


def replicated(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """A value that all processes have, as operations with these parameters want it."""
    like = parameters[0]
    if isinstance(like, DTensor):
        return DTensor.from_local(value, like.device_mesh, [Replicate()], run_check=False)
    return value


def local(tensor: Tensor | None) -> Tensor | None:
    """This process's part of a divided tensor, which shares its memory; anything else as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered_rows(parts: Tensor, like: Tensor) -> Tensor:
    """Matrices (n, rows, columns) of which each process gives its rows; `like` is a parameter of their shape."""
    if not isinstance(like, DTensor):
        return parts
    group = like.device_mesh.get_group()
    rows, count = like.shape[0], dist.get_world_size(group)
    each = -(-rows // count)
    # the last processes may have fewer rows, or none
    padded = parts.new_zeros(parts.shape[0], each, parts.shape[2])
    padded[:, : parts.shape[1]] = parts
    every = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(every, padded, group=group)
    return torch.cat(every, dim=1)[:, :rows]


def own_rows(matrices: Tensor, like: Tensor) -> Tensor:
    """The inverse of `gathered_rows`."""
    if not isinstance(like, DTensor):
        return matrices
    each = -(-like.shape[0] // like.device_mesh.size())
    start = like.device_mesh.get_local_rank() * each
    return matrices[:, start : start + each]
