"""What counts in the losses and what does not: by hand, masked cells in value and gradient, degenerate batches."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ribonanzamamba.data.batch import Batch
from ribonanzamamba.evaluation.metrics import lddt
from ribonanzamamba.model.coordinates import DISTANCE_BINS, PLDDT_BINS, frames_from_atoms, rotation_matrix
from ribonanzamamba.model.heads import IMPOSSIBLE_LOGIT, pair_log_probability
from ribonanzamamba.model.network import ModelOutput
from ribonanzamamba.training.config import LossConfig
from ribonanzamamba.training.loss import (
    BEST_MODEL_SHARE,
    READ,
    Losses,
    coordinate_loss,
    distance_error,
    frame_aligned_error,
    local_distance_test,
    losses,
    reactivity_loss,
    structure_loss,
    taught_loss,
    with_zeros,
)

NAN = float("nan")
FLOOR = 0.01 / 10
"""Loss of a perfect prediction: a length of 0 is taken as 0.01 angstrom, and 10 angstrom are a unit."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made_output(length: int, *, batch: int = 2, models: int = 2, probes: int = 3, seed: int = 0) -> ModelOutput:
    """An output of leaves, as a network in training would give."""
    pair = normal(batch, length, length, seed=seed)
    fields = {
        "reactivity": normal(batch, length, probes, seed=seed + 1),
        "reactivity_error": normal(batch, length, probes, seed=seed + 2).abs() + 0.1,
        "pair_logit": pair + pair.transpose(1, 2),
        "no_partner_logit": normal(batch, length, seed=seed + 3),
        "coordinates": normal(batch, models, length, 4, 3, seed=seed + 4) * 10,
        "plddt_logit": normal(batch, models, length, PLDDT_BINS, seed=seed + 5),
        "distance_logit": normal(batch, length, length, DISTANCE_BINS, seed=seed + 6),
    }
    return ModelOutput(**{name: tensor.requires_grad_() for name, tensor in fields.items()})


def gradients(output: ModelOutput) -> dict[str, Tensor]:
    values = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return {name: tensor.grad for name, tensor in values.items() if tensor is not None}


class TestReactivity:
    value = torch.tensor([[[0.5, 0.9], [0.2, -0.5]], [[0.0, 1.5], [0.4, 0.4]]])
    error = torch.tensor([[[0.1, 0.2], [0.5, 1.0]], [[0.3, 0.4], [0.1, 0.2]]])
    target = torch.tensor([[[0.7, NAN], [0.1, -1.0]], [[NAN, 3.0], [0.6, NAN]]])
    weight = torch.tensor([[[1.0, 0.8], [0.5, 0.25]], [[0.9, 0.5], [0.0, 0.0]]])

    def test_by_hand(self):
        absolute, likelihood = reactivity_loss(self.value, self.error, self.target, self.weight)
        # first RNA: three measured cells; second: two, of which one has no weight; targets clipped to [0, 1]
        first = (1.0 * 0.2 + 0.5 * 0.1 + 0.25 * 0.5) / 3
        second = 0.5 * 0.5 / 2
        assert absolute.item() == pytest.approx((first + second) / 2, abs=1e-6)
        first = 1.0 * (0.2 / 0.1 + math.log(0.1)) + 0.5 * (0.1 / 0.5 + math.log(0.5)) + 0.25 * (0.5 / 1.0)
        second = 0.5 * (0.5 / 0.4 + math.log(0.4))
        assert likelihood.item() == pytest.approx((first / 3 + second / 2) / 2, abs=1e-6)

    def test_unmeasured_cells_have_no_gradient(self):
        value, error = self.value.clone().requires_grad_(), self.error.clone().requires_grad_()
        sum(reactivity_loss(value, error, self.target, self.weight)).backward()
        counts = ~self.target.isnan() & (self.weight > 0)
        for gradient in (value.grad, error.grad):
            assert (gradient[~counts] == 0).all() and (gradient[counts] != 0).all()

    def test_likelihood_does_not_reach_the_value(self):
        value = self.value.clone().requires_grad_()
        error = self.error.clone().requires_grad_()
        _, likelihood = reactivity_loss(value, error, self.target, self.weight)
        assert torch.autograd.grad(likelihood, value, allow_unused=True) == (None,)

    def test_an_example_without_measurements_adds_zero(self):
        nothing = torch.full_like(self.target[:1], NAN)
        parts = [torch.cat([t, t[:1]]) for t in (self.value, self.error)]
        more = reactivity_loss(*parts, torch.cat([self.target, nothing]), torch.cat([self.weight, self.weight[:1]]))
        for got, expected in zip(more, reactivity_loss(self.value, self.error, self.target, self.weight), strict=True):
            torch.testing.assert_close(got, expected * 2 / 3)


