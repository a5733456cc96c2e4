"""The benchmark that compiles the kernels without a GPU: here, that Triton's real compiler takes every launch of every
operator, which its interpreter does not show."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "kernel_code.py"
OPERATORS = {
    "selective_scan": {"forward_kernel", "backward_kernel", "sums_kernel"},
    "selective_scan, both directions": {"forward_kernel", "merge_kernel", "backward_kernel", "sums_kernel"},
    "selective_scan, 2 x 8192": {"segment_kernel", "pass_kernel", "forward_kernel", "backward_kernel", "sums_kernel"},
    "selective_scan, in an order": {"forward_kernel", "backward_kernel", "sums_kernel"},
    "ssd": {
        "step_kernel", "state_kernel", "output_kernel", "gradient_kernel", "matrix_gradient_kernel",
        "step_gradient_kernel", "sum_kernel",
    },
    "depthwise_conv1d": {"forward_kernel", "backward_kernel", "sum_kernel"},
    "rms_norm": {"forward_kernel", "backward_kernel", "sums_kernel"},
    "outer_and_norm": {"outer_forward_kernel", "outer_backward_kernel", "outer_columns_kernel"},
    "norm_and_heads": {"heads_forward_kernel", "heads_backward_kernel"},
    "gated_convolution, after the convolution": {"gated_forward_kernel", "gated_backward_kernel"},
}  # fmt: skip
"""Of some, and the kernels that they launch."""
BACKWARD_LOOP = 800
"""Instructions of the backward kernel of `selective_scan` at most: 720 with Triton 3.6, 729 with 3.9. Where a layout
changes once more than it should they are 1,100."""
SHARED_OF_A_PROGRAM = 99 * 1024
"""Bytes that a program can have at most where the compute capability is 8.6, 8.9 or 12.0."""
MOST_SPILLED = 64
"""Bytes of a thread of `selective_scan`, whose programs take all registers of a multiprocessor: 8 (3.6) or 48 (3.9)."""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or sys.platform != "linux", reason="needs Triton's compiler"
)


def compiled(*arguments: str) -> tuple[list[dict], str]:
    """The program's lines, and what it says beside them. A process of its own: this one's kernels are interpreted."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, str(PROGRAM), "--json", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()], run.stderr


def test_every_kernel_compiles_for_a_gpu():
    lines, said = compiled()
    kernels = {}
    for line in lines:
        kernels.setdefault(line["operator"], set()).add(line["kernel"])
        assert 0 < line["registers"] <= 255 and line["program"] > 0 and line["wrong"] == 0
        if line["operator"].startswith("selective_scan"):
            assert line["spilled"] <= MOST_SPILLED, line
    assert OPERATORS.items() <= kernels.items()
    backward = [line for line in lines if line["kernel"] == "backward_kernel" and line["operator"] == "selective_scan"]
    assert [0 < line["loop"] <= BACKWARD_LOOP for line in backward] == [True]
    # Triton 3.9 asks everybody who does not say it whether products and sums are fused
    assert "FP_FUSION" not in said


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_both_directions_fit_gpus_with_less_shared_memory(dtype):
    lines, _ = compiled("--dtype", dtype, "--arch", "89", "--only", "convolved_bidirectional_ssd")
    assert {"output_kernel", "gradient_kernel", "matrix_gradient_kernel"} <= {line["kernel"] for line in lines}
    assert [line for line in lines if line["shared_bytes"] > SHARED_OF_A_PROGRAM] == []


def test_other_types_compile():
    for dtype in ("float32", "float16"):
        lines, _ = compiled("--dtype", dtype, "--only", "selective_scan, gated")
        assert {line["kernel"] for line in lines} == {"forward_kernel", "backward_kernel", "sums_kernel"}


RIGHT = """
        /*1150*/                   UIADD3 UR40, UP0, UR44, 0x2, URZ ;
        /*1180*/                   UIADD3.X UR41, UR5, 0x40000040, URZ, UP0, !UPT ;
"""
WRONG = """
        /*3ac0*/                   UIADD3 UR42, UP0, UR52, 0x40, URZ ;
        /*3ad0*/                   FADD R70, R57, R70 ;
        /*3b00*/                   UIADD3.X UR43, UR52, -0x7fffffe0, URZ, UP0, !UPT ;
"""
"""Of a kernel that multiplied what was not there."""


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        (RIGHT, 0),
        (WRONG, 1),
        (RIGHT + WRONG, 1),
        (WRONG.replace("FADD R70, R57, R70", "UMOV UR52, URZ"), 0),
        (WRONG.replace("FADD R70, R57, R70", "UIADD3.64 UR51, UR8, 0x2, URZ"), 0),
        (WRONG.replace("UR42, UP0, UR52", "UR52, UP0, UR52"), 0),
        (WRONG.replace("UR52", "URZ"), 0),
        (WRONG.replace("FADD R70, R57, R70", "UIADD3 UR8, UP0, UR9, 0x2, URZ"), 0),
    ],
    ids=[
        "right",
        "wrong",
        "both",
        "written between",
        "written with another",
        "written by it",
        "of zero",
        "another carry",
    ],
)
def test_finds_wrong_addresses(code, wrong, monkeypatch):
    spec = importlib.util.spec_from_file_location("kernel_code", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    # it wants kernels compiled, the tests after this one do not
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setitem(sys.modules, "kernel_code", module)
    spec.loader.exec_module(module)
    assert module.wrong_addresses(code.splitlines()) == wrong
