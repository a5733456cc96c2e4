"""`MambaSelfAttention`: the call of `nn.MultiheadAttention`, its masks, and life inside PyTorch's encoder."""

import pytest
import torch
from torch import Tensor, nn

from ribonanzamamba.layers import MambaSelfAttention

WIDTH = 8
STEPS = [1, 2, 12, 13, 36, 288]


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_hidden(steps: int) -> Tensor:
    """Padding at the end, at the start, in the middle, and everywhere."""
    hidden = torch.rand(4, steps, generator=torch.Generator().manual_seed(2)) < 0.4
    hidden[0], hidden[1], hidden[3] = torch.arange(steps) > steps // 2, torch.arange(steps) < steps // 2, True
    return hidden


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("steps", STEPS)
def test_equals_loops_over_what_is_not_hidden(steps, causal, by_loops, stirred, same_with_gradients):
    torch.manual_seed(0)
    layer = stirred(MambaSelfAttention(WIDTH, 2, causal=causal, batch_first=True, d_state=3, head_width=4))
    x, hidden = normal(4, steps, WIDTH).requires_grad_(), some_hidden(steps)
    rows = []
    for row, mask in zip(x, hidden, strict=True):
        y = torch.zeros_like(row)
        if not mask.all():
            y = y.index_put(((~mask).nonzero()[:, 0],), by_loops(layer.mamba, row[~mask]))
        rows.append(y)
    got, weights = layer(x, x, x, key_padding_mask=hidden)
    assert weights is None
    same_with_gradients(layer, got, torch.stack(rows), x)
    added = torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, float("-inf"))
    assert torch.equal(layer(x, x, x, key_padding_mask=added)[0], got)


def test_hidden_values_change_nothing(stirred):
    layer = stirred(MambaSelfAttention(WIDTH, batch_first=True))
    x, hidden = normal(4, 20, WIDTH), some_hidden(20)
    other = x.masked_fill(hidden[..., None], 1e3)
    assert torch.equal(layer(x, x, x, hidden)[0], layer(other, other, other, hidden)[0])


def test_layouts_agree(stirred):
    x = normal(3, 7, WIDTH)
    layer = stirred(MambaSelfAttention(WIDTH, batch_first=True))
    expected = layer(x, x, x)[0]
    layer.batch_first = False
    turned = x.transpose(0, 1)
    torch.testing.assert_close(layer(turned, turned, turned)[0].transpose(0, 1), expected)
    torch.testing.assert_close(layer(x[1], x[1], x[1])[0], expected[1])
    # views of the same memory are the same tensor
    torch.testing.assert_close(
        layer(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0], layer(turned, turned, turned)[0]
    )


def causal_mask(steps: int, *, bool_mask: bool) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(steps)
    return mask.isinf() if bool_mask else mask


@pytest.mark.parametrize("bool_mask", [False, True], ids=["float", "bool"])
def test_causal_masks(bool_mask, stirred):
    layer = stirred(MambaSelfAttention(WIDTH, causal=True, batch_first=True))
    x = normal(2, 9, WIDTH)
    mask = causal_mask(9, bool_mask=bool_mask)
    expected = layer(x, x, x)[0]
    for options in ({"attn_mask": mask}, {"attn_mask": mask, "is_causal": True}, {"is_causal": True}):
        assert torch.equal(layer(x, x, x, **options)[0], expected)
    other = x.clone()
    other[:, 5:] += 1
    assert torch.equal(layer(other, other, other)[0][:, :5], expected[:, :5])
    both = MambaSelfAttention(WIDTH, batch_first=True).double()
    assert both(x, x, x, attn_mask=torch.zeros_like(mask))[0].shape == x.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_mask": torch.eye(9, dtype=torch.bool)}, "attn_mask: a state space takes one that hides nothing"),
        ({"attn_mask": torch.rand(9, 9)}, "attn_mask: expected True and False, or 0 and minus infinity"),
        ({"attn_mask": torch.zeros(4, 4)}, "attn_mask: .* got shape"),
        ({"is_causal": True}, "is_causal: this layer sees both ways; build it with causal=True"),
        ({"key_padding_mask": torch.rand(2, 9)}, "key_padding_mask: expected True and False"),
    ],
    ids=["diagonal", "bias", "shape", "is_causal", "soft padding"],
)
def test_masks_it_cannot_honour(options, message):
    x = torch.randn(2, 9, WIDTH)
    with pytest.raises(ValueError, match=message):
        MambaSelfAttention(WIDTH, batch_first=True)(x, x, x, **options)


def test_cross_attention_is_refused():
    layer, x = MambaSelfAttention(WIDTH, batch_first=True), torch.randn(2, 9, WIDTH)
    for key, value in ((x.clone(), x), (x, x.flip(1)), (torch.randn(2, 9, WIDTH), x)):
        with pytest.raises(ValueError, match="expected self-attention"):
            layer(x, key, value)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_inside_an_encoder_evaluation_is_training_without_dropout(batch_first, norm_first):
    """PyTorch's encoder reads the weights of its attention in evaluation, for a fused path that must not be taken."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=batch_first, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2)
    for block in encoder.layers:
        block.self_attn = MambaSelfAttention(WIDTH, 2, batch_first=batch_first)
    x = torch.randn(3, 10, WIDTH)
    hidden = torch.arange(10) >= torch.tensor([10, 6, 3])[:, None]
    if not batch_first:
        x = x.transpose(0, 1)
    for mask in (None, hidden):
        trained = encoder.train()(x, src_key_padding_mask=mask)
        trained.sum().backward()
        evaluated = encoder.eval()(x, src_key_padding_mask=mask)
        with torch.inference_mode():
            inferred = encoder(x, src_key_padding_mask=mask)
        torch.testing.assert_close(evaluated, trained)
        torch.testing.assert_close(inferred, trained)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_inside_a_causal_encoder():
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    encoder.layers[0].self_attn = MambaSelfAttention(WIDTH, 2, causal=True, batch_first=True)
    x = torch.randn(2, 10, WIDTH)
    other = x.clone()
    other[:, 6:] += 1
    mask = causal_mask(10, bool_mask=False)
    with torch.no_grad():
        assert torch.equal(encoder(x, mask=mask)[:, :6], encoder(other, mask=mask)[:, :6])
