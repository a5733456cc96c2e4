"""Optimizer, learning-rate schedule and averaged weights."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ribonanzamamba.training.config import TrainingConfig
from ribonanzamamba.training.muon import Muon

OPTIMIZERS = ("muon", "adamw")


def build_optimizers(network: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the linear layers in `network.blocks` and AdamW for everything else, or AdamW for all.

    Muon's step is scaled to AdamW's root mean square (Liu et al. 2025), so that one learning rate serves both.
    Parameters that need no gradient (frozen ones) are left out.

    Raises:
        ValueError: an unknown optimizer.
    """
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"training.optimizer: expected one of {OPTIMIZERS}, got {config.optimizer!r}")
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
    if rest:
        # fused, on a CPU too: it is the implementation that knows `found_inf`, by which a bad batch is passed over
        optimizers.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True))
    if matrices:
        optimizers.append(
            Muon(matrices, lr=config.matrix_rate * config.learning_rate, weight_decay=config.weight_decay)
        )
    return optimizers


def learning_rate_share(step: int, progress: float, config: TrainingConfig) -> float:
    """Share of the peak learning rate: linear warm-up by steps, constant, linear decay to zero over the last
    `decay_share` of the run.

    `progress` is the finished share of the run, by steps or by time.

    >>> config = TrainingConfig(warmup_steps=10, decay_share=0.2)
    >>> [round(learning_rate_share(step, progress, config), 3) for step, progress in ((0, 0.0), (50, 0.5), (90, 0.9))]
    [0.1, 1.0, 0.5]
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warm * max(0.0, min(1.0, (1 - progress) / max(config.decay_share, 1e-9)))


def set_learning_rate(optimizers: list[torch.optim.Optimizer], rate: float, config: TrainingConfig) -> None:
    """Give every optimizer its rate, `rate` being AdamW's."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * (config.matrix_rate if isinstance(optimizer, Muon) else 1.0)


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of the network's weights, updated by `update_parameters(network)`."""
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
