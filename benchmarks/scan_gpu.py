"""GPU time and memory of the recurrences and of whole bidirectional layers, ours beside mamba_ssm where it imports.

    python benchmarks/scan_gpu.py [--only NAME] [--no-gate] [--shapes 32x128,32x512] [--repeats 30] [--out FILE]

A table on standard output, one JSON line a measurement into --out (hardware, versions, commit in each). bfloat16
activations and float32 parameters, d_inner 512, random data; each form reads its own layout, so that no transposition
is timed; mamba_ssm's two directions are two calls and flips, as its users write them. Columns:

    ms          median between two CUDA events, the L2 cache overwritten before each call: what an eager step costs,
                launches by the host included
    10 - 90 %   of the repeats
    graph ms    the same of a replayed CUDA graph: the GPU alone, no host
    MiB         most memory allocated during the call beyond the inputs
    / ours      ms over ours, and the same of graph ms; of both directions, over one of ours on a line of its own
    / floor     graph ms (ms, if there is no graph) over the time to read every input and write every output once, at
                the copy bandwidth measured first; a backward pass reads the inputs again, with the gradient, and writes
                theirs
    difference  from ours in outputs and gradients: largest norm of the difference over the norm of ours

forward runs without gradients, "forward+backward" to the gradient of every input or, of a layer, one training step
without the optimizer under bfloat16 autocast. A form that cannot be imported or run is a line that says why.

mamba_ssm: https://github.com/state-spaces/mamba and https://github.com/Dao-AILab/causal-conv1d; their
`selective_scan_cuda` and `causal_conv1d_cuda` have to be compiled, the `ssd` kernels are Triton.
"""

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from machine import describe_gpu
from torch import Tensor, nn

from ribonanzamamba import ops
from ribonanzamamba.layers import BiMamba

PASSES = ("forward", "forward+backward")
GATED = " with z"
"""In the name of an operator."""
SHAPES = ((32, 128), (32, 512), (8, 2048), (2, 8192))
"""Batch and length, 16,384 positions or fewer in each."""
SHORT = (20_000, 12)
"""Traffic data: twelve time steps of every sensor in a batch, width 64."""
PLAIN_AT = (32, 512)
"""The one shape at which plain PyTorch runs, eager and compiled."""
WIDTH, SHORT_WIDTH, HEAD = 512, 64, 64
SCAN_STATE, SSD_STATE = 16, 64
D_MODEL = 256
LARGEST_DIFFERENCE = 3e-2
"""Of two bfloat16 forms; each differs from float64 by up to 1e-2."""
L2_BYTES = 256 * 2**20
COMPILE_LIMIT, FIRST_CALL_LIMIT = 150, 60
"""Wall seconds."""


@dataclass
class Form:
    """One implementation on inputs of its own layout."""

    name: str
    run: Callable[[], Tensor]
    leaves: dict[str, Tensor]
    shared: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
    """Its output ("y") or gradient in our layout; of outputs, also back."""
    autocast: bool = False
    graph: bool = True


@dataclass
class Case:
    """One operator at one shape: ours first, then what it is compared with."""

    operator: str
    batch: int
    length: int
    builders: dict[str, Callable[[], Form]]
    bytes: dict[str, int] = field(default_factory=dict)