class TestStructure:
    def test_by_hand(self):
        logit = torch.full((2, 6, 6), IMPOSSIBLE_LOGIT)
        for (i, j), odds in {(0, 4): 2.0, (0, 5): 5.0, (1, 5): 3.0}.items():
            logit[:, i, j] = logit[:, j, i] = math.log(odds)
        # 0 pairs with 5; 1, 4 unpaired; 2 unknown; 3 with a partner too close to be predicted (left out)
        partners = torch.tensor([[5, -1, -2, 1, -1, 0], [-2, -2, -1, -2, -2, -2]])
        loss = structure_loss(logit, torch.zeros(2, 6), partners)
        first = -(math.log(5 / 8) + math.log(1 / 4) + math.log(1 / 3) + math.log(5 / 9)) / 4
        assert loss.item() == pytest.approx((first + 0) / 2, abs=1e-6)

    def test_unknown_partners_have_no_gradient(self):
        logit, no_partner = normal(1, 9, 9).requires_grad_(), normal(1, 9, seed=1).requires_grad_()
        partners = torch.tensor([[8, -1, -2, 5, -1, 3, -2, -1, 0]])  # 3 and 5 are too close
        structure_loss(logit, no_partner, partners).backward()
        counts = torch.tensor([True, True, False, False, True, False, False, True, True])
        assert (logit.grad[0, ~counts] == 0).all() and (no_partner.grad[0, ~counts] == 0).all()
        assert (logit.grad[0, counts] != 0).all() and (no_partner.grad[0, counts] != 0).all()

    def test_certain_and_right_is_zero(self):
        logit = torch.full((1, 6, 6), IMPOSSIBLE_LOGIT)
        logit[0, 0, 5] = logit[0, 5, 0] = 40.0
        loss = structure_loss(logit, torch.zeros(1, 6), torch.tensor([[5, -1, -1, -1, -1, 0]]))
        assert loss.item() == pytest.approx(0, abs=1e-6)


class TestFrameAlignedError:
    def test_by_hand(self):
        predicted, target = normal(1, 2, 3, 4, 3, seed=1).double() * 5, normal(1, 3, 4, 3, seed=2).double() * 5
        resolved = torch.ones(1, 3, 4, dtype=torch.bool)
        resolved[0, 1, 0] = resolved[0, 2, 3] = False  # an atom less, and a frame and an atom less
        got = frame_aligned_error(predicted, target, resolved)
        for model in range(2):
            errors = []
            for frame in (0, 1):
                local = []
                for atoms in (predicted[0, model], target[0]):
                    rotation, origin = frames_from_atoms(atoms)
                    local.append((atoms - origin[frame]) @ rotation[frame])
                distance = ((local[0] - local[1]).square().sum(-1) + 1e-4).sqrt()[resolved[0]]
                errors += (distance / (1 + distance / 20) / 10).tolist()
            assert len(errors) == 2 * 10
            assert got[0, model].item() == pytest.approx(np.mean(errors), abs=1e-9)

    def test_perfect_and_rigidly_moved_are_zero_and_the_mirror_image_is_not(self, helix_atoms):
        turn = rotation_matrix(torch.tensor([0.3, -1.0, 2.0]))
        moved = helix_atoms @ turn.T + torch.tensor([100.0, -50, 30])
        mirrored = helix_atoms * torch.tensor([-1.0, 1, 1])
        predicted = torch.stack([helix_atoms, moved, mirrored])[None]
        resolved = torch.ones(1, len(helix_atoms), 4, dtype=torch.bool)
        perfect, rigid, mirror = frame_aligned_error(predicted, helix_atoms[None], resolved)[0].tolist()
        assert perfect == pytest.approx(FLOOR, abs=1e-5)
        assert rigid == pytest.approx(FLOOR, abs=1e-4)  # float32 at 100 angstrom
        assert mirror > 0.3

    def test_without_a_frame_it_is_zero(self, helix_atoms):
        resolved = torch.zeros(1, len(helix_atoms), 4, dtype=torch.bool)
        resolved[..., 2] = True  # C1' only, as Kaggle's labels
        predicted = normal(1, 1, len(helix_atoms), 4, 3).requires_grad_()
        error = frame_aligned_error(predicted, helix_atoms[None], resolved)
        error.sum().backward()
        assert error.item() == 0 and (predicted.grad == 0).all()


