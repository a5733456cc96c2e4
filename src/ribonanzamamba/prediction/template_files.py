"""Coordinate tables, mmCIF and PDB files, and folders of such files to a library of templates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ribonanzamamba.evaluation.coordinate_files import COORDINATE_ENDINGS, MAX_COORDINATE
from ribonanzamamba.evaluation.tables import TABLE_ENDINGS, ending, stem
from ribonanzamamba.prediction.templates import LEAST_RESOLVED, TemplateChain, TemplateLibrary, substitution_matrix
from ribonanzamamba.rna.formats import FormatError, one_word
from ribonanzamamba.rna.mmcif import ChainCoordinates, read_mmcif

Templates = TemplateLibrary | str | Path | Sequence[str | Path]
"""A library, or what `read_templates` makes one of."""


def read_templates(paths: str | Path | Sequence[str | Path]) -> TemplateLibrary:
    """Library of all chains of coordinate tables, mmCIF and PDB files (.gz too), and folders of such files.

    A table is our Parquet or Kaggle's CSV of sequences with its labels beside it. A file of a folder that cannot be
    used becomes a warning of the library.

    Raises:
        ValueError: a file, named, that is no such table or file, or without a usable chain.
        OSError: no such file.
        BiotiteMissing: biotite is not installed.
    """
    # before anything is read
    substitution_matrix()
    paths = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    chains: list[TemplateChain] = []
    warnings: list[str] = []
    for path in paths:
        if not path.is_dir():
            chains += _read_usable(path)
            continue
        files = sorted(file for file in path.rglob("*") if file.is_file() and ending(file) in COORDINATE_ENDINGS)
        found = []
        for file in files:
            try:
                found += _read_usable(file)
            except (ValueError, OSError) as error:
                warnings.append(f"not a template: {error}")
        if not found:
            endings = ", ".join(COORDINATE_ENDINGS)
            reason = (
                f"holds no file ending in {endings}" if not files else f"none of its files can be used: {warnings[0]}"
            )
            raise FormatError(path, 0, reason)
        chains += found
    return TemplateLibrary(chains, [str(path) for path in paths], warnings)


def _read_usable(path: Path) -> list[TemplateChain]:
    """The chains of a table or file that are long enough; an error that names the file where there is none."""
    if not path.exists():
        raise FormatError(path, 0, "no such file")
    if ending(path) in TABLE_ENDINGS:
        chains = list(_read_table(path))
    elif ending(path) in COORDINATE_ENDINGS:
        chains = [_from_file(chain, path) for chain in read_mmcif(path)]
    else:
        endings = ", ".join((*TABLE_ENDINGS, *COORDINATE_ENDINGS))
        raise FormatError(path, 0, f"expected a folder, or a file ending in {endings}")
    usable = [chain for chain in chains if chain.resolved.sum() >= LEAST_RESOLVED]
    if not usable:
        raise FormatError(path, 0, f"holds no RNA chain of at least {LEAST_RESOLVED} resolved residues")
    return usable


def _read_table(path: Path) -> Iterator[TemplateChain]:
    # PyArrow is imported when it is needed: predicting does without
    from ribonanzamamba.data.coordinate_table import read_coordinate_table

    try:
        examples = read_coordinate_table(path)
    except ValueError as error:
        raise FormatError(path, 0, str(error).removeprefix(f"{path}: ")) from error
    for example in examples:
        if example.coordinates is not None:
            yield TemplateChain(one_word(example.id), example.sequence, example.coordinates)


def _from_file(chain: ChainCoordinates, path: Path) -> TemplateChain:
    """The chain of a file, named after the entry, or the file where it names none."""
    coordinates = np.array(chain.coordinates, dtype=np.float32)
    # an atom lacks all of x, y, z where one is absurd
    coordinates[~(np.abs(coordinates) <= MAX_COORDINATE).all(axis=-1)] = np.nan
    return TemplateChain(one_word(f"{chain.entry or stem(path)}_{chain.id}"), chain.sequence, coordinates)
