"""Draw everything that is predicted for yeast tRNA-Phe in one figure, with the weights that come with the package.

    python examples/draw.py                 # writes docs/images/tRNA-Phe.png
    python examples/draw.py picture.svg     # or any file matplotlib can write

The known structure in the dot plot is that of `examples/README.md` (PDB 1EHZ).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

import ribonanzamamba
from ribonanzamamba.plots import draw_dot_plot, draw_layout, draw_reactivity, draw_trace
from ribonanzamamba.plots.colors import NESTED_COLORS, PROBABILITY_RANGE, REACTIVITY_COLORS, REACTIVITY_RANGE
from ribonanzamamba.rna.formats import read_fasta
from ribonanzamamba.rna.records import Prediction
from ribonanzamamba.rna.structure import Structure

EXAMPLES = Path(__file__).parent
RNA = "tRNA-Phe"
PICTURE = EXAMPLES.parent / "docs" / "images" / f"{RNA}.png"
WIDTH, HEIGHT, DOTS_PER_INCH = 10.0, 10.4, 160
"""Inches, inches, dots an inch."""


def read_known_structure(id: str) -> Structure:
    """The structure that stands under an RNA's name and sequence in this folder's README."""
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    block = re.search(rf"^>{re.escape(id)}\n[ACGU]+\n(\S+)$", readme, flags=re.MULTILINE)
    if block is None:
        raise ValueError(f"examples/README.md has no structure of {id}")
    return Structure.from_dot_bracket(block[1])


def draw_prediction(prediction: Prediction, known: Structure) -> Figure:
    """One figure: layout and trace, 2A3 profile, DMS profile, dot plot."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    axes = figure.subplot_mosaic(
        [["layout", "pairs"], ["layout", "trace"], ["2A3", "2A3"], ["DMS", "DMS"]],
        height_ratios=[3.3, 3.3, 1.5, 1.5],
        width_ratios=[1.15, 1.0],
    )
    sequence = prediction.record.sequence
    draw_layout(axes["layout"], sequence, prediction.structure, prediction.reactivity["2A3"], ends_on_top=True)
    draw_dot_plot(axes["pairs"], prediction.pair_probability, known)
    draw_trace(
        axes["trace"],
        prediction.coordinates[0, :, prediction.atoms.index("C1'")],
        prediction.plddt[0],
        prediction.structure,
    )
    for probe in ("2A3", "DMS"):
        draw_reactivity(axes[probe], prediction, probe)
    # The letters' colours are explained once, above the upper profile
    axes["DMS"].get_legend().remove()
    axes["2A3"].set_xlabel("")

    bar = axes["layout"].inset_axes((0.6, 0.06, 0.34, 0.02))
    reactivity = ScalarMappable(REACTIVITY_RANGE, REACTIVITY_COLORS)
    figure.colorbar(reactivity, cax=bar, label="2A3 reactivity", orientation="horizontal", extend="max")
    bar = axes["pairs"].inset_axes((1.04, 0.2, 0.035, 0.6))
    figure.colorbar(ScalarMappable(PROBABILITY_RANGE, NESTED_COLORS), cax=bar, label="pair probability")

    for letter, name in zip("abcde", ("layout", "pairs", "trace", "2A3", "DMS"), strict=True):
        corner = {"xy": (0.0, 1.0), "xycoords": "axes fraction", "xytext": (-36, 6), "textcoords": "offset points"}
        axes[name].annotate(letter, fontweight="bold", fontsize="x-large", **corner)
    figure.suptitle(f"{prediction.record.id} ({prediction.record.length} nt), predicted from its sequence alone")
    return figure


def main() -> None:
    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    record = next(record for record in read_fasta(EXAMPLES / "rnas.fasta") if record.id == RNA)
    prediction = ribonanzamamba.load().predict(record)
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw_prediction(prediction, read_known_structure(RNA)).savefig(picture, dpi=DOTS_PER_INCH)


if __name__ == "__main__":
    main()
