"""What dot-bracket, CT and BPSEQ files of other programs spell, and how their errors are placed."""

import pytest

from ribonanzamamba.rna.formats import FormatError, read_bpseq, read_ct, read_dot_bracket, read_records


def save(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def spelled(entries):
    return [(record.id, record.sequence, structure.to_dot_bracket()) for record, structure in entries]


# Dot-bracket


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(">x y\nGGGAAACCC\n(((...)))\n", [("x", "GGGAAACCC", "(((...)))")], id="plain"),
        pytest.param(">x\nGGGAAACCC\n(((...))) (-1.20)\n", [("x", "GGGAAACCC", "(((...)))")], id="energy"),
        pytest.param(">x\nGGGAAACCC\n(((...))) ( -1.20)\n", [("x", "GGGAAACCC", "(((...)))")], id="padded-energy"),
        pytest.param("gggtttccc\n(((...)))\n", [("sequence_1", "GGGUUUCCC", "(((...)))")], id="no-header"),
        pytest.param(
            "GC\n()\nAU\n..\n", [("sequence_1", "GC", "()"), ("sequence_2", "AU", "..")], id="several-without-header"
        ),
        pytest.param(
            "# made by a program\n>x\nGGG\nAAA\nCCC\n(((.\n..)))\n\n>y\nA\n.\n",
            [("x", "GGGAAACCC", "(((...)))"), ("y", "A", ".")],
            id="wrapped-lines-and-comment",
        ),
        pytest.param(
            # The lines of RNAfold -p (ViennaRNA 2.7): minimum, ensemble, centroid, frequency.
            ">x\nGGGAAACCC\n(((...))) ( -1.20)\n{{{...}}} [ -1.50]\n(((...))) { -1.20 d=0.84}\n"
            " frequency of mfe structure in ensemble 0.61; ensemble diversity 1.2\n>y\nA\n.\n",
            [("x", "GGGAAACCC", "(((...)))"), ("y", "A", ".")],
            id="further-structures",
        ),
        pytest.param(">x\nGCAUGC\n([A)]a\n", [("x", "GCAUGC", "([{)]}")], id="pseudoknot-letters"),
    ],
)
def test_read_dot_bracket(tmp_path, text, expected):
    assert spelled(read_dot_bracket(save(tmp_path, "a.dbn", text))) == expected


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        pytest.param(">x\nGGG\n(((...)))\n", 1, "sequence has 3 letters, the structure 9", id="longer"),
        pytest.param(">x\nGGG\n..\n", 1, "sequence has 3 letters, the structure 2", id="shorter"),
        pytest.param(">x\nGGG\n", 1, "sequence has 3 letters, the structure 0", id="no-structure"),
        pytest.param(">x\n...\n", 1, "sequence has 0 letters, the structure 3", id="no-sequence"),
        pytest.param(">x\nGGG\n(..\n", 1, r"structure, position 1: '\(' is never closed", id="unbalanced"),
        pytest.param(">x\nGQG\n...\n", 1, "position 2: 'Q'", id="letter"),
        pytest.param(">\nGGG\n...\n", 1, "no id", id="nameless"),
        pytest.param(">x\n\n", 1, "sequence is empty", id="empty"),
    ],
)
def test_read_dot_bracket_refuses(tmp_path, text, line, message):
    path = save(tmp_path, "a.dbn", text + ">good\nAC\n..\n")
    with pytest.raises(FormatError, match=message) as caught:
        read_dot_bracket(path)
    assert caught.value.line == line
    result = read_records(path)
    assert [record.id for record in result.records] == ["good"] and len(result.problems) == 1


# CT


CT = """\
5 ENERGY = -1.2  x comment
1 G 0 2 5 1
2 a 1 3 0 2
3 T 2 4 0 3
4 N 3 5 0 4
5 C 4 0 1 5
"""


def test_read_ct(tmp_path):
    text = "# a comment\n" + CT + "\n   2\tdG = 0.0 y\n1 A 0 2 0 1\n2 C 1 0 0 2 extra columns\n"
    assert spelled(read_ct(save(tmp_path, "a.ct", text))) == [("x", "GAUNC", "(...)"), ("y", "AC", "..")]


