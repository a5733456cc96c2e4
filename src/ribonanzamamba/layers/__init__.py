"""Modules on tensors: state-space, attention, convolution and pair layers. Knows nothing of RNA."""

from ribonanzamamba.layers.attention import PairBiasedAttention
from ribonanzamamba.layers.bidirectional import BiMamba, BiMamba1
from ribonanzamamba.layers.convolution import SeparableConvolution
from ribonanzamamba.layers.fusionmamba import (
    DescriptiveConvolution,
    Downsample2D,
    EfficientChannelAttention,
    FoldedTime,
    FusionMambaBlock,
    Upsample2D,
)
from ribonanzamamba.layers.mamba import Mamba, Mamba2, MambaState
from ribonanzamamba.layers.norm import RMSNorm
from ribonanzamamba.layers.pair import PairUpdate
from ribonanzamamba.layers.replacement import Replacement, replace_attention
from ribonanzamamba.layers.scan2d import Mamba2D
from ribonanzamamba.layers.self_attention import MambaSelfAttention
from ribonanzamamba.layers.shapes import ShapeTable, shapes
from ribonanzamamba.layers.spatiotemporal import AxisAttention, SpatioTemporalBlock, TemporalMamba

__all__ = [
    "AxisAttention",
    "BiMamba",
    "BiMamba1",
    "DescriptiveConvolution",
    "Downsample2D",
    "EfficientChannelAttention",
    "FoldedTime",
    "FusionMambaBlock",
    "Mamba",
    "Mamba2",
    "Mamba2D",
    "MambaSelfAttention",
    "MambaState",
    "PairBiasedAttention",
    "PairUpdate",
    "RMSNorm",
    "Replacement",
    "SeparableConvolution",
    "ShapeTable",
    "SpatioTemporalBlock",
    "TemporalMamba",
    "Upsample2D",
    "replace_attention",
    "shapes",
]
