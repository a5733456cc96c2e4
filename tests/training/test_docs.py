"""docs/training.md: its table of settings is the dataclasses'. Run as a program, this file writes the table."""

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from pathlib import Path

from ribonanzamamba.model.config import ModelConfig
from ribonanzamamba.training.config import DataConfig, LossConfig, TrainingConfig

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
SECTIONS = {"model": ModelConfig, "data": DataConfig, "loss": LossConfig, "training": TrainingConfig}
BETWEEN = re.compile(r"(<!-- settings -->\n).*?(<!-- end of settings -->)", re.DOTALL)


def meanings(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    found = {}
    for field, text in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = " ".join(text.value.value.split())
    return found


def settings_table() -> str:
    parts = []
    for section, kind in SECTIONS.items():
        texts = meanings(kind)
        parts += [f"\n### [{section}]\n", "| key | default | meaning |", "|---|---|---|"]
        for field in dataclasses.fields(kind):
            value = list(field.default) if isinstance(field.default, tuple) else field.default
            text = texts.get(field.name, "").replace("|", "\\|")
            parts.append(f"| `{field.name}` | `{json.dumps(value)}` | {text} |")
    return "\n".join(parts) + "\n\n"


def test_the_table_is_that_of_the_dataclasses():
    assert BETWEEN.sub(lambda match: match[1] + settings_table() + match[2], PAGE.read_text()) == PAGE.read_text()


def test_every_setting_has_a_meaning():
    missing = {
        f"{section}.{field.name}"
        for section, kind in SECTIONS.items()
        for field in dataclasses.fields(kind)
        if field.name not in meanings(kind)
    }
    # the names say it
    assert missing <= {"model.blocks", "model.coordinate_layers", "model.probes"}


def test_paths_on_the_page_exist():
    root = PAGE.parents[1]
    for path in re.findall(r"(?:examples|tests|benchmarks)/[\w/]+\.(?:py|csv|toml)", PAGE.read_text()):
        assert (root / path).is_file(), path


if __name__ == "__main__":
    PAGE.write_text(BETWEEN.sub(lambda match: match[1] + settings_table() + match[2], PAGE.read_text()))
