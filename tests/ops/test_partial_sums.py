"""All partial sums of a backward pass in one launch: against float64, in Triton's interpreter or on a GPU."""

import pytest
import torch

from ribonanzamamba.ops.backend import interpreted, triton_import_problem
from ribonanzamamba.ops.partial_sums import MOST_TERMS, launch, planned, sum_parts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    triton_import_problem() is not None or not (interpreted() or DEVICE == "cuda"),
    reason="needs Triton, and a GPU or its interpreter",
)
SHAPES = [
    ((2, 3, 5), 1),
    ((7, 40), 0),
    ((3, 1, 33), 1),
    ((2, 2, 70, 9), 2),
    ((130, 12), 1),
    ((1, 2, 3000), 1),
    ((5, 100, 1), 1),
]


def close(result: torch.Tensor, source: torch.Tensor, axis: int, dtype: torch.dtype) -> None:
    exact = source.double().sum(axis)
    assert result.dtype == dtype and result.shape == exact.shape
    # the interpreter cuts bfloat16 off, a GPU rounds it
    rtol = (2**-7 if interpreted() else 2**-8) if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(result.double(), exact, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_sum(shape, axis, dtype):
    source = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    close(sum_parts([(source, axis, dtype)])[0], source, axis, dtype)
    close(sum_parts([(source, axis, torch.float32)])[0], source, axis, torch.float32)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_several_sums(count):
    g = torch.Generator().manual_seed(count)
    parts = []
    for number, (shape, axis) in enumerate(SHAPES[3 : 3 + count]):
        dtype = (torch.float32, torch.bfloat16)[number % 2]
        parts.append((torch.randn(shape, generator=g).to(DEVICE, dtype), axis, dtype))
    for result, (source, axis, dtype) in zip(sum_parts(parts), parts, strict=True):
        close(result, source, axis, dtype)


def test_results_keep_their_order():
    """Whichever of them the launch computes."""
    shapes = [(1, 6, 5), (6, 4, 5), (6, MOST_TERMS + 1, 5), (6, 3, 5), (6, 0, 5)]
    sources = [torch.full(shape, 2.0**number, device=DEVICE) for number, shape in enumerate(shapes)]
    axes = [0, 1, 1, 1, 1]
    results = sum_parts([(source, axis, torch.float32) for source, axis in zip(sources, axes, strict=True)])
    for number, result in enumerate(results):
        terms = shapes[number][axes[number]]
        assert torch.equal(result, torch.full((6, 5), terms * 2.0**number, device=DEVICE)), shapes[number]


def test_every_place_is_written_and_no_other():
    source = torch.ones(3, 4, 70, device=DEVICE)
    room = torch.full((3 * 70 + 8,), -1.0, device=DEVICE)
    launch([source], [room[4:-4]], planned(((source.shape, 1),)))
    assert torch.equal(room[4:-4], torch.full((210,), 4.0, device=DEVICE))
    assert (room[:4] == -1).all() and (room[-4:] == -1).all()


def test_long_and_empty_sums_are_pytorchs():
    long = torch.ones(2, MOST_TERMS + 1, 3, device=DEVICE)
    empty = torch.ones(2, 0, 3, device=DEVICE)
    results = sum_parts([(long, 1, torch.float32), (empty, 1, torch.float32)])
    assert (results[0] == MOST_TERMS + 1).all() and (results[1] == 0).all()
