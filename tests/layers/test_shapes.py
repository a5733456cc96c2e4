"""`shapes` of models of all sorts, and that every parameter of ours is explained."""

import json
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import ribonanzamamba.layers as layers
from ribonanzamamba.layers.shapes import first_sentence, shapes

CALLS = {
    "AxisAttention": (lambda: layers.AxisAttention(8, 8, heads=2), [(2, 12, 5, 8)]),
    "BiMamba": (lambda: layers.BiMamba(8, head_width=8), [(2, 12, 8)]),
    "BiMamba1": (lambda: layers.BiMamba1(8), [(2, 12, 8)]),
    "DescriptiveConvolution": (lambda: layers.DescriptiveConvolution(8, 4), [(2, 3, 4, 8)]),
    "Downsample2D": (lambda: layers.Downsample2D(8), [(2, 3, 4, 8)]),
    "EfficientChannelAttention": (layers.EfficientChannelAttention, [(2, 3, 4, 8)]),
    "FoldedTime": (lambda: layers.FoldedTime(layers.Mamba2D(8)), [(2, 12, 5, 8)]),
    "FusionMambaBlock": (lambda: layers.FusionMambaBlock(8), [(2, 3, 4, 8)]),
    "Mamba": (lambda: layers.Mamba(8), [(2, 12, 8)]),
    "Mamba2": (lambda: layers.Mamba2(8, headdim=8), [(2, 12, 8)]),
    "Mamba2D": (lambda: layers.Mamba2D(8), [(2, 3, 4, 8)]),
    "MambaSelfAttention": (lambda: layers.MambaSelfAttention(8), None),
    "PairBiasedAttention": (lambda: layers.PairBiasedAttention(8, 4, heads=2), [(2, 5, 8), (2, 5, 5, 4), "mask"]),
    "PairUpdate": (lambda: layers.PairUpdate(8, 4), [(2, 5, 8), (2, 5, 5, 4), "mask"]),
    "RMSNorm": (lambda: layers.RMSNorm(8), [(2, 8)]),
    "SeparableConvolution": (lambda: layers.SeparableConvolution(8), [(2, 5, 8), "mask"]),
    "SpatioTemporalBlock": (lambda: layers.SpatioTemporalBlock(8, temporal="fusionmamba"), [(2, 12, 5, 8)] * 2),
    "TemporalMamba": (lambda: layers.TemporalMamba(8), [(2, 12, 5, 8)]),
    "Upsample2D": (lambda: layers.Upsample2D(8), None),
}
"""How each of our modules is built and called."""
MASKS = {"mask": torch.ones(2, 5, dtype=torch.bool)}


