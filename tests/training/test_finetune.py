"""Fine-tuning: what a run starts from, what it leaves alone, and the example from table to better predictions."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from ribonanzamamba.data.batch import collate
from ribonanzamamba.data.reactivity_table import read_reactivity_table
from ribonanzamamba.model.checkpoint import load_checkpoint
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.rna.records import PROBES
from ribonanzamamba.training.loop import train
from ribonanzamamba.training.start import freeze, load_what_fits

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune"
PROBE = PROBES.index("NAI_incell")


def error(network: RibonanzaMamba, examples) -> float:
    batch = collate(examples)
    with torch.no_grad():
        value = network(batch.tokens, batch.mask, ("reactivity",)).reactivity[..., PROBE].clamp(0, 1)
    target = batch.reactivity[..., PROBE]
    return (value - target.clamp(0, 1)).abs()[~target.isnan()].mean().item()


def mean_errors(train_examples, valid_examples) -> tuple[float, float]:
    """Of two profiles without a network: the mean of each position, and the mean of each letter, over the training."""
    longest = max(example.length for example in [*train_examples, *valid_examples])
    columns = [[] for _ in range(longest)]
    letters = {letter: [] for letter in "ACGU"}
    for example in train_examples:
        for position, value in enumerate(example.reactivity[:, PROBE].clip(0, 1).tolist()):
            columns[position].append(value)
            letters[example.sequence[position]].append(value)
    everything = np.mean([value for column in columns for value in column])
    by_position = [np.mean(column) if column else everything for column in columns]
    by_letter = {letter: np.mean(values) for letter, values in letters.items()}
    difference = {"position": [], "letter": []}
    for example in valid_examples:
        for position, value in enumerate(example.reactivity[:, PROBE].clip(0, 1).tolist()):
            difference["position"].append(abs(by_position[position] - value))
            difference["letter"].append(abs(by_letter[example.sequence[position]] - value))
    return float(np.mean(difference["position"])), float(np.mean(difference["letter"]))


def test_twenty_rows_beat_the_mean_profile(tmp_path):
    settings = ['training.start_from="released"', 'training.freeze=["trunk"]']
    run = train(EXAMPLE / "finetune.toml", tmp_path / "run", settings)
    trained, valid = (read_reactivity_table(EXAMPLE / "reactivity.csv", split) for split in ("train", "valid"))
    assert (len(trained), len(valid)) == (14, 6)
    released, tuned = load_checkpoint().network, load_checkpoint(run / "checkpoint").network
    before, after = error(released, valid), error(tuned, valid)
    by_position, by_letter = mean_errors(trained, valid)
    print(
        f"released {before:.3f}, fine-tuned {after:.3f}, mean by position {by_position:.3f}, by letter {by_letter:.3f}"
    )
    assert after < 0.6 * min(before, by_position, by_letter)
    same = released.state_dict()
    # the checkpoint rounds to bfloat16, as the released weights are
    assert all(torch.equal(tensor, same[name]) for name, tensor in tuned.state_dict().items() if "blocks" in name)


def test_what_is_new_keeps_its_values(small_network, small_config, caplog):
    logging.getLogger("ribonanzamamba").setLevel(logging.INFO)
    other = RibonanzaMamba(ModelConfig.from_dict(small_config.to_dict() | {"blocks": 3}))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    load_what_fits(other, small_network.state_dict(), "here")
    loaded = small_network.state_dict()
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, loaded[name] if name in loaded else before[name]), name
    assert "new, with initial values: blocks.2.attention.bias.weight" in caplog.text
    caplog.clear()
    load_what_fits(small_network, other.state_dict(), "here")
    assert "unused: blocks.2." in caplog.text


def test_another_shape_is_refused(small_network, small_config):
    other = RibonanzaMamba(ModelConfig.from_dict(small_config.to_dict() | {"probes": ("2A3",)}))
    with pytest.raises(
        ValueError, match=r"here: reactivity_head.out.\w+: expected \(2\D.* as the config says, got \(20"
    ):
        load_what_fits(other, small_network.state_dict(), "here")
    with pytest.raises(ValueError, match="none of its 1 weights is one of the network's"):
        load_what_fits(small_network, {"something": torch.zeros(1)}, "here")


def test_frozen_parts(small_network):
    freeze(small_network, ["trunk", "pair_head.norm"])
    trained = {name.split(".")[0] for name, p in small_network.named_parameters() if p.requires_grad}
    assert trained == {"reactivity_head", "pair_head", "coordinate_module"}
    assert (
        not small_network.pair_head.norm.weight.requires_grad and small_network.pair_head.pair_norm.weight.requires_grad
    )


def test_a_part_that_is_not_there(small_network):
    with pytest.raises(ValueError, match="no parameter of 'head'; expected trunk, or one of .*'pair_head'"):
        freeze(small_network, ["head"])
    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze(small_network, ["trunk", "reactivity_head", "pair_head", "coordinate_module"])
