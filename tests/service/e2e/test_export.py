"""`lacuna export` and `lacuna train --from-db`: what the service stored is what the next training reads."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from models.bundle import Bundle
from models.feedback import DEFAULT_MIN_RATING
from service import export
from service.adapters.sql.store import SqlStore
from tests.service.running import Running, base64_of, fresh_id, picture, settings_for
from training import cli
from training.datasets import load_dataset

ERASED_USER, ERASED_ITEM = "erased-user", "erased-item"


def lines(file: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in file.read_bytes().splitlines()]


def exported(service: Running, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LACUNA_DATABASE_URL", service.settings.database_url)
    assert export.main([str(folder)]) == 0
    return folder


def items_of_every_shape(service: Running) -> dict[str, dict[str, Any]]:
    vector = np.arange(service.engine.active.dgmrec.specs["text"].dim) / 128 - 1  # exact in 32 bits
    bodies: list[dict[str, Any]] = [
        {"id": "shape-text", "modalities": {"text": "a lamp, \u05d0 \U0001f4a1"}, "categories": ["lamps", "new"]},
        {"id": "shape-picture", "title": "Its title", "modalities": {"image": base64_of(picture("teal"))}},
        {"id": "shape-vector", "modalities": {"text": {"vector": vector.tolist()}}, "available": False},
        {"id": "shape-title", "title": "Only a title", "metadata": {"price": [1, None, "x"]}},
        {"id": "shape-nothing"},
    ]
    for body in bodies:
        service.create(**body)
    return {body["id"]: body for body in bodies}


def test_an_export_holds_what_was_given_and_an_import_of_it_gives_the_same(
    anywhere: Running,
    demo_bundle: Path,
    demo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = items_of_every_shape(anywhere)
    event = {"user": "writer", "item": "shape-text", "type": "review", "value": 4.5, "text": "bright \u05d0"}
    anywhere.post("/feedback", {"feedback": [{**event, "timestamp": "2026-01-02T03:04:05.678901Z"}]})
    folder = exported(anywhere, tmp_path / "out", monkeypatch)
    counts = anywhere.get("/stats")["items"]
    assert f"{counts} items" in capsys.readouterr().out
    bodies = {body["id"]: body for body in lines(folder / "items.jsonl")}
    assert len(bodies) == counts
    for item_id, body in given.items():
        usual = {"modalities": {}, "categories": [], "metadata": {}, "available": True}
        assert bodies[item_id] == usual | body, item_id
    (review,) = [row for row in lines(folder / "feedback.jsonl") if row["user"] == "writer"]
    assert review == {**event, "timestamp": "2026-01-02T03:04:05.678901+00:00"}
    assert sorted(path.name for path in folder.iterdir()) == ["feedback.jsonl", "items.jsonl"]
    fresh = settings_for(demo_bundle, demo_folder, tmp_path / "fresh.db", seed_catalogue=False)
    with Running(fresh) as copy:
        for item_id in given:
            copy.create(**bodies[item_id])
        assert copy.post("/feedback", {"feedback": [review]})["accepted"] == 1
        for item_id in given:
            ours, theirs = (one.run(one.engine.store.get_item(item_id)) for one in (anywhere, copy))
            assert ours is not None
            assert theirs is not None
            assert (ours.title, ours.categories, ours.metadata) == (theirs.title, theirs.categories, theirs.metadata)
            assert ours.observed.keys() == theirs.observed.keys()
            for name, observed in ours.observed.items():
                assert np.array_equal(observed.vector, theirs.observed[name].vector)


def test_an_export_of_nothing_leaves_the_good_one(
    seeded_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, empty, database = tmp_path / "out", tmp_path / "empty.db", tmp_path / "lacuna.db"
    shutil.copy(seeded_file, database)
    asyncio.run(_make(f"sqlite+aiosqlite:///{empty}"))

    def run(file: Path, *arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setenv("LACUNA_DATABASE_URL", f"sqlite+aiosqlite:///{file}")
        code = export.main([*map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out + said.err

    assert run(database, folder)[0] == 0
    good = {file.name: file.read_bytes() for file in folder.iterdir()}
    for file, target, reason in (
        (tmp_path / "mistyped.db", folder, "it does not exist"),
        (tmp_path / "mistyped.db", tmp_path / "new", "it does not exist"),
        (empty, folder, "LACUNA_DATABASE_URL names is empty (--force writes two empty files)"),
        (database, database, "File exists"),
        (database, Path("/dev/null/x"), "Not a directory"),
    ):
        code, said = run(file, target)
        assert (code, reason in said) == (2, True), said
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == good
    (folder / "dataset.json").write_text("{}")
    code, said = run(database, folder)
    assert (code, "is a prepared dataset (--force" in said) == (2, True), said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty.db", "lacuna.db", "out"]
    assert run(database, folder, "--force")[0] == 0
    assert run(empty, "--force", folder)[0] == 0
    assert (folder / "items.jsonl").read_bytes() == (folder / "feedback.jsonl").read_bytes() == b""


async def _make(url: str) -> None:
    await (await SqlStore.open(url)).close()


def test_an_export_that_breaks_off_leaves_the_good_one(
    seeded_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite+aiosqlite:///{shutil.copy(seeded_file, tmp_path / 'lacuna.db')}"
    monkeypatch.setenv("LACUNA_DATABASE_URL", url)
    assert export.main([str(tmp_path / "out")]) == 0
    good = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    def fail(_: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(export, "event_body", fail)
    assert export.main([str(tmp_path / "out")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == good


def test_an_import_takes_what_an_export_wrote(
    anywhere: Running,
    demo_bundle: Path,
    demo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    anywhere.create(id=fresh_id(), title="odd \u2028 \x85 \u05d0", modalities={"image": base64_of(picture("teal"))})
    folder = exported(anywhere, tmp_path / "out", monkeypatch)
    fresh = settings_for(demo_bundle, demo_folder, tmp_path / "fresh.db", seed_catalogue=False)
    with Running(fresh) as copy:
        for kind in ("items", "feedback"):
            count = len((folder / f"{kind}.jsonl").read_bytes().splitlines())
            monkeypatch.setattr(
                sys, "argv", ["lacuna", "import", kind, str(folder / f"{kind}.jsonl"), "--url", copy.url]
            )
            for said in (f"{count} {kind} accepted, 0 refused", "0 refused"):  # the second time nothing is new
                with pytest.raises(SystemExit) as done:
                    cli.main()
                assert done.value.code == 0
                assert said in capsys.readouterr().err
        copy.wait_until_idle()
        again = exported(copy, tmp_path / "again", monkeypatch)
        for name in ("items.jsonl", "feedback.jsonl"):
            ours, theirs = (
                sorted(orjson.dumps(row, option=orjson.OPT_SORT_KEYS) for row in lines(place / name))
                for place in (folder, again)
            )
            assert ours == theirs


def test_what_was_erased_is_in_no_bundle_trained_afterwards(
    alone: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone.create(id=ERASED_ITEM, title="words of the erased")
    alone.create(id="kept-item", title="a green kettle")
    for user in (ERASED_USER, "kept-user"):
        alone.view(ERASED_ITEM, user)
        alone.view("kept-item", user)
        alone.view("demo-0001", user)
    alone.ask("DELETE", f"/users/{ERASED_USER}", status=204)
    alone.ask("DELETE", f"/items/{ERASED_ITEM}", status=204)
    out = tmp_path / "next"
    small = ["--set", "epochs=1", "--set", "embedding_size=8", "--threads", "1", "--budget", "0"]
    command = ["lacuna", "train", "dgmrec", "--from-db", alone.settings.database_url, "--out", str(out), *small]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code in (0, None), capsys.readouterr().err
    bundle = Bundle.load(out)
    assert "kept-item" in bundle.vocabulary("items")
    assert "kept-user" in bundle.vocabulary("users")
    assert ERASED_ITEM not in bundle.vocabulary("items")
    assert ERASED_USER not in bundle.vocabulary("users")
    for folder in (out, tmp_path / "next-data"):
        for file in filter(Path.is_file, folder.rglob("*")):
            for mark in (ERASED_ITEM, ERASED_USER, "words of the erased"):
                assert mark.encode() not in file.read_bytes(), file
    assert load_dataset(tmp_path / "next-data").min_rating == DEFAULT_MIN_RATING
    with Running(settings_for(out, tmp_path, tmp_path / "served.db")) as served:
        assert served.get("/items/kept-item")["title"] == "a green kettle"
        served.get(f"/items/{ERASED_ITEM}", status=404)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either --data DIR or --from-db URL"),
        (["--data", "x", "--from-db", "sqlite+aiosqlite:///y"], "either --data DIR or --from-db URL"),
        (["--from-db", "mysql://nowhere/x"], "--from-db must be sqlite+aiosqlite:///FILE or postgresql"),
        (["--from-db", "postgresql+asyncpg://me@nowhere/"], "--from-db names no database"),
        (["--from-db", "postgresql+asyncpg://me:s3cret@nowhere/x"], "--from-db holds a password"),
        (["--from-db", "postgresql+asyncpg://me@nowhere/x?password=s3cret"], "--from-db holds a password"),
        (["--from-db-file", "/no/such/file"], "/no/such/file cannot be read"),
        (["--from-db", "sqlite+aiosqlite:///nowhere/x.db"], "its folder does not exist"),
        (["--from-db", "sqlite+aiosqlite:///\udcff.db"], "--from-db is not valid UTF-8"),
    ],
)
def test_training_without_one_source_of_data(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["lacuna", "train", "dgmrec", "--out", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert "fault" not in error
    assert "s3cret" not in error
    assert not (tmp_path / "out").exists()
