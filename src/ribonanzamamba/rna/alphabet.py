"""The letters of an RNA: text to the alphabet A C G U N, and to the numbers a network reads.

Knows nothing of files, records or structures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

LETTERS = "ACGUN"
"""A letter's place here is its code."""

AMBIGUOUS = "RYSWKMBDHVN"
"""IUPAC letters that stand for several nucleotides. Source: Cornish-Bowden 1985, Nucleic Acids Res. 13:3021."""

PROTEIN_LENGTH = 20
"""From this length on, a sequence can be told from a protein written in letters that nucleic acids use too."""
PROTEIN_AMBIGUOUS_FRACTION = 0.4
"""More ambiguous letters (N apart) than this: a protein. Of the amino acids whose letters are IUPAC nucleotide
letters, 60 % in UniProtKB/Swiss-Prot's composition are D H K M R S V W Y."""

# Both cases are spelled out: IGNORECASE also matches letters outside ASCII, such as the Kelvin sign for k.
_UNKNOWN_LETTER = re.compile("[^ACGTURYSWKMBDHVNacgturyswkmbdhvn]")
_PARTLY_AMBIGUOUS = re.compile("[RYSWKMBDHV]")
_TO_RNA = str.maketrans("T" + AMBIGUOUS, "U" + "N" * len(AMBIGUOUS))
_INVALID = 255
_CODE_OF_BYTE = np.full(256, _INVALID, dtype=np.uint8)
_CODE_OF_BYTE[np.frombuffer(LETTERS.encode(), dtype=np.uint8)] = np.arange(len(LETTERS))
_BYTE_OF_CODE = np.frombuffer(LETTERS.encode(), dtype=np.uint8)


class LetterError(ValueError):
    """A letter that no RNA has: `position` is 1-based and does not count whitespace."""

    def __init__(self, position: int, letter: str, reason: str = "is no nucleotide letter") -> None:
        # All arguments go to the base class, so that the error survives pickling between processes.
        super().__init__(position, letter, reason)
        self.position = position
        self.letter = letter
        self.reason = reason

    def __str__(self) -> str:
        return f"position {self.position}: {self.letter!r} {self.reason}"


@dataclass(frozen=True)
class NormalizedSequence:
    """A sequence over A C G U N, and what was changed to get there."""

    sequence: str
    n_ambiguous: int
    """Letters that are N now: N itself and the other IUPAC letters."""
    n_thymine: int
    """Letters T that are U now."""


def normalize_sequence(text: str) -> NormalizedSequence:
    """Sequence over A C G U N from text: whitespace dropped, upper case, T to U, IUPAC letters to N.

    Empty text gives an empty sequence.

    Raises:
        LetterError: a letter that is neither a nucleotide nor an IUPAC letter (a gap, X, E, ...), or a sequence of
            IUPAC letters that is obviously a protein.

    >>> normalize_sequence("acg ty")
    NormalizedSequence(sequence='ACGUN', n_ambiguous=1, n_thymine=1)
    """
    letters = "".join(text.split())
    unknown = _UNKNOWN_LETTER.search(letters)
    if unknown:
        raise LetterError(unknown.start() + 1, unknown.group(), _reason(unknown.group(), letters))
    upper = letters.upper()
    n_unknown = upper.count("N")
    n_partly = sum(upper.count(letter) for letter in AMBIGUOUS if letter != "N")
    if len(upper) >= PROTEIN_LENGTH and n_partly > PROTEIN_AMBIGUOUS_FRACTION * len(upper):
        first = _PARTLY_AMBIGUOUS.search(upper)
        assert first is not None
        raise LetterError(first.start() + 1, letters[first.start()], "and many like it: this looks like a protein")
    return NormalizedSequence(upper.translate(_TO_RNA), n_unknown + n_partly, upper.count("T"))


def _reason(letter: str, letters: str) -> str:
    """Why a letter was refused, in words a user can act upon."""
    if letter in "-.":
        return "is a gap, not a nucleotide letter"
    # One stray letter is a slip of the keyboard; several kinds of amino acid letters are not.
    if len(set(letters.upper()) & set("EFILPQZ")) > 1:
        return "is no nucleotide letter (this looks like a protein)"
    return "is no nucleotide letter"


def encode_sequence(sequence: str) -> np.ndarray:
    """Codes of a sequence over A C G U N: uint8 (length,), A 0, C 1, G 2, U 3, N 4.

    Raises:
        LetterError: any other letter; `normalize_sequence` comes first.

    >>> encode_sequence("GAUNC").tolist()
    [2, 0, 3, 4, 1]
    """
    # "replace" writes one "?" for each letter outside ASCII, so that positions stay right.
    codes = _CODE_OF_BYTE[np.frombuffer(sequence.encode("ascii", "replace"), dtype=np.uint8)]
    invalid = np.flatnonzero(codes == _INVALID)
    if len(invalid):
        raise LetterError(int(invalid[0]) + 1, sequence[invalid[0]], f"is not one of {LETTERS}")
    return codes


def decode_sequence(codes: np.ndarray) -> str:
    """Sequence over A C G U N from its codes, integers (length,): the inverse of `encode_sequence`.

    Raises:
        ValueError: a code outside 0 to 4.

    >>> decode_sequence(encode_sequence("GAUNC"))
    'GAUNC'
    """
    codes = np.asarray(codes, dtype=np.int64)
    if codes.size and (codes.min() < 0 or codes.max() >= len(LETTERS)):
        raise ValueError(f"codes must lie in 0 to {len(LETTERS) - 1}, got {codes.min()} to {codes.max()}")
    return _BYTE_OF_CODE[codes].tobytes().decode()
