"""RNAs longer than those that a battle trains on."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ribonanzamamba.training.battle import fight, read_battle
from ribonanzamamba.training.battle_longer import correlations, longer_rows
from ribonanzamamba.training.battle_report import write_report
from ribonanzamamba.training.battle_result import LONGER, read_result, result_folder
from ribonanzamamba.training.tables import prepare_store

TINY = Path(__file__).parents[2] / "configs" / "battle_tiny.toml"
ONE = ["ribonanzanet:2-epochs:0", "ribonanzamamba:2-epochs:0"]


@pytest.fixture
def long_table(tables) -> Path:
    """Five RNAs of 60 nt, four measured with 1M7, of them one held out not and one at three positions."""
    rng = np.random.default_rng(5)
    values = rng.random((5, 60)).astype(np.float16)
    values[2, 3:] = np.nan
    path = tables / "long.parquet"
    pq.write_table(
        pa.table(
            {
                "id": [f"l{k}" for k in range(5)],
                "sequence": ["".join(rng.choice(list("ACGU"), 60)) for _ in range(5)],
                "reagent": ["1M7", "1M7", "1M7", "1M7", "2A3"],
                "reactivity": pa.array(list(values), pa.list_(pa.float16())),
                "error": pa.array(list(values), pa.list_(pa.float16())),
                "signal_to_noise": [5.0] * 5,
                "sn_pass": [True] * 5,
                "dataset": ["made"] * 5,
                "ligand": [""] * 5,
                "cluster": [7, 7, 8, 9, 9],
                "cluster_size": [1] * 5,
                "split": ["valid", "valid", "valid", "train", "valid"],
            }
        ),
        path,
    )
    return path


@pytest.fixture
def overrides(tables, long_table) -> list[str]:
    return [
        f'data.reactivity=["{tables / "reactivity.parquet"}"]',
        f'longer.reactivity=["{long_table}"]',
        "longer.measured=1M7",
        "longer.predicted=2A3",
    ]


def test_a_run_predicts_them_and_the_report_compares(overrides, long_table, tmp_path):
    battle = read_battle(TINY, overrides)
    keys = list(fight(battle, tmp_path, ONE))
    results = [read_result(tmp_path, key) for key in keys]
    examples = battle.longer.examples(battle.contestants[0].config.data)
    # held out, measured with 1M7, at enough positions
    assert [example.id for example in examples] == [result for result in results[0].longer.ids] == ["l0", "l1"]
    text = write_report(battle, tmp_path).read_text()
    assert "### Longer RNAs" in text and "2 held-out RNAs of 60-60 nt, median 60" in text
    assert "difference against ribonanzanet (95 %)" in text.split("### Longer RNAs")[1]
    # no table, no store: the rest of the report
    long_table.unlink()
    assert "Longer RNAs" not in write_report(battle, tmp_path).read_text()


def test_correlation_is_that_of_the_probe_over_measured_positions(overrides, tmp_path):
    battle = read_battle(TINY, overrides)
    [key] = list(fight(battle, tmp_path, ONE[:1]))
    result, examples = read_result(tmp_path, key), battle.longer.examples(battle.contestants[0].config.data)
    by_hand = [
        np.corrcoef(result.longer.reactivity[60 * k : 60 * k + 60, 0], example.reactivity[:, 0].astype(np.float64))[
            0, 1
        ]
        for k, example in enumerate(examples)
    ]
    assert correlations(result, examples, battle.longer) == pytest.approx(by_hand)
    header, rows = longer_rows({key.contestant: [result]}, set(), examples, battle.longer)
    assert header[-1] == "difference against no baseline (95 %)"
    assert rows == [
        [key.contestant, f"{np.mean(by_hand):.4f}", *[f"{np.mean(by_hand):.4f}-{np.mean(by_hand):.4f}", "1", "-"]]
    ]
    with pytest.raises(ValueError, match="ribonanzanet, 2-epochs, seed 0: predictions of other long RNAs"):
        correlations(result, examples[::-1], battle.longer)


def test_a_result_from_before_has_none(overrides, tmp_path):
    battle = read_battle(TINY, overrides)
    keys = list(fight(battle, tmp_path, ONE))
    (result_folder(tmp_path, keys[0]) / LONGER).unlink()
    assert read_result(tmp_path, keys[0]).longer is None
    part = write_report(battle, tmp_path).read_text().split("### Longer RNAs")[1].split("###")[0]
    assert keys[1].contestant in part and f"| {keys[0].contestant} |" not in part


def test_a_store_may_hold_them(overrides, tables, long_table, tmp_path):
    (tables / "all.toml").write_text('[data]\nreactivity = ["reactivity.parquet", "long.parquet"]\n')
    prepare_store(tables / "all.toml", tmp_path / "store")
    battle = read_battle(TINY, [*overrides, f'data.store="{tmp_path / "store"}"'])
    long_table.unlink()
    data = battle.contestants[0].config.data
    assert [example.id for example in battle.longer.examples(data)] == ["l0", "l1"]
    # trained on the table alone
    [key] = list(fight(battle, tmp_path, ONE[:1]))
    assert read_result(tmp_path, key).epochs == 2.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("longer.predicted=1M7", r"longer.predicted: expected one of \('2A3', 'DMS'\), got '1M7'"),
        ("longer.measured=3A3", r"longer.measured: expected one of .*, got '3A3'"),
        ("longer.reactivity=long.parquet", "longer.reactivity: expected a list of tables, got 'long.parquet'"),
        ("longer.probe=1M7", r"longer: expected the keys \['reactivity', 'measured', 'predicted'\], got"),
    ],
)
def test_what_cannot_be_compared_is_refused(changed, message, overrides):
    with pytest.raises(ValueError, match=message):
        read_battle(TINY, [*overrides, changed])


def test_none_of_that_probe_is_said_before_training(overrides, tmp_path):
    battle = read_battle(TINY, [*overrides, "longer.measured=NAI_incell"])
    with pytest.raises(ValueError, match="longer: expected held-out RNAs measured with NAI_incell"):
        list(fight(battle, tmp_path, ONE[:1]))
    assert not (tmp_path / "runs").exists()


def test_finished_runs_do_not_ask_for_them(overrides, long_table, tmp_path):
    battle = read_battle(TINY, overrides)
    done = list(fight(battle, tmp_path, ONE[:1]))
    long_table.unlink()
    assert list(fight(battle, tmp_path, ONE[:1])) == done
    with pytest.raises(FileNotFoundError, match="long.parquet"):
        list(fight(battle, tmp_path, ONE))
    assert len(list((tmp_path / "runs").iterdir())) == 1
