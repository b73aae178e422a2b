"""What a rating model makes of what it sees, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.lrmm.model import ITEM, USER
from tests.training.test_lrmm_task import CONFIG, QUICK, source, terminal
from tests.training.test_rating_baselines import ratings
from training.evaluate.observed import DRAWN, errors_by_amount, reconstructions, reviews_of
from training.lrmm.task import train_lrmm


def test_errors_stand_in_bins_that_double() -> None:
    reviews = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 8], [8, 9], [9, 0]], dtype=float)
    difference = np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    found = errors_by_amount(reviews, difference)
    assert [one["reviews"] for one in found["user"]] == ["0", "1", "2", "3-4", "5-8", "9-16"]
    assert [one["rows"] for one in found["user"]] == [1, 1, 1, 2, 2, 1]
    assert found["user"][3]["rmse"] == pytest.approx(((4**2 + 5**2) / 2) ** 0.5)
    assert found["item"][0] == {"reviews": "0", "rows": 1, "rmse": 8.0}
    assert sum(one["rows"] for one in found["item"]) == 8


def test_reviews_are_those_of_the_training_part() -> None:
    user, item = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 0])
    found = reviews_of(user, item, np.array([0, 1, 2]), np.array([3, 4]))
    assert found.tolist() == [[1, 1], [0, 2]]


def test_what_is_rebuilt_is_read_off_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train_lrmm(source(ratings()), CONFIG, QUICK, terminal=terminal())
    found = reconstructions(trained.serving, trained.test)
    assert set(found) == set(trained.serving.names)
    for places in found.values():
        assert 2 <= len(places["observed"]) == len(places["rebuilt"]) <= DRAWN
    monkeypatch.setattr("training.evaluate.observed.plane", lambda rows: rows[:, :2])
    before = reconstructions(trained.serving, trained.test)
    trained.test.embeddings[USER][:] += 7.0
    after = reconstructions(trained.serving, trained.test)
    assert after[USER]["observed"] != before[USER]["observed"]
    assert after[USER]["rebuilt"] == before[USER]["rebuilt"]
    assert after[ITEM]["rebuilt"] != before[ITEM]["rebuilt"]
