"""Examples to tensors: a padded batch, made once, with the one mask of the whole program.

Knows nothing of files or networks.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from ribonanzamamba.data.example import UNKNOWN, Example
from ribonanzamamba.data.prior import Prior
from ribonanzamamba.data.splits import length_sorted_batches, padded_length
from ribonanzamamba.rna.alphabet import encode_sequence

PAD_TOKEN = 4
"""Token of a pad: that of N. Only the mask tells them apart."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, eq=False)
class Batch:
    """RNAs padded to one length; a measurement is None where no RNA of the batch has it."""

    ids: tuple[str, ...]
    tokens: Int64[Tensor, "batch length"]
    """A0 C1 G2 U3 N4; pads are 4."""
    mask: Bool[Tensor, "batch length"]
    """True for a real nucleotide; never written to."""
    reactivity: Float32[Tensor, "batch length probe"] | None = None
    """NaN = not measured, and at pads."""
    reactivity_weight: Float32[Tensor, "batch length probe"] | None = None
    """0 = not measured, and at pads."""
    partners: Int64[Tensor, "batch length"] | None = None
    """-1 unpaired, -2 unknown, and at pads."""
    coordinates: Float32[Tensor, "batch length atom 3"] | None = None
    """Angstrom, NaN = missing, and at pads."""
    prior: Float32[Tensor, "batch length length"] | None = None
    """Pair probabilities of a thermodynamic model, symmetric; 0 where no RNA of the batch knows better, and at pads."""
    prior_known: Bool[Tensor, " batch"] | None = None
    """Which RNAs have a prior: one without pairs is not one that was not computed."""
    prior_given: Bool[Tensor, " batch"] | None = None
    """Which of them a network is given; the others may teach it."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch with every tensor on a device; `non_blocking` needs pinned memory to have an effect."""
        return Batch(self.ids, *(_to(tensor, device, non_blocking) for tensor in self._tensors()))

    def pin_memory(self) -> "Batch":
        """The batch with every tensor in page-locked memory (needs a GPU)."""
        return Batch(self.ids, *(None if tensor is None else tensor.pin_memory() for tensor in self._tensors()))

    def parts(self, examples: int) -> list["Batch"]:
        """The batch in parts of at most so many examples, in their order, each as long as the whole; 0: as it is."""
        if not 0 < examples < len(self):
            return [self]
        return [
            Batch(
                self.ids[start : start + examples],
                *(None if tensor is None else tensor[start : start + examples] for tensor in self._tensors()),
            )
            for start in range(0, len(self), examples)
        ]

    def shapes(self) -> tuple[torch.Size | None, ...]:
        """Of every tensor, None where there is none."""
        return tuple(None if tensor is None else tensor.shape for tensor in self._tensors())

    def clone(self) -> "Batch":
        """The batch with tensors of its own."""
        return Batch(self.ids, *(None if tensor is None else tensor.clone() for tensor in self._tensors()))

    def copy_(self, other: "Batch") -> None:
        """Write the values of another batch of the same shapes into the tensors of this one; `ids` stay.

        Raises:
            ValueError: other shapes.
        """
        if self.shapes() != other.shapes():
            raise ValueError(f"expected a batch of the shapes {self.shapes()}, got {other.shapes()}")
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        for own, values in pairs:
            if own is not None:
                own.copy_(values)

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, field.name) for field in fields(self)[1:])