def random_inputs(operator: str, batch: int, length: int, width: int, state: int, *, directions: int, gate: bool):
    """Arguments of ours: bfloat16 along the sequence, float32 parameters; steps of about 0.02, as layers begin with."""

    def normal(*size: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.randn(size, device="cuda") * scale + mean

    if operator == "ssd":
        size, step, skip = (width // HEAD, HEAD), directions * width // HEAD, width // HEAD
        A = -1 - 15 * torch.rand(step, device="cuda")
    else:
        size, step, skip = (width,), directions * width, width
        A = -torch.arange(1.0, state + 1, device="cuda").repeat(step, 1)
    values = {
        "x": normal(batch, length, *size),
        "dt": normal(batch, length, step, scale=0.5),
        "A": A,
        "B": normal(batch, length, directions, state),
        "C": normal(batch, length, directions, state),
        "D": normal(skip),
        "z": normal(batch, length, *size) if gate else None,
        "dt_bias": normal(step, mean=-4.0),
    }
    return {
        name: value.bfloat16() if name in ("x", "dt", "B", "C", "z") else value
        for name, value in values.items()
        if value is not None
    }


def leaves_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}


def ours(operator: str, tensors: dict[str, Tensor], directions: int, backend: str = "triton") -> Form:
    function = getattr(ops, operator if directions == 1 else f"bidirectional_{operator}")
    leaves = leaves_of(tensors)
    name = "ours" if backend == "triton" else f"ours, plain PyTorch ({backend})"
    run = functools.partial(function, **leaves, dt_softplus=True, backend=backend)
    # plain PyTorch asks the GPU for a value, which no graph can hold
    return Form(name, run, leaves, graph=backend == "triton")


def mamba_ssm_scan(tensors: dict[str, Tensor], directions: int) -> Form:
    """`selective_scan_fn` (compiled CUDA): batch, channel, position."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_cuda, selective_scan_fn

    if selective_scan_cuda is None:
        raise ImportError("selective_scan_cuda is not compiled")
    own = dict(tensors)
    for name in ("x", "dt", "z"):
        if name in own:
            own[name] = own[name].transpose(1, 2).contiguous()  # b d l
    for name in ("B", "C"):
        own[name] = own[name].permute(0, 2, 3, 1).contiguous()  # b g n l
    leaves = leaves_of(own)

    def one(half: int) -> Tensor:
        dt, A, B, C, bias = (leaves[name].chunk(directions, axis)[half] for name, axis in
                             (("dt", 1), ("A", 0), ("B", 1), ("C", 1), ("dt_bias", 0)))  # fmt: skip
        along = [leaves["x"], dt, B, C, leaves.get("z")]
        x, dt, B, C, z = [t.flip(-1) if half and t is not None else t for t in along]
        y = selective_scan_fn(x, dt, A, B, C, leaves["D"], z, bias, delta_softplus=True)
        return y.flip(-1) if half else y

    def shared(name: str, tensor: Tensor) -> Tensor:
        if name in ("B", "C"):
            return tensor.permute(0, 3, 1, 2)
        return tensor.transpose(1, 2) if tensor.dim() == 3 else tensor

    return Form("mamba_ssm selective_scan_fn", in_both_directions(one, directions), leaves, shared)


def mamba_ssm_ssd(tensors: dict[str, Tensor], directions: int) -> Form:
    """`mamba_chunk_scan_combined` (Triton) at its layers' chunk size; our layout."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    leaves = leaves_of(tensors)

    def one(half: int) -> Tensor:
        dt, A, B, C, bias = (leaves[name].chunk(directions, axis)[half] for name, axis in
                             (("dt", 2), ("A", 0), ("B", 2), ("C", 2), ("dt_bias", 0)))  # fmt: skip
        along = [leaves["x"], dt, B, C, leaves.get("z")]
        x, dt, B, C, z = [t.flip(1) if half and t is not None else t for t in along]
        y = mamba_chunk_scan_combined(x, dt, A, B, C, 256, D=leaves["D"], z=z, dt_bias=bias, dt_softplus=True)
        return y.flip(1) if half else y

    return Form("mamba_ssm chunk_scan_combined", in_both_directions(one, directions), leaves)


def in_both_directions(one: Callable[[int], Tensor], directions: int) -> Callable[[], Tensor]:
    return (lambda: one(0)) if directions == 1 else (lambda: (one(0) + one(1)) / 2)


def operator_cases(shapes: tuple[tuple[int, int], ...], short: bool) -> Iterator[Case]:
    plain = {"ssd": "chunked", "selective_scan": "inplace"}
    peers = {"ssd": mamba_ssm_ssd, "selective_scan": mamba_ssm_scan}
    plans = [
        (operator, gate, directions, batch, length, WIDTH)
        for batch, length in shapes
        for operator, gate, directions in (
            ("selective_scan", False, 1), ("selective_scan", True, 1), ("selective_scan", False, 2),
            ("ssd", False, 1), ("ssd", True, 1), ("ssd", False, 2),
        )
    ]  # fmt: skip
    if short:
        plans += [("selective_scan", False, directions, *SHORT, SHORT_WIDTH) for directions in (1, 2)]
    for operator, gate, directions, batch, length, width in plans:
        state = SSD_STATE if operator == "ssd" else SCAN_STATE
        tensors = random_inputs(operator, batch, length, width, state, directions=directions, gate=gate)
        builders = {
            "ours": lambda o=operator, t=tensors, n=directions: ours(o, t, n),
            "mamba_ssm": lambda o=operator, t=tensors, n=directions: peers[o](t, n),
        }
        if (batch, length) == PLAIN_AT and not gate:
            builders[plain[operator]] = lambda o=operator, t=tensors, n=directions: ours(o, t, n, plain[o])
        name = ("bidirectional " if directions == 2 else "") + operator + (GATED if gate else "")
        yield Case(name, batch, length, builders, bytes_moved(tensors))


def bytes_moved(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Every input read and every output written once; backward, the same and the gradients."""
    inputs = sum(tensor.nbytes for tensor in tensors.values())
    output = tensors["x"].nbytes
    return {"forward": inputs + output, "forward+backward": (inputs + output) + (inputs + output) + inputs}


def layer_cases(shapes: tuple[tuple[int, int], ...]) -> Iterator[Case]:
    for batch, length in shapes:
        x = torch.randn(batch, length, D_MODEL, device="cuda")
        yield Case(
            "bidirectional layer",
            batch,
            length,
            {
                "ours": lambda x=x: our_layer(x),
                "Mamba": lambda x=x: mamba_ssm_layers("Mamba", x),
                "Mamba2": lambda x=x: mamba_ssm_layers("Mamba2", x),
            },
        )


def our_layer(x: Tensor) -> Form:
    layer = BiMamba(D_MODEL, d_state=SSD_STATE).cuda()
    return layer_form("ours, BiMamba", layer, x)


def mamba_ssm_layers(kind: str, x: Tensor) -> Form:
    """One layer of its own for each direction, and flips."""
    if kind == "Mamba":
        from mamba_ssm.modules.mamba_simple import Mamba as Layer
        from mamba_ssm.ops.selective_scan_interface import causal_conv1d_fn, selective_scan_cuda

        if selective_scan_cuda is None:
            raise ImportError("selective_scan_cuda is not compiled")
        options = {}
    else:
        from mamba_ssm.modules.mamba2 import Mamba2 as Layer
        from mamba_ssm.ops.triton.ssd_combined import causal_conv1d_fn

        # the fused path needs causal_conv1d
        options = {"d_state": SSD_STATE, "use_mem_eff_path": causal_conv1d_fn is not None}
    layers = nn.ModuleList([Layer(D_MODEL, **options) for _ in range(2)]).cuda()
    name = f"mamba_ssm {kind}, two flipped passes" + ("" if causal_conv1d_fn is not None else ", no causal_conv1d")
    form = layer_form(name, layers, x)
    own = form.leaves["x"]
    form.run = lambda: (layers[0](own) + layers[1](own.flip(1)).flip(1)) / 2
    return form


def layer_form(name: str, layer: nn.Module, x: Tensor) -> Form:
    leaves = {"x": x.detach().clone().requires_grad_()} | dict(layer.named_parameters())
    return Form(name, lambda: layer(leaves["x"]), leaves, autocast=True)


def step_of(form: Form, passes: str) -> Callable[[], dict[str, Tensor]]:
    """A call that returns the output and, with backward, the gradients by name."""
    gradient = None

    def run() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=form.autocast):
            return form.run()

    def forward() -> dict[str, Tensor]:
        with torch.no_grad():
            return {"y": run()}

    def forward_and_backward() -> dict[str, Tensor]:
        nonlocal gradient
        y = run()
        if gradient is None:
            shape = form.shared("y", y).shape
            generator = torch.Generator("cuda").manual_seed(1)
            # the same numbers in every layout: the way there is the way back
            gradient = form.shared("y", torch.randn(shape, generator=generator, device="cuda").to(y.dtype)).contiguous()
        return {"y": y} | dict(
            zip(form.leaves, torch.autograd.grad(y, tuple(form.leaves.values()), gradient), strict=True)
        )

    return forward if passes == "forward" else forward_and_backward


def measure(step: Callable[[], object], repeats: int, scrub: Tensor) -> tuple[float, float, float]:
    """Median, tenth and ninetieth percentile of milliseconds between events, with a cold L2 cache."""
    pairs = []
    for _ in range(repeats):
        scrub.random_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        stop.record()
        pairs.append((start, stop))
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(stop) for start, stop in pairs)
    return statistics.median(times), times[len(times) // 10], times[-1 - len(times) // 10]


def measure_graph(step: Callable[[], object], repeats: int, scrub: Tensor) -> tuple[float | None, str | None]:
    """Median milliseconds of a replayed CUDA graph, or why there is none."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = step()
        median, _, _ = measure(graph.replay, repeats, scrub)
        del kept, graph
        return median, None
    except RuntimeError as error:
        torch.cuda.synchronize()
        return None, str(error).splitlines()[0]


def measure_memory(step: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def difference(form: Form, got: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    errors = {}
    for name, ours in expected.items():
        theirs = form.shared(name, got[name]).float().reshape(ours.shape)
        errors[name] = ((theirs - ours.float()).norm() / ours.float().norm().clamp(min=1e-30)).item()
    return errors


def measure_case(case: Case, repeats: int, bandwidth: float, scrub: Tensor) -> Iterator[dict]:
    """One line a form and pass; ours comes first and the others are set beside it."""
    reference: dict[str, dict[str, Tensor]] = {}
    ours: dict[str, dict] = {}
    for key, build in case.builders.items():
        base = {"operator": case.operator, "shape": f"{case.batch}x{case.length}"}
        try:
            form = build()
        except Exception as error:  # whatever a peer's import raises is the line's text
            yield base | {"form": key, "status": describe(error)}
            continue
        for passes in PASSES:
            line = base | {"form": form.name, "passes": passes}
            try:
                yield line | measured(case, form, passes, repeats, bandwidth, scrub, reference, ours, key == "ours")
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                yield line | {"status": describe(error)}
        del form
        torch.cuda.empty_cache()


def measured(
    case: Case,
    form: Form,
    passes: str,
    repeats: int,
    bandwidth: float,
    scrub: Tensor,
    reference: dict[str, dict[str, Tensor]],
    ours: dict[str, dict],
    is_ours: bool,
) -> dict:
    """What is measured of one form; ours leaves its results in `reference` and its line in `ours`."""
    step = step_of(form, passes)
    # kernels are compiled and chosen here
    result = step()
    for _ in range(3):
        step()
    line: dict = {"status": "ok"}
    if is_ours:
        reference[passes] = {name: tensor.detach() for name, tensor in result.items()}
    elif passes in reference and case.bytes:
        errors = difference(form, result, reference[passes])
        line["difference"] = max(errors.values())
        if not line["difference"] <= LARGEST_DIFFERENCE:
            line["status"] = "differs from ours: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    del result
    median, low, high = measure(step, repeats, scrub)
    graph, why_not = measure_graph(step, repeats, scrub) if form.graph else (None, None)
    line |= {"ms": median, "ms_10_90": [low, high], "graph_ms": graph, "peak_mib": measure_memory(step)}
    if why_not is not None:
        line["no_graph"] = why_not
    if is_ours:
        ours[passes] = line
    elif passes in ours:
        line |= times("ours", line, ours[passes])
    if case.bytes:
        floor = 1e3 * case.bytes[passes] / bandwidth
        line |= {"floor_ms": floor, "times_floor": (graph or median) / floor}
    return line


def times(name: str, line: dict, other: dict) -> dict[str, float]:
    """How many times the milliseconds of another line, called and of graphs."""
    keys = {"ms": f"times_{name}", "graph_ms": f"graph_times_{name}"}
    return {ratio: line[key] / other[key] for key, ratio in keys.items() if line.get(key) and other.get(key)}


def describe(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]


def copy_bandwidth(scrub: Tensor) -> float:
    """Bytes read and written a second by a copy of 1 GiB."""
    source = torch.randint(0, 255, (2**30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    milliseconds, _, _ = measure(lambda: target.copy_(source), 10, scrub)
    return 2 * source.nbytes / (1e-3 * milliseconds)


def apart(arguments: list[str], limit: float, **environment: str) -> dict:
    """The JSON line that this program prints in a process of its own, or why it has none."""
    command = [sys.executable, __file__, *arguments]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env=os.environ | environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"status": f"more than {limit} s"}
    if process.returncode:
        return {"status": (process.stderr.strip().splitlines() or ["failed"])[-1][:300]}
    return json.loads(process.stdout.strip().splitlines()[-1])


def first_call(operator: str, directions: int) -> dict:
    """Seconds of the first forward and of the first forward and backward pass: compilation, in this fresh process."""
    state = SSD_STATE if operator == "ssd" else SCAN_STATE
    tensors = random_inputs(operator, *PLAIN_AT, WIDTH, state, directions=directions, gate=False)
    form = ours(operator, tensors, directions)
    # PyTorch's own first backward pass and matrix product
    warm = torch.randn(64, 64, device="cuda", requires_grad=True)
    (warm @ warm).square().sum().backward()
    torch.cuda.synchronize()
    seconds = []
    for passes in PASSES:
        start = time.perf_counter()
        step_of(form, passes)()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"status": "ok", "first_forward_s": seconds[0], "first_training_s": seconds[1], "first_s": sum(seconds)}


def compiled_case(operator: str, repeats: int) -> list[dict]:
    """`torch.compile` of the plain form at one shape."""
    scrub = torch.empty(L2_BYTES // 4, dtype=torch.int32, device="cuda")
    tensors = random_inputs(operator, *PLAIN_AT, WIDTH, SSD_STATE, directions=1, gate=False)
    form = ours(operator, tensors, 1, "chunked")
    form.run = torch.compile(form.run)
    lines = []
    for passes in PASSES:
        step = step_of(form, passes)
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        median, low, high = measure(step, repeats, scrub)
        memory = measure_memory(step)
        lines.append({"passes": passes, "ms": median, "ms_10_90": [low, high], "peak_mib": memory, "first_s": seconds})
    return lines


def show(line: dict) -> str:
    head = f"{line['operator']:30}{line['shape']:>9}  {line.get('passes', ''):18}{line['form']:52}"
    if "ms" not in line:
        return head + f"  {line['status']}"

    def cell(key: str, pattern: str, width: int) -> str:
        return format(format(line[key], pattern) if line.get(key) is not None else "-", f">{width}")

    spread = "{:.3f} - {:.3f}".format(*line["ms_10_90"])
    return (
        head + cell("ms", ".3f", 9) + f"{spread:>18}" + cell("graph_ms", ".3f", 10) + cell("peak_mib", ".0f", 8)
        + cell("times_ours", ".2f", 8) + cell("graph_times_ours", ".2f", 8) + cell("times_floor", ".1f", 9)
        + cell("difference", ".0e", 12)
        + ("" if line["status"] == "ok" else f"  {line['status']}")
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only operators whose name contains this")
    parser.add_argument("--no-gate", action="store_true", help="no operators with z, for which mamba_ssm tunes again")
    parser.add_argument("--shapes", default="", help="batch x length, with commas; all by default")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, help="file of JSON lines, added to")
    parser.add_argument("--skip-apart", action="store_true", help="neither first calls nor torch.compile")
    parser.add_argument("--first-call", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--compiled", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.first_call:
        operator, directions = arguments.first_call
        print(json.dumps(first_call(operator, int(directions))))
        return
    if arguments.compiled:
        print(json.dumps({"status": "ok", "lines": compiled_case(arguments.compiled, arguments.repeats)}))
        return
    shapes = tuple(tuple(map(int, shape.split("x"))) for shape in arguments.shapes.split(",") if shape) or SHAPES
    scrub = torch.empty(L2_BYTES // 4, dtype=torch.int32, device="cuda")
    bandwidth = copy_bandwidth(scrub)
    machine = describe_gpu() | {"copy_tb_s": bandwidth / 1e12, "repeats": arguments.repeats}
    print(json.dumps(machine))
    print(
        f"{'operator':30}{'shape':>9}  {'passes':18}{'form':52}{'ms':>9}{'10 - 90 %':>18}{'graph ms':>10}{'MiB':>8}"
        f"{'/ ours':>8}{'graph':>8}{'/ floor':>9}{'difference':>12}"
    )

    def report(line: dict) -> None:
        print(show(line), flush=True)
        if arguments.out is not None:
            with arguments.out.open("a") as file:
                file.write(json.dumps(line | machine) + "\n")

    one_direction: dict[tuple[str, ...], dict] = {}
    for cases in (operator_cases(shapes, short=not arguments.shapes), layer_cases(shapes)):
        for case in cases:
            if arguments.only not in case.operator or (arguments.no_gate and GATED in case.operator):
                continue
            for line in measure_case(case, arguments.repeats, bandwidth, scrub):
                if line["form"] == "ours" and "ms" in line:
                    key = (case.operator.removeprefix("bidirectional "), line["shape"], line["passes"])
                    if case.operator == key[0]:
                        one_direction[key] = line
                    elif key in one_direction:
                        line |= times("one_direction", line, one_direction[key])
                report(line)
                if "times_one_direction" in line:
                    graphs = line.get("graph_times_one_direction", math.nan)
                    print(f"{'':59}{line['times_one_direction']:.2f} times one direction, {graphs:.2f} of graphs")
    if arguments.skip_apart:
        return
    for operator in ("selective_scan", "ssd"):
        for directions in (1, 2):
            with tempfile.TemporaryDirectory() as cache:
                call = ["--first-call", operator, str(directions)]
                line = apart(call, FIRST_CALL_LIMIT, TRITON_CACHE_DIR=cache)
            name = ("bidirectional " if directions == 2 else "") + operator
            line |= {"operator": name, "shape": "32x512", "form": "ours, first call in a fresh process"}
            if line["status"] == "ok":
                line["status"] = (
                    "{first_s:.1f} s ({first_forward_s:.1f} forward, {first_training_s:.1f} with backward)".format(
                        **line
                    )
                )
            report(line)
    line = apart(["--compiled", "ssd"], COMPILE_LIMIT)
    base = {"operator": "ssd", "shape": "{}x{}".format(*PLAIN_AT), "form": "torch.compile of the plain form"}
    for entry in line.pop("lines", [line]):
        first = f"{entry['first_s']:.0f} s to compile" if "first_s" in entry else ""
        report(base | {"status": first} | entry)


if __name__ == "__main__":
    main()
