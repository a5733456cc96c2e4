"""Memory and time of a training step of the released network with activation checkpointing off, for the pair track, and
for all.

    python benchmarks/training_memory.py [--shapes 16x177,4x512] [--graphs] [--tasks reactivity,structure]

One JSON line a measurement, then a table. On a GPU in bfloat16; `--device cpu --tiny` tries the program without one (no
memory is measured there). `training_plan.py` puts what `train --plan` expects beside the lines.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from machine import describe_machine

from ribonanzamamba.data.batch import Batch, collate
from ribonanzamamba.data.example import Example
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import CHECKPOINTING
from ribonanzamamba.rna.records import PROBES
from ribonanzamamba.training.config import Config, TrainingConfig
from ribonanzamamba.training.graphs import StepGraphs
from ribonanzamamba.training.optimizer import averaged, build_optimizers
from ribonanzamamba.training.start import build_network
from ribonanzamamba.training.step import train_step

GIB = 2**30
BOTH = ("reactivity", "structure")
RELEASED = ModelConfig(pair_prior=True)
TINY = ModelConfig(
    width=32, pair_width=16, blocks=2, heads=2, d_state=8, head_width=16, coordinate_width=24, pair_prior=True
)
WARM_UP = 4
"""Steps before the first that is timed: kernels are compiled, optimizers make their moments."""


@dataclass(frozen=True)
class Case:
    """What is measured: a training step over a batch of equal RNAs."""

    examples: int
    length: int
    tasks: tuple[str, ...] = BOTH
    checkpointing: str = "off"
    graphs: bool = False
    model: ModelConfig = RELEASED

    @property
    def config(self) -> Config:
        return Config(
            model=self.model,
            training=TrainingConfig(graphs=self.graphs, checkpointing=self.checkpointing, warmup_steps=1),
        )

    @property
    def shape(self) -> str:
        return f"{self.examples}x{self.length}"

    def to_dict(self) -> dict:
        """Plain values; of the model those that differ from the released one's."""
        model, released = self.model.to_dict(), RELEASED.to_dict()
        changed = {key: value for key, value in model.items() if value != released[key]}
        return asdict(self) | {"tasks": list(self.tasks), "model": changed}

    @classmethod
    def from_dict(cls, values: dict) -> "Case":
        """The inverse of `to_dict`; other keys are left out."""
        own = {key: values[key] for key in ("examples", "length", "checkpointing", "graphs")}
        return cls(**own, tasks=tuple(values["tasks"]), model=replace(RELEASED, **values["model"]))


def made_example(rng: np.random.Generator, length: int, **changes) -> Example:
    """An RNA of random letters with every measurement, all random but the pairs, of which there are none."""
    values = {
        "reactivity": rng.random((length, len(PROBES)), dtype=np.float32),
        "reactivity_weight": np.ones((length, len(PROBES)), dtype=np.float32),
        "partners": np.full(length, -1, dtype=np.int32),
        "coordinates": rng.normal(size=(length, 4, 3)).astype(np.float32) * 20,
    }
    sequence = "".join(rng.choice(list("ACGU"), length))
    return Example(f"made{length}", sequence, 0, 1, "made", **(values | changes))


def made_batch(case: Case) -> Batch:
    """A batch of the case's shape with what its tasks measure."""
    fields = {
        "reactivity": ("reactivity", "reactivity_weight"),
        "structure": ("partners",),
        "coordinates": ("coordinates",),
    }
    wanted = {name for task in case.tasks for name in fields[task]}
    unwanted = {name: None for names in fields.values() for name in names if name not in wanted}
    rng = np.random.default_rng(0)
    return collate([made_example(rng, case.length, **unwanted) for _ in range(case.examples)])


def step_seconds(step: Callable[[], object], repeats: int, device: str) -> list[float]:
    """Seconds of each of some steps in a row, between which the host does not wait for the device: as in training."""
    if device != "cuda":
        times = [time.perf_counter()]
        for _ in range(repeats):
            step()
            times.append(time.perf_counter())
        return [after - before for before, after in zip(times, times[1:], strict=False)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in zip(events, events[1:], strict=False)]


def measure(case: Case, device: str, repeats: int) -> dict:
    """Median seconds of a step of one case, and the peak of the allocator."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
    config = case.config
    torch.manual_seed(0)
    network = build_network(config).to(device)
    network.checkpoint_activations(case.checkpointing)
    graphs = StepGraphs(network) if case.graphs and device == "cuda" else None
    average, optimizers = averaged(network, 0.999), build_optimizers(network, config.training)
    batch = made_batch(case).to(device)

    def step() -> None:
        train_step(network, optimizers, {case.tasks: batch}, config, graphs=graphs, average=average)

    if device == "cuda":
        # what a graph needs is asked for once, when it is recorded
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step_seconds(step, WARM_UP, device)
    warm_up = time.perf_counter() - began
    times = step_seconds(step, repeats, device)
    median = statistics.median(times)
    return case.to_dict() | {
        "seconds": round(median, 5),
        "spread": round(max(times) - min(times), 5),
        "rnas_per_second": round(case.examples / median, 1),
        "memory_gib": round((torch.cuda.max_memory_allocated() - before) / GIB, 3) if device == "cuda" else None,
        "warm_up_s": round(warm_up, 1),
    }


def where(device: str) -> dict:
    """Card, processor, versions and commit."""
    return {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"} | describe_machine()


def table(rows: list[dict]) -> str:
    """Markdown, each shape's memory and time relative to off."""
    lines = ["| shape | checkpointing | ms a step | memory, GiB | time / off | off / memory |", "|" + "---|" * 6]
    for row in rows:
        shape = (row["examples"], row["length"])
        off = next(r for r in rows if (r["examples"], r["length"]) == shape and r["checkpointing"] == "off")
        memory, saved = "", ""
        if row["memory_gib"] is not None:
            memory, saved = f"{row['memory_gib']:.2f}", f"{off['memory_gib'] / row['memory_gib']:.2f}"
        lines.append(
            f"| {row['examples']} x {row['length']} | {row['checkpointing']} | {1000 * row['seconds']:.0f} | "
            f"{memory} | {row['seconds'] / off['seconds']:.2f} | {saved} |"
        )
    return "\n".join(lines)


def shape_of(text: str) -> tuple[int, int]:
    """Examples and length of "16x177"."""
    examples, length = map(int, text.split("x"))
    return examples, length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="16x177,4x512")
    parser.add_argument("--tasks", default=",".join(BOTH))
    parser.add_argument("--modes", default=",".join(CHECKPOINTING))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--graphs", action="store_true", help="record the passes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    tasks, model = tuple(arguments.tasks.split(",")), TINY if arguments.tiny else RELEASED
    rows = []
    for shape in map(shape_of, arguments.shapes.split(",")):
        for mode in arguments.modes.split(","):
            case = Case(*shape, tasks, mode, arguments.graphs, model)
            rows.append(measure(case, arguments.device, arguments.repeats) | where(arguments.device))
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
