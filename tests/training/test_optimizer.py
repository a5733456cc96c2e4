"""Who gets which optimizer, the schedule, and averaged weights."""

import pytest
import torch

from ribonanzamamba.training.config import TrainingConfig
from ribonanzamamba.training.muon import Muon
from ribonanzamamba.training.optimizer import averaged, build_optimizers, learning_rate_share, set_learning_rate


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "radam"])
def test_every_parameter_has_one_optimizer(small_network, optimizer):
    optimizers = build_optimizers(small_network, TrainingConfig(optimizer=optimizer))
    taken = [id(p) for each in optimizers for group in each.param_groups for p in group["params"]]
    assert sorted(taken) == sorted(id(p) for p in small_network.parameters())
    assert [type(each) for each in optimizers] == [torch.optim.AdamW, *([Muon] if optimizer == "muon" else [])]


def test_muon_gets_the_matrices_of_the_trunk(small_network):
    _, muon = build_optimizers(small_network, TrainingConfig())
    got = {id(p) for group in muon.param_groups for p in group["params"]}
    block = small_network.blocks[1]
    assert {id(block.mamba.in_proj.weight), id(block.attention.qkv.weight), id(block.gate.weight)} <= got
    others = (small_network.nucleotide.weight, block.mamba.conv_weight, small_network.reactivity_head.out.weight)
    assert got.isdisjoint(id(p) for p in others)


def test_gains_and_biases_do_not_decay(small_network):
    adamw, _ = build_optimizers(small_network, TrainingConfig(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    mamba = small_network.blocks[0].mamba
    assert {decay[id(p)] for p in (mamba.A_log, mamba.dt_bias, mamba.D, mamba.norm.weight)} == {0.0}
    assert {decay[id(p)] for p in (mamba.conv_weight, small_network.offset.weight)} == {0.3}


def test_unknown_optimizer(small_network):
    with pytest.raises(ValueError, match="training.optimizer: expected one of .*, got 'sgd'"):
        build_optimizers(small_network, TrainingConfig(optimizer="sgd"))


@pytest.mark.parametrize(
    ("step", "progress", "share"),
    [
        (0, 0.0, 0.01),
        (49, 0.1, 0.5),
        (99, 0.2, 1.0),
        (500, 0.75, 1.0),
        (900, 0.875, 0.5),
        (1000, 1.0, 0.0),
        (1000, 1.5, 0.0),
        (49, 0.875, 0.25),
    ],
    ids=["first", "warming", "warm", "before-decay", "decaying", "over", "late", "both"],
)
def test_schedule(step, progress, share):
    config = TrainingConfig(warmup_steps=100, decay_share=0.25)
    assert learning_rate_share(step, progress, config) == pytest.approx(share)


def test_schedule_without_warmup_or_decay():
    config = TrainingConfig(warmup_steps=0, decay_share=0.0)
    assert [learning_rate_share(step, step / 10, config) for step in (0, 5, 9)] == [1, 1, 1]


def test_muon_rate_is_a_multiple(small_network):
    config = TrainingConfig(matrix_rate=3.0)
    optimizers = build_optimizers(small_network, config)
    set_learning_rate(optimizers, 0.5, config)
    rates = [{group["lr"] for group in optimizer.param_groups} for optimizer in optimizers]
    assert rates == [{0.5}, {1.5}]


def test_average_is_exponential(small_network):
    average = averaged(small_network, 0.9)
    expected = None
    for value in (1.0, 2.0, 5.0):
        small_network.nucleotide.weight.data.fill_(value)
        average.update_parameters(small_network)
        expected = value if expected is None else 0.9 * expected + 0.1 * value
    torch.testing.assert_close(average.module.nucleotide.weight, torch.full((5, 32), expected))


def test_cosine_decay():
    config = TrainingConfig(warmup_steps=0, decay_share=0.5, decay="cosine")
    shares = [learning_rate_share(9, progress, config) for progress in (0.2, 0.5, 0.625, 0.75, 1.0)]
    assert shares == pytest.approx([1.0, 1.0, (1 + 0.5**0.5) / 2, 0.5, 0.0])


def test_radam_is_that_of_pytorch():
    """With the first steps, in which PyTorch's takes momentum steps, at a rate of 0, both end at the same weights."""
    config = TrainingConfig(optimizer="radam", warmup_steps=0, weight_decay=0.0, learning_rate=0.01)
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)) for _ in range(2))
    network = torch.nn.Module()
    network.weight = ours
    [optimizer] = build_optimizers(network, config)
    reference = torch.optim.RAdam([theirs], lr=config.learning_rate)
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        share = learning_rate_share(step, 0.0, config)
        set_learning_rate([optimizer], config.learning_rate * share, config)
        reference.param_groups[0]["lr"] = config.learning_rate if share else 0.0
        for parameter in (ours, theirs):
            parameter.grad = torch.randn(2, 3, generator=generator.manual_seed(step))
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ours, torch.linspace(-1, 1, 6).view(2, 3))


def test_unknown_decay(small_network):
    with pytest.raises(ValueError, match="training.decay: expected one of .*, got 'steps'"):
        build_optimizers(small_network, TrainingConfig(decay="steps"))
