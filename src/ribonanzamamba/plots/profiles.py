"""Reactivity profiles: one RNA as bars with the predicted error, many RNAs as a heat map.

Knows nothing of models or files; axes are given and returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Patch

from ribonanzamamba.plots.colors import BASE_COLORS, INK, LEGEND, REACTIVITY_COLORS, REACTIVITY_RANGE, base_color
from ribonanzamamba.rna.records import Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_WITH_LETTERS = 120
"""Nucleotides; beyond it the letters under a profile would touch, and plain position ticks stand there."""
LONGEST_WITH_NAMES = 60
"""RNAs; beyond it a heat map's rows are too thin for their names."""
NUMBER_EVERY = 10
"""Nucleotides between two position numbers."""


def draw_reactivity(axes: Axes, prediction: Prediction, probe: str, measured: np.ndarray | None = None) -> Axes:
    """Bars of predicted reactivity, coloured by base, with the predicted error as a band and `measured` as dots.

    The band is reactivity plus and minus its expected absolute error and is left out where none was predicted.
    Positions are 1-based. Letters stand below the bars up to a length of `LONGEST_WITH_LETTERS`. NaN draws nothing.

    Args:
        measured: (length,), NaN where nothing was measured.

    Raises:
        ValueError: a probe that was not predicted, or `measured` of another length.
    """
    reactivity = _reactivity(prediction, probe)
    sequence = prediction.record.sequence
    positions = np.arange(1, len(sequence) + 1)
    axes.bar(positions, reactivity, width=0.8, color=[base_color(letter) for letter in sequence])
    handles = [Patch(color=BASE_COLORS[letter], label=letter) for letter in BASE_COLORS if letter in sequence]

    drawn = [reactivity]
    if probe in prediction.reactivity_error:
        error = np.asarray(prediction.reactivity_error[probe])
        drawn += [reactivity - error, reactivity + error]
        # Each nucleotide's own piece: two corners and a NaN that cuts it from the next
        edges = (positions[:, None] + (-0.4, 0.4, 0.4)).ravel()
        low, high = (np.stack([row, row, np.full_like(row, np.nan)], axis=1).ravel() for row in drawn[1:])
        handles.append(
            axes.fill_between(edges, low, high, color=INK, alpha=0.3, linewidth=0, zorder=2, label="± predicted error")
        )
    if measured is not None:
        if len(measured) != len(sequence):
            raise ValueError(f"expected {len(sequence)} measured values, got {len(measured)}")
        drawn.append(np.asarray(measured, dtype=np.float64))
        style = {"marker": "o", "markersize": 3.0, "markerfacecolor": "white", "markeredgecolor": "black"}
        handles += axes.plot(positions, drawn[-1], linestyle="none", markeredgewidth=0.8, label="measured", **style)

    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    axes.set_ylim(min(0.0, values.min(initial=0.0)), 1.05 * max(1.0, values.max(initial=1.0)))
    axes.axhline(0.0, color=INK, linewidth=0.8)
    axes.set_ylabel(f"{probe} reactivity")
    _letter_ticks(axes, sequence)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles), **LEGEND)
    return axes


def draw_heat_map(axes: Axes, predictions: Sequence[Prediction], probe: str) -> Axes:
    """Reactivity of many RNAs, one row each from the top, one column a position; grey beyond an RNA's end and for NaN.

    Colours run from 0 to 1 as in every picture (`REACTIVITY_COLORS`, `REACTIVITY_RANGE`).

    Raises:
        ValueError: no RNA, or one whose prediction lacks the probe.
    """
    if not predictions:
        raise ValueError("expected at least one prediction, got none")
    rows = [_reactivity(prediction, probe) for prediction in predictions]
    width = max(len(row) for row in rows)
    table = np.full((len(rows), width), np.nan)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    axes.imshow(
        table,
        cmap=REACTIVITY_COLORS,
        norm=REACTIVITY_RANGE,
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, width + 0.5, len(rows) + 0.5, 0.5),
    )
    if len(rows) <= LONGEST_WITH_NAMES:
        axes.set_yticks(range(1, len(rows) + 1), [prediction.record.id for prediction in predictions])
        axes.tick_params(axis="y", length=0)
    else:
        axes.set_ylabel("RNA")
    axes.set_xlabel("position (nt)")
    axes.set_title(f"{probe} reactivity")
    return axes


def _reactivity(prediction: Prediction, probe: str) -> np.ndarray:
    """Predicted reactivity (length,) of one probe."""
    if probe not in prediction.reactivity:
        known = ", ".join(prediction.reactivity) or "none"
        raise ValueError(f"{prediction.record.id}: expected a probe out of {known}, got {probe}")
    return np.asarray(prediction.reactivity[probe], dtype=np.float64)


def _letter_ticks(axes: Axes, sequence: str) -> None:
    """Each letter in its base's colour below its bar, and every tenth position's number; numbers only if too long."""
    axes.set_xlim(0.25, len(sequence) + 0.75)
    axes.set_xlabel("position (nt)")
    if len(sequence) > LONGEST_WITH_LETTERS:
        return
    numbers = ["" if (i + 1) % NUMBER_EVERY else f"\n{i + 1}" for i in range(len(sequence))]
    axes.xaxis.remove_overlapping_locs = False
    # A letter and its number need two colours, so two kinds of ticks: major ones letters, minor ones numbers
    axes.set_xticks(range(1, len(sequence) + 1), list(sequence))
    axes.set_xticks(range(1, len(sequence) + 1), numbers, minor=True)
    axes.tick_params(axis="x", which="both", length=0)
    for label, letter in zip(axes.get_xticklabels(), sequence, strict=True):
        label.set(color=base_color(letter), fontweight="bold", fontsize="small")
