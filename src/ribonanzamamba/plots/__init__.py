"""Pictures of what was predicted: every function draws on the axes it is given, or the figure, and returns them.

None makes a figure, saves a file or runs a model. Knows the records of `rna`, NumPy and matplotlib, nothing else.
"""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError('pictures need matplotlib: pip install "ribonanzamamba[plots]"') from error

from ribonanzamamba.plots.coordinates import draw_trace
from ribonanzamamba.plots.curves import draw_curve, draw_runs
from ribonanzamamba.plots.overview import draw_overview
from ribonanzamamba.plots.profiles import draw_heat_map, draw_reactivity
from ribonanzamamba.plots.structures import draw_arcs, draw_dot_plot, draw_layout

__all__ = [
    "draw_arcs",
    "draw_curve",
    "draw_dot_plot",
    "draw_heat_map",
    "draw_layout",
    "draw_overview",
    "draw_reactivity",
    "draw_runs",
    "draw_trace",
]