class TestDistances:
    def test_distance_error_by_hand(self):
        position = torch.tensor([0.0, 10, 40, 45])
        target, predicted = torch.zeros(1, 4, 4, 3), torch.zeros(1, 1, 4, 4, 3)
        target[0, :, 2, 0] = position
        predicted[0, 0, :, 2, 0] = position * 0.9
        resolved = torch.ones(1, 4, 4, dtype=torch.bool)
        # below 30 angstrom: 0-10 and 40-45; errors 1.0 and 0.5
        expected = np.mean([error / (1 + error / 20) / 10 for error in (1.0, 0.5)])
        assert distance_error(predicted, target, resolved).item() == pytest.approx(expected, abs=1e-4)
        resolved[0, 3, 2] = False
        assert distance_error(predicted, target, resolved).item() == pytest.approx(1 / 1.05 / 10, abs=1e-4)

    @pytest.mark.parametrize("offset", [0.0, 500.0], ids=["centred", "far"])
    def test_local_distance_test_equals_the_metric(self, offset):
        length = 60
        target = normal(length, 3).cumsum(0) * 3 + offset
        predicted = torch.stack([target + normal(length, 3, seed=k) * k for k in (1, 2)])
        resolved = torch.rand(length, generator=torch.Generator().manual_seed(0)) > 0.2
        got = local_distance_test(predicted[None], target.nan_to_num(0)[None], resolved[None])[0].numpy()
        reference = target.masked_fill(~resolved[:, None], NAN).numpy()
        for model in range(2):
            expected = np.nan_to_num(lddt(predicted[model].numpy(), reference, per_residue=True), nan=0.0)
            np.testing.assert_allclose(got[model], expected, atol=1e-6)
            assert 0.1 < expected[resolved.numpy()].mean() < 0.9


