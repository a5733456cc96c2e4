"""Tables of sequences of which nothing was measured, to examples. Knows nothing of tensors or networks."""

from pathlib import Path

import pyarrow as pa

from ribonanzamamba.data.columns import (
    column_names,
    read_columns,
    require_columns,
    rna_letters,
    running_numbers,
    text_list,
)
from ribonanzamamba.data.example import Example


def read_sequence_table(path: str | Path) -> list[Example]:
    """Examples without measurements from a table with columns `id` and `sequence`, of each sequence the first row.

    Sequence letters other than A C G U T become N.

    Raises:
        ValueError: no such columns.
    """
    require_columns(path, column_names(path), ["id"], ["sequence"])
    table = pa.concat_tables(read_columns(path, ("id", "sequence", "source", "dataset")))
    datasets = text_list(table, "source" if "source" in table.column_names else "dataset", Path(path).stem)
    sequences = [rna_letters(text) for text in text_list(table, "sequence")]
    examples: dict[str, Example] = {}
    rows = zip(text_list(table, "id"), sequences, running_numbers(sequences).tolist(), datasets, strict=True)
    for name, sequence, cluster, dataset in rows:
        if sequence and sequence not in examples:
            examples[sequence] = Example(name, sequence, cluster, cluster_size=1, dataset=dataset)
    return list(examples.values())
