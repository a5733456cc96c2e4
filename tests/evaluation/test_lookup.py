"""Finding predictions by id and sequence."""

import pytest

from ribonanzamamba.evaluation.lookup import Lookup
from ribonanzamamba.rna.formats import safe_file_name

LOOKUP = Lookup([(("a",), "ACGU", "first"), (("b", "alias"), "GGGG", "second"), (("bare",), "", "third")])


@pytest.mark.parametrize(
    ("ids", "sequence", "found"),
    [
        (("a",), "ACGU", "first"),
        (("a",), "acgt", "first"),
        (("alias",), "GGGG", "second"),
        (("other", "b"), "GGGG", "second"),
        (("b",), "GNGG", "second"),
        (("b",), "", "second"),
        (("bare",), "CCCC", "third"),
        (("other",), "GGGG", "second"),
        (("a",), "GGGG", "second"),
        (("other",), "CCCC", None),
        (("other",), "", None),
    ],
)
def test_find(ids, sequence, found):
    assert LOOKUP.find(ids, sequence) == found


def test_a_prediction_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="record 'a': expected a prediction of length 5, got 4"):
        LOOKUP.find(("a",), "ACGUA")


def test_a_prediction_of_another_sequence_is_an_error():
    with pytest.raises(ValueError, match="record 'a': .* expected G at position 4, got U"):
        LOOKUP.find(("a",), "ACGG")


def test_a_prediction_of_another_known_rna_belongs_to_that_one():
    assert LOOKUP.find(("a",), "ACGUA", {"ACGU", "ACGUA"}) is None


def test_ids_as_the_names_of_files():
    name = safe_file_name("a/b")
    assert name != "a/b"
    for stored in ("a/b", name):
        lookup = Lookup([((stored,), "", 1)], spell=safe_file_name)
        assert lookup.find(("a/b",), "") == 1
    assert Lookup([((name,), "", 1)]).find(("a/b",), "") is None
