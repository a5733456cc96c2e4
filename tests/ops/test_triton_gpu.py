"""The Triton kernels of the recurrences and the norm on a GPU: against the definition, repeatable, blind to padding.

    python -m pytest tests/ops/test_triton_gpu.py -rs          # with pytest-xdist: -n 8

Skipped where there is no GPU; the interpreter runs the same kernels there in tests of their own, on small shapes.
"""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ribonanzamamba import ops
from ribonanzamamba.ops.partial_sums import sum_parts

DEVICE, KERNELS = "cuda", "triton"
PLAIN = {"ssd": "chunked", "selective_scan": "inplace"}
"""The plain PyTorch form of each operator."""
OPERATORS = list(PLAIN)
BIDIRECTIONAL = {"ssd": "bidirectional_ssd", "selective_scan": "bidirectional_selective_scan"}
ALONG = ("x", "dt", "B", "C", "z")
"""Arguments with an axis along the sequence; in low precision these are rounded, the parameters and states are not."""
BATCH = 3
FLOAT32_ERROR = 2e-5
"""Norm of the difference from the float64 definition over the norm of that."""
SUMMED_ERROR = 1e-4
"""For gradients that sum over every row and position: their terms cancel, and the plain form reaches 5e-5."""
ONE_ROUNDING = {torch.bfloat16: 2e-3, torch.float16: 3e-4}
"""Half a unit in the last place: what rounding an exact result costs at most. Twice an error of 0 would be 0."""
SUMMED = ("A", "D", "dt_bias")
"""Gradients of a few numbers, each the sum of terms that cancel: the error of a single one is small by chance in one
form or the other, so theirs are root mean squares over several draws, held to no less than a whole unit."""
DRAWS = 4
INVARIANCE = 1e-6
"""Between a row alone and the same row among others, relative to the largest value."""

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the compiled kernels need a CUDA GPU")


@pytest.fixture(autouse=True)
def nan_in_fresh_memory(monkeypatch):
    """`torch.empty` and `new_empty` filled with NaN: whatever a kernel does not write shows."""

    def poisoned(make):
        def empty(*arguments, **options):
            tensor = make(*arguments, **options)
            return (
                tensor.fill_(torch.nan) if tensor.is_floating_point() and not torch.compiler.is_compiling() else tensor
            )

        return empty

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))


SHAPES = {
    # heads, width of a head, groups, state
    "ssd": {"usual": (4, 64, 1, 64), "small": (2, 20, 2, 5), "groups": (6, 32, 3, 16), "wide": (2, 128, 1, 128)},
    # groups of channels, channels a group, 1, state
    "selective_scan": {"usual": (1, 96, 1, 16), "small": (2, 3, 1, 1), "groups": (3, 35, 1, 8), "wide": (1, 70, 1, 33)},
}
"""Nothing has to be a multiple of eight."""


