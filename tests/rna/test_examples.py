"""The example RNAs and what their README says of them."""

import re
from pathlib import Path

import numpy as np
import pytest

from ribonanzamamba.rna.formats import read_dot_bracket, read_fasta, read_records

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
STRUCTURES = REPOSITORY.parent / "shared" / "data" / "rna3d" / "train.parquet"
CANONICAL = {"AU", "UA", "GC", "CG", "GU", "UG"}

LENGTHS = {"tRNA-Phe": 76, "add-riboswitch": 71, "5S-rRNA": 120, "TAR": 57, "SARS2-FSE": 85}


@pytest.fixture
def known(tmp_path):
    """Record and structure of each block of the README, by id."""
    blocks = re.findall(r"```dbn\n(.*?)```", (EXAMPLES / "README.md").read_text(), flags=re.DOTALL)
    path = tmp_path / "known.dbn"
    path.write_text("".join(blocks))
    return {record.id: (record, structure) for record, structure in read_dot_bracket(path)}


def test_examples_are_read_without_remarks():
    result = read_records(EXAMPLES / "rnas.fasta")
    assert {record.id: record.length for record in result.records} == LENGTHS
    assert result.problems == () and result.warnings == ()


def test_examples_stand_in_the_readme(known):
    assert {id: record.sequence for id, (record, _) in known.items()} == {
        record.id: record.sequence for record in read_fasta(EXAMPLES / "rnas.fasta")
    }


@pytest.mark.parametrize("id", LENGTHS)
def test_known_pairs_are_canonical(known, id):
    record, structure = known[id]
    assert structure.pairs
    assert {record.sequence[i] + record.sequence[j] for i, j in structure.pairs} <= CANONICAL
    assert all(j - i > 3 for i, j in structure.pairs)


def test_known_stems(known):
    """Numbers the README gives in words."""
    assert {id for id, (_, structure) in known.items() if structure.crossing_pairs()} == {
        "tRNA-Phe",
        "add-riboswitch",
        "SARS2-FSE",
    }
    stems = [stem for stem in known["SARS2-FSE"][1].stems() if len(stem) > 1]
    assert [(stem[0][0] + 1, stem[0][1] + 1, len(stem)) for stem in stems] == [
        (13, 44, 11),
        (27, 81, 5),
        (45, 70, 5),
        (50, 64, 3),
    ]
    unpaired = np.flatnonzero(known["TAR"][1].to_partners() < 0) + 1
    assert unpaired.tolist() == [4, 16, 22, 23, 24, 29, 30, 31, 32, 33, 34]
    assert known["SARS2-FSE"][0].sequence.startswith("UUUAAAC")


@pytest.mark.parametrize(
    ("id", "target"),
    [("tRNA-Phe", "1EVV_A"), ("add-riboswitch", "1Y26_X"), ("5S-rRNA", "8C8X_B")],
)
def test_known_pairs_have_the_geometry_of_pairs(known, id, target):
    """C1'-C1' of canonical pairs is 10.4 to 10.8 angstrom; 9.5 to 12.5 allows for cryo-EM models."""
    if not STRUCTURES.exists():
        pytest.skip(f"needs the table of 3D structures, {STRUCTURES.name}, beside the repository")
    import pyarrow.parquet as pq

    columns = ["target_id", "sequence", "c1p_xyz"]
    (row,) = pq.read_table(STRUCTURES, columns=columns, filters=[("target_id", "=", target)]).to_pylist()
    record, structure = known[id]
    offset = record.sequence.index(row["sequence"])
    carbon = np.array(row["c1p_xyz"]).reshape(-1, 3)
    pairs = np.array(structure.pairs) - offset
    pairs = pairs[((pairs >= 0) & (pairs < len(carbon))).all(axis=1)]
    distance = np.linalg.norm(carbon[pairs[:, 0]] - carbon[pairs[:, 1]], axis=1)
    distance = distance[np.isfinite(distance)]
    assert len(distance) > 0.9 * len(structure.pairs)
    assert np.median(distance) == pytest.approx(10.6, abs=0.2)
    assert ((distance > 9.5) & (distance < 12.5)).all()
