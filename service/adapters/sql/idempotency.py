"""Idempotency keys, and the answers that requests with them got."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection, delete, func, or_, select, update

from service.adapters.sql.database import upsert
from service.adapters.sql.queries import Queries, chunks, writes
from service.adapters.sql.tables import idempotency
from service.ports import Answer, Claim, Keep

T = TypeVar("T")

# Answers that are kept for one sender. Every `LOOK` claims the oldest beyond are forgotten, down to `LEFT` of that.
MOST_ANSWERS, MOST_BYTES = 10_000, 64 << 20
LOOK, LEFT = 20, 0.9


class IdempotencyQueries(Queries):
    """Keys that requests claim, and either answer or release: a sender's name, a colon, and what was sent."""

    _claims = 0

    @writes
    def claim(self, connection: Connection, key: str, fingerprint: str, *, lease_s: float) -> Claim:
        """Take a key, or say what became of it."""
        now = datetime.now(UTC)
        row = connection.execute(select(idempotency).where(idempotency.c.key == key)).one_or_none()
        if row is not None:
            if row.fingerprint != fingerprint:
                return "other"
            if row.status is not None:
                return Answer(row.status, bytes(row.body))
            if row.at > now - timedelta(seconds=lease_s):
                return "busy"
        self._claims += 1
        if self._claims % LOOK == 0:
            _evict(connection, key.partition(":")[0], now - timedelta(seconds=lease_s))
        upsert(connection, idempotency, {"key": key, "fingerprint": fingerprint, "at": now})
        return "mine"

    @writes
    def answered(self, connection: Connection, key: str, answer: Answer) -> None:
        """Note what the request of a key was answered."""
        _set_answer(connection, key, answer)

    @writes
    def release(self, connection: Connection, key: str) -> None:
        """Give a key back, unless its write was done."""
        connection.execute(delete(idempotency).where(idempotency.c.key == key, idempotency.c.status.is_(None)))


def keep_answer(connection: Connection, keep: Keep[T] | None, outcome: T) -> None:
    """Keep the answer of a write in the write's own transaction."""
    answer = keep.answer(outcome) if keep is not None else None
    if keep is not None and answer is not None:
        _set_answer(connection, keep.key, answer)


def trim_keys(connection: Connection, before: datetime) -> None:
    """Forget keys older than a moment."""
    connection.execute(delete(idempotency).where(idempotency.c.at < before))


def _evict(connection: Connection, sender: str, dead: datetime) -> None:
    """Forget a sender's oldest answers where they are too many or too large, and requests that died before `dead`."""
    size = func.coalesce(func.length(idempotency.c.body), 0)
    own = (idempotency.c.key >= f"{sender}:") & (idempotency.c.key < f"{sender};")  # ";" follows ":"
    count, total = connection.execute(select(func.count(), func.coalesce(func.sum(size), 0)).where(own)).one()
    if count <= MOST_ANSWERS and total <= MOST_BYTES:
        return
    is_done = or_(idempotency.c.status.is_not(None), idempotency.c.at < dead)
    oldest = connection.execute(select(idempotency.c.key, size).where(own, is_done).order_by(idempotency.c.at)).all()
    beyond = []
    for key, length in oldest:
        if count <= LEFT * MOST_ANSWERS and total <= LEFT * MOST_BYTES:
            break
        beyond.append(key)
        count, total = count - 1, total - length
    for keys in chunks(beyond):
        connection.execute(delete(idempotency).where(idempotency.c.key.in_(keys)))


def _set_answer(connection: Connection, key: str, answer: Answer) -> None:
    values = {"status": answer.status, "body": answer.body}
    connection.execute(update(idempotency).where(idempotency.c.key == key).values(values))
