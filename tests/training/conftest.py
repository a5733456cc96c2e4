"""A small network and small tables for the tests of the room."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.coordinates import LOCAL_ATOMS
from ribonanzamamba.model.network import RibonanzaMamba

LENGTH = 24


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from a second thread, and on a busy machine lose a factor of five by it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_config() -> ModelConfig:
    return ModelConfig(
        width=32,
        pair_width=16,
        blocks=2,
        heads=2,
        d_state=8,
        head_width=16,
        coordinate_width=24,
        coordinate_layers=2,
        coordinate_models=2,
        dropout=0.0,
    )


@pytest.fixture
def small_network(small_config) -> RibonanzaMamba:
    torch.manual_seed(0)
    return RibonanzaMamba(small_config)


def helix(length: int) -> np.ndarray:
    """Atoms (length, 4, 3) of a stack of nucleotides, angstrom: 33 degrees and 2.8 angstrom a step, 8 from the axis."""
    atoms = np.empty((length, 4, 3), dtype=np.float32)
    for k in range(length):
        angle = np.deg2rad(33) * k
        turn = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
        atoms[k] = (np.array(LOCAL_ATOMS) + [8, 0, 0]) @ np.array(turn).T + [0, 0, 2.8 * k]
    return atoms


@pytest.fixture
def helix_atoms() -> torch.Tensor:
    """(24, 4, 3)"""
    return torch.from_numpy(helix(LENGTH))


def sequences(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("ACGU"), LENGTH)) for _ in range(count)]


@pytest.fixture
def tables(tmp_path) -> Path:
    """A folder with reactivity.parquet, structure.parquet and coordinates.parquet: RNAs of 24 nt, some in "valid"."""
    rng = np.random.default_rng(1)
    rnas, splits = sequences(8), ["train"] * 6 + ["valid"] * 2
    values = rng.random((8, LENGTH)).astype(np.float16)
    values[:, -3:] = np.nan
    reactivity = {
        "id": [f"r{k}" for k in range(8)],
        "sequence": rnas,
        "reagent": ["2A3"] * 4 + ["DMS"] * 4,
        "reactivity": pa.array(list(values), pa.list_(pa.float16())),
        "error": pa.array(list(values), pa.list_(pa.float16())),
        "signal_to_noise": [5.0] * 8,
        "sn_pass": [True] * 8,
        "dataset": ["made"] * 8,
        "ligand": [""] * 8,
        "cluster": list(range(8)),
        "cluster_size": [1] * 8,
        "split": splits,
    }
    pairs = [number for i in range(5) for number in (i, LENGTH - 1 - i)]
    structure = {
        "id": [f"s{k}" for k in range(8)],
        "sequence": rnas,
        "pairs_ij": pa.array([pairs] * 8, pa.list_(pa.int16())),
        "source": ["made"] * 8,
        "cluster": list(range(8)),
        "cluster_size": [1] * 8,
        "split": splits,
    }
    atoms = helix(LENGTH)
    coordinates = {
        "target_id": [f"c{k}" for k in range(4)],
        "sequence": rnas[:4],
        # the last one has no position at all
        **{
            column: pa.array([atoms[:, k].ravel()] * 3 + [np.full(3 * LENGTH, np.nan)], pa.list_(pa.float32()))
            for k, column in enumerate(("p_xyz", "c4p_xyz", "c1p_xyz", "n9n1_xyz"))
        },
        "source": ["made"] * 4,
        "cluster80": [1, 2, 20, 3],
    }
    for name, table in (("reactivity", reactivity), ("structure", structure), ("coordinates", coordinates)):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    return tmp_path
