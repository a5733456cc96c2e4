"""CPU time and memory of one causal Mamba block, ours beside transformers and mambapy where they are installed.

(`scan_gpu.py` is the same for the operators on a GPU.)

    python -m pip install transformers mambapy      # optional
    python benchmarks/scan.py [--lengths 128,512,2048] [--forms mambapy] [--limit 60] [--json]

d_model 256, batch 4, float32, one thread, the same weights wherever a form has the same parameters. Each measurement
runs in a process of its own: median, least and largest CPU seconds of the repeats after a warm-up, and the memory that
the process grew by at its peak. Forms whose forward pass differs from ours are marked, not timed. A form that takes
longer than the limit (wall seconds, start and warm-up included) is stopped and reported as such.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from machine import describe_machine
from torch import Tensor, nn

from ribonanzamamba.layers import Mamba, Mamba2

WIDTH, BATCH = 256, 4
PASSES = ("forward", "forward+backward")
LARGEST_DIFFERENCE = 1e-4
"""Between two forms with the same weights, relative to the largest output; float32 differs by about 1e-6."""


def ours_mamba() -> tuple[nn.Module, None]:
    return Mamba(WIDTH), None


def ours_mamba2() -> tuple[nn.Module, None]:
    return Mamba2(WIDTH, d_state=64), None


def transformers_mamba() -> tuple[nn.Module, nn.Module]:
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    ours = Mamba(WIDTH)
    theirs = MambaMixer(MambaConfig(hidden_size=WIDTH, state_size=16), layer_idx=0)
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


def transformers_mamba2() -> tuple[nn.Module, nn.Module]:
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    ours = Mamba2(WIDTH, d_state=64)
    config = Mamba2Config(hidden_size=WIDTH, state_size=64, num_heads=8, head_dim=64, n_groups=1)
    theirs = Mamba2Mixer(config, layer_idx=0)
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


def mambapy_mamba() -> tuple[nn.Module, nn.Module]:
    from mambapy.mamba import MambaBlock, MambaConfig

    ours = Mamba(WIDTH)
    theirs = MambaBlock(MambaConfig(d_model=WIDTH, n_layers=1))
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


FORMS: dict[str, tuple[str | None, Callable]] = {
    "Mamba (ours)": (None, ours_mamba),
    "Mamba (transformers)": ("transformers", transformers_mamba),
    "Mamba (mambapy)": ("mambapy", mambapy_mamba),
    "Mamba2 (ours)": (None, ours_mamba2),
    "Mamba2 (transformers)": ("transformers", transformers_mamba2),
}
"""Name to the package needed, and a function that builds the layer and ours with its weights."""


def measure(form: str, length: int, passes: str, repeats: int, connection) -> None:
    """Send CPU seconds of each repeat, peak growth in MiB and the relative difference from ours."""
    warnings.simplefilter("ignore")
    # transformers announces its slow path, which is the one meant
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer, ours = FORMS[form][1]()
    x = torch.randn(BATCH, length, WIDTH)
    start_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        run(layer, x, passes)
        seconds.append(time.process_time() - begin)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kib
    difference = None
    if ours is not None:
        short = x[:, :128]
        with torch.no_grad():
            expected = ours(short)
            difference = ((layer(short) - expected).abs().max() / expected.abs().max()).item()
    connection.send((seconds[1:], peak_kib / 1024, difference))


def run(layer: nn.Module, x: Tensor, passes: str) -> None:
    if passes == "forward":
        with torch.no_grad():
            layer(x)
        return
    layer.zero_grad()
    layer(x.clone().requires_grad_()).sum().backward()


def measure_apart(form: str, length: int, passes: str, repeats: int, limit: float) -> dict:
    """One result line, from a fresh process."""
    package = FORMS[form][0]
    line = {"form": form, "length": length, "passes": passes, **describe_machine()}
    if package is not None:
        try:
            line["version"] = f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            return line | {"status": f"{package} is not installed"}
    # spawn: a forked process would start with the peak of its parent
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(form, length, passes, repeats, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            return line | {"status": f"more than {limit:g} s"}
        seconds, peak, difference = receiver.recv()
    except EOFError:
        return line | {"status": "failed"}
    finally:
        process.terminate()
        process.join()
    if difference is not None and difference > LARGEST_DIFFERENCE:
        return line | {"status": f"differs from ours by {difference:.1e}"}
    return line | {
        "status": "ok",
        "cpu_ms": round(1e3 * statistics.median(seconds), 1),
        "cpu_ms_range": [round(1e3 * min(seconds), 1), round(1e3 * max(seconds), 1)],
        "peak_growth_mib": round(peak),
        "difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="128,512,2048")
    parser.add_argument("--forms", default="", help="only forms whose name contains this")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60, help="wall seconds a measurement may take")
    parser.add_argument("--json", action="store_true", help="one JSON line a measurement instead of a table")
    arguments = parser.parse_args()
    if not arguments.json:
        print(f"{'form':24}{'length':>8}{'passes':>20}{'CPU ms':>10}{'least - largest':>22}{'peak growth MiB':>18}")
    for length in map(int, arguments.lengths.split(",")):
        for passes in PASSES:
            for form in (name for name in FORMS if arguments.forms in name):
                line = measure_apart(form, length, passes, arguments.repeats, arguments.limit)
                if arguments.json:
                    print(json.dumps(line), flush=True)
                    continue
                if line["status"] == "ok":
                    spread = "{} - {}".format(*line["cpu_ms_range"])
                    shown = f"{line['cpu_ms']:>10}{spread:>22}{line['peak_growth_mib']:>18}"
                else:
                    shown = f"  {line['status']}"
                print(f"{form:24}{length:>8}{passes:>20}{shown}", flush=True)


if __name__ == "__main__":
    main()
