"""Pair probabilities that mean what they say: one temperature for the pair logits, fitted on held-out structures."""

import torch
from torch import Tensor

from ribonanzamamba.data.batch import Batch
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.training.loss import structure_loss
from ribonanzamamba.training.validation import prior_of

LARGEST_TEMPERATURE = 5.0


@torch.no_grad()
def fit_pair_temperature(network: RibonanzaMamba, held_out: list[Batch]) -> float:
    """Temperature by which the pair logits (and "no partner") must be divided for the
    lowest cross-entropy on held-out batches.

    Above 1 the network was too sure. 1 where no batch holds a structure.

    Source: Guo et al. 2017, "On calibration of modern neural networks".
    """
    network.eval()
    logits = []
    for batch in held_out:
        if batch.partners is not None:
            output = network(batch.tokens, batch.mask, ("structure",), *prior_of(network, batch))
            logits.append((output.pair_logit, output.no_partner_logit, batch.partners))
    if not logits:
        return 1.0

    # convex in the inverse
    inverse = torch.ones((), device=logits[0][0].device, requires_grad=True)
    count = sum(len(partners) for _, _, partners in logits)

    def entropy() -> Tensor:
        fitter.zero_grad()
        with torch.enable_grad():
            terms = [
                len(partners) / count * structure_loss(pair * inverse, no_partner * inverse, partners)
                for pair, no_partner, partners in logits
            ]
            mean = torch.stack(terms).sum()
            mean.backward()
        return mean

    fitter = torch.optim.LBFGS([inverse], max_iter=50, line_search_fn="strong_wolfe")
    fitter.step(entropy)
    return 1 / min(max(inverse.item(), 1 / LARGEST_TEMPERATURE), LARGEST_TEMPERATURE)


@torch.no_grad()
def divide_pair_logits(network: RibonanzaMamba, temperature: float) -> None:
    """Build a temperature into the weights of the pair head, in place."""
    for layer in (network.pair_head.pair_out, network.pair_head.no_partner):
        layer.weight /= temperature
        layer.bias /= temperature
