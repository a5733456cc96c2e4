"""Coordinates of RNA chains: to PDBx/mmCIF files, and from mmCIF and PDB files of anybody.

Four atoms a nucleotide (ATOMS); the text of the formats is gemmi's business. Knows nothing of networks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from ribonanzamamba.rna.formats import FormatError, replacing, safe_file_name
from ribonanzamamba.rna.records import ATOMS

if TYPE_CHECKING:
    import gemmi

PURINES = "AGN"
"""Letters whose glycosidic nitrogen is called N9; that of C and U is N1. An unknown base counts as a purine."""

CHAIN = "A"
ENTITY = "1"
LOCAL_METRIC = "1"


@dataclass(frozen=True)
class ChainCoordinates:
    """One RNA chain of a coordinate file."""

    id: str
    """Name of the chain, as authors use it."""
    sequence: str
    """Letters A C G U N: the whole sequence where the file tells it, otherwise the nucleotides that have atoms."""
    coordinates: np.ndarray
    """(length, atom, 3), angstrom, atoms as in ATOMS, NaN where the file has none."""
    plddt: np.ndarray
    """(length,), the B-factor of the first of its atoms: pLDDT in predictions, NaN where there is no atom."""
    entry: str = ""
    """Id of the whole file's entry: a PDB id, or the id of the record in files of `write_mmcif`."""


def write_mmcif(
    path: str | os.PathLike[str],
    sequence: str,
    coordinates: np.ndarray,
    plddt: np.ndarray,
    *,
    id: str,
    model: int = 1,
    software_version: str | None = None,
    provenance: str = "network",
) -> None:
    """mmCIF file of one model of one RNA, complete or not there at all.

    pLDDT goes into the B-factors and, for every nucleotide, into `_ma_qa_metric_local`. Atoms with a NaN are left
    out; a nucleotide without atoms stays in the sequence.

    Args:
        sequence: letters A C G U N.
        coordinates: (length, atom, 3), angstrom, atoms as in ATOMS.
        plddt: (length,), 0 to 100.
        id: the record's id, the entry's id in the file.
        model: 1-based number of the model.
        software_version: of this package; None asks the installed one.
        provenance: where the model came from: "network", or "template PDB_CHAIN identity".

    Raises:
        ValueError: shapes that do not fit the sequence, an infinite number, a NaN pLDDT, or no atom at all.

    Source: https://mmcif.wwpdb.org/dictionaries/mmcif_ma.dic (ModelCIF).
    """
    import gemmi

    coordinates = np.asarray(coordinates, dtype=np.float64)
    plddt = np.asarray(plddt, dtype=np.float64)
    if coordinates.shape != (len(sequence), len(ATOMS), 3) or plddt.shape != (len(sequence),):
        raise ValueError(
            f"{id!r}: expected coordinates ({len(sequence)}, {len(ATOMS)}, 3) and plddt ({len(sequence)},), "
            f"got {coordinates.shape} and {plddt.shape}"
        )
    if np.isinf(coordinates).any() or not np.isfinite(plddt).all():
        raise ValueError(f"{id!r}: coordinates must be finite or NaN, plddt finite")
    present = np.argwhere(~np.isnan(coordinates).any(axis=-1)).tolist()
    if not present:
        raise ValueError(f"{id!r}: no atom has coordinates")

    document = gemmi.cif.Document()
    block = document.add_new_block(safe_file_name(id))
    _add_entry(block, id, model, software_version or version("ribonanzamamba"), provenance)
    _add_polymer(block, sequence)
    _add_plddt(block, sequence, plddt, model)
    _add_atoms(block, sequence, coordinates, plddt, model, present)
    with replacing(path) as file:
        file.write(document.as_string())


def _add_entry(block: gemmi.cif.Block, id: str, model: int, software_version: str, provenance: str) -> None:
    """What the file is and what made it."""
    id = " ".join(id.split())  # a text field of CIF cannot hold every line break
    block.set_mmcif_category("_entry.", {"id": [id]})
    title = f"RibonanzaMamba model {model} of {id}"
    block.set_mmcif_category(
        "_struct.", {"entry_id": [id], "title": [title], "pdbx_model_details": [f"source: {provenance}"]}
    )
    block.set_mmcif_category(
        "_software.",
        {
            "pdbx_ordinal": ["1"],
            "classification": ["other"],
            "name": ["RibonanzaMamba"],
            "version": [software_version],
            "type": ["package"],
            "description": ["prediction of RNA structure from its sequence"],
        },
    )


