"""What the Triton kernels compile to, on any Linux machine, without a GPU: registers, spilled bytes, instructions.

    python benchmarks/kernel_code.py [--only selective_scan] [--dtype bfloat16] [--arch 90] [--json]

Forward and backward pass of every operator run on CPU tensors with every launch replaced by a compilation for that
launch's arguments: what a GPU of compute capability 9.0 with 132 multiprocessors would run. Columns:

    registers   of a thread: a multiprocessor holds so many programs as 65,536 are divided by that and by their threads
    spilled     bytes of a thread that did not fit into them
    shared      bytes of a program
    wrong       sums of 64 bits whose upper half is made of the lower half of a number: ptxas 12.8, which Triton 3.6
                brings, made some addresses of matrix products so, and their results wrong
    program     instructions in all
    loop        of its largest loop
    the rest    of that loop, or of the program where it has none: products and sums, exponentials, matrix products,
                shared memory, memory, between threads, barriers

That a kernel compiles says nothing of its results (`tests/ops`), and few instructions nothing of waiting: where there
is a GPU, `ncu --set full -k NAME -c 1 python PROGRAM` shows it line by line (`--page source --csv`).
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ribonanzamamba.ops import (
    convolved_ssd_triton,
    depthwise_conv_triton,
    norm_triton,
    pair_triton,
    partial_sums,
    selective_scan_triton,
    ssd_triton,
)
from ribonanzamamba.ops.backend import Kernels

PROCESSORS = 132
"""Multiprocessors of an H100: launch tables ask for them."""
LAUNCHERS = (selective_scan_triton, ssd_triton, depthwise_conv_triton, norm_triton, pair_triton, partial_sums)
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64", torch.int32: "*i32",
    torch.uint8: "*u8", torch.bool: "*i1",
}  # fmt: skip
KINDS = {
    "products": ("FFMA", "FMUL", "FADD"),
    "exponentials": ("MUFU",),
    "matrices": ("HGMMA", "HMMA"),
    "shared": ("LDS", "STS", "LDSM", "STSM"),
    "memory": ("LDG", "STG", "LDGSTS"),
    "threads": ("SHFL",),
    "barriers": ("BAR",),
}
"""Of the assembler's instructions, those worth a column."""


@dataclass(frozen=True)
class Code:
    """One kernel as it is launched by one operator."""

    operator: str
    kernel: str
    registers: int
    spilled: int
    shared_bytes: int
    wrong: int
    program: int
    loop: int
    instructions: dict[str, int]


class Compilation:
    """In the place of a module of kernels, which compiles where that launches."""

    def __init__(self, module, arch: int, found: Callable[[str, object], None]):
        self.module, self.arch, self.found = module, arch, found

    def __getattr__(self, name: str):
        return Launch(getattr(self.module, name), self.arch, self.found)


@dataclass(frozen=True)
class Launch:
    kernel: triton.JITFunction
    arch: int
    found: Callable[[str, object], None]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.compile

    def compile(self, *args, **keywords) -> None:
        options = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
        values = dict(zip(self.kernel.arg_names, args, strict=False)) | keywords
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            name, value = parameter.name, values[parameter.name]
            signature[name] = "constexpr"
            one = isinstance(value, int) and value == 1
            if parameter.is_constexpr or value is None or (one and varies(parameter, value)):
                constants[name] = value
                continue
            signature[name], aligned = kind(value)
            if aligned and varies(parameter, value):
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=attributes)
        self.found(
            self.kernel.__name__, triton.compile(source, target=GPUTarget("cuda", self.arch, 32), options=options)
        )


def varies(parameter, value) -> bool:
    """Whether Triton compiles a kernel anew where this argument is 1 or a multiple of 16."""
    return isinstance(value, Tensor) or (isinstance(value, int) and not parameter.do_not_specialize)


def kind(value: Tensor | float | int) -> tuple[str, bool]:
    """Type of an argument, and whether it is a multiple of 16 (an address: PyTorch's are)."""
    if isinstance(value, Tensor):
        return POINTERS[value.dtype], True
    if isinstance(value, float):
        return "fp32", False
    return ("i32" if abs(value) < 2**31 else "i64"), value % 16 == 0


