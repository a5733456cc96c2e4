"""What training minimises: one term a task, each a mean over the batch's examples, of whom some have no such
measurement and add 0."""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ribonanzamamba.data.batch import Batch
from ribonanzamamba.data.example import UNKNOWN
from ribonanzamamba.model.coordinates import DISTANCE_BINS, PLDDT_BINS, frames_from_atoms
from ribonanzamamba.model.heads import SHORTEST_PAIR, pair_log_probability
from ribonanzamamba.model.network import ModelOutput
from ribonanzamamba.training.config import LossConfig

SATURATION = 20.0
"""Angstrom at which a distance error counts half of what it can count at most: far errors
keep a gradient, but do not rule."""
CERTAIN = 0.5
"""Weight of a reactivity with a signal to noise of 1."""
LENGTH_UNIT = 10.0
"""Angstrom a unit of loss."""
BEST_MODEL_SHARE = 0.8
"""Weight of the best of the coordinate models; the rest goes to the mean, so that none is left without a gradient."""
LOCAL_RADIUS = 15.0
"""Angstrom; neighbours counted by lDDT (Mariani et al. 2013) and, doubled, by the distance loss."""
LEAST_LOG_PROBABILITY = -30.0
"""Finite: a prior may name a pair that the network holds for impossible."""
SMALLEST_SHAPE = 3
"""Resolved C1' below which a chain has no shape to compare."""
C1 = 2
"""Index of C1' on the atom axis."""


@dataclass(frozen=True)
class Losses:
    """Unweighted terms of one batch, scalars; None where the batch has nothing of the kind."""

    reactivity: Tensor | None = None
    reactivity_error: Tensor | None = None
    structure: Tensor | None = None
    taught_pairs: Tensor | None = None
    coordinates: Tensor | None = None

    def total(self, weights: LossConfig) -> Tensor | None:
        """Weighted sum; None without a term."""
        terms = [getattr(weights, name) * term for name in TERMS if (term := getattr(self, name)) is not None]
        return torch.stack(terms).sum() if terms else None


TERMS = tuple(each.name for each in fields(Losses))
READ = {
    "reactivity": ("reactivity", "reactivity_error"),
    "structure": ("pair_logit", "no_partner_logit"),
    "taught_pairs": ("pair_logit", "no_partner_logit"),
    "coordinates": ("coordinates", "plddt_logit", "distance_logit"),
}
"""Outputs that the terms of each task read."""


def with_zeros(wanted: Collection[str], terms: Losses, output: ModelOutput) -> Losses:
    """The same terms; those that are wanted, some of READ, and that the batch has not are 0, with a gradient of 0 for
    every parameter that they depend on."""
    zeros = {}
    for term in wanted:
        if getattr(terms, term) is None:
            read = (getattr(output, name) for name in READ[term])
            zeros[term] = torch.stack([0 * tensor.sum() for tensor in read if tensor is not None]).sum()
    return replace(terms, **zeros)


@dataclass(frozen=True)
class Counts:
    """What the means of the terms are taken over, scalars.

    Where a batch is divided among processes, the counts of the whole: each term is then the process's part of the sum,
    and the parts of all processes add up to the term, and the gradient, of the undivided batch.
    """

    examples: Tensor
    chains: Tensor
    """Examples with enough resolved C1' to be a shape."""
    nucleotides: Tensor
    """Resolved C1' of those chains."""
    pairs: Tensor
    """Pairs of resolved C1'."""

    @classmethod
    def of(cls, batch: Batch) -> "Counts":
        """Those of one batch."""
        # filled on the device: a number copied from the host would make it wait
        examples = torch.full((), float(len(batch)), device=batch.tokens.device)
        if batch.coordinates is None:
            return cls(examples, *torch.zeros(3, device=examples.device))
        return cls(examples, *count_resolved(~batch.coordinates.isnan().any(-1)))

    @classmethod
    def from_tensor(cls, counts: Float[Tensor, " 4"]) -> "Counts":
        return cls(*counts)

    def to_tensor(self) -> Float[Tensor, " 4"]:
        """The inverse of `from_tensor`."""
        return torch.stack([self.examples, self.chains, self.nucleotides, self.pairs])