def _add_polymer(block: gemmi.cif.Block, sequence: str) -> None:
    """The one polymer and its sequence."""
    kinds = sorted(set(sequence))
    block.set_mmcif_category("_chem_comp.", {"id": kinds, "type": ["RNA linking"] * len(kinds)})
    block.set_mmcif_category("_entity.", {"id": [ENTITY], "type": ["polymer"], "pdbx_description": ["RNA"]})
    block.set_mmcif_category(
        "_entity_poly.",
        {
            "entity_id": [ENTITY],
            "type": ["polyribonucleotide"],
            "nstd_linkage": ["no"],
            "nstd_monomer": ["no"],
            "pdbx_seq_one_letter_code": [sequence],
            "pdbx_seq_one_letter_code_can": [sequence],
            "pdbx_strand_id": [CHAIN],
        },
    )
    numbers = [str(i) for i in range(1, len(sequence) + 1)]
    block.set_mmcif_category(
        "_entity_poly_seq.",
        {
            "entity_id": [ENTITY] * len(sequence),
            "num": numbers,
            "mon_id": list(sequence),
            "hetero": ["n"] * len(sequence),
        },
    )
    block.set_mmcif_category("_struct_asym.", {"id": [CHAIN], "entity_id": [ENTITY], "details": [None]})


def _add_plddt(block: gemmi.cif.Block, sequence: str, plddt: np.ndarray, model: int) -> None:
    """Confidence of every nucleotide."""
    numbers = [str(i) for i in range(1, len(sequence) + 1)]
    block.set_mmcif_category(
        "_ma_model_list.", {"ordinal_id": ["1"], "model_id": [str(model)], "model_name": [f"model {model}"]}
    )
    block.set_mmcif_category(
        "_ma_qa_metric.", {"id": [LOCAL_METRIC], "name": ["pLDDT"], "type": ["pLDDT"], "mode": ["local"]}
    )
    block.set_mmcif_category(
        "_ma_qa_metric_local.",
        {
            "ordinal_id": numbers,
            "model_id": [str(model)] * len(sequence),
            "label_asym_id": [CHAIN] * len(sequence),
            "label_seq_id": numbers,
            "label_comp_id": list(sequence),
            "metric_id": [LOCAL_METRIC] * len(sequence),
            "metric_value": [f"{value:.2f}" for value in plddt],
        },
    )


def _add_atoms(
    block: gemmi.cif.Block,
    sequence: str,
    coordinates: np.ndarray,
    plddt: np.ndarray,
    model: int,
    present: list[list[int]],
) -> None:
    """The atoms that have coordinates, `present` as (nucleotide, atom), 0-based."""
    names = [_atom_name(ATOMS[atom], sequence[i]) for i, atom in present]
    residues = [str(i + 1) for i, _ in present]
    letters = [sequence[i] for i, _ in present]
    n = len(present)
    elements = [name[0] for name in names]
    kinds = sorted(set(elements))
    block.set_mmcif_category("_atom_type.", {"symbol": kinds})
    block.set_mmcif_category(
        "_atom_site.",
        {
            "group_PDB": ["ATOM"] * n,
            "id": [str(serial) for serial in range(1, n + 1)],
            "type_symbol": elements,
            "label_atom_id": names,
            "label_alt_id": [False] * n,  # False is written as ".", None as "?"
            "label_comp_id": letters,
            "label_asym_id": [CHAIN] * n,
            "label_entity_id": [ENTITY] * n,
            "label_seq_id": residues,
            "pdbx_PDB_ins_code": [None] * n,
            **{
                f"Cartn_{axis}": [f"{coordinates[i, atom, k]:.3f}" for i, atom in present]
                for k, axis in enumerate("xyz")
            },
            "occupancy": ["1.00"] * n,
            "B_iso_or_equiv": [f"{plddt[i]:.2f}" for i, _ in present],
            "auth_seq_id": residues,
            "auth_comp_id": letters,
            "auth_asym_id": [CHAIN] * n,
            "auth_atom_id": names,
            "pdbx_PDB_model_num": [str(model)] * n,
        },
    )


