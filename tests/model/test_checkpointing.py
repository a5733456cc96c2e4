"""Activation checkpointing changes memory and time, and not a bit of the loss or of any gradient."""

import pytest
import torch

from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba


def value_and_gradients(network, mode: str):
    network.checkpoint_activations(mode)
    network.train().zero_grad(set_to_none=True)
    torch.manual_seed(3)
    tokens = torch.randint(0, 4, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(20) < torch.tensor([[20], [13], [7]])
    output = network(tokens, mask)
    fields = (
        output.reactivity,
        output.pair_logit.clamp(min=-10),
        output.coordinates,
        output.plddt_logit,
        output.distance_logit,
    )
    loss = sum(field.square().mean() for field in fields)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}, output


@pytest.mark.parametrize("mode", ["pair", "all"])
@pytest.mark.parametrize("values", [{"mamba_drop": 0.5}, {"mixing": "mamba-first", "pair_scans": 1}], ids=str)
def test_no_bit_changes_with_dropout_on(mode, values):
    torch.manual_seed(0)
    config = ModelConfig(
        width=32, pair_width=16, blocks=3, heads=2, d_state=8, head_width=16, coordinate_width=24, dropout=0.3, **values
    )
    network = RibonanzaMamba(config)
    loss, gradients, _ = value_and_gradients(network, "off")
    again, same, _ = value_and_gradients(network, mode)
    assert torch.equal(loss, again)
    assert gradients.keys() == same.keys() and len(gradients) > 100
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)
    torch.manual_seed(4)
    other = network(torch.zeros(1, 20, dtype=torch.int64), torch.ones(1, 20, dtype=torch.bool)).reactivity
    assert not torch.equal(
        other, network(torch.zeros(1, 20, dtype=torch.int64), torch.ones(1, 20, dtype=torch.bool)).reactivity
    )


def test_fewer_activations_are_kept():
    network = RibonanzaMamba(
        ModelConfig(width=32, pair_width=16, blocks=3, heads=2, d_state=8, head_width=16, coordinate_width=24)
    )

    def kept(mode: str) -> int:
        seen = {}

        def keep(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network.checkpoint_activations(mode)
            network.train()(torch.zeros(2, 40, dtype=torch.int64), torch.ones(2, 40, dtype=torch.bool), ("structure",))
        return sum(seen.values())

    off, pair, every = (kept(mode) for mode in ("off", "pair", "all"))
    assert every < pair < off / 2


def test_unknown_mode():
    network = RibonanzaMamba(ModelConfig(width=16, pair_width=8, blocks=1, heads=2, head_width=16))
    with pytest.raises(ValueError, match=r"checkpointing: expected one of \('off', 'pair', 'all'\), got 'some'"):
        network.checkpoint_activations("some")
