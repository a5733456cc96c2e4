"""Which examples make up a split, how often each is drawn, and which go into one batch together.

Knows nothing of tensors: `batch.py` turns the lists that come out of here into them.
"""

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64

from ribonanzamamba.data.example import Example, crop

POOL = 16
"""Batches whose examples are sorted by length together, where every example comes once an epoch."""
SHARED = 8
"""Sampled batches of many RNAs are a multiple of it: equal shares for as many processes."""
HASHED_SPLITS = ("train", "valid")
VALID_PERCENT = 8
"""Share of a table without splits of its own that goes to "valid": about that of our Parquet tables."""


def hashed_split(key: str) -> str:
    """The split, "train" or "valid", of a sequence (or cluster) in a table that names none: the same on any machine.

    >>> [hashed_split(key) for key in ("GGGAAACCC", "GGGGAAAACCCC")]
    ['train', 'train']
    """
    return "valid" if zlib.crc32(key.encode()) % 100 < VALID_PERCENT else "train"


def check_split(split: str | None, known: Sequence[str], path: object) -> None:
    """Nothing, if the split is None (everything) or one of those the table has.

    Raises:
        ValueError: otherwise; an empty list would hide a misspelling.
    """
    if split is not None and split not in known:
        raise ValueError(f"{path}: expected a split of {', '.join(known)}, got {split!r}")


def cluster_weights(examples: Sequence[Example], power: float = 0.5) -> Float64[np.ndarray, " example"]:
    """How often to draw each example: cluster size to the minus power, scaled to sum to 1.

    The size counts the examples of this very list, so a split or a filter is taken into account. Power 0 draws
    every example equally often, power 1 every cluster. Numbers of clusters are compared only between examples with
    the same kind of measurement (reactivity, partners, coordinates), because each kind of table counts its own.
    An example without a cluster (negative number) is a cluster of its own. An empty list gives an empty array.

    >>> a, b = Example("a", "A", 0, 4, ""), Example("b", "C", 1, 1, "")
    >>> cluster_weights([a, a, a, a, b], power=0.5).round(3).tolist()
    [0.167, 0.167, 0.167, 0.167, 0.333]
    """
    keys = [(e.reactivity is None, e.partners is None, e.coordinates is None, e.cluster) for e in examples]
    sizes = Counter(keys)
    weights = np.array([1.0 if key[-1] < 0 else sizes[key] ** -power for key in keys], dtype=np.float64)
    return weights / weights.sum() if len(weights) else weights


