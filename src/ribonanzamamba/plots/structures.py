"""Secondary structures: arc diagram, dot plot, and two-dimensional layout.

Knows nothing of models or files; axes are given and returned. The nested part of a structure and the pairs that cross
it (`layout.split_pseudoknots`) always have colours of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Circle, Patch, PathPatch, Rectangle
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from ribonanzamamba.plots.colors import (
    INK,
    LEGEND,
    NESTED_COLORS,
    PALE,
    PROBABILITY_RANGE,
    PSEUDOKNOT,
    PSEUDOKNOT_COLORS,
    REACTIVITY_COLORS,
    REACTIVITY_RANGE,
    base_color,
    readable_on,
)
from ribonanzamamba.plots.layout import lay_out, split_pseudoknots
from ribonanzamamba.rna.structure import Structure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARC_POINTS = 65
"""Points of each half circle of an arc diagram."""
NUCLEOTIDE_RADIUS = 0.44
LETTER_SIZE = 0.46
LABEL_SIZE = 0.7
LABEL_DISTANCE = 1.35
LABEL_NEIGHBOURHOOD = 4.0
"""Sizes in a layout, in backbone steps: a radius, heights of a digit, and distances from a nucleotide's centre."""
LABEL_DIRECTIONS = 32
"""Directions around a nucleotide in which its number may stand."""
NUMBER_EVERY = 10
"""Nucleotides between two position numbers."""


def draw_arcs(
    axes: Axes, structure: Structure, probabilities: np.ndarray | None = None, known: Structure | None = None
) -> Axes:
    """Pairs as half circles over a line of 1-based positions; those of `known` mirrored below it.

    Nested pairs are blue, pseudoknotted ones orange, each darker the more probable it is (full colour without
    `probabilities`). Known pairs are solid where `structure` has them and dotted where it does not.

    Args:
        probabilities: (length, length), probability of each pair, 0 to 1.

    Raises:
        ValueError: probabilities or known structure of another length.
    """
    length = structure.length
    nested_part, crossing = split_pseudoknots(structure)
    if probabilities is not None:
        _check_square(probabilities, length)
    for pairs, colors in ((nested_part.pairs, NESTED_COLORS), (crossing, PSEUDOKNOT_COLORS)):
        strength = np.ones(len(pairs)) if probabilities is None else np.array([probabilities[pair] for pair in pairs])
        # The likely ones last, on top of the others
        order = np.argsort(strength, kind="stable")
        arcs = LineCollection([_arc(pairs[index]) for index in order], cmap=colors, norm=PROBABILITY_RANGE)
        arcs.set(array=strength[order], linewidth=1.6)
        axes.add_collection(arcs, autolim=False)
    if known is not None:
        _check_length(known, length)
        for style, found in (("solid", True), ("dotted", False)):
            arcs = [_arc(pair) * (1.0, -1.0) for pair in known.pairs if (pair in structure.pairs) is found]
            axes.add_collection(LineCollection(arcs, colors=INK, linestyles=style, linewidths=1.2), autolim=False)

    axes.plot([0.5, length + 0.5], [0.0, 0.0], color=INK, linewidth=1.0)
    top, bottom = (_highest_arc(pairs) for pairs in (structure.pairs, known.pairs if known is not None else ()))
    axes.set(xlim=(0.0, length + 1.0), ylim=(-bottom - 1.0, top + 1.0), aspect="equal", xlabel="position (nt)")
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    if known is not None:
        corner = {"transform": axes.transAxes, "fontsize": "small", "color": INK}
        axes.text(0.0, 1.0, "predicted", va="top", **corner)
        axes.text(0.0, 0.0, "known", va="bottom", **corner)
    return axes


def draw_dot_plot(axes: Axes, pair_probability: np.ndarray, known: Structure | None = None) -> Axes:
    """Pair probability above the diagonal, the known structure below it; positions are 1-based, the first on top.

    Known pairs are black squares, pseudoknotted ones orange. NaN is grey.

    Args:
        pair_probability: (length, length), symmetric, 0 to 1.

    Raises:
        ValueError: a table that is not square, or a known structure of another length.
    """
    length = len(pair_probability)
    _check_square(pair_probability, length)
    upper = np.triu(np.asarray(pair_probability, dtype=np.float64), k=1)
    frame = (0.5, length + 0.5, length + 0.5, 0.5)
    axes.imshow(
        upper, cmap=NESTED_COLORS, norm=PROBABILITY_RANGE, extent=frame, origin="upper", interpolation="nearest"
    )
    if known is not None:
        _check_length(known, length)
        nested_part, crossing = split_pseudoknots(known)
        handles = [Patch(color=NESTED_COLORS(1.0), label="predicted")]
        for pairs, color, label in (
            (nested_part.pairs, "black", "known"),
            (crossing, PSEUDOKNOT, "known pseudoknot"),
        ):
            squares = [Rectangle((i + 0.5, j + 0.5), 1.0, 1.0) for i, j in pairs]
            axes.add_collection(PatchCollection(squares, facecolors=color, linewidths=0), autolim=False)
            handles += [Patch(color=color, label=label)] if pairs else []
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(handles), **LEGEND)
    axes.plot([0.5, length + 0.5], [0.5, length + 0.5], color=PALE, linewidth=0.8)
    axes.set(xlim=frame[:2], ylim=frame[2:], aspect="equal", xlabel="position (nt)", ylabel="position (nt)")
    return axes