def collate(examples: Sequence[Example], multiple: int = 1) -> Batch:
    """A batch from examples, padded to the longest, rounded up to a multiple; the examples' arrays are copied.

    A measurement that only some examples have is NaN (weight 0, partner -2, prior 0 and not known) in the others.

    Raises:
        ValueError: no examples, or examples with different probes or atoms.
    """
    if not examples:
        raise ValueError("expected at least one example, got none")
    length = padded_length(max(example.length for example in examples), multiple)
    tokens = np.full((len(examples), length), PAD_TOKEN, dtype=np.int64)
    mask = np.zeros((len(examples), length), dtype=bool)
    for row, example in enumerate(examples):
        tokens[row, : example.length] = encode_sequence(example.sequence)
        mask[row, : example.length] = True
    priors = [example.prior for example in examples]
    known = [prior is not None for prior in priors]
    given = [has and example.prior_given for has, example in zip(known, examples, strict=True)]
    return Batch(
        ids=tuple(example.id for example in examples),
        tokens=torch.from_numpy(tokens),
        mask=torch.from_numpy(mask),
        reactivity=_pad([example.reactivity for example in examples], length, np.nan, np.float32),
        reactivity_weight=_pad([example.reactivity_weight for example in examples], length, 0.0, np.float32),
        partners=_pad([example.partners for example in examples], length, float(UNKNOWN), np.int64),
        coordinates=_pad([example.coordinates for example in examples], length, np.nan, np.float32),
        prior=_dense(priors, length),
        prior_known=torch.tensor(known) if any(known) else None,
        prior_given=torch.tensor(given) if any(known) else None,
    )


def no_examples(length: int) -> Batch:
    """A batch without an example: one row of N, for a network that has to be run all the same."""
    return Batch((), torch.full((1, length), PAD_TOKEN), torch.ones(1, length, dtype=torch.bool))


def batches(
    examples: Sequence[Example], max_tokens: int, max_cells: int, max_examples: int, multiple: int = 1
) -> Iterator[Batch]:
    """Every example once, in batches of similar length, the longest last (limits: see `length_sorted_batches`).

    `ids` tell which examples a batch holds.
    """
    lengths = [example.length for example in examples]
    for indices in length_sorted_batches(lengths, max_tokens, max_cells, max_examples, multiple):
        yield collate([examples[index] for index in indices], multiple)


def prefetch(iterator: Iterable[_Item], depth: int = 4) -> Iterator[_Item]:
    """The items of an iterator in their order, up to `depth` of them made ahead in one background thread.

    An exception in the iterator comes out here, at its place in the order. Closing, or dropping, the generator waits
    for the item in the making and ends the thread.

    Raises:
        ValueError: depth below 1.
    """
    if depth < 1:
        raise ValueError(f"expected a depth of at least 1, got {depth}")
    return _prefetched(iter(iterator), depth)


def _prefetched(source: Iterator[_Item], depth: int) -> Iterator[_Item]:
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        ahead = deque(thread.submit(next, source, end) for _ in range(depth))
        try:
            while (item := ahead.popleft().result()) is not end:
                ahead.append(thread.submit(next, source, end))
                yield item
        finally:
            for future in ahead:
                future.cancel()


def _pad(arrays: list[np.ndarray | None], length: int, fill: float, dtype: type) -> Tensor | None:
    shapes = {array.shape[1:] for array in arrays if array is not None}
    if not shapes:
        return None
    if len(shapes) > 1:
        raise ValueError(f"expected the same probes and atoms in all examples, got shapes {sorted(shapes)}")
    padded = np.full((len(arrays), length, *shapes.pop()), fill, dtype=dtype)
    for row, array in enumerate(arrays):
        if array is not None:
            padded[row, : len(array)] = array
    return torch.from_numpy(padded)


def _dense(priors: list[Prior | None], length: int) -> Tensor | None:
    known = [(row, prior) for row, prior in enumerate(priors) if prior is not None]
    if not known:
        return None
    first = np.repeat([row * length**2 for row, _ in known], [len(prior.i) for _, prior in known])
    i = np.concatenate([prior.i for _, prior in known]).astype(np.int64)
    j = np.concatenate([prior.j for _, prior in known]).astype(np.int64)
    p = np.concatenate([prior.p for _, prior in known])
    dense = np.zeros(len(priors) * length**2, dtype=np.float32)
    dense[first + i * length + j] = p
    dense[first + j * length + i] = p
    return torch.from_numpy(dense.reshape(len(priors), length, length))


def _to(tensor: Tensor | None, device: torch.device | str, non_blocking: bool) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=non_blocking)
