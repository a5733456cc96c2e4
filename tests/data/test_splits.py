import itertools
from collections import Counter

import numpy as np
import pytest

from ribonanzamamba.data.example import Example
from ribonanzamamba.data.splits import (
    check_split,
    cluster_weights,
    epoch_batches,
    full_batches,
    hashed_split,
    length_sorted_batches,
    padded_length,
    sample_batches,
)


def example(length: int, cluster: int = 0, name: str | None = None, **arrays) -> Example:
    return Example(f"rna{length}" if name is None else name, "ACGU"[length % 4] * length, cluster, 1, "made", **arrays)


LIMITS = {"max_tokens": 512, "max_cells": 20_000, "max_examples": 6}


def draw(examples, count, *, seed=0, **options):
    settings = LIMITS | {"weights": np.ones(len(examples))} | options
    return list(itertools.islice(sample_batches(examples, rng=np.random.default_rng(seed), **settings), count))


def test_hashed_split_is_the_same_everywhere():
    # crc32 of these letters, not Python's seeded hash: fixed for good.
    rng = np.random.default_rng(7)
    keys = ["".join(rng.choice(list("ACGU"), 40)) for _ in range(2000)]
    share = np.mean([hashed_split(key) == "valid" for key in keys])
    assert 0.06 < share < 0.10
    assert [hashed_split(str(k)) for k in range(30)].count("valid") == 2


def test_check_split_names_what_there_is():
    check_split(None, ["train"], "t.csv")
    check_split("train", ["train"], "t.csv")
    with pytest.raises(ValueError, match=r"t\.csv: expected a split of train, valid, got 'vaild'"):
        check_split("vaild", ["train", "valid"], "t.csv")


@pytest.mark.parametrize("power, ratio", [(0.0, 1.0), (0.5, 0.5), (1.0, 0.25)])
def test_cluster_weights_fall_with_the_size_in_this_list(power, ratio):
    examples = [example(5, cluster=1)] * 4 + [example(5, cluster=2)]
    weights = cluster_weights(examples, power)
    assert weights.dtype == np.float64 and weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights[:4], weights[4] * ratio)


def test_cluster_weights_do_not_mix_tables_or_unclustered_examples():
    partners = np.full(5, -1, dtype=np.int32)
    mixed = [example(5, cluster=1), example(5, cluster=1, partners=partners)]
    np.testing.assert_allclose(cluster_weights(mixed), [0.5, 0.5])
    np.testing.assert_allclose(cluster_weights([example(5, cluster=-1)] * 3 + [example(5, cluster=0)]), 0.25)
    assert cluster_weights([]).shape == (0,)


def test_padded_length_is_the_next_multiple():
    assert [padded_length(length, 32) for length in (1, 32, 33)] == [32, 32, 64]
    assert padded_length(33) == 33


def check_limits(batch_lengths: list[int], multiple: int = 1) -> None:
    longest = padded_length(max(batch_lengths), multiple)
    assert len(batch_lengths) <= LIMITS["max_examples"]
    assert len(batch_lengths) * longest <= LIMITS["max_tokens"]
    assert len(batch_lengths) * longest**2 <= LIMITS["max_cells"]


@pytest.mark.parametrize("multiple", [1, 16])
def test_length_sorted_batches_hold_every_index_once_within_limits(multiple):
    lengths = np.random.default_rng(0).integers(1, 128, size=200).tolist()
    batches = length_sorted_batches(lengths, **LIMITS, multiple=multiple)
    assert sorted(itertools.chain(*batches)) == list(range(200))
    ordered = [lengths[index] for batch in batches for index in batch]
    assert ordered == sorted(lengths)
    for batch in batches:
        check_limits([lengths[index] for index in batch], multiple)


@pytest.mark.parametrize("limit", ["max_tokens", "max_cells", "max_examples"])
def test_each_limit_closes_a_batch(limit):
    loose = {"max_tokens": 10**9, "max_cells": 10**9, "max_examples": 10**9}
    tight = {"max_tokens": 20, "max_cells": 200, "max_examples": 2}[limit]
    assert length_sorted_batches([10] * 4, **loose) == [[0, 1, 2, 3]]
    assert length_sorted_batches([10] * 4, **loose | {limit: tight}) == [[0, 1], [2, 3]]


def test_too_long_an_rna_is_a_batch_of_its_own():
    assert length_sorted_batches([5, 9999, 5, 8888], **LIMITS) == [[0, 2], [3], [1]]
    assert length_sorted_batches([], **LIMITS) == []


@pytest.mark.parametrize("multiple", [1, 16])
def test_full_batches_hold_every_index_once_and_have_one_size_a_length(multiple):
    lengths = np.random.default_rng(0).integers(10, 200, 3000).tolist()
    limits = {"max_tokens": 4096, "max_cells": 400_000, "max_examples": 100}
    batches = full_batches(lengths, **limits, multiple=multiple)
    assert sorted(index for batch in batches for index in batch) == list(range(3000))
    sizes = {}
    for batch in batches[:-1]:
        longest = max(padded_length(lengths[index], multiple) for index in batch)
        # as near to the limits as a multiple of a power of two is, which is never more than an eighth
        most = max(n for n in range(1, 101) if n * longest <= 4096 and n * longest**2 <= 400_000)
        unit = 8 if most >= 64 else 4 if most >= 32 else 2 if most >= 16 else 1
        assert len(batch) == most // unit * unit
        sizes.setdefault(longest, set()).add(len(batch))
        assert longest - min(lengths[index] for index in batch) <= 40
    assert all(len(each) == 1 for each in sizes.values()) and len(sizes) > 8
    assert full_batches([], **limits) == []


