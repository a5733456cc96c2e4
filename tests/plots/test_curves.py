"""Learning curves: what is drawn, and the average worked by hand."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from ribonanzamamba.plots.curves import draw_curve, draw_runs, panel_names, smooth

NAN = float("nan")


@pytest.fixture
def axes():
    figure = Figure(layout="constrained")
    yield figure.subplots()
    # Whatever cannot be drawn warns or raises here
    figure.draw_without_rendering()


def test_a_strong_and_a_faint_line_in_one_color(axes):
    assert draw_curve(axes, [0, 10, 20], [3.0, 1.0, 2.0], "loss", smoothing=0.5) is axes
    strong, faint = axes.lines
    assert strong.get_color() == faint.get_color()
    assert faint.get_alpha() < 1 and faint.get_zorder() < strong.get_zorder()
    assert faint.get_ydata().tolist() == [3.0, 1.0, 2.0]
    assert strong.get_ydata() == pytest.approx([3.0, 2.5 / 1.5, 3.25 / 1.75])
    assert strong.get_xdata().tolist() == [0, 10, 20]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["loss"]


def test_two_curves_have_two_colors(axes):
    draw_curve(axes, [0, 1], [1.0, 2.0], "train")
    draw_curve(axes, [0, 1], [2.0, 3.0], "valid")
    assert len({line.get_color() for line in axes.lines}) == 2
    assert len(axes.get_legend().get_texts()) == 2


def test_without_smoothing_only_the_values(axes):
    draw_curve(axes, [0, 1, 2], [1.0, NAN, 2.0], "loss", smoothing=0.0)
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_ydata(), [1.0, NAN, 2.0])


@pytest.mark.parametrize("values", [[], [0.5], [NAN, NAN]], ids=["none", "one", "all NaN"])
def test_edges(axes, values):
    draw_curve(axes, range(len(values)), values, "loss")
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), values)


def test_a_constant_stays_what_it_is():
    assert smooth([0.7] * 50, 0.9) == pytest.approx([0.7] * 50)


def test_nan_is_passed_over():
    np.testing.assert_allclose(smooth([NAN, 1.0, NAN, 4.0], 0.5), [NAN, 1.0, 1.0, 3.0])


def test_arguments_that_do_not_fit(axes):
    with pytest.raises(ValueError, match="got 2 and 1"):
        draw_curve(axes, [0, 1], [1.0], "loss")
    for smoothing in (1.0, -0.1):
        with pytest.raises(ValueError, match="smoothing"):
            smooth([1.0], smoothing)


RUNS = {
    "a": {
        "loss/structure": ([1, 2, 3], [1.0, 0.5, 0.4]),
        "loss/gradient_norm": ([1, 2, 3], [2.0, 1.0, 1.0]),
        "learning_rate": ([1, 2, 3], [1e-3, 1e-3, 0.0]),
        "rnas_per_second": ([1, 2, 3], [100.0, 120.0, 110.0]),
        "valid/mae/2A3": ([3], [0.2]),
        "valid/mae/DMS": ([3], [0.1]),
        "valid/f1": ([3], [0.6]),
    },
    "b": {"loss/structure": ([1, 2], [0.9, 0.8]), "learning_rate": ([1, 2], [1e-3, 1e-3])},
}


def test_runs_over_each_other():
    names = panel_names(RUNS)
    assert names == [
        "loss/structure",
        "learning_rate",
        "loss/gradient_norm",
        "valid/mae/",
        "valid/f1",
        "rnas_per_second",
    ]
    figure = Figure(layout="constrained")
    axes = list(figure.subplots(2, 4).ravel())
    assert draw_runs(axes, RUNS) is axes
    figure.draw_without_rendering()
    assert [panel.get_ylabel() for panel in axes[:6]] == [
        "structure", "learning rate", "gradient norm", "mean absolute error", "f1", "RNAs/s"
    ]  # fmt: skip
    assert [panel.get_visible() for panel in axes] == [True] * 6 + [False] * 2
    # strong and faint for each run, a colour a run, the same in all panels
    assert [line.get_color() for line in axes[0].lines] == ["C0", "C0", "C1", "C1"]
    assert [line.get_color() for line in axes[1].lines] == ["C0", "C1"]
    assert [text.get_text() for text in axes[3].get_legend().get_texts()] == ["a 2A3", "a DMS"]
    assert axes[0].lines[1].get_ydata().tolist() == [1.0, 0.5, 0.4]


def test_too_few_axes(axes):
    with pytest.raises(ValueError, match="expected axes for 6 panels, got 1"):
        draw_runs([axes], RUNS)