def operators(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Every operator, as a function of tensors made when it is called; sizes like those of benchmarks/scan_gpu.py."""

    def new(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.zeros(size, dtype=of, requires_grad=True)

    def wide(*size: int) -> Tensor:
        return new(*size, of=torch.float32)

    def scan(directions: int = 1, gate: bool = False, length: int = 512, batch: int = 32) -> Tensor:
        z = new(batch, length, 512) if gate else None
        B, C = (new(batch, length, directions, 16) for _ in "BC")
        bias = wide(directions * 512)
        return selective_scan_triton.selective_scan_triton(
            new(batch, length, 512), new(batch, length, directions * 512), wide(directions * 512, 16), B, C, wide(512),
            z, bias, dt_softplus=True, directions=directions,
        )[0]  # fmt: skip

    def heads(
        directions: int = 1, gate: bool = False, length: int = 512, batch: int = 32, state: int = 64, width: int = 64
    ) -> Tensor:  # fmt: skip
        z = new(batch, length, 8, width) if gate else None
        B, C = (new(batch, length, directions, state) for _ in "BC")
        return ssd_triton.ssd_triton(
            new(batch, length, 8, width), new(batch, length, directions * 8), wide(directions * 8), B, C, wide(8), z,
            wide(directions * 8), dt_softplus=True, directions=directions,
        )[0]  # fmt: skip

    def convolution() -> Tensor:
        return depthwise_conv_triton.depthwise_conv_triton(
            new(32, 512, 768), wide(768, 5), wide(768), left=2, silu=True, lengths=None
        )

    def layer() -> Tensor:
        # gate, x, B and C of two directions, their step sizes
        return convolved_ssd_triton.convolved_ssd_triton(
            new(32, 512, 2 * 512 + 4 * 64 + 16), wide(512 + 4 * 64, 5), wide(512 + 4 * 64), wide(16), wide(8), wide(16),
            wide(512), None, 8, 64, 0.5, 1e-5,
        )  # fmt: skip

    def outer() -> Tensor:
        present = torch.ones(1, 128, dtype=torch.bool)
        return pair_triton.outer_and_norm_triton(
            new(1, 128, 128, 64), new(1, 128, 256), wide(64), present, 1e-5
        )[1]  # fmt: skip

    def pair_heads() -> Tensor:
        present = torch.ones(1, 128, dtype=torch.bool)
        return pair_triton.norm_and_heads_triton(new(1, 128, 128, 64), wide(64), wide(4, 64), present, 1e-5, -1e9)

    def ordered() -> Tensor:
        # two directions with step sizes, B and C of their own, from either end
        forth = torch.arange(512, dtype=torch.int32)
        return selective_scan_triton.selective_scan_triton(
            new(32, 512, 512), new(32, 512, 1024), wide(1024, 16), new(32, 512, 2, 16), new(32, 512, 2, 16), wide(1024),
            None, wide(1024), dt_softplus=True, order=torch.stack([forth, forth.flip(0)]),
        )[0]  # fmt: skip

    def gated() -> Tensor:
        return pair_triton.gated_residual_triton(
            new(1, 128, 128, 64), new(1, 128, 128, 128), wide(128), wide(64, 64), wide(64)
        )

    yield "selective_scan", scan
    yield "selective_scan, gated", lambda: scan(gate=True)
    yield "selective_scan, both directions", lambda: scan(2)
    yield "selective_scan, 2 x 8192", lambda: scan(length=8192, batch=2)
    yield "selective_scan, in an order", ordered
    yield "ssd", heads
    yield "ssd, gated", lambda: heads(gate=True)
    yield "ssd, both directions, gated", lambda: heads(2, gate=True)
    yield "ssd, 2 x 8192", lambda: heads(length=8192, batch=2)
    yield "ssd, states of 128", lambda: heads(length=128, batch=3, state=128)
    yield "ssd, both directions, states of 128", lambda: heads(2, length=128, batch=3, state=128)
    yield "ssd, heads of 32", lambda: heads(width=32)
    yield "ssd, both directions, heads of 32", lambda: heads(2, width=32)
    yield "depthwise_conv1d", convolution
    yield "convolved_bidirectional_ssd", layer
    yield "rms_norm", lambda: norm_triton.rms_norm_triton(new(32, 512, 256), wide(256), None, 1e-5)
    yield "outer_and_norm", outer
    yield "norm_and_heads", pair_heads
    yield "gated_convolution, after the convolution", gated


def compiled_code(only: str, dtype: torch.dtype, arch: int) -> Iterator[Code]:
    """Of every launch of the operators whose name contains `only`, each kernel once for each of its forms."""
    kernels: list[tuple[str, object]] = []
    for launcher in LAUNCHERS:
        code = Kernels(Compilation(launcher.kernels().module, arch, lambda *one: kernels.append(one)))
        launcher.kernels = lambda code=code: code
        if hasattr(launcher, "processors"):
            launcher.processors = lambda device: PROCESSORS
    for operator, run in operators(dtype):
        if only not in operator:
            continue
        kernels.clear()
        run().sum().backward()
        seen = set()
        for name, kernel in kernels:
            if kernel.hash not in seen:
                seen.add(kernel.hash)
                yield described(operator, name, kernel)


def described(operator: str, name: str, kernel) -> Code:
    """Numbers of a compiled kernel, from NVIDIA's tools that come with Triton."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage = tool("cuobjdump", "--dump-resource-usage", str(path))
        lines = tool("nvdisasm", "-c", str(path)).splitlines()
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    every, loop = Counter(mnemonics(lines)), Counter(mnemonics(largest_loop(lines)))
    body = loop or every
    kinds = {kind: sum(body[mnemonic] for mnemonic in names) for kind, names in KINDS.items()}
    shared = kernel.metadata.shared
    wrong = wrong_addresses(lines)
    return Code(operator, name, registers, stack, shared, wrong, sum(every.values()), sum(loop.values()), kinds)


def tool(name: str, *arguments: str) -> str:
    path = getattr(triton.knobs.nvidia, name).path
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def mnemonics(lines: list[str]) -> Iterator[str]:
    """Of the instructions of disassembled code, without what follows a point."""
    for line in lines:
        if found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z0-9_]+)", line):
            yield found[1]


