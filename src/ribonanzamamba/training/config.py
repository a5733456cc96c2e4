"""One training run as one TOML file."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ribonanzamamba.model.config import ModelConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Tables and how they are sampled."""

    reactivity: tuple[str, ...] = ()
    """Reactivity tables; paths relative to the TOML file."""
    structure: tuple[str, ...] = ()
    """Tables of base pairs; likewise."""
    coordinates: tuple[str, ...] = ()
    """Tables of 3D coordinates; likewise."""
    unlabelled: tuple[str, ...] = ()
    """Tables of sequences alone, whose priors teach the network (`loss.taught_pairs`); likewise."""
    store: str = ""
    """Folder that `prepare` made of these tables (and maybe others), relative to the TOML file, read in their place;
    empty: none."""
    reactivity_shares: tuple[float, ...] = ()
    """Share of the batches' examples drawn from each reactivity table; empty: in proportion to their clusters."""
    structure_shares: tuple[float, ...] = ()
    """The same for each structure table."""
    reactivity_least_weight: float = 0.0
    """Training examples whose reactivity has nowhere this much weight are left out; 0.5 is a signal to noise of 1."""
    reactivity_share: float = 0.5
    """Share of reactivity among the examples of a batch; the rest are structures."""
    unlabelled_share: float = 0.25
    """Share of the examples of a batch that are of `unlabelled`; the others share the rest."""
    unlabelled_max_length: int = 200
    """Longer sequences of `unlabelled` are left out, nucleotides: their priors take long to compute."""
    reactivity_cluster_power: float = 0.25
    """Sampling weight of an example: size of its cluster to minus this power; 0 samples
    all evenly. Small for reactivity, where
    clusters hold whole viral genomes in tiles."""
    structure_cluster_power: float = 0.5
    """The same for structures."""
    coordinate_cluster_power: float = 0.5
    """The same for chains with coordinates."""
    tokens: int = 20480
    """Padded nucleotides of a batch of reactivity and structure examples, at most; its pair cells are at most 160
    times as many. Of the whole batch, whatever the number of processes that share it."""
    batch_examples: int = 0
    """Examples in every batch of reactivity and structures, each example once an epoch; shares, cluster powers and
    `tokens` do not count then. 0: batches of `tokens`, drawn by weight."""
    reverse_share: float = 0.0
    """Share of the examples of reactivity that are read from the other end. Those with base pairs or coordinates never
    are."""
    max_length: int = 400
    """Longer RNAs are cropped to a random window, nucleotides."""
    coordinate_tokens: int = 4096
    """Padded nucleotides of a batch of chains with coordinates, at most."""
    coordinate_max_length: int = 192
    """Longer chains are cropped to a random window, nucleotides."""
    coordinate_min_length: int = 20
    """Shorter chains are left out: most are one strand of something, nucleotides."""
    coordinate_steps: int = 4
    """A batch of coordinates in every so many steps."""
    prior_dropout: float = 0.3
    """Share of the examples drawn whose prior is withheld, so that the network does without as well, and of those that
    `loss.taught_pairs` is for."""
    pad_multiple: int = 16
    """Batches are padded to a multiple of this length, nucleotides."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the tasks in the sum."""

    reactivity: float = 4.0
    """Of the mean absolute error, dimensionless like the reactivity."""
    reactivity_by_trust: bool = True
    """A reactivity counts by its weight, a half and 1 - 1/20 for a signal to noise of 1 and 20; false: all those of
    weight 0.5 and more count alike, the others not at all."""
    reactivity_error: float = 0.2
    """Of the likelihood of that error under the predicted one, nats."""
    structure: float = 1.0
    """Of the cross-entropy of each nucleotide's partner, nats."""
    taught_pairs: float = 0.0
    """Of the cross-entropy of each nucleotide's partner against a thermodynamic model's pair probabilities, nats: for
    RNAs whose prior is withheld and whose own base pairs are unknown. Needs the task structure. 0: none is taught."""
    coordinates: float = 0.4
    """Of the coordinate loss, 10 angstrom a unit."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Steps, optimizer, schedule."""

    steps: int = 1000
    """Optimizer steps of the whole run."""
    minutes: float = 0.0
    """Wall time after which the run is over although steps are left, minutes, all sittings of the run together; the
    schedule follows whichever is further on. 0: no limit."""
    steps_only: bool = False
    """`minutes` counts steps alone: neither reading tables nor validating, nor a pass over a batch of every length
    before the first step, in which kernels are compiled."""
    optimizer: str = "muon"
    """"muon": Muon for matrices inside the trunk, AdamW for the rest; "adamw"; or "radam": AdamW whose rate is
    rectified while few gradients were seen."""
    learning_rate: float = 1e-3
    """Peak of AdamW's, for the whole batch, a step."""
    matrix_rate: float = 2.0
    """Muon's learning rate in units of `learning_rate`."""
    weight_decay: float = 0.1
    """Share of a weight taken off in each step, in units of the learning rate; matrices only."""
    warmup_steps: int = 200
    """Steps over which the rate rises linearly from 0."""
    decay_share: float = 0.35
    """Last share of the steps, over which the rate falls to zero; constant before."""
    decay: str = "linear"
    """How it falls: "linear" or "cosine"."""
    clip_norm: float = 1.0
    """Largest norm of the gradient of all weights together; a longer one is scaled down."""
    average_decay: float = 0.999
    """Decay a step of the exponential moving average of the weights, which is what is evaluated and released."""
    seed: int = 0
    """Of the first weights, the order of the examples and dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; under torchrun each process takes the GPU of its number."""
    parallel: str = "replicate"
    """What several processes have of weights, gradients, moments and averaged weights: all ("replicate"), or each its
    part ("shard": PyTorch's FSDP, for networks that fill a GPU). The same training, and the same files."""
    bfloat16: bool = True
    """Autocast to bfloat16 on a GPU."""
    fuse: bool = False
    """torch.compile whole layers of RibonanzaNet. RibonanzaMamba has kernels of its own on a GPU and needs none."""
    graphs: bool = False
    """On a GPU, record the passes over each shape of batch and the end of a step (clipping, optimizers, average) as
    CUDA graphs and play them back: for few shapes, such as those of `data.batch_examples`, and for batches that are
    over before the host has started their kernels. Not with `parallel = "shard"`."""
    pass_examples: int = 0
    """Examples of one forward and backward pass; larger batches are divided and their gradients added up: the same
    step in less memory. 0: the whole batch."""
    checkpointing: str = "off"
    """Activations thrown away after the forward pass and computed again in the backward one: "off", "pair" (the pair
    track and the attention that reads it) or "all" (whole blocks). The same numbers, less memory, more time."""
    workers: int = 2
    """Threads that make batches ahead of the device."""
    log_steps: int = 20
    """Steps between two lines of the log; each is a mean over these steps."""
    save_steps: int = 0
    """Steps between checkpoints, besides those at validations. 0: none by steps."""
    save_minutes: float = 10.0
    """Wall time after which a checkpoint is due, minutes. 0: none by time."""
    tensorboard: bool = False
    """Write what metrics.jsonl gets to RUN/tensorboard as well (needs the package tensorboard)."""
    valid_steps: int = 500
    """Steps between validations (and checkpoints)."""
    valid_examples: int = 400
    """Examples of each task in a validation during training."""
    start_from: str = ""
    """Checkpoint whose weights the run starts from: a folder, a preset, or "released". Parameters that it lacks keep
    their initial values."""
    freeze: tuple[str, ...] = ()
    """Parts that are not trained: "trunk" (embeddings and blocks), or the beginning of parameters' names, such as
    "blocks.0" or "pair_head"."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    name: str = "ribonanzamamba"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values: the inverse of `config_from_dict`."""
        return asdict(self)


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Config from a TOML file and `section.key=value` overrides (values in TOML's spelling, bare words are strings).

    Raises:
        ValueError: an unknown section or key, a value of another type, or an override without a section.
    """
    path = Path(path)
    values = read_toml(path)
    apply_overrides(values, overrides)
    resolve_paths(values, path.parent)
    return config_from_dict(values)


def read_toml(path: Path) -> dict[str, Any]:
    """The nested values of a TOML file.

    Raises:
        ValueError: no TOML, with the path.
    """
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `section.key=value` texts in nested values.

    Raises:
        ValueError: an override without a section.
    """
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot:
            raise ValueError(f"--set {override}: expected section.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        values.setdefault(section, {})[key] = value


def resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the paths of the section `data` relative to a folder."""
    data = values.get("data", {})
    for key in ("reactivity", "structure", "coordinates", "unlabelled"):
        # anything but a list is refused later, by its type
        if isinstance(data.get(key), list):
            data[key] = [str(folder / table) for table in data[key]]
    if isinstance(store := data.get("store"), str) and store:
        data["store"] = str(folder / store)


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Config from nested plain values.

    Raises:
        ValueError: an unknown section or key, or a value of another type.
    """
    sections = {"model": ModelConfig, "data": DataConfig, "loss": LossConfig, "training": TrainingConfig}
    unknown = sorted(set(values) - {"name", *sections})
    if unknown:
        raise ValueError(f"unknown sections {unknown}; known are {sorted(['name', *sections])}")
    parts: dict[str, Any] = {"name": values.get("name", Config.name)}
    for section, kind in sections.items():
        parts[section] = section_from_dict(section, kind, values.get(section, {}))
    return Config(**parts)


def section_from_dict(section: str, kind: type, values: Mapping[str, Any]) -> Any:
    defaults = {field.name: field.default for field in fields(kind)}
    read = {}
    for key, value in values.items():
        if key not in defaults:
            raise ValueError(f"{section}: unknown key {key!r}; known are {sorted(defaults)}")
        expected = type(defaults[key])
        if expected is tuple and isinstance(value, list):
            value = tuple(value)
        if expected is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not expected:
            raise ValueError(f"{section}.{key}: expected {expected.__name__}, got {value!r}")
        read[key] = value
    return kind(**read)
