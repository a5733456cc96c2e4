"""Memory and time of a training step with activation checkpointing off, for the pair track, and for all; or steps over
nasty batches.

    python benchmarks/training_memory.py [--shapes 16x177,4x512] [--fuse] [--tasks reactivity,structure]
    python benchmarks/training_memory.py --nasty 1000 [--fuse]

One JSON line a measurement with what `train --plan` expects beside it, then a table. On a GPU in bfloat16;
`--device cpu --tiny` tries the program without one (no memory is measured there). Of the nasty batches only those with
an infinite weight have no finite loss: they, and no others, are to be skipped.
"""

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
import torch

from ribonanzamamba.data.batch import Batch, collate
from ribonanzamamba.data.example import Example
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import CHECKPOINTING, RibonanzaMamba
from ribonanzamamba.rna.records import PROBES
from ribonanzamamba.training.config import Config, TrainingConfig
from ribonanzamamba.training.loop import LOGGED, train_step
from ribonanzamamba.training.optimizer import averaged, build_optimizers
from ribonanzamamba.training.plan import Plan, resident_bytes, trace_fake

GIB = 2**30
TINY = ModelConfig(width=32, pair_width=16, blocks=2, heads=2, d_state=8, head_width=16, coordinate_width=24)


def made_example(rng: np.random.Generator, length: int, **changes) -> Example:
    values = {
        "reactivity": rng.random((length, len(PROBES)), dtype=np.float32),
        "reactivity_weight": np.ones((length, len(PROBES)), dtype=np.float32),
        "partners": np.full(length, -1, dtype=np.int32),
        "coordinates": rng.normal(size=(length, 4, 3)).astype(np.float32) * 20,
    }
    sequence = "".join(rng.choice(list("ACGU"), length))
    return Example(f"made{length}", sequence, 0, 1, "", **(values | changes))


def nasty_batch(rng: np.random.Generator, longest: int) -> tuple[str, Batch]:
    """A batch of a kind that has broken networks before, with its name."""
    length = int(rng.integers(5, longest))
    probes = (length, len(PROBES))
    kinds = {
        "plain": [{}],
        "targets all NaN": [
            {
                "reactivity": np.full(probes, np.nan, dtype=np.float32),
                "coordinates": np.full((length, 4, 3), np.nan, dtype=np.float32),
                "partners": np.full(length, -2, dtype=np.int32),
            }
        ],
        "signal to noise 0": [{"reactivity_weight": np.zeros(probes, dtype=np.float32)}],
        "infinite weight": [{"reactivity_weight": np.full(probes, np.inf, dtype=np.float32)}],
        "huge targets": [{"reactivity": np.full(probes, 6e4, dtype=np.float32)}],
        "atoms in one place": [{"coordinates": np.zeros((length, 4, 3), dtype=np.float32)}],
        "one nucleotide": None,
        "padded row": [{}],
        "one letter": [{}],
    }
    name = str(rng.choice(list(kinds)))
    if name == "one nucleotide":
        return name, collate([made_example(rng, 1) for _ in range(8)])
    examples = [made_example(rng, length, **kinds[name][0]) for _ in range(4)] + [made_example(rng, 1)]
    batch = collate(examples, multiple=16)
    mask, tokens = batch.mask.clone(), batch.tokens.clone()
    if name == "padded row":
        mask[0] = False
    if name == "one letter":
        tokens[:] = 2
    return name, Batch(batch.ids, tokens, mask, *batch._tensors()[2:])


def new_network(config: ModelConfig, device: str, mode: str, fuse: bool) -> RibonanzaMamba:
    torch.manual_seed(0)
    network = RibonanzaMamba(config).to(device)
    network.checkpoint_activations(mode)
    if fuse:
        network.fuse()
    return network


def measure(
    config: Config, shape: tuple[int, int], tasks: tuple[str, ...], mode: str, device: str, repeats: int
) -> dict:
    """Median seconds of a step and the peak of the allocator, beside the plan's."""
    network = new_network(config.model, device, mode, config.training.fuse)
    average, optimizers = averaged(network, 0.999), build_optimizers(network, config.training)
    rng = np.random.default_rng(0)
    batch = collate([made_example(rng, shape[1]) for _ in range(shape[0])])
    keep = [tensor if name in tasks_of(tasks) else None for name, tensor in named(batch)]
    batch = Batch(batch.ids, batch.tokens, batch.mask, *keep).to(device)
    times = []
    for k in range(repeats + 3):
        if k == 3 and device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        train_step(network, optimizers, {tasks: batch}, config)
        average.update_parameters(network)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    traced, parameters = trace_fake(config, mode, tasks, *shape)
    expected = Plan(
        parameters, parameters, resident_bytes(parameters, parameters, "muon"), (traced,), config.training.fuse, 1
    )
    return {
        "shape": f"{shape[0]}x{shape[1]}",
        "tasks": "+".join(tasks),
        "checkpointing": mode,
        "fuse": config.training.fuse,
        "seconds": round(statistics.median(times[3:]), 4),
        "spread": round(max(times[3:]) - min(times[3:]), 4),
        "memory_gib": round(torch.cuda.max_memory_allocated() / GIB, 2) if device == "cuda" else None,
        "planned_seconds": round(expected.seconds_per_step, 4),
        "planned_gib": round(expected.memory_gib, 2),
        # what the factors in training/plan.py are fitted to
        "traced_gib": round(traced.peak_bytes / GIB, 3),
        "traced_moved_gib": round(traced.moved_bytes / GIB, 2),
        "traced_tflop": round(traced.flops / 1e12, 3),
        "traced_operations": traced.operations,
    }


