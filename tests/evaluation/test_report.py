"""Scores from files: every layout of truth and prediction, with small files whose scores are worked by hand."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from ribonanzamamba.evaluation.report import score_coordinates, score_reactivity, score_structure
from ribonanzamamba.rna.formats import FormatError, safe_file_name, write_bpseq, write_ct, write_dot_bracket
from ribonanzamamba.rna.mmcif import write_mmcif
from ribonanzamamba.rna.records import Record
from ribonanzamamba.rna.structure import Structure

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
NAN = float("nan")


def write_csv(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def write_parquet(path: Path, **columns) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


# reactivity


@pytest.fixture
def reactivity_prediction(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    rows = [
        "r1,1,A,0.1,0.2,0.0,0.0",
        "r1,2,C,0.3,0.4,0.0,0.0",
        '"r,2",1,G,0.5,0.6,0.0,0.0',
        '"r,2",2,U,0.7,0.8,0.0,0.0',
    ]
    return write_csv(folder / "reactivity.csv", "id,position,nucleotide,2A3,DMS,2A3_error,DMS_error", *rows)


@pytest.fixture
def reactivity_table(tmp_path):
    halves = pa.array([[0.2, NAN], [0.0, 0.5], [0.5, 0.5], [1.0, 1.0], [0.0, 0.0]], type=pa.list_(pa.float32()))
    return write_parquet(
        tmp_path / "truth.parquet",
        id=["r1", "other name", "unknown", "r1", "r,2"],
        sequence=["AC", "ac", "AAA"[:2], "AC", "GU"],
        reagent=["2A3", "DMS", "2A3", "2A3", "SHAPE_NMIA_or_1M7"],
        reactivity=halves,
        sn_pass=[True, True, True, False, True],
        dataset=["d"] * 5,
        split=["valid", "valid", "train", "valid", "valid"],
    )


def test_reactivity_of_our_table(reactivity_table, reactivity_prediction):
    report = score_reactivity(reactivity_table, reactivity_prediction)
    mae = {(s.probe, s.nucleotides): s.mae.mean for s in report.scores}
    # the second row is found by its sequence; SHAPE and the third RNA have no prediction
    assert mae["2A3", "all"] == pytest.approx(0.1)
    assert mae["DMS", "all"] == pytest.approx((0.2 + 0.1) / 2)
    assert (mae["DMS", "A"], mae["DMS", "C"]) == (pytest.approx(0.2), pytest.approx(0.1))
    assert mae["all", "all"] == pytest.approx((0.1 + 0.2 + 0.1) / 3)
    assert (report.scored, report.missing, report.noisy) == (2, 2, 1)


def test_reactivity_of_a_split(reactivity_table, reactivity_prediction):
    report = score_reactivity(reactivity_table, reactivity_prediction, split="valid")
    assert (report.scored, report.missing, report.noisy) == (2, 1, 1)
    with pytest.raises(FormatError, match="no split 'public_test_TS0'; splits found: train, valid"):
        score_reactivity(reactivity_table, reactivity_prediction, split="public_test_TS0")


def test_reactivity_of_a_folder(reactivity_table, reactivity_prediction):
    of_folder = score_reactivity(reactivity_table, reactivity_prediction.parent)
    assert of_folder.to_json() == score_reactivity(reactivity_table, reactivity_prediction).to_json()


def test_reactivity_of_kaggle(tmp_path, reactivity_prediction):
    header = "sequence_id,sequence,experiment_type,dataset_name,SN_filter,reactivity_0001,reactivity_0002"
    header += ",reactivity_0003,reactivity_error_0001"
    truth = write_csv(
        tmp_path / "train_data.csv",
        header,
        "k1,GU,2A3_MaP,15k,1.0,,0.6,,0.1",
        "k1,GU,DMS_MaP,15k,1.0,0.5,0.6,,0.1",
        "k2,GU,DMS_MaP,15k,0.0,0.5,0.6,,0.1",
    )
    report = score_reactivity(truth, reactivity_prediction)
    mae = {s.probe: s.mae.mean for s in report.scores if s.nucleotides == "all"}
    assert mae["2A3"] == pytest.approx(0.1)
    assert mae["DMS"] == pytest.approx((0.1 + 0.2) / 2)
    assert (report.scored, report.missing, report.noisy) == (2, 0, 1)


def test_reactivity_of_itself_is_perfect(reactivity_prediction):
    report = score_reactivity(reactivity_prediction, reactivity_prediction)
    assert [s.mae.mean for s in report.scores] == [0.0] * len(report.scores)
    assert (report.scored, report.missing) == (4, 0)


def test_reactivity_of_another_length_names_the_record(tmp_path, reactivity_prediction):
    values = pa.array([[0.1, 0.2, 0.3]], type=pa.list_(pa.float32()))
    truth = write_parquet(tmp_path / "t.parquet", id=["r1"], sequence=["ACG"], reagent=["2A3"], reactivity=values)
    with pytest.raises(ValueError, match="record 'r1': expected a prediction of length 3, got 2"):
        score_reactivity(truth, reactivity_prediction)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["r,1,A,0.1", "r,3,C,0.2"], "expected position 2, got 3"),
        (["r,2,A,0.1"], "expected position 1, got 2"),
        (["r,1,A,0.1", "s,1,A,0.1", "r,1,A,0.1"], "twice"),
        (["r,1,A,high"], "cannot be read as a table"),
    ],
)
def test_a_broken_reactivity_file(tmp_path, rows, message):
    path = write_csv(tmp_path / "reactivity.csv", "id,position,nucleotide,2A3", *rows)
    with pytest.raises(FormatError, match=message):
        score_reactivity(path, path)


def test_a_table_without_the_columns_names_them(tmp_path, reactivity_prediction):
    path = write_csv(tmp_path / "a.csv", "id,sequence", "r,ACGU")
    with pytest.raises(FormatError, match="no column reagent, reactivity; columns found: id, sequence"):
        score_reactivity(path, reactivity_prediction)
    with pytest.raises(FormatError, match="no column position, nucleotide; columns found: id, sequence"):
        score_reactivity(reactivity_prediction, path)


@pytest.mark.parametrize("score", [score_reactivity, score_structure, score_coordinates])
@pytest.mark.parametrize("name", ["none.parquet", "none.csv", "none.dbn", "none.cif"])
def test_a_file_that_is_not_there(tmp_path, score, name):
    with pytest.raises(FormatError, match="none|expected a file ending"):
        score(tmp_path / name, tmp_path / name)


# structure

STRUCTURES = {"s1": ("GGAAACC", "((...))"), "s2": ("GGGAAACCC", "(((...)))"), "s3": ("AAAAA", ".....")}
PREDICTED = {"s1": "((...))", "s2": ".((...)).", "s3": "....."}
F1 = {"s1": 1.0, "s2": 2 * 2 / 5, "s3": 1.0}


def entries(structures):
    for id, text in structures.items():
        yield Record(id, STRUCTURES[id][0]), Structure.from_dot_bracket(text)


@pytest.fixture
def structure_prediction(tmp_path):
    path = tmp_path / "structures.dbn"
    write_dot_bracket(path, entries(PREDICTED))
    return path


def known(path: Path) -> Path:
    """A file, or folder, of the known structures in the format its name tells."""
    truth = {id: text for id, (_, text) in STRUCTURES.items()}
    sequences = [sequence for sequence, _ in STRUCTURES.values()]
    if path.suffix == ".parquet":
        split = ["public_test_TS0", "public_test_TS0", "train"]
        columns = {"id": list(truth), "sequence": sequences, "dot_bracket": list(truth.values())}
        return write_parquet(path, **columns, family=["x", "y", ""], split=split)
    if path.suffix == ".csv":
        return write_csv(path, "id,structure", *(f"{id},{text}" for id, text in truth.items()))
    if path.suffix == ".tsv":
        rows = (f"{id}\t{text}\t{seq}" for (id, text), seq in zip(truth.items(), sequences, strict=True))
        return write_csv(path, "id\tdot_bracket\tsequence", *rows)
    if path.suffix:
        {".dbn": write_dot_bracket, ".ct": write_ct, ".bpseq": write_bpseq}[path.suffix](path, entries(truth))
        return path
    path.mkdir()
    for number, (record, structure) in enumerate(entries(truth)):
        write, name = (write_ct, f"{record.id}.ct") if number % 2 else (write_bpseq, f"{record.id}.bpseq")
        # the id inside is another: that of the file counts too
        write(path / name, [(Record("title", record.sequence), structure)])
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.tsv", "t.dbn", "t.ct", "t.bpseq", "folder"])
def test_structure_of_every_format(tmp_path, structure_prediction, name):
    report = score_structure(known(tmp_path / name), structure_prediction)
    assert sorted(record.f1 for record in report.records) == pytest.approx(sorted(F1.values()))
    assert (report.scored, report.missing) == (3, 0)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.dbn", "t.ct", "t.bpseq", "folder"])
def test_structure_predicted_in_every_format(tmp_path, name):
    report = score_structure(known(tmp_path / "truth.tsv"), known(tmp_path / name))
    assert report.f1.mean == 1.0
    assert report.missing == 0


def test_structure_of_a_prediction_folder(tmp_path, structure_prediction):
    report = score_structure(known(tmp_path / "t.parquet"), structure_prediction.parent)
    assert report.f1.mean == pytest.approx(np.mean(list(F1.values())))


def test_structure_of_a_split(tmp_path, structure_prediction):
    report = score_structure(known(tmp_path / "t.parquet"), structure_prediction, split="public_test_TS0")
    assert [record.id for record in report.records] == ["s1", "s2"]
    assert report.family_f1 == pytest.approx((1 + 0.8) / 2)
    for other in ("t.dbn", "folder"):
        with pytest.raises(FormatError, match="no 'valid'"):
            score_structure(known(tmp_path / other), structure_prediction, split="valid")


def test_structure_missing_counts_as_zero(tmp_path):
    path = tmp_path / "p.dbn"
    write_dot_bracket(path, entries({"s1": PREDICTED["s1"]}))
    report = score_structure(known(tmp_path / "t.parquet"), path)
    assert report.f1.mean == pytest.approx(1 / 3)
    assert (report.scored, report.missing) == (1, 2)


def test_structure_of_an_id_used_twice(tmp_path):
    truth = write_csv(tmp_path / "t.csv", "id,sequence,structure", "d,GGAAACC,((...))", "d,GGGAAACCC,(((...)))")
    predicted = write_csv(tmp_path / "p.csv", "id,sequence,structure", "d,GGAAACC,((...))")
    assert [record.f1 for record in score_structure(truth, predicted).records] == [1.0, 0.0]


def test_structure_of_another_length_names_the_record(tmp_path):
    truth = write_csv(tmp_path / "t.csv", "id,sequence,structure", "d,GGAAACC,((...))")
    for row in ("d,GGAAAC,(....)", "d,,(....)"):
        predicted = write_csv(tmp_path / "p.csv", "id,sequence,structure", row)
        with pytest.raises(ValueError, match="record 'd': .* length 7, got 6"):
            score_structure(truth, predicted)


def test_brackets_that_do_not_close_name_the_record(tmp_path):
    path = write_csv(tmp_path / "t.csv", "id,structure", "bad,((...)")
    with pytest.raises(FormatError, match="record 'bad': position 1: '\\(' is never closed"):
        score_structure(path, path)


# coordinates

SEQUENCE = "GGGAAACCCUUUAGGGAAACCCUUUAGGGAAACC"
LENGTH = len(SEQUENCE)
C1 = np.cumsum(np.random.default_rng(0).normal(scale=3.3, size=(LENGTH, 3)), axis=0).round(3)
OTHER = np.cumsum(np.random.default_rng(1).normal(scale=3.3, size=(LENGTH, 3)), axis=0).round(3)
HALF = np.where(np.arange(LENGTH)[:, None] < LENGTH // 2, C1, 900.0 + 200.0 * np.arange(LENGTH)[:, None])
AWKWARD = "a/b c"
"""An id whose file needs another name."""


def write_model(folder: Path, name: str, c1: np.ndarray, id: str, sequence: str = SEQUENCE, model: int = 1) -> Path:
    coordinates = np.full((len(sequence), 4, 3), np.nan)
    coordinates[:, 2] = c1
    folder.mkdir(exist_ok=True, parents=True)
    write_mmcif(folder / name, sequence, coordinates, np.full(len(sequence), 50.0), id=id, model=model)
    return folder / name


def write_prediction_folder(folder: Path, ranked: bool = True) -> Path:
    """Two models of one RNA: the first by number is HALF, the first by rank C1."""
    inside = folder / "coordinates"
    for number, c1 in ((1, HALF), (2, C1[:, [1, 2, 0]])):
        write_model(inside, f"{safe_file_name(AWKWARD)}_model_{number}.cif", c1, AWKWARD, model=number)
    if ranked:
        with open(inside / "ranking.csv", "w", newline="") as file:
            csv.writer(file).writerows(
                [("id", "model", "confidence", "source"), (AWKWARD, 2, 60, ""), (AWKWARD, 1, 50, "")]
            )
    return folder


def coordinate_table(path: Path, **more) -> Path:
    """Two groups: AWKWARD with two conformations (the main one second), and a neighbour."""
    flat = [OTHER.ravel().tolist(), C1.ravel().tolist(), [1.0, 2, 3, 4, 5, 6]]
    columns = {
        "target_id": ["conformer", AWKWARD, "near"],
        "sequence": [SEQUENCE, SEQUENCE, "AC"],
        "c1p_xyz": pa.array(flat, type=pa.list_(pa.float32())),
        "group_id": [7, 7, 8],
    }
    return write_parquet(path, **columns, **more)


ROLES = {"val_role": ["target", "target", "neighbour"], "is_main": [False, True, False]}


@pytest.mark.parametrize("inside", [False, True], ids=["out", "coordinates"])
def test_coordinates_of_our_table(tmp_path, inside):
    folder = write_prediction_folder(tmp_path / "out")
    report = score_coordinates(
        coordinate_table(tmp_path / "t.parquet", **ROLES), folder / "coordinates" if inside else folder
    )
    assert [record.id for record in report.records] == [AWKWARD]
    assert report.tm_first.mean == pytest.approx(1.0, abs=1e-4)
    assert (report.scored, report.missing) == (1, 0)


def test_coordinates_without_a_ranking_go_by_number(tmp_path):
    folder = write_prediction_folder(tmp_path / "out", ranked=False)
    report = score_coordinates(coordinate_table(tmp_path / "t.parquet", **ROLES), folder)
    assert report.tm_first.mean == pytest.approx(0.5, abs=0.02)
    assert report.tm_best.mean == pytest.approx(1.0, abs=1e-4)


def test_any_conformation_counts(tmp_path):
    predicted = write_model(tmp_path / "p", "conformer.cif", OTHER, "conformer")
    report = score_coordinates(coordinate_table(tmp_path / "t.parquet", **ROLES), predicted)
    assert report.tm_first.mean == pytest.approx(1.0, abs=1e-4)


def test_coordinates_of_the_neighbours(tmp_path):
    folder = write_prediction_folder(tmp_path / "out")
    table = coordinate_table(tmp_path / "t.parquet", **ROLES)
    report = score_coordinates(table, folder, split="neighbour")
    assert [(record.id, record.tm_best) for record in report.records] == [("near", 0.0)]
    assert (report.scored, report.missing) == (0, 1)
    with pytest.raises(FormatError, match="no split 'valid'; splits found: main, neighbour, target"):
        score_coordinates(table, folder, split="valid")


def test_coordinates_of_a_table_with_splits(tmp_path):
    table = coordinate_table(tmp_path / "t.parquet", split=["train", "valid", "valid"])
    report = score_coordinates(table, write_prediction_folder(tmp_path / "out"), split="valid")
    assert [record.id for record in report.records] == [AWKWARD, "near"]


def kaggle(path: Path, id: str, *conformations: np.ndarray, sequence: str = SEQUENCE) -> Path:
    """Kaggle's layout of labels and submissions; NaN is written as -1e18 and, in the first, as nothing."""
    names = [f"{axis}_{k}" for k in range(1, len(conformations) + 1) for axis in "xyz"]
    rows = []
    for place, letter in enumerate(sequence):
        cells = [
            ("" if k == 0 else "-1e18") if np.isnan(value) else f"{value:.3f}"
            for k, c1 in enumerate(conformations)
            for value in c1[place]
        ]
        rows.append(",".join([f"{id}_{place + 1}", letter, str(place + 1), *cells]))
    return write_csv(path, ",".join(["ID", "resname", "resid", *names]), *rows)


