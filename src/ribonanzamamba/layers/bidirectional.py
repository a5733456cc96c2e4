"""Bidirectional selective state spaces: one recurrence from each end, in one launch."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ribonanzamamba.layers.mamba import KeepsWide, step_bias
from ribonanzamamba.layers.norm import RMSNorm
from ribonanzamamba.ops import bidirectional_selective_scan, convolved_bidirectional_ssd, depthwise_conv1d

MERGES = ("mean", "sum", "gate", "concat")


class BiMamba(nn.Module):
    """A left-to-right and a right-to-left state space over a shared, centred short convolution, merged and gated.

    Each direction has its own step sizes, B, C and decay rates; projections, convolution and skip are shared
    (Hwang et al. 2024, Hydra, section 3, share them likewise). Positions beyond `lengths` contribute nothing and
    return 0. The directions are merged by their mean (their sum has twice the magnitude, which overflowed in Vision
    Mamba), their sum, a learned gate for every position and head, or side by side.
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
        merge: str = "mean",
    ):
        super().__init__()
        self.d_inner = expand * d_model
        if self.d_inner % head_width:
            raise ValueError(f"head_width: expected a divisor of {self.d_inner}, got {head_width}")
        if merge not in MERGES:
            raise ValueError(f"merge: expected one of {MERGES}, got {merge!r}")
        self.heads = self.d_inner // head_width
        self.d_state = d_state
        self.merge = merge
        channels = self.d_inner + 4 * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + channels + 2 * self.heads, bias=False)
        self.conv_weight = nn.Parameter(torch.randn(channels, d_conv) * d_conv**-0.5)
        self.conv_bias = nn.Parameter(torch.zeros(channels))
        # softplus(dt_bias) spread log-uniformly over dt_range, A over 1 to 16: Mamba-2's initialisation
        self.dt_bias = nn.Parameter(step_bias(2 * self.heads, dt_range))
        self.A_log = nn.Parameter(torch.log(1 + 15 * torch.rand(2 * self.heads)))
        self.D = nn.Parameter(torch.ones(self.heads))
        merged = self.d_inner * (2 if merge == "concat" else 1)
        self.merge_gate = nn.Linear(d_model, self.heads) if merge == "gate" else None
        self.norm = RMSNorm(merged)
        self.out_proj = nn.Linear(merged, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "batch length width"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch length width"]:
        projected = self.in_proj(x)
        # one gate for both directions: gated and normalised with what merges them
        gated = self.merge in ("mean", "sum")
        # step sizes and decays in float32 under autocast, in float64 where all is
        wide = torch.promote_types(x.dtype, torch.float32)
        y = convolved_bidirectional_ssd(
            projected,
            self.conv_weight,
            self.conv_bias,
            -torch.exp(self.A_log.to(wide)),
            self.D,
            self.dt_bias,
            heads=self.heads,
            d_state=self.d_state,
            lengths=lengths,
            merge="concat" if self.merge_gate is not None else self.merge,
            gated=gated,
            gain=self.norm.weight if gated else None,
            eps=self.norm.eps,
        )
        if self.merge_gate is not None:
            left, right = y.chunk(2, dim=2)
            share = torch.sigmoid(self.merge_gate(x))[..., None].to(y.dtype)
            y = share * left + (1 - share) * right
        y = rearrange(y, "b l h p -> b l (h p)")
        if not gated:
            z = projected[..., : self.d_inner]
            y = self.norm(y * F.silu(torch.cat([z, z], dim=-1) if self.merge == "concat" else z))
        # where the recurrence returns 0, so does all that follows
        return self.out_proj(y)


class BiMamba1(KeepsWide):
    """A left-to-right and a right-to-left state space with a decay for every channel and state (Mamba-1) over a shared,
    centred short convolution; their mean is gated.

    Each direction has its own step sizes, B, C and decay rates; projections, convolution and skip are shared. Positions
    beyond `lengths` contribute nothing and return 0. On a GPU it suits short sequences in large batches, where the
    matrix products of `BiMamba` are mostly empty.

    Source: Gu and Dao 2023, "Mamba", section 3.4, from both ends.
    """

    wide_parameters = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        expand: int = 2,
        d_conv: int = 5,
        dt_rank: int | None = None,
        dt_range: tuple[float, float] = (1e-3, 1e-1),
    ):
        super().__init__()
        self.d_inner, self.d_state = expand * d_model, d_state
        self.dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv_weight = nn.Parameter(torch.randn(self.d_inner, d_conv) * d_conv**-0.5)
        self.conv_bias = nn.Parameter(torch.zeros(self.d_inner))
        self.x_proj = nn.Linear(self.d_inner, 2 * (self.dt_rank + 2 * d_state), bias=False)
        self.dt_weight = nn.Parameter(torch.empty(2, self.d_inner, self.dt_rank))
        nn.init.uniform_(self.dt_weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_bias = nn.Parameter(step_bias(2 * self.d_inner, dt_range))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).float()).repeat(2 * self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "batch length width"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch length width"]:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = depthwise_conv1d(u, self.conv_weight, self.conv_bias, activation="silu", lengths=lengths)
        selected = rearrange(self.x_proj(u), "b l (k s) -> b l k s", k=2)
        dt, B, C = selected.split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        dt = torch.einsum("blkr,kdr->blkd", dt, self.dt_weight.to(dt.dtype))
        y = bidirectional_selective_scan(
            u,
            dt.flatten(2),
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            z,
            self.dt_bias,
            dt_softplus=True,
            lengths=lengths,
        )
        return self.out_proj(y)
