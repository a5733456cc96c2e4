"""`convolved_bidirectional_ssd`: its parts one by one, what it refuses, and its kernels in Triton's interpreter."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from ribonanzamamba.ops import bidirectional_ssd, convolved_bidirectional_ssd
from ribonanzamamba.ops.backend import interpreted

HEADS, WIDTH, STATE, TAPS = 2, 3, 5, 5
CHANNELS = HEADS * WIDTH + 4 * STATE

kernels = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not interpreted(), reason="needs Triton and its interpreter"
)


def inputs(length: int, *, batch: int = 2) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "projected": normal(batch, length, HEADS * WIDTH + CHANNELS + 2 * HEADS),
        "weight": normal(CHANNELS, TAPS),
        "bias": normal(CHANNELS),
        "A": -normal(2 * HEADS).exp(),
        "D": normal(HEADS),
        "dt_bias": normal(2 * HEADS),
        "gain": normal(HEADS * WIDTH),
    }


def outputs_and_gradients(tensors: dict[str, torch.Tensor], dtype: torch.dtype, **options) -> dict[str, torch.Tensor]:
    leaves = {name: tensor.detach().to(dtype, copy=True).requires_grad_() for name, tensor in tensors.items()}
    missing = dict.fromkeys({"bias", "D", "dt_bias", "gain"} - leaves.keys())
    y = convolved_bidirectional_ssd(**leaves, **missing, heads=HEADS, d_state=STATE, **options)
    (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum().backward()
    return {"y": y} | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("merge", ["mean", "sum", "concat"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
def test_parts_one_by_one(merge, gated):
    t = inputs(9)
    lengths = torch.tensor([9, 4])
    z, mixed, dt = t["projected"].split((HEADS * WIDTH, CHANNELS, 2 * HEADS), dim=-1)
    present = (torch.arange(9) < lengths[:, None])[..., None]
    mixed = F.conv1d((mixed * present).mT, t["weight"][:, None], t["bias"], padding=TAPS // 2, groups=CHANNELS).mT
    x, B, C = F.silu(mixed).split((HEADS * WIDTH, 2 * STATE, 2 * STATE), dim=-1)
    expected = bidirectional_ssd(
        x.reshape(2, 9, HEADS, WIDTH),
        dt,
        t["A"],
        B.reshape(2, 9, 2, STATE),
        C.reshape(2, 9, 2, STATE),
        t["D"],
        z.reshape(2, 9, HEADS, WIDTH) if gated else None,
        t["dt_bias"],
        dt_softplus=True,
        lengths=lengths,
        merge=merge,
        backend="reference",
    )
    gain = t.pop("gain").repeat(2 if merge == "concat" else 1)
    options = dict(heads=HEADS, d_state=STATE, lengths=lengths, merge=merge, gated=gated)
    torch.testing.assert_close(convolved_bidirectional_ssd(**t, **options), expected, rtol=1e-10, atol=1e-10)
    channels = expected.flatten(2)
    normed = channels / (channels.square().mean(-1, keepdim=True) + 1e-3).sqrt() * gain
    got = convolved_bidirectional_ssd(**t, **options, gain=gain, eps=1e-3)
    torch.testing.assert_close(got, normed.view_as(got), rtol=1e-10, atol=1e-10)


@kernels
@pytest.mark.parametrize("length", [1, 2, 17, 40])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
def test_kernels_equal_plain(length, ragged, normed):
    options = dict(lengths=torch.tensor([length, length // 2]) if ragged else None)
    tensors = inputs(length)
    if not normed:
        del tensors["gain"]
    expected = outputs_and_gradients(tensors, torch.float64, backend="plain", **options)
    # whatever a kernel does not write stays NaN
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        got = outputs_and_gradients(tensors, torch.float32, backend="triton", **options)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in expected.items():
        error = (got[name].double() - value).norm() / value.norm().clamp(min=1e-30)
        assert error <= 2e-5, f"{name}: {error:.1e}"
    if ragged:
        beyond = got["dprojected"][1, length // 2 :]
        assert (beyond == 0).all()


@kernels
def test_kernels_without_optional_inputs_and_merged_by_sum():
    tensors = {name: tensor for name, tensor in inputs(7).items() if name not in ("bias", "D", "dt_bias", "gain")}
    options = dict(merge="sum")
    expected = outputs_and_gradients(tensors, torch.float64, backend="plain", **options)
    got = outputs_and_gradients(tensors, torch.float32, backend="triton", **options)
    for name, value in expected.items():
        error = (got[name].double() - value).norm() / value.norm().clamp(min=1e-30)
        assert error <= 2e-5, f"{name}: {error:.1e}"


@kernels
def test_operators_for_compilers():
    """Schema, fake tensors and what is traced agree with the operators themselves."""
    from ribonanzamamba.ops import convolved_ssd_triton as module

    t = {name: tensor.float() for name, tensor in inputs(9).items()}
    options = (HEADS, STATE, 0.5, 1e-5)
    tests = ("test_schema", "test_faketensor")
    for gain in (t.pop("gain"), None):
        shared = (*t.values(), gain, torch.tensor([9, 4]))
        for keep in (False, True):
            torch.library.opcheck(module.forward_operator, (*shared, *options, keep), test_utils=tests)
        y, *kept = module.forward_operator(*shared, *options, True)
        torch.library.opcheck(module.backward_operator, (y, *shared, *kept, *options), test_utils=tests)


@pytest.mark.parametrize(("name", "change"), [("heads", 1), ("heads", 3), ("d_state", 4), ("d_state", 9)])
def test_refuses_sizes_that_do_not_fit(name, change):
    sizes = {"heads": HEADS, "d_state": STATE} | {name: change}
    t = inputs(3)
    # one head less makes the others wider: the taps and the parameters of the heads no longer fit
    with pytest.raises(ValueError, match="expected"):
        convolved_bidirectional_ssd(**t, **sizes)


def test_refuses_unknown_options():
    t = inputs(3)
    with pytest.raises(ValueError, match="merge: expected one of"):
        convolved_bidirectional_ssd(**t, heads=HEADS, d_state=STATE, merge="gate")
    with pytest.raises(ValueError, match="backend: expected one of"):
        convolved_bidirectional_ssd(**t, heads=HEADS, d_state=STATE, backend="chunked")
    with pytest.raises(ValueError, match=r"gain: expected \(12,\), got \(6,\)"):
        convolved_bidirectional_ssd(**t, heads=HEADS, d_state=STATE, merge="concat")


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="the compiled kernels need a CUDA GPU")
USUAL = dict(heads=4, d_state=64)


def usual_inputs(length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Values that bfloat16 can represent, for four heads of 64; parameters at least float32."""
    g = torch.Generator().manual_seed(length)
    channels = 256 + 4 * 64
    values = {
        "projected": torch.randn(3, length, 256 + channels + 8, generator=g),
        "weight": torch.randn(channels, TAPS, generator=g) * TAPS**-0.5,
        "bias": torch.randn(channels, generator=g),
        "A": -1 - 15 * torch.rand(8, generator=g),
        "D": torch.randn(4, generator=g),
        "dt_bias": torch.randn(8, generator=g) - 4,
        "gain": torch.randn(256, generator=g),
    }
    wide = torch.promote_types(dtype, torch.float32)
    return {
        name: value.bfloat16().to("cuda", dtype if name == "projected" else wide).requires_grad_()
        for name, value in values.items()
    }


