"""The trace: view, pieces, colours, gaps and what lies in front."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ribonanzamamba.plots.colors import PALE, PLDDT_BANDS
from ribonanzamamba.plots.coordinates import (
    CURVE_POINTS,
    HALO_DEPTH,
    HALO_WIDTH,
    LINE_WIDTH,
    draw_trace,
    smooth_curve,
    to_principal_axes,
)
from ribonanzamamba.rna.structure import Structure

NAN = float("nan")


@pytest.fixture
def axes():
    figure = Figure(layout="constrained")
    yield figure.subplots()
    # Whatever cannot be drawn warns or raises here
    figure.draw_without_rendering()


def helix(length: int) -> np.ndarray:
    """C1' of an A-form strand, roughly: radius 9 angstrom, 2.8 angstrom and 33 degrees a nucleotide."""
    turn = np.radians(33.0) * np.arange(length)
    return np.stack([9.0 * np.cos(turn), 9.0 * np.sin(turn), 2.8 * np.arange(length)], axis=1)


def pieces(axes, width: float) -> list[tuple[np.ndarray, str]]:
    """Ends and colour of the trace's lines of one width, in the order they are drawn."""
    (lines,) = axes.collections
    styles = zip(lines.get_paths(), lines.get_color(), lines.get_linewidth(), strict=True)
    return [(path.vertices, to_hex(color).upper()) for path, color, drawn in styles if drawn == width]


def test_every_piece_has_a_halo_and_a_color(axes):
    assert draw_trace(axes, helix(4), np.array([95.0, 80.0, 60.0, 10.0])) is axes
    colors = [color for _, color in pieces(axes, LINE_WIDTH)]
    half = CURVE_POINTS // 2
    expected = dict(zip((band.color for band in PLDDT_BANDS), (half, 2 * half, 2 * half, half), strict=True))
    assert {color: colors.count(color) for color in set(colors)} == expected
    assert [color for _, color in pieces(axes, HALO_WIDTH)] == ["#FFFFFF"] * 3 * CURVE_POINTS


def test_what_lies_behind_is_drawn_first(axes):
    points = helix(12)
    draw_trace(axes, points, np.full(12, 75.0))
    curve = smooth_curve(to_principal_axes(points))
    depth = {tuple(start[:2]): (start[2] + end[2]) / 2 for start, end in zip(curve[:-1], curve[1:], strict=True)}
    drawn = [depth[tuple(ends[0])] for ends, _ in pieces(axes, LINE_WIDTH)]
    assert len(drawn) == 11 * CURVE_POINTS
    assert np.ptp(drawn) > 2 * HALO_DEPTH
    assert drawn == sorted(drawn)


def test_a_halo_is_drawn_before_its_neighbourhood(axes):
    """It would cut its own curve otherwise."""
    draw_trace(axes, helix(12), np.full(12, 75.0))
    (lines,) = axes.collections
    starts = [tuple(path.vertices[0]) for path in lines.get_paths()]
    widths = lines.get_linewidth()
    drawn = {(start, width): order for order, (start, width) in enumerate(zip(starts, widths, strict=True))}
    assert all(drawn[start, HALO_WIDTH] < drawn[start, LINE_WIDTH] for start in starts)


def test_pairs_are_rungs(axes):
    points = helix(8)
    points[1] = NAN
    draw_trace(axes, points, np.full(8, 75.0), Structure.from_dot_bracket("(((..)))"))
    rungs = pieces(axes, LINE_WIDTH / 3)
    view = to_principal_axes(points)[:, :2]
    ends = sorted(sorted(end.tolist()) for end, _ in rungs)
    assert ends == sorted(sorted(view[list(pair)].tolist()) for pair in ((0, 7), (2, 5)))
    assert {color for _, color in rungs} == {PALE}


def test_a_missing_nucleotide_leaves_a_gap(axes):
    points = helix(7)
    points[3, 1] = NAN
    draw_trace(axes, points, np.full(7, NAN))
    drawn = pieces(axes, LINE_WIDTH)
    assert len(drawn) == 4 * CURVE_POINTS
    assert {color for _, color in drawn} == {PALE}


@pytest.mark.parametrize(
    "points", [np.zeros((0, 3)), np.zeros((1, 3)), np.full((5, 3), NAN)], ids=["none", "length 1", "all NaN"]
)
def test_nothing_to_join(axes, points):
    draw_trace(axes, points, np.full(len(points), 50.0))
    assert pieces(axes, LINE_WIDTH) == []
    assert len(axes.lines) == 1


def test_scale_bar_and_legend(axes):
    draw_trace(axes, helix(20), np.full(20, 50.0))
    (bar,) = axes.lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(20.0)
    assert {"20 Å", "5'", "3'"} == {text.get_text() for text in axes.texts}
    assert len(axes.get_legend().get_lines()) == len(PLDDT_BANDS)
    assert axes.get_aspect() == 1.0


def test_shapes_that_do_not_fit(axes):
    with pytest.raises(ValueError, match=r"expected \(length, 3\) and \(length,\)"):
        draw_trace(axes, np.zeros((4, 2)), np.zeros(4))
    with pytest.raises(ValueError, match=r"expected \(length, 3\) and \(length,\)"):
        draw_trace(axes, np.zeros((4, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="structure of length 4, got 2"):
        draw_trace(axes, np.zeros((4, 3)), np.zeros(4), Structure(2, ()))


def test_the_view_is_a_rotation():
    points = np.random.default_rng(3).normal(size=(30, 3)) * (1.0, 9.0, 4.0)
    view = to_principal_axes(points)
    assert np.diff(view.var(axis=0)).max() < 0
    between = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert np.linalg.norm(view[:, None] - view[None], axis=-1) == pytest.approx(between)
    assert np.linalg.det(view[1:4] - view[0]) == pytest.approx(np.linalg.det(points[1:4] - points[0]))
    assert (view[0, :2] <= 0).all()


def test_the_view_does_not_depend_on_where_the_molecule_lies():
    points = np.random.default_rng(4).normal(size=(30, 3)) * (1.0, 9.0, 4.0)
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation)
    assert to_principal_axes(points @ rotation.T + 50.0) == pytest.approx(to_principal_axes(points))


def test_the_curve_passes_through_every_point():
    points = helix(6)
    curve = smooth_curve(points)
    assert curve.shape == (5 * CURVE_POINTS + 1, 3)
    assert curve[::CURVE_POINTS] == pytest.approx(points)
