"""Updates of the pair map: the plain form against the formula, the kernels (on a GPU, or in Triton's interpreter)
against that."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from ribonanzamamba.ops import gated_convolution, norm_and_heads, outer_and_norm, pair_plain
from ribonanzamamba.ops.backend import interpreted

EPS, FILL = 1e-5, -1e9
OPERATORS = ("outer_and_norm", "gated_convolution", "norm_and_heads")
SHAPES = [(1, 1, 16), (2, 3, 5), (2, 17, 24), (1, 70, 16), (1, 5, 64), (1, 3, 128)]
"""Examples, length, channels."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not (interpreted() or DEVICE == "cuda"),
    reason="needs Triton, and a GPU or Triton's interpreter",
)
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """cuDNN's convolution would take float32 for TF32, three digits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def inputs(operator: str, examples: int, length: int, channels: int) -> dict[str, torch.Tensor]:
    """The tensors with a gradient."""
    g = torch.Generator().manual_seed(length + channels)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=g) * scale

    c = channels
    tensors = {"pair": normal(examples, length, length, c)}
    if operator == "outer_and_norm":
        return tensors | {"projected": normal(examples, length, 4 * c), "gain": normal(c)}
    if operator == "norm_and_heads":
        return tensors | {"gain": normal(c), "weight": normal(3, c, scale=c**-0.5)}
    return tensors | {
        "normed": normal(examples, length, length, c),
        "conv_weight": normal(2 * c, c, 3, 3, scale=(9 * c) ** -0.5),
        "conv_bias": normal(2 * c),
        "weight": normal(c, c, scale=c**-0.5),
        "bias": normal(c),
    }


def present_of(examples: int, length: int) -> torch.Tensor:
    """The first row whole, the others shorter, with a hole."""
    present = torch.ones(examples, length, dtype=torch.bool)
    present[1:, length // 2 + 1 :] = False
    present[1:, 1:2] = False
    return present


def run(operator: str, tensors: dict[str, torch.Tensor], **options) -> tuple[torch.Tensor, ...]:
    examples, length = tensors["pair"].shape[:2]
    present = present_of(examples, length).to(tensors["pair"].device)
    if operator == "outer_and_norm":
        return outer_and_norm(**tensors, present=present, eps=EPS, **options)
    if operator == "norm_and_heads":
        return (norm_and_heads(**tensors, present=present, eps=EPS, fill=FILL, **options),)
    return (gated_convolution(**tensors, dilation=2, **options),)


def outputs_and_gradients(operator: str, tensors: dict[str, torch.Tensor], **options) -> dict[str, torch.Tensor]:
    """Outputs, and the gradient of every input of a loss that sees each output with weights of its own."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    outputs = run(operator, leaves, **options)
    loss = sum(
        (k + 1)
        * (y.masked_fill(y < FILL / 2, 0) * torch.linspace(-0.5, 1, y.numel()).bfloat16().to(y).view_as(y)).sum()
        for k, y in enumerate(outputs)
    )
    loss.backward()
    return {f"y{k}": y.detach() for k, y in enumerate(outputs)} | {f"d{name}": x.grad for name, x in leaves.items()}


def test_outer_and_norm_by_loops():
    tensors = {name: tensor.double() for name, tensor in inputs("outer_and_norm", 2, 3, 5).items()}
    summed, normed = run("outer_and_norm", tensors)
    present = present_of(2, 3)
    left, right, row, column = tensors["projected"].split(5, dim=-1)
    for b in range(2):
        for i in range(3):
            for j in range(3):
                cell = tensors["pair"][b, i, j] + left[b, i] * right[b, j] + row[b, i] + column[b, j]
                norm = cell / (cell.square().mean() + EPS).sqrt() * tensors["gain"]
                torch.testing.assert_close(summed[b, i, j], cell)
                torch.testing.assert_close(normed[b, i, j], norm * (present[b, i] & present[b, j]))