class TestCoordinates:
    def test_best_model_counts_most(self, helix_atoms):
        target = helix_atoms[None]
        resolved = torch.ones(1, len(helix_atoms), 4, dtype=torch.bool)
        predicted = torch.stack([helix_atoms, helix_atoms + normal(*helix_atoms.shape)])[None]
        # logits of one bin alone: no likelihood is lost where the quality is known
        plddt_logit = torch.zeros(1, 2, len(helix_atoms), PLDDT_BINS)
        output = ModelOutput(coordinates=predicted, plddt_logit=plddt_logit)
        each = frame_aligned_error(predicted, target, resolved) + distance_error(predicted, target, resolved)
        assert each[0, 0] < each[0, 1]
        expected = BEST_MODEL_SHARE * each[0, 0] + (1 - BEST_MODEL_SHARE) * each.mean() + 0.1 * math.log(PLDDT_BINS)
        assert coordinate_loss(output, target).item() == pytest.approx(expected.item(), abs=1e-5)

    def test_certain_and_right_confidence_costs_nothing(self, helix_atoms):
        plddt_logit = torch.zeros(1, 1, len(helix_atoms), PLDDT_BINS)
        plddt_logit[..., -1] = 40.0
        output = ModelOutput(coordinates=helix_atoms[None, None], plddt_logit=plddt_logit)
        assert coordinate_loss(output, helix_atoms[None]).item() == pytest.approx(FLOOR, abs=1e-5)

    def test_unresolved_nucleotides_do_not_count(self, helix_atoms):
        """As if they were not there, in value and gradient."""
        length, gone = 12, [3, 7]
        kept = [k for k in range(length) if k not in gone]
        target = helix_atoms[None, :length].repeat(2, 1, 1, 1)
        target[:, gone] = NAN
        output = made_output(length)
        loss = coordinate_loss(output, target)
        loss.backward()
        without = ModelOutput(
            coordinates=output.coordinates[:, :, kept],
            plddt_logit=output.plddt_logit[:, :, kept],
            distance_logit=output.distance_logit[:, kept][:, :, kept],
        )
        torch.testing.assert_close(coordinate_loss(without, target[:, kept]), loss)
        got = gradients(output)
        assert (got["coordinates"][:, :, gone] == 0).all() and (got["plddt_logit"][:, :, gone] == 0).all()
        assert (got["distance_logit"][:, gone] == 0).all() and (got["distance_logit"][:, :, gone] == 0).all()
        assert (got["coordinates"][:, :, kept, 2].abs().sum(-1) > 0).all()

    def test_a_missing_phosphate_has_no_gradient(self, helix_atoms):
        target = helix_atoms[None, :12].repeat(2, 1, 1, 1)
        target[:, 0, 0] = NAN
        output = made_output(12)
        coordinate_loss(output, target).backward()
        assert (output.coordinates.grad[:, :, 0, 0] == 0).all()
        assert (output.coordinates.grad[:, :, 1:, 0].abs().sum(-1) > 0).all()

    def test_chains_with_too_little_do_not_count(self, helix_atoms):
        """Two resolved nucleotides fix no shape: the batch's loss is that of the other chain."""
        target = helix_atoms[None, :12].repeat(2, 1, 1, 1)
        target[1, 2:] = NAN
        output = made_output(12)
        fields = {name: getattr(output, name) for name in ("coordinates", "plddt_logit")}
        both = coordinate_loss(ModelOutput(**fields), target)
        alone = coordinate_loss(ModelOutput(**{name: t[:1] for name, t in fields.items()}), target[:1])
        torch.testing.assert_close(both, alone)


