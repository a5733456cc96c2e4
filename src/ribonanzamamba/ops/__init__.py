"""Functions on tensors: state-space recurrences and short convolutions. Knows nothing of modules or RNA."""

from ribonanzamamba.ops.causal_conv import causal_conv1d
from ribonanzamamba.ops.convolved_ssd import convolved_bidirectional_ssd
from ribonanzamamba.ops.depthwise_conv import depthwise_conv1d
from ribonanzamamba.ops.explain import explain
from ribonanzamamba.ops.norm import rms_norm
from ribonanzamamba.ops.pair import gated_convolution, norm_and_heads, outer_and_norm
from ribonanzamamba.ops.selective_scan import bidirectional_selective_scan, selective_scan
from ribonanzamamba.ops.ssd import bidirectional_ssd, ssd
from ribonanzamamba.ops.state_update import selective_state_update

__all__ = [
    "bidirectional_selective_scan",
    "bidirectional_ssd",
    "causal_conv1d",
    "convolved_bidirectional_ssd",
    "depthwise_conv1d",
    "explain",
    "gated_convolution",
    "norm_and_heads",
    "outer_and_norm",
    "rms_norm",
    "selective_scan",
    "selective_state_update",
    "ssd",
]