def test_gated_convolution_by_loops():
    tensors = {name: tensor.double() for name, tensor in inputs("gated_convolution", 1, 5, 2).items()}
    (out,) = run("gated_convolution", tensors)
    for i in range(5):
        for j in range(5):
            hidden = tensors["conv_bias"].clone()
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + 2 * di < 5 and 0 <= j + 2 * dj < 5:
                        taps = tensors["conv_weight"][:, :, di + 1, dj + 1]
                        hidden = hidden + taps @ tensors["normed"][0, i + 2 * di, j + 2 * dj]
            gated = hidden[:2] * F.silu(hidden[2:])
            expected = tensors["pair"][0, i, j] + tensors["weight"] @ gated + tensors["bias"]
            torch.testing.assert_close(out[0, i, j], expected)


def test_norm_and_heads_by_loops():
    tensors = {name: tensor.double() for name, tensor in inputs("norm_and_heads", 2, 3, 5).items()}
    (out,) = run("norm_and_heads", tensors)
    assert out.is_contiguous()
    present = present_of(2, 3)
    for b in range(2):
        for i in range(3):
            for j in range(3):
                cell = tensors["pair"][b, i, j]
                value = tensors["weight"] @ (cell / (cell.square().mean() + EPS).sqrt() * tensors["gain"])
                expected = value if present[b, j] else torch.full((3,), FILL).double()
                torch.testing.assert_close(out[b, :, i, j], expected)


@pytest.mark.parametrize("part", [1, 60, 200, 10_000])
@pytest.mark.parametrize("operator", OPERATORS)
def test_without_a_gradient_a_large_map_goes_part_by_part(operator, part, monkeypatch):
    tensors = inputs(operator, 3, 7, 5)
    whole = run(operator, tensors)
    monkeypatch.setattr(pair_plain, "PART", part)
    monkeypatch.setattr(pair_plain, "WORTH_PARTS", 0)
    # a row, one RNA or two, all: the parts are all of the map, each once
    counted = torch.zeros(3, 7, 7, 5)
    for each in pair_plain.parts(counted):
        counted[each] += 1
    assert (counted == 1).all()
    for got, expected in zip(run(operator, tensors), whole, strict=True):
        assert got.is_contiguous() and got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("part", [1, 60, 200, 10_000])
@pytest.mark.parametrize("operator", ["outer_and_norm", "gated_convolution"])
def test_only_what_may_be_overwritten_is(operator, part, monkeypatch):
    tensors = inputs(operator, 3, 7, 5)
    whole = run(operator, tensors, overwrite=True)
    assert torch.equal(tensors["pair"], inputs(operator, 3, 7, 5)["pair"]), "no parts: nothing is overwritten"
    monkeypatch.setattr(pair_plain, "PART", part)
    monkeypatch.setattr(pair_plain, "WORTH_PARTS", 0)
    run(operator, tensors)
    for name, tensor in inputs(operator, 3, 7, 5).items():
        assert torch.equal(tensors[name], tensor), name
    got = run(operator, tensors, overwrite=True)
    assert got[0] is tensors["pair"]
    for result, expected in zip(got, whole, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs(operator, 3, 7, 5).items()}
    assert run(operator, leaves, overwrite=True)[0] is not leaves["pair"], "a gradient needs it"


def test_parts_where_they_help_and_nowhere_else(monkeypatch):
    pair, weight = torch.zeros(1, 3, 3, 5), torch.zeros(5, requires_grad=True)
    assert not pair_plain.in_parts(pair)
    monkeypatch.setattr(pair_plain, "WORTH_PARTS", 44)
    assert pair_plain.in_parts(pair)
    assert not pair_plain.in_parts(pair, weight)
    with torch.no_grad():
        assert pair_plain.in_parts(pair, weight)
    with FakeTensorMode():
        # shapes alone, of which nothing is computed
        assert not pair_plain.in_parts(torch.zeros(1, 9, 9, 5))


