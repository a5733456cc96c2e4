"""ViennaRNA behind our records: known folds, N, long and odd sequences, and a clear word where it is missing."""

import sys

import numpy as np
import pytest

from ribonanzamamba.baselines import folding
from ribonanzamamba.baselines.folding import ViennaMissing, fold, pair_probabilities
from ribonanzamamba.rna.records import Record

needs_vienna = pytest.mark.skipif(not folding.available(), reason="ViennaRNA is not installed")
TRNA = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"


@needs_vienna
def test_fold_is_the_minimum_free_energy_structure():
    folds = fold([Record("hairpin", "GGGGAAAACCCC"), Record("empty", ""), Record("one", "A")])
    assert [prediction.structure.to_dot_bracket() for prediction in folds] == ["((((....))))", "", "."]
    assert [prediction.record.id for prediction in folds] == ["hairpin", "empty", "one"]
    assert folds[0].pair_probability is None and folds[0].coordinates is None


@needs_vienna
def test_pairs_are_ordered_and_a_nucleotide_pairs_once_in_all():
    i, j, p = pair_probabilities(TRNA)
    assert (i < j).all() and list(zip(i, j, strict=True)) == sorted(zip(i, j, strict=True))
    assert p.min() >= 0.01 and p.max() <= 1
    assert (np.bincount(i, p, 76) + np.bincount(j, p, 76)).max() <= 1 + 1e-5


@needs_vienna
def test_probabilities_equal_those_of_the_whole_matrix():
    import RNA

    compound = RNA.fold_compound(TRNA)
    compound.pf()
    whole = np.array(compound.bpp())[1:, 1:]
    i, j, p = pair_probabilities(TRNA)
    np.testing.assert_allclose(p, whole[i, j], atol=1e-6)
    assert (whole >= 0.01).sum() == len(p)


@needs_vienna
def test_n_pairs_with_nothing():
    i, j, _ = pair_probabilities("GGNGGAAAACCNCC")
    assert len(i) and not {2, 11} & {*i.tolist(), *j.tolist()}
    assert len(pair_probabilities("N" * 30)[0]) == 0


@needs_vienna
@pytest.mark.parametrize("sequence", ["", "A", "GC", "NNNN"])
def test_nothing_to_pair(sequence):
    assert [len(array) for array in pair_probabilities(sequence)] == [0, 0, 0]


@needs_vienna
@pytest.mark.parametrize("length", [298, 300, 1000])
def test_strong_folds_do_not_overflow(length):
    _, _, p = pair_probabilities("G" * (length // 2 - 2) + "AAAA" + "C" * (length // 2 - 2))
    assert np.isfinite(p).all() and length / 2 - 6 < p.sum() <= length / 2 - 2


@needs_vienna
def test_scaling_changes_nothing(monkeypatch):
    before = pair_probabilities(TRNA)
    monkeypatch.setattr(folding, "RESCALE_LENGTH", 0)
    for a, b in zip(before, pair_probabilities(TRNA), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_missing_vienna_is_said_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "RNA", None)
    with pytest.raises(ViennaMissing, match=r'pip install "ribonanzamamba\[vienna\]"'):
        pair_probabilities("GGGGAAAACCCC")
    with pytest.raises(ImportError):
        fold([])
