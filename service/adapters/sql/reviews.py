"""Reviews and their vectors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, case, delete, func, insert, null, or_, select

from service.adapters.sql.queries import Queries, chunks, reads, to_bytes, to_vector, writes
from service.adapters.sql.tables import feedback, items, review_vectors
from service.domain import Review, Vector
from service.ports import Side

_RATED = ("rating", "review")


class ReviewQueries(Queries):
    """Ratings and reviews as documents of users and items, and what an encoder encoded of their texts."""

    @reads
    def documents(
        self, connection: Connection, side: Side, keys: Collection[str], *, encoder: str, limit: int
    ) -> dict[str, list[Review]]:
        """The newest ratings and reviews by user or by item, newest first."""
        reviews: dict[str, list[Review]] = {}
        for chunk in chunks(keys):
            for row, user, item, value, text, words, vector in connection.execute(
                _newest(side, chunk, encoder=encoder, limit=limit)
            ):
                review = Review(row, user, item, value, text, words or 0, None if vector is None else to_vector(vector))
                reviews.setdefault(user if side == "user" else item, []).append(review)
        return reviews

    @writes
    def save_review_vectors(
        self, connection: Connection, encoder: str, vectors: Sequence[tuple[int, int, Vector]]
    ) -> None:
        """Replace the vectors of those of the reviews that still exist."""
        for chunk in chunks(vectors):
            rows = [row for row, _, _ in chunk]
            stored = set(connection.execute(select(feedback.c.id).where(feedback.c.id.in_(rows))).scalars())
            connection.execute(delete(review_vectors).where(review_vectors.c.feedback_id.in_(rows)))
            encoded = [
                {"feedback_id": row, "encoder": encoder, "words": words, "vector": to_bytes(vector)}
                for row, words, vector in chunk
                if row in stored
            ]
            if encoded:
                connection.execute(insert(review_vectors), encoded)


def _newest(side: Side, keys: Collection[str], *, encoder: str, limit: int) -> Select[Any]:
    """The newest ratings and reviews of each key: their columns, words and vector by the encoder, text without one."""
    key = feedback.c.user_id if side == "user" else items.c.id
    newest_first = (feedback.c.timestamp.desc(), feedback.c.id.desc())
    place = func.row_number().over(partition_by=key, order_by=newest_first).label("place")
    has_content = or_(feedback.c.value.is_not(None), feedback.c.text.is_not(None))
    columns = (feedback.c.id, feedback.c.user_id, items.c.id.label("item"), feedback.c.value, feedback.c.text, place)
    ranked = (
        select(*columns)
        .join(items, items.c.row_id == feedback.c.item_row)
        .where(key.in_(keys), feedback.c.type.in_(_RATED), has_content)
        .subquery()
    )
    vectors = review_vectors.c
    encoded = and_(vectors.feedback_id == ranked.c.id, vectors.encoder == encoder)
    text = case((vectors.vector.is_(None), ranked.c.text), else_=null())
    return (
        select(ranked.c.id, ranked.c.user_id, ranked.c.item, ranked.c.value, text, vectors.words, vectors.vector)
        .outerjoin(review_vectors, encoded)
        .where(ranked.c.place <= limit)
        .order_by(ranked.c.place)
    )
