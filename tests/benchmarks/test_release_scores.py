"""The program that scores a checkpoint for its model card, with an untrained network on a handful of RNAs."""

import importlib
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ribonanzamamba.model.checkpoint import save_checkpoint
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HAIRPIN, LOOP = "GGGGAAACCCC", "((((...))))"


@pytest.fixture
def release_scores(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("release_scores")


@pytest.fixture
def weights(tmp_path) -> str:
    torch.manual_seed(0)
    tiny = {"width": 16, "pair_width": 8, "blocks": 1, "heads": 2, "d_state": 4, "head_width": 8}
    save_checkpoint(
        RibonanzaMamba(ModelConfig(**tiny, tasks=("reactivity", "structure"))), tmp_path / "weights", name="tiny"
    )
    return str(tmp_path / "weights")


@pytest.fixture
def data(tmp_path) -> Path:
    """A reactivity table with one valid row twice, and tables of structures with one new family."""
    folder = tmp_path / "data"
    rows = {
        "id": ["r0", "r1", "r2"],
        "sequence": [HAIRPIN, HAIRPIN, "A" * 11],
        "reagent": ["2A3", "DMS", "2A3"],
        "reactivity": [[0.5] * 11] * 3,
        "signal_to_noise": [5.0] * 3,
        "sn_pass": [True] * 3,
        "split": ["valid", "valid", "train"],
    }
    known = {"cluster": [1, 2], "split": ["train", "valid"]}
    structures = {
        "id": ["s0", "s1"],
        "sequence": [HAIRPIN] * 2,
        "dot_bracket": [LOOP] * 2,
        "family": ["a", "a"],
        **known,
    }
    rfam = {
        "id": ["old family", "old cluster", "new", "trained"],
        "sequence": [HAIRPIN, HAIRPIN, "GGGGUUUCCCC", HAIRPIN],
        "dot_bracket": [LOOP] * 4,
        "family": ["a", "b", "c", "d"],
        "cluster": [7, 1, 8, 9],
        "split": ["valid", "valid", "valid", "train"],
    }
    tables = {"reactivity/ribonanza_2a3_dms": rows, "secondary/structures": structures}
    for name, columns in {**tables, "secondary/rfam_seed_projected": rfam}.items():
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
    return folder


def test_sets_are_predicted_once_and_scored(release_scores, data, weights, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    arguments = ["--data", str(data), "--out", str(out), "--weights", weights, "--prior", "none", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["release_scores.py", *arguments, "--sets", "2a3-dms", "new-families"])
    for _ in range(2):
        release_scores.main()
        scored = {name: json.loads((out / f"{name}.json").read_text()) for name in ("2a3-dms", "new-families")}
        assert scored["2a3-dms"]["scored"] == 2 and scored["new-families"]["scored"] == 1
    assert (out / "2a3-dms.fasta").read_text() == f">r0\n{HAIRPIN}\n"
    assert (out / "new-families.fasta").read_text() == ">new\nGGGGUUUCCCC\n"
    assert "new-families" in capsys.readouterr().out


def test_tests_are_left_out_unless_named(release_scores):
    assert [name for name, each in release_scores.SETS.items() if each.test] == ["ts0", "3d"]
