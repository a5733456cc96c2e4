"""`read_config`: what a run's TOML file may say, and how a mistake in it is answered."""

import json
from pathlib import Path

import pytest

from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.training.battle import read_battle
from ribonanzamamba.training.config import Config, config_from_dict, read_config

CONFIGS = Path(__file__).parents[2] / "configs"


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_empty_file_gives_the_defaults(tmp_path):
    assert read_config(written(tmp_path, "")) == Config()


def test_values_reach_their_fields(tmp_path):
    text = 'name = "mine"\n[model]\nwidth = 64\nkernels = [3, 9]\n[training]\nlearning_rate = 1\nbfloat16 = false\n'
    config = read_config(written(tmp_path, text + "[loss]\nstructure = 0.5\n"))
    assert config.name == "mine" and config.model == ModelConfig(width=64, kernels=(3, 9))
    assert config.training.learning_rate == 1.0 and isinstance(config.training.learning_rate, float)
    assert config.training.bfloat16 is False and config.loss.structure == 0.5


def test_tables_are_relative_to_the_file(tmp_path):
    text = '[data]\nreactivity = ["a.parquet", "sub/b.parquet", "/far/c.parquet"]\nstructure = ["../d.parquet"]\n'
    data = read_config(written(tmp_path, text)).data
    assert data.reactivity == (str(tmp_path / "a.parquet"), str(tmp_path / "sub/b.parquet"), "/far/c.parquet")
    assert data.structure == (str(tmp_path / "../d.parquet"),)
    assert data.coordinates == ()


def test_overrides_win(tmp_path):
    path = written(tmp_path, "[training]\nsteps = 5\nseed = 1\n")
    overrides = ["training.steps=7", "training.device=cpu", "model.kernels=[3, 5]", 'data.structure=["x.csv"]']
    config = read_config(path, [*overrides, "training.learning_rate=3e-4"])
    assert (config.training.steps, config.training.seed, config.training.device) == (7, 1, "cpu")
    assert config.model.kernels == (3, 5) and config.training.learning_rate == 3e-4
    assert config.data.structure == (str(tmp_path / "x.csv"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer]\nlr = 1", r"unknown sections \['optimizer'\]; known are .*'training'"),
        ("[training]\nlr = 1.0", "training: unknown key 'lr'; known are .*'learning_rate'"),
        ("[model]\ndepth = 3", "model: unknown key 'depth'; known are .*'blocks'"),
        ("[data]\nfiles = []", "data: unknown key 'files'"),
        ("[training]\nsteps = 2.5", "training.steps: expected int, got 2.5"),
        ('[training]\nsteps = "9"', "training.steps: expected int, got '9'"),
        ("[training]\nsteps = true", "training.steps: expected int, got True"),
        ("[training]\nlearning_rate = true", "training.learning_rate: expected float, got True"),
        ("[training]\nbfloat16 = 1", "training.bfloat16: expected bool, got 1"),
        ('[model]\nwidth = "wide"', "model.width: expected int, got 'wide'"),
        ('[data]\nreactivity = "a.parquet"', "data.reactivity: expected tuple, got 'a.parquet'"),
        ("[training\n", "run.toml: "),
    ],
    ids=[
        "section", "key", "model-key", "data-key", "float-for-int", "text-for-int", "bool-for-int", "bool-for-float",
        "int-for-bool", "model-type", "text-for-list", "no-toml",
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_config(written(tmp_path, text))


@pytest.mark.parametrize("override", ["steps=3", "training.steps", "training"])
def test_override_without_section_or_value(tmp_path, override):
    with pytest.raises(ValueError, match=f"--set {override}: expected section.key=value"):
        read_config(written(tmp_path, ""), [override])


def test_override_of_an_unknown_key(tmp_path):
    with pytest.raises(ValueError, match="training: unknown key 'speed'"):
        read_config(written(tmp_path, ""), ["training.speed=3"])


def test_round_trip_through_json():
    config = config_from_dict({"name": "x", "model": {"width": 64}, "data": {"structure": ["a", "b"]}})
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_our_configs_can_be_read(path):
    # configs of a battle begin with its name
    read_battle(path) if path.stem.startswith("battle") else read_config(path)
