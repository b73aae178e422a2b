"""From which rating on ratings count as interest, by what the validation part likes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import read_manifest
from tests.training.commands import Run
from training.datasets import Dataset, load_dataset, write_dataset
from training.interest import choose_min_rating, rated
from training.splits import SplitName

USERS, ITEMS, LIKES, LOWER = 60, 80, 4, 12


def events(lower: str) -> list[dict[str, Any]]:
    """Users like few items of their group; what they rate lower is of the same group, or of any."""
    rng, rows = np.random.default_rng(0), []
    for user in range(USERS):
        own = np.arange(user % 2, ITEMS, 2)
        order = rng.permutation(own)
        liked = order[:LIKES]
        others = order[LIKES:] if lower == "telling" else np.setdiff1d(rng.permutation(ITEMS), liked)
        rated_lower = rng.permutation(others)[:LOWER]
        for value, items in ((5, liked), (3, rated_lower)):
            rows += [{"user": f"u{user}", "item": f"i{item}", "type": "rating", "value": value} for item in items]
    stamps = rng.permutation(len(rows)).tolist()
    return [
        {**row, "timestamp": f"2026-01-01T00:{stamp // 60:02d}:{stamp % 60:02d}Z"}
        for row, stamp in zip(rows, stamps, strict=True)
    ]


def world(folder: Path, lower: str) -> Dataset:
    items = [{"id": f"i{item}"} for item in range(ITEMS)]
    write_dataset(folder, items, events(lower), name="rated", source="test", synthetic=True, min_rating=4.0)
    return load_dataset(folder)


@pytest.mark.parametrize("split", [SplitName.RANDOM, SplitName.TIME])
def test_lower_ratings_count_where_they_tell(tmp_path: Path, split: SplitName) -> None:
    choice = choose_min_rating(world(tmp_path / "data", "telling"), 0, split)
    assert choice.min_rating == 3.0
    assert list(choice.tried) == [4.0, 3.0, 2.0]
    assert choice.tried[3.0] > choice.tried[4.0]
    assert "from 3 on" in str(choice)


def test_the_usual_threshold_stays_where_they_do_not(tmp_path: Path) -> None:
    choice = choose_min_rating(world(tmp_path / "data", "anything"), 0)
    assert choice.min_rating == 4.0
    assert choice.tried[3.0] < choice.tried[4.0] * 1.01


def test_nothing_to_choose(tmp_path: Path) -> None:
    dataset = world(tmp_path / "data", "telling")
    assert choose_min_rating(replace(dataset, min_rating=None), 0).tried == {}
    empty = replace(dataset.interactions, value=np.full(len(dataset.interactions.value), np.nan))
    choice = choose_min_rating(replace(dataset, interactions=empty), 0)
    assert (choice.min_rating, choice.tried) == (4.0, {})
    assert "stays" in str(choice)


def test_held_out_is_what_is_liked(tmp_path: Path) -> None:
    dataset = world(tmp_path / "data", "telling")
    data = rated(dataset, 1)
    liked = {tuple(pair) for pair in dataset.pairs().tolist()}
    for held in (data.parts.valid, data.parts.test):
        assert len(held)
        assert {tuple(pair) for pair in held.tolist()} <= liked
    assert data.interest(4.0).sum() < data.interest(3.0).sum() == len(data.parts.train)
    assert len(data.parts.train) + len(data.parts.valid) + len(data.parts.test) < len(dataset.interactions.user)


def test_the_command_trains_with_what_was_chosen(lacuna: Run, tmp_path: Path) -> None:
    world(tmp_path / "data", "telling")
    given = ("train", "dgmrec", "--data", tmp_path / "data", "--out", tmp_path / "bundle", "--threads", 1)
    code, _, err = lacuna(*given, "--budget", 0, "--set", "epochs=1", "--min-rating", "choose")
    assert code == 0
    assert "by what counts as interest: from 4 on" in err
    assert "ratings of 3 and more count as interest" in err
    assert read_manifest(tmp_path / "bundle").data.min_rating == 3.0
