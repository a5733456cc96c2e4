"""Predictor: answers in the order given, batches that change nothing, and problems that stop only their own record."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from ribonanzamamba.baselines import folding
from ribonanzamamba.baselines.folding import ViennaMissing, pair_probabilities
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.prediction import predict as predict_module
from ribonanzamamba.prediction.predict import (
    PredictionError,
    PredictionProblem,
    Predictor,
    choose_device,
    estimate_memory,
)
from ribonanzamamba.rna.records import ATOMS, PROBES, Prediction, Record

HAIRPIN = "GGGGAAAACCCC"
needs_vienna = pytest.mark.skipif(not folding.available(), reason="ViennaRNA is not installed")


@dataclass(frozen=True)
class FakeOutput:
    reactivity: torch.Tensor | None
    reactivity_error: torch.Tensor | None
    pair_probability: torch.Tensor | None
    coordinates: torch.Tensor | None
    plddt: torch.Tensor | None


class FakeNetwork(torch.nn.Module):
    """Answers that follow from each nucleotide alone, with nonsense in the padding; remembers the shapes it saw.

    The pairs are i and length - 1 - i; the last coordinate model is the most confident. `fails` maps a length to the
    error that a batch holding it meets, `larger` is the number of RNAs above which memory is short.
    """

    def __init__(self, fails: dict[int, Exception] | None = None, larger: int = 10**6) -> None:
        super().__init__()
        self.config = ModelConfig()
        self.fails = fails or {}
        self.larger = larger
        self.shapes: list[tuple[int, int]] = []

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, tasks: frozenset[str]) -> FakeOutput:
        assert torch.is_inference_mode_enabled() and not self.training
        self.shapes.append(tuple(tokens.shape))
        for length in mask.sum(1).tolist():
            if length in self.fails:
                raise self.fails[length]
        if len(tokens) > self.larger:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        batch, length = tokens.shape
        value = torch.where(mask, tokens.float(), torch.nan)
        probability = torch.full((batch, length, length), torch.nan)
        for row, size in enumerate(mask.sum(1).tolist()):
            probability[row, :size, :size] = 0.9 * torch.eye(size).flip(0) * (1 - torch.eye(size))
        models = torch.arange(self.config.coordinate_models).float()
        has = {task: task in tasks for task in ("reactivity", "structure", "coordinates")}
        return FakeOutput(
            value[..., None] + torch.arange(len(PROBES)) if has["reactivity"] else None,
            value[..., None].expand(-1, -1, len(PROBES)) / 10 if has["reactivity"] else None,
            probability if has["structure"] else None,
            (value[:, None, :, None, None] + models[:, None, None, None]).expand(-1, -1, -1, len(ATOMS), 3)
            if has["coordinates"]
            else None,
            value[:, None] + 10 * models[:, None] if has["coordinates"] else None,
        )


def predictor(**options) -> Predictor:
    return Predictor(FakeNetwork(), device="cpu", **options)


def test_a_string_gives_a_prediction():
    prediction = predictor().predict("ggggaaaacccc")
    assert prediction.record == Record("sequence", HAIRPIN)
    assert prediction.reactivity["2A3"].tolist() == [2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_allclose(prediction.reactivity_error["DMS"][:5], [0.2, 0.2, 0.2, 0.2, 0])
    assert tuple(prediction.reactivity) == PROBES
    assert prediction.structure.to_dot_bracket() == "((((....))))"
    assert prediction.pair_probability.shape == (12, 12)
    assert prediction.coordinates.shape == (5, 12, len(ATOMS), 3)
    assert prediction.model_sources == ("network",) * 5
    assert prediction.seconds > 0


def test_models_come_best_first():
    prediction = predictor().predict(HAIRPIN, models=2)
    np.testing.assert_allclose(prediction.model_confidence, [41, 31])
    # the coordinates went with their confidence: models 4 and 3 at the first nucleotide, G
    assert prediction.coordinates[:, 0, 0, 0].tolist() == [6, 5]


def test_a_list_comes_back_in_its_order():
    sequences = ["A" * 9, "C", "GG", "N" * 30, "U" * 4]
    predictions = predictor().predict([*sequences, Record("named", "GGG")])
    assert [prediction.record.sequence for prediction in predictions] == [*sequences, "GGG"]
    assert [prediction.record.id for prediction in predictions][3:] == ["sequence_4", "sequence_5", "named"]
    assert predictor().predict([]) == []


@pytest.mark.parametrize("sequence", ["A", "N", "NNNNNNNN"])
def test_the_shortest_and_the_unknown_work(sequence):
    prediction = predictor().predict(sequence)
    assert prediction.structure.to_dot_bracket() == "." * len(sequence) or sequence == "NNNNNNNN"
    assert prediction.coordinates.shape == (5, len(sequence), len(ATOMS), 3)
    assert np.isfinite(prediction.coordinates).all()


@pytest.mark.parametrize(
    ("tasks", "empty"),
    [
        (("reactivity",), ("pair_probability", "structure", "coordinates", "plddt")),
        (("structure",), ("reactivity", "reactivity_error", "coordinates", "plddt")),
        (("coordinates",), ("reactivity", "reactivity_error", "pair_probability", "structure")),
    ],
)
def test_what_was_not_asked_for_is_empty(tasks, empty):
    prediction = predictor().predict(HAIRPIN, tasks=tasks)
    for name in ("reactivity", "reactivity_error", "pair_probability", "structure", "coordinates", "plddt"):
        value = getattr(prediction, name)
        is_empty = value is None or (isinstance(value, dict) and not value)
        assert is_empty == (name in empty), name


def test_batches_are_bounded_and_shortest_first():
    network = FakeNetwork()
    records = [Record(str(n), "A" * n) for n in (40, 5, 8, 7, 6, 20)]
    results = Predictor(network, device="cpu", max_tokens=24, max_cells=200, max_records=256).iterate(records)
    assert [result.record.id for result in results] == ["5", "6", "7", "8", "20", "40"]
    assert network.shapes == [(3, 7), (1, 8), (1, 20), (1, 40)]


def test_batch_mates_and_padding_change_nothing():
    records = [Record(str(n), (HAIRPIN * 3)[:n]) for n in (5, 12, 30)]
    together = predictor().iterate(records)
    for prediction in together:
        alone = predictor().predict(prediction.record)
        np.testing.assert_array_equal(prediction.coordinates, alone.coordinates)
        np.testing.assert_array_equal(prediction.pair_probability, alone.pair_probability)
        np.testing.assert_array_equal(prediction.reactivity["1M7"], alone.reactivity["1M7"])


def test_a_kept_prediction_does_not_keep_its_batch():
    for prediction in predictor().iterate([Record("a", "A" * 5), Record("b", "A" * 9)]):
        for array in (prediction.pair_probability, prediction.coordinates, prediction.plddt):
            assert array.base is None or array.base.size == array.size


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_out_of_memory_is_a_problem_of_one_record(error):
    records = [Record("a", "A" * 5), Record("large", "A" * 7), Record("c", "A" * 6)]
    results = list(Predictor(FakeNetwork(fails={7: error}), device="cpu").iterate(records))
    assert [type(result) for result in results] == [Prediction, Prediction, PredictionProblem]
    assert results[2].record.id == "large"
    assert results[2].message == "out of memory: 7 nt need about 0.0 GiB on cpu"


def test_a_batch_that_is_too_large_is_halved():
    network = FakeNetwork(larger=1)
    results = list(
        Predictor(network, device="cpu", max_records=256).iterate([Record(str(k), "ACGU") for k in range(3)])
    )
    assert all(isinstance(result, Prediction) for result in results)
    assert network.shapes == [(3, 4), (1, 4), (2, 4), (1, 4), (1, 4)]


def test_other_errors_are_not_hidden():
    with pytest.raises(RuntimeError, match="size mismatch"):
        list(
            Predictor(FakeNetwork(fails={4: RuntimeError("size mismatch")}), device="cpu").iterate(
                [Record("a", "ACGU")]
            )
        )


def test_too_long_and_empty_records_are_problems_with_reasons():
    records = [Record("long", "A" * 51), Record("empty", ""), Record("fine", "A" * 50)]
    results = {result.record.id: result for result in predictor(max_length=50).iterate(records)}
    assert isinstance(results["fine"], Prediction)
    assert results["empty"].message == "the sequence is empty"
    assert results["long"].message == "51 nt: the limit is 50 nt, and this one needs about 0.0 GiB of memory"


def test_what_a_machine_cannot_hold_is_a_problem(monkeypatch):
    monkeypatch.setattr(predict_module, "physical_memory", lambda: estimate_memory(10))
    problem, prediction = predictor().iterate([Record("small", "A" * 10), Record("large", "A" * 11)])
    # problems come first, predictions follow
    assert problem.message == "11 nt: needs about 0.0 GiB of memory, this machine has 0.0 GiB"
    assert prediction.record.id == "small"


def test_numbers_that_are_not_finite_are_a_problem():
    network = FakeNetwork()
    answer = network.forward
    network.forward = lambda tokens, mask, tasks: answer(tokens, torch.zeros_like(mask), tasks)
    (result,) = Predictor(network, device="cpu").iterate([Record("a", "ACGU")])
    assert result.message == "the network's answer holds numbers that are not finite"


def test_predict_raises_where_iterate_yields_a_problem():
    with pytest.raises(PredictionError, match="sequence_2: 51 nt: the limit is 50 nt") as caught:
        predictor(max_length=50).predict(["ACGU", "A" * 51])
    assert [problem.record.id for problem in caught.value.problems] == ["sequence_2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("reactivity", "folding")}, "expected tasks out of reactivity, structure, coordinates, got folding"),
        ({"tasks": ()}, "got none"),
        ({"models": 0}, "expected 1 to 5 coordinate models"),
        ({"models": 6}, "expected 1 to 5 coordinate models.*got 6"),
    ],
)
def test_bad_options_are_refused_before_anything_is_done(options, message):
    with pytest.raises(ValueError, match=message):
        predictor().iterate([Record("a", "ACGU")], **options)


def test_a_letter_that_is_no_nucleotide_is_refused():
    with pytest.raises(ValueError, match="position 4"):
        predictor().predict("ACG!")


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match=device):
        choose_device(device)


def test_memory_grows_with_the_square():
    assert estimate_memory(2000) == 4 * estimate_memory(1000) > 0


class PriorNetwork(FakeNetwork):
    """A fake that says of each nucleotide how much it is paired in the prior; -1 where it has none."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ModelConfig(pair_prior=True)

    def forward(self, tokens, mask, tasks, prior=None, prior_known=None) -> FakeOutput:
        output = super().forward(tokens, mask, tasks)
        paired = -torch.ones_like(tokens, dtype=torch.float32)
        if prior is not None:
            paired = torch.where(prior_known[:, None], prior.sum(-1), paired)
        return replace(output, reactivity=paired[..., None].expand(-1, -1, len(PROBES)))


