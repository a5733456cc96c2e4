"""A battle: several networks trained on the same batches with the same budget, each run a folder that can be resumed.

One TOML says who fights (`[[contestant]]`), how long (`[[budget]]`, epochs or minutes, each with its seeds) and on what
(the sections of a training config, of which a contestant may change values). What a finished run leaves is small and
holds no data (`battle_result`), so that a report can be written from runs of several machines and days.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ribonanzamamba.data.example import Example
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.model.ribonanzanet import RibonanzaNet, RibonanzaNetConfig
from ribonanzamamba.training.battle_longer import Longer, read_longer
from ribonanzamamba.training.battle_result import RunKey, collect_result, read_result, result_folder
from ribonanzamamba.training.config import Config, apply_overrides, config_from_dict, read_toml, resolve_paths
from ribonanzamamba.training.display import Display
from ribonanzamamba.training.loop import train_config
from ribonanzamamba.training.run_folder import differences
from ribonanzamamba.training.side_by_side import Event, side_by_side
from ribonanzamamba.training.tables import read_tables

logger = logging.getLogger(__name__)

ARCHITECTURES = ("ribonanzamamba", "ribonanzanet")
SECTIONS = ("model", "data", "loss", "training")
CONTESTANT_KEYS = ("name", "architecture", "baseline", "ablation_of", "budgets")
BUDGET_KEYS = ("epochs", "minutes", "seeds")
UNBOUNDED_STEPS = 10_000_000
"""Of a run that ends by time."""
VALIDATIONS_PER_EPOCH, MOST_VALIDATIONS = 2, 16
"""Where the config does not say `training.valid_steps`; the second of a run of epochs."""
OF_THE_MACHINE = {
    "data": ("store", "reactivity"),
    "training": ("device", "workers", "save_steps", "save_minutes", "graphs"),
}
"""Settings that may differ between two sittings of a run: they change nothing in what it computes, and no result
holds them."""
OF_THE_ROUNDING = {"model": ("outer_product",), "training": ("pass_examples",)}
"""Settings that may differ between two runs of a contestant: how the same sums are done. Results hold them, since speed
and memory are theirs."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long every contestant trains: epochs or minutes, of which the other is 0."""

    epochs: float = 0.0
    minutes: float = 0.0
    """Of steps alone, without compiling and validating, on one device."""
    seeds: tuple[int, ...] = (0,)

    @property
    def key(self) -> str:
        """Its name in folders and on the command line.

        >>> Budget(epochs=6.0).key, Budget(minutes=0.5).key
        ('6-epochs', '0.5-minutes')
        """
        return f"{self.epochs:g}-epochs" if self.epochs else f"{self.minutes:g}-minutes"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A network with its recipe."""

    name: str
    architecture: str
    model: ModelConfig | RibonanzaNetConfig
    config: Config
    """Of its runs, but for budget and seed; `config.model` is the model of a RibonanzaMamba."""
    explicit_validation: bool
    """Whether the TOML says how often to validate."""
    baseline: bool = False
    """The others are compared with the better of the baselines."""
    ablation_of: str = ""
    """Contestant from which it differs in one part, and whose settings it has elsewhere; empty: it stands for
    itself."""
    budgets: tuple[str, ...] = ()
    """Keys of the budgets it trains with; empty: all."""

    def build(self, config: Config) -> nn.Module:
        """A new network of this contestant."""
        return RibonanzaNet(self.model) if isinstance(self.model, RibonanzaNetConfig) else RibonanzaMamba(self.model)

    def settings(self, config: Config) -> dict[str, Any]:
        """What one of its runs was made with, as plain values, but for what belongs to the machine."""
        sections = {section: config.to_dict()[section] for section in ("data", "loss", "training")}
        return {"architecture": self.architecture, "model": self.model.to_dict()} | without(sections, OF_THE_MACHINE)

    def free(self) -> dict[str, tuple[str, ...]]:
        """Settings in which its runs may differ: those of the rounding, and the padding, where it is not seen."""
        sees = isinstance(self.model, RibonanzaNetConfig) and self.model.sees_padding
        return OF_THE_ROUNDING | ({} if sees else {"data": ("pad_multiple",)})


@dataclass(frozen=True, kw_only=True)
class Battle:
    """Who fights and how long."""

    name: str
    contestants: tuple[Contestant, ...]
    budgets: tuple[Budget, ...]
    longer: Longer | None = None
    """Longer RNAs that a finished run predicts too."""

    def keys(self, only: Sequence[str] = ()) -> list[RunKey]:
        """All runs, budget by budget and seed by seed, or those that `only` names: NAME, NAME:BUDGET or
        NAME:BUDGET:SEED.

        Raises:
            ValueError: a part of `only` that names no run.
        """
        keys = [
            RunKey(contestant.name, budget.key, seed)
            for budget in self.budgets
            for seed in budget.seeds
            for contestant in self.contestants
            if not contestant.budgets or budget.key in contestant.budgets
        ]
        for text in only:
            if not any(key.matches(text) for key in keys):
                known = ", ".join(dict.fromkeys(f"{key.contestant}:{key.budget}" for key in keys))
                raise ValueError(f"--only {text}: no such run; expected NAME[:BUDGET[:SEED]] of {known}")
        return [key for key in keys if not only or any(key.matches(text) for text in only)]

    def contestant(self, name: str) -> Contestant:
        return next(each for each in self.contestants if each.name == name)

    def run_config(self, key: RunKey, epoch_steps: int) -> Config:
        """The training config of one run; `epoch_steps` are the batches of an epoch."""
        contestant = self.contestant(key.contestant)
        budget = next(each for each in self.budgets if each.key == key.budget)
        training = replace(
            contestant.config.training,
            seed=key.seed,
            steps=max(1, round(budget.epochs * epoch_steps)) if budget.epochs else UNBOUNDED_STEPS,
            minutes=budget.minutes,
            steps_only=True,
        )
        if not contestant.explicit_validation:
            steps = max(epoch_steps / VALIDATIONS_PER_EPOCH, budget.epochs * epoch_steps / MOST_VALIDATIONS)
            training = replace(training, valid_steps=max(1, round(steps)))
        return replace(contestant.config, name=key.folder, training=training)


def read_battle(path: str | Path, overrides: Sequence[str] = ()) -> Battle:
    """A battle from a TOML file and `section.key=value` overrides, which every contestant gets.

    Raises:
        ValueError: unknown keys, two of one name, no contestant or no budget, or settings that cannot be compared.
    """
    path = Path(path)
    values = read_toml(path)
    apply_overrides(values, overrides)
    resolve_paths(values, path.parent)
    if unknown := sorted(set(values) - {"name", "budget", "contestant", "longer", *SECTIONS}):
        raise ValueError(f"{path}: unknown sections {unknown}")
    shared = {section: values.get(section, {}) for section in SECTIONS}
    overridden = {text.partition("=")[0].strip() for text in overrides}
    contestants = tuple(read_contestant(each, shared, overridden) for each in with_inherited(values))
    budgets = tuple(read_budget(each) for each in values.get("budget", []))
    check_battle(contestants, budgets)
    longer = read_longer(values.get("longer", {}), path.parent, probes_of(contestants[0]))
    return Battle(name=values.get("name", path.stem), contestants=contestants, budgets=budgets, longer=longer)


def with_inherited(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The contestants of a TOML, each ablation with the settings of what it is an ablation of, but for its own.

    Raises:
        ValueError: an ablation of what does not stand before it.
    """
    contestants: dict[str, dict[str, Any]] = {}
    for own in values.get("contestant", []):
        whole = dict(own)
        if base := own.get("ablation_of"):
            if base not in contestants:
                raise ValueError(
                    f"contestant {own.get('name', '')!r}: ablation_of names no contestant before it: {base!r}"
                )
            before = contestants[base]
            whole |= {section: {**before.get(section, {}), **own.get(section, {})} for section in SECTIONS}
            if "architecture" in before:
                whole.setdefault("architecture", before["architecture"])
        name = own.get("name", "")
        if name in contestants:
            raise ValueError(f"battle: expected contestants of different names, got {name!r} twice")
        contestants[name] = whole
    return list(contestants.values())


