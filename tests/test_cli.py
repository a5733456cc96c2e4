"""The command line: exit codes, one line for every fault of a user's, and runs that go on where they were stopped."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import ribonanzamamba
from ribonanzamamba.cli import app
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import ModelOutput
from ribonanzamamba.prediction import folder as folder_module
from ribonanzamamba.prediction import predict as predict_module
from ribonanzamamba.prediction.predict import Predictor
from ribonanzamamba.rna.mmcif import write_mmcif
from ribonanzamamba.rna.records import ATOMS, PROBES

MODELS = 5
GOOD = ">hairpin\nGGGGAAAACCCC\n>poly\nacgtacgtacgtacgt\n>short\nA\n"


class FakeNetwork(torch.nn.Module):
    """Answers that follow from each nucleotide alone; raises `fails[length]` for a batch that holds this length."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ModelConfig(coordinate_models=MODELS)
        self.fails: dict[int, BaseException] = {}
        self.lengths: list[int] = []

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, tasks: frozenset[str]) -> ModelOutput:
        for length in mask.sum(1).tolist():
            if length in self.fails:
                raise self.fails[length]
            self.lengths.append(length)
        batch, length = tokens.shape
        value = tokens.float()
        place = torch.arange(length)
        facing = place[:, None] + place == mask.sum(1)[:, None, None] - 1
        complement = (value[:, :, None] + value[:, None, :] == 3) & ((place[:, None] - place).abs() > 3)
        models = torch.arange(MODELS).float()[:, None, None, None]
        return ModelOutput(
            reactivity=value[..., None] + torch.arange(len(PROBES)),
            reactivity_error=value[..., None].expand(-1, -1, len(PROBES)) / 10,
            pair_logit=torch.where(complement & facing, 4.0, -1e9),
            no_partner_logit=torch.zeros(batch, length),
            coordinates=(value[:, None, :, None, None] + models).expand(-1, -1, -1, len(ATOMS), 3),
            plddt_logit=torch.zeros(batch, MODELS, length, 50),
        )


@pytest.fixture
def network(monkeypatch) -> FakeNetwork:
    """The network behind `predict`; nothing is read from disk."""
    network = FakeNetwork()

    def load(weights, device, prior, templates=None):
        if weights == "missing":
            raise FileNotFoundError("no weights at missing")
        return Predictor(
            network, name="fake", weights_hash="abc", device=device, max_tokens=16, max_length=100, templates=templates
        )

    monkeypatch.setattr(predict_module, "load", load)
    return network


