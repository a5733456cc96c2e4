"""Secondary structures and their dot-bracket text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ribonanzamamba.rna.structure import Structure, crosses, nested


@st.composite
def structures(draw):
    length = draw(st.integers(0, 40))
    order = draw(st.permutations(range(length)))
    n_pairs = draw(st.integers(0, length // 2))
    return Structure(length, tuple(zip(order[:n_pairs], order[n_pairs : 2 * n_pairs], strict=True)))


@given(structures())
def test_dot_bracket_round_trip(structure):
    text = structure.to_dot_bracket()
    assert len(text) == structure.length
    assert Structure.from_dot_bracket(text) == structure


@given(structures())
def test_partners_round_trip(structure):
    partners = structure.to_partners()
    assert partners.dtype == np.int32 and partners.shape == (structure.length,)
    assert Structure.from_partners(partners) == structure


@given(structures())
def test_stems_hold_every_pair_once(structure):
    assert sorted(pair for stem in structure.stems() for pair in stem) == list(structure.pairs)


@given(structures())
def test_crossing_pairs_and_nested_agree(structure):
    assert nested(structure.pairs) == (not structure.crossing_pairs())
    for pair in structure.crossing_pairs():
        assert any(crosses(pair, other) for other in structure.pairs)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        pytest.param("", (), id="empty"),
        pytest.param(".", (), id="one"),
        pytest.param("(())", ((0, 3), (1, 2)), id="stem"),
        pytest.param("([)]", ((0, 2), (1, 3)), id="pseudoknot"),
        pytest.param("(A<)a>", ((0, 3), (1, 4), (2, 5)), id="letters-and-angles"),
        pytest.param("(-,_:~)", ((0, 6),), id="other-signs-for-unpaired"),
    ],
)
def test_from_dot_bracket(text, pairs):
    assert Structure.from_dot_bracket(text).pairs == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("(()", r"position 1: '\(' is never closed", id="open"),
        pytest.param("())", r"position 3: '\)' closes nothing", id="closed"),
        pytest.param("([)", r"position 2: '\[' is never closed", id="other-kind"),
        pytest.param("(?)", r"position 2: '\?' is no dot-bracket letter", id="letter"),
    ],
)
def test_from_dot_bracket_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        Structure.from_dot_bracket(text)


def test_to_dot_bracket_gives_the_larger_part_round_brackets():
    structure = Structure.from_dot_bracket("[[..(((..]]..)))")
    assert structure.to_dot_bracket() == "[[..(((..]]..)))"


def test_to_dot_bracket_counts_layers():
    """Thirty mutually crossing pairs can be written, one more cannot."""
    assert Structure(60, tuple((i, i + 30) for i in range(30))).to_dot_bracket().startswith("([{<AB")
    with pytest.raises(ValueError, match="31 crossing layers"):
        Structure(62, tuple((i, i + 31) for i in range(31))).to_dot_bracket()


@pytest.mark.parametrize(
    ("length", "pairs", "message"),
    [
        pytest.param(4, ((0, 4),), "does not fit", id="beyond-the-end"),
        pytest.param(4, ((-1, 2),), "does not fit", id="negative"),
        pytest.param(4, ((2, 2),), "does not fit", id="itself"),
        pytest.param(4, ((0, 3), (1, 3)), "shares", id="shared"),
        pytest.param(4, ((0, 3), (3, 0)), "shares", id="twice"),
    ],
)
def test_structure_refuses(length, pairs, message):
    with pytest.raises(ValueError, match=message):
        Structure(length, pairs)


def test_structure_sorts_pairs():
    assert Structure(6, ((4, 1), (0, 5))).pairs == ((0, 5), (1, 4))


@pytest.mark.parametrize(
    ("partners", "message"),
    [
        pytest.param([2, -1, -1], "position 1 pairs with 3, but not", id="one-sided"),
        pytest.param([2, 2, 0], "position 2 pairs with 3, but not", id="shared"),
        pytest.param([-1, 5], "position 2 pairs with 6, but not", id="beyond-the-end"),
        pytest.param([-1, 1], "does not fit", id="itself"),
    ],
)
def test_from_partners_refuses(partners, message):
    with pytest.raises(ValueError, match=message):
        Structure.from_partners(partners)


def test_crossing_pairs_names_both_sides():
    structure = Structure.from_dot_bracket("((.[[.)).]](..)")
    assert structure.crossing_pairs() == ((0, 7), (1, 6), (3, 10), (4, 9))
