"""Means with intervals, and reports as text and plain data."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from ribonanzamamba.evaluation.summary import Estimate, Report, estimate


@dataclass(frozen=True)
class Small(Report):
    value: Estimate
    names: tuple[str, ...] = ("a",)

    def rows(self):
        return [("name", "value"), ("a longer name", str(self.value))]

    def counts(self):
        return "1 counted"


def test_estimate_lies_in_its_interval():
    values = np.random.default_rng(0).random(40)
    result = estimate(values)
    assert result.mean == pytest.approx(values.mean())
    assert result.low < result.mean < result.high


def test_estimate_weighs():
    assert estimate([0.0, 1.0], [1, 3]).mean == 0.75


@pytest.mark.parametrize("values", [[], [float("nan")]])
def test_estimate_of_nothing(values):
    assert str(estimate(values)) == "-"


def test_text():
    text = Small(Estimate(0.5, 0.25, 0.75)).to_text()
    assert text == "name           value\na longer name  0.5000 (0.2500-0.7500)\n\n1 counted"


def test_json_has_no_nan():
    plain = Small(Estimate(0.5, float("nan"), 1.0)).to_json()
    assert plain == {"value": {"mean": 0.5, "low": None, "high": 1.0}, "names": ["a"]}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
