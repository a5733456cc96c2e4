from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ribonanzamamba.data.splits import hashed_split
from ribonanzamamba.data.structure_table import read_structure_table
from ribonanzamamba.rna.structure import Structure

TABLES = Path(__file__).parents[2] / ".." / "shared" / "data" / "secondary"
needs_tables = pytest.mark.skipif(not TABLES.is_dir(), reason="the folder shared/data is not beside the repository")


def write_parquet(folder: Path, pairs: list[list[int]], sequences: list[str], **columns) -> Path:
    table = {
        "id": [f"row{k}" for k in range(len(pairs))],
        "sequence": sequences,
        "pairs_ij": pa.array(pairs, pa.list_(pa.int16())),
        "source": ["made"] * len(pairs),
        "cluster": list(range(len(pairs))),
        "cluster_size": [2] * len(pairs),
        "split": ["train"] * len(pairs),
    } | columns
    path = folder / "structures.parquet"
    pq.write_table(pa.table(table), path)
    return path


def test_pairs_become_partners(tmp_path):
    path = write_parquet(
        tmp_path, [[0, 5, 1, 4], [], [3, 0]], ["GGANCC", "A", "GAAU"], split=["train", "valid", "train"]
    )
    first, second, third = read_structure_table(path)
    assert first.partners.tolist() == [5, 4, -1, -1, 1, 0] and first.partners.dtype == np.int32
    assert second.partners.tolist() == [-1]
    assert third.partners.tolist() == [3, -1, -1, 0]
    assert (first.sequence, first.cluster, first.cluster_size, first.dataset) == ("GGANCC", 0, 2, "made")
    assert first.reactivity is first.reactivity_weight is first.coordinates is None
    assert [e.id for e in read_structure_table(path, "valid")] == ["row1"]
    assert [e.partners.tolist() for e in read_structure_table(path, "train")] == [[5, 4, -1, -1, 1, 0], [3, -1, -1, 0]]
    with pytest.raises(ValueError, match="expected a split of train, valid, got 'test'"):
        read_structure_table(path, "test")


@pytest.mark.parametrize(
    "pairs, message",
    [
        ([0, 6], "row1: a pair outside"),
        ([-1, 3], "row1: a pair outside"),
        ([2, 2], "row1: a pair outside the sequence or with itself"),
        ([0, 5, 0, 4], "row1: a nucleotide in two pairs"),
        ([0, 5, 5, 1], "row1: a nucleotide in two pairs"),
    ],
)
def test_impossible_pairs_are_refused_with_the_row(tmp_path, pairs, message):
    path = write_parquet(tmp_path, [[0, 2], pairs, []], ["GAC", "GGAACC", "A"])
    with pytest.raises(ValueError, match=message):
        read_structure_table(path)


@pytest.mark.parametrize("name", ["dot_bracket", "structure"])
@pytest.mark.parametrize("suffix, separator", [(".csv", ","), (".tsv", "\t")])
def test_text_tables(tmp_path, name, suffix, separator):
    lines = [("id", "sequence", name), ("1", "ggtxCCAA", "((..))[]"), ("2", "GGNACCAA", "(([.))]."), ("3", "AC", "..")]
    path = tmp_path / f"table{suffix}"
    path.write_text("\n".join(separator.join(line) for line in lines))
    first, second, third = read_structure_table(path)
    assert (first.id, first.sequence, first.dataset) == ("1", "GGUNCCAA", "table")
    assert first.partners.tolist() == [5, 4, -1, -1, 1, 0, 7, 6]
    assert second.partners.tolist() == [5, 4, 6, -1, 1, 0, 2, -1]
    assert [e.cluster for e in (first, second, third)] == [0, 1, 2] and third.cluster_size == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("((..)", "b: position 1: .* never closed"),
        ("(..))", "b: position 5: .* closes nothing"),
        ("(.x.)", "b: position 3: 'x' closes nothing"),
        ("(.?.)", "b: position 3: .* no dot-bracket letter"),
        ("...", "b: expected a structure of 5 letters, got 3"),
    ],
)
def test_bad_text_is_refused_with_the_row(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(f"id,sequence,dot_bracket\na,GAAAC,(...)\nb,GGACC,{text}\n")
    with pytest.raises(ValueError, match=message):
        read_structure_table(path)


def test_table_without_splits_is_divided_by_a_hash(tmp_path):
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACGU"), 6)) for _ in range(300)]
    path = tmp_path / "table.csv"
    path.write_text("id,sequence,structure\n" + "".join(f"{k},{s},......\n" for k, s in enumerate(sequences)))
    train, valid = (read_structure_table(path, split) for split in ("train", "valid"))
    assert len(train) + len(valid) == 300 and 5 < len(valid) < 60
    assert all(hashed_split(e.sequence) == "valid" for e in valid)
    with pytest.raises(ValueError, match="expected a split of train, valid"):
        read_structure_table(path, "public_test_TS0")


def test_table_without_structures_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id,sequence\na,ACGU\n")
    with pytest.raises(ValueError, match="expected a column dot_bracket or structure or pairs_ij, got id, sequence"):
        read_structure_table(path)


def test_partners_are_read_only(tmp_path):
    (example,) = read_structure_table(write_parquet(tmp_path, [[0, 2]], ["GAC"]))
    with pytest.raises(ValueError, match="read-only"):
        example.partners[0] = -1


@needs_tables
def test_real_tables_have_the_stated_counts():
    names = ("structures.parquet", "rfam_seed_projected.parquet")
    everything = [read_structure_table(TABLES / name) for name in names]
    assert [len(examples) for examples in everything] == [24_966, 15_284]
    train, valid = (
        sum(len(read_structure_table(TABLES / name, split)) for name in names) for split in ("train", "valid")
    )
    assert (train, valid) == (36_021, 2_924)
    assert len(read_structure_table(TABLES / names[0], "public_test_TS0")) == 1_305
    with pytest.raises(ValueError, match="expected a split of train, valid"):
        read_structure_table(TABLES / names[1], "public_test_TS0")
    histogram = Counter(e.length < 30 for e in everything[0])
    assert histogram[True] == 202


@needs_tables
def test_real_rfam_clusters_are_on_one_side():
    # In structures.parquet some clusters are on both: TR0 and VL0 were published like that.
    train, valid = (read_structure_table(TABLES / "rfam_seed_projected.parquet", split) for split in ("train", "valid"))
    assert {e.cluster for e in train}.isdisjoint(e.cluster for e in valid)


@needs_tables
def test_real_pairs_equal_the_brackets():
    table = pq.read_table(TABLES / "structures.parquet", columns=["id", "dot_bracket"])
    texts = table["dot_bracket"].to_pylist()
    examples = read_structure_table(TABLES / "structures.parquet")
    for row in range(0, len(examples), 50):
        expected = Structure.from_dot_bracket(texts[row]).to_partners()
        np.testing.assert_array_equal(examples[row].partners, expected)
