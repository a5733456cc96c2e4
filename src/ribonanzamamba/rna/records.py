"""The records every other part exchanges: an RNA as it was read, and what was predicted for it.

Knows nothing of files, networks or metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ribonanzamamba.rna.structure import Structure

PROBES: tuple[str, ...] = (
    "2A3",
    "DMS",
    "1M7",
    "SHAPE",
    "1M7_incell",
    "NAI_incell",
    "deg_Mg_pH10",
    "deg_pH10",
    "deg_Mg_50C",
    "deg_50C",
)
"""Probing reagents and degradation conditions, in the order of every `probe` axis."""

ATOMS: tuple[str, ...] = ("P", "C4'", "C1'", "N")
"""Atoms of every `atom` axis; "N" is the glycosidic nitrogen: N9 of purines, N1 of pyrimidines."""


@dataclass(frozen=True)
class Record:
    """One RNA as it was read: `sequence` holds the letters A C G U N only."""

    id: str
    sequence: str
    source: str = ""
    """File the record came from; empty for a sequence given in Python or as an argument."""
    line: int = 0
    """1-based line (row of a table) in `source`; 0 where there is none."""

    @property
    def length(self) -> int:
        return len(self.sequence)


@dataclass(frozen=True)
class Prediction:
    """Everything predicted for one record; a field is empty (or None) where its task was not asked for."""

    record: Record
    reactivity: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Probe to reactivity, (length,), dimensionless, 1 = 90th percentile of its data set."""
    reactivity_error: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Probe to predicted uncertainty (expected absolute error), (length,)."""
    pair_probability: np.ndarray | None = None
    """(length, length), symmetric, zero diagonal, rows sum to at most 1."""
    structure: Structure | None = None
    coordinates: np.ndarray | None = None
    """(models, length, atoms, 3), angstrom, best predicted confidence first."""
    plddt: np.ndarray | None = None
    """(models, length), 0 to 100."""
    model_sources: tuple[str, ...] = ()
    """Where each coordinate model came from: "network" or "template PDB_CHAIN identity"."""
    seconds: float = 0.0
    """Wall time this RNA took (its share of a batch)."""
    atoms: tuple[str, ...] = ATOMS

    @property
    def model_confidence(self) -> np.ndarray | None:
        """Mean pLDDT of each coordinate model, (models,), 0 to 100."""
        return None if self.plddt is None else self.plddt.mean(axis=-1)

    @property
    def pair_confidence(self) -> float:
        """Mean probability of the pairs of `structure`; NaN where it has none."""
        if self.structure is None or self.pair_probability is None or not self.structure.pairs:
            return float("nan")
        left, right = np.array(self.structure.pairs).T
        return float(self.pair_probability[left, right].mean())
