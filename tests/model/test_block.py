"""`Block`: its parts in their order, and its mask."""

import pytest
import torch
import torch.nn.functional as F

from ribonanzamamba.model.block import Block
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    config = ModelConfig(width=16, pair_width=8, heads=2, d_state=4, head_width=8)
    return Block(config, dilation=2).double().eval()


def inputs(length: int, lengths: tuple[int, ...]):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(lengths), length, 16, generator=generator, dtype=torch.float64)
    pair = torch.randn(len(lengths), length, length, 8, generator=generator, dtype=torch.float64)
    count = torch.tensor(lengths)
    mask = torch.arange(length) < count[:, None]
    return x, pair, mask, count


@torch.no_grad()
@pytest.mark.parametrize("open_to", ["attention", "mamba"])
def test_a_closed_gate_leaves_one_mixer(block, open_to):
    block.gate.weight.zero_()
    block.gate.bias.fill_(50.0 if open_to == "attention" else -50.0)
    x, pair, mask, lengths = inputs(7, (7, 4))
    h = x + block.convolution(x, mask)
    normed = block.mixer_norm(h)
    h = h + (block.attention(normed, pair, mask) if open_to == "attention" else block.mamba(normed, lengths))
    h = h + block.feed_out(F.gelu(block.feed_in(block.feed_norm(h))))
    got, got_pair = block(x, pair, mask, lengths)
    torch.testing.assert_close(got, h)
    torch.testing.assert_close(got_pair, block.pair_update(h, pair, mask))


@torch.no_grad()
def test_padding_and_batch_mates_change_nothing(block):
    lengths = (20, 9, 1)
    x, pair, mask, count = inputs(20, lengths)
    x = x.masked_fill(~mask[..., None], 1e2)
    pair = pair.masked_fill(~(mask[:, :, None] & mask[:, None, :])[..., None], -1e2)
    together, together_pair = block(x, pair, mask, count)
    for k, n in enumerate(lengths):
        row = slice(k, k + 1)
        alone, alone_pair = block(x[row, :n], pair[row, :n, :n], mask[row, :n], count[row])
        torch.testing.assert_close(together[k, :n], alone[0], rtol=1e-9, atol=1e-9)
        # the pair track's norm is float32
        torch.testing.assert_close(together_pair[k, :n, :n], alone_pair[0], rtol=1e-5, atol=1e-5)


def test_inputs_are_not_modified(block):
    arguments = inputs(7, (7, 4))
    before = [tensor.clone() for tensor in arguments]
    block(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("without", ["attention", "mamba"])
def test_one_mixer_stands_alone(without):
    config = ModelConfig(width=16, pair_width=8, heads=2, d_state=4, head_width=8, **{without: False})
    block = Block(config, dilation=1).double().eval()
    assert getattr(block, without) is None and block.gate is None
    x, pair, mask, lengths = inputs(7, (7, 4))
    normed = block.mixer_norm(x)
    alone = block.attention(normed, pair, mask) if without == "mamba" else block.mamba(normed, lengths)
    torch.testing.assert_close(block.mix(normed, pair, mask, lengths), alone)


@torch.no_grad()
def test_the_pair_track_stays_where_nothing_updates_or_reads_it(block):
    arguments = inputs(7, (7, 4))
    assert torch.equal(block(*arguments, pair_is_read=False)[1], arguments[1])
    assert torch.equal(block(*arguments, pair_is_read=False)[0], block(*arguments)[0])
    config = ModelConfig(width=16, pair_width=8, heads=2, d_state=4, head_width=8)
    still = Block(config, dilation=1, updates_pair=False).double().eval()
    assert torch.equal(still(*arguments)[1], arguments[1])


def mixed(mixing: str, mamba_drop: float = 0.0, **values) -> Block:
    torch.manual_seed(0)
    config = ModelConfig(width=16, pair_width=8, heads=2, d_state=4, head_width=8, mixing=mixing, mamba_drop=mamba_drop)
    return Block(config, dilation=1, **values).double()


@torch.no_grad()
def test_a_sum_has_no_gate():
    block = mixed("sum")
    x, pair, mask, lengths = inputs(7, (7, 4))
    h = block.mixer_norm(x)
    torch.testing.assert_close(
        block.mix(h, pair, mask, lengths), block.attention(h, pair, mask) + block.mamba(h, lengths)
    )
    assert block.gate is None and block.branches == 3


@torch.no_grad()
@pytest.mark.parametrize("mixing", ["gate", "sum"])
def test_rnas_that_the_state_space_does_not_read(mixing):
    """The first RNA's state space is left out, the second's is not."""
    block = mixed(mixing, mamba_drop=0.5)
    x, pair, mask, lengths = inputs(7, (7, 4))
    h = block.mixer_norm(x)
    scanned = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None]
    got = block.mix(h, pair, mask, lengths, scanned)
    attended = block.attention(h, pair, mask)
    # a sum keeps its mean over the RNAs
    expected = block.mix(h, pair, mask, lengths) if mixing == "gate" else attended + 2 * block.mamba(h, lengths)
    torch.testing.assert_close(got[0], attended[0])
    torch.testing.assert_close(got[1], expected[1])


