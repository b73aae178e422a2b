"""What is derived of an item never depends on when it was written: any order of writes, through one or two workers,
ends in the state that is derived from what is stored, and `/admin/check` notices where it does not."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.pipeline import check, vectors
from service.pipeline.catalogue import KERNEL_FIELDS
from tests.service.running import Running, fresh_id, settings_for

WORDS = (
    "teapot",
    "mug",
    "lamp",
    "scarf",
    "chair",
    "octopus",
    "turquoise",
    "crimson",
    "ribbed",
    "frosted",
    "tall",
    "wool",
)
TOLERANCE = 2e-5


@pytest.fixture
def one(seeded_file: Path, demo_bundle: Path, data_dir: Path) -> Iterator[Running]:
    file = Path(shutil.copy(seeded_file, data_dir / "lacuna.db"))
    with Running(settings_for(demo_bundle, data_dir, file)) as service:
        yield service


def state(service: Running) -> dict[str, dict[str, Any]]:
    """All that is derived of each item, in memory."""
    catalogue = service.engine.memory.catalogue
    found: dict[str, dict[str, Any]] = {}
    for key, entry in catalogue.entries.items():
        rows = np.array([key])
        fields = {name: catalogue.rows.get(name, key) for name in catalogue.shape.fields()}
        layers = [*catalogue.shape.layer_fields(), *(KERNEL_FIELDS if catalogue.trained[key] < 0 else ())]
        # Neighbours by name, and among equals in no order: keys are given as items come.
        fields |= {name: catalogue.read_layer(rows, name)[0] for name in layers if "near" not in name}
        fields = {name: value for name, value in fields.items() if not name.startswith("kernel")}
        fields["popularity"] = catalogue.popularity[key]
        found[entry.id] = fields
    return found


def assert_same(left: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]]) -> None:
    assert left.keys() == right.keys()
    for item, fields in left.items():
        for name, value in fields.items():
            np.testing.assert_allclose(value, right[item][name], rtol=1e-4, atol=TOLERANCE, err_msg=f"{item} {name}")


def derived_anew(service: Running, bundle: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The state that another service derives from the same items and feedback, exported and imported in that order."""
    items = pages(service, "/items", "items")
    feedback = pages(service, "/feedback", "items")
    settings = settings_for(bundle, folder, folder / "other.db", seed_catalogue=False)
    with Running(settings) as other:
        for item in items:
            other.ask("PUT", f"/items/{item['id']}", status=201, json=body_of(service, item))
        for start in range(0, len(feedback), 500):
            other.post("/feedback", {"feedback": feedback[start : start + 500]})
        other.wait_until_idle()
        assert other.post("/admin/check", None)["differing"] == 0
        return state(other)


def pages(service: Running, path: str, name: str) -> list[Any]:
    rows: list[Any] = []
    cursor = None
    while True:
        page = service.get(path, limit=500, **({"cursor": cursor} if cursor else {}))
        rows += page[name]
        cursor = page["next_cursor"]
        if cursor is None:
            return rows


def body_of(service: Running, item: dict[str, Any]) -> dict[str, Any]:
    """An item with its text, whose words count, and its other observed features as vectors."""
    stored = service.run(service.engine.store.get_items([item["id"]]))[item["id"]]
    modalities: dict[str, Any] = {
        name: {"vector": service.vector(item["id"], name)} if feature.text is None else feature.text
        for name, feature in stored.observed.items()
        if feature.source != "title"
    }
    # A title would stand in for a text that was taken away.
    title = {"title": stored.title} if "text" in stored.observed else {}
    return {"modalities": modalities, "available": item["available"], **title}


