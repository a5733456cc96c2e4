"""Examples of many tables as one folder of flat arrays: read in a second, small enough to carry to another machine.

Each array holds one field of all examples end to end, in a form that compresses well (a stem is a run of one number).
Knows nothing of configurations or training: groups of examples have names, and what these mean is the caller's.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Num, Shaped

from ribonanzamamba.data.columns import ranges, running_numbers
from ribonanzamamba.data.example import Example
from ribonanzamamba.data.prior import Prior
from ribonanzamamba.rna.records import ATOMS, PROBES

FORMAT = 1
COORDINATE_STEP = 0.01
"""Angstrom; coordinates are whole multiples of it (a coarser one for an RNA whose extent 16 bits do not hold)."""
MISSING_COORDINATE = np.iinfo(np.int16).min
_LARGEST = np.iinfo(np.int16).max


def write_store(
    folder: str | Path, groups: Mapping[str, Sequence[Example]], priors: Mapping[str, Prior] | None = None
) -> None:
    """Write groups of examples to a folder, which is made where it is missing; `priors` of sequences replace their own.

    What comes back by `read_store` is the same, but that coordinates are counted from the middle of their extent and
    rounded to COORDINATE_STEP, and the pairs of a prior are in another order.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # absent until all is written: half a store is none
    (folder / "index.json").unlink(missing_ok=True)
    examples = [example for group in groups.values() for example in group]
    lengths = np.array([example.length for example in examples], dtype=np.int64)
    datasets = running_numbers(example.dataset for example in examples)

    def save(name: str, values: Shaped[np.ndarray, "..."]) -> None:
        np.save(folder / f"{name}.npy", values)

    save("letters", np.frombuffer("".join(example.sequence for example in examples).encode(), dtype=np.uint8))
    save("length", lengths.astype(np.int32))
    save("cluster", np.array([example.cluster for example in examples], dtype=np.int64))
    save("cluster_size", np.array([example.cluster_size for example in examples], dtype=np.int64))
    save("dataset", datasets.astype(np.int32))
    _save_reactivity(save, examples)
    _save_partners(save, examples)
    _save_coordinates(save, examples)
    _save_priors(save, examples, priors or {})
    index = {
        "format": FORMAT,
        "groups": {name: len(group) for name, group in groups.items()},
        "probes": PROBES,
        "atoms": ATOMS,
        "datasets": list(dict.fromkeys(example.dataset for example in examples)),
        "ids": [example.id for example in examples],
    }
    (folder / "index.json").write_text(json.dumps(index))


def read_store(folder: str | Path) -> dict[str, list[Example]]:
    """The groups of examples `write_store` wrote, in the same order; their arrays are read-only views.

    Raises:
        FileNotFoundError: no store, or one whose writing was stopped.
        ValueError: a store of another version, or of other probes or atoms.
    """
    folder = Path(folder)
    if not (folder / "index.json").is_file():
        raise FileNotFoundError(f"{folder}: no store of examples: expected an index.json, as `prepare` writes it")
    index = json.loads((folder / "index.json").read_text())
    expected = {"format": FORMAT, "probes": list(PROBES), "atoms": list(ATOMS)}
    if different := [key for key, value in expected.items() if index.get(key) != value]:
        raise ValueError(f"{folder}: written by another version ({', '.join(different)} differ); prepare it again")

    def load(name: str) -> Shaped[np.ndarray, "..."]:
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    lengths = load("length").astype(np.int64)
    letters = load("letters").tobytes().decode()
    reactivity, weight = _load_reactivity(load, lengths)
    partners = _load_partners(load, lengths)
    coordinates = _load_coordinates(load, lengths)
    priors = _load_priors(load)
    starts = np.cumsum(lengths) - lengths
    columns = zip(
        index["ids"], starts.tolist(), lengths.tolist(), load("cluster").tolist(), load("cluster_size").tolist(),
        load("dataset").tolist(), reactivity, weight, partners, coordinates, load("prior_of").tolist(), strict=True,
    )  # fmt: skip
    examples = [
        Example(
            id=id,
            sequence=letters[start : start + length],
            cluster=cluster,
            cluster_size=size,
            dataset=index["datasets"][dataset],
            reactivity=its_reactivity,
            reactivity_weight=its_weight,
            partners=its_partners,
            coordinates=its_coordinates,
            prior=None if prior < 0 else priors[prior],
        )
        for id, start, length, cluster, size, dataset, its_reactivity, its_weight, its_partners, its_coordinates, prior
        in columns
    ]  # fmt: skip
    ends = np.cumsum(list(index["groups"].values())).tolist()
    return {name: examples[end - count : end] for (name, count), end in zip(index["groups"].items(), ends, strict=True)}


def _save_reactivity(save, examples: Sequence[Example]) -> None:
    """Of each probe the values and weights of the RNAs that have any, end to end."""
    save("has_reactivity", np.array([example.reactivity is not None for example in examples], dtype=bool))
    having = [example for example in examples if example.reactivity is not None]
    measured = np.zeros((len(having), len(PROBES)), dtype=bool)
    for row, example in enumerate(having):
        measured[row] = (~np.isnan(example.reactivity) | (example.reactivity_weight != 0)).any(axis=0)
    save("measured", measured)
    for column in range(len(PROBES)):
        rows = np.flatnonzero(measured[:, column])
        save(f"reactivity_{column}", _joined([having[row].reactivity[:, column] for row in rows], np.float16))
        save(f"weight_{column}", _joined([having[row].reactivity_weight[:, column] for row in rows], np.float32))


