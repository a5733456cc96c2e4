"""Causal Mamba and Mamba-2 for weights of mamba_ssm or transformers: parameters have the same names and shapes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ribonanzamamba.layers.norm import EPS
from ribonanzamamba.ops import causal_conv1d, rms_norm, selective_scan, selective_state_update, ssd
from ribonanzamamba.ops.norm import plain_rms_norm

LARGEST_HEAD = 64


@dataclass(frozen=True)
class MambaState:
    """What a layer remembers between single steps."""

    conv: Float[Tensor, "batch past channels"]
    """Inputs of the convolution at the last positions, oldest first."""
    scan: Float[Tensor, "batch *axes"]
    """State of the recurrence, at least float32: (batch, d_inner, d_state) or (batch, heads, d_state, width)."""


class KeepsWide(nn.Module):
    """A module of which some parameters stay float32.

    `.half()`, `.to(torch.bfloat16)` and the like leave `wide_parameters` as they are: exp(-exp(A_log) dt) over
    thousands of positions turns one rounding of A_log or of the step bias into another memory length.
    """

    wide_parameters: tuple[str, ...]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = {}
        for name in self.wide_parameters:
            parameter = self.get_parameter(name)
            gradient = None if parameter.grad is None else parameter.grad.detach()
            before[name] = parameter.detach(), gradient
        super()._apply(fn, recurse)
        for name, (value, gradient) in before.items():
            parameter = self.get_parameter(name)
            if parameter.dtype.itemsize >= torch.float32.itemsize:
                continue
            device = parameter.device
            parameter.grad = None
            parameter.data = value.to(device)
            if gradient is not None:
                parameter.grad = gradient.to(device)
        return self


class StateSpaceLayer(KeepsWide, ABC):
    """What both layers share: a causal convolution, and parameters of the recurrence that stay float32."""

    def convolve(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        weight, bias = self.conv1d.weight[:, 0].to(x.dtype), self.conv1d.bias
        bias = None if bias is None else bias.to(x.dtype)
        return causal_conv1d(x, weight, bias, activation="silu", lengths=lengths)

    def convolve_step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Output (b, d) of one position and the past (b, taps - 1, d) that the next one sees."""
        window = torch.cat([past, x[:, None].to(past.dtype)], dim=1)
        return self.convolve(window, None)[:, -1], window[:, 1:]

    def initial_state(self, batch: int) -> MambaState:
        """The state before the first position, all zero."""
        conv, scan = self.conv1d.weight, self.get_parameter("A_log")
        channels, _, taps = conv.shape
        return MambaState(conv.new_zeros(batch, taps - 1, channels), scan.new_zeros(batch, *self.scan_shape()))

    @abstractmethod
    def scan_shape(self) -> tuple[int, ...]:
        """Shape of the recurrence's state for one row."""