def test_kaggle_labels_against_a_submission(tmp_path):
    holed = C1.copy()
    holed[:4] = np.nan
    labels = kaggle(tmp_path / "train_labels.csv", "1ABC_A", np.full_like(C1, np.nan), holed)
    submission = kaggle(tmp_path / "submission.csv", "1ABC_A", HALF, C1 + 5, HALF, HALF, HALF)
    report = score_coordinates(labels, submission)
    assert report.tm_best.mean == pytest.approx(1.0, abs=1e-4)
    assert report.tm_first.mean == pytest.approx((LENGTH // 2 - 4) / (LENGTH - 4), abs=0.03)
    assert report.records[0].n_models == 5


def test_a_kaggle_submission_with_a_hole_in_its_rows(tmp_path):
    path = kaggle(tmp_path / "submission.csv", "1ABC_A", C1)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:5] + lines[6:]) + "\n")
    with pytest.raises(FormatError, match="record '1ABC_A': expected position 5, got 6"):
        score_coordinates(path, path)


def test_coordinate_files_by_name(tmp_path):
    truth = write_model(tmp_path / "truth", "x.cif", C1, "inside")
    predicted = write_model(tmp_path / "p", "x_model_1.cif", HALF, "inside too")
    write_model(tmp_path / "p", "x_model_2.cif", C1, "inside too")
    write_model(tmp_path / "p", "x_model_10.cif", C1, "inside too")
    for known_path in (truth, truth.parent):
        report = score_coordinates(known_path, predicted.parent)
        assert [record.id for record in report.records] == ["x"]
        assert report.records[0].n_models == 3
        assert report.tm_first.mean == pytest.approx(0.5, abs=0.02)
        assert report.tm_best.mean == pytest.approx(1.0)