def padded_length(length: int, multiple: int = 1) -> int:
    """The length, rounded up to a multiple.

    >>> padded_length(100, 32), padded_length(96, 32)
    (128, 96)
    """
    return -(-length // multiple) * multiple


def length_sorted_batches(
    lengths: Sequence[int], max_tokens: int, max_cells: int, max_examples: int, multiple: int = 1
) -> list[list[int]]:
    """Indices of the lengths in batches of similar length, each at most so large, the longest last.

    A batch of n RNAs padded to length l satisfies n l <= max_tokens, n l^2 <= max_cells (cells of the pair track) and
    n <= max_examples. An RNA that exceeds a limit alone gets a batch of its own: it still has to be predicted.

    >>> length_sorted_batches([30, 10, 90, 10], max_tokens=60, max_cells=10_000, max_examples=8)
    [[1, 3], [0], [2]]
    """
    batches: list[list[int]] = []
    for index in np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        padded = padded_length(lengths[index], multiple)
        if batches and _fits(len(batches[-1]) + 1, padded, max_tokens, max_cells, max_examples):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def full_batches(
    lengths: Sequence[int], max_tokens: int, max_cells: int, max_examples: int, multiple: int = 1
) -> list[list[int]]:
    """Indices of the lengths in batches of similar length, the longest first, limits as in `length_sorted_batches`.

    Every batch is as large as its longest RNA allows, rounded down to a multiple of a power of two, SHARED at most:
    batches of one padded length have one size, so that few shapes come, and several processes get equal shares. The
    last, of the shortest RNAs, is what is left.

    >>> full_batches([30, 10, 60, 10, 30], max_tokens=60, max_cells=10_000, max_examples=8)
    [[2], [0, 4], [1, 3]]
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    batches = []
    while order:
        longest = padded_length(lengths[order[0]], multiple)
        most = max(1, min(max_tokens // longest, max_cells // longest**2, max_examples))
        # an eighth at most is given up for it
        unit = min(SHARED, max(1, 2 ** (most.bit_length() - 4)))
        batches.append(order[: most // unit * unit])
        del order[: most // unit * unit]
    return batches


def sample_batches(
    examples: Sequence[Example],
    *,
    weights: Float64[np.ndarray, " example"],
    max_tokens: int,
    max_cells: int,
    max_examples: int,
    rng: np.random.Generator,
    max_length: int | None = None,
    multiple: int = 1,
    chunk: int = 4096,
    skip: int = 0,
) -> Iterator[list[Example]]:
    """Endless batches of examples of similar length, drawn by weight with replacement.

    A chunk of examples is drawn, those longer than `max_length` get a random window of that length, the chunk is
    cut into `full_batches`, and these come in random order.
    What comes out depends on the state of `rng` alone; `rng` advances a chunk at a time. To resume, start again from
    the same state with `skip` = the number of batches already used: they are drawn, not built.

    Raises:
        ValueError: weights that are no distribution, or an RNA that after cropping exceeds a limit alone.
    """
    lengths = np.array([example.length for example in examples], dtype=np.int64)
    probability = _distribution(weights, len(lengths))
    cropped = lengths if max_length is None else np.minimum(lengths, max_length)
    longest = padded_length(int(cropped.max()), multiple)
    if not _fits(1, longest, max_tokens, max_cells, max_examples):
        raise ValueError(
            f"expected RNAs within {max_tokens} tokens and {max_cells} cells, got one of padded length {longest}; "
            f"a max_length of {min(max_tokens, math.isqrt(max_cells)) // multiple * multiple} would crop it"
        )
    return _draw_batches(
        examples, probability, cropped, (max_tokens, max_cells, max_examples, multiple), rng, chunk, skip
    )


def _draw_batches(
    examples: Sequence[Example],
    probability: Float64[np.ndarray, " example"],
    cropped: np.ndarray,
    limits: tuple[int, int, int, int],
    rng: np.random.Generator,
    chunk: int,
    skip: int,
) -> Iterator[list[Example]]:
    while True:
        drawn = rng.choice(len(examples), size=chunk, p=probability)
        lengths = cropped[drawn]
        slack = np.array([examples[index].length for index in drawn], dtype=np.int64) - lengths
        starts = rng.integers(0, slack, endpoint=True)
        plan = full_batches(lengths.tolist(), *limits)
        for which in rng.permutation(len(plan)):
            if skip > 0:
                skip -= 1
                continue
            yield [crop(examples[drawn[k]], int(starts[k]), int(starts[k] + lengths[k])) for k in plan[which]]


def epoch_batches(
    examples: Sequence[Example],
    *,
    batch_examples: int,
    rng: np.random.Generator,
    max_length: int | None = None,
    skip: int = 0,
) -> Iterator[list[Example]]:
    """Endless batches of exactly so many examples; each epoch holds every example at most once, in random order.

    Examples of similar length come together: within each POOL batches of the order they are sorted by length, and the
    batches of an epoch come in random order. The examples beyond a whole number of batches are left out, other ones in
    each epoch. What comes out depends on the state of `rng` alone: neither padding nor a limit on memory changes which
    examples a batch has. `max_length` and `skip` are those of `sample_batches`.

    Raises:
        ValueError: fewer examples than one batch.
    """
    if not 0 < batch_examples <= len(examples):
        raise ValueError(f"expected batches of 1 to {len(examples)} examples, got {batch_examples}")
    return _draw_epochs(examples, batch_examples, rng, max_length, skip)


def _draw_epochs(
    examples: Sequence[Example], count: int, rng: np.random.Generator, max_length: int | None, skip: int
) -> Iterator[list[Example]]:
    lengths = np.array([example.length for example in examples], dtype=np.int64)
    cropped = lengths if max_length is None else np.minimum(lengths, max_length)
    while True:
        order = rng.permutation(len(examples))[: len(examples) // count * count]
        starts = rng.integers(0, lengths - cropped, endpoint=True)
        pools = [order[k : k + POOL * count] for k in range(0, len(order), POOL * count)]
        order = np.concatenate([pool[np.argsort(cropped[pool], kind="stable")] for pool in pools])
        for indices in rng.permutation(order.reshape(-1, count)).tolist():
            if skip > 0:
                skip -= 1
                continue
            yield [crop(examples[k], int(starts[k]), int(starts[k] + cropped[k])) for k in indices]


def _distribution(weights: Float64[np.ndarray, " weight"], count: int) -> Float64[np.ndarray, " weight"]:
    if weights.shape != (count,) or count == 0:
        raise ValueError(f"expected one weight for each of {count} examples (at least one), got shape {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise ValueError("expected finite weights >= 0 with a positive sum")
    return weights / weights.sum()


def _fits(count: int, length: int, max_tokens: int, max_cells: int, max_examples: int) -> bool:
    return count <= max_examples and count * length <= max_tokens and count * length**2 <= max_cells
