"""Whether a title is a text: what items with both say, and what becomes of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.encoders import NetworkEncoder
from models.modality import ModalBatch
from models.vocabulary import Vocabulary
from training.content import DataOptions, prepare_features
from training.datasets.base import Dataset, Interactions
from training.evaluate.protocols import levels
from training.progress import Terminal
from training.titles import TitleAsText, TitleChoice, choose, titled, without_titles

KINDS = ("hat", "mug", "lamp", "vase")
SIZE, BOTH = 8, 80


def encoded(text: str) -> NDArray[np.float32]:
    """A direction for each kind of thing that is named, and one of its own for any other text."""
    seed = next((number for number, kind in enumerate(KINDS) if kind in text), sum(map(ord, text)))
    return np.random.default_rng(seed).normal(size=(1, SIZE)).astype(np.float32)


@pytest.fixture
def encoder() -> NetworkEncoder[str]:
    return NetworkEncoder("test:words", "w", prepare=encoded, network=lambda x: x, blank="")


def world(titles: str, picture: float) -> tuple[Dataset, ModalBatch]:
    """Things with a text and a picture, and some with a title alone; titles say what things are, or only a name, and
    pictures tell it with a certain strength."""
    rng = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    features: dict[str, list[NDArray[np.float32]]] = {"text": [], "image": []}
    for row in range(BOTH + 20):
        kind = KINDS[row % len(KINDS)]
        title = f"A {kind}" if titles == "telling" else f"No. {row:04d}"
        text = {"text": f"This {kind} is number {row}"} if row < BOTH else {}
        records.append({"id": str(row), "title": title, "modalities": {**text, "image": {"vector": [1.0]}}})
        features["text"].append(encoded(text.get("text", title))[0])
        told = picture * np.eye(len(KINDS))[row % len(KINDS)]
        features["image"].append((told + rng.normal(size=len(KINDS))).astype(np.float32))
    batch = ModalBatch(
        {name: torch.from_numpy(np.stack(rows)) for name, rows in features.items()},
        torch.ones(len(records), 2, dtype=torch.bool),
    )
    none = np.array([], np.int64)
    interactions = Interactions(none, none, none.astype(np.uint8), none.astype(float), none.astype(float))
    items = Vocabulary(record["id"] for record in records)
    return Dataset("t", True, None, "f", items, Vocabulary(), records, interactions), batch


@pytest.mark.parametrize(
    ("titles", "picture", "as_text"), [("telling", 0.0, True), ("telling", 1.0, True), ("a name", 5.0, False)]
)
def test_what_is_nearer_to_the_text_wins(
    titles: str, picture: float, as_text: bool, encoder: NetworkEncoder[str]
) -> None:
    choice = choose(*world(titles, picture), encoder, seed=0)
    assert choice.as_text is as_text
    assert choice.titles is not None
    assert choice.generated is not None
    assert (choice.titles > choice.generated) is as_text
    assert ("do not count" in str(choice)) is not as_text


def test_titles_count_where_too_few_items_tell(encoder: NetworkEncoder[str]) -> None:
    dataset, batch = world("a name", 5.0)
    few = batch.observed.clone()
    few[29:BOTH, 1] = False  # of 80 with a text, 29 have a picture too
    assert choose(dataset, ModalBatch(batch.features, few), encoder, seed=0) == TitleChoice(True)
    alone = ModalBatch({"text": batch.features["text"]}, batch.observed[:, :1])
    assert choose(dataset, alone, encoder, seed=0) == TitleChoice(True)


def test_without_titles() -> None:
    dataset, batch = world("a name", 1.0)
    assert titled(dataset).tolist() == [False] * BOTH + [True] * 20
    left = without_titles(dataset, batch)
    assert left.observed[:, 0].tolist() == [True] * BOTH + [False] * 20
    assert left.observed[:, 1].all()
    assert not left.features["text"][BOTH:].any()


def test_nothing_is_left_out_where_there_are_no_texts() -> None:
    dataset, batch = world("a name", 1.0)
    pictures = ModalBatch({"image": batch.features["image"]}, batch.observed[:, 1:])
    assert without_titles(dataset, pictures) is pictures


@pytest.mark.parametrize("as_text", [True, False])
def test_titles_that_are_no_texts_are_missing_whatever_is_measured(as_text: bool) -> None:
    """Neither what a model is shown nor what imputations are compared with has them, and an item lacks its text."""
    dataset, _ = world("a name", 1.0)
    wanted = TitleAsText.YES if as_text else TitleAsText.NO
    options = DataOptions(missing=0.2, threads=1, seed=1, title_as_text=wanted)
    with Terminal(quiet=True) as terminal:
        prepared = prepare_features(dataset, options, terminal)
    column = prepared.batch.names.index("text")
    assert prepared.complete.observed[BOTH:, column].tolist() == [as_text] * 20
    assert not (prepared.batch.observed & ~prepared.complete.observed).any()
    lacking = levels(dataset.observed() & ~prepared.withheld)
    assert lacking.tolist() == (~prepared.batch.observed).sum(dim=1).tolist()
