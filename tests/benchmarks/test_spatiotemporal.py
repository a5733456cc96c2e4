"""The benchmark of layers on (batch, time, node, width), at a size that says only whether it runs."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def spatiotemporal(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("spatiotemporal")


def test_every_contestant_runs_or_says_why(spatiotemporal, tmp_path, capsys):
    threads = torch.get_num_threads()
    out = tmp_path / "lines.jsonl"
    spatiotemporal.main(["--device", "cpu", "--tiny", "--repeats", "1", "--out", str(out)])
    torch.set_num_threads(threads)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 2 * len(spatiotemporal.contestants(16))
    for line in lines:
        assert {"shape", "group", "contestant", "status", "torch", "commit"} <= line.keys()
        assert line["status"] == "ok" or "mamba_ssm" in line["contestant"], line
    assert "TemporalMamba" in capsys.readouterr().out


def test_one_that_fails_stops_no_other(spatiotemporal, monkeypatch):
    def broken() -> nn.Module:
        raise RuntimeError("strides must be multiples of 8\nand more")

    builders = {("causal", "broken"): broken, ("causal", "whole"): lambda: nn.Linear(16, 16)}
    monkeypatch.setattr(spatiotemporal, "contestants", lambda width: builders)
    first, second = spatiotemporal.measure_all(((1, 2, 3, 16),), "", "cpu", 1)
    assert first["status"] == "RuntimeError: strides must be multiples of 8" and "ms" not in first
    assert second["status"] == "ok" and second["times_ours"] == 1


def test_reshapes_by_hand_scan_time(spatiotemporal):
    """Sums over the past, one layer from each end, of each node by itself."""

    class Sum(nn.Module):
        def forward(self, x):
            return x.cumsum(1)

    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(spatiotemporal.ByHand([Sum()])(x), x.cumsum(1))
    both = spatiotemporal.ByHand([Sum(), Sum()])(x)
    torch.testing.assert_close(both, (x.sum(1, keepdim=True) + x) / 2)
