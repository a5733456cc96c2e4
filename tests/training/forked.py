"""Runs in forked children that are killed: a program for `test_survival.py`, so that PyTorch is imported once.

    python forked.py CONFIG.toml FOLDER kill|term

Prints one JSON object.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path


def child(config: str, out: Path, overrides=()) -> int:
    """Process id of a child that trains and leaves with 0, or what the signal says."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        from ribonanzamamba.training.loop import train

        train(config, out, overrides)
        code = 0
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.stderr.flush()
        os._exit(code)


def end_of(process: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def fingerprint(run: Path) -> dict:
    """Of everything that training made: weights, averages, moments, released weights, losses."""
    import torch

    state = torch.load(run / "state.pt", weights_only=True)
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            digest.update(value.numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list):
            for each in value:
                add(each)

    add({key: state[key] for key in ("network", "average", "optimizers")})
    for path in sorted((run / "checkpoint").iterdir()):
        digest.update(path.read_bytes())
    timed = ("seconds", "rnas_per_second", "waiting")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [{key: value for key, value in row.items() if key not in timed} for row in lines]
    return {"step": state["run"]["step"], "weights": digest.hexdigest(), "curve": curve}


def main() -> None:
    config, folder, how = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    import torch

    torch.set_num_threads(1)
    began = time.monotonic()
    assert end_of(child(config, folder / "whole")) == 0
    whole = time.monotonic() - began
    interrupted, ends, steps = folder / "interrupted", [], []
    if how == "kill":
        moments = random.Random(int(sys.argv[4]))
        for _ in range(10):
            process = child(config, interrupted)
            time.sleep(moments.uniform(0.05, 0.35) * whole)
            os.kill(process, signal.SIGKILL)
            ends.append(end_of(process))
            rows = interrupted / "metrics.jsonl"
            steps.append(len(rows.read_text().splitlines()) if rows.exists() else 0)
    else:
        # the signal comes in the middle of the second checkpoint's write
        real, writes = os.fsync, []

        def fsync(handle):
            if "state.pt.new" in os.readlink(f"/proc/self/fd/{handle}"):
                writes.append(handle)
                if len(writes) == 2:
                    os.kill(os.getpid(), getattr(signal, how))
            real(handle)

        os.fsync = fsync
        ends.append(end_of(child(config, interrupted)))
        os.fsync = real
        steps.append(torch.load(interrupted / "state.pt", weights_only=True)["run"]["step"])
    ends.append(end_of(child(config, interrupted)))
    print(
        json.dumps(
            {
                "seconds": whole,
                "ends": ends,
                "steps": steps,
                "whole": fingerprint(folder / "whole"),
                "interrupted": fingerprint(interrupted),
            }  # fmt: skip
        )
    )


if __name__ == "__main__":
    main()
