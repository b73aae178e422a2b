"""Predicted ratings over HTTP, on a bundle with LRMM beside DGMRec."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import read_manifest
from models.lrmm.config import LRMMConfig, LRMMPaperConfig
from tests.service.e2e.test_erasure import traces
from tests.service.running import Running, fresh_id, settings_for
from training.content import DataOptions
from training.datasets import load_dataset, write_dataset
from training.lrmm.recipe import LRMMRecipe
from training.lrmm.task import TRAINER
from training.progress import Terminal
from training.recipe import train_into_bundle

CONFIG = LRMMConfig(
    members=2, hidden=16, rating_hidden=8, lstm_hidden=8, word_embedding_size=8, lstm_epochs=1,
    sentence_size=8, content_size=8, min_word_count=2, folds=3, repeats=1, document_words=60,
)  # fmt: skip
PAPER = LRMMPaperConfig(
    lstm_hidden=16, hidden=16, word_embedding_size=8, min_word_count=2, document_words=60, optimizer="adam",
)  # fmt: skip
WORDS = {1: "awful broke returned it", 3: "it is fine nothing more", 5: "great love it perfect"}


@pytest.fixture(scope="session")
def rating_bundle(demo_bundle: Path, kept: Path) -> Path:
    """The demo bundle, and in it an LRMM that was trained on some reviews of its items."""
    return trained_beside(demo_bundle, kept, "rating", CONFIG, 4)


@pytest.fixture(scope="session")
def paper_bundle(demo_bundle: Path, kept: Path) -> Path:
    """The same with the paper's form."""
    return trained_beside(demo_bundle, kept, "rating-paper", PAPER, 12)


def trained_beside(demo_bundle: Path, kept: Path, name: str, config: LRMMConfig | LRMMPaperConfig, epochs: int) -> Path:
    path = kept / name
    if path.is_dir():
        return path
    data = load_dataset(kept / "data")
    rng = np.random.default_rng(0)
    events = []
    for number in range(240):
        user, row = number % 30, int(rng.integers(len(data.items)))
        value = int(rng.choice([1, 3, 5], p=[0.8, 0.15, 0.05] if row % 3 == 0 else [0.05, 0.15, 0.8]))
        event = {"user": f"u{user}", "item": data.items.id(row), "type": "review", "value": value}
        events.append({**event, "text": f"{WORDS[value]} number {number}"})
    write_dataset(kept / f"{name}-data", data.records, events, name="rated (synthetic)", source="test", synthetic=True)
    temporary = kept / f"{name}-in-the-making"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(demo_bundle, temporary)
    with Terminal(quiet=True) as terminal:
        trainer = TRAINER.model_copy(update={"epochs": epochs, "learning_rate": 3e-3, "batch_size": 32})
        options = DataOptions(cache=kept / "encoders", threads=1)
        rated = load_dataset(kept / f"{name}-data")
        train_into_bundle(LRMMRecipe(config, trainer), rated, temporary, options, terminal=terminal)
    temporary.rename(path)
    return path


