"""Files and texts of users to records: what comes out, what is reported, and where."""

import gzip
import io
import os
import pickle
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ribonanzamamba.rna import formats
from ribonanzamamba.rna.formats import FormatError, read_fasta, read_inputs, read_records, safe_file_name, write_fasta
from ribonanzamamba.rna.records import Record
from ribonanzamamba.rna.structure import Structure

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x10>\x00\x00\x00\x10\x08\x02\n>\xff"


def save(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def sequences(result):
    return {record.id: record.sequence for record in result.records}


# Good input


def test_read_records_fasta(tmp_path):
    path = save(tmp_path, "a.fasta", ">one first RNA\nGGGaa\nacCCT\n\n>two\nAC GU\n")
    result = read_records(path)
    assert result.records == (Record("one", "GGGAAACCCU", str(path), 1), Record("two", "ACGU", str(path), 5))
    assert result.problems == () and result.warnings == ()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b">one x\r\nGG\r\nAA\r\n>two\r\nCC\r\n", id="windows-line-ends"),
        pytest.param(b">one x\rGG\rAA\r>two\rCC", id="old-macintosh-line-ends"),
        pytest.param(b"\xef\xbb\xbf>one\nGGAA\n>two\nCC", id="byte-order-mark-and-no-last-line-end"),
        pytest.param(b"; comment\n\n> one M\xfcller\nGGAA\n;\n>two\n\nC\nC\n", id="comments-and-latin-1-description"),
    ],
)
def test_read_records_fasta_dialects(tmp_path, content):
    result = read_records(save(tmp_path, "a.fa", content))
    assert sequences(result) == {"one": "GGAA", "two": "CC"}
    assert result.problems == ()


@pytest.mark.parametrize("name", ["a.fasta.gz", "a.FA.GZ", "packed-without-saying.fasta"])
def test_read_records_gzip(tmp_path, name):
    path = save(tmp_path, name, gzip.compress(b">one\nGGAA\n"))
    assert sequences(read_records(str(path))) == {"one": "GGAA"}


@pytest.mark.parametrize("name", ["lines.txt", "lines"])
def test_read_records_bare_lines(tmp_path, name):
    result = read_records(save(tmp_path, name, "GGAA\n\nACQU\nCC\n"))
    assert sequences(result) == {"sequence_1": "GGAA", "sequence_3": "CC"}
    assert [(problem.record, problem.line) for problem in result.problems] == [("sequence_2", 3)]


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        pytest.param("a.csv", "id,sequence\nx,GGAA\ny,CC\n", ["x", "y"], id="csv"),
        pytest.param("a.tsv", "target_id\tsequence\nx\tGGAA\ny\tCC\n", ["x", "y"], id="tsv"),
        pytest.param("a.dbn", ">x\nGGAA\n(..)\n>y\nCC\n..\n", ["x", "y"], id="dot-bracket"),
        pytest.param("a.ct", "2 x\n1 G 0 2 0 1\n2 G 1 0 0 2\n1 y\n1 C 0 0 0 1\n", ["x", "y"], id="ct"),
        pytest.param("a.bpseq", "# x\n1 G 0\n# y\n1 C 0\n", ["x", "y"], id="bpseq"),
    ],
)
def test_read_records_by_ending(tmp_path, name, content, ids):
    plain = read_records(save(tmp_path, name, content))
    packed = read_records(save(tmp_path, name + ".gz", gzip.compress(content.encode())))
    assert plain.problems == packed.problems == ()
    assert list(sequences(plain)) == list(sequences(packed)) == ids


def test_read_records_sequence_as_text():
    assert read_records(" gggaaa ccc").records == (Record("sequence", "GGGAAACCC"),)
    (warning,) = read_records("GGGANRACCC").warnings
    assert "2 ambiguous letters" in warning


def test_read_records_prefers_a_file_to_a_sequence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, "ACGU", ">one\nGG\n")
    assert sequences(read_records("ACGU")) == {"one": "GG"}