def _load_reactivity(load, lengths: Int64[np.ndarray, " example"]) -> tuple[list, list]:
    has, measured = load("has_reactivity"), load("measured")
    lengths = lengths[has]
    starts = np.cumsum(lengths) - lengths
    reactivity = np.full((int(lengths.sum()), len(PROBES)), np.nan, dtype=np.float16)
    weight = np.zeros((int(lengths.sum()), len(PROBES)), dtype=np.float32)
    for column in range(len(PROBES)):
        rows = np.flatnonzero(measured[:, column])
        places = ranges(starts[rows], lengths[rows])
        reactivity[places, column], weight[places, column] = load(f"reactivity_{column}"), load(f"weight_{column}")
    return _parts(reactivity, lengths, has), _parts(weight, lengths, has)


def _save_partners(save, examples: Sequence[Example]) -> None:
    """Instead of the partner j of i, i + j: the same all along a stem. What is no partner stays negative."""
    having = [example.partners for example in examples if example.partners is not None]
    partners = _joined(having, np.int64)
    places = ranges(np.zeros(len(having), dtype=np.int64), np.array([len(each) for each in having], dtype=np.int64))
    sums = np.where(partners < 0, partners, partners + places)
    save("has_partners", np.array([example.partners is not None for example in examples], dtype=bool))
    save("partner_sum", sums.astype(np.int16 if sums.max(initial=0) <= _LARGEST else np.int32))


def _load_partners(load, lengths: Int64[np.ndarray, " example"]) -> list:
    has = load("has_partners")
    sums = load("partner_sum").astype(np.int32)
    places = ranges(np.zeros(int(has.sum()), dtype=np.int64), lengths[has])
    return _parts(np.where(sums < 0, sums, sums - places).astype(np.int32), lengths[has], has)


def _save_coordinates(save, examples: Sequence[Example]) -> None:
    """Whole steps from the middle of the extent, along the sequence the difference from the last nucleotide."""
    having = [example.coordinates for example in examples if example.coordinates is not None]
    steps, whole = [], []
    for xyz in having:
        with np.errstate(all="ignore"):
            low, high = (extreme(xyz.reshape(-1, 3), axis=0) for extreme in (np.fmin.reduce, np.fmax.reduce))
        centred = xyz.astype(np.float64) - (low + high) / 2
        step = max(COORDINATE_STEP, np.nanmax(np.abs(centred), initial=0) / _LARGEST)
        steps.append(step)
        whole.append(np.where(np.isnan(centred), MISSING_COORDINATE, np.rint(np.nan_to_num(centred) / step)))
    save("has_coordinates", np.array([example.coordinates is not None for example in examples], dtype=bool))
    save("coordinate_step", np.array(steps, dtype=np.float32))
    flat = _joined(whole, np.int16, (len(ATOMS), 3))
    # 16-bit arithmetic goes round and comes back
    save("coordinate_difference", np.diff(flat, axis=0, prepend=np.zeros_like(flat[:1])))


def _load_coordinates(load, lengths: Int64[np.ndarray, " example"]) -> list:
    has = load("has_coordinates")
    whole = np.cumsum(load("coordinate_difference"), axis=0, dtype=np.int16)
    step = np.repeat(load("coordinate_step"), lengths[has])[:, None, None]
    xyz = np.where(whole == MISSING_COORDINATE, np.float32(np.nan), whole * step).astype(np.float32)
    return _parts(xyz, lengths[has], has)


def _save_priors(save, examples: Sequence[Example], priors: Mapping[str, Prior]) -> None:
    """One prior a sequence, its pairs stem by stem: i + j, and the difference of i from the pair before."""
    number: dict[str, int] = {}
    kept: list[Prior] = []
    prior_of = np.full(len(examples), -1, dtype=np.int32)
    for row, example in enumerate(examples):
        prior = priors.get(example.sequence, example.prior)
        if prior is not None:
            if example.sequence not in number:
                number[example.sequence] = len(kept)
                order = np.lexsort((prior.i, prior.i.astype(np.int64) + prior.j))
                kept.append(Prior(prior.i[order], prior.j[order], prior.level[order]))
            prior_of[row] = number[example.sequence]
    i = _joined([prior.i for prior in kept], np.uint16)
    save("prior_of", prior_of)
    save("prior_pairs", np.array([len(prior.i) for prior in kept], dtype=np.uint32))
    save("prior_sum", i + _joined([prior.j for prior in kept], np.uint16))
    save("prior_difference", np.diff(i, prepend=np.zeros_like(i[:1])))
    save("prior_level", _joined([prior.level for prior in kept], np.uint8))


def _load_priors(load) -> list[Prior]:
    i = np.cumsum(load("prior_difference"), dtype=np.uint16)
    j = load("prior_sum") - i
    # a plain array: slices of a memory map are slow to make
    level = np.array(load("prior_level"))
    ends = np.cumsum(load("prior_pairs"), dtype=np.int64).tolist()
    starts = [0, *ends][:-1]
    return [Prior(i[start:end], j[start:end], level[start:end]) for start, end in zip(starts, ends, strict=True)]


def _joined(
    arrays: Sequence[Num[np.ndarray, "..."]], dtype: type, shape: tuple[int, ...] = ()
) -> Num[np.ndarray, "..."]:
    return np.concatenate([np.zeros((0, *shape), dtype=dtype), *arrays]).astype(dtype)


def _parts(
    values: Num[np.ndarray, "..."], lengths: Int64[np.ndarray, " part"], has: Shaped[np.ndarray, " example"]
) -> list[np.ndarray | None]:
    """Of every example its part of the values, read-only, or None where it has none."""
    values.flags.writeable = False
    ends = np.cumsum(lengths).tolist()
    parts = zip([0, *ends][:-1], ends, strict=True)
    return [values[slice(*next(parts))] if there else None for there in has.tolist()]
