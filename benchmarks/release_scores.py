"""What a checkpoint is worth: all tables of its model card, each predicted and scored as a user would.

    python benchmarks/release_scores.py --data DIR --out OUT                                # the released weights
    python benchmarks/release_scores.py --data DIR --out OUT --weights RUN/checkpoint --prior none
    python benchmarks/release_scores.py --data DIR --out OUT --weights FOLDER --sets ts0 3d   # once, at the very end

DIR holds the tables of docs/data.md. For each set `predict` writes OUT/SET, and goes on there where it was stopped; the
score is printed and kept as OUT/SET.json. Of the sets, `ts0` and `3d` are tests: they are left out unless named, and
nothing may be chosen by them. `new-families` are the valid rows of the Rfam table whose family and cluster occur in no
training row.

On two CPU cores, with ViennaRNA, 0.1 to 2 s an RNA by its length.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ribonanzamamba.evaluation.report import score_coordinates, score_reactivity, score_structure
from ribonanzamamba.evaluation.summary import Report

RFAM, STRUCTURES = "secondary/rfam_seed_projected.parquet", "secondary/structures.parquet"
TEST_SPLIT = "public_test_TS0"
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class ScoredSet:
    """RNAs to predict, and what they are compared with."""

    task: str
    table: str
    """In the folder of the data."""
    split: str | None
    score: Callable[..., Report]
    test: bool = False
    """Looked at once, at the very end."""
    only_new: bool = False
    """Only families that no training row has."""


SETS = {
    "2a3-dms": ScoredSet("reactivity", "reactivity/ribonanza_2a3_dms.parquet", "valid", score_reactivity),
    "1m7": ScoredSet("reactivity", "reactivity/eterna_1m7.parquet", "valid", score_reactivity),
    "openvaccine": ScoredSet("reactivity", "reactivity/openvaccine.parquet", "valid", score_reactivity),
    "long-natural": ScoredSet("reactivity", "reactivity/long_natural.parquet", "valid", score_reactivity),
    "structures": ScoredSet("structure", STRUCTURES, "valid", score_structure),
    "new-families": ScoredSet("structure", RFAM, "valid", score_structure, only_new=True),
    "ts0": ScoredSet("structure", STRUCTURES, TEST_SPLIT, score_structure, test=True),
    "3d": ScoredSet("coordinates", "rna3d/validation.parquet", None, score_coordinates, test=True),
}


def read_rows(path: Path, *columns: str) -> Rows:
    """Some columns of a Parquet table, those that it has."""
    names = set(pq.read_schema(path).names)
    return pq.read_table(path, columns=[column for column in columns if column in names]).to_pylist()


def new_families(data: Path) -> Rows:
    """The valid rows of the Rfam table that have neither family nor cluster in common with a training row of any
    table of structures."""
    columns = ("id", "sequence", "dot_bracket", "family", "cluster", "split")
    rfam, others = (read_rows(data / table, *columns) for table in (RFAM, STRUCTURES))
    trained = [row for row in (*rfam, *others) if row["split"] == "train"]
    families, clusters = {row["family"] for row in trained}, {row["cluster"] for row in trained}
    return [
        row
        for row in rfam
        if row["split"] == "valid" and row["family"] not in families and row["cluster"] not in clusters
    ]


def prepare(name: str, data: Path, out: Path) -> tuple[Path, Path, str | None]:
    """Write the set's sequences, each once; returns them, the table of the truth, and its split."""
    chosen = SETS[name]
    truth, split = data / chosen.table, chosen.split
    if chosen.only_new:
        rows = new_families(data)
        truth, split = out / f"{name}.csv", None
        with open(truth, "w", newline="") as file:
            columns = ("id", "sequence", "dot_bracket", "family")
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    else:
        rows = read_rows(truth, "id", "target_id", "sequence", "split")
        rows = [row for row in rows if split is None or row["split"] == split]
    names = {}
    for row in rows:
        names.setdefault(row["sequence"], row.get("id") or row.get("target_id"))
    sequences = out / f"{name}.fasta"
    sequences.write_text("".join(f">{id}\n{sequence}\n" for sequence, id in names.items()))
    return sequences, truth, split


def scores(
    names: list[str], data: Path, out: Path, weights: str | None, prior: str, device: str
) -> Iterator[tuple[str, Report]]:
    """Predict each set, and score it.

    Raises:
        subprocess.CalledProcessError: `predict` failed; it says why.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        sequences, truth, split = prepare(name, data, out)
        folder = out / name
        command = [sys.executable, "-m", "ribonanzamamba", "predict", str(sequences), "--out", str(folder)]
        command += ["--tasks", SETS[name].task, "--prior", prior, "--device", device]
        command += ["--weights", weights] if weights else []
        command += ["--resume"] if folder.is_dir() else []
        subprocess.run(command, check=True)
        report = SETS[name].score(truth, folder, split=split)
        (out / f"{name}.json").write_text(json.dumps(report.to_json(), indent=2) + "\n")
        yield name, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--out", type=Path, required=True, help="folder of the predictions and scores")
    parser.add_argument("--weights", help="checkpoint folder or preset; the released weights otherwise")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[name for name in SETS if not SETS[name].test])
    parser.add_argument("--prior", choices=("auto", "vienna", "none"), default="auto")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    for name, report in scores(
        arguments.sets, arguments.data, arguments.out, arguments.weights, arguments.prior, arguments.device
    ):
        print(f"\n{name}\n\n{report.to_text()}", flush=True)


if __name__ == "__main__":
    main()
