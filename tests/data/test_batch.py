import dataclasses
import threading
import time

import numpy as np
import pytest
import torch

from ribonanzamamba.data.batch import Batch, batches, collate, prefetch
from ribonanzamamba.data.example import Example
from ribonanzamamba.data.prior import Prior


def bare(name: str, sequence: str, **arrays) -> Example:
    return Example(name, sequence, 0, 1, "made", **arrays)


def full(name: str, sequence: str) -> Example:
    length = len(sequence)
    reactivity = np.arange(length * 10, dtype=np.float16).reshape(length, 10)
    reactivity[0, 0] = np.nan
    return bare(
        name,
        sequence,
        reactivity=reactivity,
        reactivity_weight=np.full((length, 10), 0.5, dtype=np.float32),
        partners=np.full(length, -1, dtype=np.int32),
        coordinates=np.ones((length, 4, 3), dtype=np.float32),
        prior=Prior(np.uint16([0]), np.uint16([length - 1]), np.uint8([255])),
    )


def tensors(batch: Batch) -> list[torch.Tensor]:
    values = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return [value for value in values if isinstance(value, torch.Tensor)]


def test_collate_pads_with_what_means_nothing():
    batch = collate([full("a", "ACGUN"), full("b", "GG")], multiple=4)
    assert batch.ids == ("a", "b") and len(batch) == 2
    assert batch.tokens.tolist() == [[0, 1, 2, 3, 4, 4, 4, 4], [2, 2, 4, 4, 4, 4, 4, 4]]
    assert batch.mask.tolist() == [[True] * 5 + [False] * 3, [True] * 2 + [False] * 6]
    assert [t.dtype for t in tensors(batch)] == [
        torch.int64,
        torch.bool,
        torch.float32,
        torch.float32,
        torch.int64,
        torch.float32,
        torch.float32,
        torch.bool,
        torch.bool,
    ]
    assert batch.reactivity.shape == (2, 8, 10) and batch.coordinates.shape == (2, 8, 4, 3)
    pads = ~batch.mask
    assert batch.reactivity[pads].isnan().all() and batch.coordinates[pads].isnan().all()
    assert (batch.reactivity_weight[pads] == 0).all() and (batch.partners[pads] == -2).all()
    assert batch.reactivity[0, 0].isnan().tolist() == [True] + [False] * 9
    assert batch.reactivity[1, 1].tolist() == list(range(10, 20))
    assert (batch.partners[batch.mask] == -1).all() and (batch.coordinates[batch.mask] == 1).all()


def test_collate_without_multiple_pads_to_the_longest():
    assert collate([bare("a", "ACG"), bare("b", "A")]).tokens.shape == (2, 3)


def test_field_is_none_only_if_no_example_has_it():
    none = collate([bare("a", "AC"), bare("b", "G")])
    assert none.reactivity is none.reactivity_weight is none.partners is none.coordinates is None
    assert none.prior is none.prior_known is None
    some = collate([bare("a", "AC"), full("b", "G")])
    assert some.reactivity[0].isnan().all() and (some.reactivity_weight[0] == 0).all()
    assert (some.partners[0] == -2).all() and some.coordinates[0].isnan().all()
    assert (some.coordinates[1, 0] == 1).all()


def test_prior_is_dense_symmetric_and_says_where_it_is_known():
    two = Prior(np.uint16([0, 1]), np.uint16([6, 5]), np.uint8([255, 51]))
    nothing = Prior(np.uint16([]), np.uint16([]), np.uint8([]))
    batch = collate(
        [bare("a", "GGAAACC", prior=two), bare("b", "GGAAAACC"), bare("c", "AAA", prior=nothing)], multiple=4
    )
    assert batch.prior.shape == (3, 8, 8) and batch.prior_known.tolist() == [True, False, True]
    expected = torch.zeros(3, 8, 8)
    expected[0, 0, 6] = expected[0, 6, 0] = 1
    expected[0, 1, 5] = expected[0, 5, 1] = 0.04
    torch.testing.assert_close(batch.prior, expected)
    assert batch.prior_given.tolist() == [True, False, True]


