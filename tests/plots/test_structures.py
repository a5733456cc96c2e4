"""Arc diagram, dot plot and layout: which artists stand where, in which colour."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ribonanzamamba.plots.colors import BASE_COLORS, INK, PALE, PSEUDOKNOT, REACTIVITY_COLORS
from ribonanzamamba.plots.structures import draw_arcs, draw_dot_plot, draw_layout
from ribonanzamamba.rna.structure import Structure

NAN = float("nan")
KNOT = Structure.from_dot_bracket("((..[[..))..]]")
HAIRPIN = Structure.from_dot_bracket("((......))....")


@pytest.fixture
def axes():
    figure = Figure(layout="constrained")
    yield figure.subplots()
    # Whatever cannot be drawn warns or raises here
    figure.draw_without_rendering()


def arcs(collection: LineCollection) -> list[tuple[int, int, float]]:
    """First and last 1-based position of each arc, and its height, negative below the line."""
    paths = [path.vertices for path in collection.get_paths()]
    return [(round(path[0, 0]), round(path[-1, 0]), float(path[len(path) // 2, 1])) for path in paths]


def hexes(colors) -> list[str]:
    return [to_hex(color).upper() for color in colors]


def boxes(collection) -> list[tuple[float, float]]:
    """Centre of each patch of a collection."""
    bounds = [path.get_extents() for path in collection.get_paths()]
    return [((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) for box in bounds]


def test_arcs_nested_and_crossing(axes):
    assert draw_arcs(axes, KNOT) is axes
    nested_arcs, crossing_arcs = axes.collections
    assert arcs(nested_arcs) == [(1, 10, 4.5), (2, 9, 3.5)]
    assert arcs(crossing_arcs) == [(5, 14, 4.5), (6, 13, 3.5)]
    assert nested_arcs.get_cmap() != crossing_arcs.get_cmap()
    assert nested_arcs.get_array().tolist() == [1.0, 1.0]


def test_arcs_take_the_probability_of_their_pair(axes):
    probabilities = np.zeros((14, 14))
    for pair, value in zip(KNOT.pairs, (0.9, 0.2, 0.5, 0.7), strict=True):
        probabilities[pair] = probabilities[pair[::-1]] = value
    draw_arcs(axes, KNOT, probabilities)
    nested_arcs, crossing_arcs = axes.collections
    # The likely ones come last, on top
    assert nested_arcs.get_array().tolist() == [0.2, 0.9]
    assert arcs(nested_arcs)[0] == (2, 9, 3.5)
    assert crossing_arcs.get_array().tolist() == [0.5, 0.7]


def test_known_arcs_are_mirrored(axes):
    draw_arcs(axes, HAIRPIN, known=KNOT)
    found, missed = axes.collections[2:]
    assert arcs(found) == [(1, 10, -4.5), (2, 9, -3.5)]
    assert arcs(missed) == [(5, 14, -4.5), (6, 13, -3.5)]
    assert found.get_linestyle() != missed.get_linestyle()
    low, high = axes.get_ylim()
    assert low < -4.5 and high > 4.5


@pytest.mark.parametrize("length", [0, 1, 4])
def test_arcs_without_pairs(axes, length):
    empty = Structure(length, ())
    draw_arcs(axes, empty, np.zeros((length, length)), empty)
    assert [len(collection.get_paths()) for collection in axes.collections] == [0, 0, 0, 0]


def test_arcs_of_other_lengths(axes):
    with pytest.raises(ValueError, match=r"expected pair probabilities \(14, 14\), got \(3, 3\)"):
        draw_arcs(axes, KNOT, np.zeros((3, 3)))
    with pytest.raises(ValueError, match="expected a structure of length 14, got 3"):
        draw_arcs(axes, KNOT, known=Structure(3, ()))


def test_dot_plot_shows_the_upper_triangle(axes):
    table = np.full((3, 3), 0.25)
    assert draw_dot_plot(axes, table) is axes
    (image,) = axes.images
    assert image.get_array().tolist() == [[0.0, 0.25, 0.25], [0.0, 0.0, 0.25], [0.0, 0.0, 0.0]]
    assert image.get_clim() == (0.0, 1.0)
    assert axes.get_legend() is None and len(axes.collections) == 0


def test_dot_plot_known_pairs_below(axes):
    draw_dot_plot(axes, np.zeros((14, 14)), KNOT)
    nested_squares, crossing_squares = axes.collections
    assert boxes(nested_squares) == [(1, 10), (2, 9)]
    assert boxes(crossing_squares) == [(5, 14), (6, 13)]
    assert hexes(crossing_squares.get_facecolor()) == [PSEUDOKNOT]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["predicted", "known", "known pseudoknot"]
    # Positions run downward, so a row beyond the column lies below the diagonal
    assert axes.get_ylim() == (14.5, 0.5)


@pytest.mark.parametrize("table", [np.zeros((1, 1)), np.full((5, 5), NAN)], ids=["length 1", "all NaN"])
def test_dot_plot_edges(axes, table):
    draw_dot_plot(axes, table, Structure(len(table), ()))
    assert [len(collection.get_paths()) for collection in axes.collections] == [0, 0]


def test_dot_plot_of_other_lengths(axes):
    with pytest.raises(ValueError, match="pair probabilities"):
        draw_dot_plot(axes, np.zeros((3, 4)))
    with pytest.raises(ValueError, match="length 3, got 14"):
        draw_dot_plot(axes, np.zeros((3, 3)), KNOT)


def test_layout_has_a_circle_and_a_letter_a_nucleotide(axes):
    sequence = "GGAACCAACCAAGG"
    assert draw_layout(axes, sequence, KNOT) is axes
    nested_lines, crossing_lines, circles, letters, numbers = axes.collections
    assert len(circles.get_paths()) == len(letters.get_paths()) == 14
    assert np.array(boxes(circles)) == pytest.approx(np.array(boxes(letters)))
    assert hexes(circles.get_facecolor()) == [BASE_COLORS[base] for base in sequence]
    # 10, 3' and 5'
    assert len(numbers.get_paths()) == 3
    places = np.array(boxes(circles))
    for lines, pairs, color in ((nested_lines, KNOT.pairs[:2], INK), (crossing_lines, KNOT.pairs[2:], PSEUDOKNOT)):
        ends = np.array([path.vertices for path in lines.get_paths()])
        assert ends == pytest.approx(places[np.array(pairs)])
        assert set(hexes(lines.get_color())) == {color}
    assert nested_lines.get_linestyle() != crossing_lines.get_linestyle()


def test_layout_values_are_reactivity_colors(axes):
    draw_layout(axes, "GAAAC", Structure.from_dot_bracket("(...)"), np.array([0.0, 1.0, 7.0, NAN, -1.0]))
    circles, letters = axes.collections[2:4]
    lowest, highest = hexes([REACTIVITY_COLORS(0.0), REACTIVITY_COLORS(1.0)])
    assert hexes(circles.get_facecolor()) == [lowest, highest, highest, PALE, lowest]
    white, black = "#FFFFFF", "#000000"
    assert hexes(letters.get_facecolor()) == [black, white, white, black, black]


def test_layout_with_its_ends_on_top():
    heights = []
    for ends_on_top in (False, True):
        axes = Figure().subplots()
        draw_layout(axes, "GGAAACC", Structure.from_dot_bracket("((...))"), ends_on_top=ends_on_top)
        heights.append(np.array(boxes(axes.collections[2]))[:, 1])
    assert heights[0] == pytest.approx(-heights[1])
    assert heights[0].max() > 1.0


def test_layout_keeps_everything_in_view(axes):
    draw_layout(axes, "GGAACCAACCAAGG", KNOT)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for collection in axes.collections:
        for path in collection.get_paths():
            box = path.get_extents()
            assert left < box.x0 and box.x1 < right and bottom < box.y0 and box.y1 < top


def test_layout_labels_stand_clear(axes):
    draw_layout(axes, "A" * 40, Structure.from_dot_bracket("(" * 15 + "." * 10 + ")" * 15))
    circles, _, labels = axes.collections[2:]
    apart = np.linalg.norm(np.array(boxes(labels))[:, None] - np.array(boxes(circles))[None], axis=-1)
    assert apart.min() > 0.9


@pytest.mark.parametrize("length", [0, 1, 3])
def test_layout_without_pairs(axes, length):
    draw_layout(axes, "A" * length, Structure(length, ()), np.full(length, NAN))
    assert [len(collection.get_paths()) for collection in axes.collections[2:3]] == [length] * bool(length)


def test_layout_of_other_lengths(axes):
    with pytest.raises(ValueError, match="length 2, got 14"):
        draw_layout(axes, "AC", KNOT)
    with pytest.raises(ValueError, match="expected 2 values, got 1"):
        draw_layout(axes, "AC", Structure(2, ()), np.zeros(1))
