"""The tables of a config as examples to train on and to validate with, read as they are or from a prepared store."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ribonanzamamba.data.coordinate_table import read_coordinate_table
from ribonanzamamba.data.example import Example
from ribonanzamamba.data.prior import compute_priors, read_priors
from ribonanzamamba.data.reactivity_table import read_reactivity_table
from ribonanzamamba.data.sequence_table import read_sequence_table
from ribonanzamamba.data.store import read_store, write_store
from ribonanzamamba.data.structure_table import read_structure_table
from ribonanzamamba.model.config import TASKS
from ribonanzamamba.rna.records import PROBES
from ribonanzamamba.training.config import DataConfig, read_config
from ribonanzamamba.training.validation import HeldOut

logger = logging.getLogger(__name__)

VALID_CLUSTERS = 20
"""Every 20th cluster of the coordinate tables, which have no split column, is held out."""
KINDS = (*TASKS, "unlabelled")
"""Of tables: those of a task, and sequences alone."""
LONGEST_PRIOR = 1000
"""Nucleotides of the longest RNA whose prior `prepare` computes: 3 s of a core, and time grows with the cube."""


def read_tables(config: DataConfig, probes: Sequence[str] = PROBES) -> tuple[dict[str, list[list[Example]]], HeldOut]:
    """Training examples of each task, and sequences alone, a list a table, and what is held out for validation; from
    the store where the config names one. `probes` is the probe axis, some of PROBES; examples measured with none of
    them are left out.

    Of a store, only the tables are used that the config names, all where it names none.

    Raises:
        ValueError: a store that lacks one of the config's tables.
    """
    if not config.store:
        return divide(with_probes(table_groups(config), probes), config)
    groups = stored_groups(read_store(config.store), config)
    return divide(with_probes(groups, probes), config)


def stored_groups(groups: Mapping[str, list[Example]], config: DataConfig) -> dict[str, list[Example]]:
    """Of a store's groups those of the config's tables, in the config's order; all where it names none.

    Raises:
        ValueError: a table that the store lacks.
    """
    tables: dict[tuple[str, str], list[str]] = {}
    for name in groups:
        task, _, file, _ = name.split("/")
        tables.setdefault((task, file), []).append(name)
    named = [(task, Path(path).name) for task in KINDS for path in getattr(config, task)] or list(tables)
    if lacking := [file for task, file in named if (task, file) not in tables]:
        stored = ", ".join(file for _, file in tables)
        raise ValueError(f"{config.store}: holds {stored}; the config names {', '.join(lacking)}")
    return {name: groups[name] for table in named for name in tables[table]}


def with_probes(groups: Mapping[str, Sequence[Example]], probes: Sequence[str]) -> Mapping[str, Sequence[Example]]:
    """The same groups, of reactivity only these probes, without the examples that have none of them.

    Raises:
        ValueError: a probe that is not in PROBES.
    """
    if tuple(probes) == PROBES:
        return groups
    if unknown := [probe for probe in probes if probe not in PROBES]:
        raise ValueError(f"model.probes: expected some of {PROBES}, got {unknown}")
    columns = [PROBES.index(probe) for probe in probes]
    kept: dict[str, list[Example]] = {}
    for name, examples in groups.items():
        kept[name] = [
            replace(
                example,
                reactivity=example.reactivity[:, columns],
                reactivity_weight=example.reactivity_weight[:, columns],
            )
            if example.reactivity is not None
            else example
            for example in examples
            if example.reactivity is None or not np.isnan(example.reactivity[:, columns]).all()
        ]
    return kept


def prepare_store(config_path: str | Path, out: str | Path, priors: str | Path | None = None, workers: int = 1) -> Path:
    """Write all examples of a config's tables to the store `out`; returns it.

    `priors`: folder of computed priors. What it lacks is computed first by so many workers (0: is left out) for RNAs up
    to LONGEST_PRIOR; None: the store has none.

    Raises:
        baselines.folding.ViennaMissing: priors are to be computed, and ViennaRNA is not installed.
    """
    groups = table_groups(read_config(config_path).data)
    known = {}
    if priors is not None:
        if workers:
            compute_priors(_sequences_to_fold(groups), priors, workers)
        known = dict(read_priors(priors))
    write_store(out, groups, known)
    return Path(out)


def table_groups(config: DataConfig) -> dict[str, list[Example]]:
    """Examples of the tables under the names `task/number/file/split`; those with coordinates have the split "all". Of
    sequences alone, which are all to train with, those are left out that stand in a table, but for training."""
    groups: dict[str, list[Example]] = {}
    for task, paths, read in (
        ("reactivity", config.reactivity, read_reactivity_table),
        ("structure", config.structure, read_structure_table),
    ):
        for number, path in enumerate(paths):
            for split in ("train", "valid"):
                groups[f"{task}/{number}/{Path(path).name}/{split}"] = read(path, split)
    for number, path in enumerate(config.coordinates):
        # a chain without any position teaches nothing, and a batch of such chains has no loss
        examples = [example for example in read_coordinate_table(path) if example.coordinates is not None]
        groups[f"coordinates/{number}/{Path(path).name}/all"] = examples
    if config.unlabelled:
        apart = kept_apart(config, groups)
    for number, path in enumerate(config.unlabelled):
        groups[f"unlabelled/{number}/{Path(path).name}/train"] = [
            example
            for example in read_sequence_table(path)
            if example.length <= config.unlabelled_max_length and example.sequence not in apart
        ]
    return groups


def kept_apart(config: DataConfig, groups: Mapping[str, Sequence[Example]]) -> set[str]:
    """The sequences that no split but others than "train" has: of validation, of public tests, and of all chains."""
    tables = [read_reactivity_table(path) for path in config.reactivity]
    tables += [read_structure_table(path) for path in config.structure]
    trained = {each.sequence for name, group in groups.items() if name.endswith("/train") for each in group}
    chains = {each.sequence for name, group in groups.items() if name.startswith("coordinates/") for each in group}
    return chains | {example.sequence for table in tables for example in table} - trained


def with_signal(examples: Sequence[Example], least: float) -> list[Example]:
    """The examples without those of which there is nothing to learn: no measurement and no prior, or reactivity that is
    nowhere trusted as much as `least`."""
    return [
        example
        for example in examples
        if (example.measured or example.prior is not None)
        and (example.reactivity_weight is None or example.reactivity_weight.max(initial=0) >= least)
    ]


def divide(
    groups: Mapping[str, Sequence[Example]], config: DataConfig
) -> tuple[dict[str, list[list[Example]]], HeldOut]:
    """The training examples of the groups, by kind and table, and what is held out."""
    training: dict[str, list[list[Example]]] = {kind: [] for kind in KINDS}
    held_out: dict[str, list[Example]] = {"reactivity": [], "structure": [], "coordinates": []}
    for name, examples in groups.items():
        task, split = name.split("/")[0], name.rsplit("/")[-1]
        if split == "valid":
            held_out[task] += examples
        elif split == "train":
            training[task].append(with_signal(examples, config.reactivity_least_weight))
        else:
            held_out[task] += [example for example in examples if example.cluster % VALID_CLUSTERS == 0]
            training[task].append(
                [
                    example
                    for example in examples
                    if example.cluster % VALID_CLUSTERS and example.length >= config.coordinate_min_length
                ]
            )
    return training, HeldOut(**held_out)


def _sequences_to_fold(groups: Mapping[str, Sequence[Example]]) -> list[str]:
    """Without repeats, the long ones last: a computation that is stopped has most of them."""
    sequences = {example.sequence for group in groups.values() for example in group if example.length <= LONGEST_PRIOR}
    return sorted(sequences, key=lambda sequence: (len(sequence), sequence))
