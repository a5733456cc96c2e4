"""A small network for the tests of the room."""

import pytest
import torch

from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba


@pytest.fixture
def small_network() -> RibonanzaMamba:
    torch.manual_seed(0)
    config = ModelConfig(width=32, pair_width=16, blocks=2, heads=2, d_state=8, head_width=16, coordinate_width=24)
    return RibonanzaMamba(config).eval()
