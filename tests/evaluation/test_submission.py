"""Kaggle's submissions: what a test table asks for, what is written, and what is refused, with its place."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ribonanzamamba.evaluation.submission import (
    COORDINATE_COLUMNS,
    check_submission,
    read_targets,
    score_ribonanza,
    write_submission,
)
from ribonanzamamba.rna.formats import FormatError

RIBONANZA = "id_min,id_max,sequence_id,sequence,future\n5,10,a,GGGAAA,0\n11,14,b,ACGt,1\n20,22,c,CCC,0\n"
FOLDING = 'target_id,sequence,description,all_sequences\nR1,GGGA,"one, two",">x\nGGGA"\n8ABC_A,CN,,\n'


@pytest.fixture
def tests(tmp_path) -> dict[str, Path]:
    paths = {"ribonanza": tmp_path / "ribonanza.csv", "folding": tmp_path / "folding.csv"}
    paths["ribonanza"].write_text(RIBONANZA)
    paths["folding"].write_text(FOLDING)
    return paths


def answers(contest: str, targets, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    if contest == "ribonanza":
        return [rng.random((target.length, 2)) for target in targets]
    return [rng.normal(size=(5, target.length, 3)) * 30 for target in targets]


def rows_of(path: Path) -> list[list]:
    """The cells of a submission, its header first."""
    if path.suffix == ".parquet":
        columns = pq.read_table(path).to_pydict()
        return [list(columns), *map(list, zip(*columns.values(), strict=True))]
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return list(csv.reader(text.splitlines()))


def written(path: Path, contest: str, tests) -> list:
    targets = read_targets(tests[contest], contest)
    write_submission(path, contest, targets, answers(contest, targets))
    return targets


def test_targets_are_those_of_the_table(tests, tmp_path):
    targets = read_targets(tests["ribonanza"], "ribonanza")
    assert [(target.record.id, target.letters, target.record.sequence, target.first) for target in targets] == [
        ("a", "GGGAAA", "GGGAAA", 5),
        ("b", "ACGt", "ACGU", 11),
        ("c", "CCC", "CCC", 20),
    ]
    table = pa.table({"target_id": ["R1"], "sequence": ["GGGA"]})
    pq.write_table(table, tmp_path / "test.parquet")
    [target] = read_targets(tmp_path / "test.parquet", "folding")
    assert (target.record.id, target.length, target.record.line) == ("R1", 4, 1)
    assert [target.record.id for target in read_targets(tests["folding"], "folding")] == ["R1", "8ABC_A"]


@pytest.mark.parametrize(
    ("contest", "text", "message"),
    [
        ("ribonanza", "sequence_id,sequence\na,ACG\n", "no column id_min, id_max"),
        (
            "ribonanza",
            RIBONANZA.replace("5,10", "5,11"),
            "line 2, record 'a': id_min 5 to id_max 11 for a sequence of 6 nt",
        ),
        ("ribonanza", RIBONANZA.replace("11,14", "10,13"), "line 3, record 'b': id_min 10: the RNA before goes to 10"),
        (
            "ribonanza",
            RIBONANZA.replace("5,10", "x,10"),
            r"line 2, record 'a': id_min and id_max: expected whole numbers",
        ),
        ("ribonanza", RIBONANZA.replace("CCC,0", "CCC"), "line 4: the row has 4 columns, the header 5"),
        ("ribonanza", RIBONANZA[: RIBONANZA.index("5")], "the table has no rows"),
        # a cell above has two lines
        ("folding", FOLDING.replace("8ABC_A", "R1"), "line 4, record 'R1': the id occurs twice"),
        ("folding", FOLDING.replace("CN", "C-N"), "record '8ABC_A': .*is a gap"),
        ("folding", FOLDING.replace("CN", ""), "record '8ABC_A': expected a sequence"),
    ],
)
def test_a_test_table_that_does_not_fit_is_refused(contest, text, message, tmp_path):
    (tmp_path / "test.csv").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_targets(tmp_path / "test.csv", contest)


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.parquet"])
def test_ribonanza_is_written_as_asked_for(name, tests, tmp_path):
    targets = written(tmp_path / name, "ribonanza", tests)
    header, *rows = rows_of(tmp_path / name)
    assert header == ["id", "reactivity_DMS_MaP", "reactivity_2A3_MaP"]
    assert [int(row[0]) for row in rows] == [*range(5, 15), 20, 21, 22]
    values = np.array([[float(cell) for cell in row[1:]] for row in rows])
    assert values == pytest.approx(np.concatenate(answers("ribonanza", targets)), abs=1e-4)
    assert check_submission(tmp_path / name, "ribonanza", targets) == []
    assert [path.name for path in tmp_path.glob(".part*")] == []


def test_folding_is_written_as_asked_for(tests, tmp_path):
    targets = written(tmp_path / "s.csv", "folding", tests)
    header, *rows = rows_of(tmp_path / "s.csv")
    assert header == ["ID", "resname", "resid", *COORDINATE_COLUMNS]
    assert COORDINATE_COLUMNS[:4] == ("x_1", "y_1", "z_1", "x_2") and COORDINATE_COLUMNS[-1] == "z_5"
    assert [row[:3] for row in rows] == [
        ["R1_1", "G", "1"], ["R1_2", "G", "2"], ["R1_3", "G", "3"], ["R1_4", "A", "4"],
        ["8ABC_A_1", "C", "1"], ["8ABC_A_2", "N", "2"],
    ]  # fmt: skip
    values = np.array([[float(cell) for cell in row[3:]] for row in rows[:4]]).reshape(4, 5, 3)
    model = answers("folding", targets)[0]
    # around the origin, and nothing else is changed
    assert values.transpose(1, 0, 2) == pytest.approx(model - model.mean(axis=1, keepdims=True), abs=1e-3)
    assert check_submission(tmp_path / "s.csv", "folding", targets) == []


def test_fewer_models_more_models_and_none(tests, tmp_path):
    targets = read_targets(tests["folding"], "folding")
    two, seven = answers("folding", targets)[0][:2], np.concatenate([answers("folding", targets)[1]] * 2)[:7]
    write_submission(tmp_path / "s.csv", "folding", targets, [two, seven])
    rows = rows_of(tmp_path / "s.csv")[1:]
    assert rows[0][6:9] == rows[0][9:12] == rows[0][15:] != rows[0][3:6]
    write_submission(tmp_path / "s.csv", "folding", targets, [None, seven])
    rows = rows_of(tmp_path / "s.csv")[1:]
    assert {cell for row in rows[:4] for cell in row[3:]} == {"0"}
    assert check_submission(tmp_path / "s.csv", "folding", targets) == [
        "4 of 6 rows hold nothing but zeros: they were not predicted"
    ]


def test_values_are_brought_into_the_contest_s_range(tests, tmp_path):
    targets = read_targets(tests["ribonanza"], "ribonanza")
    write_submission(
        tmp_path / "s.csv", "ribonanza", targets, [10 * each - 5 for each in answers("ribonanza", targets)]
    )
    values = np.array([row[1:] for row in rows_of(tmp_path / "s.csv")][1:], dtype=float)
    assert values.min() == 0 and values.max() == 1
    targets = read_targets(tests["folding"], "folding")
    write_submission(tmp_path / "s.csv", "folding", targets, [1e4 * each for each in answers("folding", targets)])
    values = np.array([row[3:] for row in rows_of(tmp_path / "s.csv")][1:], dtype=float)
    assert values.min() == -999.999 and values.max() == 9999.999
    assert check_submission(tmp_path / "s.csv", "folding", targets) == []


@pytest.mark.parametrize("contest", ["ribonanza", "folding"])
def test_nothing_is_left_of_what_cannot_be_written(contest, tests, tmp_path):
    targets = read_targets(tests[contest], contest)
    before = answers(contest, targets)
    (tmp_path / "s.csv").write_text("what was there")
    bad = [before[0], before[1][..., :1], *before[2:]]
    with pytest.raises(ValueError, match=f"record {targets[1].record.id!r}: expected finite numbers of shape"):
        write_submission(tmp_path / "s.csv", contest, targets, bad)
    with pytest.raises(ValueError, match=f"record {targets[1].record.id!r}: .* not finite"):
        write_submission(
            tmp_path / "s.csv", contest, targets, [before[0], np.full_like(before[1], np.nan), *before[2:]]
        )
    with pytest.raises(ValueError, match="shorter"):
        write_submission(tmp_path / "s.csv", contest, targets, before[:1])
    assert (tmp_path / "s.csv").read_text() == "what was there" and not list(tmp_path.glob(".part*"))
    with pytest.raises(ValueError, match="expected a name that ends with .csv"):
        write_submission(tmp_path / "s.txt", contest, targets, before)


def changed(line: int, cell: int, value: str):
    """A change of one cell; lines as an editor counts them."""

    def change(lines: list[list[str]]) -> list[list[str]]:
        lines[line - 1][cell] = value
        return lines

    return change


@pytest.mark.parametrize(
    ("contest", "change", "message"),
    [
        ("ribonanza", changed(1, 1, "DMS"), "line 1: expected the columns id, reactivity_DMS_MaP"),
        ("ribonanza", changed(4, 0, "8"), "line 4, record 'a': expected id 7, got 8"),
        ("ribonanza", changed(4, 0, "x"), "line 4: id: expected a whole number, got 'x'"),
        ("ribonanza", changed(9, 1, ""), "line 9: reactivity_DMS_MaP: expected a finite number, got nan"),
        ("ribonanza", changed(9, 2, "inf"), "line 9: reactivity_2A3_MaP: expected a finite number, got inf"),
        ("ribonanza", changed(9, 2, "high"), "line 9: reactivity_2A3_MaP: expected a number, got 'high'"),
        ("ribonanza", lambda lines: lines[:8] + lines[9:], "line 9, record 'b': expected id 12, got 13"),
        (
            "ribonanza",
            lambda lines: lines[:-1],
            "line 14, record 'c': expected 13 rows, got 12: those from here on are missing",
        ),
        ("ribonanza", lambda lines: [*lines, ["23", "0", "0"]], "line 15: expected 13 rows, and the file goes on"),
        ("folding", changed(1, 5, "z"), "line 1: expected the columns ID, resname, resid"),
        ("folding", changed(3, 0, "R1_3"), "line 3, record 'R1': expected ID R1_2, got R1_3"),
        ("folding", changed(6, 1, "G"), "line 6, record '8ABC_A': expected resname C, got G"),
        ("folding", changed(6, 2, "2"), "line 6, record '8ABC_A': expected resid 1, got 2"),
        ("folding", changed(6, 2, "1.5"), "line 6: resid: expected a whole number, got '1.5'"),
        ("folding", changed(7, 17, "nan"), "line 7: z_5: expected a finite number, got nan"),
        ("folding", lambda lines: lines[:-1], "line 7, record '8ABC_A': expected 6 rows, got 5"),
        (
            "folding",
            lambda lines: [lines[0], *lines[5:], *lines[1:5]],
            "line 2, record 'R1': expected ID R1_1, got 8ABC_A_1",
        ),
    ],
)
def test_what_a_contest_would_refuse_is_found(contest, change, message, tests, tmp_path):
    targets = written(tmp_path / "s.csv", contest, tests)
    lines = change(rows_of(tmp_path / "s.csv"))
    (tmp_path / "s.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    with pytest.raises(FormatError, match=message.replace("(", r"\(")):
        check_submission(tmp_path / "s.csv", contest, targets)


def test_what_a_contest_takes_but_nobody_means_is_said(tests, tmp_path):
    targets = written(tmp_path / "s.csv", "ribonanza", tests)
    text = (tmp_path / "s.csv").read_text().splitlines()
    text[3:5] = ["7,1.5,0.2", "8,0,0"]
    (tmp_path / "s.csv").write_text("\n".join(text))
    assert check_submission(tmp_path / "s.csv", "ribonanza", targets) == [
        "1 of 13 rows hold nothing but zeros: they were not predicted",
        "1 rows hold reactivity outside of 0 to 1, where all measurements are clipped",
    ]


def test_ribonanza_is_scored_by_id_and_by_sequence(tests, tmp_path):
    targets = written(tmp_path / "s.csv", "ribonanza", tests)
    values = answers("ribonanza", targets)
    header = "sequence_id,sequence,experiment_type,dataset_name,SN_filter," + ",".join(
        f"reactivity_{k:04d}" for k in range(1, 7)
    )
    rows = [
        "a,GGGAAA,DMS_MaP,made,1,0.1,,0.3,0.4,0.5,2.0",
        "other,ACGU,2A3_MaP,made,1,0.1,0.2,0.3,0.4,,",
        "c,CCC,2A3_MaP,made,0,0.1,0.2,0.3,,,",
        "elsewhere,GAGA,2A3_MaP,made,1,0.1,0.2,0.3,0.4,,",
    ]
    (tmp_path / "train_data.csv").write_text("\n".join([header, *rows]) + "\n")
    report = score_ribonanza(tmp_path / "s.csv", targets, tmp_path / "train_data.csv").to_json()
    errors = {
        "DMS": np.abs(values[0][[0, 2, 3, 4, 5], 0].round(4) - [0.1, 0.3, 0.4, 0.5, 1.0]),
        "2A3": np.abs(values[1][:, 1].round(4) - [0.1, 0.2, 0.3, 0.4]),
    }
    for probe, expected in errors.items():
        [score] = [
            each
            for each in report["scores"]
            if each["probe"] == probe and each["dataset"] == "all" and each["nucleotides"] == "all"
        ]
        assert score["mae"]["mean"] == pytest.approx(expected.mean(), abs=1e-5), probe
    assert (report["scored"], report["missing"], report["noisy"]) == (2, 1, 1)
