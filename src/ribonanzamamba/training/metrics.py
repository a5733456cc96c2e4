"""metrics.jsonl of a run, read back: what was logged at each step. Needs no PyTorch."""

import json
from pathlib import Path
from typing import Any


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows in their order; a last line that was cut short by a kill is left out.

    Raises:
        ValueError: another line that is no row.
    """
    lines = Path(path).read_text().splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError
        except ValueError:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with a step, got {line.strip()[:60]!r}"
            ) from None
        rows.append(row)
    return rows


def series(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one key, of the rows that have it.

    >>> series([{"step": 1, "a": 0.5}, {"step": 2}, {"step": 3, "a": 0.25}], "a")
    ([1.0, 3.0], [0.5, 0.25])
    """
    having = [row for row in rows if key in row]
    return [float(row["step"]) for row in having], [float(row[key]) for row in having]