def named(batch: Batch) -> list[tuple[str, torch.Tensor | None]]:
    return list(zip(("reactivity", "reactivity_weight", "partners", "coordinates"), batch._tensors()[2:6], strict=True))


def tasks_of(tasks: tuple[str, ...]) -> set[str]:
    """The fields of a batch that these tasks need."""
    fields = {
        "reactivity": {"reactivity", "reactivity_weight"},
        "structure": {"partners"},
        "coordinates": {"coordinates"},
    }
    return set().union(*(fields[task] for task in tasks))


def run_nasty(config: Config, steps: int, device: str, longest: int) -> dict:
    """Steps over nasty batches of both passes; how many were skipped, and whether a weight is not finite."""
    network = new_network(config.model, device, config.training.checkpointing, config.training.fuse)
    optimizers = build_optimizers(network, config.training)
    rng = np.random.default_rng(0)
    skipped: dict[str, int] = {}
    counts: dict[str, int] = {}
    began = time.perf_counter()
    for step in range(steps):
        name, batch = nasty_batch(rng, longest)
        batches = {("reactivity", "structure"): batch.to(device)}
        if step % 4 == 0:
            batches[("coordinates",)] = nasty_batch(rng, longest)[1].to(device)
        values = train_step(network, optimizers, batches, config)
        counts[name] = counts.get(name, 0) + 1
        if values[LOGGED.index("skipped")].item():
            skipped[name] = skipped.get(name, 0) + 1
    finite = all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())
    return {
        "nasty_steps": steps,
        "kinds": counts,
        "skipped": skipped,
        "weights_finite": finite,
        "last_gradient_norm": values[LOGGED.index("gradient_norm")].item(),
        "seconds": round(time.perf_counter() - began, 1),
    }


def where(device: str) -> dict:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    ).stdout.strip()
    gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": gpu, "torch": torch.__version__, "commit": commit}


def table(rows: list[dict]) -> str:
    """Markdown, each shape's memory and time relative to off."""
    lines = [
        "| shape | checkpointing | ms a step | memory, GiB | planned, GiB | time / off | off / memory |",
        "|" + "---|" * 7,
    ]
    for row in rows:
        off = next(each for each in rows if each["shape"] == row["shape"] and each["checkpointing"] == "off")
        memory = row["memory_gib"] if row["memory_gib"] is not None else float("nan")
        saved = off["memory_gib"] / memory if row["memory_gib"] else float("nan")
        lines.append(
            f"| {row['shape']} | {row['checkpointing']} | {1000 * row['seconds']:.0f} | {memory:.2f} | "
            f"{row['planned_gib']:.2f} | {row['seconds'] / off['seconds']:.2f} | {saved:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="16x177,4x512")
    parser.add_argument("--tasks", default="reactivity,structure")
    parser.add_argument("--modes", default=",".join(CHECKPOINTING))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--nasty", type=int, default=0, metavar="STEPS")
    parser.add_argument("--longest", type=int, default=200, help="nucleotides, of nasty batches")
    parser.add_argument("--fuse", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    model = TINY if arguments.tiny else ModelConfig()
    config = Config(model=model, training=TrainingConfig(fuse=arguments.fuse))
    place = where(arguments.device)
    if arguments.nasty:
        print(json.dumps(run_nasty(config, arguments.nasty, arguments.device, arguments.longest) | place), flush=True)
        return
    rows = []
    for text in arguments.shapes.split(","):
        examples, length = map(int, text.split("x"))
        for mode in arguments.modes.split(","):
            tasks = tuple(arguments.tasks.split(","))
            rows.append(measure(config, (examples, length), tasks, mode, arguments.device, arguments.repeats) | place)
            print(json.dumps(rows[-1]), flush=True)
            if arguments.device == "cuda":
                torch.cuda.empty_cache()
    print(table(rows))


if __name__ == "__main__":
    main()