def read_budget(values: Mapping[str, Any]) -> Budget:
    """A budget of epochs or minutes.

    Raises:
        ValueError: both or none of the two, no seeds, or an unknown key.
    """
    if unknown := sorted(set(values) - set(BUDGET_KEYS)):
        raise ValueError(f"budget: unknown keys {unknown}; known are {list(BUDGET_KEYS)}")
    budget = Budget(
        epochs=float(values.get("epochs", 0)),
        minutes=float(values.get("minutes", 0)),
        seeds=tuple(values.get("seeds", (0,))),
    )
    if (budget.epochs > 0) == (budget.minutes > 0) or not budget.seeds:
        raise ValueError(f"budget: expected epochs or minutes above 0, and seeds, got {dict(values)}")
    return budget


def read_contestant(
    values: Mapping[str, Any], shared: Mapping[str, Mapping[str, Any]], overridden: set[str]
) -> Contestant:
    """A contestant: the shared sections with its own values in their place, but for what the command line overrides.
    The shared `model` is that of RibonanzaMambas.

    Raises:
        ValueError: an unknown key or architecture, or values that are none of its model's.
    """
    name = values.get("name", "")
    if unknown := sorted(set(values) - {*CONTESTANT_KEYS, *SECTIONS}):
        raise ValueError(f"contestant {name!r}: unknown keys {unknown}; known are {[*CONTESTANT_KEYS, *SECTIONS]}")
    architecture = values.get("architecture", ARCHITECTURES[0])
    if architecture not in ARCHITECTURES:
        raise ValueError(f"contestant {name!r}: expected an architecture of {ARCHITECTURES}, got {architecture!r}")
    own = {
        section: {key: value for key, value in values.get(section, {}).items() if f"{section}.{key}" not in overridden}
        for section in SECTIONS
    }
    merged = {section: {**shared[section], **own[section]} for section in SECTIONS}
    if architecture == "ribonanzanet":
        del merged["model"]
    config = config_from_dict({"name": name, **merged})
    return Contestant(
        name=name,
        architecture=architecture,
        model=baseline_model(own["model"]) if architecture == "ribonanzanet" else config.model,
        config=config,
        explicit_validation="valid_steps" in merged["training"],
        baseline=bool(values.get("baseline", False)),
        ablation_of=values.get("ablation_of", ""),
        budgets=tuple(values.get("budgets", ())),
    )


