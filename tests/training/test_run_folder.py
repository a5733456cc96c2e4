"""The folder of a run: what is in it, and that everything needed to continue comes back."""

import builtins
import errno
import json
import logging
import sys

import pytest
import torch

from ribonanzamamba.model.checkpoint import load_checkpoint
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.training.config import Config, TrainingConfig, config_from_dict
from ribonanzamamba.training.optimizer import averaged, build_optimizers
from ribonanzamamba.training.run_folder import RunFolder, RunState, write_atomically


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
    assert folder.restore(small_network, average, optimizers, torch.device("cpu")) == RunState()
    assert all(torch.equal(tensor, before[key]) for key, tensor in small_network.state_dict().items())


def test_restored_state_goes_on_bit_equal(folder, small_network, small_config):
    average, optimizers = stepped(small_network, seed=1, steps=2)
    state = RunState(step=2, seconds=1.5, best=0.25, rnas=3, rows=[[0.5, 1.0]])
    assert folder.save(state, small_network, average, optimizers)
    other = RibonanzaMamba(small_config)
    other_average, other_optimizers = averaged(other, 0.9), build_optimizers(other, TrainingConfig())
    assert folder.restore(other, other_average, other_optimizers, torch.device("cpu")) == state
    advance(small_network, average, optimizers, seed=5, steps=2)
    advance(other, other_average, other_optimizers, seed=5, steps=2)
    for expected, got in ((small_network, other), (average, other_average)):
        assert all(torch.equal(got.state_dict()[key], tensor) for key, tensor in expected.state_dict().items())


def test_checkpoint_holds_the_average(folder, small_network):
    average, optimizers = stepped(small_network, seed=1, steps=3)
    folder.release(average.module, best=False)
    checkpoint = load_checkpoint(folder.path / "checkpoint")
    got = checkpoint.network.nucleotide.weight
    assert checkpoint.name == "tiny"
    assert torch.equal(got, average.module.nucleotide.weight.bfloat16().float())
    assert not torch.equal(got, small_network.nucleotide.weight.bfloat16().float())
    assert not (folder.path / "best").exists()


def test_metrics_are_a_line_each(folder):
    folder.log_step(20, 1.234, 1e-3, {"structure": 0.123456}, 9.87)
    folder.log_scores(20, {"f1": 0.5})
    step, scores = map(json.loads, (folder.path / "metrics.jsonl").read_text().splitlines())
    assert step["step"] == 20 and step["loss/structure"] == 0.12346 and step["learning_rate"] == 1e-3
    assert scores == {"step": 20, "valid/f1": 0.5}
    assert "valid/f1=0.5" in (folder.path / "run.log").read_text()


def test_lines_beyond_the_state_are_dropped(folder, small_network):
    average, optimizers = stepped(small_network, seed=1, steps=1)
    for step in (1, 2, 3):
        folder.log_step(step, 1.0, 1e-3, {}, 1.0)
    folder.save(RunState(step=2), small_network, average, optimizers)
    path = folder.path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')
    folder.restore(small_network, average, optimizers, torch.device("cpu"))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


class FullDisk:
    """A file that takes some bytes, then there is no space left."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[: self.room])
        if len(data) > self.room:
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def full_disk(monkeypatch):
    """A switch: from now on every file that is opened for writing takes 100 bytes."""
    real = builtins.open

    def fill():
        def opened(path, mode="r", *arguments, **options):
            file = real(path, mode, *arguments, **options)
            return FullDisk(file, 100) if set(mode) & set("wa") else file

        monkeypatch.setattr(builtins, "open", opened)

    yield fill
    monkeypatch.undo()


def test_a_full_disk_loses_nothing_older(folder, small_network, full_disk, caplog, monkeypatch):
    average, optimizers = stepped(small_network, seed=1, steps=1)
    folder.log_step(1, 1.0, 1e-3, {}, 1.0)
    folder.release(average.module, best=True)
    assert folder.save(RunState(step=1), small_network, average, optimizers)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path.name != "run.log"}
    full_disk()
    folder.release(average.module, best=True)
    assert not folder.save(RunState(step=2), small_network, average, optimizers)
    folder.append({"step": 2, "long": "x" * 200})
    monkeypatch.undo()
    after = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path.name != "run.log"}
    assert {path: after[path] for path in before} == before
    assert "state.pt: No space left on device; training goes on and tries again" in caplog.text
    assert "that of step 1 is untouched" in caplog.text
    # the line that did not fit is written with the next one
    folder.append({"step": 3})
    rows = [json.loads(line)["step"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3]
    assert folder.save(RunState(step=3), small_network, average, optimizers)


def test_atomic_writing_leaves_no_temporary_file(tmp_path, full_disk):
    write_atomically(tmp_path / "a", b"old")
    full_disk()
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "a", b"x" * 200)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_weights_that_are_not_finite_are_not_saved(folder, small_network):
    average, optimizers = stepped(small_network, seed=1, steps=1)
    small_network.nucleotide.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite at step 5"):
        folder.save(RunState(step=5), small_network, average, optimizers)
    assert not (folder.path / "state.pt").exists()


def test_a_state_of_another_network_is_refused(folder, small_network, small_config):
    average, optimizers = stepped(small_network, seed=1, steps=1)
    folder.save(RunState(step=1), small_network, average, optimizers)
    other = RibonanzaMamba(ModelConfig.from_dict(small_config.to_dict() | {"width": 16}))
    average, optimizers = averaged(other, 0.9), build_optimizers(other, TrainingConfig())
    with pytest.raises(ValueError, match="written with another model or optimizer than the config says"):
        folder.restore(other, average, optimizers, torch.device("cpu"))


def test_a_kill_between_the_two_renames_is_mended(folder, small_network):
    folder.release(small_network, best=False)
    (folder.path / "checkpoint").rename(folder.path / "checkpoint.old")
    RunFolder(folder.path, folder.config)
    assert load_checkpoint(folder.path / "checkpoint").name == "tiny"


def test_tensorboard_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = Config(training=TrainingConfig(tensorboard=True))
    with pytest.raises(ValueError, match=r"pip install 'ribonanzamamba\[tensorboard\]'"):
        RunFolder(tmp_path / "run", config)
    RunFolder(tmp_path / "other", Config())
