"""`replace_attention`: swap, train, restore, in PyTorch's encoder, in GMAN's blocks and in one's own models."""

import copy

import pytest
import torch
from torch import nn

from ribonanzamamba.layers import AxisAttention, MambaSelfAttention, SpatioTemporalBlock, replace_attention


@pytest.fixture
def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def train(model: nn.Module, *inputs: torch.Tensor, target: torch.Tensor, steps: int = 40) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        loss = (model(*inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_encoder_swaps_trains_and_restores(encoder):
    x, before = torch.randn(4, 12, 16), copy.deepcopy(encoder.state_dict())
    encoder.eval()
    expected = encoder(x)
    replacement = replace_attention(encoder, d_state=8)
    assert [swap.name for swap in replacement.swaps] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert all(isinstance(layer.self_attn, MambaSelfAttention) for layer in encoder.layers)
    assert not any(module.training for module in encoder.modules())
    old = sum(parameter.numel() for parameter in before.values())
    new = sum(parameter.numel() for parameter in encoder.parameters())
    assert (replacement.parameters_before, replacement.parameters_after) == (old, new)
    per_layer = sum(parameter.numel() for parameter in encoder.layers[0].self_attn.parameters())
    assert str(replacement).splitlines() == [
        f"layers.{k}.self_attn: MultiheadAttention (1,088 parameters) -> MambaSelfAttention ({per_layer:,})"
        for k in range(2)
    ] + [f"model: {old:,} parameters -> {new:,}"]
    losses = train(encoder.train(), x, target=torch.randn(4, 12, 16))
    assert losses[-1] < 0.9 * losses[0]
    replacement.restore()
    assert encoder.state_dict().keys() == before.keys()
    assert all(layer.self_attn.training for layer in encoder.layers)
    encoder.load_state_dict(before)
    torch.testing.assert_close(encoder.eval()(x), expected)


def test_restored_attention_has_its_old_weights(encoder):
    before = copy.deepcopy(encoder.layers[0].self_attn.state_dict())
    replace_attention(encoder).restore()
    for name, tensor in encoder.layers[0].self_attn.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("axes", [("time",), ("time", "node")], ids=" and ".join)
def test_blocks_of_gman(axes):
    torch.manual_seed(0)
    blocks = nn.ModuleList([SpatioTemporalBlock(16, heads=4) for _ in range(2)])

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = blocks

        def forward(self, x, embedding):
            for block in self.blocks:
                x = block(x, embedding)
            return x

    network, x = Network(), torch.randn(2, 12, 5, 16)
    embedding = torch.randn(2, 12, 5, 16)
    expected = network(x, embedding)
    replacement = replace_attention(network, AxisAttention, where=lambda _, module: module.axis in axes, d_state=8)
    assert len(replacement.swaps) == 2 * len(axes)
    kinds = [type(module).__name__ for module in network.modules()]
    assert kinds.count("AxisAttention") == 4 - 2 * len(axes) and kinds.count("TemporalMamba") == 2 * len(axes)
    assert network(x, embedding).shape == x.shape
    losses = train(network, x, embedding, target=torch.randn(2, 12, 5, 16))
    assert losses[-1] < 0.9 * losses[0]
    replacement.restore()
    assert network(x, embedding).shape == expected.shape and not str(network).count("TemporalMamba")


def test_cross_attention_is_kept():
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, batch_first=True), 1)
    replacement = replace_attention(decoder, causal=True)
    assert [swap.name for swap in replacement.swaps] == ["layers.0.self_attn"]
    assert replacement.kept == (("layers.0.multihead_attn", "it is cross-attention"),)
    assert "layers.0.multihead_attn: kept, it is cross-attention" in str(replacement)
    target, memory = torch.randn(2, 6, 16), torch.randn(2, 9, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    assert decoder(target, memory, tgt_mask=mask, tgt_is_causal=True).shape == target.shape


def test_other_widths_are_kept():
    model = nn.ModuleDict({"self": nn.MultiheadAttention(8, 2), "cross": nn.MultiheadAttention(8, 2, kdim=4)})
    replacement = replace_attention(model)
    assert [swap.name for swap in replacement.swaps] == ["self"]
    assert replacement.kept == (("cross", "cross-attention from 4 channels to 8"),)


def test_a_shared_module_is_replaced_by_one():
    attention = nn.MultiheadAttention(8, 2)
    model = nn.ModuleList([attention, attention])
    replacement = replace_attention(model)
    assert len(replacement.swaps) == 2 and model[0] is model[1]
    replacement.restore()
    assert model[0] is model[1] is attention


def test_dtype_and_own_builder():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).double()
    replacement = replace_attention(model, nn.Linear, lambda old: nn.Linear(old.in_features, old.out_features))
    assert model[0] is replacement.swaps[0].after and model[0].weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (nn.Linear(2, 2), nn.MultiheadAttention, "no module of class MultiheadAttention to replace in Linear"),
        (nn.MultiheadAttention(8, 2), nn.MultiheadAttention, "the model is itself a MultiheadAttention"),
        (nn.Sequential(nn.ReLU()), nn.ReLU, "build: needed for ReLU"),
        (
            nn.ModuleList([nn.MultiheadAttention(8, 2, vdim=4)]),
            nn.MultiheadAttention,
            "no module .* in ModuleList; 0 is kept: cross-attention",
        ),
    ],
    ids=["none", "itself", "no default", "only cross-attention"],
)
def test_what_cannot_be_replaced(model, kind, message):
    with pytest.raises(ValueError, match=message):
        replace_attention(model, kind)
