"""Which implementation runs, and why: the one place that knows what a machine can do.

Knows nothing of shapes and recurrences.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
"""Compute capability of the first GPU whose matrix units take bfloat16."""
LARGEST_STATE = 256
"""Of `ssd`: a program holds the state of a head in registers."""


@dataclass(frozen=True)
class Explanation:
    """What runs for some tensors: `print(explain(x))`."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors: TRITON_INTERPRET=1 before the first import."""
    return os.environ.get("TRITON_INTERPRET") == "1"


TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None
"""Found out here, since torch.compile does not look into `find_spec`."""


@functools.cache
def triton_import_problem() -> str | None:
    """Why Triton cannot be imported, or None."""
    if not TRITON_IS_INSTALLED:
        return "Triton is not installed (it comes with PyTorch's CUDA builds)"
    try:
        import triton  # noqa: F401
        import triton.language  # noqa: F401
    except Exception as error:  # a broken installation fails in any way at all; the reason is reported
        return f"Triton is installed but does not import: {error!r}"
    return None


def triton_problem(device: torch.device, dtype: torch.dtype, state: int = 1) -> str | None:
    """Why the Triton kernels cannot run for tensors on a device, or None.

    >>> print(triton_problem(torch.device("cpu"), torch.float64))
    the kernels take float32, bfloat16 and float16, not torch.float64
    """
    if dtype not in TRITON_DTYPES:
        return f"the kernels take float32, bfloat16 and float16, not {dtype}"
    if state > LARGEST_STATE:
        return f"the kernels take states of at most {LARGEST_STATE}, not {state}"
    if device.type == "cpu" and not interpreted():
        return "the tensors are on the CPU (TRITON_INTERPRET=1 runs the kernels there, for tests)"
    if device.type not in ("cpu", "cuda"):
        return f"the kernels are not tested on {device.type}"
    if (problem := triton_import_problem()) is not None:
        return problem
    if (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY
    ):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return None


def choose(
    name: str, plain: str, backends: tuple[str, ...], device: torch.device, dtype: torch.dtype, state: int
) -> Explanation:
    """The implementation for a wish, "auto" included.

    Raises:
        ValueError: an unknown wish, or "triton" where it cannot run, with the reason.
    """
    if name not in backends:
        raise ValueError(f"backend: expected one of {backends}, got {name!r}")
    if name not in ("auto", "triton"):
        return Explanation(name, "asked for")
    if _assumed:
        return Explanation("triton", "assumed: nothing is computed")
    problem = triton_problem(device, dtype, state)
    if name == "triton":
        if problem is not None:
            raise ValueError(f"backend 'triton' cannot run: {problem}")
        return Explanation("triton", "asked for")
    if device.type == "cpu":
        # the interpreter is for tests that ask for it
        return Explanation(plain, "the tensors are on the CPU")
    if problem is not None:
        say_once(f"{plain} PyTorch instead of Triton kernels: {problem}", logging.WARNING)
        return Explanation(plain, problem)
    say_once(f"Triton kernels on {device.type}", logging.INFO)
    # torch.compile takes no text from the driver into its graph, and nobody reads it there
    place = "a GPU" if torch.compiler.is_compiling() else torch.cuda.get_device_name(device)
    return Explanation("triton", f"{str(dtype).removeprefix('torch.')} on {place}")


_assumed = False


@contextlib.contextmanager
def kernels_assumed() -> Iterator[None]:
    """Inside, operators take the path of a GPU's kernels for tensors without data (PyTorch's fake ones), on any device
    and without Triton: for shapes, memory and operations."""
    global _assumed
    before, _assumed = _assumed, True
    try:
        yield
    finally:
        _assumed = before


def as_seen(launch: Callable, operator: Callable) -> Callable:
    """The launch, or the operator of it that PyTorch knows: for torch.compile and for tensors without data. An operator
    costs some 20 microseconds a call."""
    return operator if _assumed or torch.compiler.is_compiling() else launch


MOST_KNOWN = 4096
"""Launches of a kernel that are told apart before all are forgotten: batches of ever new shapes."""


class Kernel:
    """A kernel to be launched: `kernel[grid](...)`. A product and the sum it goes into are one instruction, as the
    kernels are written for; Triton's own default says so up to 3.9, where it warns of the change, and not from 3.10.

    At every launch Triton finds out what the arguments ask to be compiled, which costs the host more than the launch
    itself. Launches that look alike (options and numbers, types and alignments of tensors, the GPU) are told so once.
    """

    def __init__(self, compiled):
        self.compiled = compiled
        self.known: dict[tuple, tuple[Callable, list]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self.launch, grid)

    def launch(self, grid: tuple[int, ...], *arguments: Tensor | float | None, **options: object) -> None:
        """All arguments that change from launch to launch by position; a number is always an int or always a float."""
        traits = [*options.items(), arguments[0].get_device()]
        for argument in arguments:
            if isinstance(argument, Tensor):
                # Triton assumes addresses that are multiples of 16 to be so
                traits += argument.dtype, argument.data_ptr() % 16
            else:
                traits.append(argument)
        key = tuple(traits)
        if key in self.known:
            kernel, constants = self.known[key]
            kernel[(*grid, 1, 1)[:3]](*arguments, *constants)
            return
        kernel = self.compiled[grid](*arguments, enable_fp_fusion=True, **options)
        if kernel is None:  # interpreted, not compiled
            return
        if len(self.known) == MOST_KNOWN:
            self.known.clear()
        self.known[key] = kernel, [options[name] for name in self.compiled.arg_names[len(arguments) :]]


class Kernels:
    """The kernels of a module, each an attribute."""

    def __init__(self, module: ModuleType):
        self.module = module

    def __getattr__(self, name: str) -> Kernel:
        kernel = Kernel(getattr(self.module, name))
        setattr(self, name, kernel)
        return kernel


def on_launch(module: str) -> Callable[[], Kernels]:
    """A function that returns the kernels of a module, imported when it is first called: what only wants to know shapes
    needs no Triton."""
    return functools.cache(lambda: Kernels(importlib.import_module(f"ribonanzamamba.ops.{module}")))


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is n or more."""
    return 1 << max(n - 1, 0).bit_length()


def say_once(message: str, level: int) -> None:
    # torch.compile takes no logging into its graph
    if not torch.compiler.is_compiling():
        _say_once(message, level)


@functools.cache
def _say_once(message: str, level: int) -> None:
    logger.log(level, message)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 for a CPU, where the interpreter runs programs one by one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device: make it the tensor's."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


@functools.cache
def dot_type(dtype: torch.dtype):
    """Operand type of a kernel's products, and how float32 ones are computed on matrix units.

    The interpreter multiplies bfloat16 as bit patterns (Triton issue 11584): float32 there.
    """
    import triton.language as tl

    if interpreted() or dtype == torch.float32:
        return tl.float32, "ieee" if interpreted() else "tf32x3"
    return (tl.bfloat16 if dtype == torch.bfloat16 else tl.float16), "tf32"
