"""Imports run one way between the rooms, the public names are there, and what needs no PyTorch imports none."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ribonanzamamba

PACKAGE = Path(ribonanzamamba.__file__).parent
FLOORS = (
    ("rna",),
    ("ops", "evaluation", "baselines", "plots"),
    ("layers",),
    ("data", "model"),
    ("prediction",),
    ("training",),
    ("serving",),
    ("cli", "__init__", "__main__"),
)
"""From the ground up: a room imports itself and what lies below."""
NO_RNA = ("ops", "layers")
"""Rooms that somebody with traffic data or images uses as they are."""
HEAVY = ("torch", "numpy", "scipy", "pyarrow", "matplotlib", "gemmi", "rich.progress", "jaxtyping")
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    """The folder below the package, or the module where it lies beside the folders."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> Iterator[tuple[int, str]]:
    """Line and room of every import of our own, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            # the version number is everybody's
            if package == "ribonanzamamba" and rest != "__version__":
                room = rest.split(".")[0]
                yield node.lineno, room if room in FLOOR_OF else "__init__"


def forbidden_imports(room: str, source: str) -> list[tuple[int, str]]:
    """Imports of a room that lies on the same floor or above, or that knows RNA where that is not wanted."""
    return [
        (line, other)
        for line, other in imported_rooms(source)
        if other != room
        and (FLOOR_OF[other] >= FLOOR_OF[room] > 0 or room == "rna" or (other == "rna" and room in NO_RNA))
        and FLOOR_OF[room] < len(FLOORS) - 1
    ]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    assert room_of(path) in FLOOR_OF
    assert forbidden_imports(room_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "source", "forbidden"),
    [
        ("rna", "import numpy\nfrom ribonanzamamba.rna.records import Record", []),
        ("rna", "from ribonanzamamba.ops import ssd", [(1, "ops")]),
        ("data", "from ribonanzamamba.model.config import ModelConfig", [(1, "model")]),
        ("layers", "from ribonanzamamba.rna.records import Record", [(1, "rna")]),
        ("model", "def f():\n    import ribonanzamamba.prediction.decode", [(2, "prediction")]),
        ("training", "from ribonanzamamba import load, __version__", [(1, "__init__")]),
        ("training", "from ribonanzamamba.prediction.predict import Predictor", []),
    ],
)
def test_a_wrong_import_is_seen(room, source, forbidden):
    assert forbidden_imports(room, source) == forbidden


def test_public_names():
    assert set(ribonanzamamba.__all__) == {"__version__", "load"}
    assert all(hasattr(ribonanzamamba, name) for name in ribonanzamamba.__all__)


def test_version_is_that_of_the_project():
    project = PACKAGE.parents[1] / "pyproject.toml"
    if not project.exists():
        pytest.skip("the package was not installed from its repository")
    assert f'\nversion = "{ribonanzamamba.__version__}"\n' in project.read_text()


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("module", ["ribonanzamamba", "ribonanzamamba.cli", "ribonanzamamba.__main__"])
def test_importing_the_package_imports_nothing_heavy(module):
    done = python(f"import sys, {module}\nprint([name for name in {HEAVY} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["predict", "--help"],
        ["train", "--help"],
        ["battle", "--help"],
        ["plot", "--help"],
        ["score", "--help"],
        ["shapes", "--help"],
        ["doctor", "--help"],
    ],
    ids=" ".join,
)
def test_help_needs_no_torch(arguments):
    blocked = "import sys\nsys.modules['torch'] = None\nfrom ribonanzamamba.__main__ import main\nmain()"
    done = python(blocked, *arguments)
    assert done.returncode == 0, done.stderr
    assert "ribonanzamamba" in done.stdout


def test_predicting_imports_no_more_than_it_needs():
    unneeded = ("scipy", "pyarrow", "matplotlib", "pandas", "gemmi", "rich")
    code = f"import sys, ribonanzamamba.prediction.predict\nprint([name for name in {unneeded} if name in sys.modules])"
    done = python(code)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "arguments", [["plot", "run"], ["battle", "battle_tiny.toml", "--out", "out", "--report"]], ids=lambda a: a[0]
)
def test_pictures_say_what_they_need(arguments, tmp_path):
    """matplotlib is no part of a plain installation."""
    config = PACKAGE.parents[1] / "configs" / "battle_tiny.toml"
    if not config.exists():
        pytest.skip("the package was not installed from its repository")
    arguments = [str(config) if each == config.name else each for each in arguments]
    code = "import sys\nsys.modules['matplotlib'] = None\nfrom ribonanzamamba.__main__ import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 2
    assert 'pictures need matplotlib: pip install "ribonanzamamba[plots]"' in done.stderr
    assert "Traceback" not in done.stderr
