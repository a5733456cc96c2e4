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
    }


def outputs_and_gradients(tensors: dict[str, torch.Tensor], dtype: torch.dtype, **options) -> dict[str, torch.Tensor]:
    leaves = {name: tensor.detach().to(dtype, copy=True).requires_grad_() for name, tensor in tensors.items()}
    missing = dict.fromkeys({"bias", "D", "dt_bias"} - leaves.keys())
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
    got = convolved_bidirectional_ssd(**t, heads=HEADS, d_state=STATE, lengths=lengths, merge=merge, gated=gated)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@kernels
@pytest.mark.parametrize("length", [1, 2, 17, 40])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
def test_kernels_equal_plain(length, ragged):
    options = dict(lengths=torch.tensor([length, length // 2]) if ragged else None)
    tensors = inputs(length)
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
    tensors = {name: tensor for name, tensor in inputs(7).items() if name not in ("bias", "D", "dt_bias")}
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
    shared = (*t.values(), torch.tensor([9, 4]))
    options = (HEADS, STATE, 0.5)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(module.forward_operator, (*shared, *options, True), test_utils=tests)
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