def test_coordinates_of_another_length_name_the_record(tmp_path):
    truth = write_model(tmp_path / "t", "x.cif", C1, "x")
    predicted = write_model(tmp_path / "p", "x.cif", C1[:-2], "x", sequence=SEQUENCE[:-2])
    with pytest.raises(ValueError, match=f"record 'x': expected a prediction of length {LENGTH}, got {LENGTH - 2}"):
        score_coordinates(truth, predicted)


def test_a_folder_without_coordinates(tmp_path):
    with pytest.raises(FormatError, match="holds no files ending in .cif"):
        score_coordinates(tmp_path, tmp_path)


def test_reports_are_plain_data(tmp_path, structure_prediction, reactivity_prediction):
    model = write_model(tmp_path / "t", "x.cif", C1, "x")
    for report in (
        score_structure(structure_prediction, structure_prediction),
        score_reactivity(reactivity_prediction, reactivity_prediction),
        score_coordinates(model, model),
    ):
        plain = report.to_json()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert report.to_text().count("\n") >= 3


# the tables beside the repository


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the repository")
    return path


def test_validation_targets(tmp_path):
    labels = kaggle(tmp_path / "submission.csv", "nothing", C1)
    report = score_coordinates(shared("rna3d/validation.parquet"), labels)
    assert (report.scored, report.missing) == (0, 68)


def test_the_public_structure_test(structure_prediction):
    report = score_structure(shared("secondary/structures.parquet"), structure_prediction, split="public_test_TS0")
    assert (report.scored, report.missing) == (0, 1305)


def test_held_out_reactivity(reactivity_prediction):
    table = shared("reactivity/ribonanza_2a3_dms.parquet")
    report = score_reactivity(table, reactivity_prediction, split="valid")
    # 1,001 of 1,028 rows of 2A3 pass (SOURCES.md), and 975 of 1,012 of DMS: its other 12 are in another table
    assert (report.scored, report.missing, report.noisy) == (0, 1001 + 975, 27 + 37)