@pytest.mark.parametrize("operator", OPERATORS)
def test_gradients_of_the_plain_form(operator):
    tensors = {name: tensor.double().requires_grad_() for name, tensor in inputs(operator, 2, 3, 4).items()}
    names = list(tensors)
    torch.autograd.gradcheck(
        lambda *values: run(operator, dict(zip(names, values, strict=True))), tuple(tensors.values())
    )


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_kernels_compute_the_same(operator, shape):
    tensors = {name: x.to(DEVICE) for name, x in inputs(operator, *shape).items()}
    expected = outputs_and_gradients(operator, {name: x.double() for name, x in tensors.items()}, backend="plain")
    # whatever a kernel does not write stays NaN
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        got = outputs_and_gradients(operator, tensors, backend="triton")
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in expected.items():
        error = (got[name].double() - value).norm() / value.norm().clamp(min=1e-30)
        assert error <= 2e-5, f"{name}: {error:.1e}"


@needs_kernels
@pytest.mark.parametrize("operator", OPERATORS)
def test_bfloat16_is_rounded_at_the_ends(operator):
    """Maps in bfloat16, parameters in float32, as under autocast."""
    maps = ("pair", "normed", "projected")
    tensors = {
        name: (x.bfloat16() if name in maps or name == "conv_weight" else x).to(DEVICE)
        for name, x in inputs(operator, 2, 17, 16).items()
    }
    exact = {name: x.double() for name, x in tensors.items()}
    expected = outputs_and_gradients(operator, exact, backend="plain")
    got = outputs_and_gradients(operator, tensors, backend="triton")
    for name, value in expected.items():
        assert got[name].dtype == (torch.bfloat16 if name[0] == "y" else tensors[name[1:]].dtype)
        error = (got[name].double() - value).norm() / value.norm()
        assert error <= 6e-3, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("operator", "name", "shape"),
    [
        ("outer_and_norm", "projected", (2, 3, 8)),
        ("norm_and_heads", "weight", (3, 4)),
        ("gated_convolution", "bias", (4,)),
    ],
)
def test_shapes_that_do_not_fit(operator, name, shape):
    tensors = inputs(operator, 2, 3, 5) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match="expected"):
        run(operator, tensors)


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_example(operator):
    outputs = run(operator, inputs(operator, 0, 3, 5))
    assert all(y.numel() == 0 for y in outputs)


def test_the_kernels_do_not_run_everywhere():
    with pytest.raises(ValueError, match="torch.float64"):
        run("norm_and_heads", {k: v.double() for k, v in inputs("norm_and_heads", 1, 3, 5).items()}, backend="triton")


@needs_gpu
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_maps_on_a_gpu(operator, dtype):
    """Every program adds up over many tiles; twice the same bits."""
    maps = ("pair", "normed", "projected", "conv_weight")
    tensors = {name: x.to(DEVICE) for name, x in inputs(operator, 3, 177, 64).items()}
    tensors = {name: x.to(dtype) if name in maps else x for name, x in tensors.items()}
    expected = outputs_and_gradients(operator, {name: x.double() for name, x in tensors.items()}, backend="plain")
    first, second = (outputs_and_gradients(operator, tensors, backend="triton") for _ in range(2))
    for name, value in expected.items():
        error = (first[name].double() - value).norm() / value.norm()
        assert error <= (6e-3 if dtype == torch.bfloat16 else 3e-5), f"{name}: {error:.1e}"
        # the convolution is cuDNN's, whose gradients may add up in another order
        assert name in ("dnormed", "dconv_weight") or torch.equal(first[name], second[name]), name


@needs_gpu
@pytest.mark.parametrize("operator", OPERATORS)
def test_compiled_as_one_node(operator):
    tensors = {name: x.to(DEVICE) for name, x in inputs(operator, 2, 17, 16).items()}
    plain = run(operator, tensors)
    compiled = torch.compile(lambda tensors: run(operator, tensors), fullgraph=True)(tensors)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b)