class Shop:
    """Random writes on a few items of its own and of the catalogue, by a few users of its own and known ones."""

    def __init__(self, seed: int, services: list[Running]) -> None:
        self.random, self.services = random.Random(seed), services
        self.tag = fresh_id("shop")
        self.items = [f"{self.tag}-{number}" for number in range(10)]
        self.users = [f"{self.tag}-u{number}" for number in range(6)] + ["shopper-001", "shopper-002"]
        self.minute = 0

    def write(self) -> None:
        service, draw = self.random.choice(self.services), self.random
        item = draw.choice(self.items)
        what = draw.choices(("put", "patch", "delete", "feedback", "forget", "erase"), (6, 2, 1, 10, 1, 0.5))[0]
        if what == "put":
            service.client.put(f"/items/{item}", json={"modalities": self.modalities()}).raise_for_status()
        elif what == "patch":
            modality = draw.choice(["text", "image", "audio"])
            given = {**dict.fromkeys(["text", "image", "audio"]), **self.modalities()}[modality]
            service.client.patch(f"/items/{item}", json={"modalities": {modality: given}})
        elif what == "delete":
            service.client.delete(f"/items/{item}")
        elif what == "feedback":
            events = [self.event() for _ in range(draw.randint(1, 4))]
            service.client.post("/feedback", json={"feedback": events}).raise_for_status()
        elif what == "forget":
            service.client.delete("/feedback", params={"user": draw.choice(self.users[:6]), "item": item})
        else:
            service.client.delete(f"/users/{draw.choice(self.users[:6])}")

    def modalities(self) -> dict[str, Any]:
        draw = self.random
        text = " ".join(draw.sample(WORDS, 4))
        vector = [draw.gauss(0, 1) for _ in range(self.dim("audio"))]
        given: dict[str, Any] = {"text": f"A {text}.", "audio": {"vector": vector}}
        return {name: value for name, value in given.items() if draw.random() < 0.6}

    def dim(self, modality: str) -> int:
        return self.services[0].engine.active.dgmrec.specs[modality].dim

    def event(self) -> dict[str, Any]:
        draw = self.random
        self.minute += draw.randint(1, 3)
        at = self.minute if draw.random() < 0.8 else draw.randint(0, self.minute)  # some come late
        kind = draw.choice(["view", "purchase", "like", "dislike", "rating"])
        event = {
            "user": draw.choice(self.users),
            "item": draw.choice([*self.items, "demo-0003", "demo-0011"]),
            "type": kind,
            "timestamp": f"2026-01-{1 + at // 1440:02d}T{at // 60 % 24:02d}:{at % 60:02d}:00Z",
        }
        return event | ({"value": draw.randint(1, 5)} if kind == "rating" else {})


@pytest.mark.parametrize("seed", range(3))
def test_random_writes_end_in_the_derived_state(seed: int, one: Running, demo_bundle: Path, tmp_path: Path) -> None:
    shop = Shop(seed, [one])
    for number in range(60):
        shop.write()
        if number % 20 == 19:
            one.wait_until_idle()
    one.wait_until_idle()
    assert one.get("/stats")["awaiting_regeneration"] == 0
    assert one.post("/admin/check", None)["differences"] == []
    assert_same(state(one), derived_anew(one, demo_bundle, tmp_path))


def test_two_workers_end_in_one_state(seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(seeded_file, tmp_path / "lacuna.db"))
    settings = settings_for(demo_bundle, demo_folder, file, follow_seconds=0.2)
    with Running(settings) as here, Running(settings) as there:
        shop = Shop(7, [here, there])
        for _ in range(60):
            shop.write()
        for service in (here, there, here, there):
            service.wait_until_idle()
        assert here.get("/stats")["pending"] == there.get("/stats")["pending"]
        for service in (here, there):
            assert service.post("/admin/check", None)["differing"] == 0
        assert_same(state(here), state(there))
        before = state(here)
    with Running(settings) as again:
        assert_same(state(again), before)


def test_stats_tell_up_to_which_write_everything_is_derived(one: Running) -> None:
    shop = Shop(7, [one])
    for _ in range(20):
        shop.write()
    answer = one.client.put(f"/items/{shop.items[0]}", json={"modalities": {"text": "A red mug."}})
    position = int(answer.headers["X-Lacuna-Position"])
    give_up = time.monotonic() + 60
    while (stats := one.get("/stats"))["pending"]["through"] < position:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    assert stats["awaiting_regeneration"] == 0  # nobody has written since
    assert position <= stats["pending"]["through"] <= one.get("/stats")["last_change"]
    assert one.post("/admin/check", None)["differences"] == []
    metrics = one.client.get("/metrics").text
    assert f"lacuna_derived_position {float(one.get('/stats')['last_change'])}" in metrics