def count_resolved(resolved: Bool[Tensor, "batch length 4"]) -> tuple[Tensor, Tensor, Tensor]:
    """Chains, nucleotides and pairs that count in the coordinate loss."""
    seen = resolved[..., C1].sum(1)
    some = seen >= SMALLEST_SHAPE
    return some.sum().float(), (seen * some).sum().float(), seen.square().sum().float()


def losses(
    output: ModelOutput, batch: Batch, counts: Counts | None = None, weights: LossConfig | None = None
) -> Losses:
    """Terms for whatever the batch measured and the output holds, means over the `counts` (the batch's own). Of the
    `weights` (the defaults) it reads how reactivities count, and whether base pairs are taught."""
    counts, weights = counts or Counts.of(batch), weights or LossConfig()
    reactivity = error = structure = taught = coordinates = None
    if batch.reactivity is not None and output.reactivity is not None:
        reactivity, error = reactivity_loss(
            output.reactivity,
            output.reactivity_error,
            *((batch.reactivity, batch.reactivity_weight) if weights.reactivity_by_trust else certain(batch)),
            counts.examples,
        )
    if batch.partners is not None and output.pair_logit is not None:
        structure = structure_loss(output.pair_logit, output.no_partner_logit, batch.partners, counts.examples)
    if weights.taught_pairs and batch.prior is not None and output.pair_logit is not None:
        taught = taught_loss(output.pair_logit, output.no_partner_logit, batch.prior, learners(batch), counts.examples)
    if batch.coordinates is not None and output.coordinates is not None:
        coordinates = coordinate_loss(output, batch.coordinates, counts)
    return Losses(reactivity, error, structure, taught, coordinates)


def certain(batch: Batch) -> tuple[Float[Tensor, "batch length probe"], Float[Tensor, "batch length probe"]]:
    """The reactivities of CERTAIN weight and more, NaN in place of the others, and their weights, all 1."""
    kept = batch.reactivity_weight >= CERTAIN
    return batch.reactivity.masked_fill(~kept, float("nan")), kept.to(batch.reactivity.dtype)


def mean_over(value: Tensor, count: Tensor | int) -> Tensor:
    """Sum divided by a count; 0 (with a gradient of 0) where the count is 0."""
    return value.sum() / torch.as_tensor(count, device=value.device).clamp(min=1)


