"""`Muon`: orthogonal updates, and the same step as PyTorch's, matrix by matrix."""

import pytest
import torch

from ribonanzamamba.training.muon import Muon, orthogonalize


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)], ids=["square", "wide", "tall"])
def test_singular_values_come_near_one(shape):
    got = orthogonalize(normal(3, *shape)).float()
    assert got.shape == (3, *shape)
    values = torch.linalg.svdvals(got)
    # the iteration ends in 0.7 to 1.2, but square random matrices have values that start too small for 5 steps
    assert values.max() < 1.25 and values.median() > 0.65
    if shape[0] != shape[1]:
        assert values.min() > 0.65


def test_singular_vectors_are_kept():
    left, right = torch.linalg.qr(normal(12, 12))[0], torch.linalg.qr(normal(12, 12, seed=1))[0]
    matrix = left @ torch.diag(torch.linspace(1, 3, 12)) @ right.T
    middle = left.T @ orthogonalize(matrix[None])[0].float() @ right
    off = middle - torch.diag(middle.diagonal())
    assert off.abs().max() < 0.03, "bfloat16 leaves 2^-8 an operation"
    assert (middle.diagonal() > 0.65).all()


def test_each_matrix_of_a_stack_is_scaled_alone():
    stack = normal(2, 6, 10) * torch.tensor([1e-3, 1e3])[:, None, None]
    for k in range(2):
        torch.testing.assert_close(orthogonalize(stack)[k], orthogonalize(stack[k : k + 1])[0], rtol=2e-2, atol=2e-2)
    assert (orthogonalize(torch.zeros(1, 4, 4)) == 0).all()


def test_equals_pytorch():
    shapes = [(8, 24), (8, 24), (24, 8), (16, 16)]
    ours = [torch.nn.Parameter(normal(*shape, seed=k)) for k, shape in enumerate(shapes)]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    options = {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.95}
    optimizers = Muon(ours, **options), torch.optim.Muon(theirs, **options, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for k, parameter in enumerate(parameters):
                parameter.grad = normal(*parameter.shape, seed=100 * step + k)
            optimizer.step()
        for k, (got, expected) in enumerate(zip(ours, theirs, strict=True)):
            # a step is 1e-2; bfloat16 sums in another order differ by some 1e-2 of it
            difference = (got - expected).abs().max()
            assert difference < 3e-4 * (step + 1), f"{shapes[k]}, step {step}: {difference}"


def test_only_matrices():
    with pytest.raises(ValueError, match=r"expected matrices, got a parameter of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=1.0)


def test_without_gradient_nothing_moves():
    parameter = torch.nn.Parameter(torch.ones(3, 3))
    Muon([parameter], lr=1.0, weight_decay=0.5).step()
    assert (parameter == 1).all()