@pytest.fixture(scope="module", params=["lacuna-sqlite", "lacuna-postgresql", "paper-sqlite", "paper-postgresql"])
def rating(
    request: pytest.FixtureRequest, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The service over that bundle, in each form, on each database."""
    form, database = request.param.split("-")
    bundle = request.getfixturevalue("paper_bundle" if form == "paper" else "rating_bundle")
    file: Path | str = tmp_path_factory.mktemp("rating") / "lacuna.db"
    if database == "postgresql":
        file = request.getfixturevalue("postgres_url")
    with Running(settings_for(bundle, demo_folder, file)) as service:
        yield service


def form_of(service: Running) -> str:
    """As the service tells it."""
    form: str = service.get("/models")["models"][0]["models"]["lrmm"]["form"]
    return form


def review(service: Running, user: str, item: str, value: int, **more: Any) -> None:
    body = {"user": user, "item": item, "type": "review", "value": value, "text": WORDS[value], **more}
    assert service.post("/feedback", {"feedback": [body]})["accepted"] == 1


def test_who_has_just_been_reviewed_is_predicted_with_it(rating: Running) -> None:
    item, user = rating.create(title="a strap")["id"], fresh_id()
    before = rating.get(f"/predict/{user}/{item}")
    assert before["unknown"] == ["user", "item"]
    assert before["modalities"]["user_reviews"] == "generated"  # from the item's own text
    assert before["modalities"]["metadata"] == "observed"
    for number in range(3):
        review(rating, f"critic-{number}", item, 1)
    review(rating, user, "demo-0001", 1)
    after = rating.get(f"/predict/{user}/{item}")
    assert after["unknown"] == []
    assert after["modalities"]["user_reviews"] == after["modalities"]["item_reviews"] == "observed"
    assert after["rating"] < before["rating"]
    assert after["interval"][0] <= after["rating"] <= after["interval"][1]
    assert rating.get(f"/predict/{fresh_id()}/{item}")["unknown"] == ["user"]
    assert rating.get(f"/predict/{user}/{fresh_id()}")["unknown"] == ["item"]


def test_who_rates_again_has_changed_their_mind(rating: Running) -> None:
    fickle, steady = fresh_id(), fresh_id()
    review(rating, fickle, "demo-0001", 1, timestamp="2026-01-01T00:00:00Z")
    before = rating.get(f"/predict/{fickle}/demo-0002")["rating"]
    for user in (fickle, steady):
        review(rating, user, "demo-0001", 5, timestamp="2026-01-02T00:00:00Z")
    after = [rating.get(f"/predict/{user}/demo-0002")["rating"] for user in (fickle, steady)]
    assert after[0] == after[1] != before


def test_an_item_that_is_created_again_is_rated_by_what_it_is_now(rating: Running) -> None:
    """Its version starts anew, and its content is another one."""
    strap, lamp = rating.create(title="a strap")["id"], rating.create(title="a lamp of brass for winter evenings")["id"]
    of_strap, of_lamp = (rating.get(f"/predict/nobody/{item}")["rating"] for item in (strap, lamp))
    assert of_strap != of_lamp
    rating.ask("DELETE", f"/items/{strap}", status=204)
    rating.create(id=strap, title="a lamp of brass for winter evenings")
    assert rating.get(f"/predict/nobody/{strap}")["rating"] == of_lamp


def test_nobody_and_nothing(rating: Running) -> None:
    found = rating.get(f"/predict/{fresh_id()}/{fresh_id()}")
    assert found["unknown"] == ["user", "item"]
    assert set(found["modalities"].values()) == {"absent"}
    assert 1 <= found["interval"][0] <= found["rating"] <= found["interval"][1] <= 5


def test_many_pairs_answer_as_each_alone(rating: Running) -> None:
    review(rating, "many", "demo-0002", 5)
    pairs = [{"user": user, "item": f"demo-{row:04}"} for row in range(1, 40) for user in ("many", "u1", "nobody")]
    found = rating.post("/predict", {"pairs": pairs})
    assert [(one["user"], one["item"]) for one in found["items"]] == [(one["user"], one["item"]) for one in pairs]
    for one in found["items"][::10]:
        alone = rating.get(f"/predict/{one['user']}/{one['item']}")
        assert alone.pop("model_version") == found["model_version"]
        assert alone["rating"] == pytest.approx(one["rating"], abs=2e-4)
        assert alone["modalities"] == one["modalities"]


def test_the_form_is_told(rating_bundle: Path, paper_bundle: Path) -> None:
    for bundle, form in ((rating_bundle, "lacuna"), (paper_bundle, "paper")):
        entry = read_manifest(bundle).models["lrmm"]
        assert entry.form == entry.config["model"]["form"] == form


def test_a_review_is_encoded_once_and_erased_with_its_user(rating: Running) -> None:
    user, item = fresh_id(), rating.create(title="a pick")["id"]
    unknown = rating.get(f"/predict/nobody/{item}")
    review(rating, user, item, 1)
    rating.wait_until_idle()
    encoded = rating.engine.runtime.writer
    calls: list[object] = []
    submit = encoded.submit
    encoded.submit = lambda *work: calls.append(work) or submit(*work)  # type: ignore[method-assign, func-returns-value]
    try:
        known = rating.get(f"/predict/nobody/{item}")
    finally:
        del encoded.submit
    assert calls == []  # it was encoded when it came in
    assert known["rating"] != unknown["rating"]
    if form_of(rating) == "paper":  # it keeps no vectors of single reviews
        rating.ask("DELETE", f"/users/{user}", status=204)
        rating.wait_until_idle()
        assert rating.get(f"/predict/nobody/{item}")["rating"] == unknown["rating"]
        return
    rows = len(traces(rating, rating.engine.active.ratings.identity)["review_vectors"])  # type: ignore[union-attr]
    rating.ask("DELETE", f"/users/{user}", status=204)
    rating.wait_until_idle()
    left = traces(rating, rating.engine.active.ratings.identity)["review_vectors"]  # type: ignore[union-attr]
    assert len(left) == rows - 1
    assert rating.get(f"/predict/nobody/{item}")["rating"] == unknown["rating"]


def test_another_worker_predicts_with_what_came_in_here(rating_bundle: Path, demo_folder: Path, tmp_path: Path) -> None:
    settings = settings_for(rating_bundle, demo_folder, tmp_path / "lacuna.db")
    with Running(settings) as one, Running(settings) as other:
        item = one.create(title="a capo")["id"]
        before = other.get(f"/predict/late/{item}")
        review(one, "late", "demo-0003", 1)
        review(one, "early", item, 1)
        other.wait_until_idle()
        after = other.get(f"/predict/late/{item}")
        assert before["unknown"] == ["user", "item"]
        assert after["unknown"] == []
        assert after["rating"] == one.get(f"/predict/late/{item}")["rating"]
        one.ask("DELETE", "/items/demo-0003", status=204)
        other.wait_until_idle()
        assert other.get(f"/predict/late/{item}")["unknown"] == ["user"]
        assert one.get(f"/predict/late/{item}")["unknown"] == ["user"]


@pytest.mark.parametrize("value", [0, 5.5, -1])
def test_a_review_outside_the_scale_is_refused(rating: Running, value: float) -> None:
    body = {"user": "odd", "item": "demo-0001", "type": "review", "value": value, "text": "words"}
    answer = rating.post("/feedback", {"feedback": [body]})
    assert answer["accepted"] == 0
    assert "between 1 and 5" in answer["rejected"][0]["detail"]


def test_what_is_no_pair(rating: Running) -> None:
    rating.post("/predict", {"pairs": []}, status=422)
    rating.post("/predict", {"pairs": [{"user": "a", "item": "b"}] * 1001}, status=422)
    rating.post("/predict", {"pairs": [{"user": "a", "item": "not an id"}]}, status=422)
    rating.get("/predict/a/not an id", status=422)


def test_a_bundle_without_it_says_so(running: Running) -> None:
    problem = running.get("/predict/ann/demo-0001", status=503)
    assert problem["type"] == "/problems/not-served"
    assert "predicts ratings" in problem["detail"]
    running.post("/predict", {"pairs": [{"user": "a", "item": "demo-0001"}]}, status=503)
