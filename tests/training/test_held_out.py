"""Leave-one-out splits: what is held out is nowhere else, and copies of it do not count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import EACH, ITEMS, USERS, events, vector_records, write_vectors
from training.datasets import Dataset, load_dataset, write_dataset
from training.datasets.base import DatasetError, LeaveOneOut
from training.datasets.published import Published
from training.held_out import (
    HeldOut,
    LeaveOneOutError,
    Trials,
    measured,
    possible_negatives,
    published_held_out,
    random_held_out,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_vectors(tmp_path_factory.mktemp("held") / "data")


def published(folder: Path, *, valid: bool) -> Dataset:
    first = [f"item-{next(one['item'] for one in events() if one['user'] == f'user-{user}')[5:]}" for user in range(2)]
    met = {user: {one["item"] for one in events() if one["user"] == user} for user in ("user-0", "user-1")}
    others = [[f"item-{row}" for row in range(ITEMS) if f"item-{row}" not in met[user]][:5] for user in met]
    test = np.array([[held, *free] for held, free in zip(first, others, strict=True)])
    test[0, 3] = test[0, 0]  # a copy of what is held out
    again = [[one["item"] for one in events() if one["user"] == user][1] for user in met]
    split = LeaveOneOut(
        np.array(["user-0", "user-1"]),
        test,
        np.array([[held, *free] for held, free in zip(again, others, strict=True)]) if valid else None,
    )
    write_dataset(
        folder, vector_records(), events(), name="t", source="test", published=Published(leave_one_out={"fixed": split})
    )
    return load_dataset(folder)


def keys(held_out: HeldOut) -> list[set[tuple[int, int]]]:
    parts = held_out.train, held_out.valid.pairs, held_out.test.pairs
    return [set(map(tuple, part.tolist())) for part in parts]


def test_random_splits_hold_out_one_of_each_user(world: Dataset) -> None:
    held_out = random_held_out(world, 1, negatives=20)
    train, valid, test = keys(held_out)
    assert train | valid | test == set(map(tuple, world.pairs().tolist()))
    assert len(train) + len(valid) + len(test) == USERS * EACH
    assert len(valid) == len(test) == USERS
    met = set(map(tuple, world.pairs().tolist()))
    for trials in (held_out.valid, held_out.test):
        assert trials.items.shape == (USERS, 21)
        for user, row in zip(trials.users, trials.items, strict=True):
            assert len(set(row.tolist())) == 21
            assert not any((user, item) in met for item in row[1:])
    other = random_held_out(world, 2, negatives=20)
    assert keys(other)[2] != test
    assert keys(random_held_out(world, 1, negatives=20))[2] == test


def test_too_little_to_hold_out(world: Dataset, tmp_path: Path) -> None:
    with pytest.raises(LeaveOneOutError, match="leave-one-out needs 60 negatives a user"):
        random_held_out(world, 1, negatives=60)
    assert possible_negatives(world) == ITEMS - EACH
    few = [one for one in events() if one["user"] == "user-0"][:2]
    write_dataset(tmp_path / "few", vector_records(), few, name="few", source="test")
    with pytest.raises(LeaveOneOutError, match="no user with three items"):
        random_held_out(load_dataset(tmp_path / "few"), 1)
    every = [{"user": "u", "item": f"item-{row}", "type": "view"} for row in range(ITEMS)]
    write_dataset(tmp_path / "all", vector_records(), every, name="all", source="test")
    with pytest.raises(LeaveOneOutError, match="a user who has interacted with every item"):
        possible_negatives(load_dataset(tmp_path / "all"))


@pytest.mark.parametrize("valid", [True, False])
def test_published_splits(tmp_path: Path, valid: bool) -> None:
    dataset = published(tmp_path / "data", valid=valid)
    held_out = published_held_out(dataset, "fixed", seed=3, negatives=5)
    train, validating, test = keys(held_out)
    assert len(test) == 2
    assert len(validating) == (2 if valid else USERS)
    assert not train & (validating | test)
    assert train | validating | test == set(map(tuple, dataset.pairs().tolist()))
    assert held_out.test.counted.tolist()[0] == [True, True, True, False, True, True]
    assert held_out.test.counted[1].all()
    with pytest.raises(LeaveOneOutError, match=r"no leave-one-out split 'other' \(it has: fixed\)"):
        published_held_out(dataset, "other", seed=0)


def test_bad_published_splits(tmp_path: Path) -> None:
    def write(name: str, split: LeaveOneOut) -> Path:
        write_dataset(
            tmp_path / name,
            vector_records(),
            events(),
            name="t",
            source="test",
            published=Published(leave_one_out={"fixed": split}),
        )
        return tmp_path / name

    met = next(one["item"] for one in events() if one["user"] == "user-0")
    free = "item-0" if met != "item-0" else "item-1"
    for name, user, items, message in (
        ("user", "nobody", [met, free], r"the leave-one-out split 'fixed' names the user 'nobody'"),
        ("item", "user-0", [met, "nothing"], r"the leave-one-out split 'fixed' names the item 'nothing'"),
        (
            "pair",
            "user-0",
            [free, met],
            r"the leave-one-out split 'fixed' holds out a pair that is not in feedback.jsonl",
        ),
    ):
        with pytest.raises(DatasetError, match=message):
            write(name, LeaveOneOut(np.array([user]), np.array([items])))
    folder = write("good", LeaveOneOut(np.array(["user-0"]), np.array([[met, free]])))
    np.savez(folder / "leave_one_out_fixed.npz", users=["nobody"], test=[[met, free]])
    with pytest.raises(DatasetError, match=r"leave_one_out_fixed.npz names the user 'nobody'"):
        load_dataset(folder)
    with pytest.raises(DatasetError, match=r"2 users cannot have candidates of shape \[1, 2\]"):
        LeaveOneOut(np.array(["a", "b"]), np.array([["x", "y"]]))


def test_measures_are_read_off_the_rank() -> None:
    users = np.arange(4)
    items = np.tile(np.arange(30), (4, 1))
    items[3, 29] = items[3, 0]  # a copy among the negatives, with the same score
    above = np.array([0, 9, 10, 2])

    def scores(some: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        table = np.zeros(wanted.shape)
        for row, user in enumerate(some):
            table[row] = np.where(np.arange(30) <= above[user], 1.0, -1.0)
            table[row, 0] = 0.0
            table[row, wanted[row] == wanted[row, 0]] = 0.0
        return table

    found = measured(scores, Trials.of(users, items), cuts=(10,))
    assert found["hr@10"] == pytest.approx(3 / 4)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / np.log2(11) + 1 / np.log2(4)) / 4)
    constant = measured(lambda _, wanted: np.zeros(wanted.shape), Trials.of(users[:1], items[:1]), cuts=(10,))
    assert constant["hr@10"] == pytest.approx(10 / 30)
