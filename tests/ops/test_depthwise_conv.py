"""`depthwise_conv1d` against PyTorch's grouped convolution."""

import pytest
import torch
import torch.nn.functional as F

from ribonanzamamba.ops import depthwise_conv1d


@pytest.mark.parametrize("length", [1, 2, 30])
@pytest.mark.parametrize(("taps", "left"), [(3, 1), (17, 8), (4, 3), (4, 0)], ids=["3", "17", "causal", "anticausal"])
def test_equals_grouped_convolution(taps, left, length):
    x, weight, bias = torch.randn(2, length, 6).double(), torch.randn(6, taps).double(), torch.randn(6).double()
    padded = F.pad(x.transpose(1, 2), (left, taps - 1 - left))
    expected = F.conv1d(padded, weight[:, None], bias, groups=6).transpose(1, 2)
    torch.testing.assert_close(depthwise_conv1d(x, weight, bias, left=left), expected)


@pytest.mark.parametrize("left", [-1, 3])
def test_taps_that_miss_their_own_position_are_an_error(left):
    with pytest.raises(ValueError, match="left: expected 0 to 2 of 3 taps"):
        depthwise_conv1d(torch.zeros(1, 4, 2), torch.zeros(2, 3), left=left)
