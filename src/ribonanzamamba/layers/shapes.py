"""What goes in and out of every module of any PyTorch model: shapes, parameters, memory, meaning, as a table."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

MEBIBYTE = 2**20
TEXT_WIDTH = 60
"""Most characters of a cell in the text table; Markdown and JSON have it whole."""

PARAMETER_MEANINGS: dict[str, dict[str, str]] = {
    "BiMamba": {
        "in_proj.weight": "rows: gate z, inputs u, B and C (left to right, then right to left), step sizes",
        "conv_weight": "taps of the centred short convolution over u, B and C, one row a channel",
        "conv_bias": "bias of the short convolution, a channel",
        "dt_bias": "bias of the step sizes before softplus, a head: those from the left first, then from the right",
        "A_log": "log of the decay rate, a head and direction: A = -exp(A_log)",
        "D": "skip: how much of its own input a head adds to its output",
        "norm.weight": "gain of the norm after the gate, a channel",
        "out_proj.weight": "from the inner width back to d_model",
    },
    "BiMamba1": {
        "in_proj.weight": "rows: inputs u, then gate z",
        "conv_weight": "taps of the centred short convolution over u, one row a channel",
        "conv_bias": "bias of the short convolution, a channel",
        "x_proj.weight": "rows, left to right, then right to left: low-rank step sizes, B, C, all chosen by the input",
        "dt_weight": "for each direction, from the low-rank step sizes to one a channel",
        "dt_bias": "bias of the step sizes before softplus, a channel: those from the left first, then from the right",
        "A_log": "log of the decay rate of each channel and state, a direction after the other: A = -exp(A_log)",
        "D": "skip: how much of its own input a channel adds to its output",
        "out_proj.weight": "from the inner width back to d_model",
    },
    "Mamba": {
        "in_proj.weight": "rows: inputs u, then gate z",
        "conv1d.weight": "taps of the causal short convolution, (channel, 1, tap), the last for the position itself",
        "conv1d.bias": "bias of the short convolution, a channel",
        "x_proj.weight": "rows: low-rank step sizes, B, C, all chosen by the input",
        "dt_proj.weight": "from the low-rank step sizes to one a channel",
        "dt_proj.bias": "bias of the step sizes before softplus, a channel: how far it looks back at the start",
        "A_log": "log of the decay rate of each channel and state: A = -exp(A_log)",
        "D": "skip: how much of its own input a channel adds to its output",
        "out_proj.weight": "from the inner width back to d_model",
    },
    "Mamba2": {
        "in_proj.weight": "rows: gate z, inputs u, B and C of each group, step sizes",
        "conv1d.weight": "taps of the causal short convolution over u, B and C, (channel, 1, tap)",
        "conv1d.bias": "bias of the short convolution, a channel",
        "dt_bias": "bias of the step sizes before softplus, a head: how far it looks back at the start",
        "A_log": "log of the decay rate of a head: A = -exp(A_log)",
        "D": "skip: how much of its own input a head adds to its output",
        "norm.weight": "gain of the norm after the gate, a channel",
        "out_proj.weight": "from the inner width back to d_model",
    },
    "Mamba2D": {
        "in_proj.weight": "rows: inputs u, then gate z",
        "conv2d.weight": "taps of the depthwise convolution over the plane, (channel, 1, row, column)",
        "conv2d.bias": "bias of the depthwise convolution, a channel",
        "x_weight": "for each direction, rows: low-rank step sizes, B, C",
        "dt_weight": "for each direction, from the low-rank step sizes to one a channel",
        "dt_bias": "bias of the step sizes before softplus, (direction, channel)",
        "A_log": "log of the decay rate, (direction, channel, state): A = -exp(A_log)",
        "D": "skip: how much of its own input a channel adds to its output, (direction, channel)",
        "norm.weight": "gain of the norm before the gate, a channel",
        "out_proj.weight": "from the inner width back to d_model",
    },
    "DescriptiveConvolution": {
        "conv.weight": "taps, (out, in, row, column), before the centre is scaled",
        "theta": "how strongly the sum of the taps scales the centre tap; 0 is a plain convolution",
        "m": "the same for each pair of an output and an input channel",
    },
    "EfficientChannelAttention": {"conv.weight": "weights of neighbouring channels' means in a channel's scale"},
    "SpatioTemporalBlock": {
        "gate_spatial.weight": "W1 of the fusion gate, on the spatial branch",
        "gate_temporal.weight": "W2 of the fusion gate, on the temporal branch",
        "gate_temporal.bias": "b of the fusion gate",
    },
    "AxisAttention": {
        "qkv.weight": "rows: queries, keys, values, each head after head",
        "qkv.bias": "bias of queries, keys and values",
    },
    "SeparableConvolution": {"taps": "taps of one group of channels, (channel, tap); each group has its own width"},
    "PairUpdate": {"pair_gain": "gain of the norm before the convolution over the pair map, a channel"},
    "PairBiasedAttention": {
        "qkv.weight": "rows: queries, keys, values, each head after head",
        "bias.weight": "from a pair's features to what is added to the attention logit, a head",
        "query_norm.weight": "gain of the norm of the queries",
        "key_norm.weight": "gain of the norm of the keys",
    },
    # of PyTorch
    "Linear": {"weight": "matrix of the map, (out, in)", "bias": "added to the result, (out)"},
    "NonDynamicallyQuantizableLinear": {"weight": "matrix of the map, (out, in)", "bias": "added to the result, (out)"},
    "Embedding": {"weight": "one vector for each index, (index, width)"},
    "LayerNorm": {"weight": "gain of the norm, a channel", "bias": "offset after the norm, a channel"},
    "RMSNorm": {"weight": "gain of the norm, a channel"},
    "GatedRMSNorm": {"weight": "gain of the norm, a channel"},
    "BatchNorm1d": {"weight": "gain of the norm, a channel", "bias": "offset after the norm, a channel"},
    "BatchNorm2d": {"weight": "gain of the norm, a channel", "bias": "offset after the norm, a channel"},
    "Conv1d": {"weight": "taps, (out, in / groups, tap)", "bias": "added to the result, (out)"},
    "Conv2d": {"weight": "taps, (out, in / groups, row, column)", "bias": "added to the result, (out)"},
    "MultiheadAttention": {
        "in_proj_weight": "rows: queries, keys, values",
        "in_proj_bias": "bias of queries, keys and values",
    },
}
"""Class, then parameter, or child and parameter where its place in the class says more; the first that fits counts."""


@dataclass(frozen=True)
class TensorShape:
    """One tensor that goes in or out."""

    name: str
    """Keyword or field; empty where it has none."""
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        shape = "(" + ", ".join(map(str, self.shape)) + ")"
        return f"{self.name} {shape}" if self.name else shape


@dataclass(frozen=True)
class ModuleShape:
    """One module as it was called first."""

    name: str
    """Path in the model; empty for the model itself."""
    kind: str
    """Class."""
    inputs: tuple[TensorShape, ...]
    outputs: tuple[TensorShape, ...]
    calls: int
    """0: its parent uses its parameters without calling it."""
    parameters: int
    """Numbers to learn, children's included."""
    parameter_bytes: int
    output_bytes: int
    """Of one call."""
    meaning: str
    """First sentence of the class's docstring."""


