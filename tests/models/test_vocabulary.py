"""Vocabularies: ids and rows name each other, in order of insertion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.vocabulary import Vocabulary


@given(st.lists(st.text(), unique=True))
def test_rows_and_ids_name_each_other(ids: list[str]) -> None:
    vocabulary = Vocabulary(ids)
    assert [vocabulary.row(key) for key in ids] == list(range(len(ids)))
    assert [vocabulary.id(row) for row in range(len(ids))] == ids == vocabulary.ids == list(vocabulary)


def test_add_appends_what_is_new() -> None:
    vocabulary = Vocabulary(["a"])
    assert [vocabulary.add("b"), vocabulary.add("a"), vocabulary.add("b")] == [1, 0, 1]
    assert vocabulary.ids == ["a", "b"]
    assert len(vocabulary) == 2


def test_unknown_id() -> None:
    vocabulary = Vocabulary(["a"])
    assert vocabulary.get("b") is None
    assert "b" not in vocabulary
    assert "a" in vocabulary
    with pytest.raises(KeyError):
        vocabulary.row("b")


@pytest.mark.parametrize("row", [-1, 1])
def test_unknown_row(row: int) -> None:
    with pytest.raises(IndexError):
        Vocabulary(["a"]).id(row)


def test_repeated_ids_refused() -> None:
    with pytest.raises(ValueError, match="unique"):
        Vocabulary(["a", "b", "a"])


def test_ids_are_a_copy() -> None:
    vocabulary = Vocabulary(["a"])
    vocabulary.ids.append("b")
    assert vocabulary.ids == ["a"]


def test_equality_is_of_ids_in_order() -> None:
    assert Vocabulary("ab") == Vocabulary(["a", "b"])
    assert Vocabulary("ab") != Vocabulary("ba")
    assert Vocabulary("ab") != ["a", "b"]
    with pytest.raises(TypeError):
        hash(Vocabulary())
