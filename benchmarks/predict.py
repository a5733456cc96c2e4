"""Seconds and peak memory of `ribonanzamamba predict` for one RNA of each length, each in a process of its own.

    python benchmarks/predict.py [--lengths 100,400,1000,2000] [--tasks reactivity,structure,coordinates]

One JSON line a length: wall seconds from process start, CPU seconds, peak resident memory.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


def measure(length: int, tasks: str) -> dict:
    sequence = "".join(random.Random(length).choices("ACGU", k=length))
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder) / "rna.fasta"
        fasta.write_text(f">random_{length}\n{sequence}\n")
        command = [
            sys.executable,
            "-m",
            "ribonanzamamba",
            "predict",
            str(fasta),
            "--out",
            f"{folder}/out",
            "--tasks",
            tasks,
        ]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    return {
        "length": length, "tasks": tasks, "exit": os.waitstatus_to_exitcode(status), "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2), "peak_gib": round(usage.ru_maxrss / 2**20, 2),
        "cores": os.cpu_count(), "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="76,100,400,1000,2000")
    parser.add_argument("--tasks", default="reactivity,structure,coordinates")
    arguments = parser.parse_args()
    for length in map(int, arguments.lengths.split(",")):
        print(json.dumps(measure(length, arguments.tasks)), flush=True)


if __name__ == "__main__":
    main()
