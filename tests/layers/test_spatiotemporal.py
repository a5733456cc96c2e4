"""`TemporalMamba`, `AxisAttention` and `SpatioTemporalBlock` against plain loops over batch, time and nodes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ribonanzamamba.layers import AxisAttention, SpatioTemporalBlock, TemporalMamba, spatiotemporal

STEPS = [1, 2, 12, 13, 36, 288]
WIDTH = 4


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def over_lines(x: Tensor, axis: str, lengths: list[int], function) -> Tensor:
    """A function of one line (length, width) applied to the real part of each line along the axis, 0 beyond."""
    batch, time, node, _ = x.shape
    width = function(x[0, 0, :1]).shape[1]
    rows = []
    for b in range(batch):
        for other in range(node if axis == "time" else time):
            line = x[b, :, other] if axis == "time" else x[b, other]
            real = function(line[: lengths[b]]) if lengths[b] else x.new_zeros(0, width)
            rows.append(torch.cat([real, x.new_zeros(len(line) - len(real), width)]))
    stacked = torch.stack(rows).unflatten(0, (batch, -1))
    return stacked.transpose(1, 2) if axis == "time" else stacked


def attention_by_loops(layer: AxisAttention, x: Tensor) -> Tensor:
    """One line (length, d_in)."""
    heads, width = layer.heads, layer.out.in_features
    own = width // heads
    projected = torch.stack([F.relu(layer.qkv.weight @ x_t + layer.qkv.bias) for x_t in x])
    rows = []
    for i in range(len(x)):
        parts = []
        for head in range(heads):
            q, k, v = (slice(kind * width + head * own, kind * width + (head + 1) * own) for kind in range(3))
            seen = projected[: i + 1] if layer.causal else projected
            weights = torch.exp(seen[:, k] @ projected[i][q] / math.sqrt(own))
            parts.append(seen[:, v].T @ weights / weights.sum())
        rows.append(layer.out.weight @ torch.cat(parts) + layer.out.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("axis", ["time", "node"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("form", ["ssd", "selective_scan"])
def test_temporal_mamba_equals_loops(form, steps, axis, causal, by_loops, stirred, same_with_gradients):
    torch.manual_seed(0)
    options = {"head_width": 4} if form == "ssd" else {}
    layer = stirred(TemporalMamba(WIDTH, axis=axis, causal=causal, form=form, d_state=3, **options))
    batch, nodes = (2, 3) if steps < 100 else (2, 1)
    x = normal(batch, steps, nodes, WIDTH).requires_grad_()
    size = steps if axis == "time" else nodes
    lengths = [size, (size + 1) // 2]
    expected = over_lines(x, axis, lengths, lambda line: by_loops(layer.mamba, line))
    same_with_gradients(layer, layer(x, torch.tensor(lengths)), expected, x)
    torch.testing.assert_close(layer(x)[:1], expected[:1], rtol=1e-9, atol=1e-9)


def test_causal_sees_no_future(stirred):
    layer = stirred(TemporalMamba(WIDTH, causal=True))
    x = normal(1, 13, 2, WIDTH)
    other = x.clone()
    other[:, 7:] += 1
    assert torch.equal(layer(x)[:, :7], layer(other)[:, :7])
    assert (layer(x)[:, 7:] != layer(other)[:, 7:]).any()


@pytest.mark.parametrize("form", ["ssd", "selective_scan"])
@pytest.mark.parametrize("axis", ["time", "node"])
def test_lines_are_independent(axis, form, stirred):
    layer = stirred(TemporalMamba(WIDTH, axis=axis, form=form))
    x = normal(2, 5, 4, WIDTH)
    other = x.clone()
    place = (0, slice(None), 1) if axis == "time" else (0, 1)
    other[place] += 1
    changed = (layer(x) != layer(other)).any(-1)
    assert changed[place].all()
    changed[place] = False
    assert not changed.any()


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("axis", ["time", "node"])
@pytest.mark.parametrize("steps", STEPS)
def test_axis_attention_of_any_length_equals_loops(steps, axis, causal, stirred, same_with_gradients):
    layer = stirred(AxisAttention(6, 4, heads=2, axis=axis, causal=causal))
    x = normal(1, steps, 2, 6) if axis == "time" else normal(1, 2, steps, 6)
    x.requires_grad_()
    expected = over_lines(x, axis, [steps], lambda line: attention_by_loops(layer, line))
    same_with_gradients(layer, layer(x), expected, x)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("axis", ["time", "node"])
@pytest.mark.parametrize("lengths", [None, [6, 4], [6, 0]], ids=str)
def test_axis_attention_equals_loops(axis, causal, lengths, stirred, same_with_gradients):
    layer = stirred(AxisAttention(6, 4, heads=2, axis=axis, causal=causal))
    x = normal(2, 6, 6, 6).requires_grad_()
    expected = over_lines(x, axis, lengths or [6, 6], lambda line: attention_by_loops(layer, line))
    got = layer(x, None if lengths is None else torch.tensor(lengths))
    same_with_gradients(layer, got, expected, x)


def branch_by_loops(branch, x, axis, lengths, by_loops):
    if isinstance(branch, AxisAttention):
        return over_lines(x, axis, lengths, lambda line: attention_by_loops(branch, line))
    projected = x @ branch.project.weight.T + branch.project.bias
    return over_lines(projected, axis, lengths, lambda line: by_loops(branch.layer.mamba, line))


@pytest.mark.parametrize("spatial", ["attention", "mamba"])
@pytest.mark.parametrize("temporal", ["attention", "mamba"])
@pytest.mark.parametrize("steps", STEPS)
def test_block_equals_loops(steps, temporal, spatial, by_loops, stirred, same_with_gradients):
    torch.manual_seed(0)
    block = stirred(SpatioTemporalBlock(WIDTH, temporal=temporal, spatial=spatial, heads=2, d_state=3))
    nodes = 3 if steps < 100 else 1
    x, embedding = (normal(2, steps, nodes, WIDTH, seed=seed).requires_grad_() for seed in (1, 2))
    lengths = [steps, (steps + 2) // 3]
    joined = torch.cat([x, embedding], dim=-1)
    joined = joined / (joined.square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.norm.weight
    spatial_y = branch_by_loops(block.spatial, joined, "node", [nodes, nodes], by_loops)
    temporal_y = branch_by_loops(block.temporal, joined, "time", lengths, by_loops)
    rows = []
    for b in range(2):
        for t in range(steps):
            for n in range(nodes):
                if t >= lengths[b]:
                    rows.append(torch.zeros(WIDTH, dtype=x.dtype))
                    continue
                hs, ht = spatial_y[b, t, n], temporal_y[b, t, n]
                gate = block.gate_spatial.weight @ hs + block.gate_temporal.weight @ ht + block.gate_temporal.bias
                z = 1 / (1 + torch.exp(-gate))
                hidden = block.out[0].weight @ (z * hs + (1 - z) * ht) + block.out[0].bias
                rows.append(x[b, t, n] + block.out[2].weight @ hidden.clamp(min=0) + block.out[2].bias)
    expected = torch.stack(rows).reshape(x.shape)
    same_with_gradients(block, block(x, embedding, torch.tensor(lengths)), expected, x, embedding)


@pytest.mark.parametrize("spatial", ["attention", "mamba"])
@pytest.mark.parametrize("temporal", ["attention", "mamba", "fusionmamba"])
@pytest.mark.parametrize("steps", STEPS)
def test_padding_and_batch_mates_change_nothing(steps, temporal, spatial, stirred):
    block = stirred(SpatioTemporalBlock(8, temporal=temporal, spatial=spatial, heads=2))
    lengths = [steps, (steps + 1) // 2, 1]
    x, embedding = normal(3, steps, 2, 8), normal(3, steps, 2, 8, seed=2)
    together = block(x, embedding, torch.tensor(lengths))
    assert together.shape == x.shape
    torch.testing.assert_close(block(x, embedding)[0], together[0], rtol=1e-10, atol=1e-10)
    for row, length in enumerate(lengths):
        part = slice(row, row + 1), slice(0, length)
        torch.testing.assert_close(block(x[part], embedding[part])[0], together[row, :length], rtol=1e-10, atol=1e-10)
        assert (together[row, length:] == 0).all()
    x[1, lengths[1] :] = 1e3
    assert torch.equal(block(x, embedding, torch.tensor(lengths)), together)


@pytest.mark.parametrize("temporal", ["attention", "mamba", "fusionmamba"])
def test_every_parameter_gets_a_gradient(temporal):
    block = SpatioTemporalBlock(16, temporal=temporal, spatial="mamba")
    x = torch.randn(2, 12, 5, 16)
    block(x, x.flip(0)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in block.parameters())


@pytest.mark.parametrize("with_lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("axis", ["time", "node"])
def test_pieces_change_nothing(axis, with_lengths, stirred, same_with_gradients, monkeypatch):
    layer = stirred(TemporalMamba(WIDTH, axis=axis))
    x = normal(2, 5, 5, WIDTH).requires_grad_()
    lengths = torch.tensor([5, 2]) if with_lengths else None
    whole = layer(x, lengths)
    called = []
    layer.mamba.register_forward_hook(lambda module, inputs, output: called.append(len(output)))
    # three rows of 5 x WIDTH at once
    monkeypatch.setattr(spatiotemporal, "LARGEST_PIECE", 3 * 5 * WIDTH + 1)
    same_with_gradients(layer, layer(x, lengths), whole, x)
    assert called == [3, 3, 3, 1]


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_step_sizes_start_in_their_range(causal):
    block = SpatioTemporalBlock(64, temporal="mamba", causal=causal, dt_range=(0.25, 0.5))
    steps = F.softplus(block.temporal.layer.mamba.dt_bias)
    assert steps.min() > 0.249 and steps.max() < 0.501
    folded = SpatioTemporalBlock(64, temporal="fusionmamba", d_state=4, dt_range=(0.25, 0.5)).temporal.layer.layer.scan
    assert folded.d_state == 4
    assert F.softplus(folded.dt_bias).min() > 0.249 and F.softplus(folded.dt_bias).max() < 0.501


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TemporalMamba(4, axis="space"), "axis: expected 'time' or 'node', got 'space'"),
        (lambda: TemporalMamba(4, form="s4"), "form: expected one of .*, got 's4'"),
        (lambda: TemporalMamba(4, form="selective_scan", head_width=4), "head_width: of form 'ssd'"),
        (lambda: AxisAttention(4, 4, heads=3), "heads: expected a divisor of 4, got 3"),
        (lambda: SpatioTemporalBlock(8, temporal="lstm"), "expected a branch of .*, got 'lstm'"),
        (lambda: SpatioTemporalBlock(8, temporal="fusionmamba", causal=True), "causal: a plane is scanned"),
        (lambda: SpatioTemporalBlock(8, spatial="fusionmamba"), "spatial: expected 'attention' or 'mamba'"),
    ],
)
def test_what_cannot_be_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("spatial", ["attention", "mamba"])
@pytest.mark.parametrize("temporal", ["attention", "mamba", "fusionmamba"])
def test_branches_end_in_any_dtype_under_autocast(temporal, spatial):
    block = SpatioTemporalBlock(8, temporal=temporal, spatial=spatial, heads=2)
    x = torch.randn(2, 5, 3, 8).requires_grad_()
    expected = block(x, x)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x, x)
    y.square().mean().backward()
    assert (y.float() - expected).norm() < 0.05 * expected.norm()
    assert x.grad.isfinite().all() and all(parameter.grad.isfinite().all() for parameter in block.parameters())