def paired(prediction: Prediction) -> np.ndarray:
    return prediction.reactivity["2A3"]


@needs_vienna
@pytest.mark.parametrize("prior", ["auto", "vienna"])
def test_a_prior_reaches_the_network(prior):
    predictor = Predictor(PriorNetwork(), device="cpu", prior=prior)
    assert predictor.prior.startswith("ViennaRNA 2.") and predictor.warnings == ()
    found = paired(predictor.predict("GGGGAAAACCCC"))
    assert (found[:3] > 0.5).all() and (found[4:8] < 0.05).all()


@needs_vienna
def test_a_prior_has_its_share_of_the_pair_probabilities():
    rna = "GGGGAAAACCCC"
    alone = Predictor(PriorNetwork(), device="cpu", prior="none").predict(rna).pair_probability
    mixed = Predictor(PriorNetwork(), device="cpu").predict(rna).pair_probability
    i, j, p = pair_probabilities(rna)
    vienna = np.zeros_like(alone)
    vienna[i, j] = vienna[j, i] = p
    share = predict_module.PRIOR_SHARE
    # the prior is kept in 255 levels of its square root
    np.testing.assert_allclose(mixed, (1 - share) * alone + share * vienna, atol=share / 255)
    assert np.abs(mixed - alone).max() > 0.1


