import dataclasses

import numpy as np
import pytest

from ribonanzamamba.data.example import Example, crop, reverse, reverse_some
from ribonanzamamba.data.prior import Prior


def make_example() -> Example:
    return Example(
        id="hairpin",
        sequence="GGAAACCU",
        cluster=3,
        cluster_size=7,
        dataset="made",
        reactivity=np.arange(16, dtype=np.float16).reshape(8, 2),
        reactivity_weight=np.ones((8, 2), dtype=np.float32),
        partners=np.array([6, 5, -1, -1, -2, 1, 0, -1], dtype=np.int32),
        coordinates=np.arange(96, dtype=np.float32).reshape(8, 4, 3),
        prior=Prior(np.uint16([0, 1]), np.uint16([6, 5]), np.uint8([255, 200])),
    )


def test_crop_slices_every_array_and_makes_outside_partners_unknown():
    whole = make_example()
    part = crop(whole, 1, 6)
    assert part.sequence == "GAAAC" and part.length == 5
    assert part.partners.tolist() == [4, -1, -1, -2, 0]
    np.testing.assert_array_equal(part.reactivity, whole.reactivity[1:6])
    np.testing.assert_array_equal(part.coordinates, whole.coordinates[1:6])
    assert (part.prior.i.tolist(), part.prior.j.tolist(), part.prior.level.tolist()) == ([0], [4], [200])
    assert (part.id, part.cluster, part.cluster_size, part.dataset) == ("hairpin", 3, 7, "made")
    assert crop(whole, 1, 5).partners.tolist() == [-2, -1, -1, -2]


def test_crop_leaves_the_example_as_it_was():
    whole = make_example()
    before = whole.partners.copy()
    crop(whole, 2, 8)
    np.testing.assert_array_equal(whole.partners, before)


def test_crop_to_everything_is_the_example_itself():
    whole = make_example()
    assert crop(whole, 0, 8) is whole


def test_crop_keeps_missing_arrays_missing():
    bare = Example("bare", "ACGU", 0, 1, "made")
    part = crop(bare, 1, 2)
    assert part.sequence == "C"
    assert part.reactivity is part.reactivity_weight is part.partners is part.coordinates is part.prior is None


@pytest.mark.parametrize("start, stop", [(-1, 3), (0, 9), (4, 4), (5, 3)])
def test_crop_refuses_an_impossible_window(start, stop):
    with pytest.raises(ValueError, match=r"0 <= start < stop <= 8"):
        crop(make_example(), start, stop)


def test_example_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_example().sequence = "A"


def test_only_reactivity_is_reversed():
    """Base pairs and coordinates mean nothing from the other end."""
    reactivity = np.array([[0.1], [0.2], [0.3], [0.4]], dtype=np.float32)
    prior = Prior(np.uint16([0]), np.uint16([2]), np.uint8([255]))
    measured = Example("r", "GCAA", 0, 1, "", reactivity=reactivity, reactivity_weight=reactivity, prior=prior)
    paired = Example("s", "GCAA", 0, 1, "", partners=np.array([1, 0, -1, -1], dtype=np.int32))
    shaped = Example("c", "GCAA", 0, 1, "", coordinates=np.zeros((4, 4, 3), dtype=np.float32))
    back, *others = reverse_some([measured, paired, shaped], 1.0, np.random.default_rng(0))
    assert back.sequence == "AACG" and (back.prior.i, back.prior.j) == (1, 3)
    np.testing.assert_array_equal(back.reactivity, reactivity[::-1])
    np.testing.assert_array_equal(back.reactivity_weight, reactivity[::-1])
    assert others == [paired, shaped]
    with pytest.raises(ValueError, match="s: expected reactivity alone"):
        reverse(paired)
