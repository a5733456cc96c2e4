from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ribonanzamamba.data.coordinate_table import read_coordinate_table
from ribonanzamamba.data.splits import hashed_split
from ribonanzamamba.rna.records import ATOMS

TABLES = Path(__file__).parents[2] / ".." / "shared" / "data" / "rna3d"
needs_tables = pytest.mark.skipif(not TABLES.is_dir(), reason="the folder shared/data is not beside the repository")
NAN = float("nan")
P, C4, C1, N = range(4)


def write_parquet(folder: Path, sequences: list[str], **columns) -> Path:
    table = {"target_id": [f"row{k}" for k in range(len(sequences))], "sequence": sequences}
    for name, values in columns.items():
        table[name] = pa.array(values, pa.list_(pa.float32())) if name.endswith("_xyz") else values
    path = folder / "train.parquet"
    pq.write_table(pa.table(table), path)
    return path


def test_atoms_are_in_the_order_of_the_records():
    assert ATOMS == ("P", "C4'", "C1'", "N")


def test_lists_become_coordinates_and_absent_ones_are_missing(tmp_path):
    path = write_parquet(
        tmp_path,
        ["AC", "GUN", "A"],
        c1p_xyz=[[1, 2, 3, 4, 5, 6], list(range(9)), [NAN, NAN, NAN]],
        p_xyz=[None, [NAN, NAN, NAN, 1, 1, 1, 2, 2, 2], []],
        n9n1_xyz=[[], [7.0] * 9, None],
        source=["a", "b", "b"],
        cluster80=[4, 4, 8],
    )
    first, second, third = read_coordinate_table(path)
    assert first.coordinates.shape == (2, 4, 3) and first.coordinates.dtype == np.float32
    np.testing.assert_array_equal(first.coordinates[:, C1], [[1, 2, 3], [4, 5, 6]])
    assert np.isnan(first.coordinates[:, [P, C4, N]]).all()
    np.testing.assert_array_equal(second.coordinates[:, P], [[NAN] * 3, [1] * 3, [2] * 3])
    assert (second.coordinates[:, N] == 7).all() and np.isnan(second.coordinates[:, C4]).all()
    assert third.coordinates is None
    assert [(e.id, e.cluster, e.cluster_size, e.dataset) for e in (first, second, third)] == [
        ("row0", 4, 2, "a"),
        ("row1", 4, 2, "b"),
        ("row2", 8, 1, "b"),
    ]
    assert first.reactivity is first.reactivity_weight is first.partners is None


@pytest.mark.parametrize("value", [-1e18, 2e6, NAN, float("inf")])
def test_an_absurd_value_makes_its_atom_missing(tmp_path, value):
    (example,) = read_coordinate_table(write_parquet(tmp_path, ["AC"], c1p_xyz=[[1, 2, 3, 4, value, 6]]))
    np.testing.assert_array_equal(example.coordinates[:, C1], [[1, 2, 3], [NAN] * 3])


def test_list_of_the_wrong_length_is_refused_with_the_row(tmp_path):
    path = write_parquet(tmp_path, ["AC", "AC"], c1p_xyz=[[0.0] * 6, [0.0] * 5])
    with pytest.raises(ValueError, match="row1: expected 6 values in c1p_xyz, got 5"):
        read_coordinate_table(path)