def baseline_model(values: Mapping[str, Any]) -> RibonanzaNetConfig:
    """RibonanzaNet's config: `as_published = true` gives all faults, other keys are its fields.

    Raises:
        ValueError: an unknown key.
    """
    fields = dict(values)
    published = fields.pop("as_published", False)
    faults = RibonanzaNetConfig.as_published().to_dict() if published else {}
    return RibonanzaNetConfig.from_dict(faults | fields)


def check_battle(contestants: Sequence[Contestant], budgets: Sequence[Budget]) -> None:
    """Nothing, if the contestants can be compared.

    Raises:
        ValueError: otherwise, with what is wrong.
    """
    names, keys = [each.name for each in contestants], [each.key for each in budgets]
    if not names or not keys:
        raise ValueError("battle: expected at least one [[contestant]] and one [[budget]]")
    for name in names:
        if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
            raise ValueError(f"battle: expected names of letters, digits, - _ . for contestants, got {names}")
    if len(set(keys)) < len(keys):
        raise ValueError(f"battle: expected different budgets, got {keys}")
    for each in contestants:
        if unknown := set(each.budgets) - set(keys):
            raise ValueError(f"contestant {each.name}: unknown budgets {sorted(unknown)}; there are {keys}")
        if not each.config.data.batch_examples:
            raise ValueError("battle: expected data.batch_examples: the same batches for every contestant")
        if each.config.data.structure or each.config.data.coordinates or each.config.data.unlabelled:
            raise ValueError("battle: expected reactivity tables alone")
    same = {
        (each.config.data.batch_examples, each.config.data.reactivity, each.config.data.reactivity_least_weight)
        + (each.config.data.store, each.config.data.max_length, probes_of(each))
        for each in contestants
    }
    if len(same) > 1:
        raise ValueError("battle: expected the same tables, batch_examples, max_length and probes for all contestants")


def probes_of(contestant: Contestant) -> tuple[str, ...]:
    return tuple(contestant.model.probes)


