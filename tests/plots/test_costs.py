"""`draw_costs`: a line of the values given, and the exponent of its growth."""

import pytest
from matplotlib.figure import Figure

from ribonanzamamba.plots.costs import draw_costs, growth


def test_line_and_growth():
    axes = Figure().subplots()
    assert draw_costs(axes, [64, 128, 256], [1.0, 2.0, 4.0], "linear") is axes
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [64, 128, 256] and list(line.get_ydata()) == [1, 2, 4]
    assert line.get_label() == "linear (grows as n^1.0)"
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert growth([64, 128], [3, 12]) == pytest.approx(2)
    assert draw_costs(axes, [64], [1.0], "one").get_lines()[1].get_label() == "one"


def test_unequal_lengths():
    with pytest.raises(ValueError, match="expected as many sizes as costs, got 2 and 1"):
        draw_costs(Figure().subplots(), [1, 2], [1], "x")
