"""Everything that is measured of training on one GPU, in one process: kernels are compiled once.

    python benchmarks/training_gpu.py --out training_gpu.jsonl [--parts memory,speed,plan,nasty]

memory: checkpointing off, of the pair track, of all at 16 x 177 and 4 x 512 nt. speed: RNAs/s beside RibonanzaNet's.
plan: more shapes, tasks and sizes of the network, for `training_plan.py`. nasty: see nasty.py. Each JSON line is
written as soon as it is measured; tables follow. `--device cpu --tiny` tries the program without a GPU.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from nasty import run_injected, run_nasty, settings
from training_memory import BOTH, RELEASED, TINY, Case, measure, table, where

from ribonanzamamba.model.network import CHECKPOINTING

RIBONANZANET = {(32, 128): (93, 39.2), (16, 177): (47, 37.6)}
"""RNAs/s and GiB of RibonanzaNet's published training step on one H100 (torch 2.11, bfloat16 autocast, not compiled).
Not measured here: they are those of the design and of issue 4."""
REACTIVITY = ("reactivity",)
COORDINATES = ("coordinates",)
NARROW = replace(RELEASED, width=128, pair_width=32, blocks=4)
DEEP = replace(RELEASED, blocks=12)
WIDE = replace(RELEASED, width=384, pair_width=96, blocks=6)


def memory_cases() -> Iterator[Case]:
    for shape in ((16, 177), (4, 512)):
        for mode in CHECKPOINTING:
            yield Case(*shape, BOTH, mode, graphs=True)


def speed_cases() -> Iterator[Case]:
    for tasks, graphs in ((REACTIVITY, True), (BOTH, True), (REACTIVITY, False)):
        for shape in RIBONANZANET:
            yield Case(*shape, tasks, "off", graphs)


def plan_cases() -> Iterator[Case]:
    """Beyond the released network at the shapes above."""
    for mode in CHECKPOINTING:
        yield Case(128, 160, BOTH, mode, graphs=True)
        yield Case(48, 96, BOTH, mode)
        yield Case(24, 192, COORDINATES, mode, graphs=True)
        yield Case(32, 160, BOTH, mode, graphs=True, model=NARROW)
    yield Case(8, 256, BOTH, "off", graphs=True)
    yield Case(8, 256, BOTH, "pair")
    yield Case(64, 176, REACTIVITY, "off", graphs=True)
    yield Case(64, 176, REACTIVITY, "off")
    yield Case(16, 240, BOTH, "off", graphs=True, model=DEEP)
    yield Case(16, 240, BOTH, "all", graphs=True, model=DEEP)
    yield Case(16, 176, BOTH, "off", graphs=True, model=WIDE)
    yield Case(16, 176, BOTH, "pair", graphs=True, model=WIDE)


PARTS = {"memory": memory_cases, "speed": speed_cases, "plan": plan_cases}


def speed_table(rows: list[dict]) -> str:
    lines = [
        "| shape | tasks | graphs | RNAs/s | memory, GiB | RibonanzaNet (design): RNAs/s | GiB |",
        "|" + "---|" * 7,
    ]
    for row in rows:
        speed, memory = RIBONANZANET.get((row["examples"], row["length"]), ("", ""))
        tasks, graphs = " and ".join(row["tasks"]), "yes" if row["graphs"] else "no"
        lines.append(
            f"| {row['examples']} x {row['length']} | {tasks} | {graphs} | "
            f"{row['rnas_per_second']:.0f} | {row['memory_gib']} | {speed} | {memory} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default="memory,speed,plan,nasty")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--nasty-steps", type=int, default=1000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("ribonanzamamba").setLevel(logging.ERROR)
    device, began, place = arguments.device, time.perf_counter(), where(arguments.device)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("")
    rows: dict[str, list[dict]] = {}

    def keep(part: str, row: dict) -> None:
        row = {"part": part} | row | {"after_s": round(time.perf_counter() - began, 1)} | place
        rows.setdefault(part, []).append(row)
        print(json.dumps(row), flush=True)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    for part in arguments.parts.split(","):
        if part == "nasty":
            model = TINY if arguments.tiny else RELEASED
            keep(part, run_injected(settings(model), device, 120))
            keep(part, run_nasty(settings(model), arguments.nasty_steps, device, 120))
            continue
        for case in PARTS[part]():
            if arguments.tiny:
                case = replace(case, examples=2, length=case.length // 8, model=TINY)
            try:
                keep(part, measure(case, device, arguments.repeats))
            except torch.OutOfMemoryError as error:
                # the others can still be measured
                print(json.dumps(case.to_dict() | {"error": str(error)[:200]}), flush=True)
    if "memory" in rows:
        print(table(rows["memory"]))
    if "speed" in rows:
        print(speed_table(rows["speed"]))


if __name__ == "__main__":
    main()
