"""Helices: the stability of every pair's helix against a plain loop and ViennaRNA, and what a network makes of it."""

import dataclasses
import itertools
import math

import pytest
import torch

from ribonanzamamba.model.checkpoint import load_checkpoint, save_checkpoint
from ribonanzamamba.model.helix import LOOP_REFERENCE, LOOP_SLOPE, LOOP_START, MOST, PAIRS, STACKS, TEMPERATURE, Helices
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.rna.alphabet import LETTERS


def tokens_of(*sequences: str) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, sequences))
    codes = [[LETTERS.index(letter) for letter in sequence.ljust(longest, "N")] for sequence in sequences]
    mask = torch.arange(longest) < torch.tensor([len(sequence) for sequence in sequences])[:, None]
    return torch.tensor(codes), mask


def random_sequence(length: int, seed: int) -> str:
    codes = torch.randint(0, 5, (length,), generator=torch.Generator().manual_seed(seed))
    return "".join(LETTERS[code] for code in codes)


def helix_of(sequence: str, i: int, j: int) -> list[tuple[int, int]]:
    """The longest unbroken helix around a pair i < j, or nothing."""

    def can_be(i: int, j: int) -> bool:
        return i >= 0 and j < len(sequence) and j - i > 3 and sequence[i] + sequence[j] in PAIRS

    if not can_be(i, j):
        return []
    first = next(k for k in itertools.count() if not can_be(i - k - 1, j + k + 1))
    last = next(k for k in itertools.count() if not can_be(i + k + 1, j - k - 1))
    return [(i + k, j - k) for k in range(-first, last + 1)]


def stability_of(sequence: str, helix: list[tuple[int, int]]) -> float:
    total = 0.0
    for (i, j), (k, m) in itertools.pairwise(helix):
        total += STACKS[PAIRS.index(sequence[i] + sequence[j])][PAIRS.index(sequence[m] + sequence[k])]
    return min(total, MOST)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 33, 70])
def test_stability_is_that_of_the_longest_helix(length):
    # N stands for nothing in particular and pairs with nothing
    sequence = random_sequence(length, length)
    possible, stability = Helices().stability(*tokens_of(sequence))
    for i, j in itertools.combinations(range(length), 2):
        helix = helix_of(sequence, i, j)
        assert bool(possible[0, i, j]) == bool(possible[0, j, i]) == bool(helix)
        expected = stability_of(sequence, helix)
        assert stability[0, i, j].item() == stability[0, j, i].item() == pytest.approx(expected, abs=1e-4)


def test_long_helices_end_at_what_float32_can_weigh():
    sequence = "G" * 100 + "AAAA" + "C" * 100
    helices = Helices()
    _, stability = helices.stability(*tokens_of(sequence))
    assert stability.max() == MOST
    of_nucleotide, of_pair = helices(*tokens_of(sequence))
    assert of_nucleotide.isfinite().all() and of_pair.isfinite().all()


def test_stacks_are_those_of_viennarna():
    RNA = pytest.importorskip("RNA", reason="ViennaRNA is not installed")
    for (row, outer), (column, turned) in itertools.product(enumerate(PAIRS), enumerate(PAIRS)):
        sequence = f"{outer[0]}{turned[1]}GAAAC{turned[0]}{outer[1]}"
        compound = RNA.fold_compound(sequence)
        loop = compound.eval_loop_pt(1, RNA.ptable("((.....))"))
        assert loop / 100 == pytest.approx(-STACKS[row][column], abs=0.01), sequence


def test_a_share_is_won_against_all_other_partners():
    sequence = random_sequence(40, 7)
    helices = Helices()
    of_nucleotide, of_pair = helices(*tokens_of(sequence))
    weight = {}
    for i, j in itertools.combinations(range(40), 2):
        energy = stability_of(sequence, helix_of(sequence, i, j))
        loop = LOOP_START + LOOP_SLOPE * math.log(max(1.0, (j - i) / LOOP_REFERENCE))
        weight[i, j] = math.exp((energy - loop) / TEMPERATURE) if energy > 0 else 0.0
    rival = [sum(value for pair, value in weight.items() if k in pair) for k in range(40)]
    share = {(i, j): value / (1 + rival[i] + rival[j] - value) for (i, j), value in weight.items()}
    assert max(share.values()) > 0.1
    for (i, j), value in share.items():
        assert of_pair[0, i, j, 2].item() == pytest.approx(value, rel=1e-4, abs=1e-7)
    for k in range(40):
        later = sum(value for (i, _), value in share.items() if i == k)
        earlier = sum(value for (_, j), value in share.items() if j == k)
        assert of_nucleotide[0, k, :2].tolist() == pytest.approx([later, earlier], rel=1e-4, abs=1e-7)
        assert of_nucleotide[0, k, 2].item() == pytest.approx(math.log1p(rival[k]) / 10, rel=1e-4, abs=1e-7)


def test_features_depend_on_the_rna_alone():
    helices = Helices()
    sequences = [random_sequence(length, length) for length in (30, 1, 64, 17)]
    of_nucleotide, of_pair = helices(*tokens_of(*sequences))
    for row, sequence in enumerate(sequences):
        length = len(sequence)
        own_nucleotide, own_pair = helices(*tokens_of(sequence))
        torch.testing.assert_close(of_nucleotide[row, :length], own_nucleotide[0])
        torch.testing.assert_close(of_pair[row, :length, :length], own_pair[0])
        assert not of_nucleotide[row, length:].any() and not of_pair[row, length:].any()
        assert not of_pair[row, :, length:].any()


@pytest.fixture
def with_helices(small_network) -> RibonanzaMamba:
    """The small network, which reads helices and does not know yet what they mean."""
    network = RibonanzaMamba(dataclasses.replace(small_network.config, helices=True)).eval()
    network.load_state_dict(small_network.state_dict(), strict=False)
    return network


@torch.inference_mode()
def test_untrained_they_change_nothing(small_network, with_helices):
    batch = tokens_of(random_sequence(30, 1), random_sequence(20, 2))
    before, after = small_network(*batch), with_helices(*batch)
    for name in ("reactivity", "pair_logit", "coordinates"):
        assert torch.equal(getattr(before, name), getattr(after, name))


def test_they_get_a_gradient_from_zero(with_helices):
    output = with_helices.train()(*tokens_of("GGGGAAAACCCCAGGGAAACCC"), ("structure",))
    output.pair_logit[:, :10, 12:].sum().backward()
    for weight in with_helices.helices.parameters():
        assert (weight.grad.abs().sum(0) > 0).all()


def test_a_checkpoint_holds_no_table_and_comes_back(with_helices, tmp_path):
    torch.nn.init.normal_(with_helices.helices.pair.weight)
    assert not [name for name in with_helices.state_dict() if "stack" in name or "type" in name]
    save_checkpoint(with_helices, tmp_path / "net", name="test", dtype=torch.float32)
    loaded = load_checkpoint(tmp_path / "net").network
    batch = tokens_of(random_sequence(40, 3))
    with torch.inference_mode():
        assert torch.equal(loaded(*batch).pair_logit, with_helices(*batch).pair_logit)
