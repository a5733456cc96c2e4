"""The rule behind reactivity.csv: 20 hairpins and a reagent that is not one of the known ones.

    python examples/finetune/make_table.py > examples/finetune/reactivity.csv

Each RNA is a stem of 5 to 7 pairs (no G-U), a loop of 4 or 5, and tails of 2 to 4 nucleotides. The made-up reagent is
blind to paired bases (0.05); of the unpaired ones it marks U with 0.9, C with 0.7, A with 0.35 and G with 0.15; each
value has noise of standard deviation 0.05. DMS marks A and C, SHAPE reagents above all A and G: the network has to
learn the letters anew, but knows what is paired. Rows 15 to 20 are held out.
"""

import numpy as np

UNPAIRED = {"U": 0.9, "C": 0.7, "A": 0.35, "G": 0.15}
PAIRED = 0.05
NOISE = 0.05
PARTNER = {"A": "U", "U": "A", "G": "C", "C": "G"}


def hairpin(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """Sequence, and whether each nucleotide is paired."""
    stem = "".join(rng.choice(list("ACGU"), rng.integers(5, 8), p=[0.15, 0.35, 0.35, 0.15]))
    sizes = ((2, 5), (4, 6), (2, 5))
    before, loop, after = ("".join(rng.choice(list("ACGU"), rng.integers(*size))) for size in sizes)
    sequence = before + stem + loop + "".join(PARTNER[letter] for letter in reversed(stem)) + after
    paired = [part is stem for part in (before, stem, loop, stem, after) for _ in part]
    return sequence, np.array(paired)


def main() -> None:
    rng = np.random.default_rng(4)
    print("id,sequence,NAI_incell,split")
    for k in range(1, 21):
        sequence, paired = hairpin(rng)
        values = np.where(paired, PAIRED, [UNPAIRED[letter] for letter in sequence])
        values = values + rng.normal(0, NOISE, len(values))
        numbers = " ".join(f"{value:.2f}" for value in values)
        print(f"hairpin{k},{sequence},{numbers},{'train' if k <= 14 else 'valid'}")


if __name__ == "__main__":
    main()
