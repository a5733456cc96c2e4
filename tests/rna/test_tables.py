"""Tables of sequences: columns, ids, rows that cannot be used."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ribonanzamamba.rna.formats import read_records


def save(folder, name, text):
    path = folder / name
    path.write_bytes(text.encode())
    return path


def save_parquet(folder, **columns):
    path = folder / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def spelled(result):
    return [(record.id, record.sequence, record.line) for record in result.records]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        pytest.param("a.csv", "sequence\nGG\nCC\n", [("1", "GG", 2), ("2", "CC", 3)], id="row-numbers-as-ids"),
        pytest.param("a.csv", "name,id,sequence\nn,x,GG\n", [("x", "GG", 2)], id="id-before-name"),
        pytest.param("a.csv", "sequence,target_id\r\nGG,001\r\n", [("001", "GG", 2)], id="ids-stay-text"),
        pytest.param("a.csv", "\ufeffid,sequence\nx,GG\n", [("x", "GG", 2)], id="byte-order-mark"),
        pytest.param(
            "a.csv", 'id,sequence,note\nx,GG,"a, ""b"""\ny,"C C",\n', [("x", "GG", 2), ("y", "CC", 3)], id="quotes"
        ),
        pytest.param(
            "a.csv", 'id,note,sequence\nx,"two\nlines",GG\ny,,CC\n', [("x", "GG", 3), ("y", "CC", 4)], id="break"
        ),
        pytest.param("a.csv", "id;sequence\nx;GG\n", [("x", "GG", 2)], id="semicolons"),
        pytest.param(
            "a.csv", "\n id , sequence \nx,gt\n\n,,\ny,CC\n", [("x", "GU", 3), ("y", "CC", 6)], id="blank-rows"
        ),
        pytest.param("a.tsv", "id\tsequence\nx,y\tGG\n", [("x,y", "GG", 2)], id="tabs"),
    ],
)
def test_read_records_text_table(tmp_path, name, text, expected):
    result = read_records(save(tmp_path, name, text))
    assert spelled(result) == expected
    assert result.problems == ()


def test_read_records_named_columns(tmp_path):
    path = save(tmp_path, "a.csv", "id,sequence,rna,key\nx,GG,CC,k\n")
    assert spelled(read_records(path, sequence_column="rna", id_column="key")) == [("k", "CC", 2)]


@pytest.mark.parametrize(
    ("rows", "good", "line", "record", "message"),
    [
        pytest.param("x,GG\ny\nz,CC\n", ["x", "z"], 3, None, "has 1 columns, the header 2", id="short-row"),
        pytest.param("x,GG\n,AA\nz,CC\n", ["x", "z"], 3, None, "id is empty", id="no-id"),
        pytest.param("x,GG\ny,\nz,CC\n", ["x", "z"], 3, "y", "sequence is empty", id="no-sequence"),
        pytest.param("x,GG\ny,GE\nz,CC\n", ["x", "z"], 3, "y", "position 2: 'E'", id="letter"),
        pytest.param("x,GG\nx,AA\nz,CC\n", ["x", "z"], 3, "x", "line 2 already", id="duplicate"),
        pytest.param("", [], 0, None, "no record", id="header-alone"),
    ],
)
def test_read_records_bad_rows(tmp_path, rows, good, line, record, message):
    path = save(tmp_path, "a.csv", "id,sequence\n" + rows)
    result = read_records(path)
    assert [item.id for item in result.records] == good
    (problem,) = result.problems
    assert (problem.path, problem.line, problem.record) == (str(path), line, record)
    assert message in problem.message


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_read_records_names_columns_found(tmp_path, name):
    separator = "," if name == "a.csv" else "\t"
    path = save(tmp_path, name, separator.join(["id", "rna"]) + "\nx" + separator + "GG\n")
    (problem,) = read_records(path).problems
    assert problem.message == "no column 'sequence'; columns found: id, rna"
    (problem,) = read_records(path, sequence_column="rna", id_column="key").problems
    assert problem.message == "no column 'key'; columns found: id, rna"


def test_read_records_empty_table(tmp_path):
    (problem,) = read_records(save(tmp_path, "a.csv", "")).problems
    assert problem.message == "the file is empty"


def test_read_records_truncated_table(tmp_path):
    rows = "".join(f"r{n},{'ACGU'[n % 4] * (n % 7 + 1)}\n" for n in range(5000))
    packed = gzip.compress(("id,sequence\n" + rows).encode())
    path = tmp_path / "a.csv.gz"
    path.write_bytes(packed[:-200])
    result = read_records(path)
    assert len(result.records) > 1000
    assert result.records[-1].sequence == "ACGU"[(len(result.records) - 1) % 4] * ((len(result.records) - 1) % 7 + 1)
    assert [problem.message for problem in result.problems] == ["the gzip file is truncated here"]


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({"id": ["x", "y", "z"]}, id="text-ids"),
        pytest.param({"target_id": pa.array(["x", "y", "z"]).dictionary_encode()}, id="dictionary-ids"),
    ],
)
def test_read_records_parquet(tmp_path, columns):
    path = save_parquet(tmp_path, sequence=["GG", "cct", "AA"], **columns)
    result = read_records(path)
    assert spelled(result) == [("x", "GG", 1), ("y", "CCU", 2), ("z", "AA", 3)]
    assert result.problems == ()


def test_read_records_parquet_kinds_of_text(tmp_path):
    for column in (
        pa.array(["GG", "CC"], pa.large_string()),
        pa.array(["GG", "CC"]).dictionary_encode(),
    ):
        result = read_records(save_parquet(tmp_path, sequence=column, id=[7, 8]))
        assert spelled(result) == [("7", "GG", 1), ("8", "CC", 2)]


def test_read_records_parquet_bad_rows(tmp_path):
    path = save_parquet(tmp_path, id=["x", None, "y", "z", "x"], sequence=["GG", "CC", None, "QQ", "AA"])
    result = read_records(path)
    assert spelled(result) == [("x", "GG", 1)]
    assert [(problem.line, problem.record) for problem in result.problems] == [(2, None), (3, "y"), (4, "z"), (5, "x")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param({"id": ["x"], "rna": ["GG"]}, "no column 'sequence'; columns found: id, rna", id="missing"),
        pytest.param({"sequence": [1]}, "column 'sequence' holds int64, not text", id="numbers"),
    ],
)
def test_read_records_parquet_refuses(tmp_path, columns, message):
    (problem,) = read_records(save_parquet(tmp_path, **columns)).problems
    assert problem.message == message


@pytest.mark.parametrize("content", [b"", b"id,sequence\nx,GG\n", b"PAR1 junk PAR1"])
def test_read_records_no_parquet(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    result = read_records(path)
    assert result.records == ()
    (problem,) = result.problems
    assert problem.message.startswith("cannot be read as Parquet: ") and str(path) in str(problem)
