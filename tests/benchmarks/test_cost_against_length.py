"""The benchmark of time and memory against the number of time steps, at lengths that say only whether it runs."""

import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def cost_against_length(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("cost_against_length")


def test_lines_and_picture(cost_against_length, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="draws a picture")
    threads, picture = torch.get_num_threads(), tmp_path / "cost.png"
    arguments = ["--lengths", "4,8", "--nodes", "2", "--device", "cpu", "--repeats", "1", "--picture", str(picture)]
    cost_against_length.main([*arguments, "--json"])
    torch.set_num_threads(threads)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["length"] for line in lines] == [4, 4, 4, 8, 8, 8]
    assert {line["layer"] for line in lines} == set(cost_against_length.LAYERS)
    assert all(line["ms"] > 0 and line["mib"] > 0 and line["torch"] for line in lines)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_slow_layer_is_left_out_of_longer_ones(cost_against_length, capsys):
    threads = torch.get_num_threads()
    cost_against_length.main(["--lengths", "2,4", "--device", "cpu", "--repeats", "1", "--limit", "0"])
    torch.set_num_threads(threads)
    assert len(capsys.readouterr().out.splitlines()) == len(cost_against_length.LAYERS)
