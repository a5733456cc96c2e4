"""Summaries of reactivity: numbers worked by hand."""

import numpy as np
import pytest

from ribonanzamamba.evaluation.reactivity_report import ReactivityPair, summarize_reactivity

NAN = float("nan")


def pair(probe, measured, predicted, sequence="", dataset="", id="r"):
    predicted = None if predicted is None else np.array(predicted)
    return ReactivityPair(id, probe, np.array(measured), predicted, sequence, dataset)


def chosen(report, probe, dataset="all", nucleotides="all"):
    (score,) = [s for s in report.scores if (s.probe, s.dataset, s.nucleotides) == (probe, dataset, nucleotides)]
    return score


def test_positions_weigh_the_same():
    # errors 0.1 (three positions) and 0.5 (one): not the mean of 0.1 and 0.5
    report = summarize_reactivity(
        [pair("2A3", [0.1, 0.2, 0.3], [0.2, 0.3, 0.4], id="x"), pair("2A3", [0.5, NAN], [1.0, 0.0], id="y")]
    )
    score = chosen(report, "2A3")
    assert score.mae.mean == pytest.approx(0.8 / 4)
    assert (score.mae.low, score.mae.high) == (pytest.approx(0.1), pytest.approx(0.5))
    assert (score.n_rnas, score.n_positions) == (2, 4)
    assert (report.scored, report.missing) == (2, 0)


def test_replicates_are_one_rna():
    rows = [pair("2A3", [0.0], [0.5], "A", id="x"), pair("2A3", [0.5], [0.5], "A", id="y")]
    score = chosen(summarize_reactivity(rows), "2A3")
    assert (score.n_rnas, score.n_positions, score.mae.low, score.mae.high) == (1, 2, 0.25, 0.25)


def test_dms_at_a_and_c_apart():
    report = summarize_reactivity([pair("DMS", [0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.4, 0.8], "ACGU")])
    assert chosen(report, "DMS").mae.mean == pytest.approx(1.5 / 4)
    assert chosen(report, "DMS", nucleotides="A").mae.mean == pytest.approx(0.1)
    assert chosen(report, "DMS", nucleotides="C").mae.mean == pytest.approx(0.2)
    assert chosen(report, "DMS", nucleotides="AC").mae.mean == pytest.approx(0.15)
    assert len(report.scores) == 4


def test_probes_and_datasets():
    report = summarize_reactivity(
        [
            pair("2A3", [0.0], [0.2], dataset="one", id="x"),
            pair("2A3", [0.0], [0.4], dataset="two", id="y"),
            pair("1M7", [0.0], [0.9], dataset="two", id="z"),
        ]
    )
    keys = [(score.probe, score.dataset) for score in report.scores]
    assert keys == [("all", "all"), ("2A3", "all"), ("2A3", "one"), ("2A3", "two"), ("1M7", "all")]
    assert [score.mae.mean for score in report.scores] == pytest.approx([0.5, 0.3, 0.2, 0.4, 0.9])


def test_missing_rows_are_left_out_and_counted():
    report = summarize_reactivity([pair("2A3", [0.0], [0.2]), pair("2A3", [0.0], None)], noisy=3)
    assert chosen(report, "2A3").mae.mean == pytest.approx(0.2)
    assert (report.scored, report.missing, report.noisy) == (1, 1, 3)
    assert "1 without a prediction" in report.to_text() and "3 too noisy" in report.to_text()


def test_pearson_is_over_positions():
    rows = [pair("2A3", [0.0, 0.2], [0.0, 0.1], id="x"), pair("2A3", [0.4, 0.6], [0.2, 0.3], id="y")]
    assert chosen(summarize_reactivity(rows), "2A3").pearson == pytest.approx(1.0)


def test_nothing_to_score():
    report = summarize_reactivity([])
    assert report.scores == ()
    assert report.to_text().startswith("probe")


def test_lengths_that_differ_name_the_record():
    with pytest.raises(ValueError, match="record 'odd': expected 2A3 reactivity of length 2, got 1"):
        summarize_reactivity([pair("2A3", [0.0, 0.1], [0.2], id="odd")])


def test_a_gap_in_a_prediction_names_the_record():
    with pytest.raises(ValueError, match="record 'odd': .* position 2"):
        summarize_reactivity([pair("2A3", [NAN, 0.1], [NAN, NAN], id="odd")])


def test_coverage_counts_positions_in_the_interval_of_the_predicted_error():
    error = np.array([0.1, 0.1, 0.1, 0.1])
    measured, predicted = np.array([0.0, 0.16, 0.17, np.nan]), np.zeros(4)
    known = ReactivityPair("a", "2A3", measured, predicted, error=error)
    unknown = ReactivityPair("b", "DMS", measured, predicted)
    coverage = {score.probe: score.coverage for score in summarize_reactivity([known, unknown]).scores}
    assert coverage["2A3"] == pytest.approx(2 / 3)
    assert np.isnan(coverage["DMS"]) and np.isnan(coverage["all"])