def usual(length: int, dtype: torch.dtype, backend: str, lengths: torch.Tensor | None) -> dict[str, torch.Tensor]:
    leaves = usual_inputs(length, dtype)
    y = convolved_bidirectional_ssd(**leaves, **USUAL, lengths=lengths, backend=backend)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y)
    return {"y": y} | dict(zip(leaves, torch.autograd.grad(y, tuple(leaves.values()), weight), strict=True))


@gpu
@pytest.mark.parametrize("length", [1, 17, 64, 457])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
def test_error_on_a_gpu(length, ragged):
    lengths = torch.tensor([length, length // 2, 0], device="cuda") if ragged else None
    exact = usual(length, torch.float64, "plain", lengths)
    errors = {}
    for name, dtype, backend in (
        ("float32", torch.float32, "triton"),
        ("bfloat16", torch.bfloat16, "triton"),
        ("plain", torch.bfloat16, "plain"),
    ):
        got = usual(length, dtype, backend, lengths)
        errors[name] = {
            key: ((got[key].double() - value).norm() / value.norm().clamp(min=1e-30)).item()
            for key, value in exact.items()
        }
    # few numbers, sums of terms that cancel: 1e-4 as in test_triton_gpu.py, where bfloat16 is held to several draws
    for key, error in errors["float32"].items():
        assert error <= (1e-4 if key in ("A", "D", "dt_bias") else 2e-5), f"{key}: {error:.1e}"
    for key in ("y", "projected", "weight", "bias", "gain"):
        assert errors["bfloat16"][key] <= max(2 * errors["plain"][key], 2e-3), (key, errors)


@gpu
def test_twice_gives_the_same_bits():
    first, second = (usual(457, torch.bfloat16, "triton", None) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@gpu
def test_compiles_as_one_graph():
    leaves = usual_inputs(100, torch.bfloat16)

    def loss(projected, weight, bias, A, D, dt_bias, gain):
        y = convolved_bidirectional_ssd(projected, weight, bias, A, D, dt_bias, gain=gain, **USUAL)
        return y.float().square().sum()

    expected = torch.autograd.grad(loss(*leaves.values()), tuple(leaves.values()))
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves.values()), tuple(leaves.values()))
    for name, value, other in zip(leaves, got, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=2e-2, atol=2e-2 * other.abs().max().item(), msg=name)