def test_a_prior_that_is_withheld_is_known_and_not_given():
    prior = Prior(np.uint16([0]), np.uint16([6]), np.uint8([255]))
    examples = [bare("a", "GGAAACC", prior=prior), bare("b", "GGAAACC", prior=prior, prior_given=False)]
    batch = collate(examples)
    assert batch.prior_known.tolist() == [True, True] and batch.prior_given.tolist() == [True, False]
    assert batch.prior[1, 0, 6] == 1


def test_a_prior_without_pairs_is_known():
    batch = collate([bare("c", "AAA", prior=Prior(np.uint16([]), np.uint16([]), np.uint8([])))])
    assert batch.prior_known.tolist() == [True] and not batch.prior.any()


def test_collate_copies_read_only_examples():
    example = full("a", "ACGU")
    for name in ("reactivity", "reactivity_weight", "partners", "coordinates"):
        getattr(example, name).flags.writeable = False
    batch = collate([example])
    batch.coordinates.zero_()
    batch.partners.zero_()
    assert (example.coordinates == 1).all() and (example.partners == -1).all()


def test_collate_refuses_nothing_and_different_probes():
    with pytest.raises(ValueError, match="at least one example"):
        collate([])
    other = bare("b", "A", reactivity=np.zeros((1, 2), dtype=np.float16))
    with pytest.raises(ValueError, match="same probes"):
        collate([full("a", "A"), other])


def test_to_moves_every_tensor_and_keeps_none():
    batch = collate([full("a", "ACGU")])
    moved = batch.to("meta", non_blocking=True)
    assert moved.ids == batch.ids and len(tensors(moved)) == 9
    assert all(tensor.is_meta for tensor in tensors(moved))
    assert not any(tensor.is_meta for tensor in tensors(batch))
    assert collate([bare("a", "A")]).to("cpu").coordinates is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pin_memory_pins_every_tensor_and_keeps_none():
    pinned = collate([full("a", "ACGU"), bare("b", "AC")]).pin_memory()
    assert len(tensors(pinned)) == 6 and all(tensor.is_pinned() for tensor in tensors(pinned))
    on_gpu = pinned.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    assert on_gpu.tokens.cpu().tolist() == pinned.tokens.tolist()
    assert collate([bare("a", "A")]).pin_memory().partners is None


def test_batches_give_every_example_once_the_longest_last():
    examples = [full(f"rna{k}", "A" * length) for k, length in enumerate([30, 5, 90, 7, 31])]
    made = list(batches(examples, max_tokens=70, max_cells=10_000, max_examples=4, multiple=8))
    assert [batch.ids for batch in made] == [("rna1", "rna3"), ("rna0", "rna4"), ("rna2",)]
    assert [batch.tokens.shape[1] for batch in made] == [8, 32, 96]


def test_prefetch_keeps_the_order():
    assert list(prefetch(iter(range(20)), depth=3)) == list(range(20))
    assert list(prefetch([], depth=3)) == []


def test_prefetch_works_ahead_in_one_other_thread():
    threads, made = set(), []

    def items():
        for number in range(10):
            threads.add(threading.get_ident())
            made.append(number)
            yield number

    stream = prefetch(items(), depth=3)
    assert next(stream) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    # The one handed out and the three ahead; no more before the next is taken.
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    assert list(stream) == list(range(1, 10))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_prefetch_raises_at_its_place_in_the_order():
    def items():
        yield 1
        yield 2
        raise KeyError("broken row")

    stream = prefetch(items(), depth=4)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(KeyError, match="broken row"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_prefetch_closes_an_endless_iterator_and_its_thread():
    def endless():
        while True:
            yield 0

    stream = prefetch(endless(), depth=2)
    next(stream)
    assert any(thread.name.startswith("prefetch") for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_prefetch_refuses_no_depth_at_once():
    with pytest.raises(ValueError, match="depth of at least 1"):
        prefetch([1], depth=0)
