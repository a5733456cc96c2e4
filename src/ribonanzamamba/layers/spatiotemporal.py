"""Layers on tensors (batch, time, node, width), as traffic, weather or multi-sensor networks have them.

`TemporalMamba` stands in place of an attention along time or along the nodes; `SpatioTemporalBlock` is GMAN's block
with either in its two branches. No axis is reshaped by the caller, and every number of time steps from 1 on will do.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from ribonanzamamba.layers.bidirectional import BiMamba, BiMamba1
from ribonanzamamba.layers.fusionmamba import FoldedTime, FusionMambaBlock
from ribonanzamamba.layers.mamba import Mamba, Mamba2, widest_head
from ribonanzamamba.layers.norm import RMSNorm

LARGEST_PIECE = 2**19
"""Numbers of the input that a layer takes at once on a CPU."""
STATES = {"ssd": 32, "selective_scan": 16}
"""Size of the state of each form, where it is not given."""
MASKED_LOGIT = -1e9
"""Finite, so that a row without any real position stays finite; exp of it is exactly 0 beside any real logit."""


class TemporalMamba(nn.Module):
    """A selective state space along time for each node, or along the nodes for each time step; from both ends, or
    `causal`.

    The number of time steps and of nodes may differ from call to call. `form` "ssd" has a decay for each head (Mamba-2;
    `head_width` channels each), "selective_scan" one for every channel and state (Mamba-1). `dt_range` sets how far it
    looks at the start: a step size dt forgets within about 1 / dt steps, so that for a dozen steps the range of long
    sequences is too low.
    """

    def __init__(
        self,
        d_model: int,
        *,
        axis: str = "time",
        causal: bool = False,
        form: str = "ssd",
        d_state: int | None = None,
        expand: int = 2,
        head_width: int | None = None,
        d_conv: int | None = None,
        dt_range: tuple[float, float] = (1e-3, 1e-1),
    ):
        super().__init__()
        self.axis = checked_axis(axis)
        if form not in STATES:
            raise ValueError(f"form: expected one of {tuple(STATES)}, got {form!r}")
        if form != "ssd" and head_width is not None:
            raise ValueError("head_width: of form 'ssd'; in a selective_scan every channel is by itself")
        head_width = widest_head(expand * d_model) if head_width is None else head_width
        options = {"d_state": d_state or STATES[form], "expand": expand, "dt_range": dt_range}
        # causal convolutions look 3 steps back, the centred ones 2 to either side
        options["d_conv"] = d_conv or (4 if causal else 5)
        if form == "ssd":
            build = partial(Mamba2, headdim=head_width) if causal else partial(BiMamba, head_width=head_width)
        else:
            build = Mamba if causal else BiMamba1
        self.mamba = build(d_model, **options)

    def forward(
        self, x: Float[Tensor, "batch time node width"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch time node width"]:
        """Outputs of every time step and node.

        `lengths` counts the positions of the scanned axis that are real in each row of the batch; those beyond
        contribute nothing and return 0.
        """
        return scan_axis(self.mamba, x, self.axis, lengths)


class AxisAttention(nn.Module):
    """Multi-head attention along time for each node, or along the nodes for each time step.

    Queries, keys and values pass a ReLU, as in GMAN.

    Source: Zheng et al. 2020, "GMAN" (arXiv 1911.08415).
    """

    def __init__(self, d_in: int, d_model: int, *, heads: int, axis: str = "time", causal: bool = False):
        super().__init__()
        if d_model % heads:
            raise ValueError(f"heads: expected a divisor of {d_model}, got {heads}")
        self.axis, self.heads, self.causal = checked_axis(axis), heads, causal
        self.qkv = nn.Linear(d_in, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(
        self, x: Float[Tensor, "batch time node d_in"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch time node d_model"]:
        """Outputs of every time step and node; positions of the axis at or beyond `lengths` are not attended to and
        return 0."""
        return scan_axis(self.attend, x, self.axis, lengths)

    def attend(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        q, k, v = rearrange(F.relu(self.qkv(x)), "r l (three h d) -> three r h l d", three=3, h=self.heads)
        if lengths is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
            return self.out(rearrange(y, "r h l d -> r l (h d)"))
        position = torch.arange(x.shape[1], device=x.device)
        present = position < lengths[:, None]
        hidden = ~present[:, None, None, :]  # r h query key
        if self.causal:
            hidden = hidden | (position[None, :] > position[:, None])
        bias = torch.zeros(hidden.shape, dtype=q.dtype, device=x.device).masked_fill(hidden, MASKED_LOGIT)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(rearrange(y, "r h l d -> r l (h d)")).masked_fill(~present[..., None], 0)


class ProjectedBranch(nn.Module):
    """A linear layer to the width of the block, then a layer on (batch, time, node, width)."""

    def __init__(self, d_in: int, d_model: int, layer: nn.Module):
        super().__init__()
        self.project = nn.Linear(d_in, d_model)
        self.layer = layer

    def forward(
        self, x: Float[Tensor, "batch time node d_in"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch time node d_model"]:
        return self.layer(self.project(x), lengths)


class SpatioTemporalBlock(nn.Module):
    """GMAN's block: a branch along the nodes and one along time, joined by a gate, added to the input.

    Each branch is an attention or a state space, chosen by a word; signature and shapes stay the same:
    `temporal` "attention", "mamba" or "fusionmamba" (time folded into a plane, `FoldedTime`), `spatial` "attention"
    or "mamba" (along the nodes in the order of the columns: order them so that neighbours lie side by side).

    `heads` is the attention's, `d_state`, `expand` and `dt_range` (see `TemporalMamba`) are the state space's.

    z = sigmoid(HS W1 + HT W2 + b), output X + MLP(z HS + (1 - z) HT), where HS and HT see the concatenation of X and
    STE. An RMS norm of it stands where GMAN has batch norms, which would make an answer depend on batch-mates
    and padding.

    Source: Zheng et al. 2020, "GMAN" (arXiv 1911.08415).
    """

    def __init__(
        self,
        d_model: int,
        *,
        temporal: str = "attention",
        spatial: str = "attention",
        heads: int = 8,
        causal: bool = False,
        d_state: int = 32,
        expand: int = 2,
        dt_range: tuple[float, float] = (1e-3, 1e-1),
    ):
        super().__init__()
        if spatial == "fusionmamba":
            raise ValueError("spatial: expected 'attention' or 'mamba', got 'fusionmamba'")
        self.norm = RMSNorm(2 * d_model)
        sizes = {"d_state": d_state, "expand": expand, "dt_range": dt_range}
        self.spatial = build_branch(spatial, d_model, axis="node", causal=False, heads=heads, **sizes)
        self.temporal = build_branch(temporal, d_model, axis="time", causal=causal, heads=heads, **sizes)
        self.gate_spatial = nn.Linear(d_model, d_model, bias=False)
        self.gate_temporal = nn.Linear(d_model, d_model)
        self.out = nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(), nn.Linear(d_model, d_model))

    def forward(
        self,
        x: Float[Tensor, "batch time node width"],
        embedding: Float[Tensor, "batch time node width"],
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch time node width"]:
        """X and the spatio-temporal embedding STE to the next X; time steps at or beyond `lengths` return 0."""
        joined = self.norm(torch.cat([x, embedding], dim=-1))
        # a time step's nodes see each other alone: steps beyond the length need no mask here
        spatial, temporal = self.spatial(joined), self.temporal(joined, lengths)
        gate = torch.sigmoid(self.gate_spatial(spatial) + self.gate_temporal(temporal))
        # under autocast the branches may end in different dtypes
        y = x + self.out(gate * spatial + (1 - gate) * temporal)
        if lengths is None:
            return y
        beyond = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        return y.masked_fill(beyond[:, :, None, None], 0)


def build_branch(kind: str, d_model: int, *, axis: str, causal: bool, heads: int, **sizes) -> nn.Module:
    """A branch of `SpatioTemporalBlock`: (batch, time, node, 2 d_model) to (batch, time, node, d_model).

    `heads` are those of an attention, `sizes` those of a state space.
    """
    if kind == "attention":
        return AxisAttention(2 * d_model, d_model, heads=heads, axis=axis, causal=causal)
    if kind == "mamba":
        return ProjectedBranch(2 * d_model, d_model, TemporalMamba(d_model, axis=axis, causal=causal, **sizes))
    if kind == "fusionmamba":
        if causal:
            raise ValueError("causal: a plane is scanned in ways that see the future; use 'mamba' or 'attention'")
        return ProjectedBranch(2 * d_model, d_model, FoldedTime(FusionMambaBlock(d_model, **sizes)))
    raise ValueError(f"expected a branch of 'attention', 'mamba' or 'fusionmamba', got {kind!r}")


def scan_axis(layer: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, axis: str, lengths: Tensor | None) -> Tensor:
    """A layer on (row, length, width) applied along one axis of (batch, time, node, width)."""
    batch, time, node, _ = x.shape
    if axis == "time":
        lengths = None if lengths is None else repeat(lengths, "b -> (b n)", n=node)
        y = in_pieces(layer, rearrange(x, "b t n d -> (b n) t d"), lengths)
        return rearrange(y, "(b n) t d -> b t n d", b=batch)
    lengths = None if lengths is None else repeat(lengths, "b -> (b t)", t=time)
    y = in_pieces(layer, rearrange(x, "b t n d -> (b t) n d"), lengths)
    return rearrange(y, "(b t) n d -> b t n d", b=batch)


def in_pieces(layer: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, lengths: Tensor | None) -> Tensor:
    """The layer over all rows; on a CPU over some at a time, which more than halves the time of large inputs: what does
    not fit the cache, or what the system hands out as fresh memory every time, costs more than the arithmetic."""
    rows = max(1, LARGEST_PIECE // max(1, x.shape[1:].numel()))
    if x.device.type != "cpu" or len(x) <= rows:
        return layer(x, lengths)
    pieces = x.split(rows)
    own = [None] * len(pieces) if lengths is None else lengths.split(rows)
    return torch.cat([layer(piece, part) for piece, part in zip(pieces, own, strict=True)])


def checked_axis(axis: str) -> str:
    if axis not in ("time", "node"):
        raise ValueError(f"axis: expected 'time' or 'node', got {axis!r}")
    return axis
