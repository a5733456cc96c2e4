"""TM-score: cases worked by hand, and a search from many random rotations that must not find more."""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from ribonanzamamba.evaluation import tm_score as tm_module
from ribonanzamamba.evaluation.tm_score import tm_distance_scale, tm_score, tm_superposition

VALIDATION = Path(__file__).parents[2] / ".." / "shared" / "data" / "rna3d" / "validation.parquet"
SEARCH_TOLERANCE = 0.005
"""How much less than the random search's optimum we may find."""


def helix(length: int) -> np.ndarray:
    """C1' of an A-form strand: radius 9 angstrom, rise 2.8, 11 residues a turn."""
    k = np.arange(length)
    return np.stack([9 * np.cos(0.571 * k), 9 * np.sin(0.571 * k), 2.8 * k], axis=1)


def walk(length: int, seed: int) -> np.ndarray:
    """Random walk in steps of about 5.6 angstrom."""
    return np.cumsum(np.random.default_rng(seed).normal(scale=3.3, size=(length, 3)), axis=0)


def moved(points: np.ndarray, seed: int = 0) -> np.ndarray:
    return points @ Rotation.random(random_state=seed).as_matrix().T + [30.0, -20.0, 10.0]


@pytest.mark.parametrize(
    ("length", "scale"),
    [(11, 0.3), (12, 0.4), (15, 0.4), (16, 0.5), (19, 0.5), (20, 0.6), (23, 0.6), (24, 0.7), (29, 0.7)],
)
def test_distance_scale_of_short_references(length, scale):
    assert tm_distance_scale(length) == scale


def test_distance_scale_from_thirty():
    assert tm_distance_scale(30) == pytest.approx(0.6 * 29.5**0.5 - 2.5)
    assert tm_distance_scale(400) == pytest.approx(0.6 * 19.987496 - 2.5, abs=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 11, 30, 100, 457])
def test_a_moved_copy_scores_one(length):
    reference = walk(length, seed=length)
    score, motion = tm_superposition(moved(reference), reference)
    assert score == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_allclose(motion.apply(moved(reference)), reference, atol=1e-6)
    assert motion.rmsd == pytest.approx(0.0, abs=1e-6)
    assert np.linalg.det(motion.rotation) == pytest.approx(1.0)


def test_a_mirror_image_scores_less():
    assert tm_score(helix(40) * [1, 1, -1], helix(40)) < 0.5


def test_one_residue_far_away_costs_its_share():
    reference = walk(40, seed=1)
    predicted = moved(reference)
    predicted[17] += 1e5
    assert tm_score(predicted, reference) == pytest.approx(39 / 40, abs=1e-6)


def test_one_residue_at_d0_costs_at_most_half_its_share():
    reference = walk(100, seed=2)
    predicted = reference.copy()
    predicted[50] += [tm_distance_scale(100), 0, 0]
    # moving the other 99 a little towards it gains less than 1e-3
    assert 99.5 / 100 <= tm_score(predicted, reference) < 99.5 / 100 + 1e-3


def test_two_points_can_only_share_their_error():
    # 4 angstrom instead of 2: d0 of 0.3 makes it better to lay one of them exactly, 1/2 (1 + 1/(1 + (2/0.3)^2))
    reference, predicted = np.array([[0.0, 0, 0], [2, 0, 0]]), np.array([[0.0, 0, 0], [4, 0, 0]])
    assert tm_score(predicted, reference) == pytest.approx(0.5 * (1 + 1 / (1 + (2 / 0.3) ** 2)), abs=5e-3)


def test_a_hinge_lays_one_half_exactly():
    # the second domain is turned by 180 degrees and carried 500 angstrom away: only 60 of 100 residues can fit
    reference = walk(100, seed=3)
    predicted = reference.copy()
    predicted[60:] = predicted[60:] * [-1, -1, 1] + [500, 500, 0]
    assert tm_score(moved(predicted), reference) == pytest.approx(0.6, abs=2e-3)
    _, motion = tm_superposition(moved(predicted), reference)
    assert np.abs(motion.apply(moved(predicted))[:60] - reference[:60]).max() < 0.2


def test_missing_reference_residues_are_ignored():
    full = walk(60, seed=4)
    reference, predicted = full.copy(), moved(full)
    reference[20:32] = np.nan
    predicted[20:32] += 40
    assert tm_score(predicted, reference) == pytest.approx(1.0)


def test_the_scale_is_that_of_resolved_residues():
    reference, predicted = walk(60, seed=4), walk(60, seed=5)
    kept = np.r_[:20, 32:60]
    holed = reference.copy()
    holed[20:32] = np.nan
    assert tm_score(predicted, holed) == pytest.approx(tm_score(predicted[kept], reference[kept]), abs=1e-9)


def test_missing_predicted_residues_add_nothing():
    reference = walk(50, seed=6)
    predicted = moved(reference)
    predicted[:10, 0] = np.nan
    assert tm_score(predicted, reference) == pytest.approx(40 / 50)
    assert tm_score(np.full((50, 3), np.nan), reference) == 0.0


