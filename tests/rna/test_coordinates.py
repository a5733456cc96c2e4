"""Superposition of points."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ribonanzamamba.rna.coordinates import superpose


@pytest.fixture
def generator():
    return np.random.default_rng(7)


def test_superpose_recovers_a_rigid_motion(generator):
    moving = generator.normal(size=(20, 3)) * 10
    rotation = Rotation.random(random_state=1).as_matrix()
    fit = superpose(moving, moving @ rotation.T + [1.0, -2.0, 3.0])
    np.testing.assert_allclose(fit.rotation, rotation, atol=1e-12)
    np.testing.assert_allclose(fit.translation, [1.0, -2.0, 3.0], atol=1e-10)
    assert fit.rmsd < 1e-10
    rotation, translation, rmsd = fit  # unpacks in this order
    np.testing.assert_allclose(fit.apply(moving), moving @ rotation.T + translation)


def test_superpose_agrees_with_scipy(generator):
    moving, fixed = generator.normal(size=(2, 15, 3))
    weights = generator.uniform(0.1, 3.0, size=15)
    fit = superpose(moving, fixed, weights)
    share = weights[:, None] / weights.sum()
    moving_centred, fixed_centred = moving - (share * moving).sum(0), fixed - (share * fixed).sum(0)
    rotation, distance = Rotation.align_vectors(fixed_centred, moving_centred, weights=weights)
    np.testing.assert_allclose(fit.rotation, rotation.as_matrix(), atol=1e-8)
    np.testing.assert_allclose(fit.rmsd, distance / np.sqrt(weights.sum()), rtol=1e-8)


def test_superpose_makes_no_mirror_image(generator):
    moving = generator.normal(size=(10, 3))
    fit = superpose(moving, moving * [1.0, 1.0, -1.0])
    assert np.linalg.det(fit.rotation) == pytest.approx(1.0)
    assert fit.rmsd > 0.1


def test_superpose_ignores_missing_and_weightless_points(generator):
    moving, fixed = generator.normal(size=(2, 12, 3))
    expected = superpose(moving[3:], fixed[3:])
    moving[0, 1] = np.nan
    fixed[1] = np.nan
    fixed[2] = 1e6
    fit = superpose(moving, fixed, np.array([1.0, 1.0, 0.0] + [1.0] * 9))
    np.testing.assert_allclose(fit.rotation, expected.rotation, atol=1e-12)
    assert fit.rmsd == pytest.approx(expected.rmsd)
    assert np.isnan(fit.apply(moving)[0]).all() and np.isfinite(fit.apply(moving)[1:]).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_superpose_few_points(n, generator):
    moving = generator.normal(size=(n, 3))
    rotation = Rotation.random(random_state=2).as_matrix()
    fit = superpose(moving, moving @ rotation.T + 5.0)
    assert np.linalg.det(fit.rotation) == pytest.approx(1.0)
    assert fit.rmsd < 1e-12


def test_apply_takes_leading_axes(generator):
    moving = generator.normal(size=(6, 3))
    fit = superpose(moving, moving + 2.0)
    np.testing.assert_allclose(fit.apply(moving.reshape(2, 3, 3)), moving.reshape(2, 3, 3) + 2.0, atol=1e-12)


@pytest.mark.parametrize(
    ("moving", "fixed", "weights", "message"),
    [
        pytest.param(np.zeros((3, 3)), np.zeros((4, 3)), None, "expected two arrays", id="lengths"),
        pytest.param(np.zeros((3, 2)), np.zeros((3, 2)), None, "expected two arrays", id="plane"),
        pytest.param(np.zeros((3, 3)), np.zeros((3, 3)), np.ones(2), "expected weights", id="weights-length"),
        pytest.param(np.zeros((3, 3)), np.zeros((3, 3)), -np.ones(3), "negative", id="negative-weight"),
        pytest.param(np.full((3, 3), np.nan), np.zeros((3, 3)), None, "no point", id="nothing-left"),
        pytest.param(np.zeros((0, 3)), np.zeros((0, 3)), None, "no point", id="empty"),
    ],
)
def test_superpose_refuses(moving, fixed, weights, message):
    with pytest.raises(ValueError, match=message):
        superpose(moving, fixed, weights)
