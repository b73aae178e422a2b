"""What the queries of every subject share: how each runs as one transaction, and how values go to SQL and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from functools import wraps
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from sqlalchemy import BindParameter, Connection, bindparam, select

from service.adapters.sql.database import Database
from service.adapters.sql.tables import items
from service.domain import Vector

T = TypeVar("T")
P = ParamSpec("P")

CHUNK = 5_000  # values in one IN list; SQLite takes 32,766 parameters a statement, PostgreSQL 32,767
# Built once, as are all statements that run often: SQLAlchemy takes longer to build one, and to work out the key under
# which it has it compiled, than SQLite takes to run it.
CHOSEN: BindParameter[Any] = bindparam("chosen", expanding=True)  # values of one IN list
_ROWS = select(items.c.id, items.c.row_id).where(items.c.id.in_(CHOSEN))


class Queries:
    """The queries of one subject, as methods over a database.

    Attributes:
        database: for what copies tables as they are, such as backups.
        model: what is derived is read and written under this one, by its row in `models`; 0 is nobody's.
    """

    def __init__(self, database: Database, model: int = 0) -> None:
        self.database = database
        self.model = model


Q = TypeVar("Q", bound=Queries)
Query = Callable[Concatenate[Q, Connection, P], T]
Method = Callable[Concatenate[Q, P], Coroutine[Any, Any, T]]


def reads(query: Query[Q, P, T]) -> Method[Q, P, T]:
    """Make a method of a query: it runs on one consistent snapshot, off the event loop."""

    @wraps(query)
    async def method(self: Q, /, *args: P.args, **options: P.kwargs) -> T:
        return await self.database.read(lambda connection: query(self, connection, *args, **options))

    return method


def writes(query: Query[Q, P, T]) -> Method[Q, P, T]:
    """Make a method of a query: it runs alone among writers, off the event loop, and commits."""

    @wraps(query)
    async def method(self: Q, /, *args: P.args, **options: P.kwargs) -> T:
        return await self.database.write(lambda connection: query(self, connection, *args, **options))

    return method


def chunks(values: Iterable[T]) -> Iterator[list[T]]:
    """The values in lists that fit into one statement."""
    iterator = iter(values)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def pairs(result: Iterable[Sequence[Any]]) -> dict[Any, Any]:
    """The rows of a two-column result, as a mapping from the first column to the second."""
    return {row[0]: row[1] for row in result}


def item_rows(connection: Connection, item_ids: Collection[str]) -> dict[str, int]:
    """The internal rows of those of the items that exist."""
    rows: dict[str, int] = {}
    for chunk in chunks(item_ids):
        rows.update(pairs(connection.execute(_ROWS, {"chosen": chunk})))
    return rows


def to_bytes(vector: Vector) -> bytes:
    """A vector as it is stored: float32, little-endian."""
    return np.ascontiguousarray(vector, "<f4").tobytes()


def to_vector(data: bytes) -> Vector:
    """A vector that was stored."""
    return np.frombuffer(data, "<f4")