def fight(
    battle: Battle,
    out: str | Path,
    only: Sequence[str] = (),
    display: Callable[[], Display] = Display,
) -> Iterator[RunKey]:
    """Train the runs of a battle that are not finished, one after the other, in `out`; yields each that is done.

    A run that was stopped goes on. Several of these side by side, each with other runs in `only`, share `out`.

    Raises:
        ValueError: a result in `out` of other settings, or tables that cannot be used.
        NonFiniteError, Terminated, KeyboardInterrupt, OSError: as `training.loop.train`.
    """
    out = Path(out)
    keys = battle.keys(only)
    first = battle.contestants[0]
    training, _ = read_tables(first.config.data, probes_of(first))
    examples = sum(map(len, training["reactivity"]))
    epoch_steps = examples // first.config.data.batch_examples
    if not epoch_steps:
        raise ValueError(f"battle: {examples} training examples are less than one batch")
    longer: Sequence[Example] | None = None
    for key in keys:
        contestant, config = battle.contestant(key.contestant), battle.run_config(key, epoch_steps)
        settings = contestant.settings(config)
        if (done := read_result(out, key)) is not None:
            check_same_settings(key, done.settings, settings, contestant.free())
            logger.info("%s is finished already", key.folder)
        else:
            logger.info("%s: %d examples, %d batches an epoch", key.folder, examples, epoch_steps)
            if longer is None:
                # before the first training: what cannot be read then costs nothing
                longer = battle.longer.examples(first.config.data) if battle.longer else ()
            run_one(contestant, config, key, out, display(), longer)
        yield key


def fight_side_by_side(
    battle: Battle, out: str | Path, command: Sequence[str], devices: Sequence[str], only: Sequence[str] = ()
) -> Iterator[Event]:
    """As `fight`, with `command`, to which the run is added, in a process of its own for each run that is not finished:
    one a GPU at a time. Logs are in `out`/logs.

    Raises:
        ValueError: as `fight`.
        KeyboardInterrupt, training.signals.Terminated, OSError: as `side_by_side`.
    """
    keys = battle.keys(only)
    finished = [str(key) for key in keys if read_result(out, key) is not None]
    if finished:
        # trains nothing, but refuses results of other settings
        list(fight(battle, out, finished))
    commands = {key.folder: [*command, "--only", str(key)] for key in keys if str(key) not in finished}
    yield from side_by_side(commands, devices, Path(out) / "logs")


def run_one(
    contestant: Contestant, config: Config, key: RunKey, out: Path, display: Display, longer: Sequence[Example]
) -> None:
    """Train one run and write what it leaves."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        # kernels of the contestant before count in the limit of recompilations
        torch.compiler.reset()
    run = train_config(config, out / "runs" / key.folder, build=contestant.build, display=display)
    result = collect_result(run, key, config, contestant.build(config), contestant.settings(config), longer)
    result.write(result_folder(out, key))


def check_same_settings(
    key: RunKey, before: Mapping[str, Any], now: Mapping[str, Any], free: Mapping[str, Sequence[str]]
) -> None:
    """Nothing, if a finished run is of these settings, but for those that are `free`.

    Raises:
        ValueError: otherwise, with the first differences.
    """
    changed = differences(
        without(with_defaults(before, now), free),
        without(json.loads(json.dumps(now)), free),
    )
    if changed:
        raise ValueError(f"{key.folder} was finished with other settings ({'; '.join(changed[:4])}): remove its result")


def without(settings: Mapping[str, Any], left_out: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The settings, of some sections without some keys.

    >>> without({"architecture": "a", "model": {"b": 1, "c": 2}}, {"model": ("c",), "data": ("d",)})
    {'architecture': 'a', 'model': {'b': 1}}
    """
    return {
        section: {key: value for key, value in values.items() if key not in left_out.get(section, ())}
        if isinstance(values, Mapping)
        else values
        for section, values in settings.items()
    }


def with_defaults(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a finished run, with the defaults of those that the program has had only since then."""
    model = RibonanzaNetConfig() if now["architecture"] == "ribonanzanet" else ModelConfig()
    defaults = json.loads(json.dumps({**Config().to_dict(), "model": model.to_dict()}))
    return {
        section: {**{key: defaults[section][key] for key in values}, **before[section]}
        if section in SECTIONS
        else before.get(section)
        for section, values in now.items()
    }
