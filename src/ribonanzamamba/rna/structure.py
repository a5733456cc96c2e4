"""Secondary structure: which nucleotide pairs with which, and its dot-bracket text.

Knows nothing of sequences, probabilities or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

OPENING = "([{<ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLOSING = ")]}>abcdefghijklmnopqrstuvwxyz"
UNPAIRED = ".-,_:~"
"""Letters other programs write for an unpaired nucleotide (Rfam's WUSS notation among them)."""


@dataclass(frozen=True)
class Structure:
    """A secondary structure: `pairs` are (i, j), 0-based, i < j, sorted, each nucleotide in at most one.

    Raises:
        ValueError: a pair lies outside the length, joins a nucleotide to itself, or shares a nucleotide with another.

    >>> Structure.from_dot_bracket("((..[[..))..]]").to_dot_bracket()
    '((..[[..))..]]'
    """

    length: int
    pairs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted((min(i, j), max(i, j)) for i, j in self.pairs))
        seen: set[int] = set()
        for i, j in ordered:
            if i < 0 or j >= self.length or i == j:
                raise ValueError(f"pair ({i}, {j}) does not fit a structure of length {self.length}")
            if i in seen or j in seen:
                raise ValueError(f"pair ({i}, {j}) shares a nucleotide with another pair")
            seen.update((i, j))
        object.__setattr__(self, "pairs", tuple((int(i), int(j)) for i, j in ordered))

    @classmethod
    def from_dot_bracket(cls, text: str) -> Structure:
        """Structure from dot-bracket text with `()[]{}<>` and `Aa` to `Zz` for pseudoknots.

        Raises:
            ValueError: a letter that is no bracket, or a bracket without its partner, with its 1-based position.
        """
        stacks: dict[str, list[int]] = {}
        pairs = []
        for position, letter in enumerate(text):
            if letter in UNPAIRED:
                continue
            if letter in OPENING:
                stacks.setdefault(letter, []).append(position)
                continue
            where = CLOSING.find(letter)
            if where < 0:
                raise ValueError(f"position {position + 1}: {letter!r} is no dot-bracket letter")
            stack = stacks.get(OPENING[where])
            if not stack:
                raise ValueError(f"position {position + 1}: {letter!r} closes nothing")
            pairs.append((stack.pop(), position))
        for letter, stack in stacks.items():
            if stack:
                raise ValueError(f"position {stack[-1] + 1}: {letter!r} is never closed")
        return cls(len(text), tuple(pairs))

    def to_dot_bracket(self) -> str:
        """Dot-bracket text: each pair gets the first bracket kind in which it crosses nothing.

        Stems go first to last by the pairs they cross, so that the larger nested part is written with `()`.

        Raises:
            ValueError: more than 30 mutually crossing layers.
        """
        text = ["."] * self.length
        layers: list[list[tuple[int, int]]] = []
        for stem in sorted(self.stems(), key=lambda stem: (-len(stem), stem[0])):
            for layer in layers:
                if not any(crosses(stem[0], other) for other in layer):
                    layer.extend(stem)
                    break
            else:
                layers.append(list(stem))
        layers.sort(key=len, reverse=True)
        if len(layers) > len(OPENING):
            raise ValueError(f"{len(layers)} crossing layers, at most {len(OPENING)} can be written")
        for depth, layer in enumerate(layers):
            for i, j in layer:
                text[i], text[j] = OPENING[depth], CLOSING[depth]
        return "".join(text)

    @classmethod
    def from_partners(cls, partners: Sequence[int] | np.ndarray) -> Structure:
        """Structure from the partner of each nucleotide, negative where unpaired.

        Raises:
            ValueError: i's partner is j but j's is not i, or i is its own partner.
        """
        pairs = []
        for i, j in enumerate(int(partner) for partner in partners):
            if j < 0:
                continue
            if j >= len(partners) or int(partners[j]) != i:
                raise ValueError(f"position {i + 1} pairs with {j + 1}, but not the other way round")
            # A nucleotide that is its own partner goes on to the constructor, which refuses it.
            if i <= j:
                pairs.append((i, j))
        return cls(len(partners), tuple(pairs))

    def to_partners(self) -> np.ndarray:
        """Partner of each nucleotide, int32 (length,), -1 where unpaired."""
        partners = np.full(self.length, -1, dtype=np.int32)
        for i, j in self.pairs:
            partners[i], partners[j] = j, i
        return partners

    def stems(self) -> list[list[tuple[int, int]]]:
        """Runs of directly stacked pairs (i, j), (i+1, j-1), ..., outermost pair first."""
        stems: list[list[tuple[int, int]]] = []
        for i, j in self.pairs:
            for stem in reversed(stems):
                if stem[-1] == (i - 1, j + 1):
                    stem.append((i, j))
                    break
            else:
                stems.append([(i, j)])
        return stems

    def crossing_pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs that cross at least one other pair: the pseudoknotted part, both sides of each crossing."""
        return tuple(pair for pair in self.pairs if any(crosses(pair, other) for other in self.pairs))


def crosses(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two pairs interleave: i < k < j < l or k < i < l < j.

    >>> crosses((0, 5), (3, 8)), crosses((0, 5), (1, 4))
    (True, False)
    """
    (i, j), (k, l) = first, second
    return i < k < j < l or k < i < l < j


def nested(pairs: Iterable[tuple[int, int]]) -> bool:
    """Whether no two pairs cross."""
    ordered = sorted(pairs)
    closings: list[int] = []
    for i, j in ordered:
        while closings and closings[-1] < i:
            closings.pop()
        if closings and closings[-1] < j:
            return False
        closings.append(j)
    return True
