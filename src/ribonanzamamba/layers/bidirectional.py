"""Bidirectional selective state space: one recurrence from each end, in one call."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ribonanzamamba.layers.norm import RMSNorm
from ribonanzamamba.ops import depthwise_conv1d, ssd


class BiMamba(nn.Module):
    """Mean of a left-to-right and a right-to-left state space over a shared, centred short convolution, gated.

    Each direction has its own step sizes, B, C and decay rates; projections, convolution and skip are shared
    (Hwang et al. 2024, Hydra, section 3, share them likewise). Positions beyond `lengths`
    contribute nothing and return 0.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 32,
        expand: int = 2,
        head_width: int = 64,
        d_conv: int = 5,
        dt_range: tuple[float, float] = (1e-3, 1e-1),
    ):
        super().__init__()
        self.d_inner = expand * d_model
        if self.d_inner % head_width:
            raise ValueError(f"head_width: expected a divisor of {self.d_inner}, got {head_width}")
        self.heads = self.d_inner // head_width
        self.d_state = d_state
        self.splits = (self.d_inner, self.d_inner + 4 * d_state, 2 * self.heads)
        self.in_proj = nn.Linear(d_model, sum(self.splits), bias=False)
        self.conv_weight = nn.Parameter(torch.randn(self.splits[1], d_conv) * d_conv**-0.5)
        self.conv_bias = nn.Parameter(torch.zeros(self.splits[1]))
        # softplus(dt_bias) spread log-uniformly over dt_range, A over 1 to 16: Mamba-2's initialisation
        low, high = (math.log(value) for value in dt_range)
        dt = torch.exp(torch.rand(2 * self.heads) * (high - low) + low)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.log(1 + 15 * torch.rand(2 * self.heads)))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = RMSNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "batch length width"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch length width"]:
        gate, inner, dt = self.in_proj(x).split(self.splits, dim=-1)
        present = None
        if lengths is not None:
            present = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
            inner = inner.masked_fill(~present, 0)
        inner = F.silu(depthwise_conv1d(inner, self.conv_weight.to(inner.dtype), self.conv_bias.to(inner.dtype)))
        u, B, C = inner.split((self.d_inner, 2 * self.d_state, 2 * self.d_state), dim=-1)
        u = rearrange(u, "b l (h p) -> b l h p", h=self.heads)
        B, C = (rearrange(matrix, "b l (g n) -> b l g n", g=2) for matrix in (B, C))
        # step sizes and decays in float32 under autocast, in float64 where all is
        wide = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(dt.to(wide) + self.dt_bias)
        if present is not None:
            dt = dt.masked_fill(~present, 0)
        # the directions are groups of heads of one call: the second half sees the sequence reversed, padding first,
        # where dt = 0 leaves the state at zero
        forward_dt, backward_dt = dt.chunk(2, dim=-1)
        both = ssd(
            torch.cat([u, u.flip(1)], dim=2),
            torch.cat([forward_dt, backward_dt.flip(1)], dim=2),
            -torch.exp(self.A_log.to(wide)),
            torch.cat([B[:, :, :1], B[:, :, 1:].flip(1)], dim=2),
            torch.cat([C[:, :, :1], C[:, :, 1:].flip(1)], dim=2),
        )
        forward_y, backward_y = both.chunk(2, dim=2)
        skip = self.D.to(u.dtype)[:, None] * u
        # the mean, not the sum: twice the magnitude is what overflowed in Vision Mamba
        y = rearrange((forward_y + backward_y.flip(1)) / 2 + skip, "b l h p -> b l (h p)")
        y = self.out_proj(self.norm(y * F.silu(gate)))
        return y if present is None else y.masked_fill(~present, 0)
