"""Time and memory of one training step of the network; its costliest kernels.

    python benchmarks/training_step.py [--shapes 64x176,32x128] [--profile]

One JSON line a shape; needs a GPU.
"""

import argparse
import json
import statistics
import time
from functools import partial

import torch

from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.training.config import TrainingConfig
from ribonanzamamba.training.optimizer import build_optimizers


def step(network, tokens, mask, tasks):
    with torch.autocast("cuda", torch.bfloat16):
        output = network(tokens, mask, tasks)
    fields = (output.reactivity, output.reactivity_error, output.pair_logit, output.coordinates, output.plddt_logit)
    sum(field.clamp(min=-10).mean() for field in fields if field is not None).backward()


def measure(function, repeats: int) -> tuple[float, float]:
    """Median and spread of wall milliseconds, synchronised."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), max(times) - min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="64x176,32x128")
    parser.add_argument("--tasks", default="reactivity")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    network = RibonanzaMamba(ModelConfig()).cuda().train()
    tasks = arguments.tasks.split(",")
    for shape in arguments.shapes.split(","):
        batch, length = map(int, shape.split("x"))
        tokens = torch.randint(0, 4, (batch, length), device="cuda")
        mask = torch.ones(batch, length, dtype=torch.bool, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        for _ in range(2):
            step(network, tokens, mask, tasks)
        torch.cuda.synchronize()
        warm_up = time.perf_counter() - start
        median, spread = measure(partial(step, network, tokens, mask, tasks), arguments.repeats)
        row = {
            "shape": shape, "tasks": arguments.tasks, "ms": round(median, 2), "spread_ms": round(spread, 2),
            "rnas_per_second": round(1000 * batch / median, 1),
            "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "warm_up_s": round(warm_up, 1), "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
        }  # fmt: skip
        print(json.dumps(row), flush=True)
    optimizers = build_optimizers(network, TrainingConfig())
    [optimizer.step() for optimizer in optimizers]
    for optimizer in optimizers:
        median, spread = measure(optimizer.step, arguments.repeats)
        print(
            json.dumps({"optimizer": type(optimizer).__name__, "ms": round(median, 2), "spread_ms": round(spread, 2)})
        )
    if arguments.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step(network, tokens, mask, tasks)
            torch.cuda.synchronize()
        print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=90))


if __name__ == "__main__":
    main()
