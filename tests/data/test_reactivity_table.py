from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ribonanzamamba.data.reactivity_table import read_reactivity_rows, read_reactivity_table, row_weights
from ribonanzamamba.data.splits import hashed_split
from ribonanzamamba.rna.records import PROBES

TABLES = Path(__file__).parents[2] / ".." / "shared" / "data" / "reactivity"
needs_tables = pytest.mark.skipif(not TABLES.is_dir(), reason="the folder shared/data is not beside the repository")
NAN = float("nan")


def write_parquet(folder: Path, rows: list[dict]) -> Path:
    """Our Parquet with the given rows; what a row does not say is filled in."""
    full = []
    for number, row in enumerate(rows):
        values = row["reactivity"]
        default = {
            "id": f"row{number}",
            "sequence": "ACGU",
            "reagent": "2A3",
            "error": [0.1] * len(values),
            "signal_to_noise": 1.0,
            "sn_pass": True,
            "dataset": "set",
            "ligand": "",
            "cluster": 5,
            "cluster_size": 9,
            "split": "train",
        }
        full.append(default | row)
    table = pa.Table.from_pylist(full)
    for name in ("reactivity", "error"):
        lists = pa.array([None if r[name] is None else np.array(r[name], dtype=np.float16) for r in full])
        table = table.set_column(table.column_names.index(name), name, lists.cast(pa.list_(pa.float16())))
    path = folder / "reactivity.parquet"
    pq.write_table(table, path, row_group_size=3)
    return path


def column(example, probe: str) -> np.ndarray:
    return example.reactivity[:, PROBES.index(probe)]


def weights(example, probe: str) -> np.ndarray:
    return example.reactivity_weight[:, PROBES.index(probe)]


def test_rows_of_one_sequence_and_dataset_become_one_example(tmp_path):
    path = write_parquet(
        tmp_path,
        [
            {"reactivity": [0.1, 0.2, 0.3, NAN], "dataset": "a"},
            {"reactivity": [1.0, 1.0, 1.0, 1.0], "dataset": "b"},
            {"reactivity": [0.5, 0.6, 0.7, 0.8], "dataset": "a", "reagent": "DMS", "cluster": 5},
            {"reactivity": [2.0, 2.0], "sequence": "GG", "dataset": "a"},
        ],
    )
    first, second, third = read_reactivity_table(path)
    assert [e.id for e in (first, second, third)] == ["row0", "row1", "row3"]
    assert (first.sequence, first.cluster, first.cluster_size, first.dataset) == ("ACGU", 5, 9, "a")
    np.testing.assert_allclose(column(first, "2A3"), [0.1, 0.2, 0.3, NAN], atol=1e-3)
    np.testing.assert_allclose(column(first, "DMS"), [0.5, 0.6, 0.7, 0.8], atol=1e-3)
    assert np.isnan(column(first, "1M7")).all() and (weights(first, "1M7") == 0).all()
    np.testing.assert_array_equal(weights(first, "2A3"), [0.5, 0.5, 0.5, 0])
    assert third.reactivity.shape == (2, len(PROBES)) and third.partners is None and third.coordinates is None


def test_replicates_are_averaged_by_weight_at_each_position(tmp_path):
    path = write_parquet(
        tmp_path,
        [
            {"reactivity": [1.0, 1.0, NAN, NAN], "signal_to_noise": 1.0},  # weight 1/2
            {"reactivity": [4.0, NAN, 4.0, NAN], "signal_to_noise": 3.0},  # weight 3/4
        ],
    )
    (example,) = read_reactivity_table(path)
    np.testing.assert_allclose(column(example, "2A3"), [(0.5 + 3) / 1.25, 1, 4, NAN], atol=2e-3)
    np.testing.assert_allclose(weights(example, "2A3"), [1 - 0.5 * 0.25, 0.5, 0.75, 0], rtol=1e-6)