class TestTaughtPairs:
    logit = torch.full((2, 6, 6), IMPOSSIBLE_LOGIT)
    logit[:, 0, 5] = logit[:, 5, 0] = 2.0
    logit[:, 0, 4] = logit[:, 4, 0] = 1.0
    none = torch.tensor([[0.5, 0.0, 0.0, 0.0, -0.5, 0.25]]).repeat(2, 1)
    prior = torch.zeros(2, 6, 6)
    prior[:, 0, 5] = prior[:, 5, 0] = 0.7
    prior[0, 0, 4] = prior[0, 4, 0] = 0.2

    def test_by_hand(self):
        taught = torch.ones(2, 6, dtype=torch.bool)
        taught[1, 4:] = False
        log_sums = [math.log(math.exp(2) + math.exp(1) + math.exp(0.5)), math.log(math.exp(1) + math.exp(-0.5))]
        log_sums.append(math.log(math.exp(2) + math.exp(0.25)))
        first = [
            log_sums[0] - (0.7 * 2 + 0.2 * 1 + 0.1 * 0.5),
            log_sums[1] - (0.2 * 1 + 0.8 * -0.5),
            log_sums[2] - (0.7 * 2 + 0.3 * 0.25),
        ]
        # 1 to 3 have no choice but none
        second = log_sums[0] - (0.7 * 2 + 0.3 * 0.5)
        value = taught_loss(self.logit, self.none, self.prior, taught)
        assert value.item() == pytest.approx((sum(first) / 6 + second / 4) / 2, abs=1e-6)

    def test_least_where_the_probabilities_are_those_of_the_prior(self):
        """The gradient is the difference of the two."""
        logit, none = self.logit.clone().requires_grad_(), self.none.clone().requires_grad_()
        taught_loss(logit, none, self.prior, torch.ones(2, 6, dtype=torch.bool)).backward()
        choice = pair_log_probability(logit, none).exp().detach()
        torch.testing.assert_close(logit.grad, (choice[..., :-1] - self.prior) / 12)
        torch.testing.assert_close(none.grad, (choice[..., -1] - (1 - self.prior.sum(-1))) / 12)

    def test_a_pair_that_the_network_holds_for_impossible_stays_finite(self):
        prior = self.prior.clone()
        prior[0, 1, 3] = prior[0, 3, 1] = 0.9
        logit = self.logit.clone().requires_grad_()
        value = taught_loss(logit, self.none, prior, torch.ones(2, 6, dtype=torch.bool))
        value.backward()
        assert value < 10 and logit.grad.isfinite().all()

    def test_only_rnas_without_prior_or_pairs_of_their_own_are_taught(self):
        output = made_output(6, batch=4)
        known = torch.tensor([True, True, True, False])
        prior = torch.zeros(4, 6, 6)
        prior[:, 0, 5] = prior[:, 5, 0] = 0.7 * known[:, None].T
        partners = torch.full((4, 6), -2)
        partners[2, 3] = -1
        batch = Batch(
            ids=("withheld", "given", "own", "unknown"),
            tokens=torch.ones(4, 6, dtype=torch.int64),
            mask=torch.ones(4, 6, dtype=torch.bool),
            partners=partners,
            prior=prior,
            prior_known=known,
            prior_given=torch.tensor([False, True, False, False]),
        )
        assert losses(output, batch).taught_pairs is None
        losses(output, batch, weights=LossConfig(taught_pairs=1.0)).taught_pairs.backward()
        gradient = output.pair_logit.grad
        assert (gradient[0] != 0).any() and (gradient[1:] == 0).all()


def made_batch(length: int, real: int, seed: int = 0) -> Batch:
    """Two RNAs of `real` nucleotides, everything measured, padded to `length`."""
    mask = (torch.arange(length) < real).expand(2, length)
    return Batch(
        ids=("a", "b"),
        tokens=torch.where(mask, 1, 4),
        mask=mask,
        reactivity=normal(2, length, 3, seed=seed + 10).masked_fill(~mask[..., None], NAN),
        reactivity_weight=mask[..., None].float().repeat(1, 1, 3),
        partners=torch.where(mask, -1, -2),
        coordinates=(normal(2, length, 4, 3, seed=seed + 11) * 10).masked_fill(~mask[..., None, None], NAN),
    )


def replaced(batch: Batch, rows: slice, **values: float) -> Batch:
    tensors = {}
    for name, value in values.items():
        tensors[name] = getattr(batch, name).clone()
        tensors[name][rows] = value
    return dataclasses.replace(batch, **tensors)


BOTH, SECOND = slice(0, 2), slice(1, 2)
DEGENERATE = {
    "usual": made_batch(10, 10),
    "reactivity-nan": replaced(made_batch(10, 10), BOTH, reactivity=NAN, reactivity_weight=0.0),
    "weights-zero": replaced(made_batch(10, 10), BOTH, reactivity_weight=0.0),
    "partners-unknown": replaced(made_batch(10, 10), BOTH, partners=-2),
    "coordinates-nan": replaced(made_batch(10, 10), BOTH, coordinates=NAN),
    "all-nan": replaced(made_batch(10, 10), BOTH, reactivity=NAN, reactivity_weight=0.0, partners=-2, coordinates=NAN),
    "padded-row": replaced(
        made_batch(10, 10), SECOND, mask=False, tokens=4, reactivity=NAN, reactivity_weight=0.0, partners=-2,
        coordinates=NAN,
    ),
    "one-nucleotide": made_batch(1, 1),
    "one-nucleotide-padded": made_batch(8, 1),
    "two-resolved": dataclasses.replace(made_batch(10, 10), coordinates=made_batch(10, 2).coordinates),
    "same-place": replaced(made_batch(10, 10), BOTH, coordinates=5.0),
}  # fmt: skip


