"""Training steps over nasty batches, none of which may bring a NaN into the weights, and NaNs that are put into the
outputs of modules, whose names have to be found.

    python benchmarks/nasty.py [--steps 1000]

Two JSON lines, and exit code 1 where a line is not "ok". On a GPU in bfloat16; `--device cpu --tiny` tries the program
without one.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from training_memory import BOTH, RELEASED, TINY, made_example, where

from ribonanzamamba.data.batch import Batch, collate
from ribonanzamamba.data.prior import LEVELS, Prior
from ribonanzamamba.data.store import write_store
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import CHECKPOINTING
from ribonanzamamba.rna.records import PROBES
from ribonanzamamba.training.config import Config, LossConfig, TrainingConfig
from ribonanzamamba.training.guard import NonFiniteError, find_nonfinite
from ribonanzamamba.training.loop import train
from ribonanzamamba.training.loss import Counts
from ribonanzamamba.training.optimizer import averaged, build_optimizers
from ribonanzamamba.training.processes import ALONE
from ribonanzamamba.training.start import build_network
from ribonanzamamba.training.step import LOGGED, task_losses, train_step

SKIPPED_KIND = "infinite weight"
"""The only kind of batch without a finite loss: these, and no others, are to be skipped."""
ROWS = 8
"""RNAs of a batch."""


def nasty_batches(rng: np.random.Generator, longest: int, multiple: int) -> dict[str, Batch]:
    """A batch of each kind that has broken networks before, by name; lengths are random, up to `longest`."""
    length = int(rng.integers(5, longest))
    probes, atoms = (length, len(PROBES)), (length, 4, 3)
    no_target = {
        "reactivity": np.full(probes, np.nan, dtype=np.float32),
        "coordinates": np.full(atoms, np.nan, dtype=np.float32),
        "partners": np.full(length, -2, dtype=np.int32),
    }

    def of(rows: int = ROWS - 1, **changes) -> Batch:
        # every batch has an RNA of one nucleotide as well
        examples = [made_example(rng, length, **changes) for _ in range(rows)]
        return collate([*examples, made_example(rng, 1)], multiple)

    plain = of()
    one_empty, empty = plain.mask.clone(), torch.zeros_like(plain.mask)
    one_empty[0] = False
    # every nucleotide surely paired twice
    first = np.arange(length - 4, dtype=np.uint16)
    sure = Prior(first, first + np.uint16(4), np.full(length - 4, LEVELS, dtype=np.uint8))
    # an input of some RNAs, and what the others are taught
    withheld = {"prior_given": False, "partners": no_target["partners"]}
    impossible = [made_example(rng, length, prior=sure, **(withheld if row % 2 else {})) for row in range(ROWS - 1)]
    return {
        "plain": plain,
        "one row of padding": replace(plain, mask=one_empty),
        "nothing but padding": replace(plain, mask=empty),
        "targets all NaN": collate([made_example(rng, length, **no_target)] * ROWS, multiple),
        "one nucleotide": collate([made_example(rng, 1) for _ in range(ROWS)], multiple),
        "signal to noise 0": of(reactivity_weight=np.zeros(probes, dtype=np.float32)),
        SKIPPED_KIND: of(reactivity_weight=np.full(probes, np.inf, dtype=np.float32)),
        "huge targets": of(reactivity=np.full(probes, 6e4, dtype=np.float32)),
        "atoms in one place": of(coordinates=np.zeros(atoms, dtype=np.float32)),
        "one letter": replace(plain, tokens=torch.full_like(plain.tokens, 2)),
        "impossible prior": collate([*impossible, made_example(rng, 1)], multiple),
    }


def run_nasty(config: Config, steps: int, device: str, longest: int) -> dict:
    """Steps over nasty batches of both passes, all kinds in turn, with checkpointing off, of the pair track and of all
    in turn: what was skipped, and whether weights, averaged weights and moments are finite."""
    torch.manual_seed(0)
    network = build_network(config).to(device)
    average, optimizers = averaged(network, 0.999), build_optimizers(network, config.training)
    rng = np.random.default_rng(0)
    names: list[str] = []
    values: list[Tensor] = []
    waiting: list[tuple[str, Batch]] = []
    began = time.perf_counter()
    for step in range(steps):
        if not waiting:
            waiting = list(nasty_batches(rng, longest, multiple=1).items())
        name, batch = waiting.pop()
        network.checkpoint_activations(CHECKPOINTING[step % len(CHECKPOINTING)])
        batches = {BOTH: batch.to(device)}
        # every fourth step as in training: eleven kinds, so that each comes to this pass too
        if step % 4 == 0:
            batches[("coordinates",)] = batches[BOTH]
        # read at the end: the host does not wait for the device
        values.append(train_step(network, optimizers, batches, config, average=average))
        names.append(name)
    table = torch.stack(values).cpu()
    skipped = table[:, LOGGED.index("skipped")] > 0
    moments = [t for optimizer in optimizers for each in optimizer.state.values() for t in each.values()]
    tensors = [*network.state_dict().values(), *average.state_dict().values(), *moments]
    finite = all(bool(tensor.isfinite().all()) for tensor in tensors)
    right = all(bool(bad) == (name == SKIPPED_KIND) for name, bad in zip(names, skipped, strict=True))
    norms = table[~skipped, LOGGED.index("gradient_norm")]
    return {
        "nasty_steps": steps,
        "kinds": {name: names.count(name) for name in dict.fromkeys(names)},
        "skipped": int(skipped.sum()),
        "skipped_wrongly": [n for n, bad in zip(names, skipped, strict=True) if bad and n != SKIPPED_KIND],
        "largest_gradient_norm": round(float(norms.max()), 3),
        "all_finite": finite,
        "seconds": round(time.perf_counter() - began, 1),
        "ok": finite and right,
    }


def spoil(module: nn.Module, inputs: object, output: Tensor | tuple) -> Tensor | tuple:
    """A forward hook that makes the (first) output NaN."""
    nan = float("nan")
    return (output[0] * nan, *output[1:]) if isinstance(output, tuple) else output * nan


def run_injected(config: Config, device: str, longest: int) -> dict:
    """What `find_nonfinite` says of NaNs put into the outputs of modules, by module and checkpointing, and what a run
    says that is stopped by them."""
    torch.manual_seed(0)
    network = build_network(config).to(device).train()
    last = config.model.blocks - 1
    places = ["blocks.0.convolution", f"blocks.{last}.mamba.out_proj", f"blocks.{last}.pair_update", "pair_head"]
    found: dict[str, str] = {}
    rng = np.random.default_rng(0)
    batch = nasty_batches(rng, longest, 1)["plain"].to(device)

    def backward() -> dict[str, Tensor]:
        terms = task_losses(network, BOTH, batch, config, Counts.of(batch), ALONE)
        terms.total(config.loss).backward()
        return {"structure": terms.structure.detach()}

    clean = find_nonfinite(network, backward)
    for mode in CHECKPOINTING:
        network.checkpoint_activations(mode)
        for place in places:
            handle = network.get_submodule(place).register_forward_hook(spoil)
            found[f"{place} ({mode})"] = find_nonfinite(network, backward)
            handle.remove()
    named = all(f"module {key.split()[0]} (" in value for key, value in found.items())
    place = f"blocks.{last}.attention"
    stopped = stop_a_run(config, place, device)
    right = f"module {place} (forward pass)" in stopped
    return {"clean": clean, "found": found, "run": stopped, "ok": clean == "" and named and right}


def stop_a_run(config: Config, place: str, device: str) -> str:
    """The error of a run in which a module gives NaN from the third step on."""
    seen: list[None] = []

    def build(config: Config) -> nn.Module:
        network = build_network(config)

        def from_the_third(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            seen.append(None)
            return spoil(module, inputs, output) if len(seen) > 2 else output

        network.get_submodule(place).register_forward_hook(from_the_third)
        return network

    rng = np.random.default_rng(0)
    groups = {
        f"{task}/0/made/train": [replace(made_example(rng, 60, **none), cluster=k) for k in range(16)]
        for task, none in (
            ("reactivity", {"partners": None, "coordinates": None}),
            ("structure", {"reactivity": None, "reactivity_weight": None, "coordinates": None}),
        )
    }
    sections = {
        "model": config.model.to_dict(),
        "data": {"store": "store", "tokens": 640},
        "training": {"steps": 20, "valid_steps": 100, "device": device},
    }
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "store", groups)
        lines = []
        for section, values in sections.items():
            # TOML spells these values as JSON does
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        (Path(folder) / "run.toml").write_text("\n".join(lines))
        try:
            train(Path(folder) / "run.toml", Path(folder) / "run", build=build)
        except NonFiniteError as error:
            return str(error)
    return "the run was not stopped"


def settings(model: ModelConfig) -> Config:
    """A run of the default settings, but that base pairs are taught."""
    return Config(model=model, loss=LossConfig(taught_pairs=0.3), training=TrainingConfig())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--longest", type=int, default=120, help="nucleotides")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    model = TINY if arguments.tiny else RELEASED
    place = where(arguments.device)
    rows = [run_injected(settings(model), arguments.device, arguments.longest)]
    print(json.dumps(rows[-1] | place), flush=True)
    rows.append(run_nasty(settings(model), arguments.steps, arguments.device, arguments.longest))
    print(json.dumps(rows[-1] | place), flush=True)
    raise SystemExit(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    main()
