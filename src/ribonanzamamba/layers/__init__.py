"""Modules on tensors: state-space, attention, convolution and pair layers. Knows nothing of RNA."""

from ribonanzamamba.layers.attention import PairBiasedAttention
from ribonanzamamba.layers.bidirectional import BiMamba
from ribonanzamamba.layers.convolution import SeparableConvolution
from ribonanzamamba.layers.mamba import Mamba, Mamba2, MambaState
from ribonanzamamba.layers.norm import RMSNorm
from ribonanzamamba.layers.pair import PairUpdate

__all__ = [
    "BiMamba",
    "Mamba",
    "Mamba2",
    "MambaState",
    "PairBiasedAttention",
    "PairUpdate",
    "RMSNorm",
    "SeparableConvolution",
]
