"""No silent NaN: nasty batches stay finite, bad ones change no weight and are named, and so is the module at fault."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch

from ribonanzamamba.data.batch import collate
from ribonanzamamba.data.example import Example
from ribonanzamamba.data.prior import make_prior
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.rna.records import PROBES
from ribonanzamamba.training.config import Config, LossConfig, TrainingConfig
from ribonanzamamba.training.guard import NonFiniteError, Shard, Watch, find_nonfinite
from ribonanzamamba.training.loop import train
from ribonanzamamba.training.optimizer import build_optimizers
from ribonanzamamba.training.start import build_network
from ribonanzamamba.training.step import LOGGED, train_step

NAN = float("nan")
SKIPPED = LOGGED.index("skipped")
BOTH, SHAPES = ("reactivity", "structure"), ("coordinates",)


def example(name: str, length: int, **changes) -> Example:
    rng = np.random.default_rng(length)
    values = {
        "reactivity": rng.random((length, len(PROBES))).astype(np.float32),
        "reactivity_weight": np.ones((length, len(PROBES)), dtype=np.float32),
        "partners": np.full(length, -1, dtype=np.int32),
        "coordinates": rng.normal(size=(length, 4, 3)).astype(np.float32) * 10,
        # withheld: where nothing is known of base pairs it teaches
        "prior": make_prior(np.array([0]), np.array([length - 1]), np.array([0.9 * (length > 4)])),
        "prior_given": False,
    }
    return Example(name, "".join(rng.choice(list("ACGU"), length)), 0, 1, "", **(values | changes))


def nasty(case: str):
    """A batch of a kind that has broken networks before."""
    plain = [example("a", 12), example("b", 9)]
    if case == "padded row":
        batch = collate(plain)
        mask = batch.mask.clone()
        mask[1] = False
        return dataclasses.replace(batch, mask=mask, reactivity=batch.reactivity.masked_fill(~mask[..., None], NAN))
    if case == "nothing but padding":
        batch = collate(plain)
        return dataclasses.replace(batch, mask=torch.zeros_like(batch.mask))
    if case == "targets all NaN":
        empty = np.full((12, len(PROBES)), NAN, dtype=np.float32)
        atoms = np.full((12, 4, 3), NAN, dtype=np.float32)
        unknown = np.full(12, -2, dtype=np.int32)
        return collate([example("n", 12, reactivity=empty, coordinates=atoms, partners=unknown)] * 2)
    if case == "one nucleotide":
        return collate([example("one", 1), example("two", 1)])
    if case == "signal to noise 0":
        return collate([example("s", 12, reactivity_weight=np.zeros((12, len(PROBES)), dtype=np.float32))])
    if case == "one atom in one place":
        return collate([example("p", 12, coordinates=np.zeros((12, 4, 3), dtype=np.float32))])
    raise AssertionError(case)


CASES = (
    "padded row",
    "nothing but padding",
    "targets all NaN",
    "one nucleotide",
    "signal to noise 0",
    "one atom in one place",
)


@pytest.mark.parametrize("case", CASES)
def test_nasty_batches_stay_finite(small_network, case):
    optimizers, config = build_optimizers(small_network, TrainingConfig()), Config(loss=LossConfig(taught_pairs=1.0))
    for _ in range(3):
        values = train_step(small_network, optimizers, {BOTH: nasty(case), SHAPES: nasty(case)}, config)
        assert values[SKIPPED] == 0 and values.isfinite().all(), dict(zip(LOGGED, values.tolist(), strict=True))
    assert all(parameter.isfinite().all() for parameter in small_network.parameters())


def state(network, optimizers) -> list[torch.Tensor]:
    moments = [value for optimizer in optimizers for each in optimizer.state.values() for value in each.values()]
    return [tensor.clone() for tensor in (*network.parameters(), *moments)]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_bad_batch_changes_nothing(small_network, kind):
    optimizers = build_optimizers(small_network, TrainingConfig(optimizer=kind))
    good = collate([example("a", 12)])
    train_step(small_network, optimizers, {BOTH: good, SHAPES: good}, Config())
    before = state(small_network, optimizers)
    bad = dataclasses.replace(good, reactivity_weight=good.reactivity_weight * float("inf"))
    values = train_step(small_network, optimizers, {BOTH: bad, SHAPES: good}, Config())
    assert values[SKIPPED] == 1 and values[:SKIPPED].isnan().all()
    after = state(small_network, optimizers)
    assert len(before) == len(after) and all(map(torch.equal, before, after))
    values = train_step(small_network, optimizers, {BOTH: good, SHAPES: good}, Config())
    assert values[SKIPPED] == 0 and not torch.equal(state(small_network, optimizers)[0], before[0])


def passes(network: RibonanzaMamba, batch):
    def backward():
        output = network(batch.tokens, batch.mask, BOTH)
        loss = output.reactivity.mean() + output.pair_logit.clamp(min=-10).mean()
        loss.backward()
        return {"sum": loss.detach()}

    return backward


@pytest.mark.parametrize("mode", ["off", "pair", "all"])
@pytest.mark.parametrize("name", ["blocks.1.attention", "blocks.0.mamba.out_proj", "reactivity_head", "nucleotide"])
def test_the_module_is_named(small_network, name, mode):
    small_network.train().checkpoint_activations(mode)
    batch = collate([example("a", 12)])
    assert find_nonfinite(small_network, passes(small_network, batch)) == ""

    def spoil(module, inputs, output):
        return (output[0] * NAN, *output[1:]) if isinstance(output, tuple) else output * NAN

    small_network.get_submodule(name).register_forward_hook(spoil)
    assert find_nonfinite(small_network, passes(small_network, batch)) == f"module {name} (forward pass)"
    assert all(parameter.grad is None for parameter in small_network.parameters())


def test_a_gradient_is_named(small_network):
    batch = collate([example("a", 12)])
    broken = small_network.blocks[0].feed_in

    def spoil(module, inputs, output):
        output.register_hook(lambda gradient: gradient * NAN)

    broken.register_forward_hook(spoil)
    found = find_nonfinite(small_network.train(), passes(small_network, batch))
    # seen where it arrives first: at the output of what stands before the broken layer
    assert found == "gradient at the output of module blocks.0.feed_norm (backward pass)" or "blocks.0.feed_in" in found


def test_values_come_in_order():
    watch = Watch()
    for number in (1, 2, 3):
        watch.add(number, {BOTH: Shard(("a",), None)}, torch.tensor([float(number)]))
    assert [(step.number, step.values) for step in watch.finished()] == [(1, [1.0]), (2, [2.0]), (3, [3.0])]
    assert not list(watch.finished(wait=True))


TOML = """
name = "bad"
[model]
width = 16
pair_width = 8
blocks = 2
heads = 2
d_state = 8
head_width = 16
[data]
reactivity = ["reactivity.parquet"]
tokens = 96
[training]
steps = 8
log_steps = 1
valid_steps = 100
save_steps = 2
warmup_steps = 1
device = "cpu"
"""


@pytest.fixture
def config_path(tables):
    (tables / "bad.toml").write_text(TOML)
    yield tables / "bad.toml"
    package = logging.getLogger("ribonanzamamba")
    for handler in [each for each in package.handlers if isinstance(each, logging.FileHandler)]:
        package.removeHandler(handler)
        handler.close()


def spoiled(*steps: int):
    """A network whose second block's attention gives NaN in these forward passes of training."""

    def build(config: Config) -> RibonanzaMamba:
        network, seen = build_network(config), []

        def spoil(module, inputs, output):
            if module.training:
                seen.append(None)
                return output * NAN if len(seen) in steps else output

        network.blocks[1].attention.register_forward_hook(spoil)
        return network

    return build


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_one_bad_batch_is_recorded_and_the_run_goes_on(config_path, tmp_path):
    run = train(config_path, tmp_path / "run", build=spoiled(3, 5, 6))
    bad = [row for row in rows(run) if "bad_batch" in row]
    assert [row["step"] for row in bad] == [3, 5, 6]
    assert all(name.startswith("r") for name in bad[0]["bad_batch"]["reactivity"])
    steps = [row for row in rows(run) if "learning_rate" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [row.get("skipped", 0) for row in steps] == [0, 0, 1, 0, 1, 1, 0, 0]
    assert all(("loss/reactivity" in row) != ("skipped" in row) for row in steps)


def test_three_in_a_row_stop_the_run(config_path, tmp_path):
    # the second pass is the sixth
    with pytest.raises(
        NonFiniteError, match=r"3 batches in a row .* in step 5 \(r\d.*module blocks.1.attention \(forward"
    ):
        train(config_path, tmp_path / "run", build=spoiled(3, 4, 5, 6))
    saved = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert saved["run"]["step"] == 4 and all(tensor.isfinite().all() for tensor in saved["network"].values())
    assert max(row["step"] for row in rows(tmp_path / "run") if "bad_batch" not in row) == 4
    assert [row["step"] for row in rows(tmp_path / "run") if "bad_batch" in row] == [3, 4, 5]
    # with the fault gone, the same command goes on where the last good checkpoint is
    train(config_path, tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run") if "learning_rate" in row] == list(range(1, 9))
