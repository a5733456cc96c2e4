"""Text to the alphabet A C G U N and to codes."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ribonanzamamba.rna.alphabet import LetterError, NormalizedSequence, decode_sequence, encode_sequence
from ribonanzamamba.rna.alphabet import normalize_sequence as normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("ACGU", NormalizedSequence("ACGU", 0, 0), id="unchanged"),
        pytest.param("acguTt", NormalizedSequence("ACGUUU", 0, 2), id="lower-case-and-thymine"),
        pytest.param(" AC\tG\r\nU\n", NormalizedSequence("ACGU", 0, 0), id="whitespace"),
        pytest.param("ARYSWKMBDHVNnC", NormalizedSequence("ANNNNNNNNNNNNC", 12, 0), id="iupac"),
        pytest.param("", NormalizedSequence("", 0, 0), id="empty"),
        pytest.param("N" * 50, NormalizedSequence("N" * 50, 50, 0), id="all-unknown-is-no-protein"),
    ],
)
def test_normalize_sequence(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("text", "position", "letter"),
    [
        pytest.param("ACX", 3, "X", id="X"),
        pytest.param("A C-G", 3, "-", id="gap-after-whitespace"),
        pytest.param("AC.G", 3, ".", id="dot"),
        pytest.param("MKVLE", 4, "L", id="protein"),
        pytest.param("ACGI", 4, "I", id="inosine"),
        pytest.param("ACG*", 4, "*", id="stop"),
        pytest.param("AC5G", 3, "5", id="digit"),
        pytest.param("AC\u212aG", 3, "\u212a", id="kelvin-sign-upper-cases-to-K"),
        pytest.param("ACßG", 3, "ß", id="sharp-s-upper-cases-to-two-letters"),
        pytest.param("GG\ufffd", 3, "\ufffd", id="undecodable-byte"),
    ],
)
def test_normalize_sequence_refuses(text, position, letter):
    with pytest.raises(LetterError) as caught:
        normalize(text)
    assert (caught.value.position, caught.value.letter) == (position, letter)
    assert f"position {position}" in str(caught.value) and repr(letter) in str(caught.value)


def test_normalize_sequence_refuses_protein_in_nucleotide_letters():
    protein = "MKTAYVAKRSHVSDWTGNAVRKHSDTMVAYK"  # no letter here that IUPAC nucleotide codes lack
    with pytest.raises(LetterError, match="protein") as caught:
        normalize(protein)
    assert (caught.value.position, caught.value.letter) == (1, "M")
    # As many letters, a quarter of them ambiguous: a consensus sequence, not a protein.
    assert normalize("GGARCCUYGGACCUWGGAGCCUSG").n_ambiguous == 4


def test_letter_error_survives_pickling():
    error = pickle.loads(pickle.dumps(LetterError(3, "X", "is odd")))
    assert (error.position, error.letter, str(error)) == (3, "X", "position 3: 'X' is odd")


def test_encode_sequence_codes():
    codes = encode_sequence("ACGUN")
    assert codes.dtype == np.uint8
    assert codes.tolist() == [0, 1, 2, 3, 4]
    assert encode_sequence("").shape == (0,)


@given(st.text(alphabet="ACGUN"))
def test_encode_and_decode_are_inverses(sequence):
    assert decode_sequence(encode_sequence(sequence)) == sequence


@pytest.mark.parametrize("text", ["ACT", "ACa", "AC?", "ACé", "AC "])
def test_encode_sequence_refuses_unnormalized_letters(text):
    with pytest.raises(LetterError) as caught:
        encode_sequence(text)
    assert (caught.value.position, caught.value.letter) == (3, text[2])


@pytest.mark.parametrize("codes", [[0, 5], [-1], [260]])
def test_decode_sequence_refuses_other_codes(codes):
    with pytest.raises(ValueError, match="0 to 4"):
        decode_sequence(np.array(codes))