def test_points_in_one_place_are_no_error():
    # all but one of 20 lie 0.5 angstrom times k away from the best place: only the formula is asked for
    score = tm_score(np.zeros((20, 3)), walk(20, seed=7))
    assert 1 / 20 <= score < 0.2


@pytest.mark.parametrize("shape", [(5, 3), (4, 2), (12,)])
def test_shapes_that_differ_are_refused(shape):
    with pytest.raises(ValueError, match="expected two arrays"):
        tm_score(np.zeros(shape), np.zeros((4, 3)))


def test_an_unresolved_reference_is_refused():
    with pytest.raises(ValueError, match="no resolved residue"):
        tm_score(np.zeros((4, 3)), np.full((4, 3), np.nan))


def random_search(predicted: np.ndarray, reference: np.ndarray, starts: int = 25) -> float:
    """The best of many climbs over rotation vector and translation, by a general optimizer."""
    scale, rng = tm_distance_scale(len(reference)), np.random.default_rng(0)

    def loss(motion: np.ndarray) -> float:
        points = Rotation.from_rotvec(motion[:3]).apply(predicted) + motion[3:]
        return -float((1 / (1 + ((points - reference) ** 2).sum(axis=1) / scale**2)).mean())

    best = 0.0
    for _ in range(starts):
        chosen = rng.choice(len(reference), min(4, len(reference)), replace=False)
        centre = predicted[chosen].mean(axis=0)
        rotation, _ = Rotation.align_vectors(
            reference[chosen] - reference[chosen].mean(axis=0), predicted[chosen] - centre
        )
        start = np.r_[rotation.as_rotvec(), reference[chosen].mean(axis=0) - rotation.apply(centre)]
        best = max(best, -minimize(loss, start, method="L-BFGS-B").fun)
    return best


CASES = {
    "noise": lambda reference, rng: reference + rng.normal(scale=2.0, size=reference.shape),
    "drift": lambda reference, rng: reference + np.cumsum(rng.normal(size=reference.shape), axis=0),
    "another walk": lambda reference, rng: walk(len(reference), seed=99),
    "helix": lambda reference, rng: helix(len(reference)),
}


@pytest.mark.parametrize("length", [3, 5, 8, 14, 27, 40])
@pytest.mark.parametrize("case", CASES)
def test_a_random_search_finds_no_more(case, length):
    reference = walk(length, seed=length)
    predicted = CASES[case](reference, np.random.default_rng(length))
    score = tm_score(predicted, reference)
    assert random_search(predicted, reference) <= score + SEARCH_TOLERANCE


def test_the_motion_reaches_the_score():
    reference = walk(80, seed=8)
    predicted = CASES["drift"](reference, np.random.default_rng(8))
    score, motion = tm_superposition(predicted, reference)
    square = ((motion.apply(predicted) - reference) ** 2).sum(axis=1)
    assert (1 / (1 + square / tm_distance_scale(80) ** 2)).mean() == pytest.approx(score, abs=1e-9)
    assert motion.rmsd == pytest.approx(np.sqrt(square.mean()))


def test_tm_align_finds_no_better_superposition():
    """TM-align's rotation, made for its protein d0, scored with ours: an independent program's superposition."""
    tmtools = pytest.importorskip("tmtools")
    reference = walk(90, seed=9)
    predicted = CASES["drift"](reference, np.random.default_rng(9))
    aligned = tmtools.tm_align(predicted, reference, "A" * 90, "A" * 90)
    points = predicted @ aligned.u.T + aligned.t
    theirs = (1 / (1 + ((points - reference) ** 2).sum(axis=1) / tm_distance_scale(90) ** 2)).mean()
    assert theirs <= tm_score(predicted, reference) + 1e-6


def test_real_structures_against_their_neighbours_in_the_table():
    if not VALIDATION.exists():
        pytest.skip("the table of validation structures is not beside the repository")
    import pyarrow.parquet

    lists = pyarrow.parquet.read_table(VALIDATION, columns=["c1p_xyz"])["c1p_xyz"].to_pylist()
    structures = [np.array(values).reshape(-1, 3) for values in lists if 30 <= len(values) / 3 <= 45][:5]
    for first, second in zip(structures, structures[1:], strict=False):
        length = min(len(first), len(second))
        predicted, reference = first[:length], second[:length]
        kept = np.isfinite(predicted).all(axis=1) & np.isfinite(reference).all(axis=1)
        found = random_search(predicted[kept], reference[kept], starts=15)
        assert found <= tm_score(predicted[kept], reference[kept]) + SEARCH_TOLERANCE


@pytest.mark.parametrize("length", [100, 750])
def test_all_candidates_are_superposed_at_once(length, monkeypatch):
    # some 20 and 57 times; a loop over the fragments, of which there are as many as residues, would do it more often
    superpose, calls = tm_module._Search.superpose, []

    def counted(search, weights):
        calls.append(len(weights))
        return superpose(search, weights)

    monkeypatch.setattr(tm_module._Search, "superpose", counted)
    reference = walk(length, seed=10)
    tm_score(CASES["drift"](reference, np.random.default_rng(10)), reference)
    assert len(calls) < 80 and max(calls) > length / 4
