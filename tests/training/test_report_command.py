"""`lacuna report` as a command, and with a bundle whose items it draws."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import training.cli as cli
from models.iris.config import IRISConfig
from models.modality import ModalBatch
from tests.training.test_report import Page, raw
from tests.training.tiny import CONFIG, TRAINER, write_vectors
from training.content import DataOptions
from training.dgmrec.recipe import DGMRecRecipe
from training.iris.recipe import IRISRecipe
from training.iris.source import TRAINER as IRIS_TRAINER
from training.iris.source import IRISTraining
from training.progress import Terminal
from training.recipe import train_into_bundle
from training.report.page import make_report
from training.report.sections import ItemCard
from training.report.users import Catalogue, item_card

IRIS = IRISRecipe(
    IRISConfig(embedding_size=4, members=1),
    IRISTraining(als_epochs=1, als_penalty=1.0),
    IRIS_TRAINER.model_copy(update={"epochs": 1}),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("report")
    dataset = write_vectors(folder / "tiny")
    trainer = TRAINER.model_copy(update={"epochs": 1})
    with Terminal(quiet=True) as terminal:
        options = DataOptions(missing=0.4, seed=2)
        train_into_bundle(DGMRecRecipe(CONFIG, trainer), dataset, folder / "bundle", options, terminal=terminal)
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


def test_report_of_what_speaks_for_recommendations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, out, html = write_vectors(tmp_path / "tiny"), tmp_path / "bundle", tmp_path / "r.html"
    options, quiet = DataOptions(threads=1), Terminal(quiet=True)
    trainer = TRAINER.model_copy(update={"epochs": 1})
    recipe = DGMRecRecipe(CONFIG, trainer)
    train_into_bundle(recipe, dataset, out, options, terminal=quiet, source=tmp_path / "tiny")
    (tmp_path / "a.json").write_text(json.dumps(raw("ease", [{"recall@20": 0.2}])))

    def report(*arguments: str) -> tuple[int | str | None, str]:
        command = ["lacuna", "report", str(tmp_path / "a.json"), "--html", str(html), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, capsys.readouterr().err

    assert "--user needs --bundle" in report("--user", "user-1")[1]
    assert "holds no iris with its catalogue" in report("--user", "user-1", "--bundle", str(out))[1]
    train_into_bundle(IRIS, dataset, out, options, terminal=quiet)
    assert "no feedback of the user 'nobody'" in report("--user", "nobody", "--bundle", str(out))[1]
    assert report("--user", "user-1", "--user", "user-2", "--bundle", str(out))[0] == 0
    text = html.read_text("utf-8")
    assert [heading for heading in Page(text).headings if heading.startswith("User ")] == ["User user-1", "User user-2"]
    met = {f"item-{item}" for user, item in dataset.pairs() if dataset.users.id(int(user)) == "user-1"}
    first = text.split("User user-1</h4>")[1].split("User user-2</h4>")[0]
    cards = [re.findall(r"<figcaption>([^<]+)<br>", card) for card in first.split('class="card advice"')[1:]]
    assert [len(card) for card in cards] == [4, 4, 4]
    for recommended, *reasons in cards:
        assert recommended not in met
        assert set(reasons) < met
    assert re.search(r"\d\.\d{3}, \d+% \[(audio|scan)\]", text)  # what rests on a generated feature says so


def test_report_of_a_bundle_with_iris_alone(tmp_path: Path) -> None:
    dataset, out = write_vectors(tmp_path / "tiny"), tmp_path / "bundle"
    options, quiet = DataOptions(threads=1), Terminal(quiet=True)
    train_into_bundle(IRIS, dataset, out, options, terminal=quiet, source=tmp_path / "tiny")
    (tmp_path / "a.json").write_text(json.dumps(raw("ease", [{"recall@20": 0.2}])))
    page, _ = make_report([tmp_path / "a.json"], title="x", bundle=out, users=["user-1"])
    assert "User user-1" in Page(page).headings


def test_items_are_shown_by_their_picture_and_title() -> None:
    body = {"id": "a", "title": "<b>", "modalities": {"text": "t", "image": {"base64": "UE5H"}}}
    catalogue = Catalogue([body, {"id": "b"}], ModalBatch({}, torch.zeros(2, 0) > 0), np.zeros((2, 0), np.bool_), {})
    assert item_card(catalogue, 0, "1") == ItemCard("<b>", "1", "UE5H")
    assert item_card(catalogue, 1, "2") == ItemCard("b", "2", None)
