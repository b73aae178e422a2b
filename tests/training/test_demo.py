"""The demo catalogue: the same bytes from a seed, honest about being synthetic, learnable."""

from __future__ import annotations

import io
import json
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.datasets import READERS, Dataset, load_dataset
from training.demo.catalogue import DAYS, END, NAME, demo_holes, demo_item, demo_truth, prepare_demo
from training.demo.drawing import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    MATERIALS,
    PATTERNS,
    STYLES,
    TRIMS,
    Look,
    draw_product,
)
from training.metrics import evaluate_ranking
from training.splits import Parts, random_split

SEED, ITEMS, USERS = 11, 240, 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    prepare_demo(out, items=ITEMS, users=USERS, seed=SEED)
    return out


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return load_dataset(folder)


def test_it_says_that_it_is_synthetic(folder: Path, dataset: Dataset) -> None:
    info = json.loads((folder / "dataset.json").read_text())
    assert (info["name"], info["synthetic"]) == (NAME, True)
    assert "synthetic" in NAME
    assert all(record["metadata"] == {"synthetic": True} for record in dataset.records)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    for out, seed in ((one, 5), (two, 5), (three, 6)):
        prepare_demo(out, items=40, users=10, seed=seed)
    for name in ("items.jsonl", "feedback.jsonl", "dataset.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
        assert (one / name).read_bytes() != (three / name).read_bytes()


def test_shares_of_holes(dataset: Dataset) -> None:
    there = dataset.observed(["image", "text"])
    assert (there == ~demo_holes(ITEMS, SEED)).all()
    assert (~there).sum(axis=0).tolist() == [0.2 * ITEMS, 0.2 * ITEMS]
    assert (~there).all(axis=1).sum() == 0.05 * ITEMS


def test_what_is_withheld_stands_nowhere(dataset: Dataset) -> None:
    truth = demo_truth(SEED, ITEMS)
    assert [product.id for product in truth] == dataset.items.ids
    for product, record, (no_picture, no_text) in zip(truth, dataset.records, demo_holes(ITEMS, SEED), strict=True):
        contents = record["modalities"]
        if not no_picture:  # which stays in its file until it is read
            contents = contents | {"image": {"base64": str(contents["image"]["base64"])}}
        assert {**record, "modalities": contents} == product.item(picture=not no_picture, text=not no_text)
        rest = {**record, "modalities": {name: part for name, part in record["modalities"].items() if name == "text"}}
        said = json.dumps(rest)
        if no_text:
            assert record["title"] is None
            assert product.brand not in said
            assert product.look.colour not in said
        if no_picture:
            assert "image" not in record["modalities"]


def test_text_tells_what_the_picture_shows() -> None:
    for product in demo_truth(SEED, 60):
        words = f"{product.title} {product.text}".lower()
        assert product.look.material in words
        assert product.brand.lower() in words
        assert 10 < len(product.title) < 70
        assert "{" not in words
        assert product.look.trim not in product.text.split()


def test_pictures_are_small_jpegs_and_differ() -> None:
    products = demo_truth(SEED, 60)
    sizes = []
    for product in products:
        picture = Image.open(io.BytesIO(product.picture))
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (128, 128), "RGB")
        sizes.append(len(product.picture))
    assert np.mean(sizes) < 4_000
    assert len({product.picture for product in products}) == 60
    assert len({product.text for product in products}) > 55


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_shape_is_drawn_in_the_colour_asked_for(category: str) -> None:
    for style in STYLES:
        red, blue = (
            mean_colour(Look(category, style, colour, "plain", "ceramic", "white", 0)) for colour in ("red", "blue")
        )
        assert red[0] > blue[0] + 5
        assert blue[2] > red[2] + 5


def mean_colour(look: Look) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(draw_product(look, np.random.default_rng(1))))).mean(axis=(0, 1))


def test_every_attribute_changes_the_picture() -> None:
    plain = Look("cushions", "classic", "teal", "plain", "ceramic", "gold", 0)
    looks = [
        plain,
        *(Look("cushions", "classic", colour, "plain", "ceramic", "gold", 0) for colour in COLOURS if colour != "teal"),
        *(Look("cushions", "classic", "teal", pattern, "ceramic", "gold", 0) for pattern in PATTERNS[1:]),
        *(Look("cushions", "classic", "teal", "plain", kind, "gold", 0) for kind in MATERIALS if kind != "ceramic"),
        *(Look("cushions", "classic", "teal", "plain", "ceramic", trim, 0) for trim in TRIMS if trim != "gold"),
        *(Look("cushions", "classic", "teal", "plain", "ceramic", "gold", k) for k in range(1, len(BACKGROUNDS))),
    ]
    assert len({draw_product(look, np.random.default_rng(1)) for look in looks}) == len(looks)


def test_fresh_items_are_not_in_the_catalogue() -> None:
    fresh = [demo_item(SEED, k) for k in range(5)]
    known = demo_truth(SEED, 40)
    assert len({product.id for product in [*fresh, *known]}) == 45
    assert not {product.picture for product in fresh} & {product.picture for product in known}
    assert demo_item(SEED, 3) == fresh[3]
    body = fresh[0].item()
    assert body["title"]
    assert set(body["modalities"]) == {"text", "image"}


def test_shoppers(folder: Path, dataset: Dataset) -> None:
    events = [json.loads(line) for line in (folder / "feedback.jsonl").read_text().splitlines()]
    assert len(dataset.users) == USERS
    counts = Counter(event["user"] for event in events)
    assert 25 <= min(counts.values()) <= max(counts.values()) <= 40
    kinds = Counter(event["type"] for event in events)
    assert kinds["view"] > kinds["click"] > kinds["cart"] > kinds["purchase"] > 0
    times = [datetime.fromisoformat(event["timestamp"]) for event in events]
    assert times == sorted(times)
    assert END - timedelta(days=DAYS) <= times[0]
    assert times[-1] <= END
    keys = {(event["user"], event["item"], event["type"], event["timestamp"]) for event in events}
    assert len(keys) == len(events)


def test_taste_can_be_learned(dataset: Dataset) -> None:
    pairs = dataset.pairs()
    parts = Parts.of(pairs, random_split(pairs, np.random.default_rng(1))).evaluable()
    seen = np.zeros((len(dataset.users), len(dataset.items)))
    seen[tuple(parts.train.T)] = 1
    popularity = seen.sum(axis=0)
    similar = seen.T @ seen / np.sqrt(np.outer(popularity, popularity) + 1e-9)
    np.fill_diagonal(similar, 0)
    knn = seen @ similar
    by_popularity = evaluate_ranking(lambda rows: np.tile(popularity, (len(rows), 1)), parts.test, parts.train)
    by_neighbours = evaluate_ranking(lambda rows: knn[rows], parts.test, parts.train)
    assert by_neighbours["recall@20"] > 1.5 * by_popularity["recall@20"]
    assert by_popularity["recall@20"] > 1.5 * 20 / ITEMS  # popularity says something too


def test_the_registry_offers_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("items", 12), ("users", 4)):
        monkeypatch.setitem(prepare_demo.__kwdefaults__, name, value)
    stages: list[str] = []
    info = READERS["demo"].prepare(None, tmp_path / "out", lambda stage, _: stages.append(stage))
    assert (info.name, info.counts.items, info.counts.users) == (NAME, 12, 4)
    assert {"items", "feedback"} == set(stages)
