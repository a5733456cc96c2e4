"""`SeparableConvolution` against PyTorch's grouped convolution, and its mask."""

import pytest
import torch
import torch.nn.functional as F

from ribonanzamamba.layers import SeparableConvolution


@pytest.fixture
def layer() -> SeparableConvolution:
    torch.manual_seed(0)
    return SeparableConvolution(12, (3, 5, 17)).double()


def test_equals_grouped_convolutions(layer):
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    mask = torch.arange(20) < torch.tensor([20, 11])[:, None]
    h = (layer.norm(x) * mask[..., None]).transpose(1, 2)  # b d l
    parts = [
        F.conv1d(h[:, 4 * k : 4 * k + 4], taps[:, None], padding=kernel // 2, groups=4)
        for k, (taps, kernel) in enumerate(zip(layer.taps, (3, 5, 17), strict=True))
    ]
    h = torch.cat(parts, dim=1).transpose(1, 2) @ layer.mix_in.weight.T + layer.mix_in.bias
    expected = (h[..., :12] * F.silu(h[..., 12:])) @ layer.mix_out.weight.T + layer.mix_out.bias
    torch.testing.assert_close(layer(x, mask), expected)


def test_padding_and_batch_mates_change_nothing(layer):
    x = torch.randn(3, 25, 12, dtype=torch.float64)
    lengths = (25, 9, 1)
    mask = torch.arange(25) < torch.tensor(lengths)[:, None]
    together = layer(x.masked_fill(~mask[..., None], 1e3), mask)
    for row, length in enumerate(lengths):
        alone = layer(x[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-12, atol=1e-12)


def test_width_that_does_not_split():
    with pytest.raises(ValueError, match="width: expected a multiple of 4 .*, got 10"):
        SeparableConvolution(10)
