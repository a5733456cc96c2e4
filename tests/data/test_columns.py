import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ribonanzamamba.data.columns import (
    column_names,
    flag_array,
    flat_lists,
    number_array,
    ranges,
    read_columns,
    require_columns,
    rna_letters,
    text_list,
)


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_flat_lists_with_nulls_inside_and_null_rows(kind):
    lists = pa.array([[1.0, None], None, [], [3.0]], pa.list_(pa.type_for_alias(kind)))
    # Two chunks and a filter, so that offsets do not start at 0.
    table = pa.table({"v": pa.chunked_array([lists, lists])}).filter(pa.array([False] + [True] * 7))
    values, lengths = flat_lists(table, "v")
    assert lengths.tolist() == [0, 0, 1, 2, 0, 0, 1]
    assert values.dtype == np.dtype(kind)
    np.testing.assert_array_equal(values, [3.0, 1.0, np.nan, 3.0])


def test_flat_lists_of_an_absent_column_are_empty():
    values, lengths = flat_lists(pa.table({"a": [1, 2]}), "v")
    assert values.size == 0 and lengths.tolist() == [0, 0]


def test_columns_default_where_null_or_absent():
    table = pa.table({"text": ["a", None], "number": [1, None], "flag": [True, None]})
    assert text_list(table, "text", "?") == ["a", "?"]
    assert text_list(table, "absent", "?") == ["?", "?"]
    assert number_array(table, "number", -1.0, np.int64).tolist() == [1, -1]
    assert number_array(table, "absent", 2.5, np.float64).tolist() == [2.5, 2.5]
    assert flag_array(table, "flag", False).tolist() == [True, False]
    assert flag_array(table, "absent", True).tolist() == [True, True]


@pytest.mark.parametrize("name, separator", [("t.csv", ","), ("t.tsv", "\t"), ("t.csv.gz", ","), ("t.tsv.gz", "\t")])
def test_read_columns_of_text_tables(tmp_path, name, separator):
    text = "\n".join(separator.join(row) for row in [("id", "split", "reads"), ("007", "train", "3"), ("1e5", "", "")])
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert column_names(path) == ["id", "split", "reads"]
    (table,) = read_columns(path, ["reads", "id", "absent"])
    # An id that looks like a number stays what it was.
    assert text_list(table, "id") == ["007", "1e5"]
    np.testing.assert_array_equal(number_array(table, "reads", np.nan, np.float64), [3, np.nan])


def test_read_columns_of_parquet_goes_by_row_group(tmp_path):
    pq.write_table(pa.table({"a": list(range(5)), "b": list("vwxyz")}), tmp_path / "t.parquet", row_group_size=2)
    pieces = list(read_columns(tmp_path / "t.parquet", ["a"]))
    assert [piece["a"].to_pylist() for piece in pieces] == [[0, 1], [2, 3], [4]]
    assert pieces[0].column_names == ["a"]


@pytest.mark.parametrize("name, content", [("t.parquet", b"no parquet at all"), ("t.csv", b"")])
def test_unreadable_table_is_a_value_error_with_its_path(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: not a readable table"):
        column_names(tmp_path / name)


def test_require_columns_names_expected_and_got():
    require_columns("t.csv", ["id", "structure"], ["id"], ["dot_bracket", "structure"])
    with pytest.raises(ValueError, match=r"t\.csv: expected a column dot_bracket or structure, got id, name"):
        require_columns("t.csv", ["id", "name"], ["id"], ["dot_bracket", "structure"])


def test_ranges_with_empty_rows():
    assert ranges(np.array([5, 9, 0]), np.array([2, 0, 1])).tolist() == [5, 6, 0]
    assert ranges(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)).tolist() == []


def test_rna_letters_keeps_the_length_of_any_text():
    assert rna_letters("augcT nX-éß") == "AUGCUNNNNNN"