@dataclass(frozen=True)
class ParameterShape:
    """One parameter."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    meaning: str


@dataclass(frozen=True)
class ShapeTable:
    """The modules of a model in the order of their definition, and their parameters."""

    modules: tuple[ModuleShape, ...]
    parameters: tuple[ParameterShape, ...]

    def to_text(self, *, parameters: bool = False) -> str:
        """Columns for a terminal; modules of the same kind and shapes share a line, `*` for their numbers."""
        rows = self.rows(parameters)
        if not parameters:
            rows = [[shortened(cell) for cell in row] for row in rows]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        right = {"times", "calls", "parameters", "weights MiB", "output MiB", "count"}
        lines = [
            "  ".join(
                cell.rjust(width) if title in right else cell.ljust(width)
                for cell, width, title in zip(row, widths, rows[0], strict=True)
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, "", self.summary()])

    def to_markdown(self, *, parameters: bool = False) -> str:
        """A table for a document, with the same lines as `to_text`."""
        header, *rows = self.rows(parameters)
        lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
        return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", self.summary()])

    def to_json(self, *, parameters: bool = False) -> str:
        """Every module, none merged; every parameter if asked for."""
        values: dict[str, Any] = {"modules": [asdict(module) for module in self.modules]}
        if parameters:
            values["parameters"] = [asdict(parameter) for parameter in self.parameters]
        return json.dumps(values, indent=2)

    def rows(self, parameters: bool) -> list[list[str]]:
        """Header and cells of the modules, or of the parameters."""
        if parameters:
            header = ["parameter", "times", "shape", "dtype", "count", "meaning"]
            merged = merge(self.parameters)
            return [header] + [
                [name, str(times), str(TensorShape("", p.shape, "")), p.dtype, f"{p.count:,}", p.meaning]
                for name, times, p in merged
            ]
        header = ["module", "times", "class", "input", "output", "parameters", "weights MiB", "output MiB", "meaning"]
        return [header] + [
            [
                name or "(model)",
                str(times),
                module.kind,
                joined(module.inputs),
                joined(module.outputs),
                f"{module.parameters:,}",
                f"{module.parameter_bytes / MEBIBYTE:.2f}",
                f"{module.output_bytes / MEBIBYTE:.2f}",
                module.meaning,
            ]
            for name, times, module in merge(self.modules)
        ]

    def summary(self) -> str:
        """The whole in one sentence."""
        whole = self.modules[0]
        largest = max(self.modules, key=lambda module: module.output_bytes)
        weights, output = whole.parameter_bytes / MEBIBYTE, largest.output_bytes / MEBIBYTE
        return (
            f"{len(self.modules)} modules, {whole.parameters:,} parameters ({weights:.1f} MiB); "
            f"largest output {output:.2f} MiB, of {largest.name or 'the model'}"
        )


def shapes(
    module: nn.Module, *inputs: Any, meanings: Mapping[str, Mapping[str, str]] | None = None, **keywords: Any
) -> ShapeTable:
    """Call any module once, in evaluation mode and without gradients, and note what goes in and out of each submodule.

    `inputs` and `keywords` are those of the call. Under PyTorch's `FakeTensorMode` nothing is computed, so that
    shapes of any size cost no memory. `meanings` explains parameters beyond `PARAMETER_MEANINGS`, in the same form.

    >>> table = shapes(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.zeros(2, 4))
    >>> [(row.name, str(row.outputs[0]), row.parameters) for row in table.modules]
    [('', '(2, 8)', 40), ('0', '(2, 8)', 40), ('1', '(2, 8)', 0)]
    """
    seen: dict[nn.Module, tuple[tuple[TensorShape, ...], tuple[TensorShape, ...], int]] = {}
    calls: dict[nn.Module, int] = {}

    def note(called: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        calls[called] = calls.get(called, 0) + 1
        if called not in seen:
            tensors = list(tensors_in(output))
            size = sum(tensor.numel() * tensor.element_size() for _, tensor in tensors)
            entering = (*tensors_in(args), *tensors_in(kwargs))
            seen[called] = tuple(map(described, entering)), tuple(map(described, tensors)), size

    modules = dict(module.named_modules())
    modes = [(child, child.training) for child in modules.values()]
    handles = [child.register_forward_hook(note, with_kwargs=True) for child in modules.values()]
    try:
        module.eval()
        with torch.no_grad():
            module(*inputs, **keywords)
    finally:
        for handle in handles:
            handle.remove()
        for child, mode in modes:
            child.training = mode
    rows = []
    for name, child in modules.items():
        entering, leaving, output_bytes = seen.get(child, ((), (), 0))
        parameters = list(child.parameters())
        rows.append(
            ModuleShape(
                name,
                type(child).__name__,
                entering,
                leaving,
                calls.get(child, 0),
                sum(parameter.numel() for parameter in parameters),
                sum(parameter.numel() * parameter.element_size() for parameter in parameters),
                output_bytes,
                first_sentence(type(child)),
            )
        )
    known = PARAMETER_MEANINGS | dict(meanings or {})
    described_parameters = tuple(
        ParameterShape(
            name,
            tuple(parameter.shape),
            dtype_name(parameter),
            parameter.numel(),
            parameter_meaning(modules, name, known),
        )
        for name, parameter in module.named_parameters()
    )
    return ShapeTable(tuple(rows), described_parameters)


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything inside tuples, lists, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors_in(part, str(key))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part, name)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name), field.name)


def described(named: tuple[str, Tensor]) -> TensorShape:
    name, tensor = named
    # rows of different lengths have no shape of their own
    shape = (len(tensor.unbind()),) if tensor.is_nested else tuple(tensor.shape)
    return TensorShape(name, shape, dtype_name(tensor))


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def parameter_meaning(modules: Mapping[str, nn.Module], name: str, meanings: Mapping[str, Mapping[str, str]]) -> str:
    """What the classes around a parameter say of it: the outer one first, which knows its place; empty if none does."""
    owner, _, own = name.rpartition(".")
    if isinstance(modules[owner], nn.ParameterList):
        owner, _, own = owner.rpartition(".")
    parent, _, child = owner.rpartition(".")
    candidates = [(modules[owner], own)]
    if owner:
        candidates.insert(0, (modules[parent], f"{child}.{own}"))
    for module, key in candidates:
        for kind in type(module).__mro__:
            if key in meanings.get(kind.__name__, {}):
                return meanings[kind.__name__][key]
    return ""


def first_sentence(kind: type[nn.Module]) -> str:
    """The first sentence of a class's docstring, without markup; empty where it has none of its own.

    >>> first_sentence(nn.ReLU)
    'Applies the rectified linear unit function element-wise.'
    """
    doc = inspect.getdoc(kind) or ""
    if doc == inspect.getdoc(nn.Module):
        return ""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    paragraph = re.sub(r":\w+:`~?([^`]*)`", r"\1", paragraph)
    return re.split(r"(?<=\.)\s", paragraph)[0]


def merge(rows: Sequence[Any]) -> Iterator[tuple[str, int, Any]]:
    """Name, number and first of the rows that differ in nothing but the numbers in their names."""
    groups: dict[tuple, list] = {}
    for row in rows:
        rest = tuple(getattr(row, field.name) for field in fields(row) if field.name != "name")
        pattern = tuple("*" if part.isdecimal() else part for part in row.name.split("."))
        groups.setdefault((pattern, rest), []).append(row)
    for members in groups.values():
        places = zip(*(member.name.split(".") for member in members), strict=True)
        name = ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in places)
        yield name, len(members), members[0]


def joined(tensors: Sequence[TensorShape]) -> str:
    return ", ".join(map(str, tensors)) or "-"


def shortened(text: str) -> str:
    """The beginning of a cell of the text table."""
    return text if len(text) <= TEXT_WIDTH else text[: TEXT_WIDTH - 3].rsplit(" ", 1)[0] + "..."