def wrong_addresses(lines: list[str]) -> int:
    """How many sums of 64 bits have an upper half made of the register with the lower half of what is added to."""
    carries: dict[str, str] = {}
    wrong = 0
    for line in lines:
        if not (found := re.search(r"\*/\s+(?:@!?\w+\s+)?(\S+)\s+([^;]*)", line)):
            continue
        mnemonic, operands = found[1], found[2].strip().split(", ")
        if mnemonic == "UIADD3.X":
            wrong += carries.get(operands[-1 if operands[-1] != "!UPT" else -2]) == operands[1]
        written = next((operand for operand in operands if re.fullmatch(r"UR\d+", operand)), None)
        if mnemonic.startswith(("U", "R2UR", "S2UR")) and written:
            numbers = {f"UR{int(written[2:]) + k}" for k in range(2 if ".64" in mnemonic else 1)}
            carries = {carry: register for carry, register in carries.items() if register not in numbers}
        if mnemonic == "UIADD3" and operands[1].startswith("UP") and operands[2] not in (operands[0], "URZ"):
            carries[operands[1]] = operands[2]
    return wrong


def largest_loop(lines: list[str]) -> list[str]:
    """The lines from a label to the furthest jump back to it, of the loop that has most; none where there is no loop
    (code ends in a jump to itself)."""
    labels = {found[1]: place for place, line in enumerate(lines) if (found := re.match(r"(\.L_x_\d+):", line))}
    best: list[str] = []
    for place, line in enumerate(lines):
        found = re.search(r"BRA\S*\s.*?`\((\.L_x_\d+)\)", line)
        start = labels.get(found[1], place) if found else place
        if place - start > len(best):
            best = lines[start : place + 1]
    return best if sum(1 for _ in mnemonics(best)) > 1 else []


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only operators whose name contains this")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--arch", type=int, default=90, help="compute capability times ten")
    parser.add_argument("--json", action="store_true", help="a JSON line a kernel instead of a table")
    options = parser.parse_args(arguments)
    if not options.json:
        columns = ("registers", "spilled", "shared", "wrong", "program", "loop", *KINDS)
        print(f"Triton {triton.__version__}, sm_{options.arch}, {options.dtype}")
        print(f"{'operator':32s}{'kernel':24s}" + "".join(f"{column:>13s}" for column in columns))
    for code in compiled_code(options.only, getattr(torch, options.dtype), options.arch):
        if options.json:
            print(json.dumps(asdict(code) | {"triton": triton.__version__, "arch": options.arch}), flush=True)
            continue
        numbers = (code.registers, code.spilled, code.shared_bytes, code.wrong, code.program, code.loop)
        numbers += tuple(code.instructions.values())
        line = f"{code.operator[:31]:32s}{code.kernel[:23]:24s}" + "".join(f"{number:13d}" for number in numbers)
        print(line, flush=True)


if __name__ == "__main__":
    main()
