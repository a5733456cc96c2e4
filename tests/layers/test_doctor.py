"""`doctor`: its verdicts on machines as they are and as they break, with the exit code of the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ribonanzamamba.layers import doctor
from ribonanzamamba.layers.doctor import Check, Examination, examine


def run_doctor(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which sees no GPU; `path` comes first in sys.path."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    paths = [path, Path(doctor.__file__).parents[2]]
    environment["PYTHONPATH"] = os.pathsep.join(str(entry) for entry in paths if entry is not None)
    command = [sys.executable, "-m", "ribonanzamamba", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def by_name(done: subprocess.CompletedProcess[str]) -> dict[str, dict]:
    return {check["name"].strip(): check for check in json.loads(done.stdout)["checks"]}


def test_without_gpu():
    done = run_doctor("--json")
    assert done.returncode == 0, done.stderr
    checks = by_name(done)
    assert json.loads(done.stdout)["healthy"]
    assert checks["PyTorch"]["value"] == torch.__version__
    assert checks["float32"]["value"] == "ssd chunked, selective_scan inplace: the tensors are on the CPU"
    for dtype in ("float32", "bfloat16"):
        assert checks[f"self-test cpu {dtype}"]["value"].startswith("largest relative error: ssd ")
    assert "ms, forward and backward" in checks["BiMamba step cpu"]["value"]
    assert checks["mamba-ssm"]["value"].endswith("never needed")


def test_without_triton(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'triton' else found(name, *rest)\n"
    )
    done = run_doctor("--json", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert by_name(done)["Triton"]["value"] == "not installed; needed on a GPU only"


def test_with_a_broken_triton(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise RuntimeError('libcuda.so.1: undefined symbol')\n")
    done = run_doctor("--json", path=tmp_path)
    assert done.returncode == 1, done.stderr
    triton = by_name(done)["Triton"]
    assert "libcuda.so.1: undefined symbol" in triton["problem"]
    assert triton["mend"] == "python -m pip uninstall triton  # no GPU: not needed"
    assert not by_name(done)["self-test cpu float32"]["problem"]
    text = run_doctor(path=tmp_path)
    assert text.returncode == 1 and "PROBLEM: Triton is installed but does not import" in text.stdout
    assert text.stdout.endswith("\n1 problem\n")


@pytest.mark.parametrize(
    ("built", "available", "driver", "problem"),
    [
        (None, False, None, ""),
        (None, False, "550.1", "PyTorch is a build that cannot use it"),
        ("13.0", False, "440.1", "the driver is older than CUDA 13.0, or it is hidden"),
        ("13.0", True, "580.1", ""),
        ("13.0", False, None, ""),
    ],
    ids=["no GPU", "CPU build", "old driver", "works", "CUDA build without a GPU"],
)
def test_cuda_and_driver(built, available, driver, problem, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(doctor, "driver_version", lambda: driver)
    check = doctor.check_cuda()
    assert problem in check.problem and bool(check.problem) == bool(problem) == bool(check.mend)


def test_old_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.4.1+cu121")
    check = doctor.check_torch()
    assert check.problem == "older than 2.9" and check.mend == 'python -m pip install "torch>=2.9"'


def test_a_wrong_scan_is_a_problem(monkeypatch):
    right = doctor.ssd
    monkeypatch.setattr(doctor, "ssd", lambda *inputs: 1.01 * right(*inputs))
    check = doctor.check_scan(torch.device("cpu"), torch.float32)
    assert check.problem == "expected at most 0.001" and check.mend

    def crash(*inputs):
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(doctor, "ssd", crash)
    assert "illegal instruction" in doctor.check_scan(torch.device("cpu"), torch.float32).problem


def test_errors_are_far_below_the_limit():
    for scan in ("ssd", "selective_scan"):
        assert doctor.scan_error(scan, torch.device("cpu"), torch.float32) < 1e-5
        assert doctor.scan_error(scan, torch.device("cpu"), torch.bfloat16) < 2e-2


def test_a_package_that_does_not_import_is_a_note(tmp_path, monkeypatch):
    (tmp_path / "mamba_ssm.py").write_text("import selective_scan_cuda_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    check = doctor.check_extra("mamba-ssm")
    assert "does not import" in check.note and not check.problem


def test_text_says_what_mends():
    text = Examination((Check("a", "1"), Check("long", "2", problem="bad", mend="do this"))).to_text()
    assert text == "a     1\nlong  2\n      PROBLEM: bad\n      mend: do this\n\n1 problem"


def test_every_problem_of_this_machine_has_a_mend():
    for check in examine().checks:
        assert not check.problem or check.mend