class Mamba(StateSpaceLayer):
    """Gated causal state space with a decay for every channel and state (Mamba-1).

    Positions at or beyond `lengths` contribute nothing; their outputs are 0 (out_proj's bias with `bias`).

    Source: Gu and Dao 2023, "Mamba", section 3.4; `mamba_ssm.Mamba` has the same parameters.
    """

    wide_parameters = ("A_log", "D", "dt_proj.bias")

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        dt_range: tuple[float, float] = (1e-3, 1e-1),
        conv_bias: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        self.d_inner = expand * d_model
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        # steps start at dt_range whatever the input: weights keep its variance, the bias sets the level
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_proj.bias = nn.Parameter(step_bias(self.d_inner, dt_range))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).float()).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    def forward(
        self, x: Float[Tensor, "batch length width"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch length width"]:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = self.convolve(u, lengths)
        dt, B, C = self.select(u)
        y = selective_scan(
            u,
            dt,
            -torch.exp(self.A_log),
            B[..., None, :],
            C[..., None, :],
            self.D,
            z,
            self.dt_proj.bias,
            dt_softplus=True,
            lengths=lengths,
        )
        return self.out_proj(y)

    def step(
        self, x: Float[Tensor, "batch width"], state: MambaState
    ) -> tuple[Float[Tensor, "batch width"], MambaState]:
        """Output of one position and the state after it; the state given is not modified."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, past = self.convolve_step(u, state.conv)
        dt, B, C = self.select(u)
        y, scan = selective_state_update(
            state.scan,
            u,
            dt,
            -torch.exp(self.A_log),
            B[:, None],
            C[:, None],
            self.D,
            z,
            self.dt_proj.bias,
            dt_softplus=True,
        )
        return self.out_proj(y), MambaState(past, scan)

    def select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes (..., d_inner) before bias and softplus, B and C (..., d_state)."""
        dt, B, C = self.x_proj(u).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        return F.linear(dt, self.dt_proj.weight), B, C

    def scan_shape(self) -> tuple[int, ...]:
        return self.d_inner, self.d_state


class Mamba2(StateSpaceLayer):
    """Gated causal state space with one decay a head (Mamba-2), its output normalised after the gate.

    Positions at or beyond `lengths` contribute nothing; their outputs are 0 (out_proj's bias with `bias`).

    Source: Dao and Gu 2024, "Transformers are SSMs", section 7; `mamba_ssm.Mamba2` has the same parameters.
    """

    wide_parameters = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        dt_range: tuple[float, float] = (1e-3, 1e-1),
        conv_bias: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        self.d_inner = expand * d_model
        if self.d_inner % headdim:
            raise ValueError(f"headdim: expected a divisor of {self.d_inner}, got {headdim}")
        self.heads = self.d_inner // headdim
        if self.heads % ngroups:
            raise ValueError(f"ngroups: expected a divisor of {self.heads} heads, got {ngroups}")
        self.d_state, self.groups = d_state, ngroups
        channels = self.d_inner + 2 * ngroups * d_state
        self.splits = (self.d_inner, channels, self.heads)
        self.in_proj = nn.Linear(d_model, sum(self.splits), bias=bias)
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, bias=conv_bias)
        self.dt_bias = nn.Parameter(step_bias(self.heads, dt_range))
        self.A_log = nn.Parameter(torch.log(1 + 15 * torch.rand(self.heads)))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(self.d_inner, groups=ngroups)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    def forward(
        self, x: Float[Tensor, "batch length width"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch length width"]:
        z, inner, dt = self.in_proj(x).split(self.splits, dim=-1)
        u, B, C = self.select(self.convolve(inner, lengths))
        y = ssd(
            u,
            dt,
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            lengths=lengths,
        )
        # where the recurrence returns 0, the norm does too
        return self.out_proj(self.norm(rearrange(y, "b l h p -> b l (h p)"), z))

    def step(
        self, x: Float[Tensor, "batch width"], state: MambaState
    ) -> tuple[Float[Tensor, "batch width"], MambaState]:
        """Output of one position and the state after it; the state given is not modified."""
        z, inner, dt = self.in_proj(x).split(self.splits, dim=-1)
        inner, past = self.convolve_step(inner, state.conv)
        u, B, C = self.select(inner)
        y, scan = selective_state_update(
            state.scan, u, dt, -torch.exp(self.A_log), B, C, self.D, dt_bias=self.dt_bias, dt_softplus=True
        )
        return self.out_proj(self.norm(rearrange(y, "b h p -> b (h p)"), z)), MambaState(past, scan)

    def select(self, inner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (..., h, p), B and C (..., g, n) of the recurrence from the convolved channels."""
        size = self.groups * self.d_state
        u, B, C = inner.split((self.d_inner, size, size), dim=-1)
        u = rearrange(u, "... (h p) -> ... h p", h=self.heads)
        B, C = (rearrange(matrix, "... (g n) -> ... g n", g=self.groups) for matrix in (B, C))
        return u, B, C

    def scan_shape(self) -> tuple[int, ...]:
        return self.heads, self.d_state, self.d_inner // self.heads


class GatedRMSNorm(nn.Module):
    """RMS norm of y silu(z) over each of `groups` equal parts of the channels, statistics in float32."""

    def __init__(self, width: int, *, groups: int = 1):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Float[Tensor, "*axes width"], z: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width"]:
        if self.groups == 1:
            return rms_norm(y, self.weight, EPS, gate=z)
        gated = rearrange(y * F.silu(z), "... (g c) -> ... g c", g=self.groups)
        return plain_rms_norm(gated, self.weight.reshape(self.groups, -1), EPS).flatten(-2)


def widest_head(d_inner: int) -> int:
    """Channels of a state-space head: the largest power of two up to 64 that divides the inner width.

    >>> [widest_head(d_inner) for d_inner in (512, 96, 24, 7)]
    [64, 32, 8, 1]
    """
    return math.gcd(d_inner, LARGEST_HEAD)


def step_bias(width: int, dt_range: tuple[float, float]) -> Float[Tensor, " width"]:
    """Biases whose softplus is spread log-uniformly over `dt_range`.

    >>> bool((F.softplus(step_bias(100, (1e-3, 1e-1))) - 0.0505).abs().max() < 0.0496)
    True
    """
    low, high = (math.log(value) for value in dt_range)
    dt = torch.exp(torch.rand(width) * (high - low) + low)
    # the inverse of softplus
    return dt + torch.log(-torch.expm1(-dt))
