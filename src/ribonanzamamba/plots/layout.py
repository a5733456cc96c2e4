"""Where each nucleotide of a secondary structure stands on paper: straight stems, round loops, no two in one place.

Knows nothing of colours or axes. One backbone step is the unit of length; the strand runs clockwise. Stems stay
straight through internal loops and bulges, multiloops are circles, the exterior is a base line with its stems upward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from ribonanzamamba.rna.structure import Structure, nested

PAIR_WIDTH = 1.6
"""Distance of paired nucleotides, in backbone steps."""
CLEARANCE = 0.99
"""Least distance between parts of the drawing, in backbone steps: unit steps whose ends keep it cannot cross."""
LARGEST_BULGE_STRETCH = 1.4
"""How much longer than one unit a step opposite a bulge may become, in backbone steps."""
STRETCHES = tuple(1.2**power for power in range(10))
"""Factors by which a crowded loop grows until it is clear; where the last one (5) is not enough, it becomes a row."""

Span = tuple[int, int]
"""First and last nucleotide, both included: (k, k) is an unpaired one, (k, l) a pair with all it encloses."""


def split_pseudoknots(structure: Structure) -> tuple[Structure, tuple[Span, ...]]:
    """The nested part of a structure and the pairs that cross it: those written with other brackets than `()`.

    >>> nested_part, crossing = split_pseudoknots(Structure.from_dot_bracket("((..[[..))..]]"))
    >>> nested_part.to_dot_bracket(), crossing
    ('((......))....', ((4, 13), (5, 12)))
    """
    text = structure.to_dot_bracket()
    inside = tuple(pair for pair in structure.pairs if text[pair[0]] == "(")
    crossing = tuple(pair for pair in structure.pairs if text[pair[0]] != "(")
    return Structure(structure.length, inside), crossing


def lay_out(structure: Structure) -> np.ndarray:
    """Positions (length, 2) of the nucleotides of a nested structure, in backbone steps.

    Pairs are `PAIR_WIDTH` apart, and no two nucleotides are closer than `CLEARANCE`: a loop grows, and the base line
    gets gaps, until they are not. Length 0 gives (0, 2).

    Raises:
        ValueError: pairs that cross; `split_pseudoknots` takes them out.

    >>> lay_out(Structure.from_dot_bracket("...")).round(3).tolist()
    [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]
    """
    if not nested(structure.pairs):
        raise ValueError("expected a nested structure, got pairs that cross")
    positions = np.zeros((structure.length, 2))
    partners = structure.to_partners()
    # From the last opening to the first: what a pair encloses is finished, in that pair's own frame, before the pair.
    for i, j in reversed(structure.pairs):
        positions[i], positions[j] = (-PAIR_WIDTH / 2, 0.0), (PAIR_WIDTH / 2, 0.0)
        _place_loop(positions, i, j, list(_spans(partners, i + 1, j)))
    _place_row(positions, list(_spans(partners, 0, structure.length)))
    return positions


def arc_points(start: np.ndarray, end: np.ndarray, steps: int) -> np.ndarray:
    """Points (steps + 1, 2) of unit steps from `start` to `end` on an arc that bulges to the left of that direction.

    Where the ends are `steps` or more apart, the points lie evenly on the straight line.

    >>> arc_points(np.array([0.0, 0.0]), np.array([2.0, 0.0]), 4)[1:-1].round(2).tolist()
    [[0.12, 0.99], [1.0, 1.46], [1.88, 0.99]]
    """
    chord = float(np.linalg.norm(end - start))
    along = np.linspace(0.0, 1.0, steps + 1)[:, None]
    if chord >= steps * (1.0 - 1e-9):
        return start + along * (end - start)
    # A step of half angle t has length 2 R sin t, the chord 2 R sin(steps t): their ratio falls from `steps` to 0.
    low, high = 0.0, np.pi / steps
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sin(steps * middle) / np.sin(middle) > chord else (low, middle)
    half_angle, radius = low, 0.5 / np.sin(low)
    angles = np.pi / 2 + half_angle * (steps - 2 * np.arange(steps + 1))
    flat = radius * np.stack([np.cos(angles), np.sin(angles) - np.cos(steps * half_angle)], axis=1)
    forward = (end - start) / chord
    return (start + end) / 2 + flat[:, :1] * forward + flat[:, 1:] * np.array([-forward[1], forward[0]])


def circle_radius(chords: Sequence[float]) -> float:
    """Radius of the circle in which the chords close a polygon around the centre.

    >>> round(circle_radius([1.0] * 6), 6)
    1.0
    """
    sides = np.asarray(chords, dtype=np.float64)
    low, high = sides.max() / 2, sides.sum()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.arcsin(sides / (2 * middle)).sum() > np.pi else (low, middle)
    return float(high)


def _spans(partners: np.ndarray, start: int, stop: int) -> Iterator[Span]:
    """The unpaired nucleotides and the outermost pairs from `start` up to before `stop`, in order."""
    while start < stop:
        last = max(start, int(partners[start]))
        yield start, last
        start = last + 1


def _place_loop(positions: np.ndarray, i: int, j: int, spans: Sequence[Span]) -> None:
    """Place what the pair i, j encloses above that pair, in its frame: i on the left, j on the right, centre at 0."""
    branches = [span for span in spans if span[0] < span[1]]
    if not branches:
        positions[i : j + 1] = arc_points(positions[i], positions[j], len(spans) + 1)
        return
    inside = positions[i + 1 : j].copy()
    place = _place_internal_loop if len(branches) == 1 else _place_multiloop
    for stretch in STRETCHES:
        positions[i + 1 : j] = inside
        place(positions, i, j, spans, stretch)
        if len(spans) == 1 or _is_clear(positions, spans):
            return
    # A row, lifted above the pair as far as its parts reach down, is always clear
    positions[i + 1 : j] = inside
    _place_row(positions, spans)
    row = positions[i + 1 : j]
    row += (-(row[0, 0] + row[-1, 0]) / 2, 1.0 - row[:, 1].min())


def _place_internal_loop(positions: np.ndarray, i: int, j: int, spans: Sequence[Span], stretch: float) -> None:
    """Place a stack, bulge or internal loop: the inner pair straight above the outer one, an arc on either side."""
    k, l = next(span for span in spans if span[0] < span[1])
    left_steps, right_steps = k - i, j - l
    around = [PAIR_WIDTH, PAIR_WIDTH] + [1.0] * (left_steps + right_steps)
    height = 2 * np.sqrt(circle_radius(around) ** 2 - PAIR_WIDTH**2 / 4)
    height = stretch * min(height, LARGEST_BULGE_STRETCH * min(left_steps, right_steps))
    positions[k : l + 1] += (0.0, height)
    positions[i : k + 1] = arc_points(positions[i], positions[k], left_steps)
    positions[l : j + 1] = arc_points(positions[l], positions[j], right_steps)


def _place_multiloop(positions: np.ndarray, i: int, j: int, spans: Sequence[Span], stretch: float) -> None:
    """Place unpaired nucleotides and stems clockwise on a circle, the stems pointing outward."""
    widths = [PAIR_WIDTH if first < last else 0.0 for first, last in spans]
    radius = circle_radius([PAIR_WIDTH, *(width for width in widths if width)] + [stretch] * (len(spans) + 1))
    centre = np.array([0.0, np.sqrt(radius**2 - PAIR_WIDTH**2 / 4)])
    step_angle, pair_angle = 2 * np.arcsin(stretch / (2 * radius)), 2 * np.arcsin(PAIR_WIDTH / (2 * radius))
    angle = -np.pi / 2 - pair_angle / 2
    for (first, last), width in zip(spans, widths, strict=True):
        angle -= step_angle
        turn = pair_angle if width else 0.0
        outward = np.array([np.cos(angle - turn / 2), np.sin(angle - turn / 2)])
        clockwise = np.array([outward[1], -outward[0]])
        foot = centre + radius * np.cos(turn / 2) * outward
        positions[first : last + 1] = foot + positions[first : last + 1] @ np.stack([clockwise, outward])
        angle -= turn


def _is_clear(positions: np.ndarray, spans: Sequence[Span]) -> bool:
    """Whether the parts of a loop keep `CLEARANCE` from each other and from the stem that comes from below."""
    parts = [positions[first : last + 1] for first, last in spans]
    # The stem below is not placed yet, but it will be straight: as far down as anything here reaches, and one more.
    depth = np.arange(0.0, min(0.0, *(part[:, 1].min() for part in parts)) - 1.0, -1.0)
    parts += [np.stack([np.full_like(depth, side * PAIR_WIDTH / 2), depth], axis=1) for side in (-1, 1)]
    return all(_distance(one, other) >= CLEARANCE for one, other in combinations(parts, 2))


def _place_row(positions: np.ndarray, spans: Sequence[Span]) -> None:
    """Place unpaired nucleotides and stems along a base line, each as far left as it is clear of those before."""
    x = 0.0
    for first, last in spans:
        half_width = PAIR_WIDTH / 2 if first < last else 0.0
        part = positions[first : last + 1]
        part += (x + half_width, 0.0)
        before = positions[spans[0][0] : first]
        while len(before) and _distance(part, before) < CLEARANCE:
            part += (1.0, 0.0)
        x = positions[last, 0] + 1.0


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Smallest distance between a point of `one` and one of `other`; both have at least one."""
    # By rows of the smaller set: the whole table of a long RNA would take gigabytes.
    few, many = sorted((one, other), key=len)
    return float(np.sqrt(min(((many - point) ** 2).sum(axis=1).min() for point in few)))
