"""The programs that measure training on a GPU, tried at tiny sizes without one."""

import dataclasses
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_nasty_steps(benchmarks):
    from nasty import SKIPPED_KIND, run_nasty, settings
    from training_memory import TINY

    row = run_nasty(settings(TINY), 22, "cpu", longest=24)
    assert row["ok"] and row["skipped"] == row["kinds"][SKIPPED_KIND] == 2
    assert set(row["kinds"].values()) == {2}, "every kind in turn"


def test_injected_values_are_named(benchmarks):
    from nasty import run_injected, settings
    from training_memory import TINY

    row = run_injected(settings(TINY), "cpu", longest=24)
    assert row["ok"] and "module blocks.1.attention (forward pass)" in row["run"]


def test_the_factors_of_the_plan_are_found(benchmarks, tmp_path):
    from training_memory import TINY, Case
    from training_plan import expected, fit, read_cases, traced_plan

    from ribonanzamamba.training.plan import MEASURED

    cases = [Case(4, length, checkpointing=mode, model=TINY) for length in (16, 48) for mode in ("off", "all")]
    plans = [traced_plan(case) for case in cases]
    truth = dataclasses.replace(MEASURED, memory_factor=0.5, memory_extra_gib=0.1, launch_seconds=8e-6)
    rows = []
    for case, plan in zip(cases, plans, strict=True):
        seconds, memory = expected(plan, truth)
        rows.append(case.to_dict() | {"seconds": seconds, "memory_gib": memory})
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"part": "nasty"}]))
    read = read_cases([lines])
    assert [case for case, _, _ in read] == cases
    fitted = fit(plans, [(seconds, memory) for _, seconds, memory in read])
    for plan in plans:
        assert expected(plan, fitted) == pytest.approx(expected(plan, truth), rel=0.01)
