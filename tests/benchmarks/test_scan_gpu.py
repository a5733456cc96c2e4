"""The GPU benchmark's table, from made-up times: what it measures needs a GPU."""

import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MILLISECONDS = {"ssd": (1.0, 0.25), "bidirectional ssd": (1.5, 0.4), "peer": (6.0, 1.0)}
"""Of a call and of a graph."""


@pytest.fixture
def scan_gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("scan_gpu")
    running = []

    def step_of(form, passes):
        running.append(form.leaves)
        return lambda: {"y": torch.ones(2)}

    def operator_cases(shapes, short):
        for operator in ("ssd", "ssd with z", "bidirectional ssd"):
            forms = {
                "ours": module.Form("ours", None, MILLISECONDS[operator.removesuffix(" with z")]),
                "peer": module.Form("peer", None, MILLISECONDS["peer"]),
            }
            builders = {key: lambda form=form: form for key, form in forms.items()}
            yield module.Case(operator, 2, 3, builders, dict.fromkeys(module.PASSES, 100))

    replaced = {
        "step_of": step_of,
        "operator_cases": operator_cases,
        "layer_cases": lambda shapes: (),
        "measure": lambda step, repeats, scrub: (running[-1][0],) * 3,
        "measure_graph": lambda step, repeats, scrub: (running[-1][1], None),
        "measure_memory": lambda step: 1.0,
        "copy_bandwidth": lambda scrub: 1e6,
        "describe_gpu": dict,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(torch, "empty", lambda *size, **options: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return module


def lines_of(module, monkeypatch, tmp_path, *arguments: str) -> list[dict]:
    out = tmp_path / "lines.jsonl"
    monkeypatch.setattr("sys.argv", ["scan_gpu.py", "--skip-apart", "--out", str(out), *arguments])
    module.main()
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_ratios_of_calls_and_of_graphs(scan_gpu, monkeypatch, tmp_path, capsys):
    lines = lines_of(scan_gpu, monkeypatch, tmp_path)
    assert len(lines) == 3 * 2 * 2
    named = {(line["operator"], line["form"], line["passes"]): line for line in lines}
    peer = named["ssd", "peer", "forward"]
    assert (peer["times_ours"], peer["graph_times_ours"]) == (6, 4)
    # 100 bytes at 1 MB/s are 0.1 ms
    assert named["ssd", "ours", "forward"]["times_floor"] == pytest.approx(2.5)
    both = named["bidirectional ssd", "ours", "forward+backward"]
    assert (both["times_one_direction"], both["graph_times_one_direction"]) == (1.5, pytest.approx(1.6))
    assert "1.50 times one direction, 1.60 of graphs" in capsys.readouterr().out


def test_gated_operators_can_be_left_out(scan_gpu, monkeypatch, tmp_path):
    lines = lines_of(scan_gpu, monkeypatch, tmp_path, "--no-gate", "--only", "ssd")
    assert {line["operator"] for line in lines} == {"ssd", "bidirectional ssd"}
