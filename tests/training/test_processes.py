"""Two processes on one CPU: the same loss and gradients as one process, and one folder."""

import ast
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ribonanzamamba.training.processes import ALONE, joined

PROGRAM = """
import sys, json, dataclasses
import numpy as np
import torch
torch.set_num_threads(1)
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.training.config import Config, DataConfig
from ribonanzamamba.training.batches import PASSES, batches_used, task_batches
from ribonanzamamba.training.step import sum_values, task_losses, whole_counts
from ribonanzamamba.training.loss import Losses
from ribonanzamamba.training.tables import read_tables
from ribonanzamamba.training.processes import joined

folder, out = sys.argv[1:]
config = Config(
    model=ModelConfig(width=32, pair_width=16, blocks=2, heads=2, d_state=8, head_width=16, coordinate_width=24,
                      coordinate_layers=1, coordinate_models=2, dropout=0.0),
    data=DataConfig(**{task: (f"{folder}/{task}.parquet",) for task in ("reactivity", "structure", "coordinates")},
                    tokens=5 * 32, coordinate_tokens=3 * 32, coordinate_max_length=32),
)
with joined("cpu") as processes:
    torch.manual_seed(processes.rank)  # the first process's weights count
    network = RibonanzaMamba(config.model)
    processes.share_weights(network)
    torch.manual_seed(0)
    if processes.count == 1:
        network = RibonanzaMamba(config.model)
    training, _ = read_tables(config.data)
    rows, sizes = [], []
    for wanted in (PASSES, PASSES[:1]):
        for tasks in wanted:
            stream = task_batches(tasks, training, config.data, np.random.default_rng(8), torch.device("cpu"),
                                  processes=processes)
            shard = next(stream)
            sizes.append([len(shard), 0 if shard.batch is None else len(shard.batch)])
            counts = whole_counts(shard.batch, processes)
            terms = Losses()
            if shard.batch is not None:
                terms = task_losses(network, tasks, shard.batch, config, counts, processes)
            if (total := terms.total(config.loss)) is not None:
                total.backward()
            values = [getattr(terms, name) for name in ("reactivity", "reactivity_error", "structure", "coordinates")]
            values = torch.stack([torch.tensor(float("nan")) if v is None else v.detach() for v in values])
            rows.append(sum_values(values, torch.zeros(()), processes)[0].tolist())
        if wanted is PASSES:
            processes.sum_gradients(network.parameters())
            gradients = {name: p.grad for name, p in network.named_parameters()}
            network.zero_grad(set_to_none=True)
    # the second time only the sequence heads and the trunk have gradients
    processes.sum_gradients(network.parameters())
    unused = [name for name, p in network.named_parameters() if p.grad is None]
    texts = processes.gather(f"rank {processes.rank} " + "x" * processes.rank)
    if processes.leads:
        torch.save({"gradients": gradients, "rows": rows, "unused": unused, "sizes": sizes, "texts": texts}, out)
"""


