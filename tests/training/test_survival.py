"""A run survives kills and signals: what it ends with is, bit for bit, what an undisturbed run ends with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOML = """
name = "tiny"

[model]
width = 32
pair_width = 8
blocks = 1
heads = 2
d_state = 8
head_width = 16
coordinate_width = 16
coordinate_layers = 1
coordinate_models = 2

[data]
reactivity = ["reactivity.parquet"]
structure = ["structure.parquet"]
coordinates = ["coordinates.parquet"]
tokens = 96
coordinate_tokens = 64
coordinate_max_length = 32
coordinate_steps = 3

[training]
steps = 40
log_steps = 4
valid_steps = 15
save_steps = 3
warmup_steps = 4
device = "cpu"
workers = 1
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked, so that PyTorch loads once")


def forked(tables: Path, *arguments: str) -> dict:
    path = tables / "tiny.toml"
    path.write_text(TOML)
    command = [sys.executable, str(Path(__file__).with_name("forked.py")), str(path), str(tables), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_ten_kills_change_no_bit(tables):
    result = forked(tables, "kill", "0")
    assert result["ends"] == [-9] * 10 + [0]
    assert result["interrupted"] == result["whole"]
    # every log line once
    logged = [row["step"] for row in result["interrupted"]["curve"] if "learning_rate" in row]
    assert logged == list(range(4, 41, 4))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks up which file is being written")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_during_a_checkpoint(tables, name, code):
    result = forked(tables, name)
    # checkpoints are due every third step: the second is written whole, one more for the signal, and the run leaves
    assert result["ends"] == [code, 0] and result["steps"] == [6]
    assert result["interrupted"] == result["whole"]