def run(*arguments: str | Path, stdin: str | None = None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def summary(out: Path) -> list[str]:
    with open(out / "summary.csv", newline="", encoding="utf-8") as file:
        return [row["id"] for row in csv.DictReader(file)]


def contents(path: Path) -> dict[str, bytes]:
    """Every file but run.json, which holds times, and summary.csv without its seconds."""
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    del files["run.json"]
    files["summary.csv"] = b"\n".join(line.rpartition(b",")[0] for line in files["summary.csv"].splitlines())
    return files


@pytest.fixture
def fasta(tmp_path) -> Path:
    path = tmp_path / "good.fa"
    path.write_text(GOOD)
    return path


def test_predict_writes_the_files_and_one_line(network, fasta, tmp_path):
    out = tmp_path / "out"
    result = run("predict", fasta, "--out", out, "--device", "cpu")
    assert result.exit_code == 0
    assert result.stdout == f"3 RNAs in {out}\n"
    assert result.stderr == ""
    assert summary(out) == ["hairpin", "poly", "short"]
    assert (out / "structures.dbn").read_text().startswith(">hairpin\nGGGGAAAACCCC\n((((....))))\n")
    assert len(list(out.glob("coordinates/*.cif"))) == 3 * MODELS
    assert json.loads((out / "run.json").read_text())["model"] == "fake"


def test_predict_draws_each_rna(network, fasta, tmp_path):
    out = tmp_path / "out"
    assert run("predict", fasta, "--out", out, "--device", "cpu", "--pictures").exit_code == 0
    assert sorted(path.name for path in out.glob("pictures/*")) == ["hairpin.png", "poly.png", "short.png"]
    assert (out / "pictures" / "hairpin.png").read_bytes().startswith(b"\x89PNG")
    odd = tmp_path / "odd.fa"
    odd.write_text(">$x_{\nACGU\n")
    assert run("predict", odd, "--out", tmp_path / "odd", "--device", "cpu", "--pictures").exit_code == 0
    # pictures of other RNAs do not stay
    assert run("predict", "ACGU", "--out", out, "--device", "cpu", "--overwrite").exit_code == 0
    assert not list(out.glob("pictures/*"))


def test_pictures_without_matplotlib_are_one_line_before_anything(network, fasta, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "ribonanzamamba.plots", raising=False)
    monkeypatch.delattr(ribonanzamamba, "plots", raising=False)
    result = run("predict", fasta, "--out", tmp_path / "out", "--pictures")
    assert result.exit_code == 2 and "pictures need matplotlib: pip install" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_sequence_on_the_command_line(network, tmp_path):
    result = run("predict", "GGGGAAAACCCC", "--out", tmp_path, "--tasks", "structure")
    assert result.exit_code == 0
    assert summary(tmp_path) == ["sequence"]
    assert not (tmp_path / "reactivity.csv").exists() and not (tmp_path / "coordinates").exists()


def test_several_sequences_on_the_command_line(network, tmp_path):
    assert run("predict", "ACGU", "GGG", "--out", tmp_path, "--tasks", "reactivity").exit_code == 0
    assert summary(tmp_path) == ["sequence_1", "sequence_2"]


def test_standard_input_and_gzip(network, tmp_path):
    zipped = tmp_path / "more.fa.gz"
    zipped.write_bytes(gzip.compress(b">zipped\nACGUACGU\n"))
    result = run("predict", "-", zipped, "--out", tmp_path / "out", "--models", "1", stdin=GOOD)
    assert result.exit_code == 0
    assert summary(tmp_path / "out") == ["hairpin", "poly", "short", "zipped"]
    assert len(list((tmp_path / "out").glob("coordinates/*.cif"))) == 4


def test_bad_records_do_not_stop_the_good_ones(network, fasta, tmp_path):
    bad = tmp_path / "bad.fa"
    bad.write_text(">protein\nMEEPQSDPSV\n>hairpin\nACGU\n>empty\n\n>long\n" + "A" * 101 + "\n>fine\nGGRAAACC\n")
    out = tmp_path / "out"
    result = run("predict", fasta, bad, tmp_path / "none.fa", "--out", out)
    assert result.exit_code == 1
    assert summary(out) == ["hairpin", "poly", "short", "fine"]
    assert result.stdout == f"4 RNAs in {out}\n"
    problems = json.loads((out / "run.json").read_text())["problems"]
    assert len(problems) == 5
    for word in ("protein", "hairpin", "empty", "'long': 101 nt: the limit is 100 nt", "none.fa: no such file"):
        (problem,) = [problem for problem in problems if word in problem]
        # as it happens, and once more at the end
        assert result.stderr.count(problem) == 2
        assert "\n" not in problem
    assert "5 problems:" in result.stderr
    assert "warning: " in result.stderr and "N" in json.loads((out / "run.json").read_text())["warnings"][0]


def test_out_of_memory_does_not_stop_the_others(network, fasta, tmp_path):
    network.fails = {16: RuntimeError("CUDA out of memory")}
    result = run("predict", fasta, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert summary(tmp_path / "out") == ["hairpin", "short"]
    assert "record 'poly': out of memory: 16 nt need about" in result.stderr


@pytest.mark.parametrize("text", ["", ">a\nMEEPQSDPSV\n"], ids=["empty file", "protein"])
def test_nothing_usable(network, tmp_path, text):
    path = tmp_path / "bad.fa"
    path.write_text(text)
    result = run("predict", path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.endswith("nothing was predicted\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "folding"], "error: expected tasks out of reactivity, structure, coordinates, got folding"),
        (["--tasks", ","], "got none"),
        (["--models", "6"], "error: expected 1 to 5 coordinate models"),
        (["--weights", "missing"], "error: no weights at missing"),
        (["--device", "toaster"], "error: expected device auto, cpu or cuda, got 'toaster'"),
        (["--resume", "--overwrite"], "error: --resume and --overwrite exclude each other"),
    ],
)
def test_bad_options_are_one_line(network, fasta, tmp_path, options, message):
    result = run("predict", fasta, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_line(network, fasta):
    result = run("predict", fasta, "--out", fasta / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and "good.fa" in result.stderr


def test_existing_results_are_refused_resumed_or_overwritten(network, fasta, tmp_path):
    out = tmp_path / "out"
    run("predict", fasta, "--out", out)
    refused = run("predict", fasta, "--out", out)
    assert refused.exit_code == 2 and "use --resume or --overwrite" in refused.stderr
    network.lengths.clear()
    assert run("predict", fasta, "--out", out, "--resume").exit_code == 0
    assert network.lengths == []
    assert run("predict", fasta, "--out", out, "--overwrite").exit_code == 0
    assert sorted(network.lengths) == [1, 12, 16]


@pytest.mark.parametrize("seed", range(8))
def test_resume_after_a_kill_equals_an_uninterrupted_run(network, fasta, tmp_path, seed):
    whole, out = tmp_path / "whole", tmp_path / "out"
    run("predict", fasta, "--out", whole)
    run("predict", fasta, "--out", out)
    random = np.random.default_rng(seed)
    tables = ["summary.csv", "reactivity.csv", "structures.dbn", "coordinates/ranking.csv"]
    for name in random.choice(tables, size=2, replace=False):
        os.truncate(out / name, int(random.integers(0, (out / name).stat().st_size)))
    result = run("predict", fasta, "--out", out, "--resume")
    assert result.exit_code == 0
    assert contents(out) == contents(whole)


def test_resume_with_another_sequence_under_an_id_is_a_problem(network, fasta, tmp_path):
    out = tmp_path / "out"
    run("predict", fasta, "--out", out)
    fasta.write_text(">hairpin\nAAAA\n>new\nACGU\n")
    result = run("predict", fasta, "--out", out, "--resume")
    assert result.exit_code == 1
    assert "holds another sequence named 'hairpin'" in result.stderr
    assert summary(out) == ["hairpin", "new", "poly", "short"]


def test_interrupted_says_how_to_go_on(network, fasta, tmp_path):
    out = tmp_path / "out"
    network.fails = {12: KeyboardInterrupt()}
    result = run("predict", fasta, "--out", out)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert f"1 of 3 RNAs are in {out}; the same command with --resume does the rest" in result.stderr
    assert summary(out) == ["short"]
    network.fails = {}
    assert run("predict", fasta, "--out", out, "--resume").exit_code == 0
    assert summary(out) == ["hairpin", "poly", "short"]


def test_a_full_disk_keeps_what_was_done(network, fasta, tmp_path, monkeypatch):
    write = folder_module.write_mmcif

    def full(path, sequence, *arguments, **options):
        if len(sequence) == 12:
            raise OSError(28, "No space left on device")
        write(path, sequence, *arguments, **options)

    monkeypatch.setattr(folder_module, "write_mmcif", full)
    result = run("predict", fasta, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "hairpin_model_1.cif: No space left on device" in result.stderr
    assert "1 of 3 RNAs are in" in result.stderr
    assert summary(tmp_path / "out") == ["short"]


def test_ids_with_slashes_never_leave_the_folder(network, tmp_path):
    path = tmp_path / "ids.fa"
    path.write_text(">../../escaped\nACGUACGU\n>/absolute/path\nACGU\n>..\nGGG\n")
    out = tmp_path / "deep" / "out"
    assert run("predict", path, "--out", out).exit_code == 0
    assert summary(out) == ["../../escaped", "/absolute/path", ".."]
    assert {file.name for file in tmp_path.iterdir()} == {"ids.fa", "deep"}
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["out"]


def test_version():
    assert run("--version").stdout == f"ribonanzamamba {ribonanzamamba.__version__}\n"


@pytest.mark.parametrize("arguments", [["predict"], ["predict", "ACGU"], ["score", "weather"], ["--bogus"]])
def test_usage_errors(arguments):
    assert run(*arguments).exit_code == 2


def test_train_without_its_config_is_one_line(tmp_path):
    result = run("train", tmp_path / "none.toml")
    assert result.exit_code == 2
    assert "none.toml" in result.stderr and result.stderr.count("\n") == 1


def test_score_of_a_missing_file_is_one_line(tmp_path):
    result = run("score", "structure", "--truth", tmp_path / "none.dbn", "--predicted", tmp_path / "none.dbn")
    assert result.exit_code == 2
    assert "none.dbn" in result.stderr and result.stderr.count("\n") == 1


def test_load_of_the_package_is_that_of_the_predictor(network):
    prediction = ribonanzamamba.load(device="cpu").predict("GGGGAAAACCCC")
    assert prediction.structure.to_dot_bracket() == "((((....))))"
    assert prediction.reactivity["2A3"].shape == (12,)
    assert prediction.pair_probability.shape == (12, 12)
    assert prediction.coordinates.shape == (MODELS, 12, len(ATOMS), 3)


@pytest.mark.parametrize("task", ["reactivity", "structure", "coordinates"])
def test_score_takes_what_predict_writes(network, fasta, tmp_path, task):
    truth, out = tmp_path / "truth", tmp_path / "out"
    for folder in (truth, out):
        assert run("predict", fasta, "--out", folder, "--models", "1").exit_code == 0
    source = {
        "reactivity": truth / "reactivity.csv",
        "structure": truth / "structures.dbn",
        "coordinates": truth / "coordinates",
    }[task]
    result = run("score", task, "--truth", source, "--predicted", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert isinstance(json.loads(result.stdout), dict)
    assert run("score", task, "--truth", source, "--predicted", out).stdout.strip()


def test_a_missing_vienna_is_one_warning_and_in_run_json(network, fasta, tmp_path, monkeypatch):
    class Warning(predict_module.Predictor):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.warnings = ("no ViennaRNA",)

    monkeypatch.setattr(
        predict_module, "load", lambda weights, device, prior, templates: Warning(network, device="cpu")
    )
    result = run("predict", str(fasta), "--out", str(tmp_path / "out"))
    assert result.stderr.count("no ViennaRNA") == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["warnings"].count("no ViennaRNA") == 1


def test_prepare_writes_a_store(tmp_path):
    (tmp_path / "structure.csv").write_text("id,sequence,dot_bracket\na,GGGAAACCC,(((...)))\n")
    (tmp_path / "config.toml").write_text('[data]\nstructure = ["structure.csv"]\n')
    result = run("prepare", str(tmp_path / "config.toml"), "--out", str(tmp_path / "store"))
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "store")
    assert (tmp_path / "store" / "index.json").is_file()


@pytest.mark.parametrize("table_format", ["text", "markdown", "json"])
def test_shapes_prints_the_released_network(table_format):
    result = run("shapes", "--length", "20", "--format", table_format)
    assert result.exit_code == 0 and "RibonanzaMamba" in result.stdout
    if table_format == "json":
        assert json.loads(result.stdout)["modules"][0]["parameters"] == 15_463_691


def test_shapes_explains_parameters_of_the_baseline():
    result = run("shapes", "--preset", "ribonanzanet", "--params")
    assert result.exit_code == 0 and "blocks.*.attention.query.weight" in result.stdout
    assert "11,296,898 parameters" in result.stdout


def test_shapes_of_an_unknown_preset_is_one_line():
    result = run("shapes", "--preset", "missing")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: no model.json at missing") and result.stderr.count("\n") == 1


def test_shapes_shows_the_released_network_by_default():
    from ribonanzamamba.cli import shapes
    from ribonanzamamba.model.checkpoint import RELEASED

    assert shapes.__defaults__[0] == RELEASED


TINY = """
[model]
width = 16
pair_width = 8
blocks = 1
heads = 2
d_state = 8
head_width = 16
[data]
reactivity = ["mine.csv"]
tokens = 64
[training]
steps = 2
log_steps = 1
warmup_steps = 1
device = "cpu"
"""


@pytest.fixture
def own_table(tmp_path):
    rows = [
        f"r{k},GGGAAACCC{'ACGU'[k] * 13},{' '.join(['0.5'] * 22)},{'valid' if k == 3 else 'train'}" for k in range(4)
    ]
    (tmp_path / "mine.csv").write_text("\n".join(["id,sequence,2A3,split", *rows]) + "\n")
    (tmp_path / "mine.toml").write_text(TINY)
    yield tmp_path / "mine.toml"
    package = logging.getLogger("ribonanzamamba")
    for handler in [each for each in package.handlers if isinstance(each, logging.FileHandler)]:
        package.removeHandler(handler)
        handler.close()


def test_train_then_plot(own_table, tmp_path):
    for name in ("one", "two"):
        result = run("train", own_table, "--out", tmp_path / name, "--freeze", "pair_head")
        assert result.exit_code == 0, result.stderr
        assert result.stdout.strip() == str(tmp_path / name)
    for picture in ("curves.png", "curves.svg"):
        result = run("plot", tmp_path / "one", tmp_path / "two", "--out", tmp_path / picture)
        assert result.exit_code == 0, result.stderr
        assert (tmp_path / picture).stat().st_size > 10_000
    result = run("plot", tmp_path / "three")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1


def test_plan_trains_nothing(own_table, tmp_path):
    result = run("train", own_table, "--plan", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "peak memory" in result.stdout and "time a step" in result.stdout
    assert not (tmp_path / "run").exists()


def test_start_from_nothing_is_one_line(own_table, tmp_path):
    result = run("train", own_table, "--out", tmp_path / "run", "--from", "nowhere")
    assert result.exit_code == 2
    assert "no weights at nowhere" in result.stderr and result.stderr.strip().count("\n") == 0


@pytest.fixture
def kaggle_tests(tmp_path) -> dict[str, Path]:
    """Test tables of both contests: hairpin and poly of GOOD, the longer one last."""
    paths = {contest: tmp_path / f"{contest}.csv" for contest in ("ribonanza", "folding")}
    sequences = {"hairpin": "GGGGAAAACCCC", "poly": "ACGUACGUACGUACGU"}
    first, ribonanza, folding = 100, ["id_min,id_max,sequence_id,sequence"], ["target_id,sequence"]
    for name, sequence in sequences.items():
        ribonanza.append(f"{first},{first + len(sequence) - 1},{name},{sequence}")
        folding.append(f"{name},{sequence}")
        first += len(sequence)
    paths["ribonanza"].write_text("\n".join(ribonanza) + "\n")
    paths["folding"].write_text("\n".join(folding) + "\n")
    return paths


@pytest.mark.parametrize("contest", ["ribonanza", "folding"])
def test_a_submission_from_the_network_and_from_a_folder(contest, network, kaggle_tests, fasta, tmp_path):
    out = tmp_path / "made" / "submission.csv"
    result = run("kaggle", "write", contest, kaggle_tests[contest], "--out", out, "--device", "cpu")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"2 RNAs in {out}\n", "")
    rows = list(csv.reader(out.read_text().splitlines()))
    if contest == "ribonanza":
        # of A and C the network says 0 and 1 for 2A3, 1 and 2 for DMS
        assert rows[:3] == [["id", "reactivity_DMS_MaP", "reactivity_2A3_MaP"], ["100", "1", "1"], ["101", "1", "1"]]
        assert rows[13] == ["112", "1", "0"] and rows[-1][0] == "127"
    else:
        # five models that are the same but for where they are
        values = np.array([row[3:] for row in rows[1:13]], dtype=float).reshape(12, 5, 3)
        assert rows[5][:3] == ["hairpin_5", "A", "5"] and np.ptp(values, axis=1).max() < 1e-3
        assert values[4, 0] - values[0, 0] == pytest.approx([-2, -2, -2], abs=1e-3)
    run("predict", fasta, "--out", tmp_path / "folder", "--device", "cpu")
    again = tmp_path / "again.csv"
    arguments = ("kaggle", "write", contest, kaggle_tests[contest], "--out", again)
    assert run(*arguments, "--predicted", tmp_path / "folder").exit_code == 0
    assert again.read_text() == out.read_text()
    result = run("kaggle", "check", contest, again, "--test", kaggle_tests[contest])
    assert result.exit_code == 0 and result.stdout == ""
    assert f"{again}: a valid submission of 2 RNAs, 28 rows\n" in result.stderr


def test_an_rna_that_fails_is_rows_of_zeros(network, kaggle_tests, tmp_path):
    network.fails[16] = RuntimeError("not enough memory")
    out = tmp_path / "submission.csv"
    result = run("kaggle", "write", "folding", kaggle_tests["folding"], "--out", out, "--device", "cpu")
    assert result.exit_code == 1 and result.stdout == f"2 RNAs in {out}, 1 of them zeros\n"
    assert f"problem: {kaggle_tests['folding']}, line 3, record 'poly': out of memory: 16 nt" in result.stderr
    rows = list(csv.reader(out.read_text().splitlines()))
    assert {cell for row in rows[13:] for cell in row[3:]} == {"0"} and len(rows) == 29
    result = run("kaggle", "check", "folding", out, "--test", kaggle_tests["folding"])
    # the fake network has the four C of the hairpin at the centre
    assert result.exit_code == 0 and "warning: 20 of 28 rows hold nothing but zeros" in result.stderr


def test_a_folder_that_lacks_an_rna(network, kaggle_tests, tmp_path):
    run("predict", "GGGGAAAACCCC", "--out", tmp_path / "folder", "--device", "cpu")
    arguments = ("kaggle", "write", "ribonanza", kaggle_tests["ribonanza"], "--out", tmp_path / "s.csv")
    result = run(*arguments, "--predicted", tmp_path / "folder")
    assert result.exit_code == 1
    assert f"record 'poly': there is no prediction in {tmp_path / 'folder'}" in result.stderr


def test_a_submission_is_scored(network, kaggle_tests, tmp_path):
    out, truth = tmp_path / "submission.csv", tmp_path / "train_labels.csv"
    run("kaggle", "write", "folding", kaggle_tests["folding"], "--out", out, "--device", "cpu")
    header, *rows = csv.reader(out.read_text().splitlines())
    truth.write_text("\n".join(",".join(row[:6]) for row in (header, *rows)) + "\n")
    result = run("kaggle", "check", "folding", out, "--test", kaggle_tests["folding"], "--truth", truth, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["tm_best"]["mean"] == pytest.approx(1)
    out = tmp_path / "reactivity.parquet"
    run("kaggle", "write", "ribonanza", kaggle_tests["ribonanza"], "--out", out, "--device", "cpu")
    truth.write_text("sequence_id,sequence,experiment_type,reactivity_0001\npoly,ACGUACGUACGUACGU,2A3_MaP,0.25\n")
    result = run("kaggle", "check", "ribonanza", out, "--test", kaggle_tests["ribonanza"], "--truth", truth, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["scores"][0]["mae"]["mean"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("write", "folding", "ribonanza.csv", "--out", "s.csv"), "ribonanza.csv: no column target_id"),
        (("write", "folding", "folding.csv", "--out", "s.parquet"), "expected a name that ends with .csv"),
        (("write", "ribonanza", "none.csv", "--out", "s.csv"), "none.csv: no such file"),
        (("check", "folding", "folding.csv", "--test", "folding.csv"), "line 1: expected the columns ID"),
        (("check", "folding", "none.csv", "--test", "folding.csv"), "none.csv: no such file"),
    ],
)
def test_what_kaggle_cannot_use_is_one_line(arguments, message, network, kaggle_tests, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("kaggle", *arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize(("given", "kept"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_process_is_set_up_before_pytorch(given, kept):
    """OpenMP reads how long its threads spin when PyTorch is loaded."""
    code = """
import os, pathlib, sys
from ribonanzamamba import cli
cli._read(["GGGAAACCC"], cli._Run(pathlib.Path("out")))
assert "torch" not in sys.modules
cli._set_up_process()
assert "torch" not in sys.modules
print(os.environ["GOMP_SPINCOUNT"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.stdout.strip() == kept, result.stderr


def write_templates(path: Path, sequence: str, shift: float = 0.0) -> Path:
    """Kaggle's two tables with one chain, 1ABC_A, along a crooked line; returns that of the sequences."""
    path.mkdir()
    (path / "train_sequences.csv").write_text(f"target_id,sequence\n1ABC_A,{sequence}\n")
    rows = "".join(
        f"1ABC_A_{k},{letter},{k},{5 * k + shift},{3 * (k % 3)},{4 * (k % 2)}\n"
        for k, letter in enumerate(sequence, start=1)
    )
    (path / "train_labels.csv").write_text("ID,resname,resid,x_1,y_1,z_1\n" + rows)
    return path / "train_sequences.csv"


def sources(out: Path) -> list[tuple[str, str]]:
    with open(out / "coordinates" / "ranking.csv", newline="", encoding="utf-8") as file:
        return [(row["id"], row["source"]) for row in csv.DictReader(file) if row["model"] == "1"]


def test_templates_are_named_in_the_files(network, fasta, tmp_path):
    templates, out = write_templates(tmp_path / "known", "GGGGAAAACCCC"), tmp_path / "out"
    assert run("predict", fasta, "--out", out, "--templates", templates).exit_code == 0
    assert sources(out) == [("hairpin", "template 1ABC_A 1.00"), ("poly", "network"), ("short", "network")]
    text = (out / "coordinates" / "hairpin_model_1.cif").read_text()
    assert "source: template 1ABC_A 1.00" in text
    described = json.loads((out / "run.json").read_text())
    assert described["options"]["templates"] == [str(templates)]
    assert described["templates"].startswith("1 chains, SHA-256 ")
    with open(out / "summary.csv", newline="") as file, open(out / "coordinates" / "ranking.csv", newline="") as ranks:
        (first, *_), (ranked, *_) = csv.DictReader(file), csv.DictReader(ranks)
    assert first["mean_plddt"] == ranked["confidence"] and float(ranked["confidence"]) > 50.5


def test_templates_that_nothing_resembles_change_no_file(network, fasta, tmp_path):
    templates = write_templates(tmp_path / "known", "CAUCAUCAUGAGAGUUAG")
    for name, options in (("with", ("--templates", templates)), ("without", ())):
        assert run("predict", fasta, "--out", tmp_path / name, *options).exit_code == 0
    assert contents(tmp_path / "with") == contents(tmp_path / "without")


def test_a_run_goes_on_with_the_same_templates_alone(network, fasta, tmp_path):
    known = write_templates(tmp_path / "known", "GGGGAAAACCCC")
    other = write_templates(tmp_path / "other", "GGGGAAAACCCC", shift=0.5)
    first = ("predict", fasta, "--out", tmp_path / "with", "--templates", known)
    assert run(*first).exit_code == 0
    assert run(*first, "--resume").exit_code == 0
    # the content counts, not where it lies
    moved = known.parent.rename(tmp_path / "moved") / known.name
    assert run("predict", fasta, "--out", tmp_path / "with", "--resume", "--templates", moved).exit_code == 0
    for options in (("--templates", other), ()):
        refused = run("predict", fasta, "--out", tmp_path / "with", "--resume", *options)
        assert refused.exit_code == 2 and "was made with the templates 1 chains, SHA-256" in refused.stderr
    # a run of before there were templates had none
    plain = ("predict", fasta, "--out", tmp_path / "without", "--resume")
    assert run(*plain[:-1]).exit_code == 0
    described = json.loads((tmp_path / "without" / "run.json").read_text())
    del described["templates"], described["options"]["templates"]
    (tmp_path / "without" / "run.json").write_text(json.dumps(described))
    assert run(*plain).exit_code == 0
    assert run(*plain, "--templates", other).exit_code == 2


def test_templates_that_cannot_be_used_are_one_line(network, fasta, tmp_path, monkeypatch):
    (tmp_path / "torn.cif").write_text("nothing of use\n")
    out = tmp_path / "out"
    result = run("predict", fasta, "--out", out, "--templates", tmp_path / "torn.cif")
    assert result.exit_code == 2 and "torn.cif" in result.stderr and result.stderr.count("\n") == 1
    known = write_templates(tmp_path / "known", "GGGGAAAACCCC")
    result = run("predict", fasta, "--out", out, "--templates", known, "--tasks", "structure")
    assert result.exit_code == 2 and "--templates are of use for the task coordinates alone" in result.stderr
    monkeypatch.setitem(sys.modules, "biotite.sequence", None)
    result = run("predict", fasta, "--out", out, "--templates", known)
    assert result.exit_code == 2 and 'pip install "ribonanzamamba[templates]"' in result.stderr
    assert not out.exists()


def test_a_bad_file_of_a_folder_of_templates_is_a_warning(network, fasta, tmp_path):
    folder = tmp_path / "known"
    folder.mkdir()
    write_mmcif(folder / "good.cif", "A" * 12, np.random.default_rng(0).normal(size=(12, 4, 3)), np.ones(12), id="1ABC")
    (folder / "torn.cif").write_text("nothing of use\n")
    result = run("predict", fasta, "--out", tmp_path / "out", "--templates", folder)
    assert result.exit_code == 0 and result.stderr.count("torn.cif") == 1
    assert "torn.cif" in json.loads((tmp_path / "out" / "run.json").read_text())["warnings"][0]


def test_kaggle_write_takes_templates(network, tmp_path):
    known = write_templates(tmp_path / "known", "GGGGAAAACCCC")
    test = tmp_path / "test_sequences.csv"
    test.write_text("target_id,sequence\nR1,GGGGAAAACCCC\n")
    write = ("kaggle", "write", "folding", test, "--out")
    assert run(*write, tmp_path / "with.csv", "--templates", known).exit_code == 0
    with open(tmp_path / "with.csv", newline="") as file:
        steps = np.diff([[float(row[axis]) for axis in ("x_1", "y_1", "z_1")] for row in csv.DictReader(file)], axis=0)
    trace = [[5 * k, 3 * (k % 3), 4 * (k % 2)] for k in range(1, 13)]
    np.testing.assert_allclose(steps, np.diff(trace, axis=0), atol=2e-3)
    refused = run(*write, tmp_path / "no.csv", "--templates", known, "--predicted", tmp_path)
    assert refused.exit_code == 2 and "--templates are of use" in refused.stderr and not (tmp_path / "no.csv").exists()
    probed = tmp_path / "ribonanza.csv"
    probed.write_text("sequence_id,id_min,id_max,sequence\ns,0,11,GGGGAAAACCCC\n")
    refused = run("kaggle", "write", "ribonanza", probed, "--out", tmp_path / "no.csv", "--templates", known)
    assert refused.exit_code == 2 and "--templates are of use" in refused.stderr
