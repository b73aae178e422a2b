"""Deletion and insertion curves: a true explanation passes, a false one does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.iris.serving import Explained, IRISServing
from tests.training.test_iris_paper import drawn
from tests.training.test_iris_task import source
from tests.training.test_iris_task import world as world  # a fixture
from training.datasets import Dataset
from training.evaluate import faithfulness as evaluated
from training.evaluate.faithfulness import ORDERS, STEPS, faithfulness
from training.iris.source import TopNSource


@pytest.fixture(autouse=True)
def fewer_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluated, "USERS", 40)


@pytest.fixture(scope="module")
def served(world: Dataset) -> tuple[IRISServing, TopNSource]:
    one = source(world)
    return IRISServing(drawn(one), world.items), one


def test_curves_end_where_they_must(served: tuple[IRISServing, TopNSource]) -> None:
    serving, one = served
    found = faithfulness(serving, one, one.held_out.test, 1)
    for measure in ("score", "hr@10"):
        for order in ORDERS:
            deleted, inserted = (found.curves[f"{way} {measure}[{order}]"] for way in ("deletion", "insertion"))
            assert len(deleted) == len(inserted) == STEPS + 1
            assert deleted[0] == pytest.approx(inserted[-1], abs=1e-4)  # all of the history
            assert deleted[-1] == pytest.approx(inserted[0], abs=1e-4)  # nothing of it
            area = sum(deleted) - (deleted[0] + deleted[-1]) / 2
            assert found.metrics[f"deletion {measure}[{order}]"] == pytest.approx(area / STEPS, abs=1e-4)
    assert found.curves["deletion score[relevance]"][-1] == 0  # the paper's form has no item bias


def test_relevances_are_ahead_of_orders_that_know_less(served: tuple[IRISServing, TopNSource]) -> None:
    serving, one = served
    found = faithfulness(serving, one, one.held_out.test, 1).metrics
    for order in ("content", "random"):
        assert found["deletion score[relevance]"] < found[f"deletion score[{order}]"]
        assert found["insertion score[relevance]"] > found[f"insertion score[{order}]"]
    assert found["faithful"] > 0.9
    assert found["fall ratio"] > 1


def test_a_false_explanation_is_found_out(
    served: tuple[IRISServing, TopNSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relevances that are numbers of another pair's are no better than the random order."""
    serving, one = served
    explain, rng = IRISServing.explain, np.random.default_rng(0)

    def shuffled(self: IRISServing, *args: Any, **options: Any) -> Explained:
        found = explain(self, *args, **options)
        order = rng.permutation(found.relevance.shape[1])
        return Explained(
            found.score, found.interest, found.relevance[:, order], found.effects[:, order], found.shares[:, order]
        )

    true = faithfulness(serving, one, one.held_out.test, 1).metrics
    monkeypatch.setattr(IRISServing, "explain", shuffled)
    false = faithfulness(serving, one, one.held_out.test, 1).metrics
    gain = true["deletion score[random]"] - true["deletion score[relevance]"]
    assert abs(false["deletion score[random]"] - false["deletion score[relevance]"]) < 0.3 * gain
    assert false["faithful"] < 0.7


def test_nobody_with_a_history(served: tuple[IRISServing, TopNSource]) -> None:
    serving, one = served
    nobody = one.held_out.test
    none = type(nobody)(nobody.users[:0], nobody.items[:0], nobody.counted[:0])
    assert faithfulness(serving, one, none, 1).metrics == {}
