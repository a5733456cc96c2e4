"""The released weights: known folds come out, files open elsewhere, and nothing but an
RNA itself changes its answer."""

import random
from pathlib import Path

import biotite.structure.io.pdbx as pdbx
import gemmi
import numpy as np
import pytest
import torch

import ribonanzamamba
from ribonanzamamba.model.checkpoint import PIECE_BYTES, RELEASED, WEIGHTS
from ribonanzamamba.prediction.folder import Origin, PredictionFolder
from ribonanzamamba.prediction.predict import Predictor, to_batch
from ribonanzamamba.rna.coordinates import superpose
from ribonanzamamba.rna.formats import read_fasta
from ribonanzamamba.rna.records import Record
from ribonanzamamba.rna.structure import Structure

EXAMPLES = Path(__file__).parents[2] / "examples" / "rnas.fasta"
CLOVERLEAF = "(((((((..((((........)))).(((((.......))))).....(((((.......))))))))))))...."


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return ribonanzamamba.load(device="cpu")


@pytest.fixture(scope="module")
def random_rnas() -> list[Record]:
    """50 RNAs of 20 to 400 nt, shuffled."""
    generator = random.Random(0)
    lengths = np.linspace(20, 400, 50).astype(int)
    rnas = [Record(f"random_{length}", "".join(generator.choices("ACGU", k=length))) for length in lengths]
    generator.shuffle(rnas)
    return rnas


def arrays(prediction) -> dict[str, np.ndarray]:
    return {
        "reactivity": np.stack(list(prediction.reactivity.values())),
        "reactivity_error": np.stack(list(prediction.reactivity_error.values())),
        "pair_probability": prediction.pair_probability,
        "coordinates": prediction.coordinates,
        "plddt": prediction.plddt,
    }


def test_pieces_are_small():
    files = list((WEIGHTS / RELEASED).glob("*.safetensors"))
    assert files and all(file.stat().st_size <= PIECE_BYTES + 100_000 for file in files)
    assert sum(file.stat().st_size for file in files) <= 40_000_000


def test_trna_folds_into_its_cloverleaf(predictor):
    record = next(record for record in read_fasta(EXAMPLES) if record.id == "tRNA-Phe")
    predicted = set(predictor.predict(record, tasks=("structure",)).structure.pairs)
    known = set(Structure.from_dot_bracket(CLOVERLEAF).pairs)
    assert known <= predicted
    # these weights put one pair more on the anticodon stem
    assert len(predicted - known) <= 1


def test_answers_do_not_depend_on_company_or_order(predictor, random_rnas):
    together = predictor.predict(random_rnas)
    for record, prediction in list(zip(random_rnas, together, strict=True))[::3]:
        alone = predictor.predict(record)
        for name, value in arrays(alone).items():
            np.testing.assert_array_equal(arrays(prediction)[name], value, err_msg=f"{name} of {record.id}")


def test_padding_changes_nothing_beyond_rounding(predictor, random_rnas):
    some = sorted(random_rnas, key=lambda record: record.length)[:20:4]
    with torch.inference_mode():
        batch = to_batch([*some, random_rnas[0]])
        padded = predictor.network(batch.tokens, batch.mask)
        for row, record in enumerate(some):
            single = to_batch([record])
            alone = predictor.network(single.tokens, single.mask)
            length = record.length
            for name, part, tolerance in (
                ("reactivity", (slice(length),), 1e-5),
                ("reactivity_error", (slice(length),), 1e-5),
                ("pair_probability", (slice(length), slice(length)), 1e-5),
                # angstrom at 50 to 100 angstrom from the origin: float32 through four layers of rigid motions
                ("coordinates", (slice(None), slice(length)), 2e-3),
                ("plddt", (slice(None), slice(length)), 1e-3),
            ):
                got, expected = getattr(padded, name)[row][part], getattr(alone, name)[0][part]
                assert (got - expected).abs().max() < tolerance, f"{name} of {record.id}"


@pytest.mark.parametrize("changed", [0, 199], ids=["first", "last"])
def test_a_far_nucleotide_changes_everything(predictor, changed):
    sequence = "".join(random.Random(7).choices("ACGU", k=200))
    other = sequence[:changed] + ("A" if sequence[changed] != "A" else "C") + sequence[changed + 1 :]
    before, after = (arrays(predictor.predict(each)) for each in (sequence, other))
    far = 199 - changed
    for name, place in (
        ("reactivity", (slice(None), far)),
        ("pair_probability", far),
        ("coordinates", (slice(None), far)),
        ("plddt", (slice(None), far)),
    ):
        assert np.abs(before[name][place] - after[name][place]).max() > 1e-6, name


def test_models_differ_and_are_ranked(predictor):
    prediction = predictor.predict(read_fasta(EXAMPLES)[0])
    assert (np.diff(prediction.model_confidence) <= 0).all()
    models = prediction.coordinates[:, :, 2]
    apart = [superpose(models[a], models[b]).rmsd for a in range(5) for b in range(a)]
    assert min(apart) > 0.5, "two of the five models are the same within half an angstrom"


def test_coordinate_files_open_in_gemmi_and_biotite(predictor, tmp_path):
    record = read_fasta(EXAMPLES)[0]
    folder = PredictionFolder(tmp_path / "out", ("coordinates",), 1, origin=Origin("test", "", "cpu", ()))
    prediction = predictor.predict(record, tasks=("coordinates",), models=1)
    folder.write(prediction)
    path = tmp_path / "out" / "coordinates" / f"{record.id}_model_1.cif"
    chain = gemmi.read_structure(str(path))[0][0]
    assert len(chain) == record.length
    atoms = pdbx.get_structure(pdbx.CIFFile.read(path), model=1, extra_fields=["b_factor"])
    sugar = atoms[atoms.atom_name == "C1'"]
    np.testing.assert_allclose(sugar.coord, prediction.coordinates[0, :, 2], atol=2e-3)
    np.testing.assert_allclose(sugar.b_factor, prediction.plddt[0], atol=0.01)
