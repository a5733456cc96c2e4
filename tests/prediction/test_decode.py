"""decode_structure: equal to brute force on short RNAs, always a valid structure, thresholds as stated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ribonanzamamba.prediction.decode import _best_nested, decode_structure
from ribonanzamamba.rna.structure import Structure, crosses, nested


def probability_of(text: str, value: float = 0.9) -> np.ndarray:
    """Symmetric matrix with `value` at the pairs of a dot-bracket text."""
    structure = Structure.from_dot_bracket(text)
    matrix = np.zeros((structure.length, structure.length), dtype=np.float32)
    for i, j in structure.pairs:
        matrix[i, j] = matrix[j, i] = value
    return matrix


def random_probability(length: int, seed: int) -> np.ndarray:
    matrix = np.random.default_rng(seed).random((length, length)).astype(np.float32)
    return np.triu(matrix, 1) + np.triu(matrix, 1).T


def every_nested_structure(start: int, end: int, min_loop: int):
    """All sets of nested pairs over positions start to end - 1."""
    if start >= end:
        yield ()
        return
    yield from every_nested_structure(start + 1, end, min_loop)
    for partner in range(start + min_loop + 1, end):
        for inside in every_nested_structure(start + 1, partner, min_loop):
            for after in every_nested_structure(partner + 1, end, min_loop):
                yield ((start, partner), *inside, *after)


def gain(pairs, probability: np.ndarray, threshold: float) -> float:
    return sum(float(probability[i, j]) - threshold for i, j in pairs)


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(("length", "min_loop", "seed"), [(5, 3, 0), (8, 0, 1), (9, 1, 2), (11, 3, 3), (12, 3, 4)])
def test_nested_part_equals_brute_force(length, min_loop, seed, threshold):
    probability = random_probability(length, seed)
    structure = decode_structure(probability, threshold=threshold, pseudoknots=False, min_loop=min_loop)
    best = max(gain(pairs, probability, threshold) for pairs in every_nested_structure(0, length, min_loop))
    assert nested(structure.pairs)
    # float32 sums of at most 6 weights
    assert gain(structure.pairs, probability, threshold) == pytest.approx(best, abs=1e-6)


@given(length=st.integers(0, 40), seed=st.integers(0, 10_000), power=st.sampled_from([1, 4, 16]), theta=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_structure_is_always_valid(length, seed, power, theta):
    probability = random_probability(length, seed) ** power
    structure = decode_structure(probability, threshold=theta, pseudoknot_threshold=theta)
    assert structure.length == length
    # Structure itself refuses a nucleotide in two pairs
    assert all(j - i > 3 and probability[i, j] > theta for i, j in structure.pairs)
    assert Structure.from_dot_bracket(structure.to_dot_bracket()) == structure


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_pseudoknots_add_stems_that_cross_the_nested_part(seed):
    probability = random_probability(24, seed)
    flat = decode_structure(probability, threshold=0.7, pseudoknots=False)
    knotted = decode_structure(probability, threshold=0.7)
    added = Structure(24, tuple(set(knotted.pairs) - set(flat.pairs)))
    assert set(flat.pairs) <= set(knotted.pairs)
    assert all(any(crosses(pair, other) for other in flat.pairs) for pair in added.pairs)
    assert all(len(stem) >= 2 for stem in added.stems())


@pytest.mark.parametrize(
    "text", ["", ".", "....", "(...)", "((((....))))", "((..((...))..((...))..))", "((((..[[[[..))))....]]]]"]
)
def test_certain_pairs_come_back(text):
    assert decode_structure(probability_of(text)).to_dot_bracket() == text


def test_the_heavier_of_two_crossing_stems_is_nested_and_a_single_crossing_pair_is_dropped():
    probability = probability_of("((((..[..))))....]")
    assert decode_structure(probability).to_dot_bracket() == "((((.....))))....."
    kept = decode_structure(probability, min_pseudoknot_stem=1)
    assert kept.to_dot_bracket() == "((((..[..))))....]"


def test_a_lone_pair_does_not_take_a_nucleotide_from_a_stem():
    text = "((((..[[..))))....]]"
    probability = probability_of(text, 0.7)
    # position 6 prefers 18 alone over the stem's 19
    probability[6, 18] = probability[18, 6] = 0.99
    assert decode_structure(probability).to_dot_bracket() == text


@pytest.mark.parametrize(("threshold", "expected"), [(0.59, "(...)"), (0.6, "....."), (0.61, ".....")])
def test_threshold_is_exclusive(threshold, expected):
    probability = probability_of("(...)", np.float32(0.6))
    assert decode_structure(probability, threshold=threshold).to_dot_bracket() == expected


def test_pseudoknot_threshold_applies_to_pseudoknots_only():
    probability = probability_of("((((..[[..))))....]]", 0.6)
    assert decode_structure(probability, pseudoknot_threshold=0.7).to_dot_bracket() == "((((......))))......"
    assert decode_structure(probability, pseudoknots=False).to_dot_bracket() == "((((......))))......"


def test_pseudoknots_need_no_less_than_the_nested_part():
    probability = probability_of("((((..[[..))))....]]", 0.9)
    probability[[6, 7], [19, 18]] = 0.7
    assert decode_structure(probability, threshold=0.8).to_dot_bracket() == "((((......))))......"


def test_min_loop():
    probability = probability_of("(..)")
    assert decode_structure(probability).pairs == ()
    assert decode_structure(probability, min_loop=2).pairs == ((0, 3),)


def test_a_long_chain_of_pairs_does_not_reach_the_recursion_limit():
    text = "(" * 1500 + "..." + ")" * 1500
    assert decode_structure(probability_of(text)).to_dot_bracket() == text


def test_best_nested_breaks_a_crossing_for_the_larger_sum():
    left, right = np.array([0, 1, 3]), np.array([4, 8, 7])
    assert _best_nested(left, right, np.array([0.5, 0.3, 0.3], dtype=np.float32)).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((3, 4)), r"expected pair probabilities \(length, length\), got \(3, 4\)"),
        (np.full((3, 3), np.nan), "nucleotide 1 are not finite"),
    ],
)
def test_bad_matrices_are_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        decode_structure(matrix)
