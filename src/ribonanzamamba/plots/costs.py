"""Costs against size: time or memory over the number of positions, both axes logarithmic.

Knows nothing of layers or clocks; axes are given and returned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_costs(axes: Axes, sizes: Sequence[float], costs: Sequence[float], label: str) -> Axes:
    """One line in the axes' next colour, its legend with the growth from the last doubling on: 1 linear, 2 quadratic.

    Raises:
        ValueError: as many sizes as costs are expected.
    """
    if len(sizes) != len(costs):
        raise ValueError(f"expected as many sizes as costs, got {len(sizes)} and {len(costs)}")
    text = f"{label} (grows as n^{growth(sizes, costs):.1f})" if len(sizes) > 1 else label
    axes.plot(sizes, costs, marker="o", markersize=4, linewidth=1.8, label=text)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return axes


def growth(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Exponent between the last two points.

    >>> growth([1, 2, 4], [5, 8, 32])
    2.0
    """
    return math.log(costs[-1] / costs[-2]) / math.log(sizes[-1] / sizes[-2])
