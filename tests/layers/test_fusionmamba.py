"""`FusionMambaBlock` and its parts against plain loops; planes folded from time come back exactly."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribonanzamamba.layers import (
    DescriptiveConvolution,
    Downsample2D,
    EfficientChannelAttention,
    FoldedTime,
    FusionMambaBlock,
    Mamba2D,
    Upsample2D,
)
from ribonanzamamba.layers.fusionmamba import plane_size

SIZES = [(1, 1), (3, 4), (6, 6), (5, 7)]
STEPS = [1, 2, 12, 13, 36, 288]


def size_id(size) -> str:
    return f"{size[0]}x{size[1]}"


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def mean_of(values: dict) -> Tensor:
    return sum(values.values()) / len(values)


def channel_attention_by_loops(layer: EfficientChannelAttention, values: dict) -> dict:
    mean, taps = mean_of(values), layer.conv.weight[0, 0]
    reach = len(taps) // 2
    scales = []
    for channel in range(len(mean)):
        near = [k for k in range(len(taps)) if 0 <= channel + k - reach < len(mean)]
        scales.append(sum(taps[k] * mean[channel + k - reach] for k in near))
    scale = 1 / (1 + torch.exp(-torch.stack(scales)))
    return {place: scale * value for place, value in values.items()}


def convolution_by_loops(layer: DescriptiveConvolution, values: dict) -> dict:
    weight, results = layer.conv.weight, {}
    for i, j in values:
        total = 0
        for di in range(-1, 2):
            for dj in range(-1, 2):
                if (i + di, j + dj) not in values:
                    continue
                taps = weight[:, :, di + 1, dj + 1]
                if di == dj == 0:
                    taps = taps * (
                        1 - layer.theta * layer.m * sum(weight[:, :, a, b] for a in range(3) for b in range(3))
                    )
                total = total + taps @ values[i + di, j + dj]
        results[i, j] = total
    return results


def block_by_loops(block: FusionMambaBlock, x: Tensor, mask: Tensor) -> Tensor:
    """One plane; the scan inside is `Mamba2D`, which has its own test."""
    places = [(i, j) for i in range(x.shape[0]) for j in range(x.shape[1]) if mask[i, j]]
    if not places:
        return x * 0
    h = {place: layer_norm(block.norm, x[place]) for place in places}
    plane = torch.stack(
        [torch.stack([h.get((i, j), torch.zeros_like(x[i, j])) for j in range(x.shape[1])]) for i in range(x.shape[0])]
    )
    scanned, attended = block.scan(plane[None], mask[None])[0], channel_attention_by_loops(block.channel_attention, h)
    first = {place: scanned[place] + attended[place] for place in places}
    second = {place: F.gelu(value) for place, value in convolution_by_loops(block.convolution, h).items()}
    gate = block.gate.weight @ torch.cat([mean_of(first), mean_of(second)]) + block.gate.bias
    gate = 1 / (1 + torch.exp(-gate))
    width = x.shape[-1]
    rows = []
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            if not mask[i, j]:
                rows.append(torch.zeros_like(x[i, j]))
                continue
            y = x[i, j] + gate[:width] * first[i, j] + gate[width:] * second[i, j]
            norm, up, _, down = block.feed_forward
            hidden = F.gelu(up.weight @ layer_norm(norm, y) + up.bias)
            rows.append(y + down.weight @ hidden + down.bias)
    return torch.stack(rows).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("size", SIZES, ids=size_id)
def test_block_equals_loops(size, masked, stirred, same_with_gradients):
    torch.manual_seed(0)
    block = stirred(FusionMambaBlock(4, d_state=3))
    x = normal(2, *size, 4).requires_grad_()
    mask = torch.ones(2, *size, dtype=torch.bool)
    if masked:
        mask = (
            torch.rand(2, *size, generator=torch.Generator().manual_seed(4)) < torch.tensor([0.6, 0.0])[:, None, None]
        )
        mask[0, 0, 0] = True
    expected = torch.stack([block_by_loops(block, *row) for row in zip(x, mask, strict=True)])
    same_with_gradients(block, block(x, mask if masked else None), expected, x)


def test_descriptive_convolution_with_theta_zero_is_plain():
    layer, x = DescriptiveConvolution(3, 5).double(), normal(2, 4, 6, 3)
    assert layer.theta.item() == 0.5 and (layer.m == 1).all()
    layer.theta.data.zero_()
    expected = layer.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("size", [*SIZES, (1, 2), (7, 1)], ids=size_id)
def test_down_and_up_equal_loops_and_restore_the_size(size, stirred, same_with_gradients):
    height, width = size
    down, up = stirred(Downsample2D(3)), stirred(Upsample2D(6))
    x = normal(2, height, width, 3).requires_grad_()
    zero = torch.zeros(3, dtype=x.dtype)
    coarse = []
    for plane in x:
        for i in range(0, height, 2):
            for j in range(0, width, 2):
                four = [
                    plane[i + di, j + dj] if i + di < height and j + dj < width else zero
                    for di in range(2)
                    for dj in range(2)
                ]
                coarse.append(down.project.weight @ layer_norm(down.norm, torch.cat(four)))
    coarse = torch.stack(coarse).reshape(2, -(-height // 2), -(-width // 2), 6)
    same_with_gradients(down, down(x), coarse, x)
    y = up(coarse.detach(), size)
    assert y.shape == x.shape
    for i in range(height):
        for j in range(width):
            part = slice(3 * (2 * (i % 2) + j % 2), 3 * (2 * (i % 2) + j % 2) + 3)
            expected = layer_norm(up.norm, (up.project.weight @ coarse[1, i // 2, j // 2])[part])
            torch.testing.assert_close(y[1, i, j], expected)


def test_up_refuses_a_size_that_was_not_halved():
    with pytest.raises(ValueError, match=r"x: expected \(3, 2\) positions for the size \(5, 4\), got \(2, 2\)"):
        Upsample2D(4)(torch.zeros(1, 2, 2, 4), (5, 4))
    with pytest.raises(ValueError, match="d_model: expected an even number"):
        Upsample2D(3)


class Remember(nn.Module):
    """Returns the plane as it is, and keeps what it was called with."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        self.x, self.mask = x, mask
        return x


