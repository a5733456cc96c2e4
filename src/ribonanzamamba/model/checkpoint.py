"""Weights on disk: safetensors in pieces beside a `model.json` that says what they are."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba

RELEASED = "ribonanzamamba-2"
"""Preset that comes with the package."""
WEIGHTS = Path(__file__).parents[1] / "weights"
PIECE_BYTES = 14_000_000
"""Largest piece: the package promises at most 15 MB a file."""


@dataclass(frozen=True)
class Checkpoint:
    """A network with what identifies it."""

    network: RibonanzaMamba
    name: str
    weights_hash: str
    """sha256 over the pieces, in order."""


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Write a file that is on the disk, not only in its cache, when this returns."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder, new and moved ones, outlive a power cut."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def recover_checkpoint(folder: Path) -> None:
    """Finish what a kill in the middle of `save_checkpoint` left: the old weights come back where the new ones were
    not in place yet."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (old, folder.with_name(folder.name + ".new")):
        shutil.rmtree(leftover, ignore_errors=True)


def save_checkpoint(
    network: nn.Module,
    folder: str | Path,
    *,
    name: str,
    dtype: torch.dtype = torch.bfloat16,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the network's weights (or `state`, e.g. averaged ones) to a folder: model.json and
    weights-<k>.safetensors.

    Raises:
        OSError: the disk is full, or the like; what was there before is untouched.
    """
    folder = Path(folder)
    # written beside and swapped in whole: a kill leaves the old weights or the new ones
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    recover_checkpoint(folder)
    new.mkdir(parents=True)
    piece: dict[str, torch.Tensor] = {}
    pieces, size = [piece], 0
    for key, tensor in (network.state_dict() if state is None else state).items():
        tensor = tensor.detach().to("cpu", dtype).contiguous()
        if piece and size + tensor.nbytes > PIECE_BYTES:
            piece, size = {}, 0
            pieces.append(piece)
        piece[key] = tensor
        size += tensor.nbytes
    for k, piece in enumerate(pieces, start=1):
        write_synced(new / f"weights-{k}.safetensors", save(piece))
    description = {"name": name, "pieces": len(pieces), "config": network.config.to_dict()}
    write_synced(new / "model.json", (json.dumps(description, indent=2) + "\n").encode())
    sync_folder(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(path_or_preset: str | Path | None = None) -> Checkpoint:
    """A network in float32 and evaluation mode, from a folder or the name of a preset that comes with the package.

    Raises:
        FileNotFoundError: no such folder or preset.
        ValueError: weights that do not fit their description.
    """
    path_or_preset = path_or_preset or RELEASED
    folder = Path(path_or_preset)
    if not (folder / "model.json").is_file():
        folder = WEIGHTS / str(path_or_preset)
    if not (folder / "model.json").is_file():
        presets = sorted(path.parent.name for path in WEIGHTS.glob("*/model.json"))
        raise FileNotFoundError(
            f"no weights at {path_or_preset}: expected a folder with model.json, or one of {presets}"
        )
    description = json.loads((folder / "model.json").read_text())
    network = RibonanzaMamba(ModelConfig.from_dict(description["config"]))
    state, digest = {}, hashlib.sha256()
    for k in range(1, description["pieces"] + 1):
        piece = folder / f"weights-{k}.safetensors"
        if not piece.is_file():
            raise FileNotFoundError(
                f"{folder}: {piece.name} is missing, model.json says {description['pieces']} pieces"
            )
        digest.update(piece.read_bytes())
        state.update({key: tensor.float() for key, tensor in load_file(piece).items()})
    expected = network.state_dict()
    missing = sorted(set(expected) ^ set(state))
    if missing:
        raise ValueError(f"{folder}: weights do not fit model.json: {missing[:5]} are in one but not the other")
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            shapes = f"{key} has shape {tuple(state[key].shape)}, expected {tuple(tensor.shape)}"
            raise ValueError(f"{folder}: weights do not fit model.json: {shapes}")
    network.load_state_dict(state, assign=True)
    return Checkpoint(network.eval().requires_grad_(False), description["name"], digest.hexdigest())
