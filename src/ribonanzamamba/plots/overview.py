"""All that was predicted of one RNA on one figure."""

from __future__ import annotations

from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from ribonanzamamba.plots.colors import NESTED_COLORS, PROBABILITY_RANGE, REACTIVITY_COLORS, REACTIVITY_RANGE
from ribonanzamamba.plots.coordinates import draw_trace
from ribonanzamamba.plots.profiles import draw_reactivity
from ribonanzamamba.plots.structures import draw_dot_plot, draw_layout
from ribonanzamamba.rna.records import Prediction
from ribonanzamamba.rna.structure import Structure

WIDTH = 10.0
"""Inches."""
PANEL_HEIGHT, PROFILE_HEIGHT = 3.3, 1.5
"""Of a row of panels and of a profile, inches; titles and legends take what is added to them."""
ADDED_HEIGHT = 0.8
PROFILES = ("2A3", "DMS")
"""The probes that are drawn where they were predicted; otherwise as many as there are, up to these two."""


def draw_overview(figure: Figure, prediction: Prediction, known: Structure | None = None) -> Figure:
    """The structure coloured by reactivity, pair probabilities, the best 3D model and two profiles, of these what was
    predicted; the figure gets a height to fit. Returns the figure.

    Args:
        figure: an empty one, with layout "constrained".
        known: a structure to compare the pairs with.
    """
    sequence, structure = prediction.record.sequence, prediction.structure
    has_pairs, has_trace = structure is not None, prediction.coordinates is not None
    probes = [probe for probe in PROFILES if probe in prediction.reactivity] or list(prediction.reactivity)[:2]
    panels: list[list[str]] = []
    if has_pairs:
        panels = [["layout", "pairs"], ["layout", "trace"]] if has_trace else [["layout", "pairs"]]
    elif has_trace:
        panels = [["trace", "trace"]]
    heights = [PANEL_HEIGHT] * len(panels) + [PROFILE_HEIGHT] * len(probes)
    figure.set_size_inches(WIDTH, sum(heights) + ADDED_HEIGHT)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    axes = figure.subplot_mosaic(
        [*panels, *([probe, probe] for probe in probes)], height_ratios=heights, width_ratios=[1.15, 1.0]
    )
    if structure is not None and prediction.pair_probability is not None:
        colors = prediction.reactivity.get(probes[0]) if probes else None
        draw_layout(axes["layout"], sequence, structure, colors, ends_on_top=True)
        draw_dot_plot(axes["pairs"], prediction.pair_probability, known)
        if colors is not None:
            scale = ScalarMappable(REACTIVITY_RANGE, REACTIVITY_COLORS)
            # beside the drawing, which may fill all of its axes
            place = {"location": "bottom", "shrink": 0.4, "aspect": 25, "pad": 0.02, "anchor": (0.9, 1.0)}
            figure.colorbar(scale, ax=axes["layout"], label=f"{probes[0]} reactivity", extend="max", **place)
        bar = axes["pairs"].inset_axes((1.04, 0.2, 0.035, 0.6))
        figure.colorbar(ScalarMappable(PROBABILITY_RANGE, NESTED_COLORS), cax=bar, label="pair probability")
    if prediction.coordinates is not None and prediction.plddt is not None:
        c1_prime = prediction.coordinates[0, :, prediction.atoms.index("C1'")]
        draw_trace(axes["trace"], c1_prime, prediction.plddt[0], structure)
    for number, probe in enumerate(probes):
        draw_reactivity(axes[probe], prediction, probe)
        # the letters' colours are explained once, and the positions once
        if number > 0:
            axes[probe].get_legend().remove()
        if number < len(probes) - 1:
            axes[probe].set_xlabel("")
    names = list(dict.fromkeys([name for row in panels for name in row] + probes))
    for letter, name in zip("abcde", names, strict=False):
        corner = {"xy": (0.0, 1.0), "xycoords": "axes fraction", "xytext": (-36, 6), "textcoords": "offset points"}
        axes[name].annotate(letter, fontweight="bold", fontsize="x-large", **corner)
    title = f"{prediction.record.id} ({prediction.record.length} nt), predicted from its sequence alone"
    # an id may hold what looks like a formula
    figure.suptitle(title, parse_math=False)
    return figure
