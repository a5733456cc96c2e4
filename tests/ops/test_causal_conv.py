"""`causal_conv1d` against the definition, a loop over positions and taps."""

import pytest
import torch
import torch.nn.functional as F

from ribonanzamamba.ops import causal_conv1d


def convolve(x, weight, bias, reverse, lengths):
    """The definition: the last tap sees the position itself, the one before it the position before (or after)."""
    y = torch.zeros_like(x)
    taps = weight.shape[1]
    for row, length in enumerate(lengths.tolist()):
        for t in range(length):
            y[row, t] = bias
            for back in range(taps):
                source = t + back if reverse else t - back
                if 0 <= source < length:
                    y[row, t] += weight[:, taps - 1 - back] * x[row, source]
    return y


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("reverse", [False, True], ids=["causal", "reverse"])
@pytest.mark.parametrize("length", [1, 2, 30])
@pytest.mark.parametrize("taps", range(1, 9))
def test_equals_definition(taps, length, reverse):
    x, weight, bias = normal(3, length, 4, seed=0), normal(4, taps, seed=1), normal(4, seed=2)
    lengths = torch.tensor([length, length // 2, 0])
    got = causal_conv1d(x, weight, bias, reverse=reverse, lengths=lengths)
    torch.testing.assert_close(got, convolve(x, weight, bias, reverse, lengths))
    assert (got[1, length // 2 :] == 0).all() and (got[2] == 0).all()
    full = causal_conv1d(x, weight, bias, reverse=reverse)
    torch.testing.assert_close(full, convolve(x, weight, bias, reverse, torch.full((3,), length)))


def test_reverse_is_the_convolution_turned_round():
    x, weight = normal(2, 20, 4, seed=0), normal(4, 4, seed=1)
    torch.testing.assert_close(causal_conv1d(x, weight, reverse=True), causal_conv1d(x.flip(1), weight).flip(1))


def test_activation_comes_last():
    x, weight, bias = normal(2, 20, 4, seed=0), normal(4, 4, seed=1), normal(4, seed=2)
    got = causal_conv1d(x, weight, bias, activation="silu")
    torch.testing.assert_close(got, F.silu(causal_conv1d(x, weight, bias)))


def test_gradcheck():
    tensors = tuple(tensor.requires_grad_() for tensor in (normal(2, 6, 3, seed=0), normal(3, 4, seed=1)))
    lengths = torch.tensor([6, 3])
    assert torch.autograd.gradcheck(lambda x, w: causal_conv1d(x, w, activation="silu", lengths=lengths), tensors)


def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match="weight"):
        causal_conv1d(torch.zeros(1, 5, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="activation"):
        causal_conv1d(torch.zeros(1, 5, 4), torch.zeros(4, 4), activation="relu")
