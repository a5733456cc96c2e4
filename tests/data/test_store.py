"""A store gives back what was put in, and refuses what it did not write."""

import json

import numpy as np
import pytest

from ribonanzamamba.data.example import Example
from ribonanzamamba.data.prior import Prior
from ribonanzamamba.data.store import COORDINATE_STEP, read_store, write_store

FIELDS = ("id", "sequence", "cluster", "cluster_size", "dataset")


def prior(*pairs: tuple[int, int, int]) -> Prior:
    i, j, level = np.array(pairs, dtype=np.int64).reshape(-1, 3).T
    return Prior(i.astype(np.uint16), j.astype(np.uint16), level.astype(np.uint8))


def listed(prior: Prior) -> set[tuple[int, int, int]]:
    return set(zip(prior.i.tolist(), prior.j.tolist(), prior.level.tolist(), strict=True))


def groups() -> dict[str, list[Example]]:
    rng = np.random.default_rng(0)
    reactivity = np.full((7, 10), np.nan, dtype=np.float16)
    reactivity[:, 2], reactivity[1:5, 9] = rng.random(7), rng.random(4)
    weight = np.where(np.isnan(reactivity), 0, rng.random((7, 10))).astype(np.float32)
    xyz = rng.normal(scale=30, size=(8, 4, 3)).astype(np.float32) + 400
    xyz[3, 1], xyz[7] = np.nan, np.nan
    wide = np.zeros((2, 4, 3), dtype=np.float32)
    wide[1, 0, 0] = 5000
    bare = Example("bare", "ACGUN", -1, 1, "b")
    return {
        "first": [
            Example("r", "GGAAACC", 3, 9, "a", reactivity, weight, prior=prior((0, 6, 255), (1, 5, 9))),
            bare,
            Example("s", "GGAAACCU", 1, 2, "b", partners=np.array([6, 5, -1, -1, -2, 1, 0, -1], np.int32)),
        ],
        "empty": [],
        "last": [
            Example("c", "GGAAACCU", 5, 1, "c", coordinates=xyz, prior=prior()),
            Example("wide", "AC", 5, 1, "c", coordinates=wide),
            Example("nan", "A", 5, 1, "c", coordinates=np.full((1, 4, 3), np.nan, np.float32)),
        ],
    }


def test_everything_comes_back(tmp_path):
    before = groups()
    write_store(tmp_path / "store", before)
    after = read_store(tmp_path / "store")
    assert {name: len(group) for name, group in after.items()} == {"first": 3, "empty": 0, "last": 3}
    for old, new in zip(sum(before.values(), []), sum(after.values(), []), strict=True):
        assert [getattr(old, field) for field in FIELDS] == [getattr(new, field) for field in FIELDS]
        for field in ("reactivity", "reactivity_weight", "partners"):
            if getattr(old, field) is None:
                assert getattr(new, field) is None
            else:
                assert getattr(new, field).dtype == getattr(old, field).dtype
                np.testing.assert_array_equal(getattr(new, field), getattr(old, field))
        assert (old.coordinates is None) == (new.coordinates is None)
    assert listed(after["first"][0].prior) == listed(before["first"][0].prior)
    assert after["first"][1].prior is None


def test_coordinates_are_moved_and_rounded_alone(tmp_path):
    before = groups()
    write_store(tmp_path, before)
    for old, new, step in zip(before["last"], read_store(tmp_path)["last"], (COORDINATE_STEP, 0.08, 1), strict=True):
        np.testing.assert_array_equal(np.isnan(old.coordinates), np.isnan(new.coordinates))
        shift = (old.coordinates.astype(float) - new.coordinates).reshape(-1, 3)
        shift = shift[~np.isnan(shift[:, 0])]
        assert len(shift) == 0 or np.ptp(shift, axis=0).max() <= 1.01 * step
        assert new.coordinates.dtype == np.float32


def test_given_priors_replace_those_of_the_examples(tmp_path):
    write_store(tmp_path, groups(), {"GGAAACCU": prior((0, 6, 100)), "GGAAACC": prior((1, 5, 7)), "AAAA": prior()})
    after = sum(read_store(tmp_path).values(), [])
    found = {example.id: None if example.prior is None else listed(example.prior) for example in after}
    one = {(0, 6, 100)}
    assert found == {"r": {(1, 5, 7)}, "bare": None, "s": one, "c": one, "wide": None, "nan": None}


def test_an_empty_store(tmp_path):
    write_store(tmp_path, {"nothing": []})
    assert read_store(tmp_path) == {"nothing": []}


def test_arrays_are_read_only(tmp_path):
    write_store(tmp_path, groups())
    with pytest.raises(ValueError, match="read-only"):
        read_store(tmp_path)["first"][0].reactivity[0] = 1


def test_no_store_and_half_a_store_are_said_to_be_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no store of examples"):
        read_store(tmp_path)
    write_store(tmp_path, groups())
    (tmp_path / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match="no store of examples"):
        read_store(tmp_path)


def test_a_store_of_other_probes_is_refused(tmp_path):
    write_store(tmp_path, groups())
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | {"probes": ["2A3"]}))
    with pytest.raises(ValueError, match="probes differ"):
        read_store(tmp_path)
