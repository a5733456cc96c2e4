"""Selective state spaces over a plane (batch, height, width, channels), of any size.

The directions are index maps over the positions, followed by one `selective_scan`: no plane is turned or copied.
"""

import functools
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ribonanzamamba.layers.mamba import KeepsWide, step_bias
from ribonanzamamba.layers.norm import RMSNorm
from ribonanzamamba.ops import selective_scan

DIRECTIONS = ("row", "column", "both", "efficient")
NO_STEP = -1e4
"""A step size before softplus that makes it exactly 0 in every dtype, float16 included, with gradient 0."""


@functools.lru_cache(maxsize=256)
def scan_order(height: int, width: int, directions: str, device: torch.device) -> Int[Tensor, "direction step"]:
    """The row-major position each direction takes at each step; -1 after the end of a shorter direction.

    "row": along the rows from both ends. "column": along the columns from both ends. "both": all four.
    "efficient": the four phases of even and odd rows and columns, each position once; (even, even) and (odd, odd)
    along the rows, the two others along the columns, none reversed.

    >>> [path.tolist() for path in scan_paths(2, 3, "both")]
    [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5], [5, 2, 4, 1, 3, 0]]
    >>> [path.tolist() for path in scan_paths(3, 3, "efficient")]
    [[0, 2, 6, 8], [1, 7], [3, 5], [4]]
    """
    # cached tensors must not be inference tensors: a later training step saves them
    with torch.inference_mode(False):
        paths = scan_paths(height, width, directions)
        order = nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=-1)
        return order.to(torch.int32).to(device)


@functools.lru_cache(maxsize=256)
def foreign_phases(height: int, width: int, device: torch.device) -> Bool[Tensor, "position phase"]:
    """True where a phase of "efficient" does not take a position.

    >>> foreign_phases(2, 2, torch.device("cpu")).int().tolist()
    [[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    """
    with torch.inference_mode(False):
        foreign = torch.ones(height * width, 4, dtype=torch.bool)
        for k, path in enumerate(scan_paths(height, width, "efficient")):
            foreign[path, k] = False
        return foreign.to(device)


def scan_paths(height: int, width: int, directions: str) -> list[Tensor]:
    """Row-major positions in the order of each direction."""
    plane = torch.arange(height * width).reshape(height, width)
    rows, columns = plane.flatten(), plane.T.flatten()
    if directions == "row":
        return [rows, rows.flip(0)]
    if directions == "column":
        return [columns, columns.flip(0)]
    if directions == "both":
        return [rows, rows.flip(0), columns, columns.flip(0)]
    return [
        plane[0::2, 0::2].flatten(),
        plane[0::2, 1::2].T.flatten(),
        plane[1::2, 0::2].T.flatten(),
        plane[1::2, 1::2].flatten(),
    ]


class Mamba2D(KeepsWide):
    """Gated selective state space over a plane, scanned in several directions whose outputs are averaged.

    "both" scans along rows and columns, each from both ends (VMamba); "row" and "column" are halves of it;
    "efficient" visits each position once, in four interleaved phases: a quarter of the work (FusionMamba). Every
    direction has step sizes, B, C, decay rates and skip of its own. The outputs are averaged, where VMamba adds
    them: four times the magnitude is what overflows in low precision.

    Source: Liu et al. 2024, "VMamba" (arXiv 2401.10166); Xie et al. 2024, "FusionMamba"
    (arXiv 2404.09498), after Pei et al. 2024, "EfficientVMamba" (arXiv 2403.09977).
    """

    wide_parameters = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        d_model: int,
        *,
        directions: str = "both",
        d_state: int = 16,
        expand: int = 2,
        d_conv: int = 3,
        dt_rank: int | None = None,
        dt_range: tuple[float, float] = (1e-3, 1e-1),
    ):
        super().__init__()
        if directions not in DIRECTIONS:
            raise ValueError(f"directions: expected one of {DIRECTIONS}, got {directions!r}")
        if d_conv % 2 == 0:
            raise ValueError(f"d_conv: expected an odd width, got {d_conv}")
        self.directions, self.d_inner, self.d_state = directions, expand * d_model, d_state
        self.dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        groups = len(scan_paths(1, 1, directions))
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv2d = nn.Conv2d(self.d_inner, self.d_inner, d_conv, padding=d_conv // 2, groups=self.d_inner)
        selected = self.dt_rank + 2 * d_state
        self.x_weight = nn.Parameter(torch.empty(groups, selected, self.d_inner))
        self.dt_weight = nn.Parameter(torch.empty(groups, self.d_inner, self.dt_rank))
        for weight, size in ((self.x_weight, self.d_inner), (self.dt_weight, self.dt_rank)):
            nn.init.uniform_(weight, -(size**-0.5), size**-0.5)
        self.dt_bias = nn.Parameter(step_bias(groups * self.d_inner, dt_range).reshape(groups, self.d_inner))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).float()).repeat(groups, self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(groups, self.d_inner))
        self.norm = RMSNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch height width d_model"],
        mask: Bool[Tensor, "batch height width"] | None = None,
    ) -> Float[Tensor, "batch height width d_model"]:
        """Outputs of every position; those where `mask` is False contribute nothing and return 0."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        absent = None if mask is None else ~mask[..., None]
        if absent is not None:
            u = u.masked_fill(absent, 0)
        u = F.silu(self.conv2d(u.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        y = self.scan(u, mask)
        y = self.out_proj(self.norm(y) * F.silu(z))
        return y if absent is None else y.masked_fill(absent, 0)

    def scan(self, u: Tensor, mask: Tensor | None) -> Tensor:
        """All directions in one call, (b, h, w, d_inner) to the same."""
        x = u.flatten(1, 2)  # b l d
        selected = torch.einsum("bld,ksd->blks", x, self.x_weight.to(x.dtype))
        once = self.directions == "efficient"
        if once:
            # only one direction takes a position: the numbers of the others become 0 and vanish in the sums over k
            foreign = foreign_phases(*u.shape[1:3], u.device)
            selected = selected.masked_fill(foreign[..., None], 0)
        dt, B, C = selected.split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        dt = torch.einsum("blkr,kdr->bld" if once else "blkr,kdr->blkd", dt, self.dt_weight.to(dt.dtype))
        if once:
            B, C = B.sum(2, keepdim=True), C.sum(2, keepdim=True)
        dt = dt.flatten(2)  # b l k*d
        if mask is not None:
            # a step of size 0 hands the state on unchanged and adds nothing
            dt = dt.masked_fill(~mask.flatten(1)[..., None], NO_STEP)
        y = selective_scan(
            x,
            dt,
            -torch.exp(rearrange(self.A_log, "k d n -> (k d) n")),
            B,
            C,
            self.D.flatten(),
            dt_bias=self.dt_bias.flatten(),
            dt_softplus=True,
            order=scan_order(*u.shape[1:3], self.directions, u.device),
        )
        return y.reshape(u.shape)
