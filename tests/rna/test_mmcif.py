"""Coordinate files: ours as other programs see them, and those of others as we see them."""

import os
from importlib.metadata import version

import biotite.structure.io.pdbx as pdbx
import gemmi
import numpy as np
import pytest

from ribonanzamamba.rna.formats import FormatError
from ribonanzamamba.rna.mmcif import read_mmcif, write_mmcif

SEQUENCE = "GGACUNAAC"
ATOM_NAMES = {"P", "C4'", "C1'", "N1", "N9"}


@pytest.fixture
def model():
    """Coordinates (9, 4, 3) with one atom and one whole nucleotide missing, and pLDDT (9,)."""
    generator = np.random.default_rng(5)
    coordinates = generator.normal(scale=40.0, size=(len(SEQUENCE), 4, 3))
    coordinates[0, 0] = np.nan
    coordinates[3] = np.nan
    return coordinates, generator.uniform(0, 100, size=len(SEQUENCE))


@pytest.fixture
def written(tmp_path, model):
    path = tmp_path / "a.cif"
    write_mmcif(path, SEQUENCE, *model, id="some/id 1", model=2, provenance="template 1EHZ_A 0.93")
    return path


def test_write_mmcif_opens_in_gemmi(written, model):
    coordinates, plddt = model
    structure = gemmi.read_structure(str(written))
    assert len(structure) == 1 and [chain.name for chain in structure[0]] == ["A"]
    (entity,) = structure.entities
    assert entity.polymer_type == gemmi.PolymerType.Rna and "".join(entity.full_sequence) == SEQUENCE
    atoms = [(residue, atom) for residue in structure[0]["A"] for atom in residue]
    assert len(atoms) == 9 * 4 - 5
    assert {atom.name for _, atom in atoms} == ATOM_NAMES
    for residue, atom in atoms:
        i = residue.seqid.num - 1
        assert residue.label_seq == i + 1 and residue.name == SEQUENCE[i]
        k = ("P", "C4'", "C1'", "N9" if SEQUENCE[i] in "AGN" else "N1").index(atom.name)
        np.testing.assert_allclose(atom.pos.tolist(), coordinates[i, k], atol=0.001)
        assert atom.b_iso == pytest.approx(plddt[i], abs=0.0051) and atom.element.name == atom.name[0]


def test_write_mmcif_opens_in_biotite(written, model):
    coordinates, plddt = model
    file = pdbx.CIFFile.read(written)
    atoms = pdbx.get_structure(file, model=1, extra_fields=["b_factor"])
    assert atoms.array_length() == 9 * 4 - 5
    order = ~np.isnan(coordinates).any(axis=-1)
    np.testing.assert_allclose(atoms.coord, coordinates[order], atol=0.001)
    np.testing.assert_allclose(atoms.b_factor, np.repeat(plddt, 4)[order.ravel()], atol=0.0051)
    assert str(pdbx.get_sequence(file)["A"]) == SEQUENCE.replace("U", "T")
    metric = file.block["ma_qa_metric"]
    assert (metric["name"].as_item(), metric["mode"].as_item()) == ("pLDDT", "local")
    local = file.block["ma_qa_metric_local"]
    np.testing.assert_allclose(local["metric_value"].as_array(float), plddt, atol=0.0051)
    assert local["label_seq_id"].as_array(int).tolist() == list(range(1, 10))
    assert set(local["model_id"].as_array()) == {"2"}
    assert file.block["software"]["version"].as_item() == version("ribonanzamamba")
    assert "template 1EHZ_A 0.93" in file.block["struct"]["pdbx_model_details"].as_item()


def test_read_mmcif_is_the_inverse_of_write_mmcif(written, model):
    coordinates, plddt = model
    (chain,) = read_mmcif(written)
    assert (chain.id, chain.entry, chain.sequence) == ("A", "some/id 1", SEQUENCE)
    np.testing.assert_allclose(chain.coordinates, coordinates, atol=0.00051)
    plddt = plddt.copy()
    plddt[3] = np.nan  # no atom, no B-factor
    np.testing.assert_allclose(chain.plddt, plddt, atol=0.0051)


@pytest.mark.parametrize("id", ["1EHZ_A", "data_", "_x", "?", ";x", 'it\'s "x"', "Ünï"])
def test_write_mmcif_spells_every_id(tmp_path, id):
    write_mmcif(tmp_path / "a.cif", "G", np.zeros((1, 4, 3)), np.ones(1), id=id)
    assert read_mmcif(tmp_path / "a.cif")[0].entry == id


@pytest.mark.parametrize(
    ("coordinates", "plddt", "message"),
    [
        pytest.param(np.zeros((2, 4, 3)), np.zeros(3), "expected coordinates", id="short-coordinates"),
        pytest.param(np.zeros((3, 3, 3)), np.zeros(3), "expected coordinates", id="three-atoms"),
        pytest.param(np.zeros((3, 4, 3)), np.zeros(2), "expected coordinates", id="short-plddt"),
        pytest.param(np.full((3, 4, 3), np.inf), np.zeros(3), "finite", id="infinite"),
        pytest.param(np.zeros((3, 4, 3)), np.full(3, np.nan), "finite", id="nan-plddt"),
        pytest.param(np.full((3, 4, 3), np.nan), np.zeros(3), "no atom", id="no-atom"),
    ],
)
def test_write_mmcif_refuses(tmp_path, coordinates, plddt, message):
    path = tmp_path / "a.cif"
    path.write_text("as it was")
    with pytest.raises(ValueError, match=message):
        write_mmcif(path, "ACG", coordinates, plddt, id="x")
    assert path.read_text() == "as it was" and os.listdir(tmp_path) == ["a.cif"]


