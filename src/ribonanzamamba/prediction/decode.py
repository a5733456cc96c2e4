"""From pair probabilities to one structure: the nested pairs of highest expected gain, then pseudoknots.

Knows nothing of networks, sequences or files.
"""

from __future__ import annotations

import numpy as np

from ribonanzamamba.rna.structure import Structure

PAIR_THRESHOLD = 0.28
"""A pair is worth its probability minus this. 0.5 gives the centroid (gamma = 1); a lower one finds more pairs.
Chosen with `PRIOR_SHARE` of predict.py on valid RNAs, see docs/experiments.md."""
PSEUDOKNOT_THRESHOLD = 0.6
"""The same for pseudoknots; the larger of the two thresholds counts there.
On the same RNAs: 45 % of the crossing pairs found, 42 % of those called right; 0.7 gives 39 and 50 %."""
MIN_LOOP = 3
"""Fewest nucleotides a pair encloses: a hairpin of less does not close."""
MIN_PSEUDOKNOT_STEM = 2
"""Fewest directly stacked pairs of a pseudoknot: single crossing pairs are mostly noise."""


def decode_structure(
    pair_probability: np.ndarray,
    *,
    threshold: float = PAIR_THRESHOLD,
    pseudoknots: bool = True,
    pseudoknot_threshold: float = PSEUDOKNOT_THRESHOLD,
    min_loop: int = MIN_LOOP,
    min_pseudoknot_stem: int = MIN_PSEUDOKNOT_STEM,
) -> Structure:
    """Structure from pair probabilities, (length, length), of which the part above the diagonal is read.

    The nested part maximises the sum of (p_ij - threshold) over all nested structures, exactly. Pseudoknots are a
    second such structure over the nucleotides the first left unpaired, in stems of at least `min_pseudoknot_stem`
    stacked pairs; each crosses the nested part, else it would have been in it. A length of 0 or 1 has no pairs.

    Raises:
        ValueError: the matrix is not square, a probability is not finite, or the threshold is negative.

    Source: the gamma-centroid estimator (Hamada et al. 2009, Bioinformatics 25:465; threshold = 1 / (gamma + 1)), a
    relative of maximum expected accuracy (Do et al. 2006, Bioinformatics 22:e90).

    >>> probability = np.zeros((12, 12))
    >>> probability[[0, 1, 4], [11, 10, 9]] = 0.9, 0.8, 0.4
    >>> decode_structure(probability).to_dot_bracket()
    '((..(....)))'
    >>> decode_structure(probability, threshold=0.5).to_dot_bracket()
    '((........))'
    """
    if pair_probability.ndim != 2 or pair_probability.shape[0] != pair_probability.shape[1]:
        raise ValueError(f"expected pair probabilities (length, length), got {pair_probability.shape}")
    if threshold < 0:
        raise ValueError(f"expected a threshold of at least 0, got {threshold}")
    length = len(pair_probability)
    left, right, probability = _candidates(pair_probability, threshold, min_loop)
    chosen = _best_nested(left, right, probability - np.float32(threshold))
    pairs = list(zip(left[chosen].tolist(), right[chosen].tolist(), strict=True))
    if pseudoknots:
        pseudoknot_threshold = max(threshold, pseudoknot_threshold)
        free = np.ones(length, dtype=bool)
        free[left[chosen]] = free[right[chosen]] = False
        allowed = free[left] & free[right] & (probability > pseudoknot_threshold)
        left, right, probability = left[allowed], right[allowed], probability[allowed]
        if min_pseudoknot_stem > 1:
            # a candidate that stacks on nothing can never be kept, so it must not take a nucleotide from one that does
            stacked = _stacked(left, right, length)
            left, right, probability = left[stacked], right[stacked], probability[stacked]
        chosen = _best_nested(left, right, probability - np.float32(pseudoknot_threshold))
        crossing = Structure(length, tuple(zip(left[chosen].tolist(), right[chosen].tolist(), strict=True)))
        pairs += [pair for stem in crossing.stems() if len(stem) >= min_pseudoknot_stem for pair in stem]
    return Structure(length, tuple(pairs))


def _candidates(
    pair_probability: np.ndarray, threshold: float, min_loop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs i < j with p > threshold that enclose `min_loop` nucleotides, ordered by i, then j: i, j, p (float32)."""
    lefts, rights, probabilities = [], [], []
    for i, row in enumerate(pair_probability):
        row = np.asarray(row[i + 1 :], dtype=np.float32)
        if not np.isfinite(row).all():
            raise ValueError(f"pair probabilities of nucleotide {i + 1} are not finite")
        # the cast to float32 comes first, so that every weight is positive in the arithmetic that follows
        j = min_loop + np.flatnonzero(row[min_loop:] > np.float32(threshold))
        lefts.append(np.full(len(j), i))
        rights.append(i + 1 + j)
        probabilities.append(row[j])
    if not lefts:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    return np.concatenate(lefts), np.concatenate(rights), np.concatenate(probabilities)


def _stacked(left: np.ndarray, right: np.ndarray, length: int) -> np.ndarray:
    """Which pairs stack on another of them, (i + 1, j - 1) or (i - 1, j + 1); bool (pairs,)."""
    key = left * (length + 1) + right
    # one step inwards adds a row and takes a column
    return np.isin(key + length, key) | np.isin(key - length, key)


def _best_nested(left: np.ndarray, right: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Indices of the candidate pairs that form the nested structure of highest total weight; pairs ordered by left.

    best[i, e] is the highest weight over positions i to e - 1. For each i from the right, and each candidate (i, k):
    best[i, e] = max(best[i + 1, e], weight + best[i + 1, k] + best[k + 1, e]) for all e > k at once.
    Only nucleotides of a candidate are positions, so memory is (those + 1)^2 float32, at most 4 length^2 bytes.

    Source: Nussinov & Jacobson 1980, PNAS 77:6309. Candidates are skipped as in Wexler, Zilberstein & Ziv-Ukelson 2007,
    J. Comput. Biol. 14:856: one that is no better than the best known from i to k improves no longer stretch either.
    """
    if not len(left):
        return np.zeros(0, dtype=np.int64)
    positions = np.unique(np.concatenate([left, right]))
    n = len(positions)
    closing = np.searchsorted(positions, right)
    first = np.searchsorted(left, positions, side="left").tolist()
    last = np.searchsorted(left, positions, side="right").tolist()
    best = np.zeros((n + 1, n + 1), dtype=np.float32)
    for i in range(n - 1, -1, -1):
        row, inside = best[i], best[i + 1]
        row[:] = inside
        for k, gain in zip(closing[first[i] : last[i]].tolist(), weight[first[i] : last[i]], strict=True):
            gain = gain + inside[k]
            if gain > row[k + 1]:
                np.maximum(row[k + 1 :], gain + best[k + 1, k + 1 :], out=row[k + 1 :])

    chosen = []
    stretches = [(0, n)]
    while stretches:
        i, end = stretches.pop()
        while i < end and best[i, end] == best[i + 1, end]:
            i += 1
        if i >= end:
            continue
        here = np.arange(first[i], last[i])[closing[first[i] : last[i]] < end]
        partners = closing[here]
        pick = np.argmax(weight[here] + best[i + 1, partners] + best[partners + 1, end])
        chosen.append(here[pick])
        k = int(partners[pick])
        stretches += [(k + 1, end), (i + 1, k)]
    return np.array(sorted(chosen), dtype=np.int64)
