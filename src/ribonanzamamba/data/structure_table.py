"""Tables of secondary structures to examples.

Reads our Parquet (`pairs_ij`: flat i0, j0, i1, j1, ..., 0-based) and any table with columns `id`, `sequence` and
`dot_bracket` or `structure`. Knows nothing of tensors or networks.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32, Int64

from ribonanzamamba.data.columns import (
    column_names,
    flat_lists,
    number_array,
    read_columns,
    require_columns,
    rna_letters,
    running_numbers,
    text_list,
)
from ribonanzamamba.data.example import UNPAIRED, Example
from ribonanzamamba.data.splits import HASHED_SPLITS, check_split, hashed_split
from ribonanzamamba.rna.structure import Structure

_COLUMNS = (
    "id", "sequence", "dot_bracket", "structure", "pairs_ij", "source", "dataset", "cluster", "cluster_size", "split",
)  # fmt: skip


def read_structure_table(path: str | Path, split: str | None = None) -> list[Example]:
    """Examples with `partners` from a table of structures, in the order of its rows.

    `split` is one of the table's own (`train`, `valid`, `public_test_TS0` in ours); a table without a column `split`
    is divided by a hash of the sequence, 8 % to `valid`. Where there is no column `cluster`, identical sequences make
    a cluster of size 1. Every nucleotide outside a pair counts as unpaired. Sequence letters other than A C G U T
    become N.

    Raises:
        ValueError: no such columns or split; brackets that do not match each other or the sequence's length; a
            nucleotide outside the sequence or in two pairs. Each with the id of the row.
    """
    names = column_names(path)
    require_columns(path, names, ["id"], ["sequence"], ["dot_bracket", "structure", "pairs_ij"])
    table = pa.concat_tables(read_columns(path, _COLUMNS))
    if "split" in names:
        check_split(split, sorted(set(text_list(table, "split"))), path)
        if split is not None:
            table = table.filter(pc.equal(table["split"], split))
    else:
        check_split(split, HASHED_SPLITS, path)
    return [e for e in _examples(table, path) if "split" in names or split in (None, hashed_split(e.sequence))]


def _examples(table: pa.Table, path: str | Path) -> Iterator[Example]:
    ids = text_list(table, "id")
    sequences = [rna_letters(text) for text in text_list(table, "sequence")]
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    if "pairs_ij" in table.column_names:
        partners = _partners_from_pairs(table, lengths, ids, path)
    else:
        partners = _partners_from_text(table, lengths, ids, path)
    partners.flags.writeable = False
    datasets = text_list(table, "source" if "source" in table.column_names else "dataset", Path(path).stem)
    clusters = running_numbers(sequences)
    if "cluster" in table.column_names:
        clusters = number_array(table, "cluster", -1.0, np.int64)
    sizes = number_array(table, "cluster_size", 1.0, np.int64)
    starts = np.cumsum(lengths) - lengths
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        yield Example(
            id=ids[row],
            sequence=sequences[row],
            cluster=int(clusters[row]),
            cluster_size=int(sizes[row]),
            dataset=datasets[row],
            partners=partners[start : start + length],
        )


def _partners_from_pairs(
    table: pa.Table, lengths: Int64[np.ndarray, " row"], ids: list[str], path: str | Path
) -> Int32[np.ndarray, " position"]:
    """Partners of all rows end to end, from the flat pair lists, without a loop over rows."""
    values, counts = flat_lists(table, "pairs_ij")
    pairs = values.astype(np.int64).reshape(-1, 2)
    row = np.repeat(np.arange(len(lengths)), counts // 2)
    outside = ((pairs < 0) | (pairs >= lengths[row, None])).any(axis=1) | (pairs[:, 0] == pairs[:, 1])
    if outside.any():
        raise ValueError(f"{path}: {ids[row[outside.argmax()]]}: a pair outside the sequence or with itself")
    starts = (np.cumsum(lengths) - lengths)[row]
    ends = np.concatenate([pairs[:, 0] + starts, pairs[:, 1] + starts])
    used = np.bincount(ends, minlength=int(lengths.sum()))
    if (used > 1).any():
        where = int(np.searchsorted(np.cumsum(lengths), (used > 1).argmax(), side="right"))
        raise ValueError(f"{path}: {ids[where]}: a nucleotide in two pairs")
    partners = np.full(int(lengths.sum()), UNPAIRED, dtype=np.int32)
    partners[ends] = np.concatenate([pairs[:, 1], pairs[:, 0]])
    return partners


def _partners_from_text(
    table: pa.Table, lengths: Int64[np.ndarray, " row"], ids: list[str], path: str | Path
) -> Int32[np.ndarray, " position"]:
    texts = text_list(table, "dot_bracket" if "dot_bracket" in table.column_names else "structure")
    partners = [np.zeros(0, dtype=np.int32)]
    for name, text, length in zip(ids, texts, lengths.tolist(), strict=True):
        if len(text) != length:
            raise ValueError(f"{path}: {name}: expected a structure of {length} letters, got {len(text)}")
        try:
            partners.append(Structure.from_dot_bracket(text).to_partners())
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from error
    return np.concatenate(partners)