def test_split_keeps_clusters_whole(tmp_path):
    clusters = [k // 2 for k in range(400)]
    path = write_parquet(tmp_path, ["AC"] * 400, c1p_xyz=[[0.0] * 6] * 400, cluster80=clusters)
    train, valid = (read_coordinate_table(path, split) for split in ("train", "valid"))
    assert len(train) + len(valid) == 400 and 10 < len(valid) < 60
    assert {e.cluster for e in train}.isdisjoint(e.cluster for e in valid)
    assert all(e.cluster_size == 2 for e in train + valid)


def test_reporting_table_has_parts_instead_of_splits(tmp_path):
    path = write_parquet(
        tmp_path,
        ["AC"] * 3,
        c1p_xyz=[[0.0] * 6] * 3,
        cluster80=[0, 1, 2],
        val_role=["target", "target", "neighbour"],
        is_main=[True, False, False],
    )
    assert [len(read_coordinate_table(path, split)) for split in (None, "main", "target", "neighbour")] == [3, 1, 2, 1]
    with pytest.raises(ValueError, match="expected a split of main, target, neighbour, got 'valid'"):
        read_coordinate_table(path, "valid")


def test_coordinates_are_read_only(tmp_path):
    (example,) = read_coordinate_table(write_parquet(tmp_path, ["AC"], c1p_xyz=[[0.0] * 6]))
    with pytest.raises(ValueError, match="read-only"):
        example.coordinates[0] = 0


def write_kaggle(folder: Path, header: str, lines: list[str], name: str = "train_sequences.csv") -> Path:
    path = folder / name
    path.write_text(
        "target_id,sequence,temporal_cutoff,description,all_sequences\n"
        '1SCL_A,GCU,1995-01-26,"A ""long"", quoted\ntext",">1SCL_1"\n'
        "R1107,GGt,2022-05-28,,\n"
        "8XYZ_B_2,AX,2023-01-01,,\n"
        "1SCL_C,GCU,1995-01-26,,\n"
    )
    (folder / name.replace("sequences", "labels")).write_text("\n".join([header, *lines]) + "\n")
    return path


ONE = "ID,resname,resid,x_1,y_1,z_1"
TWO = "ID,resname,resid,x_1,y_1,z_1,x_2,y_2,z_2"


@pytest.mark.filterwarnings("error")
def test_kaggle_labels_become_c1_coordinates(tmp_path):
    lines = [
        "1SCL_A_1,G,1,13.76,-25.974,0.102",
        "1SCL_A_3,U,3,3,3,3",
        "1SCL_A_2,C,2,,,",
        "8XYZ_B_2_1,A,1,1,1,1",
        "8XYZ_B_2_2,N,2,-1e+18,-1e+18,-1e+18",
        "NOT_HERE_1,A,1,9,9,9",
    ]
    first, second, third, fourth = read_coordinate_table(write_kaggle(tmp_path, ONE, lines))
    assert (first.id, first.sequence, second.sequence, third.sequence) == ("1SCL_A", "GCU", "GGU", "AN")
    np.testing.assert_allclose(first.coordinates[:, C1], [[13.76, -25.974, 0.102], [NAN] * 3, [3] * 3], rtol=1e-6)
    assert np.isnan(first.coordinates[:, [P, C4, N]]).all()
    np.testing.assert_array_equal(third.coordinates[:, C1], [[1] * 3, [NAN] * 3])
    assert second.coordinates is None and fourth.coordinates is None
    assert [e.cluster for e in (first, second, third, fourth)] == [0, 1, 2, 0]
    assert first.cluster_size == 1 and first.dataset == "train_sequences"


def test_kaggle_takes_the_first_conformation_with_values(tmp_path):
    lines = [
        "1SCL_A_1,G,1,,,,1,1,1",
        "1SCL_A_2,C,2,-1e+18,-1e+18,-1e+18,2,2,2",
        "1SCL_A_3,U,3,,,,,,",
        "R1107_1,G,1,,,,7,7,7",
        "R1107_2,G,2,5,5,5,8,8,8",
        "R1107_3,U,3,,,,9,9,9",
    ]
    first, second, *_ = read_coordinate_table(write_kaggle(tmp_path, TWO, lines))
    np.testing.assert_array_equal(first.coordinates[:, C1, 0], [1, 2, NAN])
    # Residues of two conformations are never mixed.
    np.testing.assert_array_equal(second.coordinates[:, C1, 0], [NAN, 5, NAN])


@pytest.mark.parametrize("line", ["1SCL_A_2,A,2,1,1,1", "1SCL_A_4,U,4,1,1,1", "1SCL_A_0,G,0,1,1,1"])
def test_kaggle_labels_that_contradict_the_sequence_are_not_used(tmp_path, caplog, line):
    lines = ["1SCL_A_1,G,1,1,1,1", line, "R1107_1,G,1,5,5,5"]
    first, second, *_ = read_coordinate_table(write_kaggle(tmp_path, ONE, lines))
    assert first.coordinates is None
    assert "1 targets contradict the sequence: 1SCL_A" in caplog.text
    np.testing.assert_array_equal(second.coordinates[:, C1, 0], [5, NAN, NAN])


def test_kaggle_names_and_given_labels(tmp_path):
    path = write_kaggle(tmp_path, ONE, ["1SCL_A_1,G,1,4,4,4"], "validation_sequences.v2.csv")
    assert read_coordinate_table(path)[0].coordinates[0, C1, 0] == 4
    moved = (tmp_path / "validation_labels.v2.csv").rename(tmp_path / "answers.csv")
    with pytest.raises(FileNotFoundError, match=r"expected its labels in .*validation_labels\.v2\.csv"):
        read_coordinate_table(path)
    assert read_coordinate_table(path, labels=moved)[0].coordinates[0, C1, 0] == 4


def test_kaggle_split_follows_the_sequence(tmp_path):
    path = write_kaggle(tmp_path, ONE, ["1SCL_A_1,G,1,4,4,4", "1SCL_C_1,G,1,6,6,6"])
    train, valid = (read_coordinate_table(path, split) for split in ("train", "valid"))
    assert len(train) + len(valid) == 4
    for split, examples in (("train", train), ("valid", valid)):
        assert all(hashed_split(e.sequence) == split for e in examples)
    by_id = {e.id: e for e in train + valid}
    assert by_id["1SCL_A"].coordinates[0, C1, 0] == 4 and by_id["1SCL_C"].coordinates[0, C1, 0] == 6


@needs_tables
def test_real_tables_have_the_stated_counts():
    train = read_coordinate_table(TABLES / "train.parquet")
    assert len(train) == 2_339 and len({e.sequence for e in train}) == 1_975
    assert sum(e.length for e in train) == 212_844
    assert sum(int(np.isfinite(e.coordinates[:, C1, 0]).sum()) for e in train) == 195_406
    assert len({e.cluster for e in train if e.length >= 30}) == 633
    reporting = read_coordinate_table(TABLES / "validation.parquet")
    assert len(reporting) == 112
    assert sum(int(np.isfinite(e.coordinates[:, C1, 0]).sum()) for e in reporting) == 10_395
    counts = [len(read_coordinate_table(TABLES / "validation.parquet", s)) for s in ("main", "target", "neighbour")]
    assert counts == [68, 73, 39]
    assert {e.sequence for e in train}.isdisjoint(e.sequence for e in reporting)


@needs_tables
def test_real_split_keeps_clusters_and_sequences_apart():
    train, valid = (read_coordinate_table(TABLES / "train.parquet", split) for split in ("train", "valid"))
    assert len(train) + len(valid) == 2_339 and 100 < len(valid) < 300
    assert {e.cluster for e in train}.isdisjoint(e.cluster for e in valid)


@needs_tables
def test_real_distances_are_those_of_rna():
    bonds, steps = [], []
    for example in read_coordinate_table(TABLES / "train.parquet"):
        xyz = example.coordinates
        bonds.append(np.linalg.norm(xyz[:, C1] - xyz[:, N], axis=-1))
        steps.append(np.linalg.norm(np.diff(xyz[:, C1], axis=0), axis=-1))
        if example.dataset == "kaggle_v1_subset":
            assert np.isnan(xyz[:, [P, C4, N]]).all()
    # SOURCES.md: C1'-N9/N1 1.47, consecutive C1' 5.6 angstrom (medians).
    assert abs(np.nanmedian(np.concatenate(bonds)) - 1.47) < 0.02
    assert abs(np.nanmedian(np.concatenate(steps)) - 5.6) < 0.1
