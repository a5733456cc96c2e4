"""The traffic example: its split, its baselines by hand, and a short run of every network."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

FILE = Path(__file__).parents[2] / "examples" / "traffic" / "traffic.py"


@pytest.fixture(scope="module")
def traffic():
    spec = importlib.util.spec_from_file_location("traffic", FILE)
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    sys.modules["traffic"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["traffic"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five days of four detectors with a daily wave, on disk as the real data are."""
    rng = np.random.default_rng(0)
    step = np.arange(5 * 288)
    values = 50 + 10 * np.sin(2 * np.pi * step / 288)[:, None] + rng.normal(0, 2, (len(step), 4))
    folder = tmp_path_factory.mktemp("traffic")
    columns = {f"detector{k}": values[:, k].astype(np.float32) for k in range(4)}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "los_speed.parquet")
    return folder


def test_split(traffic, folder):
    speeds = traffic.read_speeds(folder)
    assert speeds.values.shape == (1440, 4) and speeds.boundary == 1152
    training, test = speeds.starts(test=False), speeds.starts(test=True)
    assert training[0] == 0 and training[-1] + 24 == speeds.boundary
    assert test[0] + 12 == speeds.boundary and test[-1] + 24 == len(speeds.values)
    validation = traffic.read_speeds(folder, validate=True)
    assert len(validation.values) == speeds.boundary and validation.boundary == int(0.85 * 1152)


def test_nothing_of_the_test_is_in_the_average(traffic, folder):
    speeds = traffic.read_speeds(folder)
    changed = traffic.Speeds(speeds.values.copy(), speeds.boundary)
    changed.values[speeds.boundary :] = 1
    assert np.array_equal(speeds.average(), changed.average())
    assert np.array_equal(speeds.profile(), changed.profile())


def test_average_by_hand(traffic, folder):
    speeds = traffic.read_speeds(folder)
    # Thursday, Friday, Saturday, Sunday; the test is Monday
    average, values = speeds.average(), speeds.values
    np.testing.assert_allclose(average[4 * 288 + 7], (values[7] + values[288 + 7]) / 2, rtol=1e-6)
    np.testing.assert_allclose(average[2 * 288 + 7], (values[2 * 288 + 7] + values[3 * 288 + 7]) / 2, rtol=1e-6)
    # a training step's own profile is the other day's value, here of 13 moments
    near = slice(288 + 7 - 6, 288 + 7 + 7)
    np.testing.assert_allclose(speeds.profile()[7], values[near].mean(0), rtol=1e-5)
    near = slice(4 * 288 + 7 - 6, 4 * 288 + 7 + 7)
    np.testing.assert_allclose(speeds.profile()[4 * 288 + 7], average[near].mean(0), rtol=1e-5)


def test_a_day_is_not_in_its_own_profile(traffic, folder):
    speeds = traffic.read_speeds(folder)
    changed = traffic.Speeds(speeds.values.copy(), speeds.boundary)
    changed.values[288 + 12 : 2 * 288 - 12] += 5
    difference = changed.profile() - speeds.profile()
    np.testing.assert_allclose(difference[288 + 12 : 2 * 288 - 12], 0, atol=1e-4)
    assert difference[12 : 288 - 12].min() > 0.1


def test_errors_by_hand(traffic):
    truth = np.full((1, 12, 2), 50.0)
    forecast = truth.copy()
    forecast[0, 11] = 55, 47
    result = traffic.errors(forecast, truth)
    assert result[15] == {"MAE": 0, "RMSE": 0, "MAPE": 0}
    assert result[60] == pytest.approx({"MAE": 4, "RMSE": np.sqrt(17), "MAPE": 8})


def test_baselines_by_hand(traffic, folder):
    speeds = traffic.read_speeds(folder)
    last, average, anchor = traffic.baselines(speeds)
    first = speeds.boundary - 1
    starts = range(first, len(speeds.values) - 12)
    expected = np.mean([np.abs(speeds.values[t] - speeds.values[t + 3]).mean() for t in starts])
    assert last.errors[15]["MAE"] == pytest.approx(expected, rel=1e-5)
    differences = [np.abs(speeds.average()[t + 12] - speeds.values[t + 12]).mean() for t in starts]
    assert average.errors[60]["MAE"] == pytest.approx(np.mean(differences), rel=1e-5)
    assert average.errors[60]["MAE"] < last.errors[60]["MAE"]
    assert anchor.errors[15]["RMSE"] < 1.01 * min(last.errors[15]["RMSE"], average.errors[15]["RMSE"])


def test_anchor_has_the_least_squared_error(traffic, folder):
    known = traffic.windows(traffic.read_speeds(folder), test=False)
    anchor = traffic.Anchor()
    anchor.fit(known)
    loss = (anchor(known.past, known.profile) - known.future).square().mean()
    (gradient,) = torch.autograd.grad(loss, [anchor.share])
    assert anchor.share.abs().min() > 0 and gradient.abs().max() < 1e-4


@pytest.mark.parametrize("name", ["attention", "mamba", "mamba both", "fusionmamba", "gru"])
def test_a_network_starts_at_the_anchor_and_learns(name, traffic, folder):
    speeds = traffic.read_speeds(folder)
    torch.manual_seed(0)
    network = traffic.MODELS[name](4, 8)
    known = traffic.windows(speeds, test=True)
    rows = torch.arange(3)
    with torch.no_grad():
        forecast = known.forecast(network, rows, 50.0, 10.0)
    # before the shares are fitted
    torch.testing.assert_close(forecast, known.profile[rows, 12:])
    before = traffic.baselines(speeds)[0].errors[60]["MAE"]  # the last value
    result = traffic.train(name, speeds, traffic.Options(width=8, batch=64, minutes=0.03))
    assert result.steps > 0 and result.parameters > 0
    assert result.errors[60]["MAE"] < before


def test_every_network_has_a_learning_rate(traffic):
    assert traffic.LEARNING_RATES.keys() == traffic.MODELS.keys()


def test_attention_and_mamba_differ_in_one_word(traffic):
    attention, mamba = (dict(traffic.MODELS[name](4, 8).named_parameters()) for name in ("attention", "mamba"))
    assert {name for name in attention if ".temporal." not in name} == {
        name for name in mamba if ".temporal." not in name
    }


def test_command(traffic, folder, tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    arguments = ["--data", str(folder), "--models", "gru", "--seeds", "2", "--minutes", "0.005", "--device", "cpu"]
    threads = torch.get_num_threads()
    traffic.main([*arguments, "--validate", "--json", str(out)])
    torch.set_num_threads(threads)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["name"] for line in lines] == ["last value", "historical average", "anchor", "gru", "gru"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].startswith("| forecast | parameters | steps | MAE 15 min") and len(printed) == 8
    with pytest.raises(SystemExit):
        traffic.main([*arguments, "--models", "lstm"])
