"""One training step of layers on (batch, time, node, width): ours, fused attention, and mamba_ssm reshaped by hand.

    python benchmarks/spatiotemporal.py [--device cuda] [--tiny] [--only TEXT] [--repeats 20] [--out FILE]

Forward and backward to the gradient of the input and of every parameter, bfloat16 autocast over float32 parameters,
64 x 12 x 207 x 64 and 8 x 288 x 207 x 64. A table on standard output; with --out a JSON line a contestant, hardware,
versions and commit in each. Columns:

    ms         median between two CUDA events, the L2 cache overwritten before each call: what an eager step costs,
               launches by the host included (on a CPU: processor milliseconds of one thread)
    10 - 90 %  of the repeats
    graph ms   the same of a replayed CUDA graph: the GPU alone
    MiB        most memory allocated during a step beyond input and parameters
    / ours     ms over those of the first contestant of the group

Groups: "both ways" (every step sees every other) and "causal" along time, and the whole `SpatioTemporalBlock` with one
word changed. mamba_ssm is called as its users do it, `permute(0, 2, 1, 3).reshape(B * N, T, D)` and back, with a second
layer over the flipped sequence where both ways are wanted. Its heads are 16 wide, since causal_conv1d takes strides
that are multiples of 8 and no others. A contestant that cannot be imported or run is a line that says why.
"""

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from machine import describe_gpu, describe_machine
from scan_gpu import L2_BYTES, describe, measure, measure_graph, measure_memory
from torch import Tensor, nn

from ribonanzamamba.layers import AxisAttention, SpatioTemporalBlock, TemporalMamba

SHAPES = ((64, 12, 207, 64), (8, 288, 207, 64))
TINY_SHAPES = ((2, 3, 4, 16), (1, 9, 4, 16))
STATE, SCAN_STATE, PEER_HEAD = 32, 16, 16
"""State of `ssd` and Mamba-2, of Mamba-1; width of a head of mamba_ssm's Mamba-2."""


class ByHand(nn.Module):
    """A layer on (row, length, width) with the reshapes of the videos around it; a second one for the way back."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, nodes, width = x.shape
        rows = x.permute(0, 2, 1, 3).reshape(batch * nodes, steps, width)
        y = self.layers[0](rows)
        if len(self.layers) == 2:
            y = (y + self.layers[1](rows.flip(1)).flip(1)) / 2
        return y.reshape(batch, nodes, steps, width).permute(0, 2, 1, 3)


class WithEmbedding(nn.Module):
    """A block that is given its input as the embedding too."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, x)


def peer(kind: str, width: int, count: int) -> nn.Module:
    """mamba_ssm's layer."""
    if kind == "Mamba":
        from mamba_ssm.modules.mamba_simple import Mamba
        from mamba_ssm.ops.selective_scan_interface import causal_conv1d_fn, selective_scan_cuda

        if selective_scan_cuda is None:
            raise ImportError("selective_scan_cuda is not compiled")
        # the fused path needs causal_conv1d
        return ByHand([Mamba(width, use_fast_path=causal_conv1d_fn is not None) for _ in range(count)])
    from mamba_ssm.modules.mamba2 import Mamba2
    from mamba_ssm.ops.triton.ssd_combined import causal_conv1d_fn

    options = {"d_state": STATE, "headdim": PEER_HEAD, "use_mem_eff_path": causal_conv1d_fn is not None}
    return ByHand([Mamba2(width, **options) for _ in range(count)])


def contestants(width: int) -> dict[tuple[str, str], Callable[[], nn.Module]]:
    """Group and name to what builds it; ours comes first in each group."""
    found: dict[tuple[str, str], Callable[[], nn.Module]] = {}
    for group, causal in (("both ways", False), ("causal", True)):
        options = {"causal": causal}
        for form, state in (("ssd", STATE), ("selective_scan", SCAN_STATE)):
            found[group, f"TemporalMamba, {form}"] = lambda o=options, f=form, n=state: TemporalMamba(
                width, form=f, d_state=n, **o
            )
        for heads in (8, 1):
            found[group, f"attention, {heads} head{'s' if heads > 1 else ''}"] = lambda o=options, h=heads: (
                AxisAttention(width, width, heads=h, **o)
            )
        for kind in ("Mamba", "Mamba2"):
            name = f"mamba_ssm {kind}" + ("" if causal else ", twice")
            count = 1 if causal else 2
            found[group, name] = lambda k=kind, n=count: peer(k, width, n)
    for temporal in ("mamba", "attention", "fusionmamba"):
        found["block", f"temporal {temporal}"] = lambda t=temporal: WithEmbedding(
            SpatioTemporalBlock(width, temporal=t, spatial="attention", heads=8)
        )
    return found