def reactivity_loss(
    value: Float[Tensor, "batch length probe"],
    error: Float[Tensor, "batch length probe"] | None,
    target: Float[Tensor, "batch length probe"],
    weight: Float[Tensor, "batch length probe"],
    examples: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Weighted absolute error to the target clipped to [0, 1], and the Laplace likelihood
    of that error under the predicted one (None for a network that predicts no error).

    Each is the mean over `examples` (those of the batch) of their mean over measured cells, noisy examples counting
    less by their weight. The second does not reach the value: an easy way to lower a likelihood must not be
    to widen it.
    """
    examples = len(target) if examples is None else examples
    measured = ~target.isnan()
    weight = weight * measured / measured.sum((1, 2), keepdim=True).clamp(min=1)
    residual = (value - target.nan_to_num(0).clamp(0, 1)).abs()
    absolute = mean_over((residual * weight).sum((1, 2)), examples)
    if error is None:
        return absolute, None
    likelihood = residual.detach() / error + error.log()
    return absolute, mean_over((likelihood * weight).sum((1, 2)), examples)


def structure_loss(
    logit: Float[Tensor, "batch length length"],
    no_partner: Float[Tensor, "batch length"],
    partners: Int[Tensor, "batch length"],
    examples: Tensor | None = None,
) -> Tensor:
    """Mean over `examples` (those of the batch) of the cross-entropy of each nucleotide's partner (or none); -2
    and pairs too close to predict are left out."""
    length = partners.shape[1]
    position = torch.arange(length, device=partners.device)
    known = (partners >= -1) & ((partners < 0) | ((partners - position).abs() >= SHORTEST_PAIR))
    choice = torch.where(partners >= 0, partners, length)
    log_probability = pair_log_probability(logit, no_partner)
    entropy = -log_probability.gather(2, choice[..., None])[..., 0]
    entropy = torch.where(known, entropy, torch.zeros_like(entropy))
    return mean_over(entropy.sum(1) / known.sum(1).clamp(min=1), len(partners) if examples is None else examples)


def learners(batch: Batch) -> Bool[Tensor, "batch length"]:
    """The nucleotides of the RNAs that a prior teaches: those from which theirs is withheld, and that have no base
    pairs of their own to learn."""
    taught = batch.prior_known & ~batch.prior_given
    if batch.partners is not None:
        taught = taught & (batch.partners == UNKNOWN).all(1)
    return batch.mask & taught[:, None]


def taught_loss(
    logit: Float[Tensor, "batch length length"],
    no_partner: Float[Tensor, "batch length"],
    prior: Float[Tensor, "batch length length"],
    taught: Bool[Tensor, "batch length"],
    examples: Tensor | None = None,
) -> Tensor:
    """Mean over `examples` (those of the batch) of the cross-entropy of each nucleotide's partner, or none, under the
    probabilities that a prior gives them; only where `taught`."""
    log_probability = pair_log_probability(logit, no_partner).clamp(min=LEAST_LOG_PROBABILITY)
    alone = (1 - prior.sum(-1)).clamp(min=0)
    entropy = -(prior * log_probability[..., :-1]).sum(-1) - alone * log_probability[..., -1]
    entropy = torch.where(taught, entropy, torch.zeros_like(entropy))
    return mean_over(entropy.sum(1) / taught.sum(1).clamp(min=1), len(prior) if examples is None else examples)


def saturating(distance: Tensor) -> Tensor:
    """d / (1 + d / SATURATION), angstrom."""
    return distance / (1 + distance / SATURATION)


def safe_norm(vector: Float[Tensor, "*axes 3"]) -> Float[Tensor, "*axes"]:
    """Length with a finite gradient at zero."""
    return (vector.square().sum(-1) + 1e-4).sqrt()


def coordinate_loss(
    output: ModelOutput, target: Float[Tensor, "batch length 4 3"], counts: Counts | None = None
) -> Tensor:
    """Frame-aligned point error and C1' distance error of the best model (mostly),
    distance bins, and pLDDT's likelihood."""
    predicted = output.coordinates
    resolved = ~target.isnan().any(-1)  # b l atom
    chains, nucleotides, pairs = (
        (counts.chains, counts.nucleotides, counts.pairs) if counts else count_resolved(resolved)
    )
    target = target.nan_to_num(0)
    each = frame_aligned_error(predicted, target, resolved) + distance_error(predicted, target, resolved)  # b m
    some = resolved[..., C1].sum(1) >= SMALLEST_SHAPE
    best = each.min(dim=1).values
    geometry = mean_over((BEST_MODEL_SHARE * best + (1 - BEST_MODEL_SHARE) * each.mean(1)) * some, chains)

    quality = local_distance_test(predicted.detach()[..., C1, :], target[..., C1, :], resolved[..., C1])  # b m l
    bins = (quality * PLDDT_BINS).long().clamp(max=PLDDT_BINS - 1)
    entropy = F.cross_entropy(output.plddt_logit.movedim(-1, 1).float(), bins, reduction="none")
    counted = (resolved[..., C1] & some[:, None])[:, None]
    loss = geometry + 0.1 * mean_over(entropy * counted, nucleotides * predicted.shape[1])
    if output.distance_logit is not None:
        true = safe_norm(target[:, :, None, C1] - target[:, None, :, C1])
        bins = (true - 2).long().clamp(0, DISTANCE_BINS - 1)
        entropy = F.cross_entropy(output.distance_logit.movedim(-1, 1), bins, reduction="none")
        both = resolved[:, :, None, C1] & resolved[:, None, :, C1]
        loss = loss + 0.3 * mean_over(entropy * both, pairs)
    return loss


def frame_aligned_error(
    predicted: Float[Tensor, "batch model length 4 3"],
    target: Float[Tensor, "batch length 4 3"],
    resolved: Bool[Tensor, "batch length 4"],
) -> Float[Tensor, "batch model"]:
    """Mean distance of all atoms seen from all frames (Jumper et al. 2021, algorithm 28), saturating, in LENGTH_UNIT.

    0 for an RNA without a complete frame (tables that hold C1' only).
    """
    has_frame = resolved[..., 1:].all(-1)  # b l
    # unresolved frames get a stand-in triangle: normalising a zero vector would make NaN gradients
    stand_in = torch.eye(4, 3, dtype=predicted.dtype, device=predicted.device)
    rotation, origin = frames_from_atoms(torch.where(has_frame[..., None, None], target, stand_in))
    true = torch.einsum("bfax,bfxy->bfay", target.flatten(1, 2)[:, None] - origin[:, :, None], rotation)
    rotation, origin = frames_from_atoms(predicted)
    seen = predicted.flatten(2, 3)[:, :, None] - origin[:, :, :, None]
    seen = torch.einsum("bmfax,bmfxy->bmfay", seen, rotation)
    error = saturating(safe_norm(seen - true[:, None])) / LENGTH_UNIT  # b m f a
    both = (has_frame[:, :, None] & resolved.flatten(1)[:, None]).to(error.dtype)[:, None]
    return (error * both).sum((2, 3)) / both.sum((2, 3)).clamp(min=1)


def distance_error(
    predicted: Float[Tensor, "batch model length 4 3"],
    target: Float[Tensor, "batch length 4 3"],
    resolved: Bool[Tensor, "batch length 4"],
) -> Float[Tensor, "batch model"]:
    """Mean error of C1'-C1' distances below twice LOCAL_RADIUS, saturating, in LENGTH_UNIT."""
    position = predicted[..., C1, :]
    distance = safe_norm(position[:, :, :, None] - position[:, :, None, :])
    true = safe_norm(target[:, :, None, C1] - target[:, None, :, C1])
    near = resolved[:, :, None, C1] & resolved[:, None, :, C1] & (true < 2 * LOCAL_RADIUS)
    near = (near & ~torch.eye(near.shape[1], dtype=torch.bool, device=near.device)).to(true.dtype)[:, None]
    error = saturating((distance - true[:, None]).abs()) / LENGTH_UNIT
    return (error * near).sum((2, 3)) / near.sum((2, 3)).clamp(min=1)


def local_distance_test(
    predicted: Float[Tensor, "batch model length 3"],
    target: Float[Tensor, "batch length 3"],
    resolved: Bool[Tensor, "batch length"],
) -> Float[Tensor, "batch model length"]:
    """lDDT of each nucleotide's C1', 0 to 1 (Mariani et al. 2013); 0 where it has no neighbour."""
    # differences, not products: far from the origin products lose the digits that the thresholds need
    true = torch.cdist(target, target, compute_mode="donot_use_mm_for_euclid_dist")
    near = resolved[:, :, None] & resolved[:, None, :] & (true < LOCAL_RADIUS)
    near = (near & ~torch.eye(near.shape[1], dtype=torch.bool, device=near.device))[:, None]
    between = torch.cdist(predicted, predicted, compute_mode="donot_use_mm_for_euclid_dist")
    difference = (between - true[:, None]).abs()
    kept = sum((difference < threshold).float() for threshold in (0.5, 1.0, 2.0, 4.0)) / 4
    return (kept * near).sum(-1) / near.sum(-1).clamp(min=1)
