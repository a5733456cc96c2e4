"""Batches ahead: their order, errors in their place, the clock."""

import itertools
import time

import pytest
import torch

from ribonanzamamba.training.stream import Waiting, in_threads


@pytest.mark.parametrize("workers", [1, 3])
def test_order_is_kept(workers):
    def make(k: int) -> int:
        time.sleep(0.002 * (k % 3))
        return k * k

    assert list(in_threads(make, range(20), workers)) == [k * k for k in range(20)]
    endless = in_threads(make, itertools.count(), workers)
    assert [next(endless) for _ in range(5)] == [0, 1, 4, 9, 16]
    endless.close()


def test_an_error_comes_at_its_place():
    made = in_threads(lambda k: 1 // (2 - k), range(5), 2)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(made)


def test_at_least_one_thread():
    with pytest.raises(ValueError, match="training.workers: expected at least 1, got 0"):
        in_threads(str, [], 0)


def test_time_without_a_batch_is_counted():
    waiting = Waiting(torch.device("cpu"))

    def slow():
        for k in range(3):
            time.sleep(0.02)
            yield k

    assert list(waiting.measured(slow())) == [0, 1, 2]
    assert 0.06 <= waiting.seconds < 0.5