def step_of(layer: nn.Module, x: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """A call that returns the output and the gradients of the input and of the parameters."""
    leaves = (x, *layer.parameters())
    weight = torch.randn_like(x)

    def step() -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, torch.bfloat16):
            y = layer(x)
        return (y, *torch.autograd.grad(y, leaves, weight.to(y.dtype)))

    return step


def measure_on_cpu(step: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median, tenth and ninetieth percentile of processor milliseconds."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        step()
        times.append(1e3 * (time.process_time() - begin))
    times.sort()
    return statistics.median(times), times[len(times) // 10], times[-1 - len(times) // 10]


def measure_contestant(build: Callable[[], nn.Module], shape: tuple[int, ...], device: str, repeats: int) -> dict:
    torch.manual_seed(0)
    layer = build().to(device)
    x = torch.randn(shape, device=device).bfloat16().requires_grad_()
    step = step_of(layer, x)
    begin = time.perf_counter()
    # kernels are compiled and chosen here
    finite = all(tensor.isfinite().all().item() for tensor in step())
    first = time.perf_counter() - begin
    line: dict = {
        "status": "ok" if finite else "outputs or gradients are not finite",
        "parameters": sum(parameter.numel() for parameter in layer.parameters()),
        "first_s": first,
    }
    if device == "cpu":
        median, low, high = measure_on_cpu(step, repeats)
        return line | {"ms": median, "ms_10_90": [low, high]}
    for _ in range(3):
        step()
    scrub = torch.empty(L2_BYTES // 4, dtype=torch.int32, device=device)
    median, low, high = measure(step, repeats, scrub)
    line |= {"ms": median, "ms_10_90": [low, high], "peak_mib": measure_memory(step)}
    line["graph_ms"], why_not = measure_graph(step, repeats, scrub)
    return line if why_not is None else line | {"no_graph": why_not}


def measure_all(shapes: tuple[tuple[int, ...], ...], only: str, device: str, repeats: int) -> Iterator[dict]:
    """One line a contestant and shape; whatever one raises is its line's text."""
    for shape in shapes:
        ours: dict[str, float] = {}
        for (group, name), build in contestants(shape[-1]).items():
            if only not in f"{group}: {name}":
                continue
            line = {"shape": "x".join(map(str, shape)), "group": group, "contestant": name}
            try:
                line |= measure_contestant(build, shape, device, repeats)
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                line["status"] = describe(error)
            if "ms" in line:
                ours.setdefault(group, line["ms"])
                line["times_ours"] = line["ms"] / ours[group]
            if device != "cpu":
                torch.cuda.empty_cache()
            yield line


def show(line: dict) -> str:
    head = f"{line['shape']:>14}  {line['group']:10}{line['contestant']:30}"
    if "ms" not in line:
        return f"{head}  {line['status']}"

    def cell(key: str, pattern: str, width: int) -> str:
        return format(format(line[key], pattern) if line.get(key) is not None else "-", f">{width}")

    spread = "{:.3f} - {:.3f}".format(*line["ms_10_90"])
    text = head + cell("ms", ".3f", 10) + f"{spread:>20}" + cell("graph_ms", ".3f", 10) + cell("peak_mib", ".0f", 8)
    text += cell("parameters", ",", 12) + cell("times_ours", ".2f", 8)
    return text + ("" if line["status"] == "ok" else f"  {line['status']}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a few steps and nodes: whether it runs at all")
    parser.add_argument("--only", default="", help="only contestants whose `group: name` contains this")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, help="file of JSON lines, added to")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    about = (describe_machine() if options.device == "cpu" else describe_gpu()) | {"repeats": options.repeats}
    print(json.dumps(about))
    print(
        f"{'shape':>14}  {'group':10}{'contestant':30}{'ms':>10}{'10 - 90 %':>20}{'graph ms':>10}{'MiB':>8}"
        f"{'parameters':>12}{'/ ours':>8}"
    )
    begin = time.perf_counter()
    for line in measure_all(TINY_SHAPES if options.tiny else SHAPES, options.only, options.device, options.repeats):
        print(show(line), flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps(line | about) + "\n")
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