def test_terms_that_a_batch_has_not_can_be_zero():
    output = made_output(10)
    terms = with_zeros(("reactivity", "structure"), Losses(structure=output.pair_logit.mean()), output)
    assert terms.reactivity == 0 and terms.coordinates is None
    terms.total(LossConfig()).backward()
    given = gradients(output)
    assert {name for name, gradient in given.items() if gradient is not None} == {*READ["reactivity"], "pair_logit"}
    assert all((given[name] == 0).all() for name in READ["reactivity"])


@pytest.mark.parametrize("batch", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_degenerate_batches_have_finite_losses_and_gradients(batch):
    output = made_output(batch.tokens.shape[1])
    terms = losses(output, batch)
    # nothing is taught
    assert all(term.isfinite() for name, term in vars(terms).items() if name != "taught_pairs")
    terms.total(LossConfig()).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(output).values())


@pytest.mark.parametrize("batch", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_degenerate_batches_have_finite_gradients_through_the_network(small_network, batch):
    output = small_network.train()(batch.tokens, batch.mask)
    output = dataclasses.replace(
        output, reactivity=output.reactivity[..., :3], reactivity_error=output.reactivity_error[..., :3]
    )
    losses(output, batch).total(LossConfig()).backward()
    bad = [n for n, p in small_network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert bad == []


def test_nothing_measured_gives_no_gradient_but_zero():
    output = made_output(10)
    losses(output, DEGENERATE["all-nan"]).total(LossConfig()).backward()
    assert all((gradient == 0).all() for gradient in gradients(output).values())


def test_padding_changes_nothing():
    short, long = made_output(9), made_output(14)
    grown = {}
    for field in dataclasses.fields(short):
        small, large = getattr(short, field.name), getattr(long, field.name).detach().clone()
        large[tuple(slice(0, size) for size in small.shape)] = small.detach()
        grown[field.name] = large
    # a logit of padding is impossible, as the head makes it
    grown["pair_logit"][:, 9:], grown["pair_logit"][:, :, 9:] = IMPOSSIBLE_LOGIT, IMPOSSIBLE_LOGIT
    batch = made_batch(9, 9)
    padded = made_batch(14, 9)
    for name in ("reactivity", "coordinates"):
        getattr(padded, name)[:, :9] = getattr(batch, name)
    priors = [torch.zeros(2, each.mask.shape[1], each.mask.shape[1]) for each in (batch, padded)]
    for prior in priors:
        prior[:, 1, 8] = prior[:, 8, 1] = 0.5
    withheld = {"prior_known": torch.tensor([True, True]), "prior_given": torch.tensor([False, False])}
    batch = dataclasses.replace(batch, partners=None, prior=priors[0], **withheld)
    padded = dataclasses.replace(padded, partners=None, prior=priors[1], **withheld)
    weights = LossConfig(taught_pairs=1.0)
    expected, got = losses(short, batch, weights=weights), losses(ModelOutput(**grown), padded, weights=weights)
    for field in dataclasses.fields(Losses):
        torch.testing.assert_close(getattr(got, field.name), getattr(expected, field.name), msg=field.name)
    assert expected.taught_pairs > 0


def test_total_is_the_weighted_sum_of_what_there_is():
    terms = Losses(reactivity=torch.tensor(0.5), coordinates=torch.tensor(2.0))
    weights = LossConfig(reactivity=3.0, reactivity_error=100.0, structure=100.0, coordinates=0.25)
    assert terms.total(weights).item() == pytest.approx(3 * 0.5 + 0.25 * 2)


def test_terms_are_none_without_measurement_or_output():
    batch = dataclasses.replace(made_batch(6, 6), partners=None)
    output = dataclasses.replace(made_output(6), coordinates=None)
    terms = losses(output, batch)
    assert terms.structure is None and terms.coordinates is None and terms.reactivity is not None
