"""PredictionFolder: the files as promised, whole after a kill at any byte, and nothing outside the folder."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from ribonanzamamba.prediction import TASKS
from ribonanzamamba.prediction import folder as folder_module
from ribonanzamamba.prediction.folder import Existing, FolderError, IdTaken, Origin, PredictionFolder
from ribonanzamamba.rna.formats import read_dot_bracket, safe_file_name
from ribonanzamamba.rna.records import ATOMS, Prediction, Record
from ribonanzamamba.rna.structure import Structure

TABLES = ("summary.csv", "reactivity.csv", "structures.dbn", "coordinates/ranking.csv")
MODELS = 2
ORIGIN = Origin("fake", "abc", "cpu", ("in.fa",))


def make_prediction(id: str, structure: str = "((....))..", seed: int = 0) -> Prediction:
    """A prediction of random numbers for a structure."""
    random = np.random.default_rng(seed)
    length = len(structure)
    record = Record(id, "".join(random.choice(list("ACGUN"), length)))
    probability = np.zeros((length, length), dtype=np.float32)
    pairs = Structure.from_dot_bracket(structure)
    for i, j in pairs.pairs:
        probability[i, j] = probability[j, i] = 0.75
    if length > 5:
        probability[0, 5] = probability[5, 0] = 0.001
        probability[0, 4] = probability[4, 0] = 0.0009
    return Prediction(
        record,
        reactivity={"2A3": random.random(length), "DMS": random.random(length)},
        reactivity_error={"2A3": random.random(length), "DMS": random.random(length)},
        pair_probability=probability,
        structure=pairs,
        coordinates=random.normal(size=(MODELS, length, len(ATOMS), 3)).astype(np.float32),
        plddt=np.linspace(90, 50, MODELS * length).reshape(MODELS, length),
        model_sources=("network", "template 1ABC_A 0.91"),
        seconds=0.25,
    )


def open_folder(path: Path, tasks=TASKS, existing: Existing = Existing.REFUSE, origin: Origin = ORIGIN):
    return PredictionFolder(path, tasks, MODELS, origin=origin, existing=existing)


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(path: Path) -> dict[str, bytes]:
    """Every file but run.json, which holds times."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "run.json")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.fixture
def predictions() -> list[Prediction]:
    structures = ["((....))..", ".", "((((..[[[[..))))....]]]]", "....."]
    ids = ["plain", 'a,b "c"', "../../up/1", "été"]
    return [make_prediction(id, text, seed) for seed, (id, text) in enumerate(zip(ids, structures, strict=True))]


@pytest.fixture
def written(tmp_path, predictions) -> Path:
    folder = open_folder(tmp_path / "out")
    for prediction in predictions:
        folder.write(prediction)
    folder.finish([prediction.record.id for prediction in predictions], warnings=["w"], problems=["p"])
    return tmp_path / "out"


def test_the_files_are_those_promised(written, predictions):
    names = [safe_file_name(prediction.record.id) for prediction in predictions]
    expected = {*TABLES, "run.json"} | {f"pairs/{name}.npz" for name in names}
    expected |= {f"coordinates/{name}_model_{k}.cif" for name in names for k in (1, 2)}
    assert {*contents(written), "run.json"} == expected


def test_summary(written):
    rows = read_csv(written / "summary.csv")
    assert [row["id"] for row in rows] == ["plain", 'a,b "c"', "../../up/1", "été"]
    assert rows[0] == {
        "id": "plain",
        "length": "10",
        "structure": "((....))..",
        "mean_pair_confidence": "0.7500",
        "mean_plddt": "80.53",
        "seconds": "0.250",
    }
    assert rows[1]["mean_pair_confidence"] == ""


def test_reactivity(written, predictions):
    rows = read_csv(written / "reactivity.csv")
    assert list(rows[0]) == ["id", "position", "nucleotide", "2A3", "DMS", "2A3_error", "DMS_error"]
    third = [row for row in rows if row["id"] == "../../up/1"]
    assert [row["position"] for row in third] == [str(n) for n in range(1, 25)]
    assert "".join(row["nucleotide"] for row in third) == predictions[2].record.sequence
    values = [float(row["DMS"]) for row in third]
    np.testing.assert_allclose(values, predictions[2].reactivity["DMS"], atol=5e-5)
    errors = [float(row["2A3_error"]) for row in third]
    np.testing.assert_allclose(errors, predictions[2].reactivity_error["2A3"], atol=5e-5)


def test_structures_read_back(written, predictions):
    for (record, structure), prediction in zip(read_dot_bracket(written / "structures.dbn"), predictions, strict=True):
        assert (record.sequence, structure) == (prediction.record.sequence, prediction.structure)


