"""`selective_state_update`: as many single steps as positions equal one scan."""

import pytest
import torch

from ribonanzamamba.ops import selective_scan, selective_state_update, ssd

LENGTH = 20


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arguments(heads: bool) -> tuple[dict, dict, torch.Tensor]:
    """Tensors along the sequence, the others, and an initial state: 4 channels, or 4 heads of width 3."""
    wide = (4, 3) if heads else (4,)
    along = {
        "x": normal(2, LENGTH, *wide, seed=0),
        "dt": normal(2, LENGTH, 4, seed=1),
        "B": normal(2, LENGTH, 2, 5, seed=2),
        "C": normal(2, LENGTH, 2, 5, seed=3),
        "z": normal(2, LENGTH, *wide, seed=4),
    }
    rates = -torch.exp(normal(4, *(() if heads else (5,)), seed=5))
    others = {"A": rates, "D": normal(4, seed=6), "dt_bias": normal(4, seed=7)}
    return along, others, normal(2, 4, 5, 3, seed=8) if heads else normal(2, 4, 5, seed=8)


@pytest.mark.parametrize("optional", [True, False], ids=["all", "bare"])
@pytest.mark.parametrize("heads", [False, True], ids=["channels", "heads"])
def test_steps_equal_the_scan(heads, optional):
    along, others, state = arguments(heads)
    if not optional:
        del along["z"], others["D"], others["dt_bias"]
    scan = ssd if heads else selective_scan
    expected, last = scan(**along, **others, dt_softplus=True, initial_state=state, return_state=True)
    outputs = []
    for t in range(LENGTH):
        now = {name: tensor[:, t] for name, tensor in along.items()}
        y, state = selective_state_update(state, **now, **others, dt_softplus=True)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, dim=1), expected)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("heads", [False, True], ids=["channels", "heads"])
def test_inputs_are_not_modified(heads):
    along, others, state = arguments(heads)
    before = state.clone()
    _, after = selective_state_update(state, **{name: tensor[:, 0] for name, tensor in along.items()}, **others)
    assert torch.equal(state, before) and not torch.equal(after, before)


def test_state_stays_wide_in_low_precision():
    along, others, state = arguments(heads=False)
    now = {name: tensor[:, 0].bfloat16() for name, tensor in along.items()}
    y, state = selective_state_update(state.float(), **now, **{name: t.float() for name, t in others.items()})
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32


@pytest.mark.parametrize("heads", [False, True], ids=["channels", "heads"])
def test_decays_are_bounded_as_in_the_scan(heads):
    along, others, state = arguments(heads)
    now = {name: tensor[:, 0] for name, tensor in along.items()} | {"dt": torch.full((2, 4), 30.0).double()}
    now["x"] = torch.zeros_like(now["x"])
    _, after = selective_state_update(state, **now, A=-torch.ones_like(others["A"]))
    torch.testing.assert_close(after, state * torch.tensor(-20.0).double().exp(), rtol=1e-12, atol=0)


def test_wrong_shapes_are_errors():
    along, others, state = arguments(heads=False)
    now = {name: tensor[:, 0] for name, tensor in along.items()}
    with pytest.raises(ValueError, match="state: expected"):
        selective_state_update(state[..., :-1], **now, **others)
    with pytest.raises(ValueError, match="B and C"):
        selective_state_update(state, **(now | {"C": now["C"][:, :1]}), **others)
