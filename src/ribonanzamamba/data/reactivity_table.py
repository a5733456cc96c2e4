"""Tables of chemical reactivity to examples, and to single rows for evaluation.

Reads our Parquet (one row = one sequence in one experiment, values as lists), Kaggle's Ribonanza `train_data.csv`
(values in columns `reactivity_0001`, ...; the same columns as Parquet work too), and a plain table with one row an RNA
and one column a probe, named as the probe, its values apart by blanks. Knows nothing of tensors or networks.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float16, Float64, Int64

from ribonanzamamba.data.columns import (
    column_names,
    flag_array,
    flat_lists,
    number_array,
    ranges,
    read_columns,
    require_columns,
    rna_letters,
    running_numbers,
    text_list,
)
from ribonanzamamba.data.example import Example
from ribonanzamamba.data.splits import HASHED_SPLITS, check_split, hashed_split
from ribonanzamamba.rna.records import PROBES

logger = logging.getLogger(__name__)

REAGENT_PROBES: dict[str, str] = {"SHAPE_NMIA_or_1M7": "SHAPE", "2A3_MaP": "2A3", "DMS_MaP": "DMS"}
"""Probe of a reagent that the tables spell otherwise."""
UNKNOWN_TRUST = 0.5
"""Weight of a row without signal to noise: that of a row with signal to noise 1."""
MAX_SIGNAL_TO_NOISE = 20.0
FAILED_TRUST = 0.25
"""Factor on the weight of a row that failed the authors' signal-to-noise filter."""
LIGAND_TRUST = 0.5
"""Factor on the weight of a row measured with a ligand: the sequence alone may fold otherwise."""
REACTIVITY_RANGE = (-2.0, 8.0)
"""Kaggle's values are clipped to the range of our Parquet tables, which also keeps them within float16."""
ERROR_RANGE = (0.0, 10.0)
"""The same for their errors."""

_MIN_AVERAGING_WEIGHT = 1e-6  # so that a lone value of weight 0 is still its own mean
_EXAMPLES_AT_ONCE = 16384
_OUR_COLUMNS = (
    "id", "sequence", "reagent", "dataset", "signal_to_noise", "sn_pass", "ligand", "cluster", "cluster_size", "split",
)  # fmt: skip
_KAGGLE_COLUMNS = (
    "sequence_id",
    "sequence",
    "experiment_type",
    "dataset_name",
    "signal_to_noise",
    "SN_filter",
    "split",
)


@dataclass(frozen=True, eq=False)
class ReactivityRow:
    """One sequence in one experiment, as measured: what an evaluation compares with."""

    id: str
    sequence: str
    probe: str
    reactivity: Float[np.ndarray, " length"]
    """Dimensionless, NaN = not measured; read-only."""
    error: Float[np.ndarray, " length"]
    """Measurement error, NaN where the source gives none; read-only."""
    signal_to_noise: float
    """NaN = unknown."""
    sn_pass: bool
    """Signal to noise at least 1 and more than 100 reads, or signal to noise unknown."""
    dataset: str