def test_a_full_batch_of_few_is_no_multiple():
    assert list(map(len, full_batches([100] * 20, max_tokens=700, max_cells=10**6, max_examples=64))) == [7, 7, 6]


def test_sampled_batches_keep_the_limits_and_are_of_similar_length():
    examples = [example(length) for length in range(10, 120)]
    batches = draw(examples, 300, multiple=8)
    spread = []
    for batch in batches:
        check_limits([e.length for e in batch], 8)
        spread.append(max(e.length for e in batch) - min(e.length for e in batch))
    assert np.median(spread) <= 2
    # Shuffled: lengths do not rise from batch to batch.
    firsts = [batch[0].length for batch in batches[:50]]
    assert firsts != sorted(firsts)


def test_sampling_follows_the_weights():
    examples = [example(20, name=name) for name in "abc"]
    batches = draw(examples, 500, weights=np.array([3.0, 1.0, 0.0]))
    counts = Counter(e.id for batch in batches for e in batch)
    assert counts["c"] == 0
    assert counts["a"] / counts["b"] == pytest.approx(3, rel=0.2)


def test_sampling_crops_to_random_windows():
    partners = np.arange(60, dtype=np.int32)[::-1].copy()
    coordinates = np.broadcast_to(np.arange(60, dtype=np.float32)[:, None, None], (60, 4, 3))
    long = example(60, partners=partners, coordinates=coordinates)
    starts = set()
    for batch in draw([long, example(30)], 200, max_length=40):
        for part in batch:
            assert part.length in (30, 40)
            if part.length == 40:
                starts.add(int(part.coordinates[0, 0, 0]))
                assert len(part.partners) == 40
    # Every window, the first and the last too.
    assert starts == set(range(21))


def test_sampling_is_determined_by_the_generator():
    examples = [example(length) for length in range(10, 120)]
    options = {"max_length": 60, "chunk": 64}
    first, again, other = (draw(examples, 40, seed=seed, **options) for seed in (1, 1, 2))
    names = [[[(e.id, e.length) for e in batch] for batch in batches] for batches in (first, again, other)]
    assert names[0] == names[1] and names[0] != names[2]


@pytest.mark.parametrize("skip", [0, 1, 7, 39])
def test_skipped_sampling_continues_where_it_would_have_been(skip):
    coordinates = np.broadcast_to(np.arange(90, dtype=np.float32)[:, None, None], (90, 4, 3))
    examples = [example(length, coordinates=coordinates[:length]) for length in range(10, 90)]
    options = {"max_length": 50, "chunk": 64}

    def content(batches):
        return [[(e.id, float(e.coordinates[0, 0, 0])) for e in batch] for batch in batches]

    assert content(draw(examples, 40, **options))[skip:] == content(draw(examples, 40 - skip, skip=skip, **options))


def test_sampling_leaves_its_inputs_alone():
    examples = [example(20), example(30)]
    weights = np.array([3.0, 1.0])
    kept = list(examples)
    draw(examples, 5, weights=weights)
    assert examples == kept and weights.tolist() == [3.0, 1.0]


def test_sampling_refuses_what_cannot_fit_before_the_first_batch():
    with pytest.raises(ValueError, match="max_length of 128 would crop it"):
        sample_batches([example(200)], weights=np.ones(1), rng=np.random.default_rng(0), **LIMITS, multiple=32)
    assert draw([example(200)], 1, max_length=128, multiple=32)[0][0].length == 128


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, np.nan]])
def test_sampling_refuses_weights_that_are_no_distribution(weights):
    with pytest.raises(ValueError, match="weight"):
        draw([example(20), example(30)], 1, weights=np.array(weights))


def test_sampling_refuses_an_empty_list():
    with pytest.raises(ValueError, match="at least one"):
        draw([], 1, weights=np.zeros(0))


def of_lengths(*lengths: int) -> list[Example]:
    return [Example(str(k), "A" * length, k, 1, "") for k, length in enumerate(lengths)]


def test_an_epoch_has_every_example_once_in_batches_of_one_size():
    examples = of_lengths(*([5, 9] * 40))
    drawn = epoch_batches(examples, batch_examples=8, rng=np.random.default_rng(0))
    epochs = [[next(drawn) for _ in range(10)] for _ in range(2)]
    for epoch in epochs:
        assert sorted(int(example.id) for batch in epoch for example in batch) == list(range(80))
        # sorted by length within the pool: at most one batch has both
        assert sum(len({example.length for example in batch}) > 1 for batch in epoch) <= 1
    assert [[e.id for e in batch] for batch in epochs[0]] != [[e.id for e in batch] for batch in epochs[1]]


def test_epochs_leave_out_the_rest_and_crop():
    drawn = epoch_batches(of_lengths(*([12] * 7)), batch_examples=3, rng=np.random.default_rng(0), max_length=10)
    batches = [next(drawn) for _ in range(4)]
    assert [len({example.id for example in batches[k] + batches[k + 1]}) for k in (0, 2)] == [6, 6]
    assert {example.length for batch in batches for example in batch} == {10}


def test_skipped_epochs_continue_where_they_would_have_been():
    def ids(skip: int, count: int) -> list[list[str]]:
        drawn = epoch_batches(of_lengths(*range(1, 30)), batch_examples=4, rng=np.random.default_rng(3), skip=skip)
        return [[example.id for example in next(drawn)] for _ in range(count)]

    assert ids(0, 20)[9:] == ids(9, 11)


@pytest.mark.parametrize("count", [0, 4])
def test_epochs_need_a_batch_of_examples(count):
    with pytest.raises(ValueError, match="batches of 1 to 3 examples"):
        epoch_batches(of_lengths(1, 2, 3), batch_examples=count, rng=np.random.default_rng(0))
