"""Metrics of arrays: every number worked by hand."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from ribonanzamamba.evaluation import metrics
from ribonanzamamba.evaluation.metrics import (
    PairCounts,
    best_lddt,
    best_rmsd,
    best_tm_score,
    bootstrap_interval,
    compare_crossing_pairs,
    compare_structures,
    lddt,
    reactivity_mae,
    reactivity_pearson,
    rmsd,
)
from ribonanzamamba.rna.structure import Structure

NAN = float("nan")


def structure(text: str) -> Structure:
    return Structure.from_dot_bracket(text)


def test_mae_clips_both_sides():
    # |0 - 0|, |1 - 1|, |0.5 - 1|
    assert reactivity_mae(np.array([-1.0, 3.0, 0.5]), np.array([-0.2, 1.5, 4.0])) == pytest.approx(0.5 / 3)


def test_mae_leaves_out_what_was_not_measured_or_is_masked():
    predicted, measured = np.array([0.0, 0.2, 0.9, 0.5]), np.array([NAN, 0.3, 0.1, 0.7])
    assert reactivity_mae(predicted, measured) == pytest.approx((0.1 + 0.8 + 0.2) / 3)
    mask = np.array([True, True, False, True])
    assert reactivity_mae(predicted, measured, mask) == pytest.approx((0.1 + 0.2) / 2)


def test_mae_without_a_position_is_nan():
    assert np.isnan(reactivity_mae(np.array([0.5]), np.array([NAN])))
    assert np.isnan(reactivity_mae(np.array([0.5]), np.array([0.5]), np.array([False])))


def test_mae_of_a_gap_in_the_prediction_is_nan():
    assert np.isnan(reactivity_mae(np.array([0.5, NAN]), np.array([0.5, 0.5])))


def test_half_precision_measurements_lose_nothing_in_the_sum():
    measured = np.full(5000, 0.5, dtype=np.float16)
    assert reactivity_mae(np.full(5000, 0.25), measured) == 0.25


@pytest.mark.parametrize("metric", [reactivity_mae, reactivity_pearson])
def test_reactivity_of_other_shapes_is_refused(metric):
    with pytest.raises(ValueError, match="one shape"):
        metric(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="mask"):
        metric(np.zeros(3), np.zeros(3), np.ones(4))


def test_pearson_of_four_points():
    # deviations (-3, -1, 1, 3)/10 and (-2, -2, 2, 2)/10: 16/(sqrt(20) sqrt(16))
    predicted, measured = np.array([0.1, 0.3, 0.5, 0.7]), np.array([0.3, 0.3, 0.7, 0.7])
    assert reactivity_pearson(predicted, measured) == pytest.approx(16 / (20 * 16) ** 0.5)
    assert reactivity_pearson(1 - predicted, measured) == pytest.approx(-16 / (20 * 16) ** 0.5)


def test_pearson_is_of_clipped_values():
    assert reactivity_pearson(np.array([0.0, 1.0, 5.0]), np.array([-1.0, 1.0, 1.0])) == pytest.approx(1.0)


@pytest.mark.parametrize("measured", [[0.5], [0.3, 0.3, 0.3], [0.3, NAN, NAN]], ids=["one", "constant", "one left"])
def test_pearson_without_spread_is_nan(measured):
    assert np.isnan(reactivity_pearson(np.linspace(0, 1, len(measured)), np.array(measured)))


def test_pairs_of_a_shifted_helix():
    truth, predicted = structure("((((...))))."), structure(".(((...))).("[:-1] + ".")
    counts = compare_structures(predicted, truth)
    # pairs (1, 9), (2, 8), (3, 7) are right; (0, 10) is missed
    assert (counts.shared, counts.predicted, counts.true, counts.possible) == (3, 3, 4, 66)
    assert counts.ppv == 1.0
    assert counts.sensitivity == 0.75
    assert counts.f1 == pytest.approx(2 * 3 / 7)
    # TP 3, FP 0, FN 1, TN 62
    assert counts.mcc == pytest.approx(3 * 62 / (3 * 4 * 62 * 63) ** 0.5)


def test_a_slip_by_one_is_wrong():
    assert compare_structures(structure("(...)."), structure(".(...)")).shared == 0
    assert compare_structures(structure("(....)"), structure("(...).")).f1 == 0.0


def test_wrong_pairs_make_mcc_negative():
    # length 4, 6 possible pairs: TP 0, FP 1, FN 1, TN 4
    counts = compare_structures(structure("(.)."), structure(".(.)"))
    assert counts.mcc == pytest.approx(-1 / (1 * 1 * 5 * 5) ** 0.5)


@pytest.mark.parametrize(
    ("predicted", "truth", "score"),
    [("......", "......", 1.0), ("(....)", "......", 0.0), ("......", "(....)", 0.0)],
    ids=["both empty", "only predicted", "only true"],
)
def test_structures_without_pairs(predicted, truth, score):
    counts = compare_structures(structure(predicted), structure(truth))
    assert (counts.f1, counts.ppv, counts.sensitivity, counts.mcc) == (score,) * 4


def test_no_prediction_predicts_no_pair():
    assert compare_structures(None, structure("(...)")) == PairCounts(0, 0, 1, 10)


def test_mcc_where_every_possible_pair_is_true():
    assert compare_structures(structure("()"), structure("()")).mcc == 1.0
    assert PairCounts(0, 0, 0, 0).mcc == 1.0


def test_structures_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="length 5, got 6"):
        compare_structures(structure("......"), structure("....."))


def test_crossing_pairs():
    truth = structure("((..[[..))..]](...)")
    predicted = structure("((...[..))..]......")
    # truth: two pairs on either side cross, the hairpin does not; predicted: (0, 9), (1, 8) and the wrong (5, 12)
    predicted_pairs = {(0, 9), (1, 8), (5, 12)}
    assert set(predicted.pairs) == predicted_pairs
    assert compare_crossing_pairs(predicted, truth).true == 4
    assert compare_crossing_pairs(predicted, truth).predicted == 3
    assert compare_crossing_pairs(predicted, truth).shared == 3
    assert compare_crossing_pairs(structure("((...[..))...]....."), truth).shared == 2


def test_the_nested_half_of_a_pseudoknot_is_no_crossing_pair():
    counts = compare_crossing_pairs(structure("((......))........."), structure("((..[[..))..]](...)"))
    assert (counts.shared, counts.predicted, counts.true) == (0, 0, 4)


def test_counts_add_up():
    total = PairCounts(1, 2, 3, 10) + PairCounts(1, 0, 1, 6)
    assert total == PairCounts(2, 2, 4, 16)
    assert (total.ppv, total.sensitivity) == (1.0, 0.5)


def test_rmsd_after_superposition():
    square = np.array([[1.0, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0]])
    assert rmsd(square[:, [2, 0, 1]] + 7, square) == pytest.approx(0.0, abs=1e-9)
    # corners at a distance of sqrt(2) from the centre, against twice that
    assert rmsd(2 * square, square) == pytest.approx(2**0.5)


def test_rmsd_leaves_missing_residues_out():
    points = np.array([[0.0, 0, 0], [5, 0, 0], [5, 5, 0], [5, 5, 5]])
    predicted = points.copy()
    predicted[3] = np.nan
    assert rmsd(predicted, points) == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(rmsd(np.full((4, 3), np.nan), points))


LINE = np.arange(4.0)[:, None] * [[6.0, 0.0, 0.0]]
"""Distances 6 (three times), 12 (twice) and 18, which is beyond the inclusion radius."""


def test_lddt_of_a_stretched_line():
    # 6 becomes 6.6 (0.6 off: three of four thresholds), 12 becomes 13.2 (1.2 off: two)
    assert lddt(LINE * 1.1, LINE) == pytest.approx((3 * 0.75 + 2 * 0.5) / 5)


def test_lddt_of_each_residue():
    # an end has one pair of 6 and one of 12, an inner residue two of 6 and one of 12
    end, inner = (0.75 + 0.5) / 2, (2 * 0.75 + 0.5) / 3
    np.testing.assert_allclose(lddt(LINE * 1.1, LINE, per_residue=True), [end, inner, inner, end])


@pytest.mark.parametrize("count", [0, 1, 2, 300, 2500])
def test_the_pairs_of_lddt_are_those_of_a_tree(count):
    """2,500 points are more than one block of rows."""
    points = np.random.default_rng(count).normal(size=(count, 3)) * 20
    found = metrics._pairs_within(points, 15.0)
    expected = cKDTree(points).query_pairs(15.0) if count else set()
    assert len(expected) > count or count < 3
    assert set(map(tuple, found.T)) == expected and found.shape[1] == len(expected)


def test_lddt_inclusion_radius():
    assert lddt(LINE * 1.1, LINE, inclusion_radius=6.0) == pytest.approx(0.75)


def test_lddt_does_not_move_with_the_prediction():
    assert lddt(LINE[:, [1, 2, 0]] + 100, LINE) == 1.0


def test_lddt_of_missing_residues():
    reference, predicted = LINE.copy(), LINE.copy()
    predicted[3] = np.nan
    # pairs (0,1), (1,2), (0,2) of five are kept
    assert lddt(predicted, reference) == pytest.approx(3 / 5)
    reference[0] = np.nan
    np.testing.assert_allclose(lddt(predicted, reference, per_residue=True), [np.nan, 0.5, 0.5, 0.0])


@pytest.mark.parametrize("reference", [np.zeros((1, 3)), np.full((3, 3), np.nan)], ids=["one", "unresolved"])
def test_lddt_without_pairs_is_nan(reference):
    assert np.isnan(lddt(np.zeros_like(reference), reference))
    assert np.isnan(lddt(np.zeros_like(reference), reference, per_residue=True)).all()


@pytest.mark.parametrize("metric", [rmsd, lddt])
def test_coordinates_of_other_shapes_are_refused(metric):
    with pytest.raises(ValueError, match="expected two arrays"):
        metric(np.zeros((4, 3)), np.zeros((5, 3)))


def test_the_best_of_several_references_counts():
    other = LINE + np.array([0.0, 1, 0]) * np.arange(4)[:, None] ** 2
    assert best_tm_score(LINE, [other, LINE + 5]) == pytest.approx(1.0)
    assert best_lddt(LINE, [other, LINE + 5]) == 1.0
    assert best_rmsd(LINE, [other, LINE + 5]) == pytest.approx(0.0, abs=1e-9)
    assert best_rmsd(LINE, [other]) > 0.5


def test_references_that_say_nothing_are_nan():
    assert np.isnan(best_lddt(np.zeros((1, 3)), [np.zeros((1, 3))]))
    assert np.isnan(best_rmsd(np.full((1, 3), np.nan), [np.zeros((1, 3))]))


def test_bootstrap_of_coin_flips():
    # 400 values, half 0 and half 1: the standard error of the mean is 0.025, the interval +-1.96 of it
    low, high = bootstrap_interval(np.repeat([0.0, 1.0], 200))
    assert low == pytest.approx(0.5 - 0.049, abs=0.006)
    assert high == pytest.approx(0.5 + 0.049, abs=0.006)


def test_bootstrap_is_reproducible():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)


def test_bootstrap_in_pieces_is_that_in_one(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_interval(values, n=100)
    monkeypatch.setattr("ribonanzamamba.evaluation.metrics._BOOTSTRAP_DRAWS_AT_ONCE", 170)
    assert bootstrap_interval(values, n=100) == whole


def test_bootstrap_weighs():
    # all the weight on the second value: every draw that has it at all is near 1
    low, high = bootstrap_interval([0.0, 1.0, NAN], weights=np.array([1.0, 1e9, 1.0]))
    assert (low, high) == (0.0, pytest.approx(1.0))
    assert bootstrap_interval([0.0, 1.0], weights=np.array([0.0, 2.0])) == (1.0, 1.0)


def test_bootstrap_of_nothing_is_nan():
    assert np.isnan(bootstrap_interval([])).all()
    assert np.isnan(bootstrap_interval([NAN])).all()


def test_bootstrap_refuses_weights_of_another_length():
    with pytest.raises(ValueError, match="expected weights"):
        bootstrap_interval([0.1, 0.2], weights=np.ones(3))
