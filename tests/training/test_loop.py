"""The loop: a run on small tables, a stopped run that goes on, and four RNAs learned by heart."""

import itertools
import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ribonanzamamba.data.batch import collate
from ribonanzamamba.data.example import Example
from ribonanzamamba.data.prior import make_prior
from ribonanzamamba.data.store import read_store, write_store
from ribonanzamamba.model.checkpoint import load_checkpoint
from ribonanzamamba.model.heads import PairHead
from ribonanzamamba.model.ribonanzanet import RibonanzaNet, RibonanzaNetConfig
from ribonanzamamba.rna.records import PROBES
from ribonanzamamba.rna.structure import Structure
from ribonanzamamba.training.batches import task_batches, wanted_tasks
from ribonanzamamba.training.config import Config, DataConfig, TrainingConfig, read_config
from ribonanzamamba.training.loop import train
from ribonanzamamba.training.loss import certain, reactivity_loss
from ribonanzamamba.training.optimizer import build_optimizers
from ribonanzamamba.training.step import LOGGED, train_step
from ribonanzamamba.training.tables import read_tables, table_groups

TOML = """
name = "tiny"

[model]
width = 32
pair_width = 16
blocks = 1
heads = 2
d_state = 8
head_width = 16
coordinate_width = 24
coordinate_layers = 1
coordinate_models = 2

[data]
reactivity = ["reactivity.parquet"]
structure = ["structure.parquet"]
coordinates = ["coordinates.parquet"]
tokens = 128
coordinate_tokens = 64
coordinate_max_length = 32
coordinate_steps = 2

[training]
steps = 3
log_steps = 1
valid_steps = 2
warmup_steps = 1
device = "cpu"
"""


@pytest.fixture
def config_path(tables) -> Path:
    path = tables / "tiny.toml"
    path.write_text(TOML)
    return path


@pytest.fixture(autouse=True)
def log_files_closed():
    yield
    package = logging.getLogger("ribonanzamamba")
    for handler in [each for each in package.handlers if isinstance(each, logging.FileHandler)]:
        package.removeHandler(handler)
        handler.close()