def test_a_network_in_training_leaves_some_out():
    config = ModelConfig(
        width=16, pair_width=8, blocks=2, heads=2, d_state=4, head_width=8, tasks=("reactivity",), dropout=0.0,
        mamba_drop=0.5, mixing="attention-first",
    )  # fmt: skip
    torch.manual_seed(0)
    network = RibonanzaMamba(config)
    drawn = torch.stack(network.draw_scanned(torch.zeros(1000, 3, dtype=torch.int64)))
    assert drawn.shape == (2, 1000, 1, 1) and set(drawn.unique().tolist()) == {0.0, 1.0}
    assert 0.4 < drawn.mean() < 0.6
    tokens, mask = torch.zeros(8, 12, dtype=torch.int64), torch.ones(8, 12, dtype=torch.bool)
    values = network(tokens, mask).reactivity[:, 0, 0]
    # 8 equal RNAs, of which each block's state space reads some
    assert 1 < len(values.unique()) <= 4
    assert len(network.eval()(tokens, mask).reactivity[:, 0, 0].unique()) == 1


@pytest.mark.parametrize("mixing", ["gate", "mamba-first"])
def test_a_state_space_in_every_second_block(mixing):
    config = ModelConfig(
        width=16, pair_width=8, blocks=3, heads=2, d_state=4, head_width=8, tasks=("reactivity",), mamba_every=2,
        mamba_drop=0.5, mixing=mixing,
    )  # fmt: skip
    network = RibonanzaMamba(config)
    assert [block.mamba is not None for block in network.blocks] == [True, False, True]
    output = network(torch.zeros(2, 12, dtype=torch.int64), torch.ones(2, 12, dtype=torch.bool))
    (output.reactivity.sum() + output.reactivity_error.sum()).backward()
    # the last pair update is read by nothing here, and what is left out of all RNAs has gradients of zero
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert all("pair_update" in name for name in without)


@torch.no_grad()
@pytest.mark.parametrize("first", ["attention", "mamba"])
def test_one_mixer_after_the_other(first):
    block = mixed(f"{first}-first")
    x, pair, mask, lengths = inputs(7, (7, 4))
    mixers = [lambda h: block.attention(h, pair, mask), lambda h: block.mamba(h, lengths)]
    h = x + block.convolution(x, mask)
    for norm, mixer in zip(
        (block.mixer_norm, block.second_norm), mixers if first == "attention" else mixers[::-1], strict=True
    ):
        h = h + mixer(norm(h))
    h = h + block.feed_out(F.gelu(block.feed_in(block.feed_norm(h))))
    torch.testing.assert_close(block(x, pair, mask, lengths)[0], h)
    assert block.branches == 4


@torch.no_grad()
def test_a_scan_over_the_pair_map_follows_the_update():
    block = mixed("gate", scans_pair=True)
    x, pair, mask, lengths = inputs(7, (7, 4))
    both = mask[:, :, None] & mask[:, None, :]
    h, got = block(x, pair, mask, lengths)
    updated = block.pair_update(h, pair, mask)
    expected = updated + block.pair_scan(block.pair_scan_norm(updated), both)
    torch.testing.assert_close(got, expected)
    alone = block(x[1:, :4], pair[1:, :4, :4], mask[1:, :4], lengths[1:])[1]
    torch.testing.assert_close(got[1, :4, :4], alone[0], rtol=1e-5, atol=1e-5)
