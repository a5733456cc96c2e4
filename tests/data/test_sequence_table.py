"""Sequences alone, from Parquet and CSV."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ribonanzamamba.data.sequence_table import read_sequence_table


def test_of_each_sequence_the_first_row(tmp_path):
    columns = {
        "id": ["a", "b", "c", "d"],
        "sequence": ["GGAACC", "acgtx", "GGAACC", ""],
        "source": ["x", "y", "z", "z"],
    }
    pq.write_table(pa.table(columns), tmp_path / "some.parquet")
    examples = read_sequence_table(tmp_path / "some.parquet")
    assert [(each.id, each.sequence, each.dataset) for each in examples] == [("a", "GGAACC", "x"), ("b", "ACGUN", "y")]
    assert len({each.cluster for each in examples}) == 2 and not any(each.measured for each in examples)


def test_a_csv_is_named_by_its_file(tmp_path):
    (tmp_path / "some.csv").write_text("id,sequence\na,GGAACC\n")
    assert [each.dataset for each in read_sequence_table(tmp_path / "some.csv")] == ["some"]


def test_a_table_without_sequences_is_refused(tmp_path):
    (tmp_path / "some.csv").write_text("id,structure\na,...\n")
    with pytest.raises(ValueError, match="some.csv: expected a column sequence, got id, structure"):
        read_sequence_table(tmp_path / "some.csv")