def test_without_merge_every_row_is_an_example(tmp_path):
    path = write_parquet(tmp_path, [{"reactivity": [1.0] * 4}, {"reactivity": [2.0] * 4}, {"reactivity": [3.0] * 4}])
    examples = read_reactivity_table(path, merge=False)
    assert [e.id for e in examples] == ["row0", "row1", "row2"]
    assert [float(column(e, "2A3")[0]) for e in examples] == [1, 2, 3]


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"signal_to_noise": 4.0}, 0.8),
        ({"signal_to_noise": 100.0}, 20 / 21),
        ({"signal_to_noise": -3.0}, 0.0),
        ({"signal_to_noise": None}, 0.5),
        ({"signal_to_noise": NAN}, 0.5),
        ({"signal_to_noise": 4.0, "sn_pass": False}, 0.2),
        ({"signal_to_noise": 4.0, "ligand": "FMN"}, 0.4),
        ({"signal_to_noise": 4.0, "sn_pass": False, "ligand": "FMN"}, 0.1),
    ],
    ids=["known", "clipped-above", "clipped-below", "null", "nan", "failed", "ligand", "failed-ligand"],
)
def test_weight_of_a_row(tmp_path, row, expected):
    # A second row keeps the column's type where the first has a null.
    other = {"reactivity": [0.0] * 4, "sequence": "GGGG"}
    example, _ = read_reactivity_table(write_parquet(tmp_path, [{"reactivity": [0.7] * 4} | row, other]))
    np.testing.assert_allclose(weights(example, "2A3"), expected, rtol=1e-6)
    # Even a value without weight is kept: it was measured.
    np.testing.assert_allclose(column(example, "2A3"), 0.7, atol=1e-3)


def test_row_weights_of_no_rows():
    assert row_weights(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)).shape == (0,)


def test_reagent_of_the_table_is_mapped_to_our_probe(tmp_path):
    path = write_parquet(tmp_path, [{"reactivity": [0.5] * 4, "reagent": "SHAPE_NMIA_or_1M7"}])
    assert np.isfinite(column(read_reactivity_table(path)[0], "SHAPE")).all()
    assert read_reactivity_rows(path)[0].probe == "SHAPE"


def test_unknown_probe_is_left_out_with_a_warning(tmp_path, caplog):
    path = write_parquet(tmp_path, [{"reactivity": [0.5] * 4, "reagent": "CMCT"}, {"reactivity": [0.5] * 4}])
    assert [e.id for e in read_reactivity_table(path)] == ["row1"]
    assert "CMCT" in caplog.text


def test_probes_are_the_probe_axis(tmp_path):
    path = write_parquet(
        tmp_path, [{"reactivity": [0.5] * 4}, {"reactivity": [0.25] * 4, "reagent": "DMS"}, {"reactivity": [1.0] * 4}]
    )
    (example,) = read_reactivity_table(path, probes=("DMS",))
    assert example.id == "row1"
    np.testing.assert_array_equal(example.reactivity, [[0.25]] * 4)


def test_letters_are_normalised(tmp_path):
    path = write_parquet(tmp_path, [{"reactivity": [0.5] * 4, "sequence": "acTX"}])
    assert read_reactivity_table(path)[0].sequence == "ACUN"


def test_split_of_the_table(tmp_path):
    path = write_parquet(
        tmp_path, [{"reactivity": [0.5] * 4}, {"reactivity": [0.5] * 4, "sequence": "GGGG", "split": "valid"}]
    )
    assert [e.id for e in read_reactivity_table(path, "valid")] == ["row1"]
    assert [r.id for r in read_reactivity_rows(path, "train")] == ["row0"]
    with pytest.raises(ValueError, match=r"expected a split of train, valid, got 'test'"):
        read_reactivity_table(path, "test")


def test_no_row_of_the_probes_is_an_empty_list(tmp_path):
    path = write_parquet(tmp_path, [{"reactivity": [0.5] * 4}])
    assert read_reactivity_table(path, probes=("DMS",)) == []


def test_values_of_another_number_than_letters_are_refused_with_the_row(tmp_path):
    path = write_parquet(tmp_path, [{"reactivity": [0.5] * 4}, {"reactivity": [0.5] * 3}])
    with pytest.raises(ValueError, match="row1: expected 4 values of reactivity, got 3"):
        read_reactivity_table(path)
    with pytest.raises(ValueError, match="row1"):
        read_reactivity_rows(path)


