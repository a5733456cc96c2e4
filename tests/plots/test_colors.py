"""Colours: the bands of pLDDT, and letters that can be read on every colour of a scale."""

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from ribonanzamamba.plots.colors import (
    BASE_COLORS,
    NESTED_COLORS,
    PALE,
    PLDDT_BANDS,
    REACTIVITY_COLORS,
    base_color,
    plddt_color,
    readable_on,
)


def luminance(color) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other) -> float:
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    ("value", "band"), [(100.0, 0), (90.0, 0), (89.99, 1), (70.0, 1), (50.0, 2), (49.99, 3), (0.0, 3)]
)
def test_plddt_color(value, band):
    assert plddt_color(value) == PLDDT_BANDS[band].color


def test_no_value_is_pale():
    assert plddt_color(float("nan")) == PALE
    assert to_hex(REACTIVITY_COLORS(np.ma.masked_invalid([np.nan]))[0]).upper() == PALE


def test_bases_have_colors_of_their_own():
    assert len(set(BASE_COLORS.values())) == 5
    assert base_color("R") == BASE_COLORS["N"]


@pytest.mark.parametrize("scale", [REACTIVITY_COLORS, NESTED_COLORS], ids=lambda scale: scale.name)
def test_letters_can_be_read_on_every_color(scale):
    colors = scale(np.linspace(0.0, 1.0, 101))
    # 4.5 is what WCAG 2.2 asks for text, criterion 1.4.3
    assert min(contrast(color, readable_on(color)) for color in colors) > 4.5


@pytest.mark.parametrize("scale", [REACTIVITY_COLORS, NESTED_COLORS], ids=lambda scale: scale.name)
def test_scales_darken_all_the_way(scale):
    """Then they can be read without any sense of colour, and in a grey print."""
    assert (np.diff([luminance(color) for color in scale(np.linspace(0.0, 1.0, 101))]) < 0).all()
