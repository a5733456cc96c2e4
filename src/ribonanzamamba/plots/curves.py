"""Learning curves: a metric over the steps of a training run, as recorded and smoothed.

Knows nothing of runs or files; axes are given and returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHING = 0.9
"""Share of the past in each smoothed value: about the last 1 / (1 - 0.9) = 10 values count."""


LOSS_PREFIX, MAE_PREFIX, SCORE_PREFIX = "loss/", "valid/mae/", "valid/"
UNITS = {
    "learning_rate": "learning rate",
    "loss/gradient_norm": "gradient norm",
    "rnas_per_second": "RNAs/s",
    "memory_gib": "GPU memory, GiB",
    "waiting": "share of time without a batch",
}
"""What stands at the axis of a quantity; others are called as in the log, without their prefix."""
SMOOTHED = ("loss/",)
"""Beginnings of the names of what is noisy."""

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Steps and values by the name of the quantity."""


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


def panel_names(runs: Mapping[str, Series]) -> list[str]:
    """The quantities that have a panel, in their order: losses, learning rate and gradient norm, held-out scores
    (errors of all probes share one), throughput.

    >>> panel_names({"a": {"valid/mae/2A3": ([], []), "valid/mae/DMS": ([], []), "loss/structure": ([], [])}})
    ['loss/structure', 'valid/mae/']
    """
    names = {name for curves in runs.values() for name in curves}
    losses = sorted(name for name in names if name.startswith(LOSS_PREFIX) and name not in UNITS)
    scores = sorted(name for name in names if name.startswith(SCORE_PREFIX) and not name.startswith(MAE_PREFIX))
    errors = [MAE_PREFIX] if any(name.startswith(MAE_PREFIX) for name in names) else []
    return (
        losses
        + [name for name in UNITS if name in names][:2]
        + errors
        + scores
        + [name for name in list(UNITS)[2:] if name in names]
    )


def draw_runs(axes: Sequence[Axes], runs: Mapping[str, Series]) -> Sequence[Axes]:
    """Curves of runs over each other, a panel a quantity (see `panel_names`); axes beyond the last panel are hidden.

    A run has one colour in all panels; in that of the errors each probe has a line style of its own.

    Raises:
        ValueError: fewer axes than panels.
    """
    names = panel_names(runs)
    if len(axes) < len(names):
        raise ValueError(f"expected axes for {len(names)} panels, got {len(axes)}")
    probes = sorted({name for curves in runs.values() for name in curves if name.startswith(MAE_PREFIX)})
    for panel, name in zip(axes, names, strict=False):
        for index, (run, curves) in enumerate(runs.items()):
            for style, key in enumerate(probes if name == MAE_PREFIX else [name]):
                if key not in curves:
                    continue
                steps, values = curves[key]
                _draw_run(panel, steps, values, index, style, _label(run, key, len(runs)), name.startswith(SMOOTHED))
        label = "mean absolute error" if name == MAE_PREFIX else UNITS.get(name, name.partition("/")[2] or name)
        panel.set_ylabel(label)
        panel.set_xlabel("step")
        panel.grid(axis="y", color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        if len(runs) > 1 or name == MAE_PREFIX:
            panel.legend(frameon=False, fontsize="small")
    for panel in axes[len(names) :]:
        panel.set_visible(False)
    return axes


def _label(run: str, key: str, runs: int) -> str:
    probe = key.removeprefix(MAE_PREFIX) if key.startswith(MAE_PREFIX) else ""
    return " ".join(part for part in (run if runs > 1 or not probe else "", probe) if part)


def _draw_run(
    axes: Axes, steps: Sequence[float], values: Sequence[float], color: int, style: int, label: str, noisy: bool
) -> None:
    line_style = ("-", "--", ":", "-.")[style % 4]
    smoothed = smooth(values, SMOOTHING) if noisy else values
    marker = "o" if len(values) < 2 else None
    axes.plot(
        steps,
        smoothed,
        color=f"C{color}",
        linestyle=line_style,
        linewidth=1.6,
        label=label,
        marker=marker,
        markersize=3,
    )
    if noisy:
        axes.plot(steps, values, color=f"C{color}", linewidth=0.7, alpha=0.3, zorder=1.5)


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
