"""What a run starts from: a new network or a checkpoint's weights, parts of it frozen."""

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ribonanzamamba.model.checkpoint import RELEASED, load_checkpoint
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.training.config import Config

logger = logging.getLogger(__name__)

TRUNK = ("nucleotide.", "nucleotide_pair.", "offset.", "blocks.")
"""Beginnings of the names of the trunk's parameters: everything that no head of its own has."""


def build_network(config: Config) -> RibonanzaMamba:
    """A new network of the sizes in the config."""
    return RibonanzaMamba(config.model)


def starting_network(config: Config, build: Callable[[Config], nn.Module] = build_network) -> nn.Module:
    """The network a run starts with: new or with the weights of `training.start_from`, `training.freeze` frozen."""
    torch.manual_seed(config.training.seed)
    network = build(config)
    if config.training.start_from:
        name = RELEASED if config.training.start_from == "released" else config.training.start_from
        load_what_fits(network, load_checkpoint(name).network.state_dict(), name)
    freeze(network, config.training.freeze)
    return network


def load_what_fits(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights by name; parameters that they lack keep their values, and the log names them.

    Raises:
        ValueError: a weight of another shape than the network's, or not a single one that fits.
    """
    own = network.state_dict()
    for name in own.keys() & weights.keys():
        if own[name].shape != weights[name].shape:
            shapes = f"expected {tuple(own[name].shape)} as the config says, got {tuple(weights[name].shape)}"
            raise ValueError(f"training.start_from {source}: {name}: {shapes}")
    if not own.keys() & weights.keys():
        raise ValueError(f"training.start_from {source}: none of its {len(weights)} weights is one of the network's")
    network.load_state_dict({name: weights.get(name, tensor) for name, tensor in own.items()})
    for what, names in (
        ("new, with initial values", own.keys() - weights.keys()),
        ("unused", weights.keys() - own.keys()),
    ):
        if names:
            logger.info("start_from %s: %d parameters %s: %s", source, len(names), what, ", ".join(sorted(names)))


def freeze(network: nn.Module, parts: Sequence[str]) -> None:
    """Take the gradient from the parameters of some parts: "trunk", or beginnings of parameter names.

    Raises:
        ValueError: a part that names no parameter, or nothing left to train.
    """
    for part in parts:
        beginnings = TRUNK if part == "trunk" else (f"{part}.",)
        # with a dot behind: "blocks.1" is not "blocks.10", and a parameter's whole name counts as well
        frozen = [p for name, p in network.named_parameters() if f"{name}.".startswith(beginnings)]
        if not frozen:
            modules = sorted({name.split(".")[0] for name, _ in network.named_parameters()})
            raise ValueError(f"training.freeze: no parameter of {part!r}; expected trunk, or one of {modules}")
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"training.freeze: {list(parts)} leaves nothing to train")
