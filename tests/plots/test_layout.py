"""Layouts: distances between nucleotides, nothing on top of another, and the strand's direction."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from ribonanzamamba.plots import layout
from ribonanzamamba.plots.layout import (
    CLEARANCE,
    LARGEST_BULGE_STRETCH,
    PAIR_WIDTH,
    arc_points,
    circle_radius,
    lay_out,
    split_pseudoknots,
)
from ribonanzamamba.rna.structure import Structure, nested

README = Path(__file__).parents[2] / "examples" / "README.md"
KNOWN = dict(re.findall(r"^>(\S+)\n[ACGU]+\n(\S+)$", README.read_text(encoding="utf-8"), flags=re.MULTILINE))
# What the first released weights make of the pseudoknots, and shapes that crowd a drawing
SHAPES = KNOWN | {
    "riboswitch, predicted": ".((((((((...(((((((.....[[)))))))........((((((]].....))))))..)))))))).",
    "FSE, predicted": "." * 5 + "(((.......[[[..[[[.......)))]]]..]]]..(((((((((.........))).))))))" + "." * 14,
    "hairpin of no loop": "(())",
    "hairpin of one": "(.)",
    "large bulge": "((" + "." * 20 + "((...))))",
    "large loops side by side": "(" + ("((" + "." * 30 + "))") * 4 + ")",
    "six branches": "((" + "((....))" * 6 + "))",
    "branches on branches": "(" + "(((...)((...)(...))))" * 3 + ")",
}


def structure(text: str) -> Structure:
    return split_pseudoknots(Structure.from_dot_bracket(text))[0]


def distances(positions: np.ndarray) -> np.ndarray:
    """Distance of every two nucleotides, (length, length), infinite from one to itself."""
    table = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(table, np.inf)
    return table


def balance(text: str) -> str:
    """The text with every bracket that has no partner made a dot."""
    letters, opened = list(text), []
    for position, letter in enumerate(text):
        if letter == "(":
            opened.append(position)
        elif letter == ")":
            if opened:
                opened.pop()
            else:
                letters[position] = "."
    for position in opened:
        letters[position] = "."
    return "".join(letters)


def winding(positions: np.ndarray) -> float:
    """Signed area of the closed strand: negative where it runs clockwise."""
    x, y = positions.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES)
def test_nothing_lies_on_another(text):
    assert distances(lay_out(structure(text))).min() >= CLEARANCE - 1e-9


@settings(max_examples=60, deadline=None, derandomize=True)
@given(strategies.text("(.)", max_size=120).map(balance))
def test_nothing_lies_on_another_whatever_the_structure(text):
    positions = lay_out(Structure.from_dot_bracket(text))
    assert positions.shape == (len(text), 2)
    assert distances(positions).min(initial=np.inf) >= CLEARANCE - 1e-9


def test_a_loop_that_no_growth_clears_becomes_a_row(monkeypatch):
    monkeypatch.setattr(layout, "_is_clear", lambda positions, spans: False)
    positions = lay_out(structure("(" + "((....))" * 6 + ")"))
    assert distances(positions).min() >= CLEARANCE - 1e-9
    # All stems stand upright on one line
    assert np.ptp(positions[1:-1:8, 1]) == pytest.approx(0.0)


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES)
def test_pairs_have_one_width(text):
    folded = structure(text)
    positions = lay_out(folded)
    widths = [np.linalg.norm(positions[i] - positions[j]) for i, j in folded.pairs]
    assert widths == pytest.approx([PAIR_WIDTH] * len(widths))


@pytest.mark.parametrize("name", ["tRNA-Phe", "5S-rRNA", "TAR"])
def test_the_backbone_is_stretched_by_bulges_only(name):
    positions = lay_out(structure(KNOWN[name]))
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    assert steps.min() >= 1.0 - 1e-9
    assert steps.max() <= LARGEST_BULGE_STRETCH + 1e-9


def test_a_stem_is_a_straight_ladder():
    positions = lay_out(structure("(((....)))"))
    assert positions[:3] == pytest.approx(np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]]))
    assert positions[7:] == pytest.approx(np.array([[PAIR_WIDTH, 2.0], [PAIR_WIDTH, 1.0], [PAIR_WIDTH, 0.0]]))


@pytest.mark.parametrize("text", ["((..((...))..))", "((.((...))))", "((((...))...))"])
def test_a_stem_goes_straight_through_an_internal_loop(text):
    folded = structure(text)
    positions = lay_out(folded)
    assert [positions[i, 0] for i, _ in folded.pairs] == pytest.approx([0.0] * 4)


@pytest.mark.parametrize("name", KNOWN)
def test_the_strand_runs_clockwise(name):
    assert winding(lay_out(structure(KNOWN[name]))) < 0


def test_a_crowded_loop_grows():
    """Four hairpins of 30 nucleotides cannot stand side by side on the smallest circle."""
    positions = lay_out(structure(SHAPES["large loops side by side"]))
    assert np.linalg.norm(np.diff(positions, axis=0), axis=1).max() > 1.1


@pytest.mark.parametrize("length", [0, 1, 5])
def test_without_pairs_it_is_a_line(length):
    expected = np.stack([np.arange(length), np.zeros(length)], axis=1)
    assert lay_out(Structure(length, ())) == pytest.approx(expected)


def test_a_long_hairpin_needs_no_recursion():
    assert np.ptp(lay_out(structure("(" * 1200 + "...." + ")" * 1200))[:, 1]) > 1199


def test_crossing_pairs_are_refused():
    with pytest.raises(ValueError, match="pairs that cross"):
        lay_out(Structure.from_dot_bracket("((..[[..))..]]"))


@pytest.mark.parametrize("name", KNOWN)
def test_split_pseudoknots_keeps_every_pair(name):
    whole = Structure.from_dot_bracket(KNOWN[name])
    inside, crossing = split_pseudoknots(whole)
    assert nested(inside.pairs)
    assert sorted(inside.pairs + crossing) == list(whole.pairs)
    assert bool(crossing) == bool(whole.crossing_pairs())


@pytest.mark.parametrize(("chord", "steps"), [(1.6, 2), (1.6, 4), (1.6, 31), (1.0, 12), (0.5, 2)])
def test_arc_points_are_unit_steps_to_the_left(chord, steps):
    points = arc_points(np.zeros(2), np.array([0.0, chord]), steps)
    assert np.linalg.norm(np.diff(points, axis=0), axis=1) == pytest.approx(np.ones(steps))
    assert points[[0, -1]] == pytest.approx(np.array([[0.0, 0.0], [0.0, chord]]), abs=1e-9)
    assert (points[1:-1, 0] < 0).all()


def test_an_arc_that_is_too_short_is_a_line():
    points = arc_points(np.zeros(2), np.array([3.0, 0.0]), 2)
    assert points == pytest.approx(np.array([[0.0, 0.0], [1.5, 0.0], [3.0, 0.0]]))


def test_circle_radius_of_a_rectangle():
    assert circle_radius([3.0, 4.0, 3.0, 4.0]) == pytest.approx(2.5)
