"""Networks by name, without their weights: what is released, and the baseline."""

import json
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ribonanzamamba.layers.shapes import ShapeTable, shapes
from ribonanzamamba.model.checkpoint import RELEASED, WEIGHTS
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.model.ribonanzanet import RibonanzaNet, RibonanzaNetConfig

BASELINE = "ribonanzanet"
"""Preset of RibonanzaNet with its public configuration."""
PARAMETER_MEANINGS = {
    "RibonanzaMamba": {
        "nucleotide.weight": "one vector for each of A C G U N",
        "nucleotide_pair.weight": "one vector for each pair of nucleotides, (first * 5 + second, width)",
        "offset.weight": "one vector for each bin of the distance along the chain",
    },
    "CoordinateModule": {"model": "what makes the 3D models differ: one vector a model, added to every nucleotide"},
    "PointAttention": {
        "point_weight": "weight of the distances between points in the attention, a head, before softplus"
    },
}
"""As `layers.shapes.PARAMETER_MEANINGS`, for what knows an RNA."""


def preset_names() -> tuple[str, ...]:
    """The released networks, then the baseline."""
    return (*sorted(path.parent.name for path in WEIGHTS.glob("*/model.json")), BASELINE)


def build_preset(name: str | Path = RELEASED) -> nn.Module:
    """A network of a preset or of a checkpoint folder, with fresh weights.

    Raises:
        FileNotFoundError: no such folder or preset.
        ValueError: a `model.json` that does not fit.
    """
    if str(name) == BASELINE:
        return RibonanzaNet(RibonanzaNetConfig())
    for folder in (Path(name), WEIGHTS / str(name)):
        if (folder / "model.json").is_file():
            description = json.loads((folder / "model.json").read_text())
            return RibonanzaMamba(ModelConfig.from_dict(description["config"]))
    raise FileNotFoundError(
        f"no model.json at {name}: expected a checkpoint folder, or one of {', '.join(preset_names())}"
    )


def preset_shapes(name: str | Path = RELEASED, *, batch: int = 1, length: int = 100) -> ShapeTable:
    """What goes in and out of every module of a preset for so many RNAs of so many nucleotides.

    Nothing is computed and no memory taken: any length will do.

    Raises:
        FileNotFoundError, ValueError: as `build_preset`.
    """
    with FakeTensorMode():
        network = build_preset(name)
        tokens = torch.zeros(batch, length, dtype=torch.int64)
        return shapes(network, tokens=tokens, mask=tokens == 0, meanings=PARAMETER_MEANINGS)
