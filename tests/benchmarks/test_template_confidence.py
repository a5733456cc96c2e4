"""The program that fits the confidence of template models, on a handful of chains."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def template_confidence(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("template_confidence")


def test_logistic_weights_are_found(template_confidence):
    random = np.random.default_rng(0)
    features = np.column_stack([np.ones(500), random.normal(size=(500, 2))])
    weights = np.array([-0.5, 1.0, 0.3])
    for ceiling in (0.8, 1.0):
        shares = ceiling / (1 + np.exp(-features @ weights))
        found, likelihood = template_confidence.fit_logistic(features, shares, random.random(500), ceiling)
        np.testing.assert_allclose(found, weights)
        assert -0.7 < likelihood < 0


def test_lines_of_a_small_table(template_confidence, tmp_path, capsys, monkeypatch):
    random = np.random.default_rng(1)
    sequences, clusters, traces = [], [], []
    for cluster in (20, 21, 23):
        letters = random.choice(list("ACGU"), 30)
        trace = np.cumsum(random.normal(size=(30, 3)) * 3.5, axis=0)
        for k in range(3):
            relative = letters.copy()
            relative[5 + 7 * k] = "A" if letters[5 + 7 * k] != "A" else "C"
            sequences.append("".join(relative))
            clusters.append(cluster)
            traces.append((trace + random.normal(size=trace.shape) * 0.5).astype(np.float32).ravel())
    names = [f"{k}XYZ_A" for k in range(len(sequences))]
    table = pa.table({"target_id": names, "sequence": sequences, "cluster80": clusters, "c1p_xyz": traces})
    pq.write_table(table, tmp_path / "chains.parquet")
    monkeypatch.setattr(sys, "argv", ["template_confidence.py", str(tmp_path / "chains.parquet")])
    template_confidence.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["queries"] == 9 and lines[0]["held out"] == 3
    fitted, *_ = (line for line in lines if "fitted" in line)
    # the six chains that are not held out, two relatives each
    assert fitted["residues"] >= 6 * 2 * 29 and len(fitted["fitted"]) == 5
    (everything,) = (line for line in lines if line.get("bin") == "all")
    assert everything["RNAs"] == 3
    assert everything["templates TM 1"] > everything["network TM 1"] + 0.2
