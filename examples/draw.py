"""Draw everything that is predicted for yeast tRNA-Phe in one figure, with the weights that come with the package.

    python examples/draw.py                 # writes docs/images/tRNA-Phe.png
    python examples/draw.py picture.svg     # or any file matplotlib can write

The known structure in the dot plot is that of `examples/README.md` (PDB 1EHZ).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from matplotlib.figure import Figure

import ribonanzamamba
from ribonanzamamba.plots import draw_overview
from ribonanzamamba.rna.formats import read_fasta
from ribonanzamamba.rna.structure import Structure

EXAMPLES = Path(__file__).parent
RNA = "tRNA-Phe"
PICTURE = EXAMPLES.parent / "docs" / "images" / f"{RNA}.png"
DOTS_PER_INCH = 160


def read_known_structure(id: str) -> Structure:
    """The structure that stands under an RNA's name and sequence in this folder's README."""
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    block = re.search(rf"^>{re.escape(id)}\n[ACGU]+\n(\S+)$", readme, flags=re.MULTILINE)
    if block is None:
        raise ValueError(f"examples/README.md has no structure of {id}")
    return Structure.from_dot_bracket(block[1])


def main() -> None:
    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    record = next(record for record in read_fasta(EXAMPLES / "rnas.fasta") if record.id == RNA)
    prediction = ribonanzamamba.load().predict(record)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure = draw_overview(Figure(layout="constrained"), prediction, read_known_structure(RNA))
    figure.savefig(picture, dpi=DOTS_PER_INCH)


if __name__ == "__main__":
    main()
