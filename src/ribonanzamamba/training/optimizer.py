"""Optimizer, learning-rate schedule and averaged weights."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ribonanzamamba.training.config import TrainingConfig
from ribonanzamamba.training.muon import Muon
from ribonanzamamba.training.sharding import local

OPTIMIZERS = ("muon", "adamw", "radam")
RADAM_BETAS = (0.9, 0.999)
DECAYS = ("linear", "cosine")


def build_optimizers(network: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the linear layers in `network.blocks` and AdamW for everything else, or AdamW for all.

    "radam" is AdamW with RAdam's betas; `learning_rate_share` rectifies its rate.

    Muon's step is scaled to AdamW's root mean square (Liu et al. 2025), so that one learning rate serves both.
    Parameters that need no gradient (frozen ones) are left out.

    Raises:
        ValueError: an unknown optimizer.
    """
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"training.optimizer: expected one of {OPTIMIZERS}, got {config.optimizer!r}")
    if config.decay not in DECAYS:
        raise ValueError(f"training.decay: expected one of {DECAYS}, got {config.decay!r}")
    matrices = []
    if config.optimizer == "muon":
        linear = (module for module in network.blocks.modules() if isinstance(module, nn.Linear))
        matrices = [module.weight for module in linear if module.weight.requires_grad]
    taken = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in network.parameters() if parameter.requires_grad and id(parameter) not in taken]
    groups = [
        {"params": [parameter for parameter in rest if parameter.dim() > 1], "weight_decay": config.weight_decay},
        # gains, biases, decay rates: pulling them to zero means nothing
        {"params": [parameter for parameter in rest if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    betas = RADAM_BETAS if config.optimizer == "radam" else (0.9, 0.98)
    if rest:
        # fused, on a CPU too: it is the implementation that knows `found_inf`, by which a bad batch is passed over
        optimizers.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True))
    if matrices:
        optimizers.append(
            Muon(matrices, lr=config.matrix_rate * config.learning_rate, weight_decay=config.weight_decay)
        )
    return optimizers


def learning_rate_share(step: int, progress: float, config: TrainingConfig) -> float:
    """Share of the peak learning rate: linear warm-up by steps, constant, decay to zero over the last `decay_share` of
    the run; of "radam" times the rectification.

    `progress` is the finished share of the run, by steps or by time.

    >>> config = TrainingConfig(warmup_steps=10, decay_share=0.2)
    >>> [round(learning_rate_share(step, progress, config), 3) for step, progress in ((0, 0.0), (50, 0.5), (90, 0.9))]
    [0.1, 1.0, 0.5]
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = max(0.0, min(1.0, (1 - progress) / max(config.decay_share, 1e-9)))
    if config.decay == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return warm * left * (rectification(step + 1) if config.optimizer == "radam" else 1.0)


def rectification(step: int, beta: float = RADAM_BETAS[1]) -> float:
    """Factor of Adam's learning rate in its first steps, counted from 1, in which the mean square of the gradients is
    of few of them; 0 as long as its variance cannot be told (there RAdam takes steps of plain momentum, or none).

    Source: Liu et al. 2020, "On the variance of the adaptive learning rate and beyond", algorithm 2.

    >>> [round(rectification(step), 3) for step in (1, 5, 6, 100, 10_000)]
    [0.0, 0.0, 0.026, 0.215, 1.0]
    """
    longest = 2 / (1 - beta) - 1
    seen = longest - 2 * step * beta**step / (1 - beta**step)
    if seen <= 5:
        return 0.0
    square = (seen - 4) * (seen - 2) * longest / ((longest - 4) * (longest - 2) * seen)
    return math.sqrt(square)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], rate: float, config: TrainingConfig) -> None:
    """Give every optimizer its rate, `rate` being AdamW's."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * (config.matrix_rate if isinstance(optimizer, Muon) else 1.0)


def device_rates(optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    """A scalar for the learning rate of every parameter group, where its parameters are."""
    # a fused AdamW reads float32; Muon computes with it as with a number
    return [
        torch.full(
            (),
            group["lr"],
            device=group["params"][0].device,
            dtype=torch.float32 if "fused" in group else torch.float64,
        )
        for group in groups(optimizers)
    ]


@contextmanager
def read_from(rates: Sequence[Tensor], optimizers: list[torch.optim.Optimizer]) -> Iterator[None]:
    """Inside, optimizers read their learning rates from `device_rates`, so that a step of theirs can be recorded."""
    before = [dict(group) for group in groups(optimizers)]
    for group, rate in zip(groups(optimizers), rates, strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = True
    try:
        yield
    finally:
        # what a checkpoint holds are numbers
        for group, old in zip(groups(optimizers), before, strict=True):
            group.update(old)


def groups(optimizers: list[torch.optim.Optimizer]) -> list[dict]:
    """The parameter groups of all."""
    return [group for optimizer in optimizers for group in optimizer.param_groups]


class AveragedWeights(AveragedModel):
    """Exponential moving average of a network's weights, in one operation for all of them; the first update takes the
    weights as they are. Its state is that of PyTorch's class."""

    def __init__(self, network: nn.Module, decay: float):
        super().__init__(network)
        self.decay = decay

    def update_parameters(self, network: nn.Module) -> None:
        self.follow(network)
        self.n_averaged += 1

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """The device's part of an update."""
        share = 1 - self.decay if self.n_averaged else 1.0
        own, new = ([local(p.detach()) for p in module.parameters()] for module in (self.module, network))
        torch._foreach_lerp_(own, new, share)
        for mine, other in zip(self.module.buffers(), network.buffers(), strict=True):
            mine.copy_(other)


def averaged(network: nn.Module, decay: float) -> AveragedWeights:
    """Exponential moving average of the network's weights, updated by `update_parameters(network)`."""
    return AveragedWeights(network, decay)
