"""Profiles and heat maps: bars, bands, letters and rows."""

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ribonanzamamba.plots.colors import BASE_COLORS
from ribonanzamamba.plots.profiles import LONGEST_WITH_LETTERS, LONGEST_WITH_NAMES, draw_heat_map, draw_reactivity
from ribonanzamamba.rna.records import Prediction, Record

NAN = float("nan")


@pytest.fixture
def axes():
    figure = Figure(layout="constrained")
    yield figure.subplots()
    # Whatever cannot be drawn warns or raises here
    figure.draw_without_rendering()


def prediction(sequence: str, reactivity, error=None, id: str = "r") -> Prediction:
    errors = {} if error is None else {"2A3": np.array(error)}
    return Prediction(Record(id, sequence), {"2A3": np.array(reactivity)}, errors)


def bands(axes) -> list[PolyCollection]:
    return [artist for artist in axes.collections if isinstance(artist, PolyCollection)]


def test_a_bar_a_nucleotide_in_its_base_color(axes):
    assert draw_reactivity(axes, prediction("ACGUN", [0.1, 0.2, 0.3, 0.4, 0.5]), "2A3") is axes
    assert [bar.get_height() for bar in axes.patches] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert [bar.get_x() + bar.get_width() / 2 for bar in axes.patches] == pytest.approx([1, 2, 3, 4, 5])
    assert [to_hex(bar.get_facecolor()).upper() for bar in axes.patches] == [BASE_COLORS[base] for base in "ACGUN"]
    assert axes.get_ylabel() == "2A3 reactivity"
    assert bands(axes) == []


def test_the_band_is_the_error_on_both_sides(axes):
    draw_reactivity(axes, prediction("AC", [0.5, 0.2], [0.1, 0.3]), "2A3")
    (band,) = bands(axes)
    extents = [(path[:, 1].min(), path[:, 1].max()) for path in (path.vertices for path in band.get_paths())]
    assert np.array(extents) == pytest.approx(np.array([[0.4, 0.6], [-0.1, 0.5]]))
    assert axes.get_ylim()[0] == pytest.approx(-0.1)
    assert "± predicted error" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_measured_values_are_dots(axes):
    draw_reactivity(axes, prediction("ACG", [0.5, 0.2, 0.1]), "2A3", np.array([2.0, NAN, 0.3]))
    dots = next(line for line in axes.lines if line.get_label() == "measured")
    assert dots.get_xdata().tolist() == [1, 2, 3]
    np.testing.assert_array_equal(dots.get_ydata(), [2.0, NAN, 0.3])
    assert axes.get_ylim()[1] > 2.0


def test_letters_and_every_tenth_number(axes):
    sequence = "ACGUACGUACGU"
    draw_reactivity(axes, prediction(sequence, np.zeros(12)), "2A3")
    assert [label.get_text() for label in axes.get_xticklabels()] == list(sequence)
    assert to_hex(axes.get_xticklabels()[2].get_color()).upper() == BASE_COLORS["G"]
    numbers = [label.get_text().strip() for label in axes.get_xticklabels(minor=True)]
    assert numbers == [""] * 9 + ["10"] + [""] * 2


@pytest.mark.parametrize(("length", "letters"), [(LONGEST_WITH_LETTERS, True), (LONGEST_WITH_LETTERS + 1, False)])
def test_long_rnas_have_no_letters(axes, length, letters):
    draw_reactivity(axes, prediction("A" * length, np.zeros(length)), "2A3")
    assert ("A" in [label.get_text() for label in axes.get_xticklabels()]) == letters


@pytest.mark.parametrize("value", [0.5, -0.5, 3.0, NAN])
def test_a_single_nucleotide(axes, value):
    draw_reactivity(axes, prediction("A", [value], [value]), "2A3", np.array([value]))
    low, high = axes.get_ylim()
    assert low <= 0.0 and high >= 1.0
    assert np.isnan(value) or low <= value <= high


def test_all_nan_draws_the_frame(axes):
    draw_reactivity(axes, prediction("ACG", [NAN] * 3, [NAN] * 3), "2A3", np.full(3, NAN))
    assert axes.get_ylim() == pytest.approx((0.0, 1.05))


def test_a_probe_that_was_not_predicted(axes):
    with pytest.raises(ValueError, match="r: expected a probe out of 2A3, got DMS"):
        draw_reactivity(axes, prediction("A", [0.0]), "DMS")
    with pytest.raises(ValueError, match="out of none"):
        draw_heat_map(axes, [Prediction(Record("r", "A"))], "DMS")


def test_measured_of_another_length(axes):
    with pytest.raises(ValueError, match="expected 2 measured values, got 3"):
        draw_reactivity(axes, prediction("AC", [0.0, 0.0]), "2A3", np.zeros(3))


def test_heat_map_has_a_row_an_rna(axes):
    rnas = [prediction("ACG", [0.1, 0.2, 0.3], id="long"), prediction("A", [0.9], id="short")]
    assert draw_heat_map(axes, rnas, "2A3") is axes
    (image,) = axes.images
    assert image.get_array().filled(-1.0).tolist() == [[0.1, 0.2, 0.3], [0.9, -1.0, -1.0]]
    assert image.get_extent() == [0.5, 3.5, 2.5, 0.5]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["long", "short"]


def test_thin_rows_have_no_names(axes):
    draw_heat_map(axes, [prediction("A", [NAN], id="r")] * (LONGEST_WITH_NAMES + 1), "2A3")
    assert "r" not in [label.get_text() for label in axes.get_yticklabels()]


def test_a_heat_map_of_nothing(axes):
    with pytest.raises(ValueError, match="at least one"):
        draw_heat_map(axes, [], "2A3")
