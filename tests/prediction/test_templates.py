"""Templates: found by sequence, copied exactly, completed by the network, believed as far as the alignment goes."""

from __future__ import annotations

import gzip
import sys
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import ribonanzamamba
from ribonanzamamba.data.coordinate_table import ATOM_COLUMNS
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.prediction import template_model as model_module
from ribonanzamamba.prediction import templates as templates_module
from ribonanzamamba.prediction.predict import Predictor
from ribonanzamamba.prediction.template_files import read_templates
from ribonanzamamba.prediction.template_model import add_templates, build_model, predict_lddt, template_models
from ribonanzamamba.prediction.templates import BiotiteMissing, TemplateChain, TemplateLibrary
from ribonanzamamba.rna.coordinates import superpose
from ribonanzamamba.rna.mmcif import write_mmcif
from ribonanzamamba.rna.records import ATOMS

C1 = ATOMS.index("C1'")
LENGTH = 60


def make_sequence(length: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGU"), length))


def make_structure(length: int, seed: int) -> np.ndarray:
    """(length, atom, 3): C1' along a crooked line with steps of 5.6 angstrom, the other atoms within some angstrom."""
    random = np.random.default_rng(seed)
    steps = random.normal(size=(length, 3)) + [1.0, 0.0, 0.0]
    trace = np.cumsum(5.6 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    around = 2.0 * random.normal(size=(length, len(ATOMS), 3))
    around[:, C1] = 0
    return trace[:, None] + around


def moved(structure: np.ndarray, seed: int = 0) -> np.ndarray:
    """The structure in another frame."""
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    return structure @ rotation.T + random.normal(size=3) * 30


def mutate(sequence: str, places: list[int]) -> str:
    letters = list(sequence)
    for place in places:
        letters[place] = "ACGU"["ACGU".index(letters[place]) - 1]
    return "".join(letters)


def library(*chains: TemplateChain, decoys: int = 20) -> TemplateLibrary:
    """The chains among others of random sequences."""
    others = [
        TemplateChain(f"decoy{k}_A", make_sequence(LENGTH, 100 + k), make_structure(LENGTH, k).astype(np.float32))
        for k in range(decoys)
    ]
    return TemplateLibrary([*others, *chains])


def chain_of(structure: np.ndarray, sequence: str, id: str = "1ABC_A") -> TemplateChain:
    return TemplateChain(id, sequence, structure.astype(np.float32))


@pytest.fixture
def truth() -> np.ndarray:
    return make_structure(LENGTH, 1)


@pytest.fixture
def sequence() -> str:
    return make_sequence(LENGTH, 7)


def test_a_known_structure_is_found_and_copied(truth, sequence):
    places = [5, 17, 30, 31, 44]
    hits = library(chain_of(moved(truth), sequence)).search(mutate(sequence, places))
    assert hits[0].chain.id == "1ABC_A" and hits[0].source == "template 1ABC_A 0.92"
    assert hits[0].identity == pytest.approx(55 / 60) and hits[0].coverage == 1.0
    assert np.flatnonzero(~hits[0].same).tolist() == places
    model = build_model(hits[0], make_structure(LENGTH, 2))
    # float32 at 100 angstrom
    assert superpose(model.reshape(-1, 3), truth.reshape(-1, 3)).rmsd < 1e-4


def test_insertions_and_deletions_shift_what_is_copied(truth, sequence):
    query = sequence[:20] + sequence[24:40] + "GAUAC" + sequence[40:]
    (hit, *_) = library(chain_of(truth, sequence)).search(query)
    expected = [*range(20), *range(24, 40), *[-1] * 5, *range(40, LENGTH)]
    off = [
        abs(expected[q] - t) for q, t in zip(hit.query.tolist(), hit.template.tolist(), strict=True) if expected[q] >= 0
    ]
    # the ends of a gap may slide over letters that are equal on both sides
    assert sum(distance > 0 for distance in off) <= 4
    assert len(off) >= 52
    model = build_model(hit, make_structure(len(query), 3))
    assert np.isfinite(model).all()
    np.testing.assert_array_equal(model[hit.query], hit.chain.coordinates[hit.template])


def test_unresolved_residues_come_from_the_network(truth, sequence):
    seen = truth.copy()
    seen[:3] = seen[20:27] = seen[-4:] = np.nan
    (hit, *_) = library(chain_of(seen, sequence)).search(sequence)
    assert hit.coverage == pytest.approx((LENGTH - 14) / LENGTH)
    # a network that is right, in a frame of its own: each gap is laid where it belongs
    model = build_model(hit, moved(truth))
    np.testing.assert_allclose(model, truth, atol=1e-3)


def test_atoms_that_a_template_lacks_come_from_the_network(truth, sequence):
    c1_only = np.full_like(truth, np.nan)
    c1_only[:, C1] = truth[:, C1]
    (hit, *_) = library(chain_of(c1_only, sequence)).search(sequence)
    model = build_model(hit, moved(truth))
    np.testing.assert_allclose(model, truth, atol=1e-3)
    # of a network that is wrong everywhere the atoms keep their distance from C1', which stays the template's
    network = make_structure(LENGTH, 9)
    model = build_model(hit, network)
    np.testing.assert_array_equal(model[:, C1], truth[:, C1].astype(np.float32))
    distances = [np.linalg.norm(each - each[:, C1 : C1 + 1], axis=-1) for each in (model, network)]
    np.testing.assert_allclose(*distances, atol=1e-5)
    no_phosphate = truth.copy()
    no_phosphate[0, ATOMS.index("P")] = np.nan
    (hit, *_) = library(chain_of(no_phosphate, sequence)).search(sequence)
    np.testing.assert_allclose(build_model(hit, moved(truth)), truth, atol=1e-3)


def test_n_is_equal_to_nothing(truth, sequence):
    query = sequence[:10] + "NNN" + sequence[13:]
    template = sequence[:11] + "N" + sequence[12:30] + "N" + sequence[31:]
    (hit, *_) = library(chain_of(truth, template)).search(query)
    assert np.flatnonzero(~hit.same).tolist() == [10, 11, 12, 30] and hit.coverage == 1.0
    assert hit.identity == pytest.approx(56 / 60)
    assert library(chain_of(truth, "N" * LENGTH)).search("N" * LENGTH) == []


@pytest.mark.parametrize("query", ["", "A", "ACGU", "N", "A" * 9], ids=len)
def test_the_shortest_have_no_templates_and_no_error(truth, sequence, query):
    assert all(hit.chain.id != "1ABC_A" for hit in library(chain_of(truth, sequence)).search(query))


def test_candidates_are_those_that_share_most_words(truth, sequence):
    related = mutate(sequence, list(range(3, LENGTH, 9)))
    chains = [chain_of(truth, related, "related_A")] + [
        chain_of(truth, make_sequence(2_000, 500 + k)[: 60 + 20 * k], f"long{k}_A") for k in range(60)
    ]
    chains = [TemplateChain(each.id, each.sequence, make_structure(len(each.sequence), 5)) for each in chains]
    assert library(*chains).search(sequence)[0].chain.id == "related_A"


def test_long_queries_align_fewer_chains(truth, sequence, monkeypatch):
    related = [chain_of(truth, mutate(sequence, [k]), f"{k}XYZ_A") for k in range(4, 20)]
    everything = library(*related).search(sequence)
    assert {hit.chain.id for hit in everything} >= {chain.id for chain in related}
    monkeypatch.setattr(templates_module, "MAX_CELLS", 3 * LENGTH * LENGTH)
    assert len({hit.chain.id for hit in library(*related).search(sequence)}) == 3


def test_conformations_that_are_alike_count_once(truth, sequence):
    near = moved(truth + 0.1 * np.random.default_rng(3).normal(size=truth.shape))
    other = make_structure(LENGTH, 8)
    chains = [chain_of(truth, sequence, "1AAA_A"), chain_of(near, sequence, "1AAA_B")]
    chains += [chain_of(other, sequence, "1AAA_C"), chain_of(make_structure(LENGTH, 11), sequence, "1AAA_D")]
    hits = library(*chains).search(sequence)
    assert [hit.chain.id for hit in hits[:4]] == ["1AAA_A", "1AAA_B", "1AAA_C", "1AAA_D"]
    models = template_models(hits, make_structure(LENGTH, 4), np.full(LENGTH, 50.0))
    assert [model.hit.chain.id for model in models[:2]] == ["1AAA_A", "1AAA_C"]
    # nor do many of one sequence crowd out the others
    assert not {"1AAA_B", "1AAA_D"} & {model.hit.chain.id for model in models}


def test_confidence_follows_identity_and_what_is_copied(truth, sequence):
    network = np.full(LENGTH, 60.0)

    def mean(query: str, structure: np.ndarray) -> float:
        hits = library(chain_of(structure, sequence)).search(query)
        (hit,) = (hit for hit in hits if hit.chain.id == "1ABC_A")
        values = predict_lddt(hit, build_model(hit, moved(truth))[:, C1], network)
        assert values.shape == (LENGTH,) and (values >= 0).all() and (values <= 100).all()
        return float(values.mean())

    half = truth.copy()
    half[30:] = np.nan
    whole, mutated, partly = (
        mean(sequence, truth),
        mean(mutate(sequence, list(range(4, LENGTH, 6))), truth),
        mean(sequence, half),
    )
    assert whole > 75 and whole - 3 > mutated > 20 and whole - 10 > partly


def test_nothing_is_expected_of_what_the_network_fills_beyond_its_own_word(truth, sequence):
    seen = truth.copy()
    seen[20:40] = np.nan
    (hit, *_) = library(chain_of(seen, sequence)).search(sequence)
    for plddt in (20.0, 90.0):
        values = predict_lddt(hit, build_model(hit, truth)[:, C1], np.full(LENGTH, plddt))
        assert (values[20:40] <= model_module.FILLED * plddt + 1e-9).all()


@dataclass(frozen=True)
class FakeOutput:
    coordinates: torch.Tensor
    plddt: torch.Tensor
    reactivity: None = None
    reactivity_error: None = None
    pair_probability: None = None


class FakeNetwork(torch.nn.Module):
    """Five models, crooked lines, of one pLDDT minus the number of the model."""

    def __init__(self, plddt: float) -> None:
        super().__init__()
        self.config = ModelConfig()
        self.plddt = plddt

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, tasks: frozenset[str]) -> FakeOutput:
        batch, length = tokens.shape
        assert batch == 1
        models = np.stack([make_structure(length, 50 + k) for k in range(self.config.coordinate_models)])
        plddt = self.plddt - torch.arange(len(models))[None, :, None].expand(1, -1, length)
        return FakeOutput(torch.tensor(models, dtype=torch.float32)[None], plddt)


def predict(plddt: float, query: str, models: int = 5, templates=None):
    predictor = Predictor(FakeNetwork(plddt), device="cpu", templates=templates)
    return predictor.predict(query, tasks=("coordinates",), models=models)


def test_template_models_are_ranked_among_the_networks(truth, sequence):
    chains = library(chain_of(truth, sequence))
    prediction = predict(50.0, sequence, templates=chains)
    assert prediction.model_sources == ("template 1ABC_A 1.00", *["network"] * 4)
    assert (np.diff(prediction.model_confidence) <= 0).all()
    assert prediction.coordinates.dtype == np.float32 and prediction.coordinates.shape == (5, LENGTH, len(ATOMS), 3)
    np.testing.assert_allclose(prediction.coordinates[0], truth, atol=1e-4)
    np.testing.assert_array_equal(prediction.coordinates[1:], predict(50.0, sequence).coordinates[:4])
    assert predict(50.0, sequence, models=1, templates=chains).model_sources == ("template 1ABC_A 1.00",)


@pytest.mark.parametrize(("plddt", "seed"), [(50.0, 400), (98.0, 7)], ids=["nothing is alike", "no template is better"])
def test_otherwise_the_prediction_is_the_networks_bit_by_bit(truth, sequence, plddt, seed):
    query = make_sequence(LENGTH, seed)
    with_templates = predict(plddt, query, templates=library(chain_of(truth, sequence), decoys=1))
    without = predict(plddt, query)
    assert with_templates.model_sources == without.model_sources == ("network",) * 5
    np.testing.assert_array_equal(with_templates.coordinates, without.coordinates)
    np.testing.assert_array_equal(with_templates.plddt, without.plddt)


def test_no_hits_give_back_what_came():
    coordinates, plddt = make_structure(12, 0)[None], np.full((1, 12), 40.0)
    same = add_templates([], coordinates, plddt)
    assert same[0] is coordinates and same[1] is plddt and same[2] == ("network",)


def write_table(path: Path, sequences: list[str], columns=("p_xyz", "c4p_xyz", "c1p_xyz", "n9n1_xyz")) -> Path:
    """Our Parquet, of structures made with the place of a sequence as the seed."""
    table = {"target_id": [f"{k}TAB_A" for k in range(len(sequences))], "sequence": sequences}
    for atom, column in ATOM_COLUMNS.items():
        if column in columns:
            table[column] = [
                make_structure(len(text), seed)[:, ATOMS.index(atom)].astype(np.float32).ravel()
                for seed, text in enumerate(sequences)
            ]
    pq.write_table(pa.table(table), path)
    return path


def test_tables_are_read(tmp_path, sequence):
    read = read_templates(write_table(tmp_path / "a.parquet", [sequence, "ACGU"]))
    (chain,) = read.chains
    assert (chain.id, chain.sequence) == ("0TAB_A", sequence)
    np.testing.assert_allclose(chain.coordinates, make_structure(LENGTH, 0), atol=1e-4)
    (c1_only,) = read_templates(write_table(tmp_path / "b.parquet", [sequence], ("c1p_xyz",))).chains
    assert np.isfinite(c1_only.coordinates).all(axis=-1).sum(axis=0).tolist() == [0, 0, LENGTH, 0]


def test_kaggles_tables_are_read(tmp_path):
    text = "ACGUACGUACGU"
    (tmp_path / "train_sequences.csv").write_text(f"target_id,sequence\n1KAG_A,{text}\n")
    rows = [f"1KAG_A_{k},{letter},{k},{k}.5,0,0\n" for k, letter in enumerate(text, start=1)]
    (tmp_path / "train_labels.csv").write_text("ID,resname,resid,x_1,y_1,z_1\n" + "".join(rows))
    (chain,) = read_templates(tmp_path / "train_sequences.csv").chains
    assert chain.id == "1KAG_A" and chain.coordinates[:, C1, 0].tolist() == [k + 0.5 for k in range(1, 13)]


def write_file(path: Path, sequence: str, id: str, seed: int = 0) -> Path:
    write_mmcif(path, sequence, make_structure(len(sequence), seed), np.zeros(len(sequence)), id=id)
    return path


def test_coordinate_files_and_folders_are_read(tmp_path, sequence):
    folder = tmp_path / "structures"
    (folder / "more").mkdir(parents=True)
    write_file(folder / "one.cif", sequence, "1ONE")
    write_file(folder / "more" / "two.cif", make_sequence(30, 1), "2TWO")
    structure = gemmi.read_structure(str(folder / "one.cif"))
    structure.info["_entry.id"] = ""
    (folder / "three.pdb.gz").write_bytes(gzip.compress(structure.make_pdb_string().encode()))
    read = read_templates([folder])
    assert [chain.id for chain in read.chains] == ["1ONE_A", "2TWO_A", "three_A"]
    assert read.warnings == () and read.paths == (str(folder),)
    np.testing.assert_allclose(read.chains[0].coordinates, make_structure(LENGTH, 0), atol=1e-3)


def test_a_bad_file_of_a_folder_is_a_warning(tmp_path, sequence):
    write_file(tmp_path / "good.cif", sequence, "1ONE")
    write_file(tmp_path / "short.cif", "ACGUACGUA", "9NT")
    (tmp_path / "torn.cif").write_text("data_x\nloop_\n_atom_site.id\n_atom_site.")
    read = read_templates(tmp_path)
    assert [chain.id for chain in read.chains] == ["1ONE_A"] and len(read.warnings) == 2
    assert "short.cif" in read.warnings[0] and "at least 10 resolved residues" in read.warnings[0]
    assert "torn.cif" in read.warnings[1]
    assert Predictor(FakeNetwork(50.0), device="cpu", templates=read).warnings == read.warnings


@pytest.mark.parametrize("name", ["torn.cif", "torn.pdb", "torn.parquet", "torn.csv", "none.cif", "odd.txt", "empty"])
def test_what_cannot_be_used_is_named(tmp_path, name):
    path = tmp_path / name
    if name == "empty":
        path.mkdir()
    elif name != "none.cif":
        path.write_text("nothing of use\n")
    with pytest.raises((ValueError, OSError)) as caught:
        read_templates(path)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_of_bad_files_is_an_error(tmp_path):
    (tmp_path / "torn.cif").write_text("nothing of use\n")
    with pytest.raises(ValueError, match="none of its files can be used: .*torn.cif"):
        read_templates(tmp_path)


def test_the_hash_tells_libraries_apart(truth, sequence):
    chains = [chain_of(truth, sequence), chain_of(truth, sequence[:40], "2DEF_B")]
    chains[1] = TemplateChain("2DEF_B", sequence[:40], truth[:40].astype(np.float32))
    hashes = [
        TemplateLibrary(each).hash
        for each in (
            chains,
            chains[::-1],
            [*chains, chains[0]],
            chains[:1],
            [chain_of(truth + 0.01, sequence), chains[1]],
            [chain_of(truth, sequence, "1ABC_B"), chains[1]],
        )
    ]
    assert hashes[0] == hashes[1] == hashes[2] and len(set(hashes)) == 4
    assert str(TemplateLibrary(chains)) == f"2 chains, SHA-256 {hashes[0][:16]}"


def test_without_biotite_the_message_says_how_to_get_it(tmp_path, sequence, monkeypatch):
    path = write_table(tmp_path / "a.parquet", [sequence])
    monkeypatch.setitem(sys.modules, "biotite.sequence", None)
    with pytest.raises(BiotiteMissing, match=r'pip install "ribonanzamamba\[templates\]"'):
        Predictor(FakeNetwork(50.0), device="cpu", templates=path)
    # nothing else needs it
    assert Predictor(FakeNetwork(50.0), device="cpu").templates is None
    assert Predictor(FakeNetwork(50.0), device="cpu", templates=[]).templates is None


def test_load_takes_templates(tmp_path, sequence):
    path = write_table(tmp_path / "a.parquet", [sequence])
    predictor = ribonanzamamba.load(device="cpu", prior="none", templates=path)
    assert [chain.id for chain in predictor.templates.chains] == ["0TAB_A"]
    prediction = predictor.predict(sequence, tasks=("coordinates",), models=2)
    assert prediction.model_sources[0] == "template 0TAB_A 1.00"
    np.testing.assert_allclose(prediction.coordinates[0], make_structure(LENGTH, 0), atol=1e-4)
