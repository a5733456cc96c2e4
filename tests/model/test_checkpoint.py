"""Weights on disk: bit-equal round trips, small pieces, and errors that say what is wrong."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ribonanzamamba.model import checkpoint
from ribonanzamamba.model.checkpoint import PIECE_BYTES, WEIGHTS, load_checkpoint, save_checkpoint

LARGEST_FILE = 15_000_000
"""Bytes a file of the package, promised."""
LARGEST_SUM = 40_000_000


def pieces(folder: Path) -> list[Path]:
    return sorted(folder.glob("weights-*.safetensors"), key=lambda path: int(path.stem.split("-")[1]))


@pytest.fixture
def saved(small_network, tmp_path, monkeypatch) -> Path:
    """The small network in several pieces."""
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", 100_000)
    save_checkpoint(small_network, tmp_path / "weights", name="small", dtype=torch.float32)
    return tmp_path / "weights"


def test_round_trip_is_bit_equal_in_float32(small_network, saved):
    loaded = load_checkpoint(saved)
    assert loaded.name == "small" and loaded.network.config == small_network.config
    expected, got = small_network.state_dict(), loaded.network.state_dict()
    assert list(got) == list(expected)
    assert all(got[key].dtype == torch.float32 and torch.equal(got[key], expected[key]) for key in expected)
    tokens, mask = torch.tensor([[0, 1, 2, 3, 2, 1]]), torch.ones(1, 6, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(loaded.network(tokens, mask).reactivity, small_network(tokens, mask).reactivity)


def test_loaded_network_is_for_evaluation(saved):
    network = load_checkpoint(str(saved)).network
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


def test_bfloat16_rounds_once(small_network, tmp_path):
    save_checkpoint(small_network, tmp_path, name="small")
    got = load_checkpoint(tmp_path).network.state_dict()
    for key, tensor in small_network.state_dict().items():
        assert torch.equal(got[key], tensor.bfloat16().float()), key


def test_a_state_handed_in_is_saved_instead(small_network, tmp_path):
    state = {key: tensor + 1 for key, tensor in small_network.state_dict().items()}
    save_checkpoint(small_network, tmp_path, name="small", dtype=torch.float32, state=state)
    assert torch.equal(load_checkpoint(tmp_path).network.nucleotide.weight, small_network.nucleotide.weight + 1)


def test_pieces_are_small_and_hold_every_weight_once(small_network, saved):
    files = pieces(saved)
    assert len(files) == json.loads((saved / "model.json").read_text())["pieces"] > 2
    keys = []
    for file in files:
        tensors = load_file(file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 100_000
        keys += tensors
    assert sorted(keys) == sorted(small_network.state_dict())


def test_hash_is_of_the_pieces(saved):
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in pieces(saved))).hexdigest()
    assert load_checkpoint(saved).weights_hash == digest


def test_saving_again_leaves_no_stale_piece(small_network, saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", PIECE_BYTES)
    save_checkpoint(small_network, saved, name="again")
    assert [path.name for path in pieces(saved)] == ["weights-1.safetensors"]
    assert load_checkpoint(saved).name == "again"


def test_missing_piece_is_named(saved):
    (saved / "weights-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights-2.safetensors is missing, model.json says 11 pieces"):
        load_checkpoint(saved)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_named(saved, change):
    tensors = load_file(saved / "weights-1.safetensors")
    tensor = tensors["nucleotide.weight"]
    if change == "missing":
        del tensors["nucleotide.weight"]
    elif change == "unknown":
        tensors["amino_acid.weight"] = tensor.clone()
    else:
        tensors["nucleotide.weight"] = tensor[:4].clone()
    save_file(tensors, saved / "weights-1.safetensors")
    name = "amino_acid.weight" if change == "unknown" else "nucleotide.weight"
    with pytest.raises(ValueError, match=f"do not fit model.json: .*{name}"):
        load_checkpoint(saved)


def test_unknown_preset_is_answered_with_the_known():
    with pytest.raises(FileNotFoundError, match="no weights at nothing-like-it: expected a folder .*ribonanzamamba-2"):
        load_checkpoint("nothing-like-it")


@pytest.mark.parametrize("preset", sorted(path.parent.name for path in WEIGHTS.glob("*/model.json")))
def test_released_weights_are_small_and_load(preset):
    files = pieces(WEIGHTS / preset)
    assert max(path.stat().st_size for path in files) <= LARGEST_FILE
    assert sum(path.stat().st_size for path in files) <= LARGEST_SUM
    loaded = load_checkpoint(preset)
    assert loaded.name == preset
    assert all(tensor.isfinite().all() for tensor in loaded.network.state_dict().values())