def read_mmcif(path: str | os.PathLike[str]) -> tuple[ChainCoordinates, ...]:
    """RNA chains of an mmCIF or PDB file (.gz too), first model only; () if it has none.

    Modified nucleotides become the letter of their parent where the file or gemmi's table of residues names it, N
    otherwise. Of alternative positions and of alternative residues the first in the file counts.

    Raises:
        FormatError: there is no such file, or it is neither mmCIF nor PDB.
    """
    import gemmi

    path = os.fspath(path)
    if os.path.isdir(path):
        raise FormatError(path, 0, "is a folder, not a file")
    if os.path.exists(path) and os.path.getsize(path) == 0:
        raise FormatError(path, 0, "the file is empty")
    try:
        structure = gemmi.read_structure(path, format=gemmi.CoorFormat.Detect)
    except OSError as error:
        raise FormatError(
            path, 0, "no such file" if not os.path.exists(path) else f"cannot be read ({error})"
        ) from error
    # gemmi's parser raises these; IndexError for an empty file.
    except (ValueError, RuntimeError, IndexError) as error:
        raise FormatError(path, 0, f"is neither mmCIF nor PDB ({str(error).removeprefix(path)})") from error
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise FormatError(path, 0, "holds no atoms: neither mmCIF nor PDB, or empty")
    structure.setup_entities()
    structure.assign_label_seq_id()
    parents = {residue.res_id.name: residue.parent_comp_id for residue in structure.mod_residues}
    chains = []
    for chain in structure[0]:
        polymer = chain.get_polymer()
        kinds = (gemmi.PolymerType.Rna, gemmi.PolymerType.DnaRnaHybrid)
        if len(polymer) and polymer.check_polymer_type() in kinds:
            chains.append(_chain_coordinates(chain.name, structure, polymer, parents))
    return tuple(chains)


def _chain_coordinates(
    name: str, structure: gemmi.Structure, polymer: gemmi.ResidueSpan, parents: dict[str, str]
) -> ChainCoordinates:
    """One chain, on the whole sequence if the file gives it and every residue has its place there."""
    import gemmi

    residues = list(polymer.first_conformer())
    entity = structure.get_entity_of(polymer)
    whole = [gemmi.Entity.first_mon(names) for names in entity.full_sequence] if entity else []
    places = [residue.label_seq for residue in residues]
    if not whole or None in places:
        whole = [residue.name for residue in residues]
        places = list(range(1, len(residues) + 1))
    letters = [_parent_letter(residue, parents) for residue in whole]
    coordinates = np.full((len(whole), len(ATOMS), 3), np.nan)
    plddt = np.full(len(whole), np.nan)
    for place, residue in zip(places, residues, strict=True):
        letters[place - 1] = _parent_letter(residue.name, parents)
        for k, atom_name in enumerate(ATOMS):
            atom = _find_atom(residue, atom_name, letters[place - 1])
            if atom is None:
                continue
            coordinates[place - 1, k] = atom.pos.tolist()
            if np.isnan(plddt[place - 1]):
                plddt[place - 1] = atom.b_iso
    # a PDB file without a header names no entry
    entry = structure.info["_entry.id"] if "_entry.id" in structure.info else ""
    return ChainCoordinates(name, "".join(letters), coordinates, plddt, entry)


def _find_atom(residue: gemmi.Residue, name: str, letter: str) -> gemmi.Atom | None:
    """First position of one of ATOMS in a residue."""
    name = _atom_name(name, letter)
    # Files from before 2007 write C1* for C1'; an unknown base may be a pyrimidine.
    for spelling in (name, name.replace("'", "*"), *(("N1",) if letter == "N" and name == "N9" else ())):
        for atom in residue:
            if atom.name == spelling:
                return atom
    return None


def _atom_name(name: str, letter: str) -> str:
    """Name in a file of one of ATOMS: the glycosidic nitrogen is N9 or N1."""
    return name if name != "N" else "N9" if letter in PURINES else "N1"


def _parent_letter(residue: str, parents: dict[str, str]) -> str:
    """Letter of a nucleotide, of its parent if it is modified, N if nobody knows the parent."""
    import gemmi

    for name in (residue, parents.get(residue, "")):
        letter = gemmi.find_tabulated_residue(name).one_letter_code.upper().replace("T", "U")
        if letter in ("A", "C", "G", "U"):
            return letter
    return "N"
