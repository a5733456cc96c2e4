"""Three dimensions on paper: the C1' trace in its flattest view, coloured by confidence.

Knows nothing of models or files; axes are given and returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ribonanzamamba.plots.colors import INK, PALE, PLDDT_BANDS, plddt_color
from ribonanzamamba.rna.structure import Structure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_POINTS = 8
"""Pieces of the smooth curve between two nucleotides; even, so that each half takes its own nucleotide's colour."""
LINE_WIDTH = 4.0
HALO_WIDTH = 7.0
"""Points. The white halo of what lies in front cuts what lies behind, so that crossings can be read."""
HALO_DEPTH = 4.0
"""Angstrom a piece's halo lies behind the piece: less than strands are apart, more than one nucleotide's slope."""
SCALE_BAR = 20.0
"""Angstrom."""
LABEL_DISTANCE = 6.0
LABEL_NEIGHBOURHOOD = 25.0
"""Angstrom. An end's label stands that far from it, away from the centre of what is that near on paper."""


def draw_trace(axes: Axes, coordinates: np.ndarray, plddt: np.ndarray, structure: Structure | None = None) -> Axes:
    """The trace through one atom a nucleotide, seen along its thinnest direction, coloured by pLDDT.

    Colours are AlphaFold's four bands (`PLDDT_BANDS`). Each half of the way between two nucleotides takes the colour
    of the nearer one. Pairs of `structure` are grey rungs. A bar gives the scale. A nucleotide with NaN coordinates
    leaves a gap; without any two neighbours nothing but the bar is drawn.

    Args:
        coordinates: (length, 3), angstrom, of C1'.
        plddt: (length,), 0 to 100; NaN is grey.

    Raises:
        ValueError: shapes or a structure that do not fit.
    """
    length = len(coordinates)
    if np.shape(coordinates) != (length, 3) or np.shape(plddt) != (length,):
        raise ValueError(f"expected (length, 3) and (length,), got {np.shape(coordinates)} and {np.shape(plddt)}")
    if structure is not None and structure.length != length:
        raise ValueError(f"expected a structure of length {length}, got {structure.length}")
    view = to_principal_axes(coordinates)

    pieces, colors = _colored_pieces(view, plddt)
    rungs = view[np.array(structure.pairs)] if structure is not None and structure.pairs else np.empty((0, 2, 3))
    rungs = rungs[np.isfinite(rungs).all(axis=(1, 2))]
    # Painter's algorithm in one collection: halos, curve and rungs sorted from far to near
    lines = np.concatenate([pieces, pieces, rungs])
    depth = lines[:, :, 2].mean(axis=1) - np.repeat([HALO_DEPTH, 0.0, 0.0], [len(pieces), len(pieces), len(rungs)])
    color = np.array(["white"] * len(pieces) + colors + [PALE] * len(rungs), dtype=object)
    width = np.repeat([HALO_WIDTH, LINE_WIDTH, LINE_WIDTH / 3], [len(pieces), len(pieces), len(rungs)])
    order = np.argsort(depth, kind="stable")
    trace = LineCollection(list(lines[order, :, :2]), colors=list(color[order]), linewidths=width[order])
    trace.set_capstyle("round")
    axes.add_collection(trace, autolim=False)

    placed = np.flatnonzero(np.isfinite(view).all(axis=1))
    flat = view[placed, :2] if len(placed) else np.zeros((1, 2))
    for index, text in ((0, "5'"), (-1, "3'")) if len(placed) else ():
        near = flat[np.linalg.norm(flat - flat[index], axis=1) < LABEL_NEIGHBOURHOOD]
        outward = flat[index] - near.mean(axis=0)
        place = flat[index] + LABEL_DISTANCE * outward / max(float(np.linalg.norm(outward)), 1e-9)
        label = axes.text(*place, text, ha="center", va="center", color=INK, fontweight="bold")
        label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    low, high = flat.min(axis=0) - 8.0, flat.max(axis=0) + 8.0
    bar = low[0] + np.array([0.0, SCALE_BAR])
    axes.plot(bar, [low[1] - 4.0] * 2, color=INK, linewidth=2.0, solid_capstyle="butt")
    axes.text(bar.mean(), low[1] - 5.0, f"{SCALE_BAR:.0f} Å", ha="center", va="top", color=INK)
    axes.set(xlim=(low[0], max(high[0], bar[1] + 1.0)), ylim=(low[1] - 12.0, high[1]), aspect="equal")
    axes.set_axis_off()
    handles = [Line2D([], [], color=band.color, linewidth=LINE_WIDTH, label=band.name) for band in PLDDT_BANDS]
    axes.legend(handles=handles, title="pLDDT", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return axes


def to_principal_axes(coordinates: np.ndarray) -> np.ndarray:
    """Coordinates (length, 3) turned about their centre: longest direction along x, then y, the thinnest along z.

    A rotation, never a mirror image; NaN rows stay NaN and do not count. The first point with coordinates has x and y
    at most 0, so that the same molecule gives the same picture. All NaN gives all NaN.

    >>> to_principal_axes(np.array([[0.0, 9.0, 0.0], [0.0, 5.0, 0.0], [0.0, 1.0, 0.0]])).round(6)[:, 0].tolist()
    [-4.0, 0.0, 4.0]
    """
    points = np.asarray(coordinates, dtype=np.float64)
    placed = points[np.isfinite(points).all(axis=1)]
    if not len(placed):
        return np.full_like(points, np.nan)
    centre = placed.mean(axis=0)
    _, _, directions = np.linalg.svd(placed - centre)
    signs = np.where(directions[:2] @ (placed[0] - centre) > 0, -1.0, 1.0)
    first, second = directions[:2] * signs[:, None]
    return (points - centre) @ np.stack([first, second, np.cross(first, second)]).T


def smooth_curve(points: np.ndarray) -> np.ndarray:
    """Points (length, 3) joined by a curve that passes through all of them, ((length - 1) * `CURVE_POINTS` + 1, 3).

    Source: Catmull and Rom 1974, cubic with tangents parallel to the line through both neighbours; the ends are
    continued in a straight line.

    >>> smooth_curve(np.array([[0.0, 0.0, 0.0], [8.0, 0.0, 0.0]]))[:3, 0].tolist()
    [0.0, 1.0, 2.0]
    """
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    before, start, end, after = (padded[shift : len(points) - 1 + shift, None] for shift in range(4))
    t = np.arange(CURVE_POINTS)[:, None] / CURVE_POINTS
    curve = start + t / 2 * (
        (end - before) + t * (2 * before - 5 * start + 4 * end - after) + t**2 * (3 * (start - end) + after - before)
    )
    return np.concatenate([curve.reshape(-1, 3), points[-1:]])


def _colored_pieces(view: np.ndarray, plddt: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Straight pieces (piece, 2, 3) of the curve through each unbroken run, and the colour of each."""
    placed = np.isfinite(view).all(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], placed, [False]]).astype(np.int8)))
    pieces, colors = [np.empty((0, 2, 3))], []
    for start, stop in edges.reshape(-1, 2):
        if stop - start < 2:
            continue
        curve = smooth_curve(view[start:stop])
        pieces.append(np.stack([curve[:-1], curve[1:]], axis=1))
        nearest = start + (np.arange(len(curve) - 1) + CURVE_POINTS // 2) // CURVE_POINTS
        colors += [plddt_color(plddt[index]) for index in nearest]
    return np.concatenate(pieces), colors
