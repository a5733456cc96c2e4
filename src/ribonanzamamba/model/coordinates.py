"""The coordinate module: rigid frames of all nucleotides, moved by invariant point
attention, several different models at once.

A nucleotide's frame has its origin at C1', its x axis towards the glycosidic nitrogen and
C4' in its xy plane; N and C4' are rigid in
it, P is predicted in it. The models differ by a learned embedding; training rewards the best of them
(multiple choice learning, Guzman-Rivera et al. 2012), so that they become different hypotheses.
Source of attention and frame update: Jumper et al. 2021, supplement, algorithms 20, 22
and 23. Lengths inside are nanometres.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ribonanzamamba.ops.pair_plain import by_parts

ANGSTROM = 0.1
"""One angstrom in nanometres."""
LOCAL_ATOMS = ((0.55, 5.05, -0.99), (-1.28, 1.96, 0.0), (0.0, 0.0, 0.0), (1.475, 0.0, 0.0))
"""P (the module predicts the difference), C4', C1', N in the frame of a nucleotide,
angstrom: medians over the training chains."""
PLDDT_BINS = 50
DISTANCE_BINS = 40
"""Bins of 1 angstrom from 2 angstrom of C1'-C1' distance; the last holds everything beyond."""


class PointAttention(nn.Module):
    """Attention over nucleotides by scalars, pair features and distances between points
    fixed in their frames (algorithm 22)."""

    def __init__(
        self, width: int, pair_width: int, *, heads: int = 8, scalars: int = 16, points: int = 4, values: int = 8
    ):
        super().__init__()
        self.heads, self.scalars, self.points, self.values = heads, scalars, points, values
        self.scalar = nn.Linear(width, 3 * heads * scalars, bias=False)
        self.point = nn.Linear(width, heads * (2 * points + values) * 3)
        self.bias = nn.Linear(pair_width, heads, bias=False)
        self.point_weight = nn.Parameter(torch.full((heads,), 0.541))  # softplus of it is 1
        self.out = nn.Linear(heads * (scalars + 4 * values + pair_width), width)

    def forward(
        self,
        x: Float[Tensor, "batch model length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        rotation: Float[Tensor, "batch model length 3 3"],
        translation: Float[Tensor, "batch model length 3"],
        mask: Bool[Tensor, "batch length"],
        at_once: int | None = None,
    ) -> Float[Tensor, "batch model length width"]:
        """What each nucleotide sees; attention of so many models is in memory at once, of all by default."""
        b, m, l, _ = x.shape
        q, k, v = self.scalar(x).reshape(b, m, l, 3, self.heads, self.scalars).unbind(3)
        # the answer does not depend on the origin, its rounding does: measured from the centre, products stay small
        centre = (translation * mask[:, None, :, None]).sum(2, keepdim=True) / mask.sum(1).clamp(min=1)[
            :, None, None, None
        ]
        translation = translation - centre
        local = self.point(x).reshape(b, m, l, -1, 3)
        world = local @ rotation.transpose(-1, -2) + translation[..., None, :]
        world = world.reshape(b, m, l, self.heads, 2 * self.points + self.values, 3)
        point_q, point_k, point_v = world.split((self.points, self.points, self.values), dim=-2)

        # scalars and points in one product: -w/2 |q - k|^2 = w q k - w/2 |k|^2 - w/2 |q|^2, whose last term the softmax
        # over k removes; so there is no (length, length, point, 3) tensor and no chain of (length, length) ones
        weight = (F.softplus(self.point_weight) * (2 / (9 * self.points)) ** 0.5 * 3**-0.5)[:, None]
        query = torch.cat([q * (3 * self.scalars) ** -0.5, point_q.flatten(-2) * weight], dim=-1)
        key = torch.cat([k, point_k.flatten(-2)], dim=-1)
        far = weight / 2 * point_k.square().sum((-1, -2)).transpose(-1, -2)  # b m head l
        far = far.masked_fill(~mask[:, None, None], 1e9)
        # dense rows of one head's values, the same for all models
        bias = ((self.bias.weight * 3**-0.5) @ pair.flatten(1, 2).mT).unflatten(-1, (l, l))[:, None]

        parts = []
        step = at_once or m
        for first in range(0, m, step):
            own = slice(first, first + step)
            # in place: fresh memory for maps of pairs costs a CPU more than the sums
            logit = torch.einsum("bmihc,bmjhc->bmhij", query[:, own], key[:, own]).add_(bias)
            attention = logit.sub_(far[:, own, :, None, :]).softmax(dim=-1)
            scalar = torch.einsum("bmhij,bmjhc->bmihc", attention, v[:, own])
            seen = torch.einsum("bmhij,bmjhpx->bmihpx", attention, point_v[:, own])
            paired = torch.einsum("bmhij,bijc->bmihc", attention, pair)
            parts.append((scalar.flatten(3), seen.flatten(3, 4), paired.flatten(3)))
        scalar, seen, paired = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        seen = (seen - translation[..., None, :]) @ rotation
        length = (seen.square().sum(-1) + 1e-8).sqrt()
        return self.out(torch.cat([scalar, seen.flatten(3), length, paired], dim=-1))


class CoordinateLayer(nn.Module):
    """Attention, transition, and a step of every frame."""

    def __init__(self, width: int, pair_width: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = PointAttention(width, pair_width)
        self.transition = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.step_norm = nn.LayerNorm(width)
        self.step = nn.Linear(width, 6)
        nn.init.normal_(self.step.weight, std=1e-2)
        nn.init.zeros_(self.step.bias)

    def forward(
        self, x: Tensor, pair: Tensor, rotation: Tensor, translation: Tensor, mask: Tensor, at_once: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x + self.attention(self.attention_norm(x), pair, rotation, translation, mask, at_once)
        x = x + self.transition(x)
        turn, shift = self.step(self.step_norm(x)).chunk(2, dim=-1)
        translation = translation + (rotation @ shift[..., None])[..., 0]
        return x, rotation @ rotation_matrix(turn), translation


class CoordinateModule(nn.Module):
    """Coordinates and pLDDT of several models from the two tracks; float32 throughout, whatever the trunk ran in."""

    def __init__(self, width: int, pair_width: int, *, coordinate_width: int, layers: int, models: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, coordinate_width)
        self.pair_norm = nn.LayerNorm(pair_width)
        self.pair_enter = nn.Linear(pair_width, 32)
        self.model = nn.Parameter(torch.randn(models, coordinate_width))
        self.layers = nn.ModuleList([CoordinateLayer(coordinate_width, 32) for _ in range(layers)])
        self.phosphate = nn.Linear(coordinate_width, 3)
        self.quality = nn.Sequential(
            nn.LayerNorm(coordinate_width),
            nn.Linear(coordinate_width, coordinate_width),
            nn.ReLU(),
            nn.Linear(coordinate_width, PLDDT_BINS),
        )
        self.distance = nn.Linear(pair_width, DISTANCE_BINS)
        self.register_buffer("local_atoms", torch.tensor(LOCAL_ATOMS), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        pair: Float[Tensor, "batch length length pair_width"],
        mask: Bool[Tensor, "batch length"],
        at_once: int | None = None,
    ) -> tuple[Float[Tensor, "batch model length 4 3"], Float[Tensor, "batch model length bin"]]:
        """Coordinates (angstrom) and logits of the pLDDT bins; `at_once` as in `PointAttention`."""

        def enter(examples: slice, rows: slice) -> Tensor:
            return self.pair_enter(self.pair_norm(pair[examples, rows].float()))

        with torch.autocast(x.device.type, enabled=False):
            entered = by_parts(enter, pair, self.pair_norm.weight, self.pair_enter.weight)
            x = self.enter(self.norm(x.float()))[:, None] + self.model[:, None]
            b, m, l, _ = x.shape
            rotation = torch.eye(3, device=x.device, dtype=x.dtype).expand(b, m, l, 3, 3)
            translation = x.new_zeros(b, m, l, 3)
            for layer in self.layers:
                x, rotation, translation = layer(x, entered, rotation, translation, mask, at_once)
            phosphate = self.phosphate(x)
            local = self.local_atoms.to(x.dtype) * ANGSTROM
            atoms = torch.cat([(local[0] + phosphate)[..., None, :], local[1:].expand(b, m, l, 3, 3)], dim=-2)
            atoms = atoms @ rotation.transpose(-1, -2) + translation[..., None, :]
            return atoms / ANGSTROM, self.quality(x)

    def distance_logit(
        self, pair: Float[Tensor, "batch length length pair_width"]
    ) -> Float[Tensor, "batch length length bin"]:
        """Logits of the C1'-C1' distance bins, symmetric."""
        return self.distance(pair + pair.transpose(1, 2)).float()


def rotation_matrix(turn: Float[Tensor, "*axes 3"]) -> Float[Tensor, "*axes 3 3"]:
    """Rotation by the unit quaternion along (1, b, c, d); zero is no rotation."""
    a = (1 + turn.square().sum(-1, keepdim=True)).rsqrt()
    b, c, d = (turn * a).unbind(-1)
    a = a[..., 0]
    rows = (
        a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c),
        2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b),
        2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d,
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def expected_plddt(logit: Float[Tensor, "*axes bin"]) -> Float[Tensor, "*axes"]:
    """Expected lDDT of the binned distribution, 0 to 100."""
    centres = (torch.arange(PLDDT_BINS, device=logit.device) + 0.5) * (100 / PLDDT_BINS)
    return (logit.softmax(-1) * centres).sum(-1)


def frames_from_atoms(
    atoms: Float[Tensor, "*axes 4 3"],
) -> tuple[Float[Tensor, "*axes 3 3"], Float[Tensor, "*axes 3"]]:
    """Rotation and origin of each nucleotide's frame from its C4', C1' and N atoms (algorithm 21)."""
    sugar, origin, nitrogen = atoms[..., 1, :], atoms[..., 2, :], atoms[..., 3, :]
    x = F.normalize(nitrogen - origin, dim=-1)
    y = sugar - origin
    y = F.normalize(y - (x * y).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1), origin
