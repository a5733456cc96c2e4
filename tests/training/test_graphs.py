"""Recorded passes. A CPU has no graphs: here a stand-in runs the pass where a graph would be played back; that nothing
in a pass is beyond a graph is tested by what it asks PyTorch for. The last test records for real, on a GPU."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ribonanzamamba.data.batch import Batch
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import CHECKPOINTING, RibonanzaMamba
from ribonanzamamba.training import graphs, loop
from ribonanzamamba.training.config import Config, LossConfig, TrainingConfig
from ribonanzamamba.training.graphs import Recorded, RecordedEnd, StepGraphs
from ribonanzamamba.training.optimizer import averaged, build_optimizers, device_rates, read_from, set_learning_rate
from ribonanzamamba.training.processes import ALONE, Processes
from ribonanzamamba.training.step import LOGGED, TERMS, add_gradients, end_step, train_step, whole_counts

BOTH = ("reactivity", "structure")
SHAPE = ("coordinates",)
SMALL = ModelConfig(
    width=32, pair_width=16, blocks=2, heads=2, d_state=8, head_width=16,
    coordinate_width=24, coordinate_layers=2, coordinate_models=2, pair_prior=True, helices=True,
)  # fmt: skip


def made_network(device: str = "cpu") -> RibonanzaMamba:
    torch.manual_seed(0)
    return RibonanzaMamba(SMALL).to(device)


def made_batch(
    examples: int, length: int, seed: int, tasks: tuple[str, ...] = BOTH, *, prior: bool = True, device: str = "cpu"
) -> Batch:
    """Random RNAs of up to `length` nucleotides with what the tasks need."""
    generator = torch.Generator().manual_seed(seed)
    shape = (examples, length)

    def random(*more: int) -> torch.Tensor:
        return torch.rand(*shape, *more, generator=generator)

    lengths = torch.randint(length // 2, length + 1, (examples,), generator=generator)
    mask = torch.arange(length) < lengths[:, None]
    probes = len(SMALL.probes)
    measured = {}
    if "reactivity" in tasks:
        measured["reactivity"] = random(probes).masked_fill(~mask[..., None], float("nan"))
        measured["reactivity_weight"] = random(probes) * mask[..., None]
    if "structure" in tasks:
        measured["partners"] = torch.where(mask, -1, -2)
    if "coordinates" in tasks:
        measured["coordinates"] = (20 * random(4, 3)).masked_fill(~mask[..., None, None], float("nan"))
    if prior:
        p = random(length) / length
        measured["prior"] = (p + p.mT) * mask[:, :, None] * mask[:, None, :]
        measured["prior_known"] = torch.ones(examples, dtype=torch.bool)
        measured["prior_given"] = torch.arange(examples) % 2 == 0
    tokens = torch.randint(0, 4, shape, generator=generator).masked_fill(~mask, 4)
    return Batch(("",) * examples, tokens, mask, **measured).to(device)


class Played(StepGraphs):
    """Runs a pass over the recorded tensors where the GPU would."""

    def record(self, batch, counts, forward):
        own, own_counts = batch.clone(), counts.clone()
        # recording runs nothing: neither gradients nor random numbers change
        before = [gradient.clone() for gradient in self.sums]
        with torch.random.fork_rng():
            values, used = self.pass_over(own, own_counts, forward)
        torch._foreach_copy_(self.sums, before)

        def replay() -> None:
            values.copy_(self.pass_over(own, own_counts, forward)[0])

        return Recorded(replay, own, own_counts, values.fill_(float("nan")), used)

    def record_end(self, values, optimizers, end):
        own, rates = torch.full_like(values, float("nan")), device_rates(optimizers)
        row = torch.full((len(LOGGED),), float("nan"))
        # a graph reads nothing else: the rates of the moment are those of the recording
        at = [rate.fill_(float("nan")) for rate in rates]

        def replay() -> None:
            with read_from(at, optimizers):
                row.copy_(end(own))

        return RecordedEnd(replay, own, rates, row)


class Asked(TorchDispatchMode):
    """The names of all operations that read a value from the device or copy one from the host."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_") else ()
        if name in self.REFUSED or any(index is not None and index.dtype == torch.bool for index in indices):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def step_values(network, batches, graphs=None, config=None) -> list[torch.Tensor]:
    """Rows of some steps of different learning rates, then the weights and their averages."""
    config = config or Config(training=TrainingConfig(warmup_steps=1))
    optimizers = build_optimizers(network, config.training)
    average = averaged(network, 0.75)
    rows = []
    for number, step in enumerate(batches):
        torch.manual_seed(number)
        # float32 holds them as they are
        set_learning_rate(optimizers, 2.0 ** -(9 + number % 2), config.training)
        rows.append(train_step(network, optimizers, step, config, graphs=graphs, average=average))
    assert average.n_averaged == len(rows)
    return [*rows, *network.parameters(), *average.module.parameters()]