def inputs(
    operator: str, length: int, *, shape: str = "usual", directions: int = 1, dtype=torch.float64, seed: int = 0
):
    """Leaves of one dtype that hold values bfloat16 can represent, so that every dtype sees the same numbers.

    Steps of about 0.02 and rates of 1 to 16, as layers begin with: the states remember tens to hundreds of positions.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.randn(size, generator=generator) * scale + mean

    first, second, groups, state = SHAPES[operator][shape]
    if operator == "ssd":
        heads = directions * first
        size, step, rates = (first, second), (heads,), (heads,)
        groups, carried, skip = directions * groups, (first, state, second), (first,)
    else:
        width = first * second
        size, step, rates = (width,), (directions * width,), (directions * width, state)
        groups, carried, skip = directions * first, (width, state), (width,)
    values = {
        "x": normal(BATCH, length, *size),
        "dt": normal(BATCH, length, *step, mean=-4.0),
        "A": -1 - 15 * torch.rand(rates, generator=generator),
        "B": normal(BATCH, length, groups, state),
        "C": normal(BATCH, length, groups, state),
        "D": normal(*skip),
        "z": normal(BATCH, length, *size),
        "dt_bias": normal(*step),
    }
    if directions == 1:
        values["initial_state"] = normal(BATCH, *carried)
    return {
        name: value.bfloat16().to(DEVICE, dtype if name in ALONG else torch.promote_types(dtype, torch.float32))
        .requires_grad_()
        for name, value in values.items()
    }  # fmt: skip


CASES = {
    "bare": dict(without=("D", "z", "dt_bias", "initial_state"), ragged=False),
    "all": dict(without=(), ragged=False),
    "lengths": dict(without=("D", "z", "dt_bias", "initial_state"), ragged=True),
    "all, lengths": dict(without=(), ragged=True),
}


def outputs_and_gradients(operator: str, tensors: dict[str, Tensor], *, seed: int = 1, **options) -> dict[str, Tensor]:
    """Outputs, state and the gradient of every input, for random gradients of the outputs and of the state."""
    function = getattr(ops, operator)
    outputs = function(**tensors, dt_softplus=True, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(seed)
    # values that bfloat16 can represent, for the same reason as above
    weights = [torch.randn(output.shape, generator=generator).bfloat16().to(output) for output in outputs]
    gradients = torch.autograd.grad(outputs, tuple(tensors.values()), weights)
    return dict(zip(("y", "state"), outputs, strict=False)) | dict(zip(tensors, gradients, strict=True))


def relative_errors(got: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    return {
        name: ((got[name].double() - exact[name]).norm() / exact[name].norm().clamp(min=1e-30)).item() for name in exact
    }


def ragged_lengths(length: int) -> Tensor:
    return torch.tensor([length, max(length // 2, 1), 0], device=DEVICE)


def case(operator: str, length: int, name: str, dtype: torch.dtype, shape: str = "usual", seed: int = 0):
    """The leaves and the options of one row of `CASES`."""
    tensors = inputs(operator, length, shape=shape, dtype=dtype, seed=seed)
    for left_out in CASES[name]["without"]:
        del tensors[left_out]
    return tensors, dict(lengths=ragged_lengths(length) if CASES[name]["ragged"] else None, return_state=True)


def assert_close(errors: dict[str, float]) -> None:
    """What float32 has to reach."""
    worse = {
        name: error for name, error in errors.items()
        if not error <= (SUMMED_ERROR if name in SUMMED else FLOAT32_ERROR)
    }  # fmt: skip
    assert not worse, worse


def assert_as_good_as(errors: dict[str, float], plain: dict[str, float], dtype: torch.dtype) -> None:
    """At most twice the error of the plain form, which computes in the same dtype."""
    worse = {
        name: (error, plain[name]) for name, error in errors.items()
        if not error <= max(2 * plain[name], ONE_ROUNDING[dtype] * (2 if name in SUMMED else 1))
    }  # fmt: skip
    assert not worse, f"error of the kernels, error of plain PyTorch: {worse}"


def errors_of(
    operator: str, length: int, name: str, reverse: bool, shape: str, dtype: torch.dtype, seed: int, definition: str
) -> list[dict[str, float]]:
    """Errors of the kernels and of the plain form in one draw."""
    tensors, options = case(operator, length, name, torch.float64, shape, seed)
    exact = outputs_and_gradients(operator, tensors, **options, reverse=reverse, backend=definition)
    errors = []
    for backend in (KERNELS, PLAIN[operator]):
        tensors, options = case(operator, length, name, dtype, shape, seed)
        got = outputs_and_gradients(operator, tensors, **options, reverse=reverse, backend=backend)
        assert got["y"].dtype == dtype and got["state"].dtype == torch.float32
        errors.append(relative_errors(got, exact))
    return errors


def check_accuracy(operator: str, length: int, name: str, reverse: bool, shape: str, dtypes) -> None:
    for dtype in dtypes:
        kernels, plain = errors_of(operator, length, name, reverse, shape, dtype, 0, "reference")
        if dtype == torch.float32:
            assert_close(kernels)
            continue
        # in float64 the plain form is the definition to 1e-9, without a loop
        draws = [(kernels, plain)] + [
            errors_of(operator, length, name, reverse, shape, dtype, seed, PLAIN[operator]) for seed in range(1, DRAWS)
        ]
        for k, errors in enumerate((kernels, plain)):
            for summed in errors.keys() & set(SUMMED):
                errors[summed] = (sum(draw[k][summed] ** 2 for draw in draws) / DRAWS) ** 0.5
        assert_as_good_as(kernels, plain, dtype)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 100, 457, 1000])
@pytest.mark.parametrize("operator", OPERATORS)
def test_error_against_the_definition(operator, length, name, reverse):
    check_accuracy(operator, length, name, reverse, "usual", (torch.float32, torch.bfloat16))


@pytest.mark.parametrize("shape", ["small", "groups", "wide"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_error_for_other_shapes(operator, shape):
    check_accuracy(operator, 65, "all, lengths", True, shape, (torch.float32, torch.bfloat16, torch.float16))


@pytest.mark.parametrize("left_out", ["D", "z", "dt_bias", "initial_state"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_error_without_one_argument(operator, left_out):
    results = []
    for dtype, backend in ((torch.float64, "reference"), (torch.float32, KERNELS)):
        tensors = inputs(operator, 100, dtype=dtype)
        del tensors[left_out]
        results.append(outputs_and_gradients(operator, tensors, return_state=True, backend=backend))
    assert_close(relative_errors(results[1], results[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("merge", ["mean", "sum"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("length", [1, 17, 64, 100, 457])
@pytest.mark.parametrize("operator", OPERATORS)
def test_bidirectional_is_the_merged_definition(operator, length, ragged, merge, dtype):
    lengths = ragged_lengths(length) if ragged else None
    exact_inputs = inputs(operator, length, directions=2, dtype=torch.float64)
    merged = functools.partial(merged_definition, operator, lengths, merge)
    exact = gradients_of(merged, exact_inputs)
    errors = {}
    for backend in (KERNELS, PLAIN[operator]):
        function = functools.partial(
            getattr(ops, BIDIRECTIONAL[operator]), dt_softplus=True, lengths=lengths, merge=merge, backend=backend
        )
        got = gradients_of(function, inputs(operator, length, directions=2, dtype=dtype))
        errors[backend] = relative_errors(got, exact)
    if dtype == torch.float32:
        assert_close(errors[KERNELS])
    else:
        assert_as_good_as(errors[KERNELS], errors[PLAIN[operator]], dtype)


def merged_definition(operator: str, lengths: Tensor | None, merge: str, *, D: Tensor, z: Tensor, **tensors: Tensor):
    """Both directions by the loop, each with its half, merged, then skipped and gated."""
    x = tensors.pop("x")
    axes = {"dt": 2, "A": 0, "B": 2, "C": 2, "dt_bias": 0}
    halves = [
        getattr(ops, operator)(
            x,
            **{name: tensors[name].chunk(2, dim=axis)[half] for name, axis in axes.items()},
            dt_softplus=True,
            reverse=bool(half),
            lengths=lengths,
            backend="reference",
        )
        for half in range(2)
    ]
    y = sum(halves) / (2 if merge == "mean" else 1) + (D[:, None] if operator == "ssd" else D) * x
    if lengths is not None:
        present = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        y = y.masked_fill(~present.reshape(present.shape + (1,) * (x.dim() - 2)), 0)
    return y * F.silu(z)


def gradients_of(function, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    y = function(**tensors)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y)
    return {"y": y} | dict(zip(tensors, torch.autograd.grad(y, tuple(tensors.values()), weight), strict=True))


ORDERS = ("each", "divided")
"""Each direction takes every position, or they divide them up."""
DIRECTIONS = 4


def order_of(kind: str, length: int) -> Tensor:
    """Directions over positions in no order at all; those of a divided one are of different lengths."""
    generator = torch.Generator().manual_seed(length)
    if kind == "each":
        return torch.stack([torch.randperm(length, generator=generator) for _ in range(DIRECTIONS)]).to(DEVICE)
    # a table with more places than positions
    order = torch.full((DIRECTIONS * (length // DIRECTIONS + 9),), -1, dtype=torch.int32)
    places = torch.randperm(len(order), generator=generator)[:length]
    order[places] = torch.randperm(length, generator=generator).int()
    return order.unflatten(0, (DIRECTIONS, -1)).to(DEVICE)


def order_inputs(kind: str, length: int, *, shape: str = "usual", dtype=torch.float64) -> dict[str, Tensor]:
    """What all directions read, and the parameters and states of each."""
    tensors = inputs("selective_scan", length, shape=shape, directions=DIRECTIONS, dtype=dtype)
    del tensors["z"]
    if kind == "divided":
        shared = inputs("selective_scan", length, shape=shape, dtype=dtype)
        tensors |= {name: shared[name] for name in ("dt", "B", "C")}
    generator = torch.Generator().manual_seed(2)
    width, state = tensors["A"].shape
    for name, size in {"D": (width,), "initial_state": (BATCH, width, state)}.items():
        tensors[name] = torch.randn(size, generator=generator).bfloat16().to(tensors["A"]).detach().requires_grad_()
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ORDERS)
@pytest.mark.parametrize(
    ("length", "shape"),
    [*((length, "usual") for length in (1, 16, 65, 457, 1000)), (65, "small"), (65, "groups"), (65, "wide")],
)
def test_error_with_an_order(length, shape, kind, dtype):
    options = dict(order=order_of(kind, length), return_state=True)
    exact_inputs = order_inputs(kind, length, shape=shape)
    exact = outputs_and_gradients("selective_scan", exact_inputs, **options, backend="reference")
    errors = {}
    for backend in (KERNELS, PLAIN["selective_scan"]):
        tensors = order_inputs(kind, length, shape=shape, dtype=dtype)
        got = outputs_and_gradients("selective_scan", tensors, **options, backend=backend)
        assert got["y"].dtype == dtype and got["state"].dtype == torch.float32
        errors[backend] = relative_errors(got, exact)
    if dtype == torch.float32:
        assert_close(errors[KERNELS])
    else:
        assert_as_good_as(*errors.values(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ORDERS)
def test_twice_with_an_order_gives_the_same_bits(kind, dtype):
    results = []
    for _ in range(2):
        call = functools.partial(ops.selective_scan, dt_softplus=True, order=order_of(kind, 457), backend=KERNELS)
        results.append(gradients_of(call, order_inputs(kind, 457, dtype=dtype)))
    for name, first in results[0].items():
        assert torch.equal(first, results[1][name]), name


@pytest.mark.parametrize("kind", ORDERS)
def test_compiles_with_an_order_as_one_graph(kind):
    call = functools.partial(ops.selective_scan, dt_softplus=True, order=order_of(kind, 100), backend=KERNELS)
    results = [
        gradients_of(form, order_inputs(kind, 100, dtype=torch.float32))
        for form in (call, torch.compile(call, fullgraph=True))
    ]
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("directions", [1, 2], ids=["one direction", "both"])
@pytest.mark.parametrize("state", [64, 128])
@pytest.mark.parametrize(("batch", "length"), [(32, 512), (8, 2048), (2, 8192)], ids=str)
def test_ssd_at_the_sizes_of_layers(batch, length, state, directions):
    """Launches that short sequences of small batches do not see: several heads a program, narrow walks, segments."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*size: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        # whatever dtype the operator takes, the same numbers
        return (torch.randn(size, device=DEVICE, generator=generator) * scale + mean).bfloat16().float()

    heads = 8 * directions
    tensors = {
        "x": normal(batch, length, 8, 64),
        "dt": normal(batch, length, heads, scale=0.5),
        "A": -1 - 15 * torch.rand(heads, device=DEVICE, generator=generator),
        "B": normal(batch, length, directions, state),
        "C": normal(batch, length, directions, state),
        "D": normal(8),
        "dt_bias": normal(heads, mean=-4.0),
    }
    function = ops.ssd if directions == 1 else ops.bidirectional_ssd
    results = {}
    for dtype, backend in ((torch.float32, "chunked"), (torch.bfloat16, KERNELS), (torch.bfloat16, "chunked")):
        leaves = {
            name: tensor.to(dtype if name in ALONG else torch.float32).detach().clone().requires_grad_()
            for name, tensor in tensors.items()
        }
        results[dtype, backend] = gradients_of(functools.partial(function, dt_softplus=True, backend=backend), leaves)
    exact = results[torch.float32, "chunked"]
    kernels, plain = (relative_errors(results[torch.bfloat16, backend], exact) for backend in (KERNELS, "chunked"))
    for name in ("y", "x", "dt", "B", "C"):
        assert kernels[name] <= max(2 * plain[name], ONE_ROUNDING[torch.bfloat16]), (name, kernels, plain)
    for name in SUMMED:
        assert kernels[name] <= max(2 * plain[name], 2 * ONE_ROUNDING[torch.bfloat16]), (name, kernels, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("length", [12, 100, 1000])
@pytest.mark.parametrize("function", [*OPERATORS, *BIDIRECTIONAL.values()])
def test_twice_gives_the_same_bits(function, length, dtype):
    operator = function.removeprefix("bidirectional_")
    directions = 1 if function == operator else 2
    results = []
    for _ in range(2):
        tensors = inputs(operator, length, directions=directions, dtype=dtype)
        call = functools.partial(
            getattr(ops, function), dt_softplus=True, lengths=ragged_lengths(length), backend=KERNELS
        )
        results.append(gradients_of(call, tensors))
    for name, first in results[0].items():
        assert torch.equal(first, results[1][name]), name


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_padding_and_batch_mates_change_nothing(operator, reverse):
    """A row alone and unpadded against the same row among others and padded, outputs and gradients."""
    length, taken = 457, 228
    tensors = inputs(operator, length, dtype=torch.float32)
    options = dict(dt_softplus=True, reverse=reverse, backend=KERNELS)
    lengths = torch.tensor([length, taken, 3], device=DEVICE)
    together = gradients_of_row(operator, tensors, 1, taken, lengths=lengths, **options)
    alone = {
        name: tensor.detach()[1:2, :taken]
        if name in ALONG
        else tensor.detach()[1:2]
        if name == "initial_state"
        else tensor
        for name, tensor in tensors.items()
    }
    alone = {name: tensor.detach().clone().requires_grad_() for name, tensor in alone.items()}
    expected = gradients_of_row(operator, alone, 0, taken, **options)
    for name in expected:
        error = (together[name] - expected[name]).abs().max() / expected[name].abs().max()
        assert error <= INVARIANCE, f"{name}: {error:.1e}"


def gradients_of_row(operator: str, tensors: dict[str, Tensor], row: int, taken: int, **options) -> dict[str, Tensor]:
    """Outputs of a row's first positions and their gradient for what belongs to the row."""
    names = (*ALONG, "initial_state")
    y = getattr(ops, operator)(**tensors, **options)[row, :taken]
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    gradients = torch.autograd.grad(y, [tensors[name] for name in names], weight)
    cut = {name: g[row, :taken] if name in ALONG else g[row] for name, g in zip(names, gradients, strict=True)}
    return {"y": y} | cut


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_lengths_give_exact_zeros_and_ignore_what_stands_beyond(operator, reverse):
    lengths = torch.tensor([100, 40, 7], device=DEVICE)
    tensors = inputs(operator, 100, dtype=torch.float32)
    options = dict(lengths=lengths, reverse=reverse, return_state=True, backend=KERNELS)
    expected = outputs_and_gradients(operator, tensors, **options)
    assert (expected["y"][1, 40:] == 0).all() and (expected["y"][2, 7:] == 0).all()
    changed = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for name in ALONG:
        changed[name][2, 7:] = 1e3
    changed = {name: tensor.requires_grad_() for name, tensor in changed.items()}
    got = outputs_and_gradients(operator, changed, **options)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name
    for name in ALONG:
        assert (got[name][2, 7:] == 0).all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_extreme_decays_stay_finite_and_close(operator, dtype):
    """Heavy-tailed steps up to 11 with decay rates up to 16: the case that broke half precision in mamba issue 72."""
    tensors = {name: tensor for name, tensor in inputs(operator, 1024, dtype=dtype).items() if name in ("x", "B", "C")}
    like = inputs(operator, 1024)
    steps = torch.rand(like["dt"].shape, generator=torch.Generator().manual_seed(2)).pow(8) * 11
    tensors["dt"] = steps.bfloat16().to(DEVICE, dtype).requires_grad_()
    tensors["A"] = (-torch.linspace(1, 16, like["A"].numel(), device=DEVICE).view_as(like["A"])).requires_grad_()
    results = []
    for backend in (KERNELS, PLAIN[operator], "reference"):
        wide = backend == "reference"
        values = {
            name: t.detach().to(torch.float64 if wide else t.dtype).requires_grad_() for name, t in tensors.items()
        }
        y = getattr(ops, operator)(**values, backend=backend)
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y.sum(), tuple(values.values())))
        results.append(y.detach().double())
    exact = results.pop()
    errors = [((y - exact).abs().max() / exact.abs().mean()).item() for y in results]
    if dtype == torch.float32:
        # `selective_scan` sums no decays: nothing cancels
        assert errors[0] < (2e-3 if operator == "ssd" else 2e-5), errors
    else:
        assert errors[0] <= 2 * errors[1], errors


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_split_with_state_equals_whole(operator, reverse):
    tensors = {name: tensor.detach() for name, tensor in inputs(operator, 200, dtype=torch.float32).items()}
    options = dict(dt_softplus=True, reverse=reverse, return_state=True, backend=KERNELS)
    whole, last = getattr(ops, operator)(**tensors, **options)
    parts = [
        {name: tensor[:, part] if name in ALONG else tensor for name, tensor in tensors.items()}
        for part in (slice(0, 77), slice(77, 200))
    ]
    first, second = reversed(parts) if reverse else parts
    y, state = getattr(ops, operator)(**first, **options)
    rest, end = getattr(ops, operator)(**(second | {"initial_state": state}), **options)
    torch.testing.assert_close(torch.cat([rest, y] if reverse else [y, rest], dim=1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(end, last, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operator", OPERATORS)
def test_reads_strided_inputs(operator):
    tensors = inputs(operator, 100, dtype=torch.float32)
    strided = {
        name: (tensor.detach().transpose(0, 1).contiguous().transpose(0, 1) if name in ALONG else tensor.detach())
        .requires_grad_()
        for name, tensor in tensors.items()
    }  # fmt: skip
    expected = outputs_and_gradients(operator, tensors, return_state=True, backend=KERNELS)
    got = outputs_and_gradients(operator, strided, return_state=True, backend=KERNELS)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


@pytest.mark.parametrize("rows", [20_000, 70_000], ids=["T=12", "more rows than a grid axis"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_many_short_rows(operator, rows):
    """Traffic data: 12 steps of every sensor in a batch. A row in the middle and the last one, against them alone."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=generator, device=DEVICE, dtype=torch.bfloat16)

    size, step, rates = ((1, 16), (1,), (1,)) if operator == "ssd" else ((16,), (16,), (16, 16))
    tensors = {
        "x": normal(rows, 12, *size),
        "dt": normal(rows, 12, *step),
        "A": -torch.rand(rates, generator=generator, device=DEVICE),
        "B": normal(rows, 12, 1, 16),
        "C": normal(rows, 12, 1, 16),
    }
    y = getattr(ops, operator)(**tensors, dt_softplus=True, backend=KERNELS)
    for row in (rows // 2, rows - 1):
        alone = {name: tensor if name == "A" else tensor[row : row + 1] for name, tensor in tensors.items()}
        exact = {name: tensor.double() for name, tensor in alone.items()}
        expected = getattr(ops, operator)(**exact, dt_softplus=True, backend="reference")
        assert (y[row].double() - expected[0]).norm() / expected.norm() < 1e-2


@pytest.mark.parametrize("function", [*OPERATORS, *BIDIRECTIONAL.values()])
def test_compiles_as_one_graph(function):
    operator = function.removeprefix("bidirectional_")
    directions = 1 if function == operator else 2
    call = functools.partial(getattr(ops, function), dt_softplus=True, backend=KERNELS)
    results = [
        gradients_of(form, inputs(operator, 100, directions=directions, dtype=torch.float32))
        for form in (call, torch.compile(call, fullgraph=True))
    ]
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("operator", OPERATORS)
def test_autocast_leaves_steps_and_decays_alone(operator):
    tensors = {name: tensor.detach() for name, tensor in inputs(operator, 100, dtype=torch.float32).items()}
    expected = getattr(ops, operator)(**tensors, dt_softplus=True, backend=KERNELS)
    with torch.autocast("cuda", torch.bfloat16):
        got = getattr(ops, operator)(**tensors, dt_softplus=True, backend=KERNELS)
    assert (got.float() - expected).norm() / expected.norm() < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("state", [1, 5, 64])
def test_partial_sums_in_one_launch(state, directions, dtype):
    """As `selective_scan` leaves them apart; twice, the same bits."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    wide = torch.float32
    left_apart = [
        ((directions, BATCH, 457, 70), 0, dtype),
        ((directions, 24, 70, state), 1, wide),
        ((2, BATCH, 457, directions, 9, state), 4, dtype),
        ((2, directions, 24, 70), 2, wide),
    ]
    parts = [
        (torch.randn(shape, generator=generator, device=DEVICE).to(kept), axis, kept)
        for shape, axis, kept in left_apart
    ]
    first, second = sum_parts(parts), sum_parts(parts)
    for (source, axis, kept), one, other in zip(parts, first, second, strict=True):
        exact = source.double().sum(axis)
        assert one.dtype == kept and one.shape == exact.shape and torch.equal(one, other)
        assert (one.double() - exact).norm() / exact.norm() <= ONE_ROUNDING.get(kept, 1e-6)


def test_partial_sums_beyond_32_bits():
    """Offsets of more than 2^31 numbers: the last columns."""
    source = torch.zeros(3, 2**30 + 5, device=DEVICE, dtype=torch.bfloat16)
    source[:, -7:] = torch.arange(1, 8, device=DEVICE)
    (total,) = sum_parts([(source, 0, torch.bfloat16)])
    assert torch.equal(total[-7:].float(), 3.0 * torch.arange(1, 8, device=DEVICE))
    assert not total[:-7].any()


def test_gradients_whose_partial_sums_pass_32_bits():
    """Those of B and C, a part for each tile of channels: the last positions of a long row, before which all is 0,
    against them alone."""
    length, last = 262_144 + 64, 48
    generator = torch.Generator(DEVICE).manual_seed(0)
    names = ("x", "dt", "B", "C")
    sizes = {"x": (512,), "dt": (512,), "B": (1, 64), "C": (1, 64)}
    alone = {
        name: torch.randn(1, last, *sizes[name], generator=generator, device=DEVICE, dtype=torch.bfloat16)
        for name in names
    }
    rates = -torch.rand(512, 64, generator=generator, device=DEVICE)
    results = []
    for before in (length - last, 0):
        leaves = {
            name: F.pad(tensor.flatten(2), (0, 0, before, 0)).view(1, -1, *sizes[name]).requires_grad_()
            for name, tensor in alone.items()
        }
        y = ops.selective_scan(**leaves, A=rates, dt_softplus=True, backend=KERNELS)
        weight = torch.zeros_like(y)
        weight[:, -last:] = alone["x"]
        results.append([gradient[:, -last:] for gradient in torch.autograd.grad(y, tuple(leaves.values()), weight)])
    for name, got, expected in zip(names, *results, strict=True):
        assert (got.float() - expected.float()).norm() / expected.float().norm() < 1e-2, name


NORM_LAYOUTS = {
    "dense": lambda x: x,
    "q": lambda x: torch.stack([x, x + 1, x + 2], 2)[:, :, 0],
    "k": lambda x: torch.stack([x - 1, x, x + 2], 2)[:, :, 1],
    "copied": lambda x: x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3),
}
"""Of (batch, length, heads, width): q and k as attention projects them."""
EPS = 1e-5


def norm_inputs(*shape: int, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x, a gain that stays float32 at least, and the gradient of the result; bfloat16 can represent all numbers."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator, device=DEVICE).bfloat16().to(dtype) for _ in range(2))
    gain = torch.randn(shape[-1], generator=generator, device=DEVICE).bfloat16()
    return x, gain.to(torch.promote_types(dtype, torch.float32)), dy


def norm_and_gradients(x: Tensor, gain: Tensor, dy: Tensor, *, form=ops.rms_norm, **options) -> dict[str, Tensor]:
    x, gain = x.detach().requires_grad_(), gain.detach().requires_grad_()
    y = form(x, gain, EPS, **options)
    return dict(zip(("y", "x", "gain"), (y.detach(), *torch.autograd.grad(y, (x, gain), dy)), strict=True))


@pytest.mark.parametrize("layout", NORM_LAYOUTS)
@pytest.mark.parametrize("width", [3, 16, 24, 32, 64, 100, 256, 1000, 5000])
def test_error_of_the_norm(width, layout):
    shape = (3, 100, 4, width)
    exact = norm_and_gradients(*norm_inputs(*shape), backend="plain")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, gain, dy = norm_inputs(*shape, dtype=dtype)
        x = NORM_LAYOUTS[layout](x)
        errors = relative_errors(norm_and_gradients(x, gain, dy, backend=KERNELS), exact)
        if dtype == torch.float32:
            assert_close(errors)
        else:
            plain = relative_errors(norm_and_gradients(x, gain, dy, backend="plain"), exact)
            assert_as_good_as(errors, plain, dtype)


@pytest.mark.parametrize("width", [1, 32, 256])
def test_norm_of_more_rows_than_programs(width):
    x, gain, dy = norm_inputs(2_000_003 * 32 // max(width, 32), width, dtype=torch.float32)
    exact = norm_and_gradients(x.double(), gain.double(), dy.double(), backend="plain")
    got = norm_and_gradients(x, gain, dy, backend=KERNELS)
    if width == 1:
        # all of the gradient of x cancels but for eps
        del exact["x"]
    assert_close(relative_errors(got, exact))


def test_norm_beyond_32_bits():
    """Offsets of more than 2^31 numbers: the last rows against them alone."""
    x = torch.zeros(2**25 + 3, 64, device=DEVICE, dtype=torch.bfloat16)
    x[-5:] = torch.arange(1, 65, device=DEVICE)
    gain = torch.ones(64, device=DEVICE)
    expected = ops.rms_norm(x[-5:].clone(), gain, EPS, backend="plain")
    torch.testing.assert_close(ops.rms_norm(x, gain, EPS, backend=KERNELS)[-5:], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(7, 24), (200_000, 32), (4, 500, 256)], ids=str)
def test_norm_twice_gives_the_same_bits(shape, dtype):
    first, second = (norm_and_gradients(*norm_inputs(*shape, dtype=dtype), backend=KERNELS) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("layout", NORM_LAYOUTS)
def test_norm_compiles_as_one_graph(layout):
    x, gain, dy = norm_inputs(2, 50, 4, 32, dtype=torch.bfloat16)
    x = NORM_LAYOUTS[layout](x)
    expected = norm_and_gradients(x, gain, dy, backend=KERNELS)
    got = norm_and_gradients(x, gain, dy, form=torch.compile(ops.rms_norm, fullgraph=True), backend=KERNELS)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


@pytest.mark.parametrize("layout", NORM_LAYOUTS)
def test_operators_of_the_norm_for_compilers(layout):
    from ribonanzamamba.ops import norm_triton

    x, gain, dy = norm_inputs(2, 50, 4, 32, dtype=torch.float32)
    x = NORM_LAYOUTS[layout](x)
    tests = ("test_schema", "test_faketensor")
    for gate in (None, dy):
        torch.library.opcheck(norm_triton.normalise_operator, (x, gain, gate, EPS), test_utils=tests)
        torch.library.opcheck(norm_triton.gradients_operator, (dy, x, gain, gate, EPS), test_utils=tests)


@pytest.mark.parametrize("layout", NORM_LAYOUTS)
@pytest.mark.parametrize("width", [24, 64, 512])
def test_gated_norm_error(width, layout):
    x, gain, dy = norm_inputs(2, 50, 4, width, dtype=torch.float32)
    gate = NORM_LAYOUTS[layout](x.flip(-1))

    def results(dtype: torch.dtype, backend: str) -> list[Tensor]:
        leaves = [leaf.to(dtype).detach().requires_grad_() for leaf in (x, gain, gate)]
        y = ops.rms_norm(leaves[0], leaves[1], EPS, gate=leaves[2], backend=backend)
        return [y, *torch.autograd.grad(y, leaves, dy.to(dtype))]

    for got, exact in zip(results(torch.float32, KERNELS), results(torch.float64, "plain"), strict=True):
        assert (got.double() - exact).norm() <= FLOAT32_ERROR * exact.norm()


def test_norm_in_a_recorded_graph():
    """Nothing waits for the host: forward and backward can be recorded and replayed on new numbers."""
    x, gain, dy = norm_inputs(4, 50, 4, 32, dtype=torch.bfloat16)
    source, slot = NORM_LAYOUTS["k"](x), NORM_LAYOUTS["k"](torch.zeros_like(x))
    expected = norm_and_gradients(source, gain, dy, backend=KERNELS)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        norm_and_gradients(slot, gain, dy, backend=KERNELS)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = norm_and_gradients(slot, gain, dy, backend=KERNELS)
    slot.copy_(source)
    graph.replay()
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


def test_norm_under_autocast_keeps_the_dtype():
    for dtype in (torch.float32, torch.bfloat16):
        x, gain, _ = norm_inputs(5, 64, dtype=dtype)
        with torch.autocast("cuda", torch.bfloat16):
            assert ops.rms_norm(x, gain, EPS).dtype == dtype
