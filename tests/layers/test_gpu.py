"""Layers in float32 on a GPU against themselves in float64 on the CPU, outputs and every gradient.

python -m pytest tests/layers/test_gpu.py -rs
"""

import copy

import pytest
import torch

from ribonanzamamba.layers import FoldedTime, FusionMambaBlock, Mamba2D, SpatioTemporalBlock, TemporalMamba

DEVICE = "cuda"
LARGEST_ERROR = 5e-4
"""Norm of a difference over the norm in float64; sums over all rows and positions cancel."""
LAYERS = {
    "ssd": lambda: TemporalMamba(32),
    "ssd, causal": lambda: TemporalMamba(32, causal=True),
    "ssd, nodes": lambda: TemporalMamba(32, axis="node"),
    "selective_scan": lambda: TemporalMamba(32, form="selective_scan"),
    "selective_scan, causal": lambda: TemporalMamba(32, form="selective_scan", causal=True),
    "block": lambda: SpatioTemporalBlock(32, temporal="mamba", spatial="mamba"),
    "folded": lambda: FoldedTime(FusionMambaBlock(32)),
    "plane, both": lambda: Mamba2D(32),
    "plane, efficient": lambda: Mamba2D(32, directions="efficient"),
}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a GPU with the CPU")


@pytest.mark.parametrize("steps", [1, 12, 13, 288])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_cpu(name, steps, stirred):
    torch.manual_seed(0)
    wide = stirred(LAYERS[name]())
    x = torch.randn(2, steps, 5, 32, dtype=torch.float64)
    results = []
    # cuDNN would round the planes' convolutions to TF32
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for layer, device, dtype in ((wide, "cpu", torch.float64), (copy.deepcopy(wide), DEVICE, torch.float32)):
            layer, own = layer.to(device, dtype), x.to(device, dtype).requires_grad_()
            y = layer(own, own) if name == "block" else layer(own)
            weight = torch.linspace(-1, 1, y.numel(), device=device, dtype=dtype).reshape(y.shape)
            gradients = torch.autograd.grad((y * weight).sum(), (own, *layer.parameters()))
            results.append([tensor.detach().cpu().double() for tensor in (y, *gradients)])
    names = ["y", "x", *(parameter for parameter, _ in wide.named_parameters())]
    # of one step the norm takes away what the step size changes: that gradient is 0 but for rounding
    floor = 1e-3 * max(expected.norm() for expected in results[0])
    for what, expected, got in zip(names, *results, strict=True):
        error = (got - expected).norm() / expected.norm().clamp(min=floor)
        assert error < LARGEST_ERROR, f"{what}: {error:.1e}"