def draw_layout(
    axes: Axes, sequence: str, structure: Structure, values: np.ndarray | None = None, ends_on_top: bool = False
) -> Axes:
    """The nested part laid out in two dimensions, pseudoknotted pairs as dashed lines, every nucleotide as its letter.

    Circles are coloured by `values` as reactivity (0 to 1, NaN grey), or by base without values. Every tenth
    position has its 1-based number, the ends are marked 5' and 3'. Stems stand on their ends and the strand runs
    clockwise; with `ends_on_top` they hang, as a tRNA is drawn, and it runs counterclockwise. Length 0 draws nothing.

    Args:
        values: (length,), reactivity of each nucleotide, dimensionless.

    Raises:
        ValueError: structure or values of another length than the sequence.
    """
    _check_length(structure, len(sequence))
    if values is not None and len(values) != len(sequence):
        raise ValueError(f"expected {len(sequence)} values, got {len(values)}")
    axes.set_axis_off()
    axes.set_aspect("equal")
    if not sequence:
        return axes
    nested_part, crossing = split_pseudoknots(structure)
    positions = lay_out(nested_part) * ((1.0, -1.0) if ends_on_top else (1.0, 1.0))
    axes.plot(*positions.T, color=PALE, linewidth=1.2, zorder=1)
    for pairs, color, style in ((nested_part.pairs, INK, "solid"), (crossing, PSEUDOKNOT, (0, (3, 2)))):
        lines = LineCollection([positions[list(pair)] for pair in pairs], colors=color, linestyles=[style])
        lines.set(linewidth=1.4, zorder=1.5)
        axes.add_collection(lines, autolim=False)

    fills = _fills(sequence, values)
    circles = [Circle(position, NUCLEOTIDE_RADIUS) for position in positions]
    # No antialiased edge around a letter: the line width is 0, and its face has the colour that can be read
    letters = [_text_patch(letter, place, LETTER_SIZE) for letter, place in zip(sequence, positions, strict=True)]
    labels = _labels(positions)
    numbers = [_text_patch(text, place, LABEL_SIZE) for text, place in labels]
    for patches, colors, edge in ((circles, fills, 0.6), (letters, map(readable_on, fills), 0.0), (numbers, INK, 0.0)):
        shapes = PatchCollection(patches, edgecolors=INK, linewidths=edge, zorder=2)
        shapes.set_facecolor(colors if isinstance(colors, str) else list(colors))
        axes.add_collection(shapes, autolim=False)
    corners = np.concatenate([positions, [place for _, place in labels]])
    low, high = corners.min(axis=0) - LABEL_SIZE, corners.max(axis=0) + LABEL_SIZE
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return axes


def _fills(sequence: str, values: np.ndarray | None) -> list[str]:
    """Colour of each nucleotide: by its base, or by its value as reactivity."""
    if values is None:
        return [base_color(letter) for letter in sequence]
    shown = np.ma.masked_invalid(np.asarray(values, dtype=np.float64))
    return [to_hex(color) for color in REACTIVITY_COLORS(REACTIVITY_RANGE(shown))]


def _text_patch(text: str, centre: np.ndarray, size: float) -> PathPatch:
    """Text as an outline in data units, so that it grows and shrinks with the drawing; `size` is that of a digit."""
    outline = TextPath((0.0, 0.0), text, size=1.0)
    box = outline.get_extents()
    scale = size / TextPath((0.0, 0.0), "0", size=1.0).get_extents().height
    move = Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2).scale(scale).translate(*centre)
    return PathPatch(move.transform_path(outline))


def _labels(positions: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Text and place of the ends and of every tenth position's number, each where there is most room around it."""
    length = len(positions)
    wanted = {index: str(index + 1) for index in range(NUMBER_EVERY - 1, length, NUMBER_EVERY)}
    wanted |= {length - 1: "3'", 0: "5'"}
    angles = np.linspace(0.0, 2 * np.pi, LABEL_DIRECTIONS, endpoint=False)
    ring = LABEL_DISTANCE * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = []
    taken = positions
    for index, text in wanted.items():
        places = positions[index] + ring
        # A text is as wide as its digits: both its ends and its middle need room
        offsets = np.outer([-0.35, 0.0, 0.35], [LABEL_SIZE * len(text), 0.0])
        spots = places[:, None] + offsets  # direction spot xy
        room = ((taken - spots[:, :, None]) ** 2).sum(axis=-1).min(axis=(1, 2))
        # Among the directions with (nearly) the most room, the one farthest from the neighbourhood's centre
        near = positions[((positions - positions[index]) ** 2).sum(axis=1) < LABEL_NEIGHBOURHOOD**2]
        away = ((places - near.mean(axis=0)) ** 2).sum(axis=1)
        best = np.argmax(np.where(room >= 0.9 * room.max(), away, -1.0))
        labels.append((text, places[best]))
        taken = np.concatenate([taken, spots[best]])
    return labels


def _arc(pair: tuple[int, int]) -> np.ndarray:
    """Half circle (`ARC_POINTS`, 2) over a pair's 1-based positions."""
    i, j = pair
    angles = np.linspace(np.pi, 0.0, ARC_POINTS)
    return np.stack([(i + j) / 2 + 1 + (j - i) / 2 * np.cos(angles), (j - i) / 2 * np.sin(angles)], axis=1)


def _highest_arc(pairs: tuple[tuple[int, int], ...]) -> float:
    return max(((j - i) / 2 for i, j in pairs), default=0.0)


def _check_length(structure: Structure, length: int) -> None:
    if structure.length != length:
        raise ValueError(f"expected a structure of length {length}, got {structure.length}")


def _check_square(table: np.ndarray, length: int) -> None:
    if np.shape(table) != (length, length):
        raise ValueError(f"expected pair probabilities ({length}, {length}), got {np.shape(table)}")
