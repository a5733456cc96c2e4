"""Factors that make the predicted errors of reactivity as large as they are, and what they are worth elsewhere.

    python benchmarks/error_factors.py TABLE=PREDICTIONS [TABLE=PREDICTIONS ...] [--split valid] [--picture FILE]

TABLE is a Parquet table of data/reactivity, PREDICTIONS a folder of `predict` with its sequences. The factor of a probe
is fitted on half of the sequences (by their MD5): it puts 80 % of their positions into the 80 % interval. Then, on the
other half: the share in that interval without and with it, and the observed mean absolute error where the
predicted one (with it) is in its lowest fifth, the next, and so on. Values are clipped to [0, 1], as for the MAE.
"""

import argparse
import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ribonanzamamba.evaluation.reactivity_files import ERROR, read_measured_reactivity, read_predicted_reactivity

SHARE = 0.8
FIFTHS = 5


def read_halves(pairs: list[str], split: str) -> dict[str, list[list[np.ndarray]]]:
    """For each probe and half of the sequences arrays (2, positions): absolute error, predicted error."""
    halves: dict[str, list[list[np.ndarray]]] = defaultdict(lambda: [[], []])
    for pair in pairs:
        table, _, folder = pair.partition("=")
        lookup = read_predicted_reactivity(folder)
        rows = [row for row in read_measured_reactivity(table, split) if row.passed]
        known = {row.sequence for row in rows}
        for row in rows:
            predicted = lookup.find((row.id,), row.sequence, known)
            if not predicted or row.probe not in predicted:
                continue
            measured = ~np.isnan(row.reactivity)
            error = np.abs(np.clip(predicted[row.probe], 0, 1) - np.clip(row.reactivity, 0, 1))
            half = int(hashlib.md5(row.sequence.encode()).hexdigest(), 16) % 2
            halves[row.probe][half].append(np.stack([error, predicted[row.probe + ERROR]])[:, measured])
    return halves


def draw(curves: dict[str, np.ndarray], path: Path) -> None:
    """Observed over predicted error, a line a probe: the closer to the diagonal, the more reliable."""
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    longest = max(curve.max() for curve in curves.values())
    axes.plot([0, longest], [0, longest], color="0.7", linewidth=1)
    for probe, (observed, predicted) in curves.items():
        axes.plot(predicted, observed, marker="o", markersize=3, label=probe)
    axes.set(xlabel="predicted error", ylabel="observed mean absolute error")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="TABLE=PREDICTIONS")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--picture", type=Path, help="reliability plot to write (.png or .svg)")
    arguments = parser.parse_args()
    curves = {}
    width = np.log(1 / (1 - SHARE))
    print("probe        positions  factor  in interval  with factor  observed / predicted error by fifths")
    for probe, (fitted, others) in read_halves(arguments.pairs, arguments.split).items():
        if not fitted or not others:
            continue
        error, predicted = np.concatenate(fitted, 1)
        factor = float(np.quantile(error / (width * predicted), SHARE))
        error, predicted = np.concatenate(others, 1)
        before, after = (float((error <= width * scale * predicted).mean()) for scale in (1.0, factor))
        fifths = np.array_split(np.argsort(predicted), FIFTHS)
        curves[probe] = np.array([[values[part].mean() for part in fifths] for values in (error, factor * predicted)])
        table = ", ".join(f"{observed:.3f} / {expected:.3f}" for observed, expected in curves[probe].T)
        print(f"{probe:12} {len(error):9}  {factor:6.3f}  {before:11.3f}  {after:11.3f}  {table}")
    if arguments.picture:
        draw(curves, arguments.picture)


if __name__ == "__main__":
    main()
