"""Errors by group and paired intervals: cases worked by hand."""

import numpy as np
import pytest

from ribonanzamamba.evaluation.comparison import Cells, best, compare_errors


@pytest.fixture
def cells() -> Cells:
    return Cells(
        rna=np.array([0, 0, 1, 1]),
        probe=np.array(["2A3", "2A3", "2A3", "DMS"]),
        dataset=np.array(["a", "a", "b", "b"]),
        length=np.array([115, 115, 170, 170]),
        signal_to_noise=np.array([1.0, 1.0, 30.0, 30.0]),
        measured=np.array([0.0, 2.0, 0.5, 0.5]),
    )


def test_errors_are_of_clipped_values(cells):
    assert cells.errors(np.array([-1.0, 0.75, 0.25, 7.0])).tolist() == [0.0, 0.25, 0.25, 0.5]
    with pytest.raises(ValueError, match="expected 4 predictions"):
        cells.errors(np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        cells.errors(np.full(4, np.nan))


def test_groups_of_a_probe(cells):
    groups = {name: mask.tolist() for name, mask in cells.groups("2A3").items()}
    low, high = [True, True, False, False], [False, False, True, False]
    assert groups == {
        "all": [True, True, True, False], "a": low, "b": high, "S/N 1-2": low, "S/N over 20": high,
        "1-120 nt": low, "121-200 nt": high,
    }  # fmt: skip


def test_pairing_takes_away_what_rnas_have_in_common():
    rng = np.random.default_rng(0)
    rna = np.repeat(np.arange(50), 20)
    hard = np.repeat(rng.random(50), 20)
    result = compare_errors(hard, hard + 0.1, rna)
    assert result.difference.mean == pytest.approx(-0.1)
    assert result.difference.low == pytest.approx(-0.1) and result.difference.high == pytest.approx(-0.1)
    assert result.ratio.low < result.ratio.mean < result.ratio.high < 1


def test_the_interval_is_that_of_drawing_rnas():
    rng = np.random.default_rng(1)
    difference = rng.normal(0.02, 0.1, 200)
    result = compare_errors(0.5 + difference, np.full(200, 0.5), np.arange(200), draws=4000).difference
    half = 1.96 * difference.std() / 200**0.5
    assert result.high - result.low == pytest.approx(2 * half, rel=0.1)
    assert result == compare_errors(0.5 + difference, np.full(200, 0.5), np.arange(200), draws=4000).difference


def test_errors_of_other_cells_cannot_be_compared():
    with pytest.raises(ValueError, match="same cells"):
        compare_errors(np.zeros(2), np.zeros(3), np.zeros(2))


def test_the_best_of_a_group():
    errors = {"one": np.array([0.1, 0.9]), "other": np.array([0.2, 0.2])}
    assert best(errors, np.array([True, False])) == "one" and best(errors, np.array([True, True])) == "other"