def test_no_layer_is_forgotten():
    modules = [name for name in layers.__all__ if isinstance(getattr(layers, name), type)]
    modules = [name for name in modules if issubclass(getattr(layers, name), nn.Module)]
    assert sorted(modules) == sorted(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_every_parameter_and_layer_of_ours_is_explained(name):
    build, inputs = CALLS[name]
    layer = build()
    if inputs is None:
        x = torch.zeros(2, 3, 8) if name == "MambaSelfAttention" else torch.zeros(2, 2, 2, 8)
        call = (x, x, x) if name == "MambaSelfAttention" else (x, (3, 4))
    else:
        call = tuple(MASKS[shape] if isinstance(shape, str) else torch.zeros(shape) for shape in inputs)
    table = shapes(layer, *call)
    assert table.modules[0].meaning and table.modules[0].outputs
    assert [parameter.name for parameter in table.parameters] == [name for name, _ in layer.named_parameters()]
    unexplained = [parameter.name for parameter in table.parameters if not parameter.meaning]
    assert unexplained == []


def test_encoder_of_pytorch():
    encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    encoder.linear1.eval()
    modes = [module.training for module in encoder.modules()]
    table = shapes(encoder, torch.zeros(2, 7, 16), src_key_padding_mask=torch.zeros(2, 7, dtype=torch.bool))
    rows = {row.name: row for row in table.modules}
    assert list(rows) == [name for name, _ in encoder.named_modules()]
    assert [module.training for module in encoder.modules()] == modes
    assert not any(module._forward_hooks for module in encoder.modules())
    whole = rows[""]
    assert [str(tensor) for tensor in whole.inputs] == ["(2, 7, 16)", "src_key_padding_mask (2, 7)"]
    assert whole.inputs[1].dtype == "bool"
    assert (rows["linear1"].outputs[0].shape, rows["linear1"].parameters) == ((2, 7, 32), 16 * 32 + 32)
    assert rows["linear1"].parameter_bytes == 4 * 544 and rows["linear1"].output_bytes == 4 * 2 * 7 * 32
    # the attention uses its output layer's weights without calling it
    assert rows["self_attn.out_proj"].calls == 0 and rows["self_attn.out_proj"].outputs == ()
    assert all(parameter.meaning for parameter in table.parameters)


def test_after_a_swap():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    layers.replace_attention(encoder)
    hidden = torch.arange(7) >= torch.tensor([7, 3])[:, None]
    table = shapes(encoder, torch.zeros(2, 7, 16), src_key_padding_mask=hidden)
    rows = {row.name: row for row in table.modules}
    assert rows["layers.1.self_attn.mamba"].outputs[0].shape == (2, 7, 16)


@dataclass(frozen=True)
class Two:
    sum: Tensor
    parts: list
    nothing: None = None


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.other = self.layer
        self.unused = nn.Linear(3, 4)

    def forward(self, pair: dict, flag: bool = False) -> Two:
        first, second = self.layer(pair["first"]), self.other(pair["second"])
        return Two(first + second, [first, {"second": second}])


def test_nested_inputs_shared_and_unused_modules():
    model = Shared()
    table = shapes(model, {"first": torch.zeros(2, 3), "second": torch.zeros(2, 3)}, flag=True)
    whole, layer, unused = table.modules
    assert [str(tensor) for tensor in whole.inputs] == ["first (2, 3)", "second (2, 3)"]
    assert [str(tensor) for tensor in whole.outputs] == ["sum (2, 3)", "parts (2, 3)", "second (2, 3)"]
    assert (layer.name, layer.calls, unused.calls) == ("layer", 2, 0)
    assert whole.parameters == 12 + 16 and whole.meaning == ""


def test_an_error_in_the_model_leaves_no_hooks():
    model = nn.Sequential(nn.Linear(3, 3)).train()
    with pytest.raises(RuntimeError):
        shapes(model, torch.zeros(2, 4))
    assert model.training and not model[0]._forward_hooks


@pytest.fixture
def table():
    return shapes(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 2)), torch.zeros(5, 4))


def test_text_merges_what_is_alike(table):
    lines = table.to_text().splitlines()
    assert lines[0].split()[:3] == ["module", "times", "class"]
    assert lines[1].split()[:7] == ["(model)", "1", "Sequential", "(5,", "4)", "(5,", "2)"]
    assert lines[2].split()[:3] == ["*", "3", "Linear"] and lines[3].split()[:3] == ["3", "1", "Linear"]
    assert lines[-1] == "5 modules, 70 parameters (0.0 MiB); largest output 0.00 MiB, of 0"
    assert max(map(len, lines)) < 260
    rows = table.to_text(parameters=True).splitlines()
    assert rows[1].split()[:4] == ["*.weight", "3", "(4,", "4)"] and rows[1].endswith("matrix of the map, (out, in)")


def test_markdown_has_the_same_rows(table):
    for parameters in (False, True):
        text = table.to_text(parameters=parameters).splitlines()
        markdown = table.to_markdown(parameters=parameters).splitlines()
        assert len(markdown) == len(text) + 1 and set(markdown[1]) <= set("| -")
        assert {line.count("|") for line in markdown[:-2]} == {markdown[0].count("|")}


def test_json_has_every_module(table):
    values = json.loads(table.to_json(parameters=True))
    assert [module["name"] for module in values["modules"]] == ["", "0", "1", "2", "3"]
    assert values["modules"][4]["outputs"] == [{"name": "", "shape": [5, 2], "dtype": "float32"}]
    assert len(values["parameters"]) == 8 and "parameters" not in json.loads(table.to_json())


def test_first_sentence():
    assert first_sentence(nn.Linear).startswith("Applies an affine linear transformation to the incoming data: y =")
    assert first_sentence(Shared) == ""
