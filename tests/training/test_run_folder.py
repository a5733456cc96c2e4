"""The folder of a run: what is in it, and that everything needed to continue comes back."""

import json
import logging

import pytest
import torch

from ribonanzamamba.model.checkpoint import load_checkpoint
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.training.config import Config, TrainingConfig, config_from_dict
from ribonanzamamba.training.optimizer import averaged, build_optimizers
from ribonanzamamba.training.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path, small_config):
    yield RunFolder(tmp_path / "deep" / "run", Config(name="tiny", model=small_config))
    package = logging.getLogger("ribonanzamamba")
    for handler in [each for each in package.handlers if isinstance(each, logging.FileHandler)]:
        package.removeHandler(handler)
        handler.close()


def stepped(network: RibonanzaMamba, seed: int, steps: int):
    """Average and optimizers after some steps with made-up gradients."""
    config = TrainingConfig()
    average, optimizers = averaged(network, 0.9), build_optimizers(network, config)
    advance(network, average, optimizers, seed, steps)
    return average, optimizers


def advance(network, average, optimizers, seed: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
        average.update_parameters(network)


def test_resolved_config_and_versions(folder):
    written = json.loads((folder.path / "config.json").read_text())
    assert config_from_dict(written) == folder.config
    assert json.loads((folder.path / "versions.json").read_text())["torch"] == torch.__version__


def test_an_empty_folder_starts_at_zero(folder, small_network):
    before = {key: tensor.clone() for key, tensor in small_network.state_dict().items()}
    average, optimizers = averaged(small_network, 0.9), build_optimizers(small_network, TrainingConfig())
    assert folder.restore(small_network, average, optimizers, torch.device("cpu")) == 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in small_network.state_dict().items())


def test_restored_state_goes_on_bit_equal(folder, small_network, small_config):
    average, optimizers = stepped(small_network, seed=1, steps=2)
    folder.save(2, average.module, small_network, average, optimizers)
    other = RibonanzaMamba(small_config)
    other_average, other_optimizers = averaged(other, 0.9), build_optimizers(other, TrainingConfig())
    assert folder.restore(other, other_average, other_optimizers, torch.device("cpu")) == 2
    advance(small_network, average, optimizers, seed=5, steps=2)
    advance(other, other_average, other_optimizers, seed=5, steps=2)
    for expected, got in ((small_network, other), (average, other_average)):
        assert all(torch.equal(got.state_dict()[key], tensor) for key, tensor in expected.state_dict().items())


def test_checkpoint_holds_the_average(folder, small_network):
    average, optimizers = stepped(small_network, seed=1, steps=3)
    folder.save(3, average.module, small_network, average, optimizers)
    checkpoint = load_checkpoint(folder.path / "checkpoint")
    got = checkpoint.network.nucleotide.weight
    assert checkpoint.name == "tiny"
    assert torch.equal(got, average.module.nucleotide.weight.bfloat16().float())
    assert not torch.equal(got, small_network.nucleotide.weight.bfloat16().float())
    assert not (folder.path / "state.pt.new").exists()


def test_metrics_are_a_line_each(folder):
    folder.log_step(20, 1.234, 1e-3, {"structure": 0.123456}, 9.87)
    folder.log_scores(20, {"f1": 0.5})
    step, scores = map(json.loads, (folder.path / "metrics.jsonl").read_text().splitlines())
    assert step["step"] == 20 and step["loss/structure"] == 0.12346 and step["learning_rate"] == 1e-3
    assert scores == {"step": 20, "valid/f1": 0.5}
    assert "valid/f1=0.5" in (folder.path / "run.log").read_text()
