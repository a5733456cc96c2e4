"""The room as a whole: its names, and that it makes no figures, and the script that draws the README's picture."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

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


def prediction_of(structure: Structure, tasks=("reactivity", "structure", "coordinates"), probes=("2A3", "DMS")):
    """A made-up prediction with what these tasks give."""
    length, random = structure.length, np.random.default_rng(0)
    probability = np.zeros((length, length))
    for i, j in structure.pairs:
        probability[i, j] = probability[j, i] = 0.9
    reactivity, pairs, folds = (task in tasks for task in ("reactivity", "structure", "coordinates"))
    return Prediction(
        Record("tRNA-Phe", ("ACGU" * length)[:length]),
        {probe: random.random(length) for probe in probes} if reactivity else {},
        {probe: random.random(length) for probe in probes} if reactivity else {},
        probability if pairs else None,
        structure if pairs else None,
        random.normal(size=(1, length, len(ATOMS), 3)) * 20.0 if folds else None,
        100.0 * random.random((1, length)) if folds else None,
    )


@pytest.mark.parametrize(
    ("tasks", "probes", "expected"),
    [
        (("reactivity", "structure", "coordinates"), ("DMS", "2A3"), "layout pairs trace 2A3 DMS"),
        (("reactivity", "structure"), ("2A3", "DMS"), "layout pairs 2A3 DMS"),
        (("structure",), (), "layout pairs"),
        (("coordinates",), (), "trace"),
        (("reactivity",), ("1M7", "SHAPE", "NAI_incell"), "1M7 SHAPE"),
        (("reactivity", "coordinates"), ("DMS", "1M7"), "trace DMS"),
    ],
)
def test_an_overview_shows_what_was_predicted(draw, tasks, probes, expected, tmp_path):
    known = draw.read_known_structure("tRNA-Phe")
    figure = plots.draw_overview(Figure(layout="constrained"), prediction_of(known, tasks, probes), known)
    named = [axes.get_label() for axes in figure.axes]
    assert [name for name in named if name in "layout pairs trace 2A3 DMS 1M7 SHAPE".split()] == expected.split()
    assert figure.get_suptitle() == "tRNA-Phe (76 nt), predicted from its sequence alone"
    figure.savefig(tmp_path / "picture.png", dpi=40)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("length", [1, 2, 150])
def test_an_overview_of_any_length(length, tmp_path):
    structure = Structure.from_dot_bracket("." * length)
    plots.draw_overview(Figure(layout="constrained"), prediction_of(structure)).savefig(tmp_path / "p.png", dpi=40)


def test_known_structure_stands_in_the_readme(draw):
    assert len(draw.read_known_structure("tRNA-Phe").crossing_pairs()) > 0
    with pytest.raises(ValueError, match="no structure of nothing"):
        draw.read_known_structure("nothing")
    assert isinstance(draw.read_known_structure("TAR"), Structure)
