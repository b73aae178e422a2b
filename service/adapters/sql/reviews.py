"""Reviews and their vectors: queries of the SQL store."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from sqlalchemy import Connection, and_, case, delete, func, insert, null, or_, select

from service.adapters.sql.items import chunks
from service.adapters.sql.tables import feedback, items, review_vectors
from service.domain import Review, Vector
from service.ports import Side

_RATED = ("rating", "review")


def documents(
    connection: Connection, side: Side, keys: Collection[str], encoder: str, limit: int
) -> dict[str, list[Review]]:
    """The newest ratings and reviews by user or item, newest first."""
    key = feedback.c.user_id if side == "user" else items.c.id
    newest = (feedback.c.timestamp.desc(), feedback.c.id.desc())
    found: dict[str, list[Review]] = {}
    for chunk in chunks(keys):
        place = func.row_number().over(partition_by=key, order_by=newest).label("place")
        telling = or_(feedback.c.value.is_not(None), feedback.c.text.is_not(None))
        one = (
            select(
                feedback.c.id, feedback.c.user_id, items.c.id.label("item"), feedback.c.value, feedback.c.text, place
            )
            .join(items, items.c.row_id == feedback.c.item_row)
            .where(key.in_(chunk), feedback.c.type.in_(_RATED), telling)
            .subquery()
        )
        vectors = review_vectors.c
        made = and_(vectors.feedback_id == one.c.id, vectors.encoder == encoder)
        text = case((vectors.vector.is_(None), one.c.text), else_=null())
        query = (
            select(one.c.id, one.c.user_id, one.c.item, one.c.value, text, vectors.words, vectors.vector)
            .outerjoin(review_vectors, made)
            .where(one.c.place <= limit)
            .order_by(one.c.place)
        )
        for row, user, item, value, words_left, words, vector in connection.execute(query):
            review = Review(row, user, item, value, words_left, words or 0, _to_vector(vector))
            found.setdefault(user if side == "user" else item, []).append(review)
    return found


def save_vectors(connection: Connection, encoder: str, vectors: Sequence[tuple[int, int, Vector]]) -> None:
    """Replace the vectors of those of the reviews that still exist."""
    for chunk in chunks(vectors):
        rows = [row for row, _, _ in chunk]
        there = set(connection.execute(select(feedback.c.id).where(feedback.c.id.in_(rows))).scalars())
        connection.execute(delete(review_vectors).where(review_vectors.c.feedback_id.in_(rows)))
        made = [
            {"feedback_id": row, "encoder": encoder, "words": words, "vector": vector.astype("<f4").tobytes()}
            for row, words, vector in chunk
            if row in there
        ]
        if made:
            connection.execute(insert(review_vectors), made)


def _to_vector(data: bytes | None) -> Vector | None:
    return None if data is None else np.frombuffer(data, "<f4")
