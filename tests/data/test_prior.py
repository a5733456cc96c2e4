"""Priors: rounded alike wherever they are made, cropped with their RNA, on disk once computed."""

import numpy as np
import pytest

from ribonanzamamba.data import prior as prior_module
from ribonanzamamba.data.prior import (
    LEAST_PROBABILITY,
    Prior,
    compute_priors,
    fold_prior,
    fold_priors,
    folding_seconds,
    make_prior,
    read_priors,
)


def made(*pairs: tuple[int, int, float]) -> Prior:
    i, j, p = np.array(pairs, dtype=np.float64).reshape(-1, 3).T
    return make_prior(i.astype(int), j.astype(int), p)


def listed(prior: Prior) -> list[tuple[int, int, int]]:
    return list(zip(prior.i.tolist(), prior.j.tolist(), prior.level.tolist(), strict=True))


def test_probabilities_are_kept_within_half_a_level():
    p = np.linspace(LEAST_PROBABILITY, 1, 1000)
    kept = make_prior(np.zeros(1000, int), np.ones(1000, int), p).p
    assert np.abs(kept - p).max() <= 1 / 255 + 1e-6
    assert np.abs(kept / p - 1).max() < 0.04
    assert kept[-1] == 1


def test_rare_pairs_are_left_out():
    assert listed(made((0, 9, LEAST_PROBABILITY * 0.99), (1, 8, LEAST_PROBABILITY)))[0][:2] == (1, 8)


def test_crop_keeps_what_lies_inside():
    prior = made((0, 9, 0.5), (1, 8, 1.0), (2, 7, 0.25))
    assert listed(prior.crop(1, 9)) == [(0, 7, 255), (1, 6, 128)]
    assert listed(prior.crop(3, 9)) == []


def test_computed_priors_come_back_and_are_not_computed_again(tmp_path, monkeypatch):
    asked = []

    def fold(sequence: str) -> Prior:
        asked.append(sequence)
        return made(*[(0, len(sequence) - 1, 0.5)] * (len(sequence) > 4))

    monkeypatch.setattr(prior_module, "fold_prior", fold)
    monkeypatch.setattr(prior_module, "SHARD_SEQUENCES", 2)
    compute_priors(["GAAAC", "A", "GAAAAC"], tmp_path)
    compute_priors(["A", "GAAAAAC", "GAAAAAC", "GAAAC"], tmp_path)
    assert asked == ["GAAAC", "A", "GAAAAC", "GAAAAAC"]
    assert {sequence: listed(prior) for sequence, prior in read_priors(tmp_path)} == {
        "GAAAC": [(0, 4, 180)],
        "A": [],
        "GAAAAC": [(0, 5, 180)],
        "GAAAAAC": [(0, 6, 180)],
    }


def test_several_workers_find_the_same(tmp_path, monkeypatch):
    pytest.importorskip("RNA", reason="ViennaRNA is not installed")
    monkeypatch.setattr(prior_module, "SHARD_SEQUENCES", 1)
    sequences = ["GGGGAAAACCCC", "GGCGAAAGCC"]
    compute_priors(sequences, tmp_path, workers=2)
    found = dict(read_priors(tmp_path))
    assert {key: listed(prior) for key, prior in found.items()} == {
        sequence: listed(fold_prior(sequence)) for sequence in sequences
    }


def test_priors_made_ahead_are_those_made_one_by_one(monkeypatch):
    pytest.importorskip("RNA", reason="ViennaRNA is not installed")
    sequences = ["GGGGAAAACCCC", "A", "GGCGAAAGCC", "GGGGAAAACCCC", "NNNN"]
    expected = [listed(prior) for prior in fold_priors(sequences, workers=0)]
    monkeypatch.setattr(prior_module, "WORTH_PROCESSES", 0.0)
    monkeypatch.setattr(prior_module, "PART_SECONDS", folding_seconds("A" * 11))
    assert [listed(prior) for prior in fold_priors(sequences, workers=2)] == expected
    assert expected[0] and not expected[1]


def test_a_single_or_a_few_short_rnas_start_no_process(monkeypatch):
    monkeypatch.setattr(prior_module, "fold_prior", lambda sequence: made((0, 9, 0.5)))
    monkeypatch.setattr(prior_module, "_folded_ahead", None)
    assert len(list(fold_priors(["A" * 76] * 50))) == 50
    assert len(list(fold_priors(["A" * 2000]))) == 1
    assert list(fold_priors([])) == []


def test_priors_that_nobody_waits_for_are_not_made(monkeypatch):
    asked = []

    def fold(part):
        asked.append(part)
        return [made((0, 9, 0.5)) for _ in part]

    monkeypatch.setattr(prior_module, "_fold_in_process", fold)
    monkeypatch.setattr(prior_module, "PART_SECONDS", 0.0)
    priors = fold_priors(["A" * 1000] * 100, workers=1)
    next(priors)
    priors.close()
    assert len(asked) < 100
