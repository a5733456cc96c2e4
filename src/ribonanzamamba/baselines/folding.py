"""A thermodynamic model, ViennaRNA, as a baseline and as an input: minimum free energy folds and pair probabilities.

Knows sequences and records, nothing of networks or tables. ViennaRNA is an optional dependency: only a call needs it.
Source: Lorenz et al. 2011, "ViennaRNA Package 2.0"; its default parameters (Turner 2004) at 37 degrees Celsius.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from types import ModuleType

import numpy as np

from ribonanzamamba.rna.records import Prediction, Record
from ribonanzamamba.rna.structure import Structure

LEAST_PROBABILITY = 0.01
"""Pairs of a lower probability are left out."""
INSTALL = 'pip install "ribonanzamamba[vienna]"'
"""What makes ViennaRNA available."""
RESCALE_LENGTH = 300
"""Nucleotides from which the partition function is scaled by the minimum free energy, as ViennaRNA advises for long
RNAs: shorter ones, be they all G-C pairs (-1.7 kcal/mol a nucleotide), stay within doubles, and the fold for the energy
costs a third of the time."""


class ViennaMissing(ImportError):
    """ViennaRNA is not installed; the message says how to get it."""

    def __init__(self) -> None:
        super().__init__(f"ViennaRNA is not installed: {INSTALL} (or pip install viennarna)")


def available() -> bool:
    """Whether ViennaRNA's Python module `RNA` is installed; it is not imported."""
    return importlib.util.find_spec("RNA") is not None


def vienna_version() -> str:
    """The installed ViennaRNA's version; ViennaRNA is not imported. Empty where it is missing.

    >>> vienna_version()[:2] in ("", "2.")
    True
    """
    try:
        return importlib.metadata.version("viennarna")
    except importlib.metadata.PackageNotFoundError:
        return ""


def pair_probabilities(sequence: str, least: float = LEAST_PROBABILITY) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs with their probability in the thermodynamic ensemble of a sequence: i, j (int32, 0-based, i < j, ordered by
    i, then j) and p (float32, at least `least`).

    An N pairs with nothing. A sequence without possible pairs, or of length 0, gives empty arrays.

    Raises:
        ViennaMissing: ViennaRNA is not installed.
    """
    rna = _vienna()
    if not sequence:
        return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32)
    compound = rna.fold_compound(sequence)
    if len(sequence) >= RESCALE_LENGTH:
        _, energy = compound.mfe()
        compound.exp_params_rescale(energy)
    compound.pf()
    found = [(pair.i - 1, pair.j - 1, pair.p) for pair in compound.plist_from_probs(least)]
    found = sorted(pair for pair in found if pair[2] >= least)
    i, j, p = zip(*found, strict=True) if found else ((), (), ())
    return np.array(i, np.int32), np.array(j, np.int32), np.minimum(np.array(p, np.float32), 1)


def fold(records: Iterable[Record]) -> list[Prediction]:
    """The minimum free energy fold of each record, without pseudoknots, in the order given.

    Raises:
        ViennaMissing: ViennaRNA is not installed.
    """
    rna = _vienna()
    return [
        Prediction(
            record,
            # ViennaRNA knows no empty sequence
            structure=Structure.from_dot_bracket(rna.fold(record.sequence)[0] if record.sequence else ""),
        )
        for record in records
    ]


def _vienna() -> ModuleType:
    try:
        import RNA
    except ImportError as error:
        raise ViennaMissing from error
    return RNA
