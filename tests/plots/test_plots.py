"""The room as a whole: its names, and that it makes no figures, and the script that draws the README's picture."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ribonanzamamba import plots
from ribonanzamamba.rna.records import ATOMS, Prediction, Record
from ribonanzamamba.rna.structure import Structure

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def draw():
    """The script `examples/draw.py` as a module."""
    spec = importlib.util.spec_from_file_location("draw", EXAMPLES / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_public_names():
    assert plots.__all__ == sorted(plots.__all__)
    assert all(callable(getattr(plots, name)) for name in plots.__all__)


def test_pyplot_and_torch_are_not_imported():
    """Without pyplot there is no list of open figures, and none can leak."""
    unneeded = ("matplotlib.pyplot", "torch", "scipy")
    code = f"import sys, ribonanzamamba.plots\nprint([name for name in {unneeded} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_picture_of_a_made_up_prediction(draw, tmp_path):
    known = draw.read_known_structure("tRNA-Phe")
    length = known.length
    random = np.random.default_rng(0)
    probability = np.zeros((length, length))
    for i, j in known.pairs:
        probability[i, j] = probability[j, i] = 0.9
    prediction = Prediction(
        Record("tRNA-Phe", "ACGU" * (length // 4)),
        {probe: random.random(length) for probe in ("2A3", "DMS")},
        {probe: random.random(length) for probe in ("2A3", "DMS")},
        probability,
        known,
        random.normal(size=(1, length, len(ATOMS), 3)) * 20.0,
        100.0 * random.random((1, length)),
    )
    picture = tmp_path / "picture.png"
    draw.draw_prediction(prediction, known).savefig(picture, dpi=40)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_known_structure_stands_in_the_readme(draw):
    assert len(draw.read_known_structure("tRNA-Phe").crossing_pairs()) > 0
    with pytest.raises(ValueError, match="no structure of nothing"):
        draw.read_known_structure("nothing")
    assert isinstance(draw.read_known_structure("TAR"), Structure)