@pytest.mark.parametrize("steps", [*STEPS, 7, 97])
def test_folded_time_comes_back_exactly(steps):
    layer = FoldedTime(Remember())
    x = normal(2, steps, 3, 4)
    assert torch.equal(layer(x), x)
    plane, mask = layer.layer.x, layer.layer.mask
    height, width = plane.shape[1:3]
    assert (height, width) == plane_size(steps) and height * width >= steps and (height - 1) * width < steps
    assert math.isqrt(steps - 1) + 1 == width
    assert (mask is None) == (height * width == steps)
    for t in range(steps):
        assert torch.equal(plane[3 + 1, t // width, t % width], x[1, t, 1])
    if mask is not None:
        assert mask.sum((1, 2)).eq(steps).all() and mask.flatten(1)[:, :steps].all()


@pytest.mark.parametrize("build", [FusionMambaBlock, Mamba2D], ids=["block", "scan"])
@pytest.mark.parametrize("steps", STEPS)
def test_folded_lengths(steps, build, stirred):
    layer = stirred(FoldedTime(build(4)))
    lengths = [steps, (steps + 1) // 2, 0]
    x = normal(3, steps, 2, 4).requires_grad_()
    y = layer(x, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        if length:
            alone = layer(x[row : row + 1, :length])[0]
            torch.testing.assert_close(y[row, :length], alone, rtol=1e-10, atol=1e-10)
        assert (y[row, length:] == 0).all()
    y.square().sum().backward()
    assert x.grad[0].any() and not x.grad[2].any() and not x.grad[1, lengths[1] :].any()


def test_hourglass_of_any_length():
    """Down, a block, up, with a skip: what 12 or 13 steps did not survive elsewhere."""

    class Hourglass(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.down, self.block, self.up = Downsample2D(width), FusionMambaBlock(2 * width), Upsample2D(2 * width)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x + self.up(self.block(self.down(x)), x.shape[1:3])

    layer = FoldedTime(Hourglass(4))
    for steps in (1, 2, 12, 13, 36):
        x = torch.randn(2, steps, 3, 4)
        y = layer(x)
        y.sum().backward()
        assert y.shape == x.shape