def test_table_without_reactivities_is_refused(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "sequence": ["A"], "reagent": ["2A3"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="expected a column reactivity, got id, sequence, reagent"):
        read_reactivity_table(tmp_path / "t.parquet")


def test_rows_are_what_the_table_says(tmp_path):
    path = write_parquet(
        tmp_path,
        [
            {"reactivity": [0.5, NAN, 1.5, 2.0], "error": [0.25, NAN, 0.5, 1.0], "sn_pass": False},
            {"reactivity": [0.5] * 4, "signal_to_noise": None},
        ],
    )
    first, second = read_reactivity_rows(path)
    np.testing.assert_array_equal(first.reactivity, [0.5, NAN, 1.5, 2.0])
    np.testing.assert_array_equal(first.error, [0.25, NAN, 0.5, 1.0])
    assert (first.probe, first.dataset, first.signal_to_noise, first.sn_pass) == ("2A3", "set", 1.0, False)
    assert np.isnan(second.signal_to_noise) and second.sn_pass


def test_arrays_are_read_only_and_reads_are_independent(tmp_path):
    path = write_parquet(tmp_path, [{"reactivity": [0.5] * 4}])
    (example,), (row,) = read_reactivity_table(path), read_reactivity_rows(path)
    for array in (example.reactivity, example.reactivity_weight, row.reactivity, row.error):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 9
    (again,) = read_reactivity_table(path)
    assert not np.shares_memory(example.reactivity, again.reactivity)
    np.testing.assert_array_equal(example.reactivity, again.reactivity)


def test_examples_in_several_blocks_are_the_same(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [
        {
            "sequence": "ACGUACGUGG"[: 4 + k % 5],
            "reactivity": rng.normal(size=4 + k % 5).tolist(),
            "signal_to_noise": float(1 + k % 3),
            "reagent": ("2A3", "DMS")[k % 2],
            "dataset": f"d{k % 3}",
        }
        for k in range(40)
    ]
    path = write_parquet(tmp_path, rows)
    whole = read_reactivity_table(path)
    monkeypatch.setattr("ribonanzamamba.data.reactivity_table._EXAMPLES_AT_ONCE", 4)
    parts = read_reactivity_table(path)
    assert len(whole) == 15 and [e.id for e in whole] == [e.id for e in parts]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.reactivity, other.reactivity)
        np.testing.assert_array_equal(one.reactivity_weight, other.reactivity_weight)


KAGGLE_HEADER = (
    "sequence_id,sequence,experiment_type,dataset_name,reads,signal_to_noise,SN_filter,"
    "reactivity_0001,reactivity_0002,reactivity_0003,reactivity_0004,reactivity_0005,"
    "reactivity_error_0001,reactivity_error_0002,reactivity_error_0003,reactivity_error_0004,reactivity_error_0005"
)


def write_kaggle(folder: Path, *lines: str) -> Path:
    path = folder / "train_data.csv"
    path.write_text("\n".join([KAGGLE_HEADER, *lines]) + "\n")
    return path


KAGGLE_LINES = (
    "8cdfeef009ea,ACGUA,2A3_MaP,15k_2A3,2343,4.0,1,,0.5,-1.0,99.0,,,0.1,0.2,99.0,",
    "8cdfeef009ea,ACGUA,DMS_MaP,15k_DMS,2343,0.5,0,,0.25,1.0,,,,0.1,0.2,,",
    "51e61fbde94d,GGC,2A3_MaP,15k_2A3,10,,1,0.1,0.2,0.3,,,0.1,0.1,0.1,,",
)


def test_kaggle_train_data_becomes_examples(tmp_path):
    first, second = read_reactivity_table(write_kaggle(tmp_path, *KAGGLE_LINES))
    assert (first.id, first.sequence, first.dataset) == ("8cdfeef009ea", "ACGUA", "15k")
    assert (first.cluster, first.cluster_size, second.cluster, second.cluster_size) == (0, 1, 1, 1)
    np.testing.assert_allclose(column(first, "2A3"), [NAN, 0.5, -1, 8, NAN])
    np.testing.assert_allclose(column(first, "DMS"), [NAN, 0.25, 1, NAN, NAN])
    np.testing.assert_allclose(weights(first, "2A3"), [0, 0.8, 0.8, 0.8, 0], rtol=1e-6)
    np.testing.assert_allclose(weights(first, "DMS"), [0, 1 / 12, 1 / 12, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(column(second, "2A3"), [0.1, 0.2, 0.3], atol=1e-4)
    np.testing.assert_allclose(weights(second, "2A3"), 0.5)


def test_kaggle_rows_have_errors(tmp_path):
    rows = read_reactivity_rows(write_kaggle(tmp_path, *KAGGLE_LINES))
    assert [(row.id, row.probe, row.sn_pass) for row in rows] == [
        ("8cdfeef009ea", "2A3", True),
        ("8cdfeef009ea", "DMS", False),
        ("51e61fbde94d", "2A3", True),
    ]
    np.testing.assert_allclose(rows[0].error, [NAN, 0.1, 0.2, 10, NAN], atol=1e-3)
    assert rows[2].error.shape == (3,) and np.isnan(rows[2].signal_to_noise)


def test_kaggle_sequence_beyond_the_last_column_is_unmeasured_there(tmp_path):
    (example,) = read_reactivity_table(write_kaggle(tmp_path, "x,ACGUACG,2A3_MaP,s,1,1,1,1,1,1,1,1,1,1,1,1,1"))
    np.testing.assert_array_equal(column(example, "2A3"), [1] * 5 + [NAN] * 2)


def test_kaggle_is_read_in_blocks_and_as_parquet(tmp_path, monkeypatch):
    lines = [f"{k:012x},{'ACGU'[k % 4]}CGUA,2A3_MaP,15k_2A3,9,2.0,1,{k},,,,,0.1,,,," for k in range(50)]
    path = write_kaggle(tmp_path, *lines)
    whole = read_reactivity_table(path, merge=False)
    monkeypatch.setattr("ribonanzamamba.data.columns._CSV_BLOCK_BYTES", 600)
    blocks = read_reactivity_table(path, merge=False)
    pq.write_table(pyarrow.csv.read_csv(path), tmp_path / "train_data.parquet")
    parquet = read_reactivity_table(tmp_path / "train_data.parquet", merge=False)
    assert [float(column(e, "2A3")[0]) for e in whole] == [min(k, 8) for k in range(50)]
    for other in (blocks, parquet):
        assert [(e.id, e.cluster) for e in whole] == [(e.id, e.cluster) for e in other]
        for a, b in zip(whole, other, strict=True):
            np.testing.assert_array_equal(a.reactivity, b.reactivity)


def test_kaggle_split_is_a_hash_of_the_sequence(tmp_path):
    rng = np.random.default_rng(1)
    sequences = ["".join(rng.choice(list("ACGU"), 5)) for _ in range(400)]
    lines = [f"{k},{s},2A3_MaP,15k_2A3,9,2.0,1,1,1,1,1,1,,,,," for k, s in enumerate(sequences)]
    path = write_kaggle(tmp_path, *lines)
    train, valid = (read_reactivity_table(path, split, merge=False) for split in ("train", "valid"))
    assert len(train) + len(valid) == 400 and 10 < len(valid) < 60
    assert {e.sequence for e in train}.isdisjoint(e.sequence for e in valid)
    assert all(hashed_split(e.sequence) == "valid" for e in valid)
    with pytest.raises(ValueError, match="expected a split of train, valid"):
        read_reactivity_table(path, "public_test")


# Rows (train, valid) by probe, those of SOURCES.md (which adds up DMS and 1M7 over files), and merged sequences.
ROWS = {
    "ribonanza_2a3_dms": {"2A3": (22_108, 1_028), "DMS": (21_831, 1_012)},
    "eterna_1m7": {"1M7": (16_525, 1_711), "SHAPE": (1_196, 112), "DMS": (183, 12)},
    "openvaccine": dict.fromkeys(("1M7", "deg_Mg_pH10", "deg_pH10", "deg_Mg_50C", "deg_50C"), (1_885, 172)),
    "long_natural": {"1M7": (1_341, 118), "1M7_incell": (1_355, 118), "NAI_incell": (75, 0)},
}
MERGED = {
    "ribonanza_2a3_dms": (15_514, 415),
    "eterna_1m7": (15_650, 1_635),
    "openvaccine": (1_885, 172),
    "long_natural": (1_436, 119),
}


@needs_tables
@pytest.mark.parametrize("name", list(ROWS))
def test_real_table_has_the_stated_rows_and_splits(name):
    path = TABLES / f"{name}.parquet"
    counts = [Counter(row.probe for row in read_reactivity_rows(path, split)) for split in ("train", "valid")]
    assert {probe: (counts[0][probe], counts[1][probe]) for probe in counts[0]} == ROWS[name]
    train, valid = (read_reactivity_table(path, split) for split in ("train", "valid"))
    assert (len(train), len(valid)) == MERGED[name]
    assert {e.cluster for e in train}.isdisjoint(e.cluster for e in valid)
    assert {e.sequence for e in train}.isdisjoint(e.sequence for e in valid)
    for example in train[::97] + valid[::97]:
        measured = np.isfinite(example.reactivity)
        assert measured.any() and ((example.reactivity_weight > 0) == measured).all()
        assert example.reactivity_weight.max() < 1


@needs_tables
def test_real_merged_table_has_the_sequences_of_each_probe():
    train = read_reactivity_table(TABLES / "ribonanza_2a3_dms.parquet", "train")
    measured = [np.isfinite(e.reactivity).any(axis=0) for e in train]
    # SOURCES.md: 15,369 sequences of 2A3; its 15,260 of DMS count the Eterna projects too.
    assert sum(m[PROBES.index("2A3")] for m in measured) == 15_369
    assert 15_000 < sum(m[PROBES.index("DMS")] for m in measured) <= 15_260


@needs_tables
def test_real_merge_is_the_weighted_mean_of_its_rows():
    path = TABLES / "ribonanza_2a3_dms.parquet"
    by_key: dict = {}
    for row in read_reactivity_rows(path, "valid"):
        by_key.setdefault((row.sequence, row.dataset), []).append(row)
    replicated = [e for e in read_reactivity_table(path, "valid") if e.dataset == "OpenKnot_PK50"][:20]
    for example in replicated:
        rows = [row for row in by_key[example.sequence, example.dataset] if row.probe == "DMS"]
        trust = np.array([min(row.signal_to_noise, 20) / (1 + min(row.signal_to_noise, 20)) for row in rows])
        trust *= [1 if row.sn_pass else 0.25 for row in rows]
        values = np.array([row.reactivity for row in rows], dtype=np.float64)
        with np.errstate(invalid="ignore"):
            mean = np.nansum(values * trust[:, None], axis=0) / (np.isfinite(values) * trust[:, None]).sum(axis=0)
        # Half of float16's spacing below 8.
        np.testing.assert_allclose(column(example, "DMS"), mean, atol=2e-3)


@needs_tables
def test_largest_table_is_read_whole():
    # of 45,979 rows
    assert len(read_reactivity_table(TABLES / "ribonanza_2a3_dms.parquet")) == 15_929


class TestPlainTable:
    """One row an RNA, one column a probe: what somebody types into a spreadsheet."""

    def written(self, folder: Path, *rows: str, header: str = "id,sequence,2A3,DMS") -> Path:
        path = folder / "mine.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    def test_a_column_a_probe(self, tmp_path):
        path = self.written(tmp_path, "a,GAUc,0.5 nan 1.0 -0.25,", "b,AC,0.1 0.2,0.25;0.75")
        first, second = read_reactivity_table(path)
        assert (first.id, first.sequence, second.sequence) == ("a", "GAUC", "AC")
        np.testing.assert_array_equal(first.reactivity[:, 0], np.array([0.5, np.nan, 1.0, -0.25], dtype=np.float16))
        assert np.isnan(first.reactivity[:, 1:]).all() and (first.reactivity_weight[:, 1] == 0).all()
        assert first.reactivity_weight[:, 0].tolist() == [0.5, 0.0, 0.5, 0.5]
        assert second.reactivity[:, 1].tolist() == [0.25, 0.75]
        assert {row.probe for row in read_reactivity_rows(path)} == {"2A3", "DMS"}

    def test_split_and_noise(self, tmp_path):
        header = "id,sequence,DMS_MaP,signal_to_noise,split"
        path = self.written(tmp_path, "a,GA,0.5 0.5,4,train", "b,GC,0.5 0.5,1,valid", header=header)
        (valid,) = read_reactivity_table(path, "valid")
        assert valid.id == "b"
        (train,) = read_reactivity_table(path, "train")
        assert train.reactivity_weight[0, 1] == pytest.approx(0.8)
        with pytest.raises(ValueError, match="expected a split of train, valid, got 'test'"):
            read_reactivity_table(path, "test")

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("b,ACG,0.1 0.2,", "mine.csv, line 3, column 2A3: expected 3 values, one a nucleotide, got 2"),
            ("b,ACG,0.1 0.2 0.3,0.1 high 0.2", "mine.csv, line 3, column DMS: expected numbers .*, got 'high'"),
        ],
    )
    def test_mistakes_have_their_place(self, tmp_path, row, message):
        with pytest.raises(ValueError, match=message):
            read_reactivity_table(self.written(tmp_path, "a,GA,0.5 0.5,", row))

    def test_a_table_without_any_probe(self, tmp_path):
        path = self.written(tmp_path, "a,GA,0.5", header="id,sequence,value")
        with pytest.raises(ValueError, match="expected a column experiment_type or reagent"):
            read_reactivity_table(path)
