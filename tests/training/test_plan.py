"""The plan: exact where it can be counted by hand, and close to what the network keeps."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.training.config import Config, DataConfig, LossConfig, TrainingConfig
from ribonanzamamba.training.plan import GIB, Tracker, plan, trace_fake


def config(small_config, **training) -> Config:
    return Config(
        model=small_config,
        data=DataConfig(reactivity=("a",), coordinates=("b",), tokens=320, coordinate_tokens=160),
        training=TrainingConfig(**training),
    )


def test_living_and_moved_bytes_by_hand():
    with Tracker() as tracker:
        a = torch.ones(1000)  # 4000 bytes
        b = a * 2  # reads 4000, writes 4000
        del a
        c = b.view(10, 100) @ torch.ones(100, 10)  # 400 bytes, and a factor of 4000
        del b
    assert tracker.peak == 4000 + 4000 + 400
    assert tracker.living == c.nbytes
    assert tracker.flops == 2 * 10 * 100 * 10


def test_parameters_and_batches(small_config):
    planned = plan(config(small_config))
    parameters = sum(parameter.numel() for parameter in RibonanzaMamba(small_config).parameters())
    assert planned.parameters == planned.trained == parameters
    assert [(each.tasks, each.examples, each.length) for each in planned.passes] == [
        (("reactivity",), 2, 160),
        (("coordinates",), 1, 160),
    ]
    assert "2 x 160 nt (reactivity)" in planned.to_text() and f"{parameters:,} (" in planned.to_text()
    halved = plan(config(small_config), processes=2)
    assert halved.passes[0].examples == 1 and halved.passes[0].peak_bytes < 0.7 * planned.passes[0].peak_bytes
    assert halved.resident_bytes == planned.resident_bytes
    assert plan(config(small_config, parallel="shard"), processes=2).resident_bytes == planned.resident_bytes // 2


def test_a_fixed_number_of_rnas_is_the_batch(small_config):
    """Then `data.tokens` says nothing, and all may be as long as the longest."""
    fixed = config(small_config)
    fixed = dataclasses.replace(fixed, data=dataclasses.replace(fixed.data, batch_examples=6, max_length=40))
    for processes, examples in ((1, 6), (4, 2)):
        reactivity = plan(fixed, processes).passes[0]
        assert (reactivity.examples, reactivity.length) == (examples, 48)


def test_what_is_printed_adds_up(small_config):
    planned = plan(config(small_config))
    largest = max(map(planned.activations_gib, planned.passes))
    extra = planned.measured.memory_extra_gib
    assert planned.memory_gib == pytest.approx(planned.resident_bytes / GIB + largest + extra)
    assert f"activations {largest:.2f} GiB" in planned.to_text()


def test_teaching_base_pairs_takes_the_pair_head(small_config):
    plain = config(small_config)
    taught = plan(dataclasses.replace(plain, loss=LossConfig(taught_pairs=0.3))).passes[0]
    assert taught.tasks == ("reactivity", "structure")
    assert taught.peak_bytes > plan(plain).passes[0].peak_bytes


def test_checkpointing_and_freezing_save_memory(small_config):
    deeper = config(ModelConfig.from_dict(small_config.to_dict() | {"blocks": 5}))
    off, pair, every = (trace_fake(deeper, mode, ("reactivity",), 4, 64)[0] for mode in ("off", "pair", "all"))
    assert every.peak_bytes < pair.peak_bytes < off.peak_bytes
    assert off.flops < pair.flops < every.flops < 1.5 * off.flops
    frozen = plan(config(small_config, freeze=("trunk",)))
    whole = plan(config(small_config))
    assert frozen.trained < frozen.parameters and frozen.resident_bytes < whole.resident_bytes
    assert frozen.passes[0].peak_bytes < 0.7 * whole.passes[0].peak_bytes


def test_memory_grows_with_the_pair_cells(small_config):
    small, large = (trace_fake(config(small_config), "off", ("structure",), 1, length)[0] for length in (64, 128))
    assert large.peak_bytes == pytest.approx(4 * small.peak_bytes, rel=0.25)


def test_without_tables(small_config):
    with pytest.raises(ValueError, match="expected at least one table"):
        plan(Config(model=small_config))


def test_recorded_passes_do_not_wait_for_the_host(small_config):
    waiting, recorded = plan(config(small_config)), plan(config(small_config, graphs=True))
    assert recorded.passes == waiting.passes
    first = waiting.passes[0]
    assert waiting.seconds(first) == pytest.approx(first.operations * waiting.measured.launch_seconds)
    end = recorded.measured.step_seconds
    kernels = first.operations * recorded.measured.kernel_seconds
    assert end + kernels < recorded.seconds(first) < waiting.seconds(first)


def test_the_kernels_of_a_gpu_are_traced_without_triton():
    """What a machine without Triton plans is what one with it does."""
    code = """
import sys
sys.modules["triton"] = None
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.training.config import Config
from ribonanzamamba.training.plan import trace_fake
network = ModelConfig(width=32, pair_width=16, blocks=2, heads=2, d_state=8, head_width=16)
print(trace_fake(Config(model=network), "off", ("reactivity",), 2, 32)[0])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    network = ModelConfig(width=32, pair_width=16, blocks=2, heads=2, d_state=8, head_width=16)
    assert result.stdout.strip() == str(trace_fake(Config(model=network), "off", ("reactivity",), 2, 32)[0])


def test_the_pair_track_keeps_five_maps_a_block():
    """Summed, normed, twice as wide before the gate, and the result: no more, since each update is one kernel."""
    blocks = {}
    for count in (4, 8):
        network = ModelConfig(width=16, pair_width=64, blocks=count, heads=2, d_state=8, head_width=16, dropout=0.0)
        blocks[count] = trace_fake(Config(model=network), "off", ("reactivity",), 1, 256)[0].peak_bytes
    a_map = 256 * 256 * 64 * 2
    kept = (blocks[8] - blocks[4]) / 4 / a_map
    assert 5 <= kept < 5.5, kept
