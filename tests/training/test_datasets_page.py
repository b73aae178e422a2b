"""docs/datasets.md: its examples are what the readers make, and its table has every reader."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.training.sources import put
from training.datasets import READERS

PAGE = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text("utf-8")
SECTIONS = {"MovieLens": "ml-100k", "Amazon": "amazon", "Folders: MMRec, RecBole and tables": "recbole"}


@pytest.mark.parametrize("section", SECTIONS)
def test_examples(section: str, tmp_path: Path) -> None:
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(\S+)\n(.*?)```\n", text, flags=re.DOTALL)
    expected = [content for name, content in blocks if name == "json"]
    for name, content in blocks:
        if name != "json":
            put(tmp_path / "ml-100k" / name, content)
    READERS[SECTIONS[section]].prepare(tmp_path / "ml-100k", tmp_path / "out")
    written = "".join((tmp_path / "out" / name).read_text("utf-8") for name in ("items.jsonl", "feedback.jsonl"))
    assert [written] == expected


def test_every_reader_is_listed() -> None:
    table = PAGE.partition("| `NAME` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z0-9-]+)`", "".join(re.findall(r"^\|[^|]*\|", table, flags=re.MULTILINE)))) == set(
        READERS
    )
