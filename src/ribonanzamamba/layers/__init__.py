"""Modules on tensors: state-space, attention, convolution and pair layers. Knows nothing of RNA."""

from ribonanzamamba.layers.attention import PairBiasedAttention
from ribonanzamamba.layers.bidirectional import BiMamba
from ribonanzamamba.layers.convolution import SeparableConvolution
from ribonanzamamba.layers.norm import RMSNorm
from ribonanzamamba.layers.pair import PairUpdate

__all__ = ["BiMamba", "PairBiasedAttention", "PairUpdate", "RMSNorm", "SeparableConvolution"]
