"""Ratings and their splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.test_datasets import feedback, items
from training.datasets import load_dataset, write_dataset
from training.datasets.base import Dataset
from training.datasets.published import Published
from training.lrmm.ratings import RatingDataError, Ratings, published_parts, random_parts


def dataset_of(folder: Path, events: list[dict[str, Any]], **options: Any) -> Dataset:
    write_dataset(folder, items(), events, name="letters", source="a test", **options)
    return load_dataset(folder)


def test_only_rated_events_count(tmp_path: Path) -> None:
    split = np.array([0, 1, 2, 1, 0], dtype=np.uint8)
    dataset = dataset_of(tmp_path / "out", feedback(), published=Published(rating_split=split))
    ratings = Ratings.of(dataset)

    assert ratings.value.tolist() == [2, 1]  # of a pair rated twice, the newest
    assert ratings.text == ("", "")
    assert (ratings.user.tolist(), ratings.item.tolist()) == ([0, 1], [1, 2])
    parts = published_parts(dataset, ratings)
    assert parts is not None
    assert (parts.train.tolist(), parts.valid.tolist(), parts.test.tolist()) == ([0, 1], [], [])


def test_no_published_split(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "out", feedback())
    assert published_parts(dataset, Ratings.of(dataset)) is None


def test_nothing_rated(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "out", [{"user": "u", "item": "a", "type": "review", "text": "no value"}])
    with pytest.raises(RatingDataError, match="has no ratings"):
        Ratings.of(dataset)


def test_random_parts_cover_everything_once() -> None:
    parts = random_parts(1003, seed=3)
    assert [len(parts.train), len(parts.valid), len(parts.test)] == [803, 100, 100]
    assert sorted(np.concatenate([parts.train, parts.valid, parts.test])) == list(range(1003))
    assert random_parts(1003, seed=3).test.tolist() == parts.test.tolist()
    assert random_parts(1003, seed=4).test.tolist() != parts.test.tolist()
    with pytest.raises(RatingDataError, match="too few"):
        random_parts(9, seed=0)
