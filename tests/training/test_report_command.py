"""`lacuna report` as a command, and with a bundle whose items it draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import training.cli as cli
from tests.training.test_report import Page, raw
from tests.training.tiny import CONFIG, TRAINER, write_vectors
from training.export import export_bundle
from training.progress import Terminal
from training.train import DataOptions, prepare_features, train_dgmrec


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("report")
    dataset = write_vectors(folder / "tiny")
    trainer = TRAINER.model_copy(update={"epochs": 1})
    with Terminal(quiet=True) as terminal:
        prepared = prepare_features(dataset, DataOptions(missing=0.4, seed=2), terminal)
        task = train_dgmrec(dataset, prepared, CONFIG, trainer, terminal=terminal).task
    export_bundle(folder / "bundle", task, dataset, prepared.batch, prepared.encoders, {}, source=None)
    return folder / "bundle"


def test_report_with_the_parts_of_a_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(raw("ease", [{"recall@20": 0.2}])))
    (tmp_path / "b.json").write_text("{")
    out = tmp_path / "deep" / "report.html"
    monkeypatch.setattr(sys, "argv", ["lacuna", "report", str(tmp_path), "--html", str(out), "--bundle", str(bundle)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert "left out: b.json is not valid JSON" in capsys.readouterr().err
    text = out.read_text("utf-8")
    page = Page(text)
    for part in ("audio: general", "audio: general, generated", "scan: specific", "scan: specific, generated"):
        assert f"</svg>{part}</li>" in text
    similarity = page.tables["Similarity of the parts"]
    assert similarity["audio: general"][0] == "1.00"
    assert similarity["audio: general"][3] == similarity["scan: specific"][0]


def test_mistakes_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lacuna", "report", str(tmp_path), "--html", str(tmp_path / "r.html")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"lacuna: there is no raw result in {tmp_path}\n"
    assert not (tmp_path / "r.html").exists()
