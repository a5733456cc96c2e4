"""A battle in small: who fights how long, runs that are finished, stopped or missing, and the report."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from torch._subclasses.fake_tensor import FakeTensorMode
from typer.testing import CliRunner

from ribonanzamamba.cli import app
from ribonanzamamba.data.reactivity_table import read_reactivity_table
from ribonanzamamba.training import battle as battle_module
from ribonanzamamba.training.battle import fight, read_battle
from ribonanzamamba.training.battle_report import REPORT, score, write_report
from ribonanzamamba.training.battle_result import RunKey, join_measurements, join_predictions, read_result
from ribonanzamamba.training.tables import prepare_store

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "battle_tiny.toml"


@pytest.fixture(autouse=True)
def log_files_closed():
    yield
    package = logging.getLogger("ribonanzamamba")
    for handler in [each for each in package.handlers if isinstance(each, logging.FileHandler)]:
        package.removeHandler(handler)
        handler.close()


@pytest.fixture
def overrides(tables) -> list[str]:
    return [f'data.reactivity=["{tables / "reactivity.parquet"}"]']


def test_the_command_trains_all_and_reports(overrides, tmp_path):
    arguments = ["battle", str(TINY), "--out", str(tmp_path / "out"), "--set", overrides[0]]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "out" / REPORT)
    text = (tmp_path / "out" / REPORT).read_text()
    assert "All 8 runs are finished." in text and "Missing" not in text
    for part in ("## 2 epochs", "## 0.005 minutes", "### DMS", "S/N 5-20", "1-120 nt", "### Ablations"):
        assert part in text, part
    assert "### Every experiment apart" in text
    assert (tmp_path / "out" / "pictures" / "curves-2-epochs.svg").is_file()
    # once more: everything is finished
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out" / "results").rglob("*.json"))
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out" / "results").rglob("*.json"))


def test_chosen_runs_and_what_is_missing(overrides, tmp_path):
    battle = read_battle(TINY, overrides)
    only = ["ribonanzanet:2-epochs:0", "ribonanzamamba:2-epochs:1"]
    keys = list(fight(battle, tmp_path, only))
    assert keys == [RunKey("ribonanzanet", "2-epochs", 0), RunKey("ribonanzamamba", "2-epochs", 1)]
    text = write_report(battle, tmp_path).read_text()
    assert "Missing: ribonanzamamba:2-epochs:0, " in text and "ribonanzanet:2-epochs:1, " in text
    assert "without-mamba:2-epochs:0/1" in text and "## 0.005 minutes" not in text
    with pytest.raises(ValueError, match="--only nobody: no such run"):
        battle.keys(["nobody"])


def test_a_report_says_where_minutes_are_not_the_same(overrides, tmp_path):
    battle = read_battle(TINY, overrides)
    names = [each.name for each in battle.contestants]
    keys = list(
        fight(
            battle, tmp_path, [f"{name}:{budget}:0" for name in names[:2] for budget in ("2-epochs", "0.005-minutes")]
        )
    )
    assert "Different cards" not in write_report(battle, tmp_path).read_text()
    for key in keys:
        if key.contestant == names[1]:
            path = next((tmp_path / "results").glob(f"{names[1]}--{key.budget}--*")) / "result.json"
            result = json.loads(path.read_text())
            result["hardware"]["device"] = "another card"
            path.write_text(json.dumps(result))
    epochs, minutes = write_report(battle, tmp_path).read_text().split("## 0.005 minutes")
    assert "Different cards" not in epochs
    assert "**Different cards, on which a minute is not the same.**" in minutes
    assert f"another card: {names[1]}." in minutes


def test_runs_on_several_gpus_side_by_side(overrides, tmp_path):
    """On a machine without one they run on its CPU all the same."""
    out = tmp_path / "out"
    list(fight(read_battle(TINY, overrides), out, ["without-mamba:2-epochs:0"]))
    arguments = ["battle", str(TINY), "--out", str(out), "--devices", "0,1", "--set", overrides[0]]
    arguments += ["--only", "without-mamba:2-epochs:0", "--only", "ribonanzamamba:2-epochs:0"]
    done = CliRunner().invoke(app, [*arguments, "--only", "ribonanzanet:2-epochs:0"])
    assert done.exit_code == 0, done.output
    for name in ("ribonanzamamba", "ribonanzanet"):
        assert f"finished: {name}--2-epochs--seed0" in done.stderr
    # what is finished gets no process
    assert "GPU 0: ribonanzanet" in done.stderr and "GPU 1: ribonanzamamba" in done.stderr
    assert "without-mamba--2-epochs--seed0 is finished already" in done.stderr
    assert not (out / "logs" / "without-mamba--2-epochs--seed0.log").exists()
    assert "3 runs are finished." in (out / REPORT).read_text()
    # a table that is not there: the run fails, its reason is in its log
    broken = ["battle", str(TINY), "--out", str(tmp_path / "no"), "--devices", "0", "--no-report"]
    broken += ["--only", "ribonanzanet:2-epochs:0", "--set", 'data.reactivity=["nowhere.parquet"]']
    done = CliRunner().invoke(app, broken)
    assert done.exit_code == 1 and "ribonanzanet--2-epochs--seed0 failed with exit code 2" in done.stderr
    wrong = CliRunner().invoke(app, [*broken, "--devices", "0,"])
    assert wrong.exit_code == 2 and "--devices '0,': expected GPUs apart by commas" in wrong.stderr
    assert "nowhere.parquet" in (tmp_path / "no" / "logs" / "ribonanzanet--2-epochs--seed0.log").read_text()


def test_a_result_holds_all_that_a_report_needs(overrides, tables, tmp_path):
    battle = read_battle(TINY, overrides)
    [key] = list(fight(battle, tmp_path, ["ribonanzanet:2-epochs:1"]))
    result = read_result(tmp_path, key)
    # 6 training RNAs, batches of 3
    assert (result.steps, result.epochs) == (4, 2.0) and result.both_directions
    assert result.settings["model"]["weak_attention_mask"] and result.settings["training"]["seed"] == 1
    assert result.curve["epochs"] == [0.5, 1.0, 1.5, 2.0] and len(result.curve["DMS"]) == 4
    assert result.memory_gib is None and result.rnas_per_second > 0 and result.warm_up_seconds > 0
    examples = read_reactivity_table(tables / "reactivity.parquet", "valid", probes=("2A3", "DMS"))
    measured = join_measurements(examples, ("2A3", "DMS"))
    scored = score([result], measured)
    by_hand = np.concatenate([example.reactivity[:, 1] for example in examples]).astype(np.float64)
    predicted = result.predictions.reactivity[:, 1].astype(np.float64)
    used = np.isfinite(by_hand)
    expected = np.abs(by_hand.clip(0, 1) - predicted)[used].mean()
    assert scored.mae("ribonanzanet", scored.cells.probe == "DMS") == pytest.approx(expected)
    others = join_measurements(examples[::-1], ("2A3", "DMS"))
    with pytest.raises(ValueError, match="ribonanzanet, 2-epochs, seed 1: predictions of other held-out RNAs"):
        score([result], others)


def test_predictions_are_kept_in_fine_steps(tables):
    examples = read_reactivity_table(tables / "reactivity.parquet", "valid", probes=("2A3", "DMS"))
    rng = np.random.default_rng(0)
    values = [rng.uniform(-0.2, 1.3, (example.length, 2)).astype(np.float32) for example in examples]
    kept = join_predictions(examples, values, ("2A3", "DMS"))
    assert np.abs(kept.reactivity - np.concatenate(values).clip(0, 1)).max() <= 0.5 / 255 + 1e-6
    values[1][3, 0] = np.nan
    with pytest.raises(ValueError, match=f"values for {examples[1].id} that are not finite"):
        join_predictions(examples, values, ("2A3", "DMS"))


def test_all_contestants_get_the_same_batches(overrides):
    battle = read_battle(TINY, overrides)
    configs = [
        battle.run_config(key, 2) for key in battle.keys(["ribonanzanet:2-epochs:0", "ribonanzamamba:2-epochs:0"])
    ]
    assert {(each.training.steps, each.training.seed, each.training.steps_only) for each in configs} == {(4, 0, True)}
    assert configs[0].training.optimizer == "radam" and configs[1].training.optimizer == "muon"
    timed = battle.run_config(RunKey("ribonanzamamba", "0.005-minutes", 0), 2)
    assert timed.training.minutes == 0.005 and timed.training.steps > 1e6


def test_a_stopped_battle_goes_on(overrides, tmp_path, monkeypatch):
    battle = read_battle(TINY, overrides)
    whole = list(fight(battle, tmp_path / "whole", ["ribonanzamamba:2-epochs:0"]))[0]

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # after the training, before its result is there
        patch.setattr(battle_module, "collect_result", killed)
        with pytest.raises(KeyboardInterrupt):
            list(fight(battle, tmp_path / "cut", ["ribonanzamamba:2-epochs:0"]))
    assert read_result(tmp_path / "cut", whole) is None
    list(fight(battle, tmp_path / "cut", ["ribonanzamamba:2-epochs:0"]))
    one, other = (read_result(tmp_path / name, whole).predictions.levels for name in ("whole", "cut"))
    assert np.array_equal(one, other)


def test_a_store_takes_the_place_of_the_tables(tables, overrides, tmp_path):
    """The store holds more tables than the battle uses; the tables themselves are not there."""
    (tables / "all.toml").write_text('[data]\nreactivity = ["reactivity.parquet"]\nstructure = ["structure.parquet"]\n')
    prepare_store(tables / "all.toml", tmp_path / "store")
    elsewhere = [f'data.store="{tmp_path / "store"}"', 'data.reactivity=["elsewhere/reactivity.parquet"]']
    list(fight(read_battle(TINY, overrides), tmp_path / "out", ["without-mamba:2-epochs:0"]))
    list(fight(read_battle(TINY, elsewhere), tmp_path / "other", ["without-mamba:2-epochs:0"]))
    key = RunKey("without-mamba", "2-epochs", 0)
    one, other = (read_result(tmp_path / name, key).predictions for name in ("out", "other"))
    assert np.array_equal(one.levels, other.levels)
    # on another machine it counts as the same run
    assert list(fight(read_battle(TINY, elsewhere), tmp_path / "out", ["without-mamba:2-epochs:0"])) == [key]
    text = write_report(read_battle(TINY, elsewhere), tmp_path / "other").read_text()
    assert "### Every experiment apart" not in text


def test_results_hold_nothing_of_the_data_or_the_machine(overrides, tables, tmp_path):
    [key] = list(fight(read_battle(TINY, overrides), tmp_path, ["without-mamba:2-epochs:0"]))
    folder = tmp_path / "results" / key.folder
    assert str(tables) not in (folder / "result.json").read_text()
    with np.load(folder / "predictions.npz") as arrays:
        assert sorted(arrays) == ["ids", "lengths", "levels", "probes"]


def test_a_result_of_other_settings_is_refused(overrides, tmp_path):
    only = ["without-mamba:2-epochs:0"]
    list(fight(read_battle(TINY, overrides), tmp_path, only))
    with pytest.raises(ValueError, match="training.learning_rate was 0.001, is 0.5"):
        list(fight(read_battle(TINY, [*overrides, "training.learning_rate=0.5"]), tmp_path, only))


def test_runs_of_one_contestant_may_differ_in_how_their_sums_are_done(overrides, tmp_path):
    only = ["ribonanzanet:2-epochs:0"]
    [key] = list(fight(read_battle(TINY, overrides), tmp_path, only))
    text = TINY.read_text()
    settings = 'training = { optimizer = "radam", decay = "cosine", decay_share = 0.3, warmup_steps = 0, pass_examples'
    assert text.count("triangle_width = 8 }") == text.count(f"{settings} = 2 }}") == 1
    text = text.replace("triangle_width = 8 }", 'triangle_width = 8, outer_product = "contracted" }')
    other = tmp_path / "other.toml"
    other.write_text(text.replace(f"{settings} = 2 }}", f"{settings} = 3 }}"))
    assert list(fight(read_battle(other, overrides), tmp_path, only)) == [key]
    # padding is seen by the published network, and by no other
    padded = [*overrides, "data.pad_multiple=4"]
    with pytest.raises(ValueError, match="data.pad_multiple was 8, is 4"):
        list(fight(read_battle(TINY, padded), tmp_path, only))
    fixed = tmp_path / "fixed.toml"
    fixed.write_text(TINY.read_text().replace("as_published = true, ", ""))
    battles = [read_battle(fixed, each) for each in (overrides, padded)]
    assert [list(fight(battle, tmp_path / "fixed", only)) for battle in battles] == [[key], [key]]


def test_a_result_from_before_a_setting_existed_counts(overrides, tmp_path):
    only = ["without-mamba:2-epochs:0"]
    battle = read_battle(TINY, overrides)
    [key] = list(fight(battle, tmp_path, only))
    path = tmp_path / "results" / key.folder / "result.json"
    values = json.loads(path.read_text())
    # one that stands at its default, and one that the TOML changes
    del values["settings"]["model"]["pair_scans"]
    path.write_text(json.dumps(values))
    assert list(fight(battle, tmp_path, only)) == [key]
    del values["settings"]["model"]["width"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="model.width was 256, is 16"):
        list(fight(battle, tmp_path, only))


def test_no_report_without_a_result(overrides, tmp_path):
    with pytest.raises(ValueError, match="no finished run yet"):
        write_report(read_battle(TINY, overrides), tmp_path)


BUDGET = "[data]\nbatch_examples = 2\n[[budget]]\nepochs = 1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[budget]]\nepochs = 1\n", "at least one"),
        (BUDGET + '[[contestant]]\nname = "a"\n[[contestant]]\nname = "a"\n', "different names"),
        (BUDGET + '[[contestant]]\nname = "a"\narchitecture = "transformer"\n', "expected an architecture"),
        (BUDGET + '[[contestant]]\nname = "a"\nablation_of = "b"\n', "ablation_of names no contestant before it: 'b'"),
        (BUDGET + '[[contestant]]\nname = "a/b"\n', "names of letters"),
        (BUDGET + '[[contestant]]\nname = "a"\nbudgets = ["2-epochs"]\n', "unknown budgets"),
        (BUDGET + '[[contestant]]\nname = "a"\nmodel.depth = 3\n', "unknown key 'depth'"),
        (
            BUDGET + '[[contestant]]\nname = "a"\n[[contestant]]\nname = "b"\ndata.batch_examples = 3\n',
            "the same tables",
        ),
        (BUDGET.replace("batch_examples = 2", "") + '[[contestant]]\nname = "a"\n', "batch_examples"),
        (BUDGET + "minutes = 1\n[[contestant]]\nname = 'a'\n", "epochs or minutes"),
        (BUDGET + '[plots]\nwide = true\n[[contestant]]\nname = "a"\n', "unknown sections"),
    ],
)
def test_what_cannot_be_compared_is_refused(text, message, tmp_path):
    path = tmp_path / "battle.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_battle(path)


def test_an_ablation_has_the_settings_of_what_it_is_an_ablation_of(tmp_path):
    path = tmp_path / "battle.toml"
    net = '[[contestant]]\nname = "a"\narchitecture = "ribonanzanet"\nmodel = { layers = 3, heads = 4 }\n'
    two = '[[contestant]]\nname = "b"\nablation_of = "a"\nmodel = { heads = 2 }\ntraining.optimizer = "radam"\n'
    three = '[[contestant]]\nname = "c"\nablation_of = "b"\nmodel = { layers = 2 }\n'
    path.write_text(BUDGET + net + two + three)
    battle = read_battle(path)
    assert [each.architecture for each in battle.contestants] == ["ribonanzanet"] * 3
    assert [(each.model.layers, each.model.heads) for each in battle.contestants] == [(3, 4), (3, 2), (2, 2)]
    assert [each.config.training.optimizer for each in battle.contestants] == ["muon", "radam", "radam"]


def test_the_command_line_wins(tmp_path):
    path = tmp_path / "battle.toml"
    path.write_text(BUDGET + '[[contestant]]\nname = "a"\ntraining.fuse = true\n')
    assert read_battle(path).contestants[0].config.training.fuse
    assert not read_battle(path, ["training.fuse=false"]).contestants[0].config.training.fuse


def test_results_are_plain_json(overrides, tmp_path):
    list(fight(read_battle(TINY, overrides), tmp_path, ["without-mamba:2-epochs:0"]))
    values = json.loads((tmp_path / "results" / "without-mamba--2-epochs--seed0" / "result.json").read_text())
    assert values["contestant"] == "without-mamba" and set(values["hardware"]) >= {"device", "torch"}


def test_the_battle_of_the_repository_can_be_read():
    battle = read_battle(ROOT / "configs" / "battle.toml")
    assert [budget.key for budget in battle.budgets] == ["6-epochs", "16-epochs", "10-minutes", "1-minutes"]
    # 15,232 sequences in batches of 64
    config = battle.run_config(RunKey("ribonanzanet-published", "16-epochs", 0), 238)
    assert config.training.steps == 3808 and config.training.optimizer == "radam"
    published, fixed = (battle.contestant(f"ribonanzanet-{name}") for name in ("published", "fixed"))
    assert published.model.weak_attention_mask and not fixed.model.weak_attention_mask
    assert published.build(config).blocks[0].double_residual
    ablations = [contestant for contestant in battle.contestants if contestant.ablation_of]
    assert len(ablations) >= 20 and sum("1-minutes" in each.budgets for each in ablations) >= 18
    # what they do not change is as in what they are ablations of
    taught, without = (battle.contestant(f"ribonanzamamba-{name}") for name in ("taught", "no-prior"))
    assert battle.contestant("deep").config.loss == taught.config.loss != without.config.loss
    assert battle.contestant("no-mamba").config.loss == without.config.loss
    assert dataclasses.replace(battle.contestant("state-64").model, d_state=32) == taught.model
    # the shape of every one can be
    for contestant in ablations:
        with FakeTensorMode():
            contestant.build(config)
