"""`Mamba2D` against plain loops over the positions of a plane, and its index maps."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ribonanzamamba.layers import Mamba2D
from ribonanzamamba.layers.scan2d import DIRECTIONS, scan_order

SIZES = [(1, 1), (3, 4), (6, 6), (5, 7)]


def size_id(size) -> str:
    return f"{size[0]}x{size[1]}"


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def paths_by_loops(height: int, width: int, directions: str) -> list[list[tuple[int, int]]]:
    """The positions (row, column) in the order of each direction."""
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    return {
        "row": [rows, rows[::-1]],
        "column": [columns, columns[::-1]],
        "both": [rows, rows[::-1], columns, columns[::-1]],
        "efficient": [
            [(i, j) for i, j in rows if i % 2 == 0 and j % 2 == 0],
            [(i, j) for i, j in columns if i % 2 == 0 and j % 2 == 1],
            [(i, j) for i, j in columns if i % 2 == 1 and j % 2 == 0],
            [(i, j) for i, j in rows if i % 2 == 1 and j % 2 == 1],
        ],
    }[directions]


def mamba2d_by_loops(layer: Mamba2D, x: Tensor, mask: Tensor) -> Tensor:
    """One plane (height, width, d_model); positions where the mask is False do not exist."""
    height, width, _ = x.shape
    inner, n, rank, reach = layer.d_inner, layer.d_state, layer.dt_rank, layer.conv2d.kernel_size[0] // 2
    present = [(i, j) for i in range(height) for j in range(width) if mask[i, j]]
    projected = {place: layer.in_proj.weight @ x[place] for place in present}
    u = {}
    for i, j in present:
        total = layer.conv2d.bias
        for di in range(-reach, reach + 1):
            for dj in range(-reach, reach + 1):
                if (i + di, j + dj) in projected:
                    tap = layer.conv2d.weight[:, 0, di + reach, dj + reach]
                    total = total + tap * projected[i + di, j + dj][:inner]
        u[i, j] = F.silu(total)
    outputs = {place: [] for place in present}
    for k, path in enumerate(paths_by_loops(height, width, layer.directions)):
        h = x.new_zeros(inner, n)
        for place in path:
            if place not in u:
                continue
            dt, B, C = (layer.x_weight[k] @ u[place]).split((rank, n, n))
            dt = F.softplus(layer.dt_weight[k] @ dt + layer.dt_bias[k])
            h = torch.exp(-torch.exp(layer.A_log[k]) * dt[:, None]) * h + (dt * u[place])[:, None] * B
            outputs[place].append(h @ C + layer.D[k] * u[place])
    rows = []
    for i in range(height):
        for j in range(width):
            if (i, j) not in u:
                rows.append(torch.zeros_like(x[i, j]))
                continue
            y = sum(outputs[i, j]) / len(outputs[i, j])
            y = y / (y.square().mean() + 1e-5).sqrt() * layer.norm.weight * F.silu(projected[i, j][inner:])
            rows.append(layer.out_proj.weight @ y)
    return torch.stack(rows).unflatten(0, (height, width))


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("size", SIZES, ids=size_id)
def test_equals_loops(size, directions, stirred, same_with_gradients):
    torch.manual_seed(0)
    layer = stirred(Mamba2D(4, directions=directions, d_state=3))
    x = normal(2, *size, 4).requires_grad_()
    everywhere = torch.ones(size, dtype=torch.bool)
    expected = torch.stack([mamba2d_by_loops(layer, plane, everywhere) for plane in x])
    same_with_gradients(layer, layer(x), expected, x)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_masked_equals_loops_over_what_is_there(directions, stirred, same_with_gradients):
    layer = stirred(Mamba2D(4, directions=directions, d_state=3, d_conv=5, dt_rank=2))
    x = normal(3, 5, 7, 4).requires_grad_()
    mask = (
        torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(4)) < torch.tensor([1.0, 0.6, 0.0])[:, None, None]
    )
    expected = torch.stack([mamba2d_by_loops(layer, *row) for row in zip(x, mask, strict=True)])
    same_with_gradients(layer, layer(x, mask), expected, x)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_masked_values_change_nothing(directions, stirred):
    layer = stirred(Mamba2D(4, directions=directions))
    x, mask = normal(2, 5, 6, 4), torch.ones(2, 5, 6, dtype=torch.bool)
    mask[0, 3:], mask[0, :, 4:] = False, False
    y = layer(x, mask)
    assert torch.equal(layer(x.masked_fill(~mask[..., None], 1e3), mask), y)
    assert (y[0][~mask[0]] == 0).all()
    torch.testing.assert_close(layer(x[:1, :3, :4]), y[:1, :3, :4], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("size", [*SIZES, (1, 5), (5, 1), (2, 2)], ids=size_id)
def test_order_follows_the_paths(size, directions):
    order = scan_order(*size, directions, torch.device("cpu"))
    for taken, path in zip(order.tolist(), paths_by_loops(*size, directions), strict=True):
        assert taken == [i * size[1] + j for i, j in path] + [-1] * (len(taken) - len(path))


def test_directions_see_what_they_should(stirred):
    """An impulse at (2, 3) of a 5 x 7 plane, without the convolution's neighbours: rows, columns, phases."""
    x = normal(1, 6, 8, 4)
    other = x.clone()
    other[0, 2, 3] += 1
    seen = {}
    for directions in DIRECTIONS:
        layer = stirred(Mamba2D(4, directions=directions, d_conv=1))
        seen[directions] = (layer(x) != layer(other)).any(-1)[0]
    assert seen["both"].all() and seen["row"].all() and seen["column"].all()
    phase = torch.zeros(6, 8, dtype=torch.bool)
    phase[0::2, 1::2] = True
    assert (seen["efficient"] <= phase).all() and seen["efficient"][2:, 3].any()


def test_orders_made_in_inference_serve_training():
    scan_order.cache_clear()
    layer, x = Mamba2D(4, directions="efficient"), torch.randn(1, 9, 11, 4)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert layer.A_log.grad.isfinite().all()


def test_decays_stay_wide():
    layer = Mamba2D(4).to(torch.bfloat16)
    assert layer.A_log.dtype == layer.dt_bias.dtype == layer.D.dtype == torch.float32
    assert layer.x_weight.dtype == torch.bfloat16
    x, mask = torch.randn(2, 5, 7, 4, dtype=torch.bfloat16), torch.rand(2, 5, 7) < 0.7
    y = layer(x, mask)
    assert y.dtype == torch.bfloat16 and y.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_masked_step_is_zero_in_narrow_types(dtype):
    layer = Mamba2D(4, directions="row").to(dtype)
    x, mask = torch.randn(1, 4, 4, 4).to(dtype), torch.ones(1, 4, 4, dtype=torch.bool)
    mask[:, 2:] = False
    y = layer(x, mask)
    assert torch.equal(layer(x.masked_fill(~mask[..., None], 100), mask), y) and y.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"directions": "diagonal"}, "directions: expected .*'diagonal'"), ({"d_conv": 4}, "d_conv: expected an odd")],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        Mamba2D(4, **options)


@pytest.mark.parametrize("directions", ["both", "efficient"])
def test_autocast_rounds_projections_but_not_states(directions):
    torch.manual_seed(0)
    layer = Mamba2D(16, directions=directions)
    x = torch.randn(1, 5, 7, 16)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x)
    got.float().sum().backward()
    assert (got.float() - expected).norm() < 0.02 * expected.norm()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
