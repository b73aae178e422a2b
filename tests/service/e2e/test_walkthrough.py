"""The script that writes docs/walkthrough.md, on the demo bundle: every claim it makes is checked by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.demo.catalogue import demo_item

ROOT = Path(__file__).parents[3]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "new.jpg"
    file.write_bytes(demo_item(7, 3).picture)
    return file


def walkthrough(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "walkthrough.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)


def test_walkthrough_on_the_demo_bundle(demo_bundle: Path, picture: Path, tmp_path: Path) -> None:
    product, other = demo_item(7, 3), demo_item(7, 4)
    out = tmp_path / "walkthrough.md"
    done = walkthrough(
        *("--bundle", str(demo_bundle), "--picture", str(picture), "--query", product.title),
        *("--title", other.title, "--text", other.text, "--category", "vases", "--out", str(out)),
    )
    assert done.returncode == 0, done.stderr
    text = out.read_text("utf-8")
    for head in ("a picture and no text", "a text and no picture", "with neither", "at once", "Restart"):
        assert head in text
    assert "all are equal" in text


def test_walkthrough_without_a_bundle_fails(picture: Path, tmp_path: Path) -> None:
    done = walkthrough(
        *("--bundle", str(tmp_path), "--picture", str(picture), "--query", "x", "--title", "x", "--text", "x")
    )
    assert done.returncode != 0
    assert "exit code 2" in done.stderr
