"""Summaries of structures: numbers worked by hand."""

import numpy as np
import pytest

from ribonanzamamba.evaluation.structure_report import StructurePair, summarize_structure
from ribonanzamamba.rna.structure import Structure


def pair(truth, predicted, family="", id="r"):
    known = None if predicted is None else Structure.from_dot_bracket(predicted)
    return StructurePair(id, Structure.from_dot_bracket(truth), known, family)


PAIRS = [
    pair("((....))", "((....))", "x", "right"),  # F1 1
    pair("((....))", "(......)", "x", "half"),  # PPV 1, sensitivity 1/2, F1 2/3
    pair("((....))", None, "x", "missing"),  # 0
    pair("........", "........", "y", "empty"),  # 1
    pair("." * 150, "(...)" + "." * 145, "", "too many"),  # 0
]


def test_means_over_rnas():
    report = summarize_structure(PAIRS)
    assert report.f1.mean == pytest.approx((1 + 2 / 3 + 0 + 1 + 0) / 5)
    assert report.ppv.mean == pytest.approx(3 / 5)
    assert report.sensitivity.mean == pytest.approx(2.5 / 5)
    # half: TP 1, FP 0, FN 1, TN 26 of 28
    assert report.mcc.mean == pytest.approx((2 + 26 / (1 * 2 * 26 * 27) ** 0.5) / 5)
    assert report.f1.low < report.f1.mean < report.f1.high
    assert (report.scored, report.missing) == (4, 1)
    assert [record.f1 for record in report.records] == pytest.approx([1, 2 / 3, 0, 1, 0])
    assert [record.has_prediction for record in report.records] == [True, True, False, True, True]


def test_families_weigh_the_same():
    report = summarize_structure(PAIRS)
    assert [(group.name, group.n_rnas) for group in report.families] == [("x", 3), ("y", 1)]
    assert report.family_f1 == pytest.approx((5 / 9 + 1) / 2)
    assert np.isnan(summarize_structure(PAIRS[4:]).family_f1)


def test_bins_of_length():
    report = summarize_structure(PAIRS)
    assert [(group.name, group.n_rnas) for group in report.lengths] == [("0-99 nt", 4), ("100-199 nt", 1)]
    assert report.lengths[1].f1.mean == 0.0
    edges = [pair("." * length, "." * length) for length in (99, 100, 599, 600, 2000)]
    names = [(group.name, group.n_rnas) for group in summarize_structure(edges).lengths]
    assert names == [("0-99 nt", 1), ("100-199 nt", 1), ("400-599 nt", 1), ("600 nt and more", 2)]


def test_an_rna_without_pairs_needs_a_prediction():
    assert summarize_structure([pair("....", "....")]).f1.mean == 1.0
    assert summarize_structure([pair("....", None)]).f1.mean == 0.0


def test_crossing_pairs_are_pooled():
    report = summarize_structure(
        [
            pair("((..[[..))..]]", "((..[[..))..]]"),  # 4 known, 4 predicted, 4 shared
            pair("((..[[..))..]]", "((......))...."),  # 4 known, none predicted
            pair("((......))....", "(...[...)...]."),  # none known, 2 predicted
        ]
    )
    assert (report.crossing.true, report.crossing.predicted, report.crossing.shared) == (8, 6, 4)
    assert report.crossing_sensitivity == 0.5
    assert report.crossing_ppv == pytest.approx(4 / 6)
    assert "8 known, 6 predicted, 4 shared" in report.to_text()


def test_no_crossing_pair_is_nan():
    report = summarize_structure(PAIRS)
    assert np.isnan(report.crossing_sensitivity) and np.isnan(report.crossing_ppv)
    assert report.to_json()["crossing_ppv"] is None


def test_text_has_a_row_for_each_group():
    text = summarize_structure(PAIRS).to_text()
    starts = [line.split("  ")[0] for line in text.splitlines()]
    assert starts == [
        "RNAs",
        "all",
        "0-99 nt",
        "100-199 nt",
        "x",
        "y",
        "mean of families",
        "crossing pairs",
        "",
        starts[-1],
    ]
    assert "4 RNAs with a prediction, 1 without" in text


def test_lengths_that_differ_name_the_record():
    with pytest.raises(ValueError, match="record 'odd': .* length 4, got 5"):
        summarize_structure([pair("....", ".....", id="odd")])


def test_nothing_to_score():
    assert np.isnan(summarize_structure([]).f1.mean)
    assert "0 RNAs" in summarize_structure([]).to_text()