def read_reactivity_table(
    path: str | Path, split: str | None = None, *, merge: bool = True, probes: Sequence[str] = PROBES
) -> list[Example]:
    """Examples with `reactivity` and `reactivity_weight` (length, probe) from a table of measurements.

    With `merge`, all rows of one sequence in one dataset become one example, in the order (and with the id) of their
    first row: replicates of a probe are averaged at each position by the weights of the rows that measured it.
    Otherwise every row is an example. Rows of other probes than `probes` are left out (a warning names those that are
    not in `PROBES` either). `probes` is the probe axis: name fewer to save memory, 6 bytes a nucleotide and probe.

    The weight of a row is sn / (1 + sn), signal to noise sn clipped to [0, 20], or 0.5 where it is unknown; a quarter
    of that where the row failed the filter (`sn_pass`, Kaggle's `SN_filter`), half of that with a ligand. A position
    measured by rows of weights w gets 1 - prod(1 - w), and 0 where no row measured it.

    A plain table has `id`, `sequence` and a column a probe (`2A3`, `DMS`, ...) with as many numbers as the sequence has
    letters, apart by blanks, `nan` where nothing was measured; an empty field is no measurement. `signal_to_noise`,
    `dataset` and `split` may follow.

    `split` is one of the table's own. A table without a column `split` (Kaggle's) is divided into `train` and `valid`
    (8 %) by a hash of the sequence; without a column `cluster`, each sequence is a cluster of size 1.

    Raises:
        ValueError: no such columns or split, or values of another number than the sequence has letters; of a plain
            table, with file, line and column.
    """
    examples: list[Example] = []
    parts = list(_read_parts(Path(path), split, probes, with_error=False))
    if not parts:
        return examples
    rows = _concatenate(parts)
    groups = np.arange(len(rows.ids), dtype=np.int64)
    if merge:
        groups = running_numbers(zip(rows.sequences, rows.datasets, strict=True))
    by_group = np.argsort(groups, kind="stable")
    bounds = np.searchsorted(groups[by_group], np.arange(0, int(groups.max(initial=-1)) + 1, _EXAMPLES_AT_ONCE))
    for first, last in zip(bounds, [*bounds[1:], len(by_group)], strict=True):
        examples.extend(_merge(rows, by_group[first:last], groups, probes))
    return examples


def read_reactivity_rows(path: str | Path, split: str | None = None) -> list[ReactivityRow]:
    """The rows of a table as they are, unmerged, those of unknown probes left out.

    `split` as in `read_reactivity_table`. Errors are NaN throughout where the table has none.

    Raises:
        ValueError: see `read_reactivity_table`.
    """
    result = []
    for rows in _read_parts(Path(path), split, PROBES, with_error=True):
        starts = np.cumsum(rows.lengths) - rows.lengths
        for k, (start, length) in enumerate(zip(starts.tolist(), rows.lengths.tolist(), strict=True)):
            result.append(
                ReactivityRow(
                    id=rows.ids[k],
                    sequence=rows.sequences[k],
                    probe=rows.probes[k],
                    reactivity=rows.reactivity[start : start + length],
                    error=rows.error[start : start + length],
                    signal_to_noise=float(rows.signal_to_noise[k]),
                    sn_pass=bool(rows.sn_pass[k]),
                    dataset=rows.datasets[k],
                )
            )
    return result


