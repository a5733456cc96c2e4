"""`ModelConfig`: from plain values and back."""

import dataclasses
import json

import pytest

from ribonanzamamba.model.config import ModelConfig


def test_round_trip_through_json():
    config = ModelConfig(width=64, kernels=(3, 9), dilations=(2,), dropout=0.0, probes=("DMS",))
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ModelConfig.from_dict({}) == ModelConfig()


def test_unknown_key_is_named_beside_the_known():
    with pytest.raises(ValueError, match=r"unknown keys \['depth'\]; known are .*'blocks'"):
        ModelConfig.from_dict({"width": 64, "depth": 3})


def test_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().width = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mamba": False, "attention": False}, "got neither"),
        ({"pair_every": -1}, "pair_every"),
        ({"pair_scans": -1}, "pair_scans"),
        ({"mixing": "product"}, "mixing"),
        ({"mamba_every": 0}, "mamba_every"),
        ({"mamba_every": 2, "attention": False}, "mamba_every"),
        ({"mamba_drop": 1.0}, "mamba_drop"),
        ({"mamba_drop": 0.5, "attention": False}, "mamba_drop"),
        ({"tasks": ("folding",)}, "tasks"),
        ({"tasks": ()}, "tasks"),
    ],
)
def test_a_network_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**values)
