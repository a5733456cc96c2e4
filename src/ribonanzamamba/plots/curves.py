"""Learning curves: a metric over the steps of a training run, as recorded and smoothed.

Knows nothing of runs or files; axes are given and returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHING = 0.9
"""Share of the past in each smoothed value: about the last 1 / (1 - 0.9) = 10 values count."""


def draw_curve(
    axes: Axes, steps: Sequence[float], values: Sequence[float], label: str, smoothing: float = SMOOTHING
) -> Axes:
    """Values over steps, faint as recorded and strong as smoothed, in the axes' next colour; `label` for the legend.

    With smoothing 0 only the values themselves are drawn. NaN leaves a gap in the faint line and is passed over in
    the strong one.

    Raises:
        ValueError: as many steps as values are expected, and a smoothing in [0, 1).
    """
    if len(steps) != len(values):
        raise ValueError(f"expected as many steps as values, got {len(steps)} and {len(values)}")
    (line,) = axes.plot(steps, smooth(values, smoothing) if smoothing else values, linewidth=1.8, label=label)
    if smoothing:
        axes.plot(steps, values, color=line.get_color(), linewidth=0.8, alpha=0.3, zorder=line.get_zorder() - 0.5)
    axes.set_xlabel("step")
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return axes


def smooth(values: Sequence[float], smoothing: float) -> np.ndarray:
    """Exponential moving average of the values so far, each weighted `smoothing` times the one after it.

    The weights of the values seen sum to 1 from the first on, so the curve does not start at 0. A NaN repeats the
    average before it; before the first value the average is NaN.

    Raises:
        ValueError: a smoothing outside [0, 1).

    Source: Kingma and Ba 2015, arXiv 1412.6980, section 3 (the bias correction).

    >>> smooth([4.0, 1.0, float("nan"), 1.0], 0.5).round(3).tolist()
    [4.0, 2.0, 2.0, 1.429]
    """
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"expected a smoothing of at least 0 and below 1, got {smoothing}")
    averages = np.full(len(values), np.nan)
    total = weight = 0.0
    for index, value in enumerate(values):
        if np.isfinite(value):
            total, weight = smoothing * total + value, smoothing * weight + 1.0
        if weight:
            averages[index] = total / weight
    return averages
