"""Scores of a network on held-out examples, while it trains. What is reported comes from
the `score` command instead."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ribonanzamamba.data.batch import Batch, batches
from ribonanzamamba.data.example import Example
from ribonanzamamba.evaluation.metrics import compare_structures, lddt
from ribonanzamamba.evaluation.tm_score import tm_score
from ribonanzamamba.model.network import ModelOutput, RibonanzaMamba
from ribonanzamamba.prediction.decode import decode_structure
from ribonanzamamba.rna.records import ATOMS
from ribonanzamamba.rna.structure import Structure

C1 = ATOMS.index("C1'")
LONGEST = 400
"""Nucleotides; longer held-out examples are left out of the validation during training."""


@dataclass(frozen=True)
class HeldOut:
    """Examples of each task that training never sees."""

    reactivity: Sequence[Example]
    structure: Sequence[Example]
    coordinates: Sequence[Example]

    def sample(self, count: int) -> "HeldOut":
        """At most `count` of each, evenly over each list, none longer than LONGEST."""
        parts = []
        for examples in (self.reactivity, self.structure, self.coordinates):
            short = [example for example in examples if 20 <= example.length <= LONGEST]
            take = np.linspace(0, len(short) - 1, min(count, len(short))).astype(int)
            parts.append([short[k] for k in take])
        return HeldOut(*parts)


def prior_of(network: nn.Module, batch: Batch) -> tuple[Tensor | None, ...]:
    """What the network is called with beside the tokens: the batch's prior and where it is given, or nothing for a
    network that has no such input."""
    return (batch.prior, batch.prior_given) if takes_prior(network) else ()


def takes_prior(network: nn.Module) -> bool:
    """Whether a network takes priors: a RibonanzaMamba that was built for them, and no other."""
    return isinstance(network, RibonanzaMamba) and network.config.pair_prior


def overall(scores: dict[str, float]) -> float:
    """One number to choose the best weights of a run by, higher is better: the mean over the tasks of 1 - MAE (mean
    over probes), F1, and the TM-score of the first model.

    >>> overall({"mae/2A3": 0.3, "mae/DMS": 0.1, "f1": 0.6})
    0.7
    """
    errors = [value for name, value in scores.items() if name.startswith("mae/")]
    tasks = [1 - sum(errors) / len(errors)] if errors else []
    tasks += [scores[name] for name in ("f1", "tm/first") if name in scores]
    return sum(tasks) / len(tasks)


@torch.no_grad()
def validate(
    network: nn.Module, held_out: HeldOut, device: torch.device, bfloat16: bool, tokens: int = 16384
) -> dict[str, float]:
    """MAE of each probe (merged replicates, clipped to [0, 1]), mean F1, best and first TM-score and lDDT, and how
    they correlate with pLDDT. A network with `pair_prior` gets the priors of the examples; "f1/without_prior" is the
    mean F1 of the same RNAs without them."""
    was_training = network.training
    network.eval()
    scores: dict[str, float] = {}

    def run(examples: Sequence[Example], task: str) -> Iterator[tuple[Batch, ModelOutput]]:
        for batch in batches(examples, max_tokens=tokens, max_cells=tokens * 160, max_examples=256):
            batch = batch.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16 and device.type == "cuda"):
                yield batch, network(batch.tokens, batch.mask, (task,), *prior_of(network, batch))

    if held_out.reactivity:
        error = count = 0.0
        for batch, output in run(held_out.reactivity, "reactivity"):
            measured = ~batch.reactivity.isnan() & (batch.reactivity_weight > 0.1)
            difference = (output.reactivity.clamp(0, 1) - batch.reactivity.nan_to_num(0).clamp(0, 1)).abs()
            error = error + (difference * measured).sum((0, 1)).double()
            count = count + measured.sum((0, 1)).double()
        for probe, value, number in zip(network.config.probes, error.tolist(), count.tolist(), strict=True):
            if number:
                scores[f"mae/{probe}"] = value / number
    examples = {"f1": held_out.structure}
    if takes_prior(network) and any(example.prior is not None for example in held_out.structure):
        examples["f1/without_prior"] = [replace(example, prior=None) for example in held_out.structure]
    for name, structures in examples.items():
        f1 = []
        for batch, output in run(structures, "structure"):
            probability = output.pair_probability.float().cpu().numpy()
            for row, length in enumerate(batch.mask.sum(1).tolist()):
                truth = Structure.from_partners(batch.partners[row, :length].cpu().numpy())
                f1.append(compare_structures(decode_structure(probability[row, :length, :length]), truth).f1)
        if f1:
            scores[name] = float(np.mean(f1))
    if held_out.coordinates:
        best, first, local, confidence = [], [], [], []
        for batch, output in run(held_out.coordinates, "coordinates"):
            models = output.coordinates[..., C1, :].float().cpu().numpy()
            plddt = output.plddt.float().cpu().numpy()
            for row, length in enumerate(batch.mask.sum(1).tolist()):
                truth = batch.coordinates[row, :length, C1].cpu().numpy()
                tm = [tm_score(model[:length], truth) for model in models[row]]
                quality = plddt[row, :, :length].mean(-1)
                best.append(max(tm))
                first.append(tm[int(quality.argmax())])
                local.append(lddt(models[row, int(quality.argmax()), :length], truth))
                confidence.append(float(quality.max()))
        scores |= {
            "tm/best": float(np.mean(best)),
            "tm/first": float(np.mean(first)),
            "lddt/first": float(np.nanmean(local)),
        }
        scores["plddt/first"] = float(np.mean(confidence))
    network.train(was_training)
    return scores
