"""What a restart keeps, and what another bundle changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.bundle import CATALOGUE_FEEDBACK, CATALOGUE_ITEMS, Bundle, BundleError
from models.imputers import GRAPH_IMPUTERS
from service.adapters.sql.store import SqlStore
from service.pipeline import seed as seeding
from tests.service.running import Running, base64_of, picture, settings_for, sign
from training.demo.catalogue import demo_item

PRODUCT = demo_item(k=3)
LANGUAGE = "A cherry red canvas low-top sneaker with polka dots, made for long walks."
QUESTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/recommend/shopper-001", {"n": 500}),
    ("/recommend/shopper-002", {"n": 500, "diversity": 0.5}),
    ("/recommend/shopper-003", {"n": 500, "model": "popular", "exclude_seen": False}),
    ("/recommend/newcomer", {"n": 500}),
    ("/recommend/nobody", {"n": 500, "model": "latest"}),
    ("/recommend/shopper-001", {"n": 500, "model": "iris"}),
    ("/recommend/newcomer", {"n": 500, "model": "iris", "diversity": 0.5}),
    ("/recommend/shopper-002", {"explain": True}),
    ("/explain/newcomer/shown", {}),
    ("/explain/shopper-002/empty", {}),
    ("/retrieve", {"text": LANGUAGE, "n": 500}),
    ("/retrieve", {"text": LANGUAGE, "n": 500, "target": "image"}),
    ("/items/shown/similar", {"n": 500}),
    ("/items/shown/similar", {"n": 500, "by": "text"}),
    ("/items", {"limit": 500}),
    *(
        (f"/items/{item}/modalities/{name}", {"vector": True})
        for item in ("shown", "empty", "demo-0003")
        for name in ("text", "image", "audio")
    ),
    ("/feedback", {"limit": 500}),
    ("/models", {}),
)


def answers(service: Running) -> list[Any]:
    found = []
    for path, query in QUESTIONS:
        answer = service.get(path, **query)
        answer.pop("recommendation_id", None)
        found.append(answer)
    return found


def busy(service: Running) -> None:
    """A bit of everything that leaves something behind."""
    service.create(id="shown", modalities={"image": base64_of(PRODUCT.picture)})
    service.create(id="told", title="Sneaker", modalities={"text": LANGUAGE}, metadata={"a": {"b": [1, 2.5, None]}})
    service.create(id="empty")
    service.create(id="gone", title="soon gone")
    service.view("shown", "newcomer", "shopper-002")
    service.view("shown", "newcomer", kind="click")
    service.view("demo-0003", "newcomer")
    service.view("gone", "newcomer", "shopper-004")
    service.ask("PUT", "/items/demo-0007", json={"title": "Replaced", "categories": ["mugs"]})
    service.patch("demo-0008", {"modalities": {"image": base64_of(picture("blue"))}, "available": False})
    service.patch("told", {"modalities": {"image": base64_of(picture("red")), "text": None}})
    service.ask("DELETE", "/items/gone", status=204)
    service.ask("DELETE", "/users/shopper-006", status=204)
    service.wait_until_idle()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_restart_keeps_everything_to_the_bit(
    database: str,
    demo_bundle: Path,
    demo_folder: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    place: Path | str = tmp_path / "lacuna.db" if database == "sqlite" else request.getfixturevalue("postgres_url")
    settings = settings_for(demo_bundle, demo_folder, place)
    with Running(settings) as service:
        busy(service)
        before = answers(service)
        stats = service.get("/stats")
    with Running(settings) as service:
        service.check_index()
        assert answers(service) == before
        again = service.get("/stats")
        assert {key: again[key] for key in again if key not in ("indexes", "fallbacks", "worker")} == {
            key: stats[key] for key in stats if key not in ("indexes", "fallbacks", "worker")
        }


def test_a_database_that_held_something_is_not_seeded(demo_bundle: Path, demo_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "lacuna.db"
    with Running(settings_for(demo_bundle, demo_folder, file, seed_catalogue=False)) as service:
        assert service.get("/stats")["items"] == 0
        assert service.get("/recommend/shopper-001")["items"] == []
        assert service.get("/retrieve", text=LANGUAGE)["items"] == []
        created = service.create(id="first", modalities={"text": LANGUAGE})
        assert created["modalities"]["image"]["generator"] in ("dgmrec", "dgmrec-base")
        assert service.get("/retrieve", text=LANGUAGE, target="image")["items"][0]["id"] == "first"
    with Running(settings_for(demo_bundle, demo_folder, file)) as service:
        assert service.get("/stats")["items"] == 1
        service.check_index()


def test_an_interrupted_seeding_is_taken_up_again(
    demo_bundle: Path, demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(undated(demo_bundle, tmp_path / "bundle"), demo_folder, tmp_path / "lacuna.db")
    monkeypatch.setattr(seeding, "ITEMS", 50)
    monkeypatch.setattr(seeding, "EVENTS", 300)
    for stop in (2, 5):
        with monkeypatch.context() as cut:
            cut_power_after(stop, cut)
            with pytest.raises(RuntimeError, match="power cut"):
                Running(settings).__enter__()
    with Running(settings) as service:
        service.check_index()
        once = [len((demo_bundle / name).read_text().splitlines()) for name in (CATALOGUE_ITEMS, CATALOGUE_FEEDBACK)]
        events = sum(service.get(f"/users/shopper-{user:03d}")["events"] for user in range(40))
        assert [service.get("/stats")["items"], events] == once


def undated(bundle: Path, copy: Path) -> Path:
    """A copy of a bundle whose first events do not say when they were."""
    shutil.copytree(bundle, copy)
    rows = [json.loads(line) for line in (copy / CATALOGUE_FEEDBACK).read_text().splitlines()]
    distinct = {(row["user"], row["item"], row["type"]) for row in rows}
    assert len(distinct) == len(rows)
    for row in rows[:400]:
        del row["timestamp"]
    (copy / CATALOGUE_FEEDBACK).write_text("".join(json.dumps(row) + "\n" for row in rows))
    sign(copy, CATALOGUE_FEEDBACK)
    return copy


def cut_power_after(writes: int, patch: pytest.MonkeyPatch) -> None:
    """Let the store write so many times, and no more."""
    left = [writes]

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        async def writing(*arguments: Any, **options: Any) -> Any:
            if not left[0]:
                raise RuntimeError("power cut")
            left[0] -= 1
            return await write(*arguments, **options)

        return writing

    for name in ("write_items", "add_feedback"):
        patch.setattr(SqlStore, name, counted(getattr(SqlStore, name)))


def test_what_feedback_asks_for_is_finished_after_a_restart(
    demo_bundle: Path, demo_folder: Path, seeded_file: Path, tmp_path: Path
) -> None:
    items = [{"id": f"new-{number}", "modalities": {"text": f"{LANGUAGE} Number {number}."}} for number in range(200)]
    events = [
        {"user": f"shopper-{user:03d}", "item": item["id"], "type": "view"} for item in items for user in range(6)
    ]
    settings = settings_for(demo_bundle, demo_folder, Path(shutil.copy(seeded_file, tmp_path / "lacuna.db")))
    with Running(settings) as service:
        service.post("/items/batch", {"items": items})
        assert service.post("/feedback", {"feedback": events})["accepted"] == 1200
    assert service.engine.runtime.pending, "too fast for this test"
    with Running(settings) as service:
        service.check_index()
        for item in items:
            assert "users" in service.get(f"/items/{item['id']}")["modalities"]["image"]["basis"]
    with Running(settings) as service:
        assert not service.engine.runtime.pending


# --- another bundle -----------------------------------------------------------------------------------------------


def test_another_bundle_encodes_and_embeds_everything_anew(
    demo_bundle: Path, other_bundle: Path, demo_folder: Path, seeded_file: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(seeded_file, tmp_path / "lacuna.db"))
    assert Bundle.load(demo_bundle).version != Bundle.load(other_bundle).version
    with Running(settings_for(demo_bundle, demo_folder, file)) as service:
        busy(service)
        first = answers(service)
    with Running(settings_for(other_bundle, demo_folder, file)) as service:
        service.check_index()
        second = answers(service)
        # Pictures are encoded by the bundle's own encoder: a picture finds the item that shows it.
        found = service.post("/retrieve", {"image": base64_of(PRODUCT.picture), "n": 1})["items"][0]
        assert (found["id"], found["matched"]["state"]) == ("shown", "observed")
        assert found["score"] == pytest.approx(1, abs=1e-4)
        audio = service.vector("demo-0003", "audio")
    with Running(settings_for(demo_bundle, demo_folder, file)) as service:
        service.check_index()
        assert service.vector("demo-0003", "audio") == audio  # as it was given
        back = answers(service)
    by_path = {
        path: (one, two, three) for (path, _), one, two, three in zip(QUESTIONS, first, second, back, strict=True)
    }
    for path in ("/recommend/shopper-001", "/items/shown/modalities/image"):
        one, two, _ = by_path[path]
        assert one != two
    one, two, three = by_path["/items/shown/modalities/image"]
    np.testing.assert_allclose(one["vector"], three["vector"], atol=1e-5)
    one, two, three = by_path["/feedback"]
    assert one == two == three


def imputing(bundle: Path, copy: Path, how: str) -> Path:
    """A copy of a bundle whose model was configured to impute in another way."""
    shutil.copytree(bundle, copy)
    models = json.loads((copy / "manifest.json").read_text())["models"]
    models["dgmrec"]["config"]["imputation"] = how
    sign(copy, models=models)
    return copy


def test_a_bundle_that_generates_nothing_fills_in_means(demo_bundle: Path, demo_folder: Path, tmp_path: Path) -> None:
    with Running(
        settings_for(imputing(demo_bundle, tmp_path / "bundle", "mean"), demo_folder, tmp_path / "lacuna.db")
    ) as service:
        service.check_index()
        image = service.create(id="told", modalities={"text": LANGUAGE})["modalities"]["image"]
        assert image == {"state": "generated", "generator": "mean", "confidence": 0.0, "basis": []}
        mean = service.engine.active.dgmrec.model.tower("image").projection.mean.numpy()
        np.testing.assert_allclose(service.vector("told", "image"), mean, atol=1e-5)
        generators = {
            report["generator"]
            for item in service.get("/items", limit=500)["items"]
            for report in item["modalities"].values()
            if report["state"] == "generated"
        }
        assert generators == {"mean"}


def test_a_bundle_that_generates_nothing_can_take_the_neighbours(
    demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> None:
    with Running(
        settings_for(imputing(demo_bundle, tmp_path / "bundle", "nn"), demo_folder, tmp_path / "lacuna.db")
    ) as service:
        service.check_index()
        report = service.create(id="told", modalities={"text": LANGUAGE})["modalities"]["image"]
        assert report == {
            "state": "generated",
            "generator": "nn",
            "confidence": 0.0,
            "basis": ["text", "neighbours"],
        }
        assert service.create(id="empty")["modalities"]["image"]["generator"] == "mean"


def test_a_bundle_that_generates_nothing_can_read_the_graph(
    demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> None:
    """Where an item has users; after that imputer, the fallback chain is the same as ever."""
    imputer = json.loads((demo_bundle / "manifest.json").read_text())["models"]["dgmrec"]["config"]["fallback_imputer"]
    assert imputer in GRAPH_IMPUTERS
    bundle = imputing(demo_bundle, tmp_path / "bundle", imputer)
    with Running(settings_for(bundle, demo_folder, tmp_path / "lacuna.db")) as service:
        service.check_index()
        told = service.create(id="told", modalities={"text": LANGUAGE})["modalities"]["image"]
        assert (told["generator"], told["basis"]) == ("nn", ["text", "neighbours"])
        assert service.create(id="empty")["modalities"]["image"]["generator"] == "mean"
        for item in ("told", "empty"):
            service.view(item, "shopper-001", "shopper-002")
            image = service.get(f"/items/{item}")["modalities"]["image"]
            assert image == {"state": "generated", "generator": imputer, "confidence": 0.0, "basis": ["users"]}
        assert service.vector("told", "image") == service.vector("empty", "image")  # they have the same users
        service.check_index()


def test_of_a_modality_that_nobody_has_nothing_is_said(demo_bundle: Path, demo_folder: Path, tmp_path: Path) -> None:
    """Not even a mean, where training saw none of it."""
    other = shutil.copytree(demo_bundle, tmp_path / "bundle")
    tensors = other / "dgmrec.safetensors"
    arrays = load_file(tensors)
    arrays["model.towers.audio.projection.mean"] = np.zeros_like(arrays["model.towers.audio.projection.mean"])
    save_file(arrays, tensors)
    sign(other, tensors.name)
    with Running(settings_for(other, demo_folder, tmp_path / "lacuna.db", seed_catalogue=False)) as service:
        answer = service.create(id="empty")
        assert answer["modalities"]["audio"] == {"state": "absent"}
        assert answer["modalities"]["text"]["generator"] == "mean"
        detail = service.get("/items/empty/modalities/audio", vector=True)
        assert (detail["state"], detail["neighbours"], "vector" in detail) == ("absent", [], False)
        assert service.get("/items/empty/similar", by="audio")["items"] == []
        assert service.get("/retrieve", text="mug", target="audio")["items"] == []
        assert service.get("/stats")["modalities"]["audio"] == {"absent": 1, "observed": 0, "generated": 0}
        service.check_index()


def test_a_bundle_that_lacks_a_stored_modality_is_refused(
    demo_bundle: Path, plain_bundle: Path, demo_folder: Path, seeded_file: Path, tmp_path: Path
) -> None:
    """It would have to forget what people gave."""
    file = Path(shutil.copy(seeded_file, tmp_path / "lacuna.db"))
    other = shutil.copytree(plain_bundle, tmp_path / "bundle")
    manifest = json.loads((other / "manifest.json").read_text())
    for entry in manifest["modalities"]:
        entry["name"] = {"audio": "sound"}.get(entry["name"], entry["name"])
    tensors = other / "dgmrec.safetensors"
    rename_modality(tensors, "audio", "sound")
    sign(other, tensors.name, modalities=manifest["modalities"], version="another")
    with pytest.raises(BundleError, match=r"'demo-\d+' has the modality 'audio', which the bundle has not"):
        Running(settings_for(other, demo_folder, file)).__enter__()
    with Running(settings_for(demo_bundle, demo_folder, file)) as service:
        service.check_index()


def rename_modality(file: Path, old: str, new: str) -> None:
    arrays = load_file(file)
    save_file({name.replace(f".{old}", f".{new}"): np.ascontiguousarray(array) for name, array in arrays.items()}, file)