@needs_vienna
def test_priors_do_not_depend_on_company_or_order(monkeypatch):
    rnas = ["GGGGAAAACCCC", "GGCGAAAGCC", "AAAA", "GGGGCAAAAGCCCC", "GGGGAAAACCCC"]
    for records, options in ((rnas, {}), (rnas[::-1], {"max_records": 256}), (rnas[2:] + rnas[:2], {"max_tokens": 24})):
        predictor = Predictor(PriorNetwork(), device="cpu", **options)
        together = predictor.predict(records, tasks=("reactivity",))
        for record, prediction in zip(records, together, strict=True):
            np.testing.assert_allclose(paired(prediction), paired(predictor.predict(record)), atol=1e-6)


@needs_vienna
def test_a_long_rna_has_no_prior_and_the_others_have(monkeypatch):
    monkeypatch.setattr(predict_module, "LONGEST_PRIOR", 12)
    predictor = Predictor(PriorNetwork(), device="cpu", max_records=256)
    short, long = predictor.predict(["GGGGAAAACCCC", "GGGGCAAAAGCCCC"], tasks=("reactivity",))
    assert paired(short).max() > 0.5 and (paired(long) == -1).all()


def test_no_prior_is_computed_where_none_is_wanted():
    predictor = Predictor(PriorNetwork(), device="cpu", prior="none")
    assert predictor.prior == "none" and (paired(predictor.predict("GGGGAAAACCCC")) == -1).all()


