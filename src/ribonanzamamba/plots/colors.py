"""The colours every picture uses: bases, reactivity, pair probability and pLDDT, all safe for the colour-blind.

Knows nothing of axes; what is exported can be handed to `figure.colorbar` through `ScalarMappable`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgb

BASE_COLORS = {"A": "#E69F00", "C": "#0072B2", "G": "#009E73", "U": "#CC79A7", "N": "#999999"}
"""Source: Okabe and Ito 2008, Color Universal Design, orange, blue, bluish green and reddish purple."""

INK = "#333333"
"""Lines and letters that carry no value."""
PALE = "#BBBBBB"
"""Backbones, frames and whatever has no value (NaN)."""
PSEUDOKNOT = "#D55E00"
"""Pairs outside the nested part. Source: as `BASE_COLORS`, vermilion."""

LEGEND = {"frameon": False, "handlelength": 0.8, "handleheight": 0.8, "columnspacing": 1.2}
"""How every legend of colours looks: squares, no frame."""


def _scale(name: str, *colors: str) -> Colormap:
    """Colour map through the colours at equal distances, `PALE` where there is no value."""
    return LinearSegmentedColormap.from_list(name, colors).with_extremes(bad=PALE)


REACTIVITY_COLORS = _scale("reactivity", "#FFFFFF", "#FEE3B4", "#FDB366", "#E8601C", "#A50026", "#4A0016")
REACTIVITY_RANGE = Normalize(0.0, 1.0)
"""Reactivity is dimensionless, 1 is the 90th percentile of its data set; what lies beyond takes the last colour."""

NESTED_COLORS = _scale("nested", "#FFFFFF", "#7FA8D1", "#0B3C78")
PSEUDOKNOT_COLORS = _scale("pseudoknot", "#FFFFFF", "#F0A06A", "#A33E00")
PROBABILITY_RANGE = Normalize(0.0, 1.0)


@dataclass(frozen=True)
class Band:
    """One band of pLDDT: values of at least `floor`, up to the next band."""

    floor: float
    color: str
    name: str


PLDDT_BANDS = (
    Band(90.0, "#0053D6", "above 90"),
    Band(70.0, "#65CBF3", "70 to 90"),
    Band(50.0, "#FFDB13", "50 to 70"),
    Band(-np.inf, "#FF7D45", "below 50"),
)
"""From very high to very low. Source: AlphaFold Protein Structure Database, legend of the structure viewer."""


def plddt_color(value: float) -> str:
    """Colour of the band a pLDDT (0 to 100) lies in; `PALE` for NaN.

    >>> plddt_color(90.0), plddt_color(89.9), plddt_color(float("nan"))
    ('#0053D6', '#65CBF3', '#BBBBBB')
    """
    return next((band.color for band in PLDDT_BANDS if value >= band.floor), PALE)


def base_color(letter: str) -> str:
    """Colour of a base; that of N for a letter outside A C G U.

    >>> base_color("A"), base_color("X") == base_color("N")
    ('#E69F00', True)
    """
    return BASE_COLORS.get(letter, BASE_COLORS["N"])


def readable_on(color: str | tuple[float, ...]) -> str:
    """Black or white, whichever stands out more from a background.

    Source: WCAG 2.2, definitions of relative luminance and contrast ratio (equal contrast at luminance 0.179).

    >>> readable_on("#FFFFFF"), readable_on("#4A0016")
    ('black', 'white')
    """
    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "white"
