"""The coordinate module: rotations, frames and their inverse, invariance under rigid motion."""

import itertools

import pytest
import torch
from torch import Tensor

from ribonanzamamba.model.coordinates import (
    LOCAL_ATOMS,
    PLDDT_BINS,
    CoordinateModule,
    PointAttention,
    expected_plddt,
    frames_from_atoms,
    rotation_matrix,
)
from ribonanzamamba.ops import pair_plain


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rotation_by_zero_is_identity():
    assert torch.equal(rotation_matrix(torch.zeros(2, 3)), torch.eye(3).expand(2, 3, 3))


def test_rotations_are_proper():
    rotation = rotation_matrix(normal(50, 3) * 3)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(50, dtype=torch.float64))


def test_quarter_turns():
    """The quaternion (1, 1, 0, 0) is a quarter turn around x: y goes to z, z to -y; likewise around y and z."""
    x, y, z = torch.eye(3)
    for turn, (first, second) in zip((x, y, z), ((y, z), (z, x), (x, y)), strict=True):
        rotation = rotation_matrix(turn)
        torch.testing.assert_close(rotation @ turn, turn)
        torch.testing.assert_close(rotation @ first, second)
        torch.testing.assert_close(rotation @ second, -first)


def test_frames_are_the_inverse_of_placing_atoms():
    rotation, origin = rotation_matrix(normal(5, 7, 3)), normal(5, 7, 3, seed=1) * 50
    atoms = torch.tensor(LOCAL_ATOMS, dtype=torch.float64) @ rotation.mT + origin[..., None, :]
    got_rotation, got_origin = frames_from_atoms(atoms)
    torch.testing.assert_close(got_rotation, rotation)
    torch.testing.assert_close(got_origin, origin)


def point_attention() -> PointAttention:
    torch.manual_seed(0)
    return PointAttention(12, 6, heads=2, scalars=4, points=3, values=2).double()


def attended(rotation: Tensor, translation: Tensor, length: int = 9, lengths: tuple[int, int] = (9, 5)) -> Tensor:
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    x, pair = normal(2, 3, 9, 12)[:, :, :length], normal(2, 9, 9, 6, seed=1)[:, :length, :length]
    return point_attention()(x, pair, rotation[:, :, :length], translation[:, :, :length], mask)


@torch.no_grad()
def test_point_attention_does_not_see_a_rigid_motion_of_all_frames():
    rotation, translation = rotation_matrix(normal(2, 3, 9, 3, seed=2)), normal(2, 3, 9, 3, seed=3)
    before = attended(rotation, translation)
    turn, shift = rotation_matrix(normal(2, 3, 1, 3, seed=4)), normal(2, 3, 1, 3, seed=5) * 5
    after = attended(turn @ rotation, (turn @ translation[..., None])[..., 0] + shift)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    assert (attended(rotation, translation * 1.1) - before).abs().max() > 1e-3, "sees no geometry at all"