@pytest.mark.parametrize("text", [">one\nGGAA\n>two\nCC\n", "GGAA\nCC\n"])
@pytest.mark.parametrize("buffered", [True, False])
def test_read_records_standard_input(monkeypatch, text, buffered):
    stdin = io.TextIOWrapper(io.BytesIO(text.encode())) if buffered else io.StringIO(text)
    monkeypatch.setattr(sys, "stdin", stdin)
    result = read_records("-")
    assert list(sequences(result).values()) == ["GGAA", "CC"]
    assert result.records[0].source == "-" and not stdin.closed


def test_read_records_long_sequence(tmp_path):
    # a reader of quadratic time would take minutes
    for name, content in {
        "one-line.fasta": ">long\n" + "A" * 100_000,
        "lines.fasta": ">long\n" + ("A" * 60 + "\n") * 1666 + "A" * 40,
        "long.csv": "id,sequence\nlong," + "A" * 200_000,
    }.items():
        path = save(tmp_path, name, content)
        result = read_records(path)
        assert result.problems == () and result.records[0].length == (200_000 if name == "long.csv" else 100_000)
    assert read_records("A" * 100_000).records[0].length == 100_000


def test_read_records_warns_once_a_file(tmp_path):
    path = save(tmp_path, "a.fasta", ">one\nGGRN\n>two\nGGAA\n>three\nYGAA\n")
    (warning,) = read_records(path).warnings
    assert warning == f"{path}: 3 ambiguous letters in 2 record(s) are read as N"


@pytest.mark.parametrize("id", ["a/b", "../../etc/passwd", "..", "gi|12|x", "Ünïcode"])
def test_read_records_keeps_ids(tmp_path, id):
    assert sequences(read_records(save(tmp_path, "a.fasta", f">{id} text\nGGAA\n"))) == {id: "GGAA"}


# Bad input: the problem names file, record and place, and the others come out


@pytest.mark.parametrize(
    ("content", "good", "record", "line", "message"),
    [
        pytest.param(">p\nMKVLE\n>r\nGG\n", ["r"], "p", 1, "position 4: 'L'.*protein", id="protein"),
        pytest.param(">r\nGG\n>e\n>s\nCC\n", ["r", "s"], "e", 3, "empty", id="empty-sequence"),
        pytest.param(">r\nGG\n>e\n \n", ["r"], "e", 3, "empty", id="empty-sequence-at-the-end"),
        pytest.param(">r\nGG\n>r\nCC\n>s\nAA\n", ["r", "s"], "r", 3, "line 1 already", id="duplicate"),
        pytest.param(">r\nG!\n>r\nCC\n", ["r"], "r", 1, "position 2: '!'", id="id-of-a-bad-record-is-free"),
        pytest.param("GG\nAA\n>r\nGG\n", ["r"], None, 1, "before the first header.*'GG'", id="text-first"),
        pytest.param("GG\nAA\n", [], None, 1, "before the first header", id="no-header-at-all"),
        pytest.param(">\nGG\n>r\nCC\n", ["r"], None, 1, "no id", id="nameless"),
        pytest.param(">r\nGG\n>g\nG-A\n", ["r"], "g", 3, "position 2: '-' is a gap", id="gap"),
        pytest.param(b">r\nGG\n>g\nGA\nA\xff\n", ["r"], "g", 3, "position 4: '\ufffd'", id="undecodable-letter"),
        pytest.param(b">r\nGG\n>b\nG\x00A\n", [], None, 4, "no text", id="nul"),
        pytest.param(b">r\n" + b"G" * 99_999 + b"\n>b\n\x00\n", ["r"], "b", 4, "no text", id="nul-later-on"),
        pytest.param("", [], None, 0, "the file is empty", id="empty-file"),
        pytest.param("\n\n", [], None, 0, "no record", id="blank-file"),
        pytest.param(PNG, [], None, 2, "no text", id="png"),
        pytest.param(bytes(range(256)), [], None, 1, "no text", id="all-bytes"),
        pytest.param(b"\xfe\x80\xfd\n\x90\xa0", [], None, 1, "before the first header", id="undecodable"),
        pytest.param(">r\nGG".encode("utf-16"), [], None, 1, "no text", id="utf-16"),
        pytest.param(b"\x1f\x8b", [], None, 1, "truncated", id="gzip-header-alone"),
        pytest.param(b"\x1f\x8b" + b"junk" * 20, [], None, 1, "damaged", id="gzip-damaged"),
    ],
)
def test_read_records_problems(tmp_path, content, good, record, line, message):
    path = save(tmp_path, "x.fasta", content)
    result = read_records(path)
    assert [item.id for item in result.records] == good
    (problem,) = result.problems
    assert (problem.path, problem.record, problem.line) == (str(path), record, line)
    with pytest.raises(FormatError, match=message):
        raise problem
    assert str(path) in str(problem) and (record is None or repr(record) in str(problem))


