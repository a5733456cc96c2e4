"""Functions on tensors: state-space recurrences and short convolutions. Knows nothing of modules or RNA."""

from ribonanzamamba.ops.depthwise_conv import depthwise_conv1d
from ribonanzamamba.ops.ssd import ssd

__all__ = ["depthwise_conv1d", "ssd"]