@torch.no_grad()
def test_point_attention_weighs_by_distance_of_points():
    """Against the distances written out: every attention weight is recovered from scalars, pair bias and points."""
    layer = point_attention()
    rotation, translation = rotation_matrix(normal(1, 1, 4, 3, seed=2)), normal(1, 1, 4, 3, seed=3)
    x, pair = normal(1, 1, 4, 12), normal(1, 4, 4, 6, seed=1)
    heads, scalars, points, values = layer.heads, layer.scalars, layer.points, layer.values
    q, k, v = layer.scalar(x[0, 0]).reshape(4, 3, heads, scalars).unbind(1)
    local = layer.point(x[0, 0]).reshape(4, heads, 2 * points + values, 3)
    world = torch.stack([local[i] @ rotation[0, 0, i].T + translation[0, 0, i] for i in range(4)])
    rows = []
    for i in range(4):
        scalar, seen, paired = [], [], []
        for h in range(heads):
            gamma = torch.log1p(torch.exp(layer.point_weight[h]))
            logit = []
            for j in range(4):
                square = (world[i, h, :points] - world[j, h, points : 2 * points]).square().sum()
                part = q[i, h] @ k[j, h] / scalars**0.5 + layer.bias.weight[h] @ pair[0, i, j]
                logit.append((part - gamma * (2 / (9 * points)) ** 0.5 / 2 * square) / 3**0.5)
            weight = torch.stack(logit).softmax(0)
            scalar.append(weight @ v[:, h])
            value = torch.einsum("j,jpx->px", weight, world[:, h, 2 * points :])
            seen.append((value - translation[0, 0, i]) @ rotation[0, 0, i])
            paired.append(weight @ pair[0, i])
        seen = torch.cat(seen)
        length = (seen.square().sum(-1) + 1e-8).sqrt()
        rows.append(layer.out(torch.cat([*scalar, seen.flatten(), length, *paired])))
    got = layer(x, pair, rotation, translation, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(got[0, 0], torch.stack(rows))


@torch.no_grad()
def test_point_attention_ignores_padding():
    rotation, translation = rotation_matrix(normal(2, 3, 9, 3, seed=2)), normal(2, 3, 9, 3, seed=3)
    together = attended(rotation, translation)
    far = translation.clone()
    far[1, :, 5:] = 1e3
    torch.testing.assert_close(attended(rotation, far)[1, :, :5], together[1, :, :5], rtol=1e-12, atol=1e-12)
    alone = attended(rotation, translation, 5, (5, 5))
    torch.testing.assert_close(alone[1], together[1, :, :5], rtol=1e-9, atol=1e-9)


@pytest.fixture
def module() -> CoordinateModule:
    torch.manual_seed(0)
    module = CoordinateModule(12, 6, coordinate_width=16, layers=2, models=3).eval()
    for layer in module.layers:
        torch.nn.init.normal_(layer.step.weight, std=0.5)  # frames move visibly
    return module


@torch.no_grad()
def test_nucleotides_keep_their_shape(module):
    mask = torch.ones(1, 8, dtype=torch.bool)
    atoms, quality = module(torch.randn(1, 8, 12), torch.randn(1, 8, 8, 6), mask)
    assert atoms.shape == (1, 3, 8, 4, 3) and quality.shape == (1, 3, 8, PLDDT_BINS)
    local = torch.tensor(LOCAL_ATOMS)
    for first, second in itertools.combinations((1, 2, 3), 2):
        distance = (atoms[..., first, :] - atoms[..., second, :]).norm(dim=-1)
        expected = (local[first] - local[second]).norm().expand_as(distance)
        torch.testing.assert_close(distance, expected, rtol=0, atol=1e-3)
    assert (atoms[0, 0, 1:, 2] - atoms[0, 0, :-1, 2]).norm(dim=-1).min() > 0.1, "frames did not move apart"
    assert (atoms[:, 0] - atoms[:, 1]).abs().max() > 0.1, "models do not differ"


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
def test_some_models_at_a_time_give_the_same(module, at_once):
    inputs = torch.randn(2, 8, 12), torch.randn(2, 8, 8, 6), torch.ones(2, 8, dtype=torch.bool)
    for whole, parts in zip(module(*inputs), module(*inputs, at_once), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_large_map_entered_part_by_part_gives_the_same(module, monkeypatch):
    inputs = torch.randn(2, 8, 12), torch.randn(2, 8, 8, 6), torch.ones(2, 8, dtype=torch.bool)
    expected = module(*inputs)
    monkeypatch.setattr(pair_plain, "WORTH_PARTS", 0)
    monkeypatch.setattr(pair_plain, "PART", 8 * 6 * 3)
    assert len(list(pair_plain.parts(inputs[1]))) == 6
    for whole, parts in zip(expected, module(*inputs), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_stays_in_float32_under_autocast(module):
    inputs = torch.randn(1, 8, 12), torch.randn(1, 8, 8, 6), torch.ones(1, 8, dtype=torch.bool)
    expected = module(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        got = module(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@torch.no_grad()
def test_distance_logits_are_symmetric(module):
    logit = module.distance_logit(torch.randn(1, 8, 8, 6))
    torch.testing.assert_close(logit, logit.transpose(1, 2))


@pytest.mark.parametrize(
    ("bins", "expected"), [([0], 1.0), ([49], 99.0), ([10, 20], 31.0)], ids=["first", "last", "two"]
)
def test_expected_plddt(bins, expected):
    logit = torch.full((PLDDT_BINS,), -1e4)
    logit[bins] = 3.0
    torch.testing.assert_close(expected_plddt(logit), torch.tensor(expected))
