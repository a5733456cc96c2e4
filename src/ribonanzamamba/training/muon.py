"""Muon: momentum whose matrices are made orthogonal, all matrices of one shape at once.

torch.optim.Muon walks the matrices one by one, 50 ms a step for this network on an H200;
stacked, the same arithmetic takes a tenth.
Source: Jordan et al. 2024, "Muon"; the scale of the step from Liu et al. 2025, "Muon is
scalable for LLM training", section 2.2.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from ribonanzamamba.training.sharding import gathered_rows, local, own_rows

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration that pulls all singular values towards 1."""
ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices (n, rows, columns) with the same singular vectors and singular values near
    1 (0.7 to 1.2); bfloat16 inside."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    wide = x.shape[-2] > x.shape[-1]
    if wide:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        # a product and a sum in one kernel: a step has hundreds of these, and the host starts each
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if wide else x


class Muon(Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, its step scaled to the root mean square of AdamW's.

    Where the attribute `found_inf` is a scalar 1 on the device, a step changes nothing, as with PyTorch's fused AdamW:
    a bad batch is passed over without the host waiting for the device to tell.

    Of matrices that are divided among processes, each orthogonalizes the whole ones and changes its rows.

    Raises:
        ValueError: a parameter that is no matrix.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, *, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise ValueError(f"Muon: expected matrices, got a parameter of shape {tuple(parameter.shape)}")
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        skip = local(self.found_inf)
        bad = None if skip is None else skip > 0
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                for parameter in parameters:
                    if "momentum" not in self.state[parameter]:
                        self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                momenta = [local(self.state[parameter]["momentum"]) for parameter in parameters]
                gradients = [local(parameter.grad) for parameter in parameters]
                weights = [local(parameter) for parameter in parameters]
                decay, rate = 1 - group["lr"] * group["weight_decay"], -group["lr"] * 0.2 * max(shape) ** 0.5
                if skip is not None:
                    # m + w (m - m) is m, whatever the gradient was; then p * 1 + 0 * update
                    kept = torch.where(bad, torch.stack(momenta), torch.stack(gradients))
                    gradients = list(kept.unbind())
                    # a learning rate on the device may be of any dtype
                    decay, rate = torch.where(bad, 1.0, decay).float(), torch.where(bad, 0.0, rate).float()
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                looking_ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
                # in bfloat16, as `orthogonalize` takes them anyway
                matrices = gathered_rows(torch.stack(looking_ahead).bfloat16(), parameters[0])
                updates = own_rows(orthogonalize(matrices), parameters[0]).to(weights[0].dtype)
                torch._foreach_mul_(weights, decay)
                torch._foreach_add_(weights, list((updates * rate).unbind(0)))