def metrics(run: Path) -> tuple[list[dict], list[dict]]:
    """Rows of steps and rows of validations."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "seconds" in row], [row for row in rows if "seconds" not in row]


def test_a_run_writes_its_folder(config_path, tmp_path):
    run = train(config_path, tmp_path / "run")
    assert run == tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names == {"config.json", "versions.json", "run.log", "metrics.jsonl", "checkpoint", "best", "state.pt"}
    steps, scores = metrics(run)
    assert [row["step"] for row in steps] == [1, 2, 3] and [row["step"] for row in scores] == [2, 3]
    assert all(np.isfinite(row["loss/reactivity"]) and np.isfinite(row["loss/gradient_norm"]) for row in steps)
    # every second step has a batch of coordinates
    assert ["loss/coordinates" in row for row in steps] == [True, False, True]
    assert {"valid/mae/DMS", "valid/f1", "valid/tm/best", "valid/lddt/first"} <= set(scores[0])
    network = load_checkpoint(run / "checkpoint").network
    assert network.config.width == 32 and all(p.isfinite().all() for p in network.parameters())


def test_the_average_follows_the_network(config_path, tmp_path):
    overrides = ["training.average_decay=0.0", "training.steps=2"]
    state = torch.load(train(config_path, tmp_path / "run", overrides) / "state.pt", weights_only=True)
    for name, tensor in state["network"].items():
        # the pair head of the average is calibrated at the end
        if not name.startswith("pair_head."):
            torch.testing.assert_close(state["average"][f"module.{name}"], tensor, rtol=1e-6, atol=1e-7, msg=name)


def test_a_stopped_run_goes_on_at_its_step(config_path, tmp_path):
    run = train(config_path, tmp_path / "run", ["training.steps=2"])
    assert torch.load(run / "state.pt", weights_only=True)["run"]["step"] == 2
    before = load_checkpoint(run / "checkpoint").weights_hash
    train(config_path, run, ["training.steps=4"])
    assert [row["step"] for row in metrics(run)[0]] == [1, 2, 3, 4]
    assert torch.load(run / "state.pt", weights_only=True)["run"]["step"] == 4
    assert load_checkpoint(run / "checkpoint").weights_hash != before


def test_a_finished_run_is_left_as_it_is(config_path, tmp_path):
    run = train(config_path, tmp_path / "run", ["training.steps=1"])
    before = (run / "state.pt").read_bytes(), (run / "metrics.jsonl").read_text()
    train(config_path, run, ["training.steps=1"])
    assert ((run / "state.pt").read_bytes(), (run / "metrics.jsonl").read_text()) == before


def test_a_run_starts_from_a_checkpoint(config_path, tmp_path):
    first = train(config_path, tmp_path / "first", ["training.steps=1"])
    overrides = [f"training.start_from={first / 'checkpoint'}", "training.learning_rate=0.0", "training.steps=1"]
    second = train(config_path, tmp_path / "second", overrides)
    got, expected = (load_checkpoint(run / "checkpoint").network.state_dict() for run in (second, first))
    # the pair head is calibrated at the end of each run
    different = {key for key in expected if not torch.equal(got[key], expected[key])}
    assert all(key.startswith("pair_head.") for key in different)


def test_another_network_can_be_trained(config_path, tmp_path):
    def build(config: Config) -> RibonanzaNet:
        return RibonanzaNet(
            RibonanzaNetConfig(width=16, pair_width=8, layers=2, heads=2, outer_width=4, triangle_width=8)
        )

    overrides = ["data.structure=[]", "data.coordinates=[]"]
    run = train(config_path, tmp_path / "run", overrides, build=build)
    steps, scores = metrics(run)
    assert [row["step"] for row in steps] == [1, 2, 3] and "valid/mae/DMS" in scores[-1]
    # it predicts no error of its own
    assert "loss/reactivity" in steps[0] and "loss/reactivity_error" not in steps[0]


def test_the_same_seed_trains_the_same_weights(config_path, tmp_path):
    hashes = [
        load_checkpoint(train(config_path, tmp_path / name, overrides) / "checkpoint").weights_hash
        for name, overrides in (("a", []), ("b", []), ("c", ["training.seed=1"]))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.fixture
def config_with_priors(config_path) -> Path:
    """The same tables in a store that holds a prior, the stem they all have, of every RNA."""
    groups = table_groups(read_config(config_path).data)
    stem = make_prior(np.arange(5), 23 - np.arange(5), np.full(5, 0.9))
    priors = {example.sequence: stem for group in groups.values() for example in group}
    write_store(config_path.with_name("store"), groups, priors)
    path = config_path.with_name("prior.toml")
    path.write_text(TOML.replace("[model]", "[model]\npair_prior = true").replace("[data]", '[data]\nstore = "store"'))
    return path


def test_a_run_with_priors_learns_to_use_them_and_says_what_it_is_worth_without(config_with_priors, tmp_path):
    run = train(config_with_priors, tmp_path / "run")
    assert {"valid/f1", "valid/f1/without_prior"} <= set(metrics(run)[1][0])
    network = load_checkpoint(run / "checkpoint").network
    assert network.prior.pair.weight.any() and network.prior.nucleotide.weight.any()


def test_a_run_is_taught_base_pairs_by_the_priors_that_are_withheld(config_with_priors, tmp_path):
    overrides = ['model.tasks=["reactivity", "structure"]', "data.structure=[]", "data.coordinates=[]"]
    overrides += ["model.pair_prior=false", "data.prior_dropout=1.0", "training.steps=60"]
    plain = train(config_with_priors, tmp_path / "plain", overrides)
    assert "loss/taught_pairs" not in metrics(plain)[0][0]
    steps, _ = metrics(train(config_with_priors, tmp_path / "taught", [*overrides, "loss.taught_pairs=1.0"]))
    assert steps[-1]["loss/taught_pairs"] < 0.7 * steps[0]["loss/taught_pairs"]


@pytest.fixture
def config_with_sequences(config_with_priors) -> Path:
    """A third of each batch are sequences alone, some with a prior."""
    folder = config_with_priors.parent
    (folder / "more.csv").write_text("id,sequence\n" + "".join(f"u{k},{'GCAU' * (5 + k)}\n" for k in range(5)))
    text = config_with_priors.read_text().replace("[data]", '[data]\nunlabelled = ["more.csv"]\nunlabelled_share = 0.4')
    config_with_priors.write_text(text + "\n[loss]\ntaught_pairs = 1.0\n")
    groups = table_groups(read_config(config_with_priors).data)
    priors = {example.sequence: example.prior for group in read_store(folder / "store").values() for example in group}
    alone = groups["unlabelled/0/more.csv/train"]
    stem = make_prior(np.arange(5), 19 - np.arange(5), np.full(5, 0.9))
    write_store(folder / "store", groups, priors | {example.sequence: stem for example in alone[:3]})
    return config_with_priors


def test_sequences_alone_are_their_share_and_always_taught(config_with_sequences):
    config = read_config(config_with_sequences, ["data.prior_dropout=0.0"]).data
    training, _ = read_tables(config)
    assert [len(table) for table in training["unlabelled"]] == [3]
    stream = task_batches(("reactivity", "structure"), training, config, np.random.default_rng(0), torch.device("cpu"))
    alone = count = 0
    for shard in itertools.islice(stream, 200):
        named = torch.tensor([name.startswith("u") for name in shard.ids])
        assert torch.equal(shard.batch.prior_given, ~named)
        alone, count = alone + int(named.sum()), count + len(named)
    assert abs(alone / count - 0.4) < 0.05


def test_a_run_with_sequences_alone(config_with_sequences, tmp_path):
    steps, _ = metrics(train(config_with_sequences, tmp_path / "run", ["data.prior_dropout=0.0"]))
    assert any("loss/taught_pairs" in step for step in steps)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.taught_pairs=0.0"], "loss.taught_pairs"),
        # all tables of the store, which a config without tables takes
        (
            [
                "loss.taught_pairs=0.0",
                "data.unlabelled=[]",
                "data.reactivity=[]",
                "data.structure=[]",
                "data.coordinates=[]",
            ],
            "loss.taught_pairs",
        ),
        (["data.store="], "priors"),
    ],
)
def test_sequences_alone_that_teach_nothing_are_refused(config_with_sequences, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        train(config_with_sequences, tmp_path / "run", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (['model.tasks=["reactivity"]'], "model.tasks"),
        (["data.prior_dropout=0.0"], "data.prior_dropout"),
        (["data.store="], "data.store"),
    ],
)
def test_a_run_that_cannot_be_taught_says_why(config_with_priors, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=f"loss.taught_pairs: .*{message}"):
        train(config_with_priors, tmp_path / "run", ["loss.taught_pairs=1.0", *overrides])


def test_a_run_with_a_prior_input_and_no_priors_does_as_well(config_path, tmp_path):
    run = train(config_path, tmp_path / "run", ["model.pair_prior=true"])
    assert "valid/f1" in metrics(run)[1][0] and "valid/f1/without_prior" not in metrics(run)[1][0]
    assert not load_checkpoint(run / "checkpoint").network.prior.pair.weight.any()


def test_a_run_with_priors_starts_from_a_checkpoint_without(config_path, config_with_priors, tmp_path):
    first = train(config_path, tmp_path / "first", ["training.steps=1"])
    overrides = [f"training.start_from={first / 'checkpoint'}", "training.learning_rate=0.0", "training.steps=1"]
    second = train(config_with_priors, tmp_path / "second", overrides)
    got, expected = (load_checkpoint(run / "checkpoint").network.state_dict() for run in (second, first))
    assert set(got) - set(expected) == {"prior.pair.weight", "prior.nucleotide.weight"}
    different = {key for key in expected if not torch.equal(got[key], expected[key])}
    assert all(key.startswith("pair_head.") for key in different)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_so_many_priors_are_withheld_and_the_rnas_stay_the_same(config_with_priors, share):
    config = read_config(config_with_priors, [f"data.prior_dropout={share}"]).data
    plain = read_config(config_with_priors, ["data.prior_dropout=0.0"]).data
    training, _ = read_tables(config)
    tasks = ("reactivity", "structure")
    streams = [
        task_batches(tasks, training, each, np.random.default_rng(0), torch.device("cpu")) for each in (config, plain)
    ]
    given = count = 0
    for shard, same in itertools.islice(zip(*streams, strict=True), 200):
        assert shard.ids == same.ids and same.batch.prior_given.all()
        batch = shard.batch
        assert batch.prior_known.all() and torch.equal(batch.prior, same.batch.prior)
        given += int(batch.prior_given.sum())
        count += len(batch)
    assert abs(given / count - (1 - share)) < 0.05


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("reactivity", "structure")),
        (["data.structure=[]"], ("reactivity",)),
        (["data.structure=[]", "loss.taught_pairs=1.0"], ("reactivity", "structure")),
        (["data.reactivity=[]", "data.structure=[]"], ()),
        (["data.reactivity=[]", "data.structure=[]", "loss.taught_pairs=1.0"], ()),
    ],
    ids=["both", "reactivity", "taught", "coordinates", "nobody to teach"],
)
def test_a_pass_runs_the_heads_that_something_is_there_for(config_with_priors, overrides, expected):
    config = read_config(config_with_priors, overrides)
    training, _ = read_tables(config.data)
    assert wanted_tasks(("reactivity", "structure"), training, config) == expected
    assert wanted_tasks(("coordinates",), training, config) == ("coordinates",)


def test_a_head_without_examples_is_not_run(config_path, tmp_path, monkeypatch):
    run = []
    forward = PairHead.forward
    monkeypatch.setattr(PairHead, "forward", lambda *inputs: run.append(1) or forward(*inputs))
    train(config_path, tmp_path / "run", ["data.structure=[]", "data.coordinates=[]", "training.steps=2"])
    assert not run
    train(config_path, tmp_path / "both", ["data.coordinates=[]", "training.steps=2"])
    assert run


def data_config(tables: Path, **values) -> DataConfig:
    paths = {task: (str(tables / f"{task}.parquet"),) for task in ("reactivity", "structure", "coordinates")}
    return DataConfig(**paths, **values)


def test_held_out_examples_are_not_trained_on(tables):
    training, held_out = read_tables(data_config(tables))
    assert [[example.id for example in table] for table in training["reactivity"]] == [[f"r{k}" for k in range(6)]]
    assert [example.id for example in held_out.structure] == ["s6", "s7"]
    # cluster 20 is held out, and the chain without any position is nowhere
    assert [example.id for example in training["coordinates"][0]] == ["c0", "c1"]
    assert [example.id for example in held_out.coordinates] == ["c2"]


def test_short_chains_are_left_out(tables):
    training, _ = read_tables(data_config(tables, coordinate_min_length=25))
    assert training["coordinates"] == [[]]


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_share_of_reactivity(tables, share):
    config = data_config(tables, tokens=3200, reactivity_share=share)
    training, _ = read_tables(config)
    rng = np.random.default_rng(0)
    stream = task_batches(("reactivity", "structure"), training, config, rng, torch.device("cpu"))
    ids = [name for batch in itertools.islice(stream, 10) for name in batch.ids]
    # 100 fit into a batch, of which 96 can be divided by eight
    assert len(ids) == 960
    # three standard deviations of as many draws: 0.04
    assert np.mean([name[0] == "r" for name in ids]) == pytest.approx(share, abs=0.04)


def test_shares_of_tables(tables):
    config = data_config(tables, tokens=3200, structure_shares=(0.5, 0.5))
    training, _ = read_tables(config)
    with pytest.raises(ValueError, match="data.structure_shares: expected 1 values, one a table, got 2"):
        task_batches(("structure",), training, config, np.random.default_rng(0), torch.device("cpu"))


STEMS = ("((((((......))))))......", "....(((((.....))))).....", "((((....))))((((....))))", "((((.[[[[..))))...]]]]..")


def made_examples() -> list[Example]:
    """Four RNAs with a stem of their own and reactivities that are high where unpaired."""
    rng = np.random.default_rng(0)
    examples = []
    for k, text in enumerate(STEMS):
        partners = Structure.from_dot_bracket(text).to_partners()
        reactivity = np.full((len(text), len(PROBES)), np.nan, dtype=np.float32)
        reactivity[:, :2] = np.where(partners[:, None] < 0, 0.8, 0.1) + rng.uniform(-0.1, 0.1, (len(text), 2))
        weight = np.where(np.isnan(reactivity), 0, 1).astype(np.float32)
        sequence = "".join(rng.choice(list("ACGU"), len(text)))
        arrays = {"reactivity": reactivity, "reactivity_weight": weight, "partners": partners}
        examples.append(Example(str(k), sequence, k, 1, "made", **arrays))
    return examples


def test_four_rnas_are_learned_by_heart(small_network):
    batch = collate(made_examples())
    config = Config(training=TrainingConfig(learning_rate=3e-3, weight_decay=0.0))
    optimizers = build_optimizers(small_network, config.training)
    for _ in range(150):
        values = dict(
            zip(
                LOGGED, train_step(small_network, optimizers, {("reactivity", "structure"): batch}, config), strict=True
            )
        )
    assert values["reactivity"] < 0.1 and values["structure"] < 0.1
    assert values["coordinates"].isnan(), "no batch of coordinates was given"
    small_network.eval()
    with torch.no_grad():
        output = small_network(batch.tokens, batch.mask)
    error = (output.reactivity - batch.reactivity)[..., :2].abs().mean()
    assert error < 0.1
    for row, text in enumerate(STEMS):
        found = (output.pair_probability[row] > 0.5).nonzero().tolist()
        assert len(found) == sum(letter != "." for letter in text), "each pair twice"


def test_a_shape_is_learned_by_heart(small_network, helix_atoms):
    example = Example("c", "GCAU" * 6, 0, 1, "made", coordinates=helix_atoms.numpy())
    config = Config(training=TrainingConfig(learning_rate=3e-3, weight_decay=0.0))
    optimizers = build_optimizers(small_network, config.training)
    batches = {("coordinates",): collate([example])}
    values = [train_step(small_network, optimizers, batches, config)[LOGGED.index("coordinates")] for _ in range(60)]
    assert values[-1] < 0.6 * values[0]


def test_a_step_changes_every_weight_that_has_a_gradient(small_network):
    before = {name: parameter.detach().clone() for name, parameter in small_network.named_parameters()}
    config = Config(training=TrainingConfig())
    batches = {("reactivity", "structure"): collate(made_examples())}
    train_step(small_network, build_optimizers(small_network, config.training), batches, config)
    same = {name for name, parameter in small_network.named_parameters() if torch.equal(parameter, before[name])}
    assert same == {name for name in before if name.startswith("coordinate_module")}
    assert all(parameter.grad is None for parameter in small_network.parameters())


FIXED = ["data.structure=[]", "data.coordinates=[]", "data.batch_examples=3", "data.reverse_share=0.5"]
"""Reactivity alone, batches of one size, each RNA once an epoch."""


def test_fixed_batches_are_the_same_for_every_network(config_path):
    def ids(*overrides: str) -> list[tuple[str, ...]]:
        data = read_config(config_path, [*FIXED, *overrides]).data
        training, _ = read_tables(data)
        stream = task_batches(("reactivity",), training, data, np.random.default_rng([0, 0]), torch.device("cpu"))
        return [next(stream).ids for _ in range(4)]

    assert ids() == ids("data.pad_multiple=7", "data.tokens=999999", "data.prior_dropout=0.0")
    assert sorted(itertools.chain(*ids()[:2])) == [f"r{k}" for k in range(6)]


def test_structures_are_not_read_from_the_other_end(tables):
    """With reactivity in one batch."""
    config = data_config(tables, tokens=3200, reverse_share=1.0)
    training, _ = read_tables(config)
    stream = task_batches(("reactivity", "structure"), training, config, np.random.default_rng(0), torch.device("cpu"))
    examples = {example.id: example for task in ("reactivity", "structure") for example in training[task][0]}
    shard = next(stream)
    assert {name[0] for name in shard.ids} == {"r", "s"}
    for row, name in enumerate(shard.ids):
        sequence = examples[name].sequence[:: -1 if name[0] == "r" else 1]
        expected = ["ACGU".index(letter) for letter in sequence]
        assert shard.batch.tokens[row, : len(sequence)].tolist() == expected


def test_some_rnas_are_read_from_the_other_end(config_path):
    data = read_config(config_path, [*FIXED, "data.reverse_share=1.0"]).data
    training, _ = read_tables(data)
    shard = next(task_batches(("reactivity",), training, data, np.random.default_rng(0), torch.device("cpu")))
    examples = {example.id: example for example in training["reactivity"][0]}
    for row, name in enumerate(shard.ids):
        length = examples[name].length
        expected = torch.from_numpy(examples[name].reactivity[::-1].astype(np.float32))
        torch.testing.assert_close(shard.batch.reactivity[row, :length], expected, equal_nan=True)


def test_a_batch_in_parts_is_the_same_step(config_path, tmp_path):
    # without dropout; sums in another order are all that differs
    settings = [*FIXED, "model.dropout=0.0", "training.steps=2", "data.tokens=256"]
    runs = [
        train(config_path, tmp_path / f"run{size}", [*settings, f"training.pass_examples={size}"]) for size in (0, 2)
    ]
    weights = [torch.load(run / "state.pt", weights_only=True)["network"] for run in runs]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=2e-4, msg=name)


def test_only_steps_count(config_path, tmp_path, monkeypatch):
    """Of a run whose validation and warm-up take long, the minutes are those of its steps."""
    from ribonanzamamba.training import loop

    def slow(*arguments):
        time.sleep(0.6)
        return {"mae/2A3": 0.5}

    def slow_batches(*arguments):
        time.sleep(0.6)
        yield from warm_up_batches(*arguments)

    warm_up_batches = loop.warm_up_batches
    monkeypatch.setattr(loop, "validate", slow)
    monkeypatch.setattr(loop, "warm_up_batches", slow_batches)
    settings = [*FIXED, "training.steps_only=true", "training.valid_steps=1", "training.steps=3"]
    run = train(config_path, tmp_path / "run", settings)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 0 and rows[0]["warm_up_seconds"] > 0.6
    steps = [row["seconds"] for row in rows if "seconds" in row]
    assert steps[-1] - steps[0] < 1.2, "two validations stand between them"
    whole = train(config_path, tmp_path / "whole", [each for each in settings if "steps_only" not in each])
    first, *_, last = [row["seconds"] for row in metrics(whole)[0]]
    assert last - first > 1.2


def test_reactivities_that_are_certain_can_count_alike(config_path, tmp_path):
    data = read_config(config_path, FIXED).data
    batch = collate(read_tables(data)[0]["reactivity"][0])
    value = torch.zeros_like(batch.reactivity)
    target, weight = certain(batch)
    assert torch.equal(weight > 0, batch.reactivity_weight >= 0.5)
    loss, _ = reactivity_loss(value, None, target, weight)
    expected = torch.stack([row.clamp(0, 1)[~row.isnan()].mean() for row in target]).mean()
    torch.testing.assert_close(loss, expected)