def test_read_records_keeps_what_precedes_a_cut(tmp_path):
    random.seed(3)
    letters = ["".join(random.choices("ACGU", k=400)) for _ in range(50)]
    packed = gzip.compress("".join(f">r{n}\n{text}\n" for n, text in enumerate(letters)).encode())
    result = read_records(save(tmp_path, "cut.fasta.gz", packed[: len(packed) // 2]))
    n = len(result.records)
    assert 10 < n < 40
    assert [record.sequence for record in result.records] == letters[:n]
    (problem,) = result.problems
    assert "truncated" in problem.message and problem.record == f"r{n}" and problem.line >= 2 * n


def test_read_records_folder(tmp_path):
    (problem,) = read_records(tmp_path).problems
    assert "folder" in str(problem) and str(tmp_path) in str(problem)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user who may not read every file")
def test_read_records_unreadable_file(tmp_path):
    path = save(tmp_path, "a.fasta", ">r\nGG\n")
    path.chmod(0)
    (problem,) = read_records(path).problems
    assert "cannot be read" in str(problem)


@pytest.mark.parametrize("source", ["no/such.fasta", "nothing.csv", Path("nothing"), "./ACGU", "GG.AA"])
def test_read_records_missing_file(source):
    with pytest.raises(FormatError, match="no such file") as caught:
        read_records(source)
    assert caught.value.path == str(source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("GGAAQ", "'GGAAQ' is no file; as a sequence, position 5: 'Q'", id="letter"),
        pytest.param("", "the sequence is empty", id="empty"),
        pytest.param("GG-AA", "gap", id="gap"),
    ],
)
def test_read_records_bad_sequence_as_text(text, message):
    result = read_records(text)
    assert result.records == ()
    (problem,) = result.problems
    assert message in str(problem)


def test_format_error_survives_pickling():
    error = pickle.loads(pickle.dumps(FormatError(Path("a.fa"), 3, "is odd", "r")))
    assert str(error) == "a.fa, line 3, record 'r': is odd"
    assert (error.path, error.line, error.message, error.record) == ("a.fa", 3, "is odd", "r")


# Several inputs


def test_read_inputs(tmp_path):
    first = save(tmp_path, "a.fasta", ">one\nGG\n>two\nRR\n")
    second = save(tmp_path, "b.fasta", ">two\nCC\n>three\nAA\n>bad\nQQ\n")
    result = read_inputs([first, "GGGA", str(second), "CCCA", "missing.fa"])
    assert [record.id for record in result.records] == ["one", "two", "sequence_2", "three", "sequence_4"]
    assert sequences(result)["two"] == "NN"
    assert sorted((problem.record or "", problem.line) for problem in result.problems) == [
        ("", 0),
        ("bad", 5),
        ("two", 1),
    ]
    assert len(result.warnings) == 1


def test_read_inputs_single_sequence_keeps_its_id():
    assert [record.id for record in read_inputs(["GGGA"]).records] == ["sequence"]


# Strict readers and writers


def test_fasta_round_trip(tmp_path):
    path = tmp_path / "a.fasta"
    records = (Record("one", "ACGUN" * 40), Record("a/b", "G"), Record("with space", "ACG"))
    write_fasta(path, records)
    assert max(len(line) for line in path.read_text().splitlines()) == 80
    read = read_fasta(path)
    assert [record.sequence for record in read] == [record.sequence for record in records]
    assert [record.id for record in read] == ["one", "a/b", "with_space"]


def test_read_fasta_raises_the_first_problem(tmp_path):
    path = save(tmp_path, "a.fasta", ">one\nGG\n>two\nQQ\n>three\n\n")
    with pytest.raises(FormatError, match=r"line 3, record 'two': position 1: 'Q'"):
        read_fasta(path)
    with pytest.raises(FormatError, match="no such file"):
        read_fasta(tmp_path / "none.fasta")


LETTERS_AND_BRACKETS = st.lists(
    st.integers(0, 30).flatmap(lambda n: st.tuples(st.text("ACGUN", min_size=n + 1, max_size=n + 1), st.randoms())),
    min_size=1,
    max_size=4,
)
PAIRED_FORMATS = [
    pytest.param(formats.write_dot_bracket, formats.read_dot_bracket, ".dbn", id="dot-bracket"),
    pytest.param(formats.write_ct, formats.read_ct, ".ct", id="ct"),
    pytest.param(formats.write_bpseq, formats.read_bpseq, ".bpseq", id="bpseq"),
]


@pytest.mark.parametrize(("write", "read", "ending"), PAIRED_FORMATS)
@given(drawn=LETTERS_AND_BRACKETS)
def test_structure_formats_round_trip(tmp_path_factory, write, read, ending, drawn):
    entries = []
    for n, (sequence, generator) in enumerate(drawn):
        order = generator.sample(range(len(sequence)), len(sequence) // 2 * 2)
        pairs = tuple(zip(order[::2], order[1::2], strict=True))[: generator.randint(0, 8)]
        entries.append((Record(f"id_{n}", sequence), Structure(len(sequence), pairs)))
    path = tmp_path_factory.mktemp("files") / f"a{ending}"
    write(path, entries)
    found = read(path)
    assert [(record.id, record.sequence, structure) for record, structure in found] == [
        (record.id, record.sequence, structure) for record, structure in entries
    ]


@pytest.mark.parametrize(("write", "read", "ending"), PAIRED_FORMATS)
def test_structure_writers_refuse_other_lengths(tmp_path, write, read, ending):
    path = save(tmp_path, f"a{ending}", "as it was")
    with pytest.raises(ValueError, match="'one' has 3 nucleotides, its structure 4"):
        write(path, [(Record("one", "ACG"), Structure(4, ()))])
    assert path.read_text() == "as it was" and os.listdir(tmp_path) == [path.name]


# Names of files


@pytest.mark.parametrize("id", ["1EHZ_A", "seq.1-b", "a..b", "A" * 120])
def test_safe_file_name_keeps_harmless_ids(id):
    assert safe_file_name(id) == id


@pytest.mark.parametrize(
    "id",
    ["", "..", ".hidden", "../../etc/passwd", "a/b", "a\\b", "a b", "ü", "A" * 121, "nul", "COM1.x", "end.", "a\x00\n"],
)
def test_safe_file_name_changes_others(tmp_path, id):
    name = safe_file_name(id)
    assert name != id and 0 < len(name) <= 120
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not name.startswith(".") and (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert safe_file_name(name) != name, "an id that spells this name would share the file"


@given(st.sets(st.text("a./\\ _-é0", max_size=6), min_size=2, max_size=30))
def test_safe_file_name_is_unique(ids):
    names = {safe_file_name(id) for id in ids}
    assert len(names) == len(ids)
