"""Reviews and their vectors on either database."""

from __future__ import annotations

import numpy as np
import sqlalchemy as sa

from service.adapters.sql.store import SqlStore
from service.adapters.sql.tables import review_vectors
from tests.contracts.stores import create, event, item, vector


async def test_documents_are_newest_first_and_hold_what_tells(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    await store.add_feedback(
        [
            event("u1", "a", minute=1, type="review", text="old words", value=4.0),
            event("u1", "b", minute=3, type="rating", value=2.0),
            event("u1", "b", minute=2, type="review", text="no stars"),
            event("u1", "a", minute=5, type="review"),  # says nothing
            event("u1", "a", minute=6, type="purchase", value=1.0),
            event("u2", "a", minute=7, type="rating", value=5.0),
        ]
    )
    of_users = await store.documents("user", ["u1", "u2", "nobody"], encoder="e", limit=10)
    assert set(of_users) == {"u1", "u2"}
    assert [(one.item, one.value, one.text) for one in of_users["u1"]] == [
        ("b", 2.0, None),
        ("b", None, "no stars"),
        ("a", 4.0, "old words"),
    ]
    of_items = await store.documents("item", ["a", "b"], encoder="e", limit=1)
    assert [(one.user, one.value) for one in of_items["a"]] == [("u2", 5.0)]
    assert [one.user for one in of_items["b"]] == ["u1"]
    assert await store.documents("item", [], encoder="e", limit=1) == {}


async def test_a_review_is_encoded_once_by_each_encoder(store: SqlStore) -> None:
    await store.write_items(create(item("a")))
    await store.add_feedback([event("u1", "a", type="review", text="words", value=4.0)])
    (review,) = (await store.documents("user", ["u1"], encoder="e", limit=5))["u1"]
    assert (review.text, review.vector) == ("words", None)
    await store.save_review_vectors("e", [(review.row, 1, vector(1)), (review.row + 99, 1, vector(2))])
    (kept,) = (await store.documents("item", ["a"], encoder="e", limit=5))["a"]
    assert (kept.text, kept.words) == (None, 1)
    assert kept.vector is not None
    np.testing.assert_array_equal(kept.vector, vector(1))
    (other,) = (await store.documents("item", ["a"], encoder="another", limit=5))["a"]
    assert (other.text, other.vector) == ("words", None)
    await store.save_review_vectors("another", [(review.row, 2, vector(3))])
    (again,) = (await store.documents("user", ["u1"], encoder="e", limit=5))["u1"]
    assert again.vector is None  # one at a time: an older bundle's vectors are made again


async def test_vectors_go_with_their_reviews(store: SqlStore) -> None:
    await store.write_items(create(item("a"), item("b")))
    reviews = [
        event(user, key, type="review", text="words", value=4.0) for user in ("u1", "u2", "u3") for key in ("a", "b")
    ]
    await store.add_feedback(reviews)
    rows = [
        one.row
        for document in (await store.documents("item", ["a", "b"], encoder="e", limit=9)).values()
        for one in document
    ]
    await store.save_review_vectors("e", [(row, 1, vector(row)) for row in rows])
    assert await count(store) == 6
    await store.delete_user("u1")
    assert await count(store) == 4
    await store.delete_feedback(user="u2", item="a")
    assert await count(store) == 3
    await store.delete_item("b")
    assert await count(store) == 1


async def count(store: SqlStore) -> int:
    query = sa.select(sa.func.count()).select_from(review_vectors)
    return await store.database.read(lambda connection: connection.execute(query).scalar_one())