def row_weights(
    signal_to_noise: Float64[np.ndarray, " row"], sn_pass: Bool[np.ndarray, " row"], ligand: Bool[np.ndarray, " row"]
) -> Float64[np.ndarray, " row"]:
    """Trust in each row, 0 to 20/21, from signal to noise (NaN = unknown), filter and ligand.

    >>> row_weights(np.array([1.0, 4.0]), np.array([True, False]), np.array([False, False])).tolist()
    [0.5, 0.2]
    >>> row_weights(np.array([np.nan]), np.array([True]), np.array([True])).tolist()
    [0.25]
    """
    clipped = np.clip(signal_to_noise, 0.0, MAX_SIGNAL_TO_NOISE)
    trust = np.where(np.isnan(clipped), UNKNOWN_TRUST, clipped / (1.0 + clipped))
    return trust * np.where(sn_pass, 1.0, FAILED_TRUST) * np.where(ligand, LIGAND_TRUST, 1.0)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of a table by column; the values of all rows stand end to end."""

    ids: list[str]
    sequences: list[str]
    probes: list[str]
    datasets: list[str]
    clusters: Int64[np.ndarray, " row"]
    """-1 throughout where the table has none."""
    cluster_sizes: Int64[np.ndarray, " row"]
    signal_to_noise: Float64[np.ndarray, " row"]
    sn_pass: Bool[np.ndarray, " row"]
    ligand: Bool[np.ndarray, " row"]
    lengths: Int64[np.ndarray, " row"]
    reactivity: Float16[np.ndarray, " value"]
    error: Float16[np.ndarray, " value"] | None


def _read_parts(path: Path, split: str | None, probes: Sequence[str], with_error: bool) -> Iterator[_Rows]:
    names = column_names(path)
    kaggle = "experiment_type" in names
    columns = [] if kaggle or "reagent" in names else [name for name in names if _probe(name) in {*PROBES, *probes}]
    if columns:
        yield from _plain_parts(path, names, columns, split, probes)
        return
    require_columns(path, names, ["sequence_id" if kaggle else "id"], ["sequence"], ["experiment_type", "reagent"])
    if kaggle:
        values = sorted(name for name in names if re.fullmatch(r"reactivity_\d+", name))
        require_columns(path, names, ["dataset_name"], values or ["reactivity_0001"])
        errors = sorted(name for name in names if re.fullmatch(r"reactivity_error_\d+", name)) if with_error else []
        wanted = [*_KAGGLE_COLUMNS, *values, *errors]
    else:
        require_columns(path, names, ["reactivity"])
        values, errors = ["reactivity"], ["error"] if with_error else []
        wanted = [*_OUR_COLUMNS, *values, *errors]
    known = _known_splits(path) if "split" in names else HASHED_SPLITS
    check_split(split, known, path)
    unknown: set[str] = set()
    for table in read_columns(path, wanted):
        table = _with_probes(table, kaggle)
        unknown.update(set(table["probe"].to_pylist()) - {*PROBES, *probes})
        table = _select(table, split, probes)
        if table.num_rows:
            yield _kaggle_rows(table, values, errors, with_error) if kaggle else _our_rows(table, with_error, path)
    if unknown:
        logger.warning("%s: rows of unknown probes left out: %s", path, ", ".join(sorted(unknown)))


def _probe(reagent: str) -> str:
    return REAGENT_PROBES.get(reagent, reagent)


def _plain_parts(
    path: Path, names: list[str], columns: list[str], split: str | None, probes: Sequence[str]
) -> Iterator[_Rows]:
    """Rows of a table with a column a probe: each filled field becomes a row."""
    require_columns(path, names, ["id"], ["sequence"])
    check_split(split, _known_splits(path) if "split" in names else HASHED_SPLITS, path)
    line = 1  # that of the header; quoted line breaks are not counted
    for table in read_columns(path, ["id", "sequence", "dataset", "signal_to_noise", "split", *columns]):
        ids, sequences = text_list(table, "id"), [rna_letters(text) for text in text_list(table, "sequence")]
        splits = text_list(table, "split") if "split" in names else [hashed_split(sequence) for sequence in sequences]
        datasets = text_list(table, "dataset")
        noise = number_array(table, "signal_to_noise", np.nan, np.float64)
        chosen, found, values = [], [], []
        fields = {column: text_list(table, column) for column in columns}
        for row in range(len(ids)):
            line += 1
            for column, texts in fields.items():
                numbers = _numbers(texts[row], len(sequences[row]), f"{path}, line {line}, column {column}")
                if len(numbers) and _probe(column) in probes and split in (None, splits[row]):
                    chosen.append(row)
                    found.append(_probe(column))
                    values.append(np.clip(numbers, *REACTIVITY_RANGE).astype(np.float16))
        if chosen:
            reactivity = _read_only(np.concatenate(values))
            yield _Rows(
                ids=[ids[row] for row in chosen],
                sequences=[sequences[row] for row in chosen],
                probes=found,
                datasets=[datasets[row] for row in chosen],
                clusters=np.full(len(chosen), -1, dtype=np.int64),
                cluster_sizes=np.ones(len(chosen), dtype=np.int64),
                signal_to_noise=noise[chosen],
                sn_pass=np.ones(len(chosen), dtype=bool),
                ligand=np.zeros(len(chosen), dtype=bool),
                lengths=np.array([len(sequences[row]) for row in chosen], dtype=np.int64),
                reactivity=reactivity,
                error=np.full_like(reactivity, np.nan),
            )


def _numbers(text: str, length: int, place: str) -> Float64[np.ndarray, " value"]:
    """The numbers of one field, none where it is empty."""
    words = re.split(r"[\s,;]+", text.strip(" \t[]"))
    if words == [""]:
        return np.zeros(0)
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        wrong = next(
            word for word in words if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|nan", word, re.I)
        )
        raise ValueError(f"{place}: expected numbers apart by blanks, got {wrong!r}") from None
    if len(numbers) != length:
        raise ValueError(f"{place}: expected {length} values, one a nucleotide, got {len(numbers)}")
    return numbers


def _known_splits(path: Path) -> list[str]:
    return sorted({split for table in read_columns(path, ["split"]) for split in text_list(table, "split")})


def _with_probes(table: pa.Table, kaggle: bool) -> pa.Table:
    """The table with a column `probe` and its sequences spelled A C G U N."""
    reagents = text_list(table, "experiment_type" if kaggle else "reagent")
    probes = [REAGENT_PROBES.get(reagent, reagent) for reagent in reagents]
    sequences = [rna_letters(text) for text in text_list(table, "sequence")]
    table = table.set_column(table.column_names.index("sequence"), "sequence", pa.array(sequences, pa.string()))
    return table.append_column("probe", pa.array(probes, pa.string()))


def _select(table: pa.Table, split: str | None, probes: Sequence[str]) -> pa.Table:
    keep = np.isin(text_list(table, "probe"), list(probes))
    if split is not None and "split" in table.column_names:
        keep &= np.array(text_list(table, "split")) == split
    elif split is not None:
        keep &= np.array([hashed_split(sequence) == split for sequence in text_list(table, "sequence")], dtype=bool)
    return table.filter(pa.array(keep))


def _our_rows(table: pa.Table, with_error: bool, path: Path) -> _Rows:
    ids, sequences = text_list(table, "id"), text_list(table, "sequence")
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    reactivity = _checked_values(table, "reactivity", lengths, ids, path)
    error = None
    if with_error:
        error = np.full(len(reactivity), np.nan, dtype=np.float16)
        if "error" in table.column_names:
            error = _checked_values(table, "error", lengths, ids, path)
    return _Rows(
        ids=ids,
        sequences=sequences,
        probes=text_list(table, "probe"),
        datasets=text_list(table, "dataset"),
        clusters=number_array(table, "cluster", -1.0, np.int64),
        cluster_sizes=number_array(table, "cluster_size", 1.0, np.int64),
        signal_to_noise=number_array(table, "signal_to_noise", np.nan, np.float64),
        sn_pass=flag_array(table, "sn_pass", True),
        ligand=np.array([text != "" for text in text_list(table, "ligand")], dtype=bool),
        lengths=lengths,
        reactivity=reactivity,
        error=error,
    )


def _checked_values(
    table: pa.Table, name: str, lengths: Int64[np.ndarray, " row"], ids: list[str], path: Path
) -> Float16[np.ndarray, " value"]:
    values, counts = flat_lists(table, name)
    wrong = counts != lengths
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"{path}: {ids[row]}: expected {lengths[row]} values of {name}, got {counts[row]}")
    return _read_only(values.astype(np.float16))


def _kaggle_rows(table: pa.Table, values: list[str], errors: list[str], with_error: bool) -> _Rows:
    sequences = text_list(table, "sequence")
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    return _Rows(
        ids=text_list(table, "sequence_id"),
        sequences=sequences,
        probes=text_list(table, "probe"),
        datasets=[_without_reagent(name) for name in text_list(table, "dataset_name")],
        clusters=np.full(len(sequences), -1, dtype=np.int64),
        cluster_sizes=np.ones(len(sequences), dtype=np.int64),
        signal_to_noise=number_array(table, "signal_to_noise", np.nan, np.float64),
        sn_pass=flag_array(table, "SN_filter", True),
        ligand=np.zeros(len(sequences), dtype=bool),
        lengths=lengths,
        reactivity=_positions(table, values, lengths, REACTIVITY_RANGE),
        error=_positions(table, errors, lengths, ERROR_RANGE) if with_error else None,
    )


def _without_reagent(dataset: str) -> str:
    """Kaggle names a dataset once for each reagent; without that ending both belong to one example.

    >>> _without_reagent("15k_2A3"), _without_reagent("15k_DMS"), _without_reagent("DMS_round1")
    ('15k', '15k', 'DMS_round1')
    """
    return re.sub(r"[_-](2A3|DMS)(_MaP)?$", "", dataset)


def _positions(
    table: pa.Table, names: list[str], lengths: Int64[np.ndarray, " row"], limits: tuple[float, float]
) -> Float16[np.ndarray, " value"]:
    """Values in one column a position, as those of each row's own length end to end; NaN beyond the last column."""
    width = int(lengths.max(initial=0))
    grid = np.full((len(lengths), width), np.nan, dtype=np.float16)
    for position, name in enumerate(names[:width]):
        grid[:, position] = np.clip(number_array(table, name, np.nan, np.float64), *limits)
    return _read_only(grid[np.arange(width) < lengths[:, None]])