@pytest.mark.parametrize("tasks", [BOTH, SHAPE])
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_nothing_in_a_pass_waits_for_the_device(tasks, prior, checkpointing):
    batch = made_batch(4, 24, seed=0, tasks=tasks, prior=prior)
    config = Config(loss=LossConfig(taught_pairs=1.0))
    counts = whole_counts(batch, ALONE)
    network = made_network().train()
    network.checkpoint_activations(checkpointing)
    with Asked() as asked:
        add_gradients(network, tasks, batch, config, counts)
    assert asked.names == []


def test_nothing_in_the_end_of_a_step_waits_for_the_device():
    network = made_network().train()
    optimizers, average = build_optimizers(network, TrainingConfig()), averaged(network, 0.75)
    values = torch.zeros(len(TERMS) + 1)
    for _ in range(2):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        with read_from(device_rates(optimizers), optimizers), Asked() as asked:
            end_step(network, optimizers, average, values, Config())
    # the number of updates so far, which the host holds
    assert asked.names == ["_local_scalar_dense"]
    assert average.n_averaged.device.type == "cpu"
    assert all(isinstance(group["lr"], float) for optimizer in optimizers for group in optimizer.param_groups)


def test_the_test_would_see_it():
    with Asked() as asked:
        torch.ones(3).sum().item()
        torch.tensor([1.0])
        torch.ones(3)[torch.ones(3, dtype=torch.bool)]
    assert asked.names == ["_local_scalar_dense", "lift_fresh", "index"]


def test_steps_are_the_same():
    """Two passes, three shapes, one of them once, and a batch that is not finite."""
    steps = [{BOTH: made_batch(4, 24, seed=k), SHAPE: made_batch(2, 24, seed=k, tasks=SHAPE)} for k in range(4)]
    steps.insert(2, {BOTH: made_batch(3, 16, seed=9)})
    steps.insert(3, {BOTH: made_batch(4, 24, seed=10)})
    steps[3][BOTH].reactivity_weight[0, 0, 0] = float("nan")
    results = []
    for recorded in (False, True):
        network = made_network()
        results.append(step_values(network, steps, Played(network) if recorded else None))
    assert results[0][3][-1] == 1
    for plain, played in zip(*results, strict=True):
        assert torch.equal(plain.nan_to_num(), played.nan_to_num())


def test_parts_of_a_batch_are_added():
    config = Config(training=TrainingConfig(pass_examples=2, warmup_steps=1))
    steps = [{BOTH: made_batch(5, 24, seed=k)} for k in range(3)]
    results = []
    for recorded in (False, True):
        network = made_network()
        results.append(step_values(network, steps, Played(network) if recorded else None, config))
    for plain, played in zip(*results, strict=True):
        assert torch.equal(plain.nan_to_num(), played.nan_to_num())


def test_a_task_without_a_gradient_leaves_its_weights_alone():
    network = made_network()
    head = [parameter.clone() for parameter in network.pair_head.parameters()]
    tasks = ("reactivity",)
    step_values(network, [{tasks: made_batch(4, 24, seed=k, tasks=tasks)} for k in range(4)], Played(network))
    assert all(map(torch.equal, head, network.pair_head.parameters()))


def test_shapes_beyond_the_limit_run_without(monkeypatch, caplog):
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    network = made_network()
    played = Played(network)
    for length in (16, 24, 32):
        step_values(network, [{BOTH: made_batch(2, length, seed=k)} for k in range(3)], played)
    assert len(played.recorded) == 1
    assert caplog.text.count("more than 1 shapes") == 1


def test_divided_weights_are_refused(tmp_path, monkeypatch):
    @contextmanager
    def joined(*arguments):
        yield Processes(torch.device("cpu"), 0, 2, shards=True)

    monkeypatch.setattr(loop, "joined", joined)
    with pytest.raises(ValueError, match=r"training\.graphs: .* not with parallel = shard"):
        loop.train_config(Config(training=TrainingConfig(graphs=True)), tmp_path / "run")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_a_gpu_plays_back_the_same_numbers(bfloat16, checkpointing):
    """Dropout on: the random numbers are those of the seed before the step. Gradients of embeddings and of cuDNN's
    convolution are sums in no fixed order: played back, steps differ no more than twice made one by one."""
    config = Config(training=TrainingConfig(bfloat16=bfloat16, warmup_steps=1))
    steps = [
        {BOTH: made_batch(4, 48, seed=k, device="cuda"), SHAPE: made_batch(2, 32, seed=k, tasks=SHAPE, device="cuda")}
        for k in range(5)
    ]
    steps.insert(3, {BOTH: made_batch(3, 16, seed=9, device="cuda")})
    results = []
    for recorded in (False, False, True):
        network = made_network("cuda")
        assert SMALL.dropout > 0
        network.checkpoint_activations(checkpointing)
        graphs = StepGraphs(network) if recorded else None
        rows = step_values(network, steps, graphs, config)[: len(steps)]
        results.append(torch.stack(rows).nan_to_num().double())
    assert len(graphs.recorded) == 2
    plain, again, played = results
    spread = (plain - again).abs().max(0).values
    assert ((plain - played).abs() <= 10 * spread + 1e-3 * plain.abs()).all()
