"""Batches ahead of the device: made in threads, in their order, and a clock for the time the device had none."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD_PER_WORKER = 3
"""Batches that wait, finished or in the making, for each thread."""


def in_threads(make: Callable[[Item], Made], items: Iterable[Item], workers: int) -> Iterator[Made]:
    """`make` of each item, in the order of the items, made ahead by so many threads. An exception comes out at its
    place in the order.

    Raises:
        ValueError: fewer than one thread.
    """
    if workers < 1:
        raise ValueError(f"training.workers: expected at least 1, got {workers}")
    return _in_threads(make, iter(items), workers)


def _in_threads(make: Callable[[Item], Made], items: Iterator[Item], workers: int) -> Iterator[Made]:
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="collate") as threads:
        try:
            for item in items:
                waiting.append(threads.submit(make, item))
                if len(waiting) > AHEAD_PER_WORKER * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Waiting:
    """Seconds in which the device had nothing to do because no batch was there."""

    def __init__(self, device: torch.device):
        self.seconds = 0.0
        self.busy_until = torch.cuda.Event() if device.type == "cuda" else None

    def mark(self) -> None:
        """Called when a step's work has been handed to the device."""
        if self.busy_until is not None:
            self.busy_until.record()

    def measured(self, stream: Iterator[Item]) -> Iterator[Item]:
        """The same items; the time until each is there counts, unless the device was still busy when it came."""
        while True:
            began = time.monotonic()
            item = next(stream, None)
            if item is None:
                return
            if self.busy_until is None or self.busy_until.query():
                self.seconds += time.monotonic() - began
            yield item
