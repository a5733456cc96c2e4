"""The README: its code runs, its two paths exist and are walked, its commands are what CI runs."""

import importlib
import re
from pathlib import Path

import numpy as np
import torch

from ribonanzamamba.data.batch import collate
from ribonanzamamba.data.example import Example
from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.model.network import RibonanzaMamba
from ribonanzamamba.rna.records import PROBES
from ribonanzamamba.training.config import Config
from ribonanzamamba.training.optimizer import build_optimizers
from ribonanzamamba.training.step import train_step

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_block_runs():
    names: dict = {}
    for block in re.findall(r"```python\n(.+?)```", README, re.DOTALL):
        exec(block, names)
    prediction = names["prediction"]
    assert prediction.reactivity["2A3"].shape == (76,)
    assert prediction.coordinates.shape == (5, 76, 4, 3)


def test_the_paths_name_real_functions():
    table = README.split("## Two paths through the code")[1].split("`tests/test_readme.py`")[0]
    pairs = re.findall(r"(\w+)(?:\([^)]*\))?\s+(\w+/\w+)\.py", table)
    assert len(pairs) == 11
    for name, file in pairs:
        module = importlib.import_module("ribonanzamamba." + file.replace("/", "."))
        assert name == "model" or hasattr(module, name), f"{file}.py has no {name}"


def test_fasta_to_structure(tmp_path):
    from ribonanzamamba.data.batch import batches
    from ribonanzamamba.model.checkpoint import load_checkpoint
    from ribonanzamamba.prediction.decode import decode_structure
    from ribonanzamamba.rna.formats import read_dot_bracket, read_fasta, write_dot_bracket

    (tmp_path / "rna.fasta").write_text(">hairpin\nGGGGGAAAACCCCC\n")
    records = read_fasta(tmp_path / "rna.fasta")
    model = load_checkpoint().network
    examples = [Example(record.id, record.sequence, -1, 1, "") for record in records]
    entries = []
    with torch.inference_mode():
        for batch in batches(examples, max_tokens=1000, max_cells=100_000, max_examples=10):
            output = model(batch.tokens, batch.mask)
            for record, probability in zip(records, output.pair_probability.numpy(), strict=True):
                entries.append((record, decode_structure(probability)))
    write_dot_bracket(tmp_path / "out.dbn", entries)
    (_, structure), = read_dot_bracket(tmp_path / "out.dbn")  # fmt: skip
    assert structure.to_dot_bracket() == "(((((....)))))"


def test_row_to_gradient():
    reactivity = np.full((12, len(PROBES)), np.nan, dtype=np.float32)
    reactivity[:, 0] = 0.5
    example = Example("a", "GGGAAAACCCAA", 0, 1, "", reactivity, np.where(np.isnan(reactivity), 0, 1).astype("f4"))
    network = RibonanzaMamba(ModelConfig(width=16, pair_width=8, blocks=1, heads=2, head_width=8, coordinate_width=8))
    config = Config(model=network.config)
    before = network.reactivity_head.out.weight.clone()
    train_step(network, build_optimizers(network, config.training), {("reactivity",): collate([example])}, config)
    assert not torch.equal(before, network.reactivity_head.out.weight)


def test_ci_runs_the_test_command_of_the_readme():
    command = re.search(r"<!-- test -->\s*```sh\n(.+?)\n```", README, re.DOTALL)[1]
    assert command.endswith("-m pytest -n auto")
    assert "<!-- test -->" in (ROOT / ".ci" / "run").read_text()