def test_pairs(written):
    with np.load(written / "pairs" / "plain.npz") as pairs:
        assert list(zip(pairs["i"].tolist(), pairs["j"].tolist(), strict=True)) == [(0, 5), (0, 7), (1, 6)]
        np.testing.assert_allclose(pairs["p"], [0.001, 0.75, 0.75])


def test_ranking(written):
    rows = read_csv(written / "coordinates" / "ranking.csv")
    assert rows[0] == {"id": "plain", "model": "1", "confidence": "80.53", "source": "network"}
    assert rows[1]["source"] == "template 1ABC_A 0.91"


def test_run_description(written):
    run = json.loads((written / "run.json").read_text())
    assert run["model"] == "fake" and run["model_hash"] == "abc" and run["device"] == "cpu" and run["prior"] == "none"
    assert run["options"] == {"inputs": ["in.fa"], "tasks": list(TASKS), "models": 2, "templates": []}
    assert run["templates"] == "none"
    assert run["warnings"] == ["w"] and run["problems"] == ["p"]
    assert run["started"] <= run["finished"]


def test_run_description_stands_from_the_start(tmp_path):
    open_folder(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["finished"] is None


@pytest.mark.parametrize(
    ("task", "files"),
    [
        ("reactivity", {"summary.csv", "reactivity.csv"}),
        ("structure", {"summary.csv", "structures.dbn", "pairs/plain.npz"}),
        (
            "coordinates",
            {
                "summary.csv",
                "coordinates/ranking.csv",
                "coordinates/plain_model_1.cif",
                "coordinates/plain_model_2.cif",
            },
        ),
    ],
)
def test_tasks_decide_the_files_and_each_can_be_resumed(tmp_path, task, files):
    folder = open_folder(tmp_path, tasks=(task,))
    prediction = make_prediction("plain")
    folder.write(prediction)
    assert set(contents(tmp_path)) == files
    resumed = open_folder(tmp_path, tasks=(task,), existing=Existing.RESUME)
    assert resumed.is_complete(prediction.record)
    assert not resumed.is_complete(Record("other", "ACGU"))
    with pytest.raises(IdTaken, match="another sequence named 'plain'"):
        resumed.is_complete(Record("plain", "ACGU"))


def test_tables_come_in_the_order_of_the_input(written, tmp_path, predictions):
    folder = open_folder(tmp_path / "shuffled")
    for k in (2, 0, 3, 1):
        folder.write(predictions[k])
    folder.finish([prediction.record.id for prediction in predictions])
    assert contents(tmp_path / "shuffled") == contents(written)


def test_ids_never_leave_the_folder(written):
    assert [path.name for path in written.parent.iterdir()] == ["out"]
    assert all(path.parent == written / "pairs" for path in written.rglob("*.npz"))


def kill(path: Path, random: np.random.Generator, predictions: list[Prediction]) -> None:
    """What a kill leaves: `k` records whole, the next torn at a random byte of its last file."""
    k = int(random.integers(0, len(predictions)))
    folder = open_folder(path)
    for prediction in predictions[:k]:
        folder.write(prediction)
    sizes = {name: (path / name).stat().st_size if (path / name).exists() else 0 for name in TABLES}
    folder.write(predictions[k])
    order = ("reactivity.csv", "structures.dbn", "coordinates/ranking.csv", "summary.csv")
    torn = int(random.integers(0, len(order)))
    for place, name in enumerate(order):
        whole = (path / name).stat().st_size
        end = whole if place < torn else sizes[name] if place > torn else int(random.integers(sizes[name], whole))
        os.truncate(path / name, end)


@pytest.mark.parametrize("seed", range(25))
def test_a_killed_run_continues_as_if_nothing_had_happened(written, tmp_path, predictions, seed):
    path = tmp_path / "killed"
    kill(path, np.random.default_rng(seed), predictions)
    folder = open_folder(path, existing=Existing.RESUME)
    for prediction in predictions:
        if not folder.is_complete(prediction.record):
            folder.write(prediction)
    folder.finish([prediction.record.id for prediction in predictions])
    assert contents(path) == contents(written)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("seed", range(6))
def test_a_table_cut_at_any_byte_is_repaired(written, predictions, name, seed):
    before = contents(written)
    size = (written / name).stat().st_size
    os.truncate(written / name, int(np.random.default_rng(seed).integers(0, size)))
    folder = open_folder(written, existing=Existing.RESUME)
    again = [prediction for prediction in predictions if not folder.is_complete(prediction.record)]
    assert again
    for prediction in again:
        folder.write(prediction)
    folder.finish([prediction.record.id for prediction in predictions])
    assert contents(written) == before


def test_a_table_cut_inside_an_id_of_two_lines_is_repaired(tmp_path):
    prediction = make_prediction("two\nlines")
    folder = open_folder(tmp_path)
    folder.write(make_prediction("plain"))
    folder.write(prediction)
    before = contents(tmp_path)
    os.truncate(tmp_path / "summary.csv", before["summary.csv"].index(b"two\n") + 4)
    folder = open_folder(tmp_path, existing=Existing.RESUME)
    assert folder.complete_ids == ("plain",)
    folder.write(prediction)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["pairs/plain.npz", "coordinates/plain_model_2.cif"])
