"""Time and memory of an attention and of a Mamba along time, against the number of time steps.

    python benchmarks/cost_against_length.py [--lengths 64,128,...,8192] [--nodes 8] [--device cpu]
                                             [--picture FILE.png] [--json]

(batch, time, node, width) = 1 x T x nodes x 64, float32, forward and backward: `AxisAttention` (PyTorch's fused
attention), `TemporalMamba` from both ends, and causal. Median of the repeats after a warm-up, CPU seconds of one thread
on a CPU, wall seconds on a GPU. Memory: what PyTorch allocated at its peak on a GPU; on a CPU what autograd keeps for
the backward pass. A layer that takes longer than the limit is not measured at longer ones. Hardware, versions and
commit stand in each result line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from machine import describe_gpu, describe_machine
from torch import Tensor, nn

from ribonanzamamba.layers import AxisAttention, TemporalMamba

BATCH, WIDTH, HEADS = 1, 64, 8
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: AxisAttention(WIDTH, WIDTH, heads=HEADS),
    "Mamba, both ways": lambda: TemporalMamba(WIDTH),
    "Mamba, causal": lambda: TemporalMamba(WIDTH, causal=True),
}


def measure(name: str, length: int, nodes: int, device: str, repeats: int) -> dict:
    """Median, least and largest milliseconds, and MiB."""
    torch.manual_seed(0)
    layer = LAYERS[name]().to(device)
    x = torch.randn(BATCH, length, nodes, WIDTH, device=device)
    seconds = [timed(layer, x) for _ in range(repeats + 1)][1:]
    return {
        "layer": name,
        "length": length,
        "nodes": nodes,
        "ms": round(1e3 * statistics.median(seconds), 2),
        "ms_range": [round(1e3 * min(seconds), 2), round(1e3 * max(seconds), 2)],
        "mib": round(memory(layer, x) / 2**20, 2),
        **(describe_machine() if device == "cpu" else describe_gpu()),
    }


def timed(layer: nn.Module, x: Tensor) -> float:
    layer.zero_grad()
    if x.is_cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if x.is_cuda else time.process_time
    begin = clock()
    layer(x).sum().backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return clock() - begin


def memory(layer: nn.Module, x: Tensor) -> int:
    """Bytes at the peak on a GPU; on a CPU the tensors kept for the backward pass, each once."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        layer(x).sum().backward()
        return torch.cuda.max_memory_allocated() - before
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # the tensor is held, or its address would be used again
        kept[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    return sum(size for _, size in kept.values())


def draw(lines: list[dict], path: str) -> None:
    from matplotlib.figure import Figure

    from ribonanzamamba.plots.costs import draw_costs

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in LAYERS:
        same = [line for line in lines if line["layer"] == name]
        lengths = [line["length"] for line in same]
        draw_costs(left, lengths, [line["ms"] for line in same], name)
        draw_costs(right, lengths, [line["mib"] for line in same], name)
    left.set(xlabel="time steps", ylabel="ms, forward and backward")
    right.set(xlabel="time steps", ylabel="MiB")
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--nodes", type=int, default=8, help="as many rows of the sequence length")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=30, help="seconds of a pass beyond which a layer is left out")
    parser.add_argument("--picture", metavar="FILE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    lines, slow = [], set()
    for length in map(int, options.lengths.split(",")):
        for name in LAYERS:
            if name in slow:
                continue
            line = measure(name, length, options.nodes, options.device, options.repeats)
            lines.append(line)
            if line["ms"] > 1e3 * options.limit:
                slow.add(name)
            text = f"{name:24}{length:>6}{line['ms']:>12.2f} ms{line['mib']:>12.2f} MiB"
            print(json.dumps(line) if options.json else text, flush=True)
    if options.picture:
        draw(lines, options.picture)


if __name__ == "__main__":
    main()