def environments(count: int) -> list[dict[str, str]]:
    """What `torchrun` sets for each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    return [os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def together(count: int, *command: str) -> None:
    """Run a Python command in so many processes, as `torchrun` does."""
    running = [
        subprocess.Popen(
            [sys.executable, *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for env in environments(count)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * count, "\n".join(outputs)


def test_two_processes_give_the_loss_and_gradients_of_one(tables):
    results = []
    for count in (1, 2):
        out = tables / f"{count}.pt"
        together(count, "-c", PROGRAM, str(tables), str(out))
        results.append(torch.load(out))
    one, two = results
    assert one["sizes"] == [[5, 5], [3, 3], [5, 5]] and two["sizes"] == [[5, 3], [3, 2], [5, 3]], "uneven shards"
    torch.testing.assert_close(
        torch.tensor(two["rows"]), torch.tensor(one["rows"]), rtol=1e-5, atol=1e-6, equal_nan=True
    )
    assert all(gradient is not None for gradient in one["gradients"].values())
    for name, gradient in one["gradients"].items():
        # of the whole gradient's size: single numbers near zero are all rounding
        scale = max(gradient.abs().max().item(), 1e-3)
        assert (two["gradients"][name] - gradient).abs().max().item() < 1e-5 * scale, name
    assert one["unused"] == two["unused"] and all(name.startswith("coordinate_module") for name in one["unused"])
    assert two["texts"] == ["rank 0 ", "rank 1 x"]


RUN = """
name = "two"
[model]
width = 16
pair_width = 8
blocks = 1
heads = 2
d_state = 8
head_width = 16
coordinate_width = 16
coordinate_layers = 1
coordinate_models = 2
dropout = 0.0
[data]
reactivity = ["reactivity.parquet"]
structure = ["structure.parquet"]
coordinates = ["coordinates.parquet"]
tokens = 96
coordinate_tokens = 32
coordinate_max_length = 32
coordinate_steps = 2
[training]
steps = 6
log_steps = 1
valid_steps = 4
warmup_steps = 1
device = "cpu"
"""


def curve(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "learning_rate" in row]


def test_a_run_of_two_processes(tables):
    # batches of coordinates have one example: the second process has none of it
    config = tables / "two.toml"
    config.write_text(RUN)
    for count in (1, 2):
        program = ["-m", "ribonanzamamba", "train", str(config), "--out", str(tables / f"run{count}")]
        together(count, *program, "--set", "training.steps=3")
        together(count, *program)
    one, two = curve(tables / "run1"), curve(tables / "run2")
    assert [row["step"] for row in two] == [1, 2, 3, 4, 5, 6]
    for left, right in zip(one, two, strict=True):
        assert {key for key in left if key.startswith("loss/")} == {key for key in right if key.startswith("loss/")}
        for key in left:
            if key.startswith("loss/"):
                # rounding grows with the steps through Muon's bfloat16
                assert right[key] == pytest.approx(left[key], rel=1e-5 if left["step"] == 1 else 2e-2, abs=1e-5), key
    states = [torch.load(tables / f"run{k}" / "state.pt", weights_only=True)["run"] for k in (1, 2)]
    assert [state["step"] for state in states] == [6, 6]


STEPS = """
import sys
import numpy as np
import torch
torch.set_num_threads(1)
from ribonanzamamba.training.config import read_config
from ribonanzamamba.training.batches import PASSES, task_batches
from ribonanzamamba.training.step import train_step
from ribonanzamamba.training.optimizer import averaged, build_optimizers
from ribonanzamamba.training.processes import joined
from ribonanzamamba.training.sharding import shard_weights, whole
from ribonanzamamba.training.start import build_network
from ribonanzamamba.training.tables import read_tables

path, out, parallel, optimizer = sys.argv[1:]
config = read_config(path, [f"training.optimizer={optimizer}", "data.reactivity_share=0.3"])
with joined("cpu", parallel) as processes:
    torch.manual_seed(0)
    network = build_network(config)
    network.checkpoint_activations("all")
    average, optimizers = averaged(network, 0.9), build_optimizers(network, config.training)
    if processes.shards:
        shard_weights(network, average, optimizers, processes.device)
    training, _ = read_tables(config.data)
    streams = {
        tasks: task_batches(tasks, training, config.data, np.random.default_rng(k), processes.device,
                            processes=processes)
        for k, tasks in enumerate(PASSES)
    }
    values, measured = [], []
    for step in range(8):
        batches = {tasks: next(stream).batch for tasks, stream in streams.items()}
        measured.append([batch is not None and batch.reactivity is not None for batch in batches.values()])
        if step == 5 and (weight := batches[PASSES[0]].reactivity_weight) is not None:
            weight.fill_(float("inf"))
        values.append(train_step(network, optimizers, batches, config, processes))
        average.update_parameters(network)
    held = sum(p.to_local().numel() if processes.shards else p.numel() for p in network.parameters())
    weights, means = whole(network.state_dict()), whole(average.state_dict())
    texts = processes.gather(str((held, measured)))
    if processes.leads:
        torch.save({"values": torch.stack(values), "weights": weights, "means": means, "texts": texts}, out)
