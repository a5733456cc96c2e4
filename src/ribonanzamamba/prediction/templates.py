"""Chains of known structure, and which of them resemble a sequence: the templates of a 3D prediction.

Shared k-mers choose some dozens of chains, local alignments by biotite say which residues correspond. Knows nothing of
files and networks: `template_files.py` reads the chains, `template_model.py` makes models of what is found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ribonanzamamba.evaluation.coordinate_files import C1_PRIME
from ribonanzamamba.rna.alphabet import LETTERS, encode_sequence

if TYPE_CHECKING:
    from biotite.sequence import GeneralSequence
    from biotite.sequence.align import SubstitutionMatrix

INSTALL = 'pip install "ribonanzamamba[templates]"'
"""What makes biotite available."""
LEAST_RESOLVED = 10
"""Residues with a C1' of the shortest chain that is a template."""
LEAST_COPIED = 8
"""Residues of the query that a template has to have; fewer leave its place in the model to chance."""
KMER = 5
"""Letters of the words that two sequences are first compared by: 66 of 70 nt, of which at 70 % identity 11 are left."""
DIAGONALS = 16
"""Words are counted in bands of so many diagonals, two neighbouring bands together: insertions stay within a band."""
CANDIDATES = 48
"""Different sequences that are aligned."""
MAX_CELLS = 60_000_000
"""Cells of all alignments of a query, 4 s of a core: beyond it the candidates that are left go unaligned."""
MATCH, MISMATCH, OPEN, EXTEND = 5, -4, -12, -3
"""Scores of an alignment: equal letters, different ones, the first letter of a gap and each further one. Source:
NUC.4.4 (5, -4); of three sets of gap penalties the one whose copies were closest to training chains."""
UNKNOWN = LETTERS.index("N")


class BiotiteMissing(ImportError):
    """biotite is not installed; the message says how to get it."""

    def __init__(self) -> None:
        super().__init__(f"templates need biotite, which is not installed: {INSTALL} (or pip install biotite)")


@dataclass(frozen=True, eq=False)
class TemplateChain:
    """One RNA chain of known structure."""

    id: str
    """PDB_CHAIN, without whitespace."""
    sequence: str
    """Letters A C G U N."""
    coordinates: np.ndarray
    """(length, atom, 3), float32, angstrom, atoms as in ATOMS, NaN where unresolved; a residue counts by its C1'."""

    @property
    def resolved(self) -> np.ndarray:
        """Residues with a C1', bool (length,)."""
        return np.isfinite(self.coordinates[:, C1_PRIME]).all(axis=-1)


@dataclass(frozen=True, eq=False)
class TemplateHit:
    """A template and which of its residues stand for which of the query's."""

    chain: TemplateChain
    query: np.ndarray
    """Places in the query that are copied, int (copied,), 0-based, ascending."""
    template: np.ndarray
    """The template's residue of each, all of them resolved, int (copied,)."""
    same: np.ndarray
    """Whether the letters are equal, bool (copied,); N is equal to nothing."""
    coverage: float
    """Share of the query's residues that are copied."""
    score: int
    """Of the alignment, residues of the template that are not resolved included."""

    @property
    def identity(self) -> float:
        """Share of the copied residues with equal letters."""
        return float(self.same.mean())

    @property
    def source(self) -> str:
        """What ranking.csv says: `template PDB_CHAIN identity`."""
        return f"template {self.chain.id} {self.identity:.2f}"


class TemplateLibrary:
    """Chains to search for templates, each of at least LEAST_RESOLVED resolved residues; others are left out.

    Args:
        chains: in any order; it changes nothing.
        paths: where they came from.
        warnings: what could not be read, for the user.

    Raises:
        ValueError: no chain is left.
        BiotiteMissing: biotite is not installed.
    """

    def __init__(
        self, chains: Iterable[TemplateChain], paths: Sequence[str] = (), warnings: Sequence[str] = ()
    ) -> None:
        self._matrix = substitution_matrix()
        usable = {_digest(chain): chain for chain in chains if chain.resolved.sum() >= LEAST_RESOLVED}
        if not usable:
            where = f"{', '.join(paths)}: " if paths else ""
            raise ValueError(f"{where}expected RNA chains of at least {LEAST_RESOLVED} resolved residues, got none")
        ordered = sorted(usable.items(), key=lambda item: (item[1].id, item[0]))
        self.chains = tuple(chain for _, chain in ordered)
        self.hash = hashlib.sha256("".join(digest for digest, _ in ordered).encode()).hexdigest()
        self.paths = tuple(paths)
        self.warnings = tuple(warnings)
        self._members: dict[str, list[TemplateChain]] = {}
        for chain in self.chains:
            self._members.setdefault(chain.sequence, []).append(chain)
        self._sequences = [encode_sequence(sequence) for sequence in self._members]
        self._index = _KmerIndex(self._sequences)

    def __str__(self) -> str:
        return f"{len(self.chains)} chains, SHA-256 {self.hash[:16]}"

    def search(self, sequence: str) -> list[TemplateHit]:
        """Templates of a sequence over A C G U N, those of the best alignments first.

        Chains of one sequence are hits each, since their structures differ. Empty where nothing is alike.
        """
        query = encode_sequence(sequence)
        groups = list(self._members.values())
        hits: list[TemplateHit] = []
        cells = 0
        for number in self._index.candidates(query):
            cells += len(query) * len(self._sequences[number])
            if hits and cells > MAX_CELLS:
                break
            columns, score = _align(query, self._sequences[number], self._matrix)
            hits += [hit for chain in groups[number] if (hit := _hit(query, chain, columns, score)) is not None]
        return sorted(hits, key=lambda hit: (-hit.score, -hit.coverage, hit.chain.id))


