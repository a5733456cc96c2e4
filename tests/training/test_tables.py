"""Training reads the same from a prepared store as from the tables."""

import numpy as np
import pytest

from ribonanzamamba.baselines import folding
from ribonanzamamba.data.prior import make_prior, write_priors
from ribonanzamamba.model.config import TASKS
from ribonanzamamba.rna.records import PROBES
from ribonanzamamba.training.config import read_config
from ribonanzamamba.training.tables import prepare_store, read_tables, table_groups

CONFIG = """
[data]
reactivity = ["reactivity.parquet"]
structure = ["structure.parquet"]
coordinates = ["coordinates.parquet"]
"""


@pytest.fixture
def config_path(tables):
    path = tables / "config.toml"
    path.write_text(CONFIG)
    return path


def test_a_store_gives_what_the_tables_give(config_path, tables):
    prepare_store(config_path, tables / "store")
    from_tables = read_tables(read_config(config_path).data)
    from_store = read_tables(read_config(config_path, ["data.store=store"]).data)
    for task in TASKS:
        lists = from_tables[0][task]
        held_out = [getattr(part[1], task) for part in (from_tables, from_store)]
        for expected, got in [*zip(lists, from_store[0][task], strict=True), held_out]:
            assert [example.id for example in got] == [example.id for example in expected]
            for a, b in zip(expected, got, strict=True):
                assert (a.sequence, a.cluster, a.dataset, b.prior) == (b.sequence, b.cluster, b.dataset, None)
                for name in ("reactivity", "reactivity_weight", "partners"):
                    if getattr(a, name) is not None:
                        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
                if a.coordinates is not None:
                    difference = a.coordinates - b.coordinates
                    np.testing.assert_allclose(difference - difference[0, 0], 0, atol=0.011)
    # as much is held out as before, and the store alone names its tables
    alone = config_path.with_name("alone.toml")
    alone.write_text('[data]\nstore = "store"\n')
    assert [len(table) for table in read_tables(read_config(alone).data)[0]["structure"]] == [6]


def test_settings_of_the_config_hold_for_a_store(config_path, tables):
    prepare_store(config_path, tables / "store")
    data = read_config(config_path, ["data.store=store", "data.coordinate_min_length=25"]).data
    assert read_tables(data)[0]["coordinates"] == [[]]


def test_a_store_of_other_tables_is_refused(config_path, tables):
    prepare_store(config_path, tables / "store")
    with pytest.raises(ValueError, match="holds reactivity.parquet, structure.parquet, coordinates.parquet"):
        read_tables(read_config(config_path, ['data.structure=["other.parquet"]', "data.store=store"]).data)


def test_priors_that_are_there_are_used_without_computing(config_path, tables):
    sequence = read_tables(read_config(config_path).data)[0]["structure"][0][0].sequence
    folder = tables / "priors"
    folder.mkdir()
    write_priors(folder / "prior-00001.npz", [sequence], [make_prior(np.array([0]), np.array([23]), np.array([0.5]))])
    prepare_store(config_path, tables / "store", folder, workers=0)
    training, _ = read_tables(read_config(config_path, ["data.store=store"]).data)
    known = [example.prior is not None for table in training.values() for examples in table for example in examples]
    # of this sequence there are a reactivity, a structure and a chain
    assert sum(known) == 3
    assert training["structure"][0][0].prior.j.tolist() == [23]


def test_sequences_alone_are_those_of_no_other_split_and_not_too_long(config_path, tables):
    training, held_out = read_tables(read_config(config_path).data)
    trained, valid = training["structure"][0][0].sequence, held_out.structure[0].sequence
    chain = training["coordinates"][0][0].sequence
    others = ["G" * 10, "A" * 201, "U" * 200]
    rows = "".join(f"u{k},{each}\n" for k, each in enumerate([trained, valid, *others, chain]))
    (tables / "more.csv").write_text("id,sequence\n" + rows)
    overrides = ['data.unlabelled=["more.csv"]']
    groups = table_groups(read_config(config_path, overrides).data)
    # of these tables a chain has the sequence of an RNA in training
    expected = [each for each in (trained, *others[::2]) if each != chain]
    assert [each.sequence for each in groups["unlabelled/0/more.csv/train"]] == expected
    # those without a prior teach nothing
    assert read_tables(read_config(config_path, overrides).data)[0]["unlabelled"] == [[]]
    config_path.write_text(config_path.read_text() + 'unlabelled = ["more.csv"]\n')
    folder = tables / "priors"
    folder.mkdir()
    write_priors(folder / "prior-00001.npz", [others[0]], [make_prior(np.array([0]), np.array([9]), np.array([0.5]))])
    prepare_store(config_path, tables / "store", folder, workers=0)
    training, _ = read_tables(read_config(config_path, ["data.store=store"]).data)
    assert [[each.sequence for each in table] for table in training["unlabelled"]] == [[others[0]]]


@pytest.mark.skipif(not folding.available(), reason="ViennaRNA is not installed")
def test_missing_priors_are_computed(config_path, tables):
    prepare_store(config_path, tables / "store", tables / "priors")
    training, held_out = read_tables(read_config(config_path, ["data.store=store"]).data)
    assert all(example.prior is not None for example in [*training["structure"][0], *held_out.structure])


def test_only_the_probes_of_the_network(config_path):
    data = read_config(config_path).data
    everything, one = read_tables(data)[0]["reactivity"][0], read_tables(data, ("DMS",))[0]["reactivity"][0]
    having = [example for example in everything if not np.isnan(example.reactivity[:, PROBES.index("DMS")]).all()]
    assert [example.id for example in one] == [example.id for example in having] and len(one) < len(everything)
    for example, whole in zip(one, having, strict=True):
        np.testing.assert_array_equal(example.reactivity[:, 0], whole.reactivity[:, PROBES.index("DMS")])
        assert example.reactivity.shape == example.reactivity_weight.shape == (example.length, 1)
    with pytest.raises(ValueError, match=r"model.probes: expected some of .*, got \['XYZ'\]"):
        read_tables(data, ("XYZ",))


def test_of_a_store_the_tables_of_the_config_are_used(config_path, tables):
    prepare_store(config_path, tables / "store")
    overrides = ["data.structure=[]", "data.coordinates=[]", "data.store=store"]
    training, held_out = read_tables(read_config(config_path, overrides).data)
    assert [len(table) for table in training["reactivity"]] == [6] and len(held_out.reactivity) == 2
    assert training["structure"] == training["coordinates"] == [] and held_out.structure == []


def test_examples_without_signal_are_left_out(config_path):
    # a signal to noise of 5 is a weight of 5/6
    for least, left in ((0.5, 6), (0.9, 0)):
        data = read_config(config_path, [f"data.reactivity_least_weight={least}"]).data
        assert [len(table) for table in read_tables(data)[0]["reactivity"]] == [left]