"""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_divided_weights_train_as_whole_ones(tables, optimizer):
    # batches of coordinates have one example, some others no reactivity in one process; the sixth batch is bad
    (tables / "two.toml").write_text(RUN)
    results = {}
    for parallel in ("replicate", "shard"):
        out = tables / f"{parallel}.pt"
        together(2, "-c", STEPS, str(tables / "two.toml"), str(out), parallel, optimizer)
        results[parallel] = torch.load(out)
    replicated, divided = results["replicate"], results["shard"]
    # sums in another order differ in the last digit, which flips roundings to bfloat16 inside Muon, step after step
    rtol = 1e-3 if optimizer == "muon" else 1e-5
    torch.testing.assert_close(divided["values"], replicated["values"], rtol=rtol, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(divided["values"][:2], replicated["values"][:2], rtol=1e-5, atol=1e-6, equal_nan=True)
    assert replicated["values"][:, -1].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    for kind in ("weights", "means"):
        for name, tensor in replicated[kind].items():
            # rounding moves a weight without a gradient to speak of by a share of Adam's step, 1e-3
            torch.testing.assert_close(divided[kind][name], tensor, rtol=0, atol=1e-3, msg=f"{kind} {name}")
    (held, first), (other, second) = map(ast.literal_eval, divided["texts"])
    parameters = sum(tensor.numel() for tensor in replicated["weights"].values())
    assert held + other == parameters and other < held < 0.6 * parameters
    assert first != second, "measured in one process alone"


def test_a_run_of_divided_weights_goes_on(tables):
    config = tables / "two.toml"
    config.write_text(RUN)
    states = {}
    for run, sittings in (("once", [6]), ("twice", [4, 6])):
        program = ["-m", "ribonanzamamba", "train", str(config), "--out", str(tables / run)]
        program += ["--set", "training.decay_share=0.0"]
        for steps in sittings:
            together(2, *program, "--set", "training.parallel=shard", "--set", f"training.steps={steps}")
        states[run] = torch.load(tables / run / "state.pt", weights_only=True)
    for name, tensor in states["once"]["network"].items():
        assert torch.equal(states["twice"]["network"][name], tensor), name
    # and one process, which has all weights, goes on where the two stopped
    together(1, *program, "--set", "training.steps=7")
    assert [row["step"] for row in curve(tables / "twice")] == [1, 2, 3, 4, 5, 6, 7]


SPOILED = """
import sys
import torch
torch.set_num_threads(1)
from ribonanzamamba.training.guard import NonFiniteError
from ribonanzamamba.training.loop import train
from ribonanzamamba.training.start import build_network

seen = []

def build(config):
    network = build_network(config)

    def spoil(module, inputs, output):
        if module.training:
            seen.append(None)
            return output * float("nan") if len(seen) > 2 else output

    network.blocks[0].attention.register_forward_hook(spoil)
    return network

path, out = sys.argv[1:]
try:
    train(path, out, ["training.parallel=shard", "data.coordinates=[]"], build=build)
except NonFiniteError as error:
    assert "module blocks.0.attention (forward pass)" in str(error), error
else:
    raise AssertionError("the run was not stopped")
"""


def test_a_module_of_divided_weights_is_named(tables):
    (tables / "two.toml").write_text(RUN)
    together(2, "-c", SPOILED, str(tables / "two.toml"), str(tables / "run"))
    saved = torch.load(tables / "run" / "state.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in saved["network"].values())


def test_minutes_end_all_processes_at_one_step(tables):
    config = tables / "two.toml"
    config.write_text(RUN)
    overrides = ["training.minutes=0.04", "training.steps=100000", "training.valid_steps=100000"]
    command = ["-m", "ribonanzamamba", "train", str(config), "--out", str(tables / "run")]
    together(2, *command, *(part for each in overrides for part in ("--set", each)))
    state = torch.load(tables / "run" / "state.pt", weights_only=True)["run"]
    assert state["step"] == state["finished"] and state["seconds"] >= 2.4


def test_another_word_than_replicate_or_shard():
    with pytest.raises(ValueError, match="training.parallel: expected one of .*, got 'split'"), joined("cpu", "split"):
        pass


def test_alone_nothing_is_exchanged():
    layer = nn.Linear(2, 2)
    layer.weight.grad = torch.ones(2, 2)
    ALONE.sum_gradients(layer.parameters())
    assert torch.equal(layer.weight.grad, torch.ones(2, 2)) and layer.bias.grad is None
    assert ALONE.largest([1.0, 2.0]) == [1.0, 2.0] and ALONE.gather("x") == ["x"] and ALONE.leads
