"""RibonanzaNet against RibonanzaMamba: speed and memory of training steps and of inference, one JSON line a number.

    python benchmarks/battle_speed.py [--compile-limit 420]     # a GPU, bfloat16
    python benchmarks/battle_speed.py --cpu                     # one thread, float32

A training step is that of the battle: forward and backward pass on reactivity, clipping, optimizer. Four contestants:
RibonanzaNet as written ("written"), the same under torch.compile with fixed shapes ("compiled", only with a time limit
above 0, seconds for all its shapes, compiling included), RibonanzaMamba ("ours") and the same with its passes recorded
as CUDA graphs, as the battle trains it ("graphs"). Each runs in a process of its own. A line without numbers says why:
out of memory, or not finished in time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch
from machine import describe_gpu, describe_machine
from torch import nn

from ribonanzamamba.data.batch import Batch
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.model.ribonanzanet import RibonanzaNet, RibonanzaNetConfig
from ribonanzamamba.training.config import Config, LossConfig, TrainingConfig
from ribonanzamamba.training.graphs import StepGraphs
from ribonanzamamba.training.optimizer import build_optimizers
from ribonanzamamba.training.step import train_step

PROBES = ("2A3", "DMS")
SHAPES = ((32, 128), (16, 177), (4, 512))
COMPILED_SHAPES = SHAPES[:2]
INFERENCE = (1, 2048)
CPU_LENGTHS = (100, 400, 1000)
CONTESTANTS = ("written", "compiled", "ours", "graphs")
WARM_UPS = 3


def build(contestant: str) -> tuple[nn.Module, Config]:
    """A network and how its steps are made."""
    torch.manual_seed(0)
    if contestant in ("written", "compiled"):
        config = Config(
            loss=LossConfig(reactivity_by_trust=False), training=TrainingConfig(optimizer="radam", fuse=False)
        )
        return RibonanzaNet(RibonanzaNetConfig.as_published()), config
    return RibonanzaMamba(ModelConfig(probes=PROBES, tasks=("reactivity",))), Config()


def made_batch(examples: int, length: int, device: str) -> Batch:
    """Random RNAs without padding, every position measured."""
    shape = (examples, length)
    generator = torch.Generator().manual_seed(length)
    return Batch(
        ids=("",) * examples,
        tokens=torch.randint(0, 4, shape, generator=generator),
        mask=torch.ones(shape, dtype=torch.bool),
        reactivity=torch.rand(*shape, len(PROBES), generator=generator),
        reactivity_weight=torch.ones(*shape, len(PROBES)),
    ).to(device)


def measure(function: Callable[[], object], repeats: int, synchronize: Callable[[], None]) -> tuple[float, float]:
    """Median and spread of wall milliseconds."""
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        function()
        synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), max(times) - min(times)


def measured_gpu(function: Callable[[], object], examples: int, repeats: int) -> dict:
    """Speed and peak memory of a function on the GPU, after warm-ups, of which the first may compile."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        start = time.perf_counter()
        for _ in range(WARM_UPS):
            function()
        torch.cuda.synchronize()
        warm_up = time.perf_counter() - start
        median, spread = measure(function, repeats, torch.cuda.synchronize)
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    return {
        "ms": round(median, 2), "spread_ms": round(spread, 2), "rnas_per_second": round(1000 * examples / median, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2), "warm_up_s": round(warm_up, 1),
    }  # fmt: skip


def gpu_rows(contestant: str, repeats: int) -> Iterator[dict]:
    """Training steps of all shapes, then inference."""
    network, config = build(contestant)
    network.cuda()
    optimizers = build_optimizers(network, config.training)
    if contestant == "compiled":
        network.fuse()
    graphs = StepGraphs(network) if contestant == "graphs" else None
    for examples, length in COMPILED_SHAPES if contestant == "compiled" else SHAPES:
        batch = made_batch(examples, length, "cuda")
        row = measured_gpu(
            lambda batch=batch: train_step(network, optimizers, {("reactivity",): batch}, config, graphs=graphs),
            examples,
            repeats,
        )
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        yield {"what": "training step", "contestant": contestant, "shape": f"{examples}x{length}"} | row
    if contestant in ("compiled", "graphs"):
        return
    examples, length = INFERENCE
    batch = made_batch(examples, length, "cuda")
    network.eval()

    @torch.inference_mode()
    def infer() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            network(batch.tokens, batch.mask, ("reactivity",))

    row = measured_gpu(infer, examples, repeats)
    yield {"what": "inference", "contestant": contestant, "shape": f"{examples}x{length}"} | row


def cpu_rows(lengths: dict[str, list[int]], repeats: int) -> Iterator[dict]:
    """Inference of one RNA of each length, one thread."""
    torch.set_num_threads(1)
    for contestant, its_lengths in lengths.items():
        network = build(contestant)[0].eval()
        for length in its_lengths:
            batch = made_batch(1, length, "cpu")

            @torch.inference_mode()
            def infer(network: nn.Module = network, batch: Batch = batch) -> None:
                network(batch.tokens, batch.mask, ("reactivity",))

            infer()
            median, spread = measure(infer, repeats, lambda: None)
            yield {
                "what": "inference, one thread", "contestant": contestant, "shape": f"1x{length}",
                "seconds": round(median / 1000, 3), "spread_s": round(spread / 1000, 3), "repeats": repeats,
            }  # fmt: skip


def show(row: dict, where: dict) -> None:
    print(json.dumps(row | where), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--compile-limit", type=float, default=0.0, help="seconds for the compiled one; 0: left out")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--lengths", default=",".join(map(str, CPU_LENGTHS)), help="of ours, with --cpu")
    parser.add_argument("--baseline-lengths", default="100,400", help="of RibonanzaNet, with --cpu; may be empty")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    contestants = arguments.contestants.split(",")
    if arguments.cpu:
        # as `predict` does: fresh pages cost a third of the time at 1,000 nt otherwise (Linux only)
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        lengths = {"ours": arguments.lengths, "written": arguments.baseline_lengths}
        chosen = {name: [int(text) for text in texts.split(",") if text] for name, texts in lengths.items()}
        for row in cpu_rows(chosen, min(arguments.repeats, 3)):
            show(row, describe_machine())
    elif arguments.here:
        for row in gpu_rows(contestants[0], arguments.repeats):
            show(row, describe_gpu())
    else:
        for contestant in contestants:
            limit = arguments.compile_limit if contestant == "compiled" else None
            if limit == 0:
                continue
            command = [sys.executable, __file__, "--here", "--contestants", contestant]
            try:
                subprocess.run([*command, "--repeats", str(arguments.repeats)], check=False, timeout=limit)
            except subprocess.TimeoutExpired:
                show({"contestant": contestant, "error": f"not finished in {limit:g} s"}, describe_gpu())


if __name__ == "__main__":
    main()