def _digest(chain: TemplateChain) -> str:
    content = hashlib.sha256(f"{chain.id}\n{chain.sequence}\n".encode())
    content.update(np.ascontiguousarray(chain.coordinates, dtype="<f4").tobytes())
    return content.hexdigest()


class _KmerIndex:
    """Where each word of KMER letters stands in a list of sequences."""

    def __init__(self, sequences: Sequence[np.ndarray]) -> None:
        words = [_words(sequence) for sequence in sequences]
        lengths = [len(each) for each in words]
        flat = np.concatenate(words)
        owner = np.repeat(np.arange(len(words)), lengths)
        place = np.concatenate([np.arange(length) for length in lengths])
        order = np.argsort(flat, kind="stable")
        order = order[flat[order] >= 0]
        self._words, self._owner, self._place = flat[order], owner[order], place[order]

    def candidates(self, query: np.ndarray) -> list[int]:
        """Numbers of the CANDIDATES sequences that share most words with the query in a band of diagonals."""
        words = _words(query)
        first, last = (np.searchsorted(self._words, words, side) for side in ("left", "right"))
        counts = np.where(words >= 0, last - first, 0)
        # the places in the index of all words of the query, end to end
        skipped = np.repeat(np.cumsum(counts) - counts, counts)
        entries = np.repeat(first, counts) + np.arange(counts.sum()) - skipped
        diagonal = self._place[entries] - np.repeat(np.arange(len(words)), counts)
        # bands of a sequence are numbered without a gap, so that a band and the next are two of one sequence
        most = len(query) // DIAGONALS + 2
        spread = 2 * most + int(self._place.max(initial=0)) // DIAGONALS
        bands, shared = np.unique(self._owner[entries] * spread + diagonal // DIAGONALS + most, return_counts=True)
        if not len(bands):
            return []
        neighbours = np.diff(bands, append=-1) == 1
        together = shared + np.where(neighbours, np.roll(shared, -1), 0)
        owner = bands // spread
        best = np.zeros(int(owner.max()) + 1, dtype=np.int64)
        np.maximum.at(best, owner, together)
        order = np.argsort(-best, kind="stable")[:CANDIDATES]
        return order[best[order] > 0].tolist()


def _words(codes: np.ndarray) -> np.ndarray:
    """Number of the word that starts at each place, int64; -1 where it holds an N."""
    if len(codes) < KMER:
        return np.zeros(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(codes.astype(np.int64), KMER)
    return np.where((windows == UNKNOWN).any(axis=1), -1, windows @ 4 ** np.arange(KMER))


def substitution_matrix() -> SubstitutionMatrix:
    """The scores of letters against each other, in the order of LETTERS.

    Raises:
        BiotiteMissing: biotite is not installed.
    """
    try:
        from biotite.sequence import LetterAlphabet
        from biotite.sequence.align import SubstitutionMatrix
    except ImportError as error:
        raise BiotiteMissing from error
    scores = np.full((len(LETTERS), len(LETTERS)), MISMATCH, dtype=np.int32)
    np.fill_diagonal(scores, MATCH)
    # chains hold N where residues were not seen: no reason to break an alignment
    scores[UNKNOWN] = scores[:, UNKNOWN] = 0
    alphabet = LetterAlphabet(LETTERS)
    return SubstitutionMatrix(alphabet, alphabet, scores)


def _align(query: np.ndarray, template: np.ndarray, matrix: SubstitutionMatrix) -> tuple[np.ndarray, int]:
    """Columns without a gap of the best local alignment, as places in both, int (2, columns); and its score."""
    from biotite.sequence.align import align_optimal

    found = align_optimal(
        _sequence(query, matrix),
        _sequence(template, matrix),
        matrix,
        gap_penalty=(OPEN, EXTEND),
        local=True,
        max_number=1,
    )
    if not found:
        return np.zeros((2, 0), dtype=np.int64), 0
    trace = found[0].trace
    return trace[(trace >= 0).all(axis=1)].T, int(found[0].score)


def _sequence(codes: np.ndarray, matrix: SubstitutionMatrix) -> GeneralSequence:
    from biotite.sequence import GeneralSequence

    sequence = GeneralSequence(matrix.get_alphabet1())
    sequence.code = codes
    return sequence


def _hit(query: np.ndarray, chain: TemplateChain, columns: np.ndarray, score: int) -> TemplateHit | None:
    """What the aligned columns give of a chain; None where it is too little."""
    places, residues = columns[:, chain.resolved[columns[1]]]
    if len(places) < LEAST_COPIED:
        return None
    letters = query[places]
    same = (letters == encode_sequence(chain.sequence)[residues]) & (letters != UNKNOWN)
    return TemplateHit(chain, places, residues, same, len(places) / len(query), score) if same.any() else None
