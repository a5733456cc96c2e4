"""`selective_scan`: the in-place form against the definition, outputs and every gradient."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ribonanzamamba.ops import bidirectional_selective_scan, selective_scan, ssd
from ribonanzamamba.ops.scan_reference import selective_scan_reference

LENGTHS = [1, 2, 15, 16, 17, 63, 64, 65, 100]
ALONG = ("x", "dt", "B", "C", "z")
"""Arguments with an axis along the sequence."""
ORDERED = ("dt", "A", "B", "C", "dt_bias")
"""Arguments of which both directions of a bidirectional scan have their own."""


def inputs(length: int, *, batch=3, dtype=torch.float64, width=6, groups=2, state=5, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return {
        "x": normal(batch, length, width),
        "dt": normal(batch, length, width),
        # no decay reaches the bound of -20: there the definition differs on purpose
        "A": (-torch.exp(normal(width, state).detach()).clamp(max=3)).requires_grad_(),
        "B": normal(batch, length, groups, state),
        "C": normal(batch, length, groups, state),
        "D": normal(width),
        "z": normal(batch, length, width),
        "dt_bias": normal(width),
        "initial_state": normal(batch, width, state),
    }


def outputs_and_gradients(tensors: dict, **options) -> dict:
    """Outputs, state and the gradient of every input, of a loss that sees each output with a weight of its own."""
    y, state = selective_scan(**tensors, dt_softplus=True, return_state=True, **options)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    ((y * weight).sum() + state.square().sum()).backward()
    return {"y": y, "state": state} | {name: tensor.grad for name, tensor in tensors.items()}


def assert_all_close(got: dict, expected: dict) -> None:
    for name in expected:
        torch.testing.assert_close(
            got[name], expected[name], rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_definition_with_gradients(length, ragged, reverse):
    options = dict(lengths=torch.tensor([length, length // 2, 0]) if ragged else None, reverse=reverse)
    expected = outputs_and_gradients(inputs(length), **options, backend="reference")
    assert_all_close(outputs_and_gradients(inputs(length), **options, backend="inplace"), expected)


@pytest.mark.parametrize("left_out", ["D", "z", "dt_bias", "initial_state"])
def test_equals_definition_without(left_out):
    results = []
    for backend in ("reference", "inplace"):
        tensors = inputs(33)
        del tensors[left_out]
        results.append(outputs_and_gradients(tensors, backend=backend))
    assert_all_close(*results)


@pytest.mark.parametrize(("groups", "width", "state"), [(1, 6, 5), (6, 6, 1), (3, 9, 16), (1, 1, 1)])
def test_equals_definition_for_other_shapes(groups, width, state):
    shape = dict(groups=groups, width=width, state=state)
    expected = outputs_and_gradients(inputs(20, **shape), backend="reference")
    assert_all_close(outputs_and_gradients(inputs(20, **shape)), expected)


def test_reads_strided_inputs():
    tensors = inputs(40)
    expected = selective_scan(**tensors, dt_softplus=True)
    strided = {
        name: tensor.transpose(0, 1).contiguous().transpose(0, 1) if name in ALONG else tensor
        for name, tensor in tensors.items()
    }
    assert torch.equal(selective_scan(**strided, dt_softplus=True), expected)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 18])
def test_gradcheck(length, reverse):
    tensors = inputs(length, batch=2, width=2, groups=1, state=2)

    def scan(*values):
        return selective_scan(
            **dict(zip(tensors, values, strict=True)),
            dt_softplus=True,
            reverse=reverse,
            lengths=torch.tensor([length, length // 2]),
            return_state=True,
        )

    assert torch.autograd.gradcheck(scan, tuple(tensors.values()))


@pytest.mark.parametrize("part", ["y", "state"])
def test_gradient_from_one_output_alone(part):
    results = []
    for backend in ("reference", "inplace"):
        tensors = inputs(35)
        y, state = selective_scan(**tensors, dt_softplus=True, return_state=True, backend=backend)
        (y if part == "y" else state).square().sum().backward()
        # the last state does not depend on C, D and z; their gradient is None or zero
        results.append({name: torch.zeros(()) if t.grad is None else t.grad.sum() for name, t in tensors.items()})
    for name in results[0]:
        torch.testing.assert_close(results[1][name].double(), results[0][name].double(), rtol=1e-8, atol=1e-8)


def test_no_gradient_gives_the_same_bits():
    tensors = inputs(50)
    with torch.no_grad():
        quiet = selective_scan(**tensors, dt_softplus=True)
    assert torch.equal(selective_scan(**tensors, dt_softplus=True), quiet)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_lengths_give_exact_zeros_and_ignore_what_stands_beyond(reverse):
    lengths = torch.tensor([100, 40, 7])
    tensors = inputs(100, dtype=torch.float32)
    expected = outputs_and_gradients(tensors, lengths=lengths, reverse=reverse)
    assert (expected["y"][1, 40:] == 0).all() and (expected["y"][2, 7:] == 0).all()
    changed = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for name in ALONG:
        changed[name][2, 7:] = 1e3
    changed = {name: tensor.requires_grad_() for name, tensor in changed.items()}
    got = outputs_and_gradients(changed, lengths=lengths, reverse=reverse)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name
    for name in ALONG:
        assert (got[name][2, 7:] == 0).all(), name


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_padding_and_batch_mates_change_no_bit(reverse):
    """A row alone and unpadded equals the same row among others and padded."""
    tensors = {name: tensor.detach() for name, tensor in inputs(64, dtype=torch.float32, width=64, state=16).items()}
    together = selective_scan(**tensors, dt_softplus=True, lengths=torch.tensor([64, 37, 5]), reverse=reverse)
    row = {name: t[1:2] if name in (*ALONG, "initial_state") else t for name, t in tensors.items()}
    row = {name: t[:, :37] if name in ALONG else t for name, t in row.items()}
    assert torch.equal(selective_scan(**row, dt_softplus=True, reverse=reverse)[0], together[1, :37])


def test_reverse_is_the_scan_of_the_sequence_turned_round():
    tensors = inputs(37)
    # PyTorch's own softplus and silu may round differently where a tensor lies elsewhere in memory
    tensors["dt"] = torch.nn.functional.softplus(tensors["dt"])
    del tensors["z"]
    turned = {name: tensor.flip(1) if name in ALONG else tensor for name, tensor in tensors.items()}
    assert torch.equal(selective_scan(**tensors, reverse=True), selective_scan(**turned).flip(1))


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 50), cut=st.floats(0, 1), reverse=st.booleans(), seed=st.integers(0, 99))
def test_split_with_state_equals_whole(length, cut, reverse, seed):
    tensors = inputs(length, seed=seed)
    at = round(cut * length)
    parts = [
        {name: tensor[:, part] if name in ALONG else tensor for name, tensor in tensors.items()}
        for part in (slice(0, at), slice(at, length))
    ]
    scan = functools.partial(selective_scan, dt_softplus=True, reverse=reverse, return_state=True)
    whole, last = scan(**tensors)
    first, second = reversed(parts) if reverse else parts
    y, state = scan(**first)
    rest, end = scan(**(second | {"initial_state": state}))
    torch.testing.assert_close(torch.cat([rest, y] if reverse else [y, rest], dim=1), whole)
    torch.testing.assert_close(end, last)


KINDS = ("each", "divided")
"""Of an order: each direction takes every position, or they divide them up."""


def order_and_inputs(kind: str, length: int, *, directions=3, width=6, state=5, **options) -> tuple[torch.Tensor, dict]:
    """Directions over positions in no order at all, what they read together and the parameters of each."""
    generator = torch.Generator().manual_seed(length)
    if kind == "each":
        order = torch.stack([torch.randperm(length, generator=generator) for _ in range(directions)])
    else:
        # anywhere in a table with twice as many places as positions
        order = torch.full((directions * (2 * length // directions + 1),), -1, dtype=torch.int32)
        order[torch.randperm(len(order), generator=generator)[:length]] = torch.arange(length, dtype=torch.int32)
        order = order.unflatten(0, (directions, -1))
    wide = inputs(length, width=directions * width, groups=2 * directions, state=state, **options)
    narrow = inputs(length, width=width, state=state, seed=1, **options)
    del wide["z"]
    shared = {"x"} if kind == "each" else {"x", "dt", "B", "C"}
    return order, wide | {name: narrow[name] for name in shared}


def scan_by_loops(order: torch.Tensor, tensors: dict) -> torch.Tensor:
    """One direction after the other, without `order`: its positions picked, scanned and added to where they belong."""
    x, directions = tensors["x"], len(order)
    y = torch.zeros_like(x)
    share = 1 if tensors["dt"].shape == x.shape else directions
    for k, path in enumerate(order):
        path = path[path >= 0]
        own = {name: tensors[name].chunk(directions)[k] for name in ("A", "D", "dt_bias")}
        own |= {name: tensors[name].chunk(share, dim=2)[k if share > 1 else 0][:, path] for name in ("dt", "B", "C")}
        start = tensors["initial_state"].chunk(directions, dim=1)[k]
        part = selective_scan(x[:, path], **own, dt_softplus=True, initial_state=start, backend="reference")
        y = y.index_add(1, path, part / share)
    return y


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 16, 17, 40])
def test_order_equals_definition_and_loops(kind, length):
    results = []
    for backend in ("reference", "inplace"):
        order, tensors = order_and_inputs(kind, length)
        results.append(outputs_and_gradients(tensors, order=order, backend=backend))
    assert_all_close(*results)
    torch.testing.assert_close(results[0]["y"], scan_by_loops(order, tensors), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left_out", ["D", "dt_bias", "initial_state"])
def test_order_equals_definition_without(kind, left_out):
    results = []
    for backend in ("reference", "inplace"):
        order, tensors = order_and_inputs(kind, 19)
        del tensors[left_out]
        results.append(outputs_and_gradients(tensors, order=order, backend=backend))
    assert_all_close(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_order_gradcheck(kind):
    order, tensors = order_and_inputs(kind, 18, directions=2, batch=1, width=2, state=1)

    def scan(*values):
        return selective_scan(
            **dict(zip(tensors, values, strict=True)), dt_softplus=True, return_state=True, order=order
        )

    assert torch.autograd.gradcheck(scan, tuple(tensors.values()))


def test_there_and_back_is_the_bidirectional_scan():
    tensors = inputs(33)
    twice = {name: torch.cat([tensors[name]] * 2, dim=0 if name in ("A", "dt_bias") else 2) for name in ORDERED}
    there = torch.arange(33)
    got = selective_scan(tensors["x"], **twice, dt_softplus=True, order=torch.stack([there, there.flip(0)]))
    expected = bidirectional_selective_scan(tensors["x"], **twice, dt_softplus=True)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("directions", [1, 3])
def test_order_of_an_empty_sequence(directions):
    order, tensors = (
        torch.empty(directions, 0, dtype=torch.int64),
        order_and_inputs("each", 3, directions=directions)[1],
    )
    tensors = {name: tensor[:, :0] if name in ALONG else tensor for name, tensor in tensors.items()}
    y, state = selective_scan(**tensors, return_state=True, order=order)
    assert y.shape == (3, 0, 6) and torch.equal(state, tensors["initial_state"])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("each", lambda order: order.float(), "order: expected int32 or int64"),
        ("each", lambda order: order[0], r"order: expected int32 or int64 \(directions, steps\)"),
        ("each", lambda order: order[:, :-1], "order: expected 9 steps, got 8"),
        ("each", lambda order: order.clamp(min=1), "order: expected that each direction take every position below 9"),
        ("each", lambda order: order + 1, "order: expected that each direction take every position below 9"),
        ("divided", lambda order: order[:, :2], "order: expected at least 9 steps together, got 6"),
        ("divided", lambda order: order.clamp(max=5), "order: expected that the directions together take every"),
    ],
)
def test_a_wrong_order_is_an_error(kind, change, message):
    order, tensors = order_and_inputs(kind, 9)
    with pytest.raises(ValueError, match=message):
        selective_scan(**tensors, order=change(order))


@pytest.mark.parametrize("name", ["dt", "A", "B", "D", "dt_bias", "initial_state"])
def test_wrong_shapes_with_an_order_are_named(name):
    order, tensors = order_and_inputs("each", 4)
    tensors[name] = tensors[name][..., :-1]
    with pytest.raises(ValueError, match="expected.*got|cannot be shared"):
        selective_scan(**tensors, order=order)


@pytest.mark.parametrize("name", ["z", "lengths", "reverse"])
def test_what_goes_not_with_an_order(name):
    order, tensors = order_and_inputs("each", 4)
    given = {"z": tensors["x"], "lengths": torch.tensor([4, 4, 4]), "reverse": True}[name]
    with pytest.raises(ValueError, match=f"{name}: not together with order"):
        selective_scan(**tensors, order=order, **{name: given})


def test_equals_ssd_where_all_channels_of_a_head_share_a_decay():
    heads, width, state = 2, 3, 5
    tensors = inputs(70, width=heads * width, groups=2, state=state)
    dt, rates = tensors["dt"][..., ::width], torch.tensor([-0.5, -2.0], dtype=torch.float64)
    got = selective_scan(
        tensors["x"],
        dt.repeat_interleave(width, dim=2),
        rates.repeat_interleave(width)[:, None].expand(-1, state),
        tensors["B"],
        tensors["C"],
        dt_softplus=True,
    )
    x = tensors["x"].reshape(3, 70, heads, width)
    expected = ssd(x, dt, rates, tensors["B"], tensors["C"], dt_softplus=True)
    torch.testing.assert_close(got, expected.reshape(3, 70, -1))


def test_extreme_decays_stay_finite_and_close():
    """Heavy-tailed steps up to 11 with decay rates up to 16: the case that broke half precision in mamba issue 72."""
    tensors = inputs(1024, dtype=torch.float32, seed=1)
    arguments = {name: tensors[name] for name in ("x", "B", "C")}
    dt = (torch.rand(3, 1024, 6, generator=torch.Generator().manual_seed(2)).pow(8) * 11).requires_grad_()
    A = -torch.arange(1.0, 31).reshape(6, 5).clamp(max=16).requires_grad_()
    got = selective_scan(dt=dt, A=A, **arguments)
    exact = selective_scan_reference(
        dt=dt.double(), A=A.double(), **{name: tensor.double() for name, tensor in arguments.items()}
    )
    # no sums of decays, no cancellation: 100 times closer than `ssd`
    assert (got - exact).abs().max() / exact.abs().mean() < 2e-5
    variables = (dt, *arguments.values())
    for gradient, expected in zip(
        torch.autograd.grad(got.sum(), variables), torch.autograd.grad(exact.sum(), variables), strict=True
    ):
        assert (gradient - expected).norm() / expected.norm() < 1e-5


def test_bounded_decays_have_no_gradient():
    one = torch.ones(1, 2, 1, dtype=torch.float64)
    dt = torch.tensor([[[1.0], [30.0]]], dtype=torch.float64, requires_grad=True)
    A = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    y = selective_scan(one, dt, A, one[:, :, None], one[:, :, None])
    torch.testing.assert_close(y[0, 1, 0].item(), 30 + torch.tensor(-20.0).double().exp().item(), rtol=1e-15, atol=0)
    y[0, 1].sum().backward()
    assert A.grad.item() == 0 and dt.grad[0, 1].item() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_inputs_and_outputs_alone(dtype):
    tensors = {name: tensor.detach() for name, tensor in inputs(200, dtype=dtype).items()}
    got, state = selective_scan(**tensors, dt_softplus=True, return_state=True)
    exact = selective_scan(**{name: tensor.double() for name, tensor in tensors.items()}, dt_softplus=True)
    assert got.dtype == dtype and state.dtype == torch.float32
    # one rounding of the result is half a unit in the last place
    torch.testing.assert_close(got.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-5)


def test_empty_sequence_returns_the_initial_state():
    tensors = inputs(0)
    y, state = selective_scan(**tensors, return_state=True)
    assert y.shape == (3, 0, 6) and torch.equal(state, tensors["initial_state"])
    (state.sum() + y.sum()).backward()
    assert (tensors["initial_state"].grad == 1).all()


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "D", "z", "dt_bias", "initial_state"])
def test_wrong_shapes_are_named(name):
    tensors = inputs(4)
    tensors[name] = tensors[name][..., :-1]
    with pytest.raises(ValueError, match="expected.*got|cannot be shared"):
        selective_scan(**tensors)


def test_unknown_backend_is_an_error():
    tensors = inputs(4)
    with pytest.raises(ValueError, match="backend"):
        selective_scan(**tensors, backend="cuda")
