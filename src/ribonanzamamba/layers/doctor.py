"""What a machine has for state spaces, whether it works, and what mends it where it does not. Knows no RNA."""

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ribonanzamamba import __version__
from ribonanzamamba.layers.bidirectional import BiMamba
from ribonanzamamba.ops import explain, selective_scan, ssd
from ribonanzamamba.ops.backend import TRITON_IS_INSTALLED, triton_import_problem
from ribonanzamamba.ops.scan_reference import selective_scan_reference, ssd_reference

LEAST_TORCH = (2, 9)
LARGEST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Of outputs and gradients, relative to the largest, from the definition in float64; usual are 1e-6 and 5e-3."""
STEP_SHAPE = (4, 128, 256)
"""Batch, length and width of the step that is timed."""
STATE = 32


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    value: str
    problem: str = ""
    """What is wrong, if anything."""
    note: str = ""
    """What could be better but works."""
    mend: str = ""
    """The line that mends a problem, or follows a note."""


@dataclass(frozen=True)
class Examination:
    """All checks of a machine."""

    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        return not any(check.problem for check in self.checks)

    def to_text(self) -> str:
        """One line a check, what is wrong below it, and a verdict."""
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{check.name.ljust(width)}  {check.value}")
            lines += [
                f"{' ' * width}  {word}: {text}"
                for word, text in (("PROBLEM", check.problem), ("note", check.note), ("mend", check.mend))
                if text
            ]
        problems = sum(bool(check.problem) for check in self.checks)
        return "\n".join([*lines, "", f"{problems or 'no'} problem{'' if problems == 1 else 's'}"])

    def to_json(self) -> str:
        values = {"healthy": self.healthy, "checks": [asdict(check) for check in self.checks]}
        return json.dumps(values, indent=2)


def examine() -> Examination:
    """Look at Python, PyTorch, GPUs and Triton, say which scan will run, test it against its definition and time it."""
    return Examination(tuple(checks()))


def checks() -> Iterator[Check]:
    yield Check("Python", f"{platform.python_version()} on {platform.platform()}")
    yield Check("ribonanzamamba", __version__)
    yield check_torch()
    yield check_cuda()
    yield check_triton()
    devices = [torch.device("cpu"), *(torch.device("cuda", k) for k in range(torch.cuda.device_count()))]
    for device in devices:
        yield Check(f"device {device}", device_name(device))
        for dtype in LARGEST_ERROR:
            yield check_backend(device, dtype)
    for name in ("mamba-ssm", "causal-conv1d"):
        yield check_extra(name)
    for device in devices:
        for dtype in LARGEST_ERROR:
            yield check_scan(device, dtype)
        yield check_step(device)


def check_torch() -> Check:
    version = torch.__version__
    found = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if found < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        return Check("PyTorch", version, problem=f"older than {least}", mend=f'python -m pip install "torch>={least}"')
    return Check("PyTorch", version)


def check_cuda() -> Check:
    """CUDA of PyTorch beside the driver: the two have to fit."""
    driver = driver_version()
    built = torch.version.cuda or torch.version.hip
    value = f"PyTorch built {f'for {built}' if built else 'without it'}, driver {driver or 'not found'}"
    if torch.cuda.is_available() or driver is None:
        return Check("CUDA", value)
    if built is None:
        problem = "there is an NVIDIA GPU, and PyTorch is a build that cannot use it"
        return Check("CUDA", value, problem=problem, mend="python -m pip install --force-reinstall torch  # CUDA build")
    problem = f"there is an NVIDIA GPU that PyTorch cannot use: the driver is older than CUDA {built}, or it is hidden"
    mend = "update the NVIDIA driver, or unset CUDA_VISIBLE_DEVICES if it is empty"
    return Check("CUDA", value, problem=problem, mend=mend)


def check_triton() -> Check:
    gpu = torch.cuda.is_available()
    problem = triton_import_problem()
    if problem is None:
        return Check("Triton", importlib.import_module("triton").__version__)
    if not TRITON_IS_INSTALLED:
        if gpu:
            note = "plain PyTorch runs on the GPU, several times slower"
            return Check("Triton", "not installed", note=note, mend="python -m pip install triton")
        return Check("Triton", "not installed; needed on a GPU only")
    mend = (
        "python -m pip install --force-reinstall triton"
        if gpu
        else "python -m pip uninstall triton  # no GPU: not needed"
    )
    return Check("Triton", "broken", problem=problem, mend=mend)


def check_backend(device: torch.device, dtype: torch.dtype) -> Check:
    """Which implementation each recurrence takes for tensors on a device, and why."""
    heads, B = (torch.empty(shape, device=device, dtype=dtype) for shape in ((1, 1, 1, 1), (1, 1, 1, STATE)))
    scans = {"ssd": explain(heads, B), "selective_scan": explain(heads[..., 0])}
    parts = [f"{name} {scan.backend}" for name, scan in scans.items()]
    reasons = dict.fromkeys(scan.reason for scan in scans.values())
    return Check(f"  {dtype_name(dtype)}", f"{', '.join(parts)}: {'; '.join(reasons)}")


def check_extra(name: str) -> Check:
    """A package that others need and we do not: is it there, and does it fit this PyTorch?"""
    module = name.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        return Check(name, "not installed; never needed")
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    try:
        importlib.import_module(module)
    except Exception as error:  # compiled against another PyTorch it fails in any way at all; the reason is reported
        return Check(name, version, note=f"does not import ({error!r}); never needed here")
    return Check(name, f"{version}, imports; never needed here")


def check_scan(device: torch.device, dtype: torch.dtype) -> Check:
    """Both recurrences on a device against their definitions: outputs and every gradient."""
    name = f"self-test {device} {dtype_name(dtype)}"
    begin = time.perf_counter()
    try:
        errors = {
            "ssd": scan_error("ssd", device, dtype),
            "selective_scan": scan_error("selective_scan", device, dtype),
        }
    except Exception as error:  # whatever a broken machine raises is the finding
        return Check(name, "failed", problem=repr(error), mend='pass backend="reference", and report this output')
    value = ", ".join(f"{scan} {error:.1e}" for scan, error in errors.items())
    value = f"largest relative error: {value} ({time.perf_counter() - begin:.2f} s)"
    if max(errors.values()) > LARGEST_ERROR[dtype]:
        problem = f"expected at most {LARGEST_ERROR[dtype]:g}"
        return Check(name, value, problem=problem, mend='pass backend="reference", and report this output')
    return Check(name, value)


def scan_error(scan: str, device: torch.device, dtype: torch.dtype) -> float:
    """Largest difference between a scan and its definition in float64 on the same rounded inputs, relative to the
    largest value of each output and gradient."""
    generator = torch.Generator().manual_seed(0)
    b, l, h, p, n = 2, 70, 2, 16, 16
    many, shape = ((h,), (b, l, h, p)) if scan == "ssd" else ((h * p, n), (b, l, h * p))
    x = torch.randn(shape, generator=generator).to(dtype)
    dt = (0.01 + torch.rand(shape[:3], generator=generator) / 2).to(dtype)
    A = -1 - 3 * torch.rand(many, generator=generator)
    B, C = (torch.randn(b, l, 1, n, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(shape, generator=generator)
    functions = (ssd, ssd_reference) if scan == "ssd" else (selective_scan, selective_scan_reference)
    results: list[list[Tensor]] = []
    for function, place, wide in zip(functions, (device, torch.device("cpu")), (None, torch.float64), strict=True):
        inputs = [tensor.to(place, wide or tensor.dtype).requires_grad_() for tensor in (x, dt, A, B, C)]
        y = function(*inputs)
        gradients = torch.autograd.grad((y * weight.to(y)).sum(), inputs)
        results.append([tensor.detach().cpu().double() for tensor in (y, *gradients)])
    return max(
        ((got - expected).abs().max() / expected.abs().max()).item() for got, expected in zip(*results, strict=True)
    )


def check_step(device: torch.device) -> Check:
    """Milliseconds of one forward and backward pass of a `BiMamba`."""
    batch, length, width = STEP_SHAPE
    name = f"BiMamba step {device}"
    try:
        layer = BiMamba(width).to(device)
        x = torch.randn(batch, length, width, device=device)
        seconds = []
        for _ in range(6):
            begin = time.perf_counter()
            layer(x).sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - begin)
    except Exception as error:  # as in check_scan
        return Check(name, "failed", problem=repr(error), mend="report this output")
    # the first one warms up
    return Check(
        name, f"{1e3 * statistics.median(seconds[1:]):.1f} ms, forward and backward, {batch} x {length} x {width}"
    )


def driver_version() -> str | None:
    """Version of the NVIDIA driver where there is one with a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split("\n")
    return lines[0].strip() or None if done.returncode == 0 else None


def device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(device)
    capability = f"{properties.major}.{properties.minor}"
    return f"{properties.name}, compute capability {capability}, {properties.total_memory / 2**30:.0f} GiB"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
