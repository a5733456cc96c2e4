"""The Triton kernels in Triton's interpreter: outputs and every gradient against the float64 definition, no GPU needed.

The same kernels on a GPU, in bfloat16 and at length: test_triton_gpu.py.
"""

import importlib
import importlib.util

import pytest
import torch

from ribonanzamamba.ops import (
    bidirectional_selective_scan,
    bidirectional_ssd,
    depthwise_conv1d,
    explain,
    selective_scan,
    ssd,
)
from ribonanzamamba.ops.backend import interpreted

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not interpreted(), reason="needs Triton and its interpreter"
)
TOLERANCE = 2e-5
"""Of the norm of the difference over the norm: float32 against float64."""
OPTIONAL = ("D", "z", "dt_bias", "initial_state")


@pytest.fixture(autouse=True)
def fresh_plans():
    """Tests change the constants that plans are made from."""
    for module in ("ssd_triton", "selective_scan_triton"):
        importlib.import_module(f"ribonanzamamba.ops.{module}").planned.cache_clear()


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def ssd_inputs(length: int, *, heads=4, groups=2, state=5, width=3, directions=1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(length)
    return {
        "x": normal(g, 2, length, heads, width),
        "dt": normal(g, 2, length, directions * heads),
        "A": -torch.exp(normal(g, directions * heads)),
        "B": normal(g, 2, length, directions * groups, state),
        "C": normal(g, 2, length, directions * groups, state),
        "D": normal(g, heads),
        "z": normal(g, 2, length, heads, width),
        "dt_bias": normal(g, directions * heads),
        "initial_state": normal(g, 2, heads, state, width),
    }


def scan_inputs(length: int, *, width=6, groups=2, state=5, directions=1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(length)
    return {
        "x": normal(g, 2, length, width),
        "dt": normal(g, 2, length, directions * width),
        "A": -torch.exp(normal(g, directions * width, state)),
        "B": normal(g, 2, length, directions * groups, state),
        "C": normal(g, 2, length, directions * groups, state),
        "D": normal(g, width),
        "z": normal(g, 2, length, width),
        "dt_bias": normal(g, directions * width),
        "initial_state": normal(g, 2, width, state),
    }


def outputs_and_gradients(operator, tensors: dict[str, torch.Tensor], dtype: torch.dtype, **options) -> dict:
    """Outputs and the gradient of every input, of a loss that sees each output with a weight of its own."""
    leaves = {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}
    result = operator(**leaves, dt_softplus=True, **options)
    outputs = dict(zip(("y", "state"), result if isinstance(result, tuple) else (result,), strict=False))
    y = outputs["y"]
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum()
    if "state" in outputs:
        loss = loss + outputs["state"].square().sum()
    loss.backward()
    return outputs | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


def assert_equal_definition(operator, tensors: dict[str, torch.Tensor], **options) -> None:
    expected = outputs_and_gradients(operator, tensors, torch.float64, backend="reference", **options)
    # whatever a kernel does not write stays NaN
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        got = outputs_and_gradients(operator, tensors, torch.float32, backend="triton", **options)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in expected.items():
        error = (got[name].double() - value).norm() / value.norm().clamp(min=1e-30)
        assert error <= TOLERANCE, f"{name}: {error:.1e}"


DIRECTIONS = 3
KINDS = ("each", "divided")
"""Of an order: each direction takes every position, or they divide them up."""


def order_of(kind: str, length: int) -> torch.Tensor:
    """Directions over positions in no order at all; the last of a divided one is shorter, with a gap inside."""
    g = torch.Generator().manual_seed(length)
    if kind == "each":
        return torch.stack([torch.randperm(length, generator=g) for _ in range(DIRECTIONS)])
    steps = length // 2 + 1
    order = torch.full((DIRECTIONS, steps), -1, dtype=torch.int32)
    taken = torch.randperm(length, generator=g).int()
    order[0, : length // 2], order[1, : length // 3] = taken[: length // 2], taken[length // 2 :][: length // 3]
    rest = taken[length // 2 + length // 3 :]
    order[2, steps - len(rest) :] = rest
    return order


def order_inputs(kind: str, length: int, **options) -> dict[str, torch.Tensor]:
    """What all directions read, and the parameters and states of each."""
    tensors = scan_inputs(length, directions=DIRECTIONS if kind == "each" else 1, **options)
    g = torch.Generator().manual_seed(length)
    width, state = tensors["x"].shape[2], tensors["B"].shape[3]
    del tensors["z"]
    return tensors | {
        "A": -torch.exp(normal(g, DIRECTIONS * width, state)),
        "D": normal(g, DIRECTIONS * width),
        "dt_bias": normal(g, DIRECTIONS * width),
        "initial_state": normal(g, 2, DIRECTIONS * width, state),
    }


OPERATORS = {"ssd": (ssd, ssd_inputs), "selective_scan": (selective_scan, scan_inputs)}
BOTH_WAYS = {
    "ssd": (bidirectional_ssd, ssd_inputs),
    "selective_scan": (bidirectional_selective_scan, scan_inputs),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("length", [1, 2, 15, 17, 33])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
def test_equals_definition_with_gradients(name, length, reverse, ragged):
    operator, inputs = OPERATORS[name]
    lengths = torch.tensor([length, length // 2]) if ragged else None
    assert_equal_definition(operator, inputs(length), reverse=reverse, lengths=lengths, return_state=True)


def test_ssd_of_whole_chunks():
    assert_equal_definition(ssd, ssd_inputs(64, heads=2, groups=1, state=20, width=20), return_state=True)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("left_out", [*((key,) for key in OPTIONAL), OPTIONAL], ids="-".join)
def test_equals_definition_without(name, left_out):
    operator, inputs = OPERATORS[name]
    tensors = {key: tensor for key, tensor in inputs(9).items() if key not in left_out}
    assert_equal_definition(operator, tensors)


@pytest.mark.parametrize("name", BOTH_WAYS)
@pytest.mark.parametrize("merge", ["mean", "sum", "concat"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
def test_both_directions_equal_definition(name, merge, ragged):
    operator, inputs = BOTH_WAYS[name]
    tensors = inputs(19, directions=2)
    del tensors["initial_state"]
    assert_equal_definition(operator, tensors, merge=merge, lengths=torch.tensor([19, 8]) if ragged else None)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
def test_segments_equal_definition(name, direction, monkeypatch):
    """A long sequence is cut into segments that run side by side: here, short ones are."""
    from ribonanzamamba.ops import selective_scan_triton, ssd_triton

    monkeypatch.setattr(ssd_triton, "LONGEST_WIDE_CHUNK", 16)
    monkeypatch.setattr(ssd_triton, "WIDEST_TILE", 16)
    monkeypatch.setattr(ssd_triton, "WIDEST_WALK", 32)
    monkeypatch.setattr(ssd_triton, "FEWEST_CHUNKS", 1)
    monkeypatch.setattr(selective_scan_triton, "FEWEST_BLOCKS", 1)
    for module in (ssd_triton, selective_scan_triton):
        monkeypatch.setattr(module, "processors", lambda device: 100)
    directions = 2 if direction == "both" else 1
    operator, inputs = (BOTH_WAYS if directions == 2 else OPERATORS)[name]
    tensors = inputs(50 if name == "ssd" else 39, directions=directions, **({"width": 40} if name == "ssd" else {}))
    if name == "ssd":
        plan = ssd_triton.plan(tensors["x"], tensors["B"], directions)
    else:
        plan = selective_scan_triton.plan(tensors["x"], tensors["dt"], tensors["B"], directions)
    assert plan.segments > 2
    length = tensors["x"].shape[1]
    lengths = torch.tensor([length, length // 3])
    if directions == 2:
        del tensors["initial_state"]
        assert_equal_definition(operator, tensors, lengths=lengths)
    else:
        options = dict(reverse=direction == "reverse", lengths=lengths, return_state=True)
        assert_equal_definition(operator, tensors, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [3, 21])
def test_order_equals_definition(kind, length):
    options = dict(order=order_of(kind, length), return_state=True)
    assert_equal_definition(selective_scan, order_inputs(kind, length), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_order_equals_definition_without(kind):
    tensors = {name: tensor for name, tensor in order_inputs(kind, 9).items() if name not in OPTIONAL}
    assert_equal_definition(selective_scan, tensors, order=order_of(kind, 9))


@pytest.mark.parametrize("kind", KINDS)
def test_segments_of_an_order_equal_definition(kind, monkeypatch):
    from ribonanzamamba.ops import selective_scan_triton

    monkeypatch.setattr(selective_scan_triton, "FEWEST_BLOCKS", 1)
    monkeypatch.setattr(selective_scan_triton, "processors", lambda device: 100)
    length = 36 if kind == "each" else 36 * DIRECTIONS
    tensors, order = order_inputs(kind, length, groups=1), order_of(kind, length)
    plan = selective_scan_triton.plan(tensors["x"], tensors["dt"], tensors["B"], DIRECTIONS, order)
    assert plan.segments > 2
    assert_equal_definition(selective_scan, tensors, order=order, return_state=True)


@pytest.mark.parametrize("name", OPERATORS)
def test_padding_and_batch_mates_change_nothing(name):
    operator, inputs = OPERATORS[name]
    tensors = {key: tensor for key, tensor in inputs(21).items() if key != "initial_state"}
    lengths = torch.tensor([21, 10])
    y = operator(**tensors, dt_softplus=True, lengths=lengths, reverse=True, backend="triton")
    assert (y[1, 10:] == 0).all()
    along = ("x", "dt", "B", "C", "z")
    alone = {key: tensor[1:, :10] if key in along else tensor for key, tensor in tensors.items()}
    torch.testing.assert_close(
        operator(**alone, dt_softplus=True, reverse=True, backend="triton")[0], y[1, :10], rtol=1e-6, atol=1e-6
    )
    for key in along:
        tensors[key][1, 10:] = 1e3
    assert torch.equal(operator(**tensors, dt_softplus=True, lengths=lengths, reverse=True, backend="triton"), y)


CONVOLUTION_TOLERANCE = 1e-6
"""As TOLERANCE; a sum of a few products, and one over positions."""


def convolved(backend: str, dtype: torch.dtype, taps: torch.Tensor, bias: torch.Tensor | None, x, dy, **options):
    """Output and gradients of x, taps and bias; x is in the middle of something wider."""
    given = (x, taps) if bias is None else (x, taps, bias)
    leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in given]
    # whatever a kernel does not write stays NaN
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        y = depthwise_conv1d(leaves[0][..., 4:-4], *leaves[1:], backend=backend, **options)
        y.backward(dy.to(dtype))
    finally:
        torch.use_deterministic_algorithms(False)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize(
    ("length", "width", "taps", "left", "activation", "lengths"),
    [
        (1, 8, 5, 2, "silu", None),
        (2, 6, 4, 3, "silu", None),
        (2, 8, 17, 8, None, [2, 1, 0]),
        (15, 40, 5, 2, "silu", [15, 7, 1]),
        (16, 8, 4, 0, None, None),
        (17, 6, 5, 1, "silu", [3, 17, 16]),
        (33, 68, 17, 8, None, None),
        (40, 5, 4, 3, "silu", None),
        (65, 8, 5, 4, None, [64, 65, 33]),
        (65, 12, 1, 0, "silu", [0, 65, 16]),
        (19, 6, 17, 16, "silu", [19, 18, 2]),
        (17, 4, 17, 0, "silu", None),
        (20, 4, 7, 2, "silu", [20, 9, 13]),
        (100, 8, 5, 0, "silu", [100, 31, 0]),
    ],
)
def test_convolution_equals_shifted_products(length, width, taps, left, activation, lengths):
    """In float64; what lies beyond the rows, in x and in the gradient, is never read."""
    g = torch.Generator().manual_seed(0)
    x, dy = normal(g, 3, length, width + 8), normal(g, 3, length, width)
    weight, bias = normal(g, width, taps), None if taps == 4 else normal(g, width)
    counts = None if lengths is None else torch.tensor(lengths)
    beyond = torch.arange(length) >= torch.tensor([[length]] * 3 if lengths is None else lengths).view(3, 1)
    x[beyond], dy[beyond] = torch.nan, torch.nan
    options = dict(left=left, activation=activation, lengths=counts)
    got = convolved("triton", torch.float32, weight, bias, x, dy, **options)
    expected = convolved("shifted", torch.float64, weight, bias, x, dy, **options)
    for result, value in zip(got, expected, strict=True):
        assert (result.double() - value).norm() <= CONVOLUTION_TOLERANCE * value.norm()
    assert (got[0][beyond] == 0).all() and (got[1][beyond] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_convolution_of_short_floats_and_turned_taps(dtype):
    """Parameters are in float32, the taps are a view that runs backwards in memory order."""
    g = torch.Generator().manual_seed(0)
    x, dy, bias = normal(g, 2, 21, 8).to(dtype), normal(g, 2, 21, 8).to(dtype), normal(g, 8)
    weight = normal(g, 5, 8).T
    results = []
    for backend, wide in (("triton", False), ("shifted", True)):
        given = [tensor.double() if wide else tensor.clone() for tensor in (x, weight, bias, dy)]
        leaves = [tensor.requires_grad_() for tensor in given[:3]]
        y = depthwise_conv1d(*leaves, left=4, activation="silu", backend=backend)
        y.backward(given[3])
        results.append([y, *(leaf.grad for leaf in leaves)])
    assert [result.dtype for result in results[0]] == [dtype, dtype, torch.float32, torch.float32]
    for got, expected, tolerance in zip(*results, (4e-3, 4e-3, 1e-6, 1e-6), strict=True):
        assert (got.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(("width", "first", "total"), [(8, 4, 20), (6, 3, 13)], ids=["vectors", "single"])
def test_convolution_into_a_part_of_a_wider_tensor(width, first, total):
    from ribonanzamamba.ops.depthwise_conv_triton import convolve, gradients

    g = torch.Generator().manual_seed(0)
    x, dy = (normal(g, 2, 21, total)[..., first : first + width] for _ in range(2))
    rest = (normal(g, width, 5), normal(g, width), torch.tensor([21, 10]), 3, True)
    for launch, tensors in ((convolve, (x,)), (gradients, (dy, x))):
        expected = launch(*tensors, *rest)
        # rows of the batch lie between each other
        wide = torch.full((21, 2, total), 7.0)
        out = wide.transpose(0, 1)[..., first : first + width]
        got = launch(*tensors, *rest, out=out)
        if launch is convolve:
            expected, got = (expected,), (got,)
        assert got[0] is out
        assert all(map(torch.equal, got, expected))
        out.fill_(7.0)
        assert (wide == 7.0).all()


def test_convolution_of_several_tiles_a_program(monkeypatch):
    from ribonanzamamba.ops import depthwise_conv_triton as module

    g = torch.Generator().manual_seed(0)
    x, dy, weight, bias = normal(g, 3, 70, 8), normal(g, 3, 70, 8), normal(g, 8, 5), normal(g, 8)
    results = []
    for programs, sum_tile in ((2048, (256, 16)), (2, (4, 16)), (3, (1, 4))):
        monkeypatch.setattr(module, "PROGRAMS", programs)
        monkeypatch.setattr(module, "SUM_TILE", sum_tile)
        results.append(module.gradients(dy, x, weight, bias, None, 2, True))
    assert module.planned(3, 70, 8, 5).tiles == 4
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        torch.testing.assert_close(result[1:], results[0][1:])


@pytest.mark.parametrize(("batch", "length", "width", "taps"), [(20_000, 12, 64, 5), (32, 512, 768, 5), (9, 1, 96, 17)])
def test_convolution_leaves_few_places_empty(batch, length, width, taps):
    from ribonanzamamba.ops.depthwise_conv_triton import planned

    plan = planned(batch, length, width, taps)
    places = plan.tiles * plan.vector * plan.positions * plan.channel_tiles * plan.width
    assert batch * length * width <= places <= 1.4 * batch * max(length, 4) * width


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_convolution_for_compilers(part):
    from ribonanzamamba.ops import depthwise_conv_triton as module

    g = torch.Generator().manual_seed(0)
    x, dy = normal(g, 2, 9, 20)[..., 4:12], normal(g, 2, 9, 8)
    rest = (normal(g, 5, 8).T, normal(g, 8), torch.tensor([9, 4]), 3, True)
    tests = ("test_schema", "test_faketensor")
    if part == "forward":
        torch.library.opcheck(module.convolve_operator, (x, *rest), test_utils=tests)
    else:
        torch.library.opcheck(module.gradients_operator, (dy, x, *rest), test_utils=tests)


@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_for_compilers(name, part):
    """Schema, fake tensors and what is traced agree with the operator itself."""
    from ribonanzamamba.ops import selective_scan_triton, ssd_triton

    module = ssd_triton if name == "ssd" else selective_scan_triton
    _, inputs = OPERATORS[name]
    t = inputs(9)
    ordered = [t[key] for key in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")]
    # of `selective_scan` also the order
    lengths = (torch.tensor([9, 4]), *(() if name == "ssd" else (None,)))
    tests = ("test_schema", "test_faketensor")
    forward = (*ordered, *lengths, None, True, False, 1, 1.0, True, True)
    if part == "forward":
        torch.library.opcheck(module.forward_operator, forward, test_utils=tests)
        return
    y, _, *kept = module.forward_operator(*forward)
    backward = (y, None, *ordered, *lengths, *kept, True, False, 1, 1.0, False)
    torch.library.opcheck(module.backward_operator, backward, test_utils=tests)


@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_operators_with_an_order_for_compilers(kind, part):
    from ribonanzamamba.ops import selective_scan_triton as module

    t = order_inputs(kind, 9)
    ordered = [*(t[key] for key in ("x", "dt", "A", "B", "C", "D")), None, t["dt_bias"], None, order_of(kind, 9)]
    start = t["initial_state"].unflatten(1, (DIRECTIONS, -1)).permute(1, 0, 3, 2).flatten(0, 1).contiguous()
    tests = ("test_schema", "test_faketensor")
    options = (True, False, DIRECTIONS, 1 / DIRECTIONS if kind == "each" else 1.0)
    forward = (*ordered, start, *options, True, True)
    if part == "forward":
        torch.library.opcheck(module.forward_operator, forward, test_utils=tests)
        return
    y, last, states, ungated = module.forward_operator(*forward)
    backward = (y, last, *ordered, states, ungated, *options, True)
    torch.library.opcheck(module.backward_operator, backward, test_utils=tests)


def test_automatic_choice_on_a_cpu_is_the_plain_form():
    assert explain(torch.zeros(1, 4, 2, 3)).backend == "chunked"
    assert explain(torch.zeros(1, 4, 2)).backend == "inplace"


def test_a_forced_kernel_that_cannot_run_is_an_error():
    with pytest.raises(ValueError, match="backend 'triton' cannot run: the kernels take float32"):
        explain(torch.zeros(1, 4, 2, 3, dtype=torch.float64), backend="triton")


@pytest.mark.parametrize(("length", "wide"), [(262_143, False), (262_144, True)])
def test_offsets_of_the_partial_sums_count(length, wide, monkeypatch):
    """Those of B's gradient, a part a tile of channels, pass 2^31 long before x does; nothing is computed."""
    import triton.language as tl

    from ribonanzamamba.ops import partial_sums, selective_scan_triton

    launched = {}

    class Launcher:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *arguments, **options: launched.setdefault(self.name, options)

    class Kernels:
        def __getattr__(self, name):
            return Launcher(name)

    monkeypatch.setattr(selective_scan_triton, "kernels", Kernels)
    monkeypatch.setattr(partial_sums, "kernels", Kernels)
    x = torch.empty(1, length, 512, device="meta", dtype=torch.bfloat16)
    B = torch.empty(1, length, 1, 64, device="meta", dtype=torch.bfloat16)
    A = torch.empty(512, 64, device="meta")
    nothing = torch.empty(0, device="meta")
    selective_scan_triton.backward(
        x, None, x, x, A, B, B, None, None, None, None, None, nothing, nothing, True, False, 1, 1.0, False
    )  # fmt: skip
    assert launched["backward_kernel"]["OFFSET"] == (tl.int64 if wide else tl.int32)
