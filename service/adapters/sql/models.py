"""The models that a database is served with, which of them is active, and who prepares another."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, or_, select, update

from service.adapters.sql.changes import log, newest_position
from service.adapters.sql.database import insert_new, upsert
from service.adapters.sql.queries import Queries, chunks, item_rows, reads, writes
from service.adapters.sql.regeneration import enqueue, later_rows
from service.adapters.sql.tables import (
    awaiting,
    feature_changes,
    feedback,
    generated_features,
    item_states,
    models,
    recoded_features,
    workers,
)
from service.domain import ModelState, ServedModel
from service.ports import Change, Committed, Departure, ServingWorker

LIVE = (ModelState.PREPARING, ModelState.READY, ModelState.ACTIVE)
_DERIVED = (item_states, recoded_features, generated_features, awaiting)
DROPPED = 5_000  # rows removed in one transaction


class ModelQueries(Queries):
    """Models by their row, and the processes that serve them."""

    @writes
    def register(self, connection: Connection, identity: str, version: str) -> int:
        """The row of a bundle, by its identity; a new one where it has none. Only a first start finds no other."""
        row = {
            "identity": identity,
            "version": version,
            "state": ModelState.KNOWN,
            "position": newest_position(connection),
            "progress": {},
            "forced": False,
            "updated_at": datetime.now(UTC),
        }
        connection.execute(insert_new(connection, models), [row])
        found = select(models.c.id).where(models.c.identity == identity)
        number: int = connection.execute(found).scalar_one()
        connection.execute(update(models).where(models.c.id == number).values(version=version))
        return number

    @reads
    def served_models(self, connection: Connection) -> list[ServedModel]:
        """All rows, in order of registration."""
        rows = connection.execute(select(models).order_by(models.c.id)).all()
        return [ServedModel(**{**row._mapping, "state": ModelState(row.state)}) for row in rows]

    @writes
    def set_model(self, connection: Connection, model: int, state: ModelState, values: Mapping[str, Any]) -> bool:
        """Change a model's state, and what else is given, unless it is the active one; False where it may not: another
        is being prepared."""
        if state is ModelState.PREPARING:
            under_way = models.c.state.in_((ModelState.PREPARING, ModelState.READY)) & (models.c.id != model)
            if connection.execute(select(models.c.id).where(under_way)).first() is not None:
                return False
        its = (models.c.id == model) & (models.c.state != ModelState.ACTIVE)
        changed = {"state": state, "updated_at": datetime.now(UTC), **values}
        connection.execute(update(models).where(its).values(**changed))
        return True

    @writes
    def note_progress(self, connection: Connection, model: int, worker: str, progress: Mapping[str, Any]) -> None:
        """Note how far the worker that prepares a model has come."""
        its = (models.c.id == model) & (models.c.worker == worker)
        connection.execute(update(models).where(its).values(progress=progress, updated_at=datetime.now(UTC)))

    @writes
    def lease(self, connection: Connection, model: int, worker: str, seconds: float) -> bool:
        """Be the worker that prepares a model, for some time, or go on being it; False where another one is."""
        now = datetime.now(UTC)
        free = or_(models.c.worker.is_(None), models.c.worker == worker, models.c.leased_until < now)
        under_way = models.c.state.in_((ModelState.PREPARING, ModelState.READY))
        taken = update(models).where(models.c.id == model, free, under_way)
        until = now + timedelta(seconds=seconds)
        return connection.execute(taken.values(worker=worker, leased_until=until)).rowcount == 1

    @writes
    def activate(self, connection: Connection, model: int, version: str) -> Committed[None]:
        """Make a model the active one, and the one that was `previous`; what was so before is known only."""
        now = datetime.now(UTC)
        others = models.c.id != model
        for before, after in (
            (ModelState.PREVIOUS, ModelState.KNOWN),
            (ModelState.ACTIVE, ModelState.PREVIOUS),
        ):
            its = others & (models.c.state == before)
            connection.execute(update(models).where(its).values(state=after, updated_at=now))
        values = {"state": ModelState.ACTIVE, "updated_at": now, "detail": None, "worker": None, "leased_until": None}
        connection.execute(update(models).where(models.c.id == model).values(**values))
        return Committed(None, log(connection, model, activated=[version]))

    @writes
    def drop_derived(self, connection: Connection, model: int) -> bool:
        """Remove some of what is kept under a model that neither serves nor is about to; whether there may be more."""
        state = connection.execute(select(models.c.state).where(models.c.id == model)).scalar_one_or_none()
        if state in (*LIVE, ModelState.PREVIOUS):
            return False
        connection.execute(delete(feature_changes).where(feature_changes.c.model == model))
        for table in _DERIVED:
            some = select(table.c.item_row).where(table.c.model == model).limit(DROPPED)
            rows = connection.execute(some).scalars().all()
            for chunk in chunks(set(rows)):
                connection.execute(delete(table).where(table.c.model == model, table.c.item_row.in_(chunk)))
            if rows:
                return True
        connection.execute(update(models).where(models.c.id == model).values(position=0))
        return False

    @writes
    def absorb(
        self, connection: Connection, entries: Sequence[Change], position: int, departed: Sequence[Departure] = ()
    ) -> bool:
        """Enqueue, under this model, what the entries of the change log up to a position say that was written under
        others, unless some worker has done so; whether anything was enqueued. `departed` are items that were deleted
        by these."""
        known = connection.execute(select(models.c.position).where(models.c.id == self.model)).scalar_one_or_none()
        if known is None or known >= position:
            return False
        fresh = [entry for entry in entries if known < entry.position <= position and entry.model != self.model]
        rows = _concerned(connection, fresh)
        enqueue(connection, self.model, rows, position)
        gone = [one for one in departed if one.position > known and one.before]
        for one in gone:  # more precisely than whoever deleted it could
            its = (feature_changes.c.model == self.model) & (feature_changes.c.position == one.position)
            connection.execute(update(feature_changes).where(its).values(before=one.before))
        connection.execute(update(models).where(models.c.id == self.model).values(position=position))
        return bool(rows or gone)

    @writes
    def start_over(self, connection: Connection, position: int) -> None:
        """Note that everything up to a position of the change log is about to be derived under this model."""
        connection.execute(update(models).where(models.c.id == self.model).values(position=position))

    @writes
    def beat(self, connection: Connection, worker: str, serving: int, ready: int) -> None:
        """Note that a worker is alive, what it serves, and what it could go over to."""
        upsert(connection, workers, {"id": worker, "serving": serving, "ready": ready, "at": datetime.now(UTC)})

    @writes
    def leave(self, connection: Connection, names: Collection[str]) -> None:
        """Forget workers that have ended."""
        connection.execute(delete(workers).where(workers.c.id.in_(names)))

    @reads
    def serving_workers(self, connection: Connection) -> list[ServingWorker]:
        """The workers that have ever said that they are alive and have not left, with how long ago that was."""
        now = datetime.now(UTC)
        return [
            ServingWorker(row.id, row.serving, row.ready, (now - row.at).total_seconds())
            for row in connection.execute(select(workers))
        ]


def other_models(connection: Connection, model: int) -> list[int]:
    """The models, but for one, that serve, are about to, or may again."""
    query = select(models.c.id).where(models.c.state.in_((*LIVE, ModelState.PREVIOUS)), models.c.id != model)
    return list(connection.execute(query).scalars())


def active_model(connection: Connection) -> int:
    """The row of the active model, 0 where there is none."""
    return connection.execute(select(models.c.id).where(models.c.state == ModelState.ACTIVE)).scalar_one_or_none() or 0


def _concerned(connection: Connection, entries: Sequence[Change]) -> list[int]:
    """Rows of the items whose derived state may be another by what these entries say."""
    items = {entry.key for entry in entries if entry.kind in ("item", "item-feedback")}
    rows = set(item_rows(connection, items).values())
    users = {entry.key for entry in entries if entry.kind == "feedback"}
    for chunk in chunks(users):
        rows.update(later_rows(connection, feedback.c.user_id.in_(chunk), feedback.c.item_row.in_(sorted(rows))))
    for chunk in chunks({entry.key for entry in entries if entry.kind == "feedback-deleted"}):
        met = select(feedback.c.item_row).where(feedback.c.user_id.in_(chunk)).distinct()
        rows.update(connection.execute(met).scalars())
    return sorted(rows)
