"""Summaries of coordinates: numbers worked by hand."""

import numpy as np
import pytest

from ribonanzamamba.evaluation.coordinate_report import CoordinatePair, summarize_coordinates

REFERENCE = np.cumsum(np.random.default_rng(0).normal(scale=3.3, size=(40, 3)), axis=0)
TURNED = REFERENCE[:, [1, 2, 0]] + 7.0
HOLED = TURNED.copy()
HOLED[:10] = np.nan


def test_best_and_first_model():
    report = summarize_coordinates([CoordinatePair("r", REFERENCE[None], np.stack([HOLED, TURNED]))])
    assert report.tm_first.mean == pytest.approx(30 / 40)
    assert report.tm_best.mean == pytest.approx(1.0)
    assert report.lddt_first.mean < report.lddt_best.mean == 1.0
    assert report.rmsd_best.mean == pytest.approx(0.0, abs=1e-6)
    assert report.records[0].n_models == 2
    assert "best of 2" in report.to_text()


def test_a_sixth_model_does_not_count():
    models = np.stack([HOLED] * 5 + [TURNED])
    assert summarize_coordinates([CoordinatePair("r", REFERENCE[None], models)]).tm_best.mean == pytest.approx(0.75)


def test_the_best_reference_counts():
    other = np.random.default_rng(1).normal(scale=10.0, size=(40, 3))
    unresolved = np.full((40, 3), np.nan)
    pair = CoordinatePair("r", np.stack([unresolved, other, REFERENCE]), TURNED[None])
    assert summarize_coordinates([pair]).tm_first.mean == pytest.approx(1.0)


def test_a_missing_prediction_is_zero_and_has_no_rmsd():
    pairs = [CoordinatePair("a", REFERENCE[None], TURNED[None]), CoordinatePair("b", REFERENCE[None], None)]
    report = summarize_coordinates(pairs)
    assert report.tm_best.mean == pytest.approx(0.5)
    assert report.lddt_first.mean == pytest.approx(0.5)
    assert report.rmsd_best.mean == pytest.approx(0.0, abs=1e-6)
    assert (report.scored, report.missing) == (1, 1)
    assert report.to_json()["records"][1]["rmsd_best"] is None


def test_a_model_without_a_residue_is_zero():
    report = summarize_coordinates([CoordinatePair("a", REFERENCE[None], np.full((1, 40, 3), np.nan))])
    assert (report.tm_best.mean, report.lddt_best.mean) == (0.0, 0.0)
    assert np.isnan(report.rmsd_best.mean)


def test_lengths_that_differ_name_the_record():
    with pytest.raises(ValueError, match="record 'odd': expected two arrays"):
        summarize_coordinates([CoordinatePair("odd", REFERENCE[None], TURNED[None, :30])])


def test_an_unresolved_reference_names_the_record():
    with pytest.raises(ValueError, match="record 'odd': no reference"):
        summarize_coordinates([CoordinatePair("odd", np.full((1, 40, 3), np.nan), TURNED[None])])
