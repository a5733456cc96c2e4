"""FusionMamba's dynamic block over planes (batch, height, width, channels), and planes folded from time.

Written from the paper and from public descriptions. Positions where a mask is False contribute nothing and return 0.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ribonanzamamba.layers.scan2d import Mamba2D


class EfficientChannelAttention(nn.Module):
    """Each channel scaled by a sigmoid of its neighbours' means over the plane.

    Source: Wang et al. 2020, "ECA-Net" (arXiv 1910.03151).
    """

    def __init__(self, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch height width channels"],
        mask: Bool[Tensor, "batch height width"] | None = None,
    ) -> Float[Tensor, "batch height width channels"]:
        mean = plane_mean(x, mask)
        return x * torch.sigmoid(self.conv(mean[:, None]))[:, 0, None, None, :]


class DescriptiveConvolution(nn.Module):
    """Learnable descriptive convolution (LDC): 3 x 3, with a centre tap that depends on the sum of its taps.

    The centre tap W[o, i, 1, 1] is multiplied by 1 - theta m[o, i] sum(W[o, i]), with `theta` (one number, 0.5 at the
    start) and `m` (1 at the start) learned. This is what FusionMamba's description says; the central difference
    convolution of the literature (Yu et al. 2020, arXiv 2003.04092) takes theta sum(W) away from the centre tap
    instead, so that theta = 1 ignores the local mean. Here theta = 0 is the plain convolution, and
    theta has no such meaning.

    Source: Xie et al. 2024, "FusionMamba" (arXiv 2404.09498), after Huang et al. 2022, "LDCNet" (BMVC).
    """

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.conv = nn.Conv2d(d_in, d_out, 3, padding=1, bias=False)
        self.theta = nn.Parameter(torch.tensor(0.5))
        self.m = nn.Parameter(torch.ones(d_out, d_in))

    def forward(self, x: Float[Tensor, "batch height width d_in"]) -> Float[Tensor, "batch height width d_out"]:
        weight = self.conv.weight
        factor = 1 - self.theta * self.m * weight.sum(dim=(2, 3))
        # the taps are not modified: what changes is added to the centre
        change = F.pad((weight[:, :, 1:2, 1:2] * (factor - 1)[..., None, None]), (1, 1, 1, 1))
        return F.conv2d(x.permute(0, 3, 1, 2), weight + change, padding=1).permute(0, 2, 3, 1)


class FusionMambaBlock(nn.Module):
    """Layer norm, then a scan beside a local branch, each weighed channel by channel, then a feed-forward layer; both
    steps are added to their input.

    Scan branch: `Mamba2D` in four interleaved phases plus the channel attention (ECA) of the same input. Local branch:
    descriptive convolution (LDC) and GELU. The gate weighs both by sigmoids of a linear layer on their two means over
    the plane; the description leaves the gate open, so that this is our choice.

    Source: Xie et al. 2024, "FusionMamba" (arXiv 2404.09498).
    """

    def __init__(
        self,
        d_model: int,
        *,
        directions: str = "efficient",
        d_state: int = 16,
        expand: int = 2,
        feed_forward: int = 2,
        dt_range: tuple[float, float] = (1e-3, 1e-1),
    ):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.scan = Mamba2D(d_model, directions=directions, d_state=d_state, expand=expand, dt_range=dt_range)
        self.channel_attention = EfficientChannelAttention()
        self.convolution = DescriptiveConvolution(d_model, d_model)
        self.gate = nn.Linear(2 * d_model, 2 * d_model)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(d_model),
            nn.Linear(d_model, feed_forward * d_model),
            nn.GELU(),
            nn.Linear(feed_forward * d_model, d_model),
        )

    def forward(
        self,
        x: Float[Tensor, "batch height width channels"],
        mask: Bool[Tensor, "batch height width"] | None = None,
    ) -> Float[Tensor, "batch height width channels"]:
        h = self.norm(x)
        if mask is not None:
            h = h.masked_fill(~mask[..., None], 0)
        scanned = self.scan(h, mask) + self.channel_attention(h, mask)
        local = F.gelu(self.convolution(h))
        means = torch.cat([plane_mean(scanned, mask), plane_mean(local, mask)], dim=-1)
        weights = torch.sigmoid(self.gate(means))[:, None, None, :]
        scanned_weight, local_weight = weights.chunk(2, dim=-1)
        x = x + scanned_weight * scanned + local_weight * local
        x = x + self.feed_forward(x)
        return x if mask is None else x.masked_fill(~mask[..., None], 0)


class Downsample2D(nn.Module):
    """Every 2 x 2 positions become one of twice the channels; an odd last row or column is completed with zeros."""

    def __init__(self, d_model: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * d_model)
        self.project = nn.Linear(4 * d_model, 2 * d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch half_height half_width doubled"]:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = rearrange(x, "b (h i) (w j) c -> b h w (i j c)", i=2, j=2)
        return self.project(self.norm(x))


class Upsample2D(nn.Module):
    """Every position becomes 2 x 2 of half the channels, cut to the size asked for: that of `Downsample2D`'s input."""

    def __init__(self, d_model: int):
        super().__init__()
        if d_model % 2:
            raise ValueError(f"d_model: expected an even number of channels, got {d_model}")
        self.project = nn.Linear(d_model, 2 * d_model, bias=False)
        self.norm = nn.LayerNorm(d_model // 2)

    def forward(
        self, x: Float[Tensor, "batch half_height half_width channels"], size: tuple[int, int]
    ) -> Float[Tensor, "batch height width halved"]:
        """The plane of `size` (height, width), of which `x` has half, rounded up."""
        height, width = size
        expected = (-(-height // 2), -(-width // 2))
        if tuple(x.shape[1:3]) != expected:
            raise ValueError(f"x: expected {expected} positions for the size {size}, got {tuple(x.shape[1:3])}")
        x = rearrange(self.project(x), "b h w (i j c) -> b (h i) (w j) c", i=2, j=2)
        return self.norm(x[:, :height, :width])


class FoldedTime(nn.Module):
    """Time steps folded row by row into a plane that is as square as it gets, through a layer, and back.

    12 steps become 3 x 4, 36 become 6 x 6, 13 become 4 x 4 of which the last three are masked. The layer is called
    with the plane (batch * node, height, width, channels) and a mask, which is None where the plane is full:
    `FusionMambaBlock` and `Mamba2D` are such layers.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(
        self, x: Float[Tensor, "batch time node channels"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch time node channels"]:
        """Outputs of every time step; those at or beyond `lengths` contribute nothing and return 0.

        A row is folded by its own length, as if it were alone: rows of the same length go through the layer together.
        """
        if lengths is None:
            return self.through_plane(x)
        y = torch.zeros_like(x)
        lengths = lengths.clamp(max=x.shape[1])
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            if length > 0:
                part = self.through_plane(x[rows, :length])
                y = y.index_put((rows[:, None], torch.arange(length, device=x.device)), part.to(y.dtype))
        return y

    def through_plane(self, x: Tensor) -> Tensor:
        batch, time, node, _ = x.shape
        height, width = plane_size(time)
        rows = rearrange(x, "b t n d -> (b n) t d")
        mask = None
        if height * width > time:
            rows = F.pad(rows, (0, 0, 0, height * width - time))
            mask = (torch.arange(height * width, device=x.device) < time).reshape(1, height, width)
            mask = mask.expand(batch * node, -1, -1)
        y = self.layer(rearrange(rows, "r (h w) d -> r h w d", h=height), mask)
        y = rearrange(y, "r h w d -> r (h w) d")[:, :time]
        return rearrange(y, "(b n) t d -> b t n d", b=batch)


def plane_size(time: int) -> tuple[int, int]:
    """Height and width of the plane for so many steps: the smallest width whose square holds them, no row too many.

    >>> [plane_size(time) for time in (1, 2, 12, 13, 36)]
    [(1, 1), (1, 2), (3, 4), (4, 4), (6, 6)]
    """
    width = math.isqrt(time - 1) + 1 if time else 1
    return -(-time // width), width


def plane_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the positions of a plane where the mask is True, 0 where there is none: (b, h, w, c) to (b, c)."""
    if mask is None:
        return x.mean(dim=(1, 2))
    x = x.masked_fill(~mask[..., None], 0)
    return x.sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)[:, None]