def test_read_ct_names_nameless_records_after_the_file(tmp_path):
    path = save(tmp_path, "some.rna.ct", "1\n1 A 0 0 0 1\n1 ENERGY = 0.0\n1 C 0 0 0 1\n")
    assert [record.id for record, _ in read_ct(path)] == ["some.rna", "some.rna_2"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        pytest.param(CT.replace("5 C 4 0 1", "5 C 4 0 0"), 2, "1 pairs with 5, which line 6 leaves", id="one-sided"),
        pytest.param(
            CT.replace("2 a 1 3 0", "2 a 1 3 5"), 3, "line 6 pairs with 1; a nucleotide in two", id="multiplet"
        ),
        pytest.param(CT.replace("2 a 1 3 0", "2 a 1 3 2"), 3, "2 pairs with 2, of 1 to 5", id="itself"),
        pytest.param(CT.replace("2 a 1 3 0", "2 a 1 3 6"), 3, "2 pairs with 6, of 1 to 5", id="beyond-the-end"),
        pytest.param(CT.replace("3 T 2 4 0", "3 T 2 4 x"), 4, "expected a row", id="no-number"),
        pytest.param(CT.replace("3 T 2 4 0 3\n", ""), 4, "expected position 3, got 4", id="missing-row"),
        pytest.param(CT.replace("5 ENERGY", "6 ENERGY"), 1, "title says 6 nucleotides, 5 follow", id="title-longer"),
        pytest.param(CT.replace("5 ENERGY", "4 ENERGY"), 1, "title says 4 nucleotides, 5 follow", id="title-shorter"),
        pytest.param(CT.replace("4 N", "4 ?"), 1, r"position 4: '\?'", id="letter"),
        pytest.param(CT + "words\n", 7, "expected a title", id="words"),
        pytest.param("9" * 5000 + " x\n", 1, "expected a title", id="absurd-length"),
        pytest.param("0 x\n", 1, "sequence is empty", id="empty"),
    ],
)
def test_read_ct_refuses(tmp_path, text, line, message):
    path = save(tmp_path, "a.ct", text + "1 good\n1 A 0 0 0 1\n")
    with pytest.raises(FormatError, match=message) as caught:
        read_ct(path)
    assert caught.value.line == line
    assert "good" in [record.id for record in read_records(path).records]


# BPSEQ


BPSEQ = "1 G 4\n2 a 0\n3 T 0\n4 C 1\n"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        pytest.param(BPSEQ, ["file"], id="no-title"),
        pytest.param(BPSEQ + BPSEQ, ["file", "file_2"], id="two-without-title"),
        pytest.param("# x words\n" + BPSEQ + "\n#Name: y\n#Length: 4\n" + BPSEQ, ["x", "y"], id="comments"),
        pytest.param(
            "Filename: d.5.b\nOrganism: Escherichia coli\nAccession Number: J01695\n" + BPSEQ, ["d.5.b"], id="crw"
        ),
    ],
)
def test_read_bpseq(tmp_path, text, ids):
    found = spelled(read_bpseq(save(tmp_path, "file.bpseq", text)))
    assert found == [(id, "GAUC", "(..)") for id in ids]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        pytest.param(BPSEQ.replace("4 C 1", "4 C 0"), 2, "1 pairs with 4, which line 5 leaves", id="one-sided"),
        pytest.param(BPSEQ.replace("2 a 0", "2 a 4"), 3, "a nucleotide in two pairs", id="multiplet"),
        pytest.param(BPSEQ.replace("2 a 0", "2 a 0\n2 a 3"), 4, "stands here .* line 3", id="multiplet-as-two-rows"),
        pytest.param("1 G 4\n" + BPSEQ, 3, "stands here .* line 2", id="multiplet-in-the-first-row"),
        pytest.param(BPSEQ.replace("3 T 0\n", ""), 4, "expected position 3, got 4", id="missing-row"),
        pytest.param(BPSEQ.replace("3 T 0", "3 T"), 4, "expected a row", id="missing-column"),
        pytest.param(BPSEQ.replace("3 T 0", "3 T -1"), 4, "expected a row", id="negative"),
        pytest.param(BPSEQ.replace("3 T 0", "3 T " + "9" * 5000), 4, "expected a row", id="absurd-partner"),
    ],
)
def test_read_bpseq_refuses(tmp_path, text, line, message):
    path = save(tmp_path, "a.bpseq", "# bad\n" + text + "# good\n1 A 0\n")
    with pytest.raises(FormatError, match=message) as caught:
        read_bpseq(path)
    assert (caught.value.line, caught.value.record) == (line, "bad")
    result = read_records(path)
    assert [record.id for record in result.records] == ["good"] and len(result.problems) == 1