def test_a_record_without_one_of_its_files_is_not_complete(written, predictions, name):
    (written / name).unlink()
    folder = open_folder(written, existing=Existing.RESUME)
    assert [folder.is_complete(prediction.record) for prediction in predictions] == [False, True, True, True]
    assert "plain" not in (written / "summary.csv").read_text(encoding="utf-8")


def test_a_foreign_table_is_one_line(written):
    (written / "summary.csv").write_text("id,length\nplain,long\n")
    with pytest.raises(FolderError, match=r"summary.csv: not written by ribonanzamamba; use --overwrite$"):
        open_folder(written, existing=Existing.RESUME)


def test_half_written_files_of_a_kill_are_removed(written):
    before = contents(written)
    for name in (".run.json.part", "pairs/.plain.npz.part", "coordinates/.plain_model_1.cif.123.part"):
        (written / name).write_text("half")
    open_folder(written, existing=Existing.RESUME)
    assert contents(written) == before


def test_resuming_what_is_complete_changes_nothing(written):
    before = contents(written)
    folder = open_folder(written, existing=Existing.RESUME)
    folder.finish(folder.complete_ids)
    assert contents(written) == before


def test_resuming_an_empty_folder_starts_a_run(tmp_path):
    folder = open_folder(tmp_path / "new", existing=Existing.RESUME)
    assert folder.complete_ids == ()


def test_results_are_not_overwritten_unasked(written):
    before = contents(written)
    with pytest.raises(FolderError, match=r"holds results already \(summary.csv\); use --resume or --overwrite"):
        open_folder(written)
    assert contents(written) == before


def test_overwrite_removes_results_and_nothing_else(written):
    (written / "notes.txt").write_text("mine")
    open_folder(written, existing=Existing.OVERWRITE)
    assert set(contents(written)) == {"notes.txt"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("structure",)}, "with tasks reactivity,structure,coordinates, not structure"),
        ({"origin": Origin("fake", "xyz")}, "with weights abc, not xyz"),
        ({"origin": Origin("fake", "abc", prior="ViennaRNA 2.8.0")}, "with the prior none, not ViennaRNA 2.8.0"),
    ],
)
def test_a_run_of_something_else_is_not_resumed(written, change, message):
    with pytest.raises(FolderError, match=message):
        open_folder(written, existing=Existing.RESUME, **change)


def test_a_damaged_run_description_is_said(written):
    (written / "run.json").write_text('{"version"')
    with pytest.raises(FolderError, match=r"run.json: missing or damaged"):
        open_folder(written, existing=Existing.RESUME)


@pytest.mark.parametrize("taken", ["a b", "a_b"])
def test_ids_that_cannot_be_told_apart_are_refused(tmp_path, taken):
    folder = open_folder(tmp_path)
    folder.write(make_prediction("a b"))
    before = contents(tmp_path)
    with pytest.raises(IdTaken, match=f"holds an RNA named '{taken}' already"):
        folder.write(make_prediction(taken))
    assert contents(tmp_path) == before


def test_a_prediction_that_lacks_a_task_is_refused(tmp_path):
    with pytest.raises(ValueError, match="plain: the prediction has no reactivity"):
        open_folder(tmp_path).write(Prediction(Record("plain", "ACGU")))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"file.*: (Not a directory|File exists)$"):
        open_folder(tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FolderError, match="Permission denied$"):
        open_folder(tmp_path)


def test_a_full_disk_names_the_file_and_leaves_what_was_done(tmp_path, predictions, monkeypatch):
    folder = open_folder(tmp_path)
    folder.write(predictions[0])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_module, "write_mmcif", full)
    with pytest.raises(FolderError, match=r"_model_1\.cif: No space left on device"):
        folder.write(predictions[2])
    monkeypatch.undo()
    assert not [file for file in contents(tmp_path) if file.endswith(".part")]
    resumed = open_folder(tmp_path, existing=Existing.RESUME)
    assert resumed.complete_ids == ("plain",)
    resumed.write(predictions[2])
    assert resumed.complete_ids == ("plain", "../../up/1")


def test_what_a_failed_attempt_left_torn_does_not_end_up_in_the_middle(tmp_path):
    folder = open_folder(tmp_path)
    folder.write(make_prediction("plain"))
    with open(tmp_path / "reactivity.csv", "a") as file:
        file.write("second,1,A,0.")
    folder.write(make_prediction("second"))
    assert [row["id"] for row in read_csv(tmp_path / "reactivity.csv")] == ["plain"] * 10 + ["second"] * 10
