"""Finding the prediction of an RNA, by its id or by its sequence.

Knows nothing of files, nor of what was predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Entry(Generic[Item]):
    id: str
    sequence: str
    item: Item


class Lookup(Generic[Item]):
    """Predictions by id and by sequence.

    Args:
        entries: ids (all names one prediction goes by), sequence ("" where the file does not tell), prediction.
        spell: how an id is spelled in a file's name: two ids agree as they are, or one of them as it is spelled.

    >>> found = Lookup([(("a",), "ACGU", 1), (("b",), "GGGG", 2)])
    >>> found.find(("b",), "GGGG"), found.find(("other",), "ACGT"), found.find(("other",), "CCCC")
    (2, 1, None)
    """

    def __init__(
        self, entries: Iterable[tuple[tuple[str, ...], str, Item]], spell: Callable[[str], str] = lambda id: id
    ) -> None:
        self._spell = spell
        self._by_id: dict[str, list[_Entry[Item]]] = {}
        self._by_sequence: dict[str, _Entry[Item]] = {}
        for ids, sequence, item in entries:
            entry = _Entry(ids[0] if ids else "", spelled(sequence), item)
            for id in self._spellings(ids):
                self._by_id.setdefault(id, []).append(entry)
            if entry.sequence:
                self._by_sequence.setdefault(entry.sequence, entry)

    def find(self, ids: tuple[str, ...], sequence: str, known: Set[str] = frozenset()) -> Item | None:
        """The prediction with one of the ids and this sequence, else any with this sequence; None if there is none.

        A sequence that either side does not tell, and N against any letter, agree. Tables use an id twice now and
        then: a prediction of one of the sequences in `known` (`spelled`) belongs to that RNA, whatever its id.

        Raises:
            ValueError: a prediction has the id, but another sequence, and no prediction has this sequence.
        """
        sequence = spelled(sequence)
        named = [entry for id in self._spellings(ids) for entry in self._by_id.get(id, ())]
        for entry in named:
            if entry.sequence == sequence:
                return entry.item
        if sequence in self._by_sequence:
            return self._by_sequence[sequence].item
        named = [entry for entry in named if entry.sequence not in known]
        for entry in named:
            if agree(entry.sequence, sequence):
                return entry.item
        if named:
            raise ValueError(f"record {ids[0]!r}: {_difference(named[0].sequence, sequence)}")
        return None

    def _spellings(self, ids: tuple[str, ...]) -> list[str]:
        return list(dict.fromkeys((*ids, *map(self._spell, ids))))


def spelled(sequence: str) -> str:
    """A sequence in upper case with U for T, so that files which spell it differently agree.

    >>> spelled("acgT")
    'ACGU'
    """
    return sequence.upper().replace("T", "U")


def agree(first: str, second: str) -> bool:
    """Whether two sequences can be the same RNA: N and an unknown sequence ("") agree with anything.

    >>> agree("ACGN", "ACGU"), agree("", "ACGU"), agree("ACG", "ACGU")
    (True, True, False)
    """
    if not first or not second:
        return True
    return len(first) == len(second) and all(a == b or "N" in (a, b) for a, b in zip(first, second, strict=True))


def _difference(predicted: str, expected: str) -> str:
    if len(predicted) != len(expected):
        return f"expected a prediction of length {len(expected)}, got {len(predicted)}"
    pairs = zip(predicted, expected, strict=True)
    position = next(k for k, (a, b) in enumerate(pairs) if a != b and "N" not in (a, b))
    return (
        f"the prediction is of another sequence: expected {expected[position]} at position {position + 1}, "
        f"got {predicted[position]}"
    )
