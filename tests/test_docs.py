"""The tutorial's code runs as it stands, in order, and its translation has the same code."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"```(\w+)\n(.+?)```", re.DOTALL)


def blocks(name: str) -> list[tuple[str, str]]:
    return BLOCK.findall((DOCS / name).read_text(encoding="utf-8"))


def test_tutorial_runs(capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names: dict = {}
    for k, (language, code) in enumerate(blocks("mamba-in-your-model.md")):
        if language == "python":
            exec(compile(code, f"block {k + 1}", "exec"), names)
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "layers.1.self_attn: MultiheadAttention" in printed and "log of the decay rate" in printed


def test_translation_has_the_same_code_and_sections():
    assert blocks("mamba-in-your-model.zh.md") == blocks("mamba-in-your-model.md")
    sections = [re.findall(r"^## (\d?)", (DOCS / name).read_text(encoding="utf-8"), re.MULTILINE) for name in TUTORIALS]
    assert sections[0] == sections[1] == ["1", "2", "3", "4", "5", "6", "7", "8", ""]


TUTORIALS = ("mamba-in-your-model.md", "mamba-in-your-model.zh.md")


@pytest.mark.parametrize("name", TUTORIALS)
def test_links_lead_somewhere(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (DOCS / target).exists(), target