def _concatenate(parts: list[_Rows]) -> _Rows:
    sequences = [sequence for part in parts for sequence in part.sequences]
    clusters = np.concatenate([part.clusters for part in parts])
    if (clusters < 0).all():
        clusters = running_numbers(sequences)
    return _Rows(
        ids=[text for part in parts for text in part.ids],
        sequences=sequences,
        probes=[text for part in parts for text in part.probes],
        datasets=[text for part in parts for text in part.datasets],
        clusters=clusters,
        cluster_sizes=np.concatenate([part.cluster_sizes for part in parts]),
        signal_to_noise=np.concatenate([part.signal_to_noise for part in parts]),
        sn_pass=np.concatenate([part.sn_pass for part in parts]),
        ligand=np.concatenate([part.ligand for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        reactivity=np.concatenate([part.reactivity for part in parts]),
        error=None,
    )


def _merge(
    rows: _Rows, chosen: Int64[np.ndarray, " chosen"], groups: Int64[np.ndarray, " row"], probes: Sequence[str]
) -> Iterator[Example]:
    """One example for each group of the chosen rows, which are sorted by group."""
    group = groups[chosen]
    opens = np.flatnonzero(np.diff(group, prepend=-1))
    heads = chosen[opens]  # first row of each example
    example = np.repeat(np.arange(len(opens)), np.diff(opens, append=len(group)))  # of each chosen row
    lengths = rows.lengths[heads]
    starts = np.cumsum(lengths) - lengths
    row_starts = (np.cumsum(rows.lengths) - rows.lengths)[chosen]
    trust = row_weights(rows.signal_to_noise[chosen], rows.sn_pass[chosen], rows.ligand[chosen])
    probe = np.array([probes.index(rows.probes[row]) for row in chosen.tolist()], dtype=np.int64)

    reactivity = np.full((int(lengths.sum()), len(probes)), np.nan, dtype=np.float16)
    weight = np.zeros((int(lengths.sum()), len(probes)), dtype=np.float32)
    for column in np.unique(probe):
        of_probe = np.flatnonzero(probe == column)
        counts = rows.lengths[chosen[of_probe]]
        values = rows.reactivity[ranges(row_starts[of_probe], counts)].astype(np.float64)
        target = ranges(starts[example[of_probe]], counts)
        reactivity[:, column], weight[:, column] = _average(
            values, np.repeat(trust[of_probe], counts), target, len(reactivity)
        )
    reactivity, weight = _read_only(reactivity), _read_only(weight)
    for head, start, length in zip(heads.tolist(), starts.tolist(), lengths.tolist(), strict=True):
        yield Example(
            id=rows.ids[head],
            sequence=rows.sequences[head],
            cluster=int(rows.clusters[head]),
            cluster_size=int(rows.cluster_sizes[head]),
            dataset=rows.datasets[head],
            reactivity=reactivity[start : start + length],
            reactivity_weight=weight[start : start + length],
        )


def _average(
    values: Float64[np.ndarray, " value"],
    trust: Float64[np.ndarray, " value"],
    target: Int64[np.ndarray, " value"],
    size: int,
) -> tuple[Float64[np.ndarray, " position"], Float64[np.ndarray, " position"]]:
    """Weighted mean of the measured values that fall on each position (NaN: none), and 1 - prod(1 - weight)."""
    measured = np.isfinite(values)
    values, trust, target = values[measured], trust[measured], target[measured]
    averaging = np.maximum(trust, _MIN_AVERAGING_WEIGHT)
    total = np.bincount(target, averaging, minlength=size)
    weighted = np.bincount(target, averaging * values, minlength=size)
    mean = np.divide(weighted, total, out=np.full(size, np.nan), where=total > 0)
    doubt = np.bincount(target, np.log1p(-trust), minlength=size)
    return mean, -np.expm1(doubt)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