def test_a_text_is_ranked_alike_before_and_after_its_neighbours_have_users(one: Running) -> None:
    text = "Turquoise octopus teapot of hand-blown glass"
    one.create(id="early", modalities={"text": text})
    words = ["large", "small", "round", "tall", "ribbed", "etched"]
    for number, word in enumerate(words):
        one.create(id=f"near-{number}", modalities={"text": f"{word} {text.lower()}"})
    events = [
        {
            "user": f"buyer-{user}",
            "item": f"near-{item}",
            "type": "purchase",
            "timestamp": f"2026-01-01T00:{item:02d}:00Z",
        }
        for user in range(12)
        for item in range(len(words))
        if (user + item) % 3
    ]
    one.post("/feedback", {"feedback": events})
    one.wait_until_idle()
    one.create(id="late", modalities={"text": text})
    one.wait_until_idle()
    scores = {hit["id"]: hit["score"] for hit in one.get("/recommend/buyer-0", n=500)["items"]}
    assert scores["early"] == pytest.approx(scores["late"], rel=1e-3)
    assert one.vector("early", "image") == pytest.approx(one.vector("late", "image"), abs=1e-4)


def test_a_deleted_item_leaves_nothing_behind(one: Running) -> None:
    before = state(one)
    item = one.create(id="short-lived", modalities={"text": "A red canvas sneaker with a white sole."})["id"]
    one.view(item, "shopper-001", "shopper-002")
    one.wait_until_idle()
    assert any(not np.allclose(state(one)[key]["modal"], fields["modal"], atol=1e-6) for key, fields in before.items())
    one.ask("DELETE", f"/items/{item}", status=204)
    one.wait_until_idle()
    assert_same(state(one), before)


def test_a_check_names_what_differs_and_a_rebuild_mends_it(one: Running) -> None:
    catalogue = one.engine.memory.catalogue
    item = one.create(id="harmed", modalities={"text": "A tall frosted lamp."})["id"]
    one.wait_until_idle()
    assert one.get(f"/items/{item}")["pending"] is False
    assert one.post("/admin/check", None, sample=5)["checked"] == 5
    whole = one.post("/admin/check", None)
    assert (whole["checked"], whole["of"], whole["differing"]) == (len(catalogue), len(catalogue), 0)
    key = np.array([catalogue.key(item)])
    final = catalogue.final(key)
    catalogue.rows.put_all("final", key, -final)
    found = one.post("/admin/check", None)
    assert [(row["id"], row["fields"]) for row in found["differences"]] == [(item, ["final"])]
    assert one.post("/admin/rebuild", None, status=202) == {"items": len(catalogue)}
    one.wait_until_idle()
    np.testing.assert_allclose(catalogue.final(key), final, atol=1e-6)  # completed with others at once
    assert one.post("/admin/check", None)["differing"] == 0


def test_a_sweep_finds_what_differs_in_the_end(one: Running, caplog: pytest.LogCaptureFixture) -> None:
    catalogue = one.engine.memory.catalogue
    one.wait_until_idle()
    key = np.array([catalogue.key("demo-0007")])
    own = catalogue.read_layer(key, "own")
    catalogue.rows.put_all("own", key, -own)
    after, rounds = -1, 0
    while after != -1 or not rounds:
        after, rounds = one.run(check.sweep(one.engine, after)), rounds + 1
    assert rounds > 1
    assert "were not as they are derived and are derived anew" in caplog.text  # and so were those that read it
    assert "demo-0007" in caplog.text
    one.wait_until_idle()
    np.testing.assert_array_equal(catalogue.read_layer(key, "own"), own)


def test_what_a_killed_worker_left_is_taken_up(one: Running) -> None:
    """A change is committed, and the process dies before it has reached others."""
    one.wait_until_idle()
    one.engine.runtime.is_closing = True  # no background work from here on
    one.create(id="left", modalities={"text": "A crimson wool scarf."})
    one.post("/feedback", {"feedback": [{"user": "shopper-003", "item": "left", "type": "view"}]})
    pending = one.get("/stats")["pending"]
    assert pending["items"] >= 1
    assert pending["changes"] >= 1
    assert one.get("/items/left")["pending"] is True
    with Running(one.settings) as again:
        again.wait_until_idle()
        assert again.get("/stats")["awaiting_regeneration"] == 0
        assert again.post("/admin/check", None)["differing"] == 0
        assert "users" in again.get("/items/left")["modalities"]["image"]["basis"]


def test_vectors_are_derived_in_layers_of_which_none_reads_a_later_one(one: Running) -> None:
    """Deriving the layers once more, each from those before it, changes nothing."""
    before = state(one)
    engine = one.engine
    for _ in vectors.derive(engine.active.dgmrec, engine.memory.catalogue):
        pass
    assert_same(state(one), before)
