"""Presets by name and their tables of shapes."""

import pytest

from ribonanzamamba.model.checkpoint import RELEASED, load_checkpoint
from ribonanzamamba.model.preset import BASELINE, build_preset, preset_names, preset_shapes


def test_names_are_the_released_and_the_baseline():
    assert preset_names() == (RELEASED, BASELINE)


def test_released_has_the_sizes_of_its_weights():
    weights = load_checkpoint().network.state_dict()
    assert {k: v.shape for k, v in build_preset().state_dict().items()} == {k: v.shape for k, v in weights.items()}


@pytest.mark.parametrize(("name", "parameters"), [(RELEASED, 15_463_691), (BASELINE, 11_296_898)])
def test_table_of_every_module(name, parameters):
    table = preset_shapes(name, batch=2, length=31)
    assert table.modules[0].parameters == parameters == sum(parameter.count for parameter in table.parameters)
    assert [str(tensor) for tensor in table.modules[0].inputs] == ["tokens (2, 31)", "mask (2, 31)"]
    assert [parameter.name for parameter in table.parameters if not parameter.meaning] == []
    assert [row.kind for row in table.modules if not row.meaning] == []


def test_no_length_costs_memory():
    table = preset_shapes(batch=64, length=4000)
    assert max(row.output_bytes for row in table.modules) > 2**37


def test_unknown_preset():
    with pytest.raises(FileNotFoundError, match="no model.json at nothing: expected .* ribonanzamamba-2, ribonanzanet"):
        build_preset("nothing")