PDB = """\
HEADER    RNA                                     01-JAN-00   1ABC
MODRES 1ABC XYZ A    3    U
SEQRES   1 A    6    A PSU XYZ 2MG QQQ   G
SEQRES   1 B    2  ALA GLY
MODEL        1
ATOM      1  P     A A   1      10.000  20.000  30.000  1.00 11.00           P
ATOM      2  C1*A  A A   1      11.000  20.000  30.000  0.40 12.00           C
ATOM      3  C1*B  A A   1      99.000  99.000  99.000  0.60 12.00           C
ATOM      4  N9    A A   1      12.000  20.000  30.000  1.00 13.00           N
HETATM    5  C1' PSU A   2      13.000  20.000  30.000  1.00 21.00           C
HETATM    6  N1  PSU A   2      14.000  20.000  30.000  1.00 22.00           N
HETATM    7  C1' XYZ A   3      15.000  20.000  30.000  1.00 31.00           C
HETATM    8  N1  XYZ A   3      16.000  20.000  30.000  1.00 31.00           N
HETATM    9  C1' 2MG A   4      17.000  20.000  30.000  1.00 41.00           C
ATOM     10  C1'   G A   6      18.000  20.000  30.000  1.00 61.00           C
ATOM     11  N9    G A   6      19.000  20.000  30.000  1.00 61.00           N
TER      12        G A   6
ATOM     13  N   ALA B   1       1.000   2.000   3.000  1.00  1.00           N
ATOM     14  CA  ALA B   1       2.000   2.000   3.000  1.00  1.00           C
ATOM     15  N   GLY B   2       3.000   2.000   3.000  1.00  1.00           N
ATOM     16  CA  GLY B   2       4.000   2.000   3.000  1.00  1.00           C
TER      17      GLY B   2
HETATM   18  O   HOH A 101       5.000   2.000   3.000  1.00  1.00           O
ENDMDL
MODEL        2
ATOM      1  C1'   A A   1      77.000  77.000  77.000  1.00 11.00           C
ENDMDL
END
"""


def test_read_mmcif_reads_pdb(tmp_path):
    """Modified residues, one without parent, one missing, alternative positions, a protein, a second model."""
    path = tmp_path / "a.pdb"
    path.write_text(PDB)
    (chain,) = read_mmcif(path)
    assert (chain.id, chain.entry, chain.sequence) == ("A", "1ABC", "AUUGNG")
    nan = np.nan
    along_x = [[10, nan, 11, 12], [nan, nan, 13, 14], [nan, nan, 15, 16], [nan, nan, 17, nan], [nan] * 4]
    np.testing.assert_array_equal(chain.coordinates[..., 0], [*along_x, [nan, nan, 18, 19]])
    np.testing.assert_array_equal(chain.plddt, [11, 21, 31, 41, nan, 61])


def test_read_mmcif_without_sequence_takes_the_nucleotides_with_atoms(tmp_path):
    path = tmp_path / "a.pdb"
    path.write_text("".join(line for line in PDB.splitlines(keepends=True) if not line.startswith("SEQRES")))
    (chain,) = read_mmcif(path)
    assert chain.sequence == "AUUGG" and chain.coordinates.shape == (5, 4, 3)


def test_read_mmcif_without_an_entry(tmp_path):
    path = tmp_path / "a.pdb"
    path.write_text("".join(line for line in PDB.splitlines(keepends=True) if not line.startswith("HEADER")))
    assert [chain.entry for chain in read_mmcif(path)] == [""]


def test_read_mmcif_without_rna(tmp_path):
    path = tmp_path / "a.pdb"
    path.write_text("".join(line for line in PDB.splitlines(keepends=True) if "   B   " in line or " B  " in line))
    assert read_mmcif(path) == ()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("a.cif", b"", "the file is empty", id="empty-cif"),
        pytest.param("a.pdb", b"", "the file is empty", id="empty-pdb"),
        pytest.param("a.cif", b"data_x\nloop_\n_a.b\n_a.c\n1\n", "neither mmCIF nor PDB", id="broken-cif"),
        pytest.param("a.cif", b"data_x\n_a.b 1\n", "no atoms", id="cif-without-atoms"),
        pytest.param("a.cif", b"\x89PNG\r\n\x1a\n\x00", "neither mmCIF nor PDB", id="png"),
    ],
)
def test_read_mmcif_refuses(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_mmcif(path)
    assert caught.value.path == str(path)


def test_read_mmcif_missing_file_and_folder(tmp_path):
    with pytest.raises(FormatError, match="no such file"):
        read_mmcif(tmp_path / "none.cif")
    with pytest.raises(FormatError, match="is a folder"):
        read_mmcif(tmp_path)
