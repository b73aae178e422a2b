"""Baselines of rating prediction, and the protocol that runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.baselines.rating import RATING_BASELINES, BaselineRatings, RatingBaseline, rmse, tune_rating_baseline
from training.datasets import load_dataset, write_dataset
from training.datasets.base import TEST, TRAIN, VALID
from training.evaluate.rating import errors
from training.lrmm.ratings import RatingParts, Ratings, thinned

USERS, ITEMS = 30, 20
WORDS = {-1: "broke bad return", 1: "great love perfect"}


def ratings(seed: int = 0) -> Ratings:
    """Every user has a level and every item a shift that its reviews speak of."""
    rng = np.random.default_rng(seed)
    user, item = (grid.ravel() for grid in np.meshgrid(np.arange(USERS), np.arange(ITEMS), indexing="ij"))
    shift = np.where(item % 2 == 0, 0.7, -0.7)
    value = np.clip(3 + 0.8 * np.sin(user) + shift + 0.1 * rng.normal(size=len(user)), 1, 5)
    text = tuple(WORDS[int(np.sign(one))] + f" word{place % 7}" for place, one in enumerate(shift))
    time = np.arange(len(user), dtype=np.float64)
    return Ratings(user, item, value, time, text, np.arange(len(user)), USERS, ITEMS)


def data(seed: int = 0, world: Ratings | None = None) -> BaselineRatings:
    world = world or ratings()
    split = np.random.default_rng(seed).choice([TRAIN, VALID, TEST], size=len(world), p=[0.6, 0.2, 0.2])
    return BaselineRatings(world, RatingParts.of(split))


@pytest.mark.parametrize("name", [name for name in RATING_BASELINES if name not in ("offset", "nmf")])
def test_a_baseline_learns_what_it_can(name: str) -> None:
    world = data()
    truth = world.ratings.value[world.parts.test]
    baseline = RATING_BASELINES[name]
    found = tune_rating_baseline(RatingBaseline(baseline.fit, baseline.grid[:2]), world)
    alone = tune_rating_baseline(RATING_BASELINES["offset"], world)
    assert rmse(truth, found.predict(world.parts.test)) < 0.9 * rmse(truth, alone.predict(world.parts.test))


def test_the_newest_ratings_of_an_item_are_left() -> None:
    world = data()
    left = thinned(world.ratings, world.parts, 2)
    item = world.ratings.item
    for one in range(ITEMS):
        mine = world.parts.train[item[world.parts.train] == one]
        assert (
            left.train[item[left.train] == one].tolist() == sorted(mine, key=lambda row: world.ratings.time[row])[-2:]
        )
    assert left.test is world.parts.test
    assert thinned(world.ratings, world.parts, None) is world.parts
    assert not len(thinned(world.ratings, world.parts, 0).train)


def test_nmf_runs() -> None:
    world = data()
    found = tune_rating_baseline(RatingBaseline(RATING_BASELINES["nmf"].fit, ({"factors": 2},)), world)
    assert np.isfinite(found.predict(world.parts.test)).all()


@pytest.mark.parametrize("name", RATING_BASELINES)
def test_nothing_outside_training_reaches_a_baseline(name: str) -> None:
    """Other values and texts in validation and test change no prediction."""
    world = data()
    baseline = RATING_BASELINES[name]
    setting = baseline.grid[0]
    held = np.concatenate([world.parts.valid, world.parts.test])
    value, text = world.ratings.value.copy(), list(world.ratings.text)
    value[held] = 1.0
    for row in held:
        text[row] = "something else altogether"
    changed = Ratings(**{**vars(world.ratings), "value": value, "text": tuple(text)})
    other = BaselineRatings(changed, world.parts)
    np.testing.assert_allclose(
        baseline.fit(world, **setting)(held), baseline.fit(other, **setting)(held), rtol=0, atol=1e-9
    )


def test_the_setting_with_the_lowest_validation_error_is_kept() -> None:
    def fit(_: BaselineRatings, *, constant: float) -> Any:
        return lambda rows: np.full(len(rows), constant)

    steps: list[tuple[int, int]] = []
    baseline = RatingBaseline(fit, ({"constant": 1.0}, {"constant": 3.0}, {"constant": 5.0}))
    found = tune_rating_baseline(baseline, data(), lambda done, total: steps.append((done, total)))
    assert found.setting == {"constant": 3.0}
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_errors_are_of_predictions_on_the_scale() -> None:
    found = errors(np.array([5.0, 1.0]), np.array([7.0, 2.0]), "+F")
    assert found == {"rmse[+F]": pytest.approx(0.5**0.5), "mae[+F]": pytest.approx(0.5)}


def test_of_the_ratings_of_a_pair_the_newest_counts(tmp_path: Path) -> None:
    days = ("2026-01-02", "2026-01-01", None, "2026-01-03", "2026-01-03", None)
    users = ("ann", "ann", "ann", "bob", "bob", "cy")
    events = [
        {"user": user, "item": "strap", "type": "rating", "value": float(place % 5 + 1)}
        | ({"timestamp": f"{day}T00:00:00Z"} if day else {})
        for place, (user, day) in enumerate(zip(users, days, strict=True))
    ]
    events[3] |= {"type": "review", "text": "old words"}
    item = {"id": "strap", "title": None, "modalities": {}}
    write_dataset(tmp_path, [item], events, name="again", source="test", synthetic=True)
    found = Ratings.of(load_dataset(tmp_path))
    assert found.event.tolist() == [0, 4, 5]
    assert found.value.tolist() == [1, 5, 1]
    assert found.text == ("", "", "")
