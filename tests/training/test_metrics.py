"""metrics.jsonl, read back."""

import pytest

from ribonanzamamba.training.metrics import read_metrics


def test_a_last_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "a": 0.5}\n{"step": 3, "a"')
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "a": 0.5}]


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}'])
def test_another_line_that_is_no_row(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2: expected a JSON object with a step"):
        read_metrics(path)