def test_without_vienna_auto_warns_and_vienna_stops(monkeypatch):
    monkeypatch.setattr(predict_module, "available", lambda: False)
    predictor = Predictor(PriorNetwork(), device="cpu")
    assert predictor.prior == "none" and 'pip install "ribonanzamamba[vienna]"' in predictor.warnings[0]
    assert (paired(predictor.predict("GGGGAAAACCCC")) == -1).all()
    with pytest.raises(ViennaMissing, match="pip install"):
        Predictor(PriorNetwork(), device="cpu", prior="vienna")


def test_weights_without_the_input_take_no_prior_silently():
    assert Predictor(FakeNetwork(), device="cpu").prior == "none"
    with pytest.raises(ValueError, match="take no prior"):
        Predictor(FakeNetwork(), device="cpu", prior="vienna")
    with pytest.raises(ValueError, match="expected a prior of auto, vienna, none"):
        Predictor(FakeNetwork(), device="cpu", prior="rnafold")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rnas_go_one_by_one_where_coordinates_are_asked_for(device, monkeypatch):
    network = FakeNetwork()
    predictor = Predictor(network, device="cpu")
    # the number of RNAs in a batch follows the kind of device alone; the tensors stay where they are
    monkeypatch.setattr(predict_module, "MAX_RECORDS", {"cpu": predict_module.MAX_RECORDS[device]})
    predictor.predict(["ACGU", "ACG", "AC"])
    assert network.shapes == [(1, 2), (1, 3), (1, 4)]
    network.shapes.clear()
    predictor.predict(["ACGU", "ACG", "AC"], tasks=("reactivity", "structure"))
    assert network.shapes == ([(3, 4)] if device == "cuda" else [(1, 2), (1, 3), (1, 4)])
