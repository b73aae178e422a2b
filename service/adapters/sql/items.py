"""Items, their features and their files."""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Insert,
    Row,
    Table,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from service.adapters.sql.changes import log, newest_position
from service.adapters.sql.cursors import decode_cursor, encode_cursor
from service.adapters.sql.database import insert_new
from service.adapters.sql.idempotency import keep_answer
from service.adapters.sql.imputation import add_pairs
from service.adapters.sql.models import other_models
from service.adapters.sql.queries import CHOSEN, Queries, chunks, item_rows, pairs, reads, to_bytes, to_vector, writes
from service.adapters.sql.regeneration import (
    dequeue_rows,
    enqueue,
    later_rows,
    note_changes,
    others_changed,
    pending_items,
)
from service.adapters.sql.tables import (
    awaiting,
    changes,
    features,
    feedback,
    generated_features,
    imputation_errors,
    item_categories,
    item_states,
    items,
    recoded_features,
)
from service.adapters.sql.tables import media as media_table
from service.domain import Generated, Observed, Page, Remark, StoredItem
from service.ports import UNKNOWN, Committed, GeneratedWrite, ItemWrite, Keep, Media, Stored, WriteResult

T = TypeVar("T")

CURSOR = "item"
ITEM_KINDS = ("item", "item-generated", "item-feedback", "item-deleted")

# Built once, see `queries`.
_STORED_VERSIONS = select(items.c.id, items.c.row_id, items.c.version).where(
    items.c.id.in_(bindparam("ids", expanding=True))
)
_ADD_ITEMS = insert(items).returning(items.c.id, items.c.row_id)
_ADD_CATEGORIES, _ADD_FEATURES, _ADD_GENERATED = insert(item_categories), insert(features), insert(generated_features)
_ADD_STATES, _ADD_RECODED = insert(item_states), insert(recoded_features)
_ITEMS = select(items).where(items.c.id.in_(CHOSEN))
_FEATURES = select(features).where(features.c.item_row.in_(CHOSEN))
_OF_MODEL = {
    table: select(table).where(table.c.item_row.in_(CHOSEN), table.c.model == bindparam("own"))
    for table in (recoded_features, generated_features, item_states, awaiting)
}
_MEDIA = select(features.c.media).where(features.c.item_row.in_(CHOSEN), features.c.media.is_not(None))
_UPDATE = update(items).where(items.c.row_id == bindparam("stored_row"))
_DROP_GIVEN = [
    delete(table).where(table.c.item_row.in_(CHOSEN)) for table in (item_categories, features, recoded_features)
]
_DROP_MADE = [
    delete(table).where(table.c.item_row.in_(CHOSEN), table.c.model == bindparam("own"))
    for table in (item_states, generated_features)
]
_NEWEST_CHANGES = (
    select(changes.c.key, func.max(changes.c.position))
    .where(changes.c.kind.in_(("item-feedback", "item-generated")), changes.c.key.in_(CHOSEN))
    .group_by(changes.c.key)
)


class ItemQueries(Queries):
    """Items, whole, with their observed and generated features and their files."""

    @writes
    def write_items(
        self,
        connection: Connection,
        writes: Sequence[ItemWrite],
        media: Sequence[Media] = (),
        keep: Keep[Stored] | None = None,
    ) -> Committed[Stored]:
        """Decide each write in order against what is stored and what came before it; store the last version of each."""
        rows, versions = _stored_versions(connection, {write.item.id for write in writes})
        accepted: dict[str, StoredItem] = {}
        results: list[WriteResult] = []
        for write in writes:
            result = _outcome(write, versions.get(write.item.id, 0))
            if result in ("created", "replaced"):
                accepted[write.item.id] = write.item
                versions[write.item.id] = write.item.version
            results.append(result)
        if not accepted:
            return Committed(Stored(results, {}))
        numbered = _store(connection, self.model, accepted, rows, media)
        stored = Stored(results, numbered, _enqueue_outdated(connection, self.model, writes, numbered))
        keep_answer(connection, keep, stored)
        add_pairs(
            connection, {write.item.id: write.pairs for write in writes if accepted.get(write.item.id) is write.item}
        )
        positions = log(connection, self.model, item=accepted)
        former = {write.item.id: write.before for write in writes if write.before is not None}
        note_changes(
            connection,
            self.model,
            {at: (item, former[item]) for at, item in zip(positions, accepted, strict=True) if item in former},
        )
        return Committed(stored, positions)

    @writes
    def save_generated(self, connection: Connection, saves: Sequence[GeneratedWrite]) -> Committed[list[bool]]:
        """Replace generated features and derived state of the items that still have the expected version."""
        rows, versions = _stored_versions(connection, {save.item_id for save in saves})
        waiting = pending_items(connection, self.model, [save.item_id for save in saves], len(saves))
        current = [
            versions.get(save.item_id) == save.version and (save.queued_at is None or save.item_id in waiting)
            for save in saves
        ]
        kept = [save for save, valid in zip(saves, current, strict=True) if valid]
        if not kept:
            return Committed(current)
        _save_states(connection, self.model, {rows[save.item_id]: save for save in kept})
        done = {rows[save.item_id]: save.queued_at for save in kept if save.queued_at is not None}
        if done and not any(
            others_changed(connection, self.model, seen) for seen in {save.seen for save in kept if save.seen}
        ):
            dequeue_rows(connection, self.model, done)
        positions = log(connection, self.model, item_generated=[save.item_id for save in kept])
        former = {
            at: (save.item_id, save.before) for at, save in zip(positions, kept, strict=True) if save.before is not None
        }
        note_changes(connection, self.model, former)
        return Committed(current, positions)

    @writes
    def delete_item(self, connection: Connection, item_id: str, before: bytes = b"") -> Committed[bool]:
        """Erase an item and all that hangs on it, but for one `item-deleted` entry with its row, by which other workers
        forget."""
        rows = item_rows(connection, [item_id])
        if not rows:
            return Committed(False)
        held = _media_of(connection, rows.values())
        later = later_rows(connection, feedback.c.item_row == rows[item_id])
        others = other_models(connection, self.model)
        former = _former(connection, rows[item_id], others)
        connection.execute(delete(items).where(items.c.row_id == rows[item_id]))
        _drop_unreferenced(connection, held)
        connection.execute(delete(imputation_errors).where(imputation_errors.c.item == item_id))
        connection.execute(delete(changes).where(changes.c.key == item_id, changes.c.kind.in_(ITEM_KINDS)))
        positions = log(connection, self.model, item_deleted=[str(rows[item_id])])
        left = [row for row in later if row != rows[item_id]]
        former |= {self.model: before} if before else {}
        for model in (self.model, *others):  # whom the log cannot tell of what is no more
            enqueue(connection, model, left, positions.start)
            if model in former:
                note_changes(connection, model, {positions.start: (item_id, former[model])})
        return Committed(True, positions)

    async def get_item(self, item_id: str) -> StoredItem | None:
        """One item, whole."""
        return (await self.get_items([item_id])).get(item_id)

    @reads
    def get_items(self, connection: Connection, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        """Those of the items that exist, whole."""
        stored = [
            item
            for chunk in chunks(dict.fromkeys(item_ids))
            for item in _assemble(connection, self.model, connection.execute(_ITEMS, {"chosen": chunk}).all())
        ]
        return {item.id: item for item in stored}

    @reads
    def existing(self, connection: Connection, item_ids: Collection[str]) -> set[str]:
        """Those of the items that exist."""
        return set(item_rows(connection, item_ids))

    async def iter_items(self, *, batch: int = 1000) -> AsyncIterator[list[StoredItem]]:
        """All items, whole, in order of creation, in batches."""
        row = 0
        while True:
            stored, row = await self.database.read(partial(items_after, row=row, limit=batch, model=self.model))
            if not stored:
                return
            yield stored

    @reads
    def list_items(
        self,
        connection: Connection,
        *,
        limit: int,
        cursor: str | None = None,
        categories: Sequence[str] = (),
        missing: str | None = None,
        generated: bool | None = None,
        q: str | None = None,
    ) -> Page[StoredItem]:
        """A page of items in order of id."""
        query = select(items).order_by(items.c.id).limit(limit + 1)
        if cursor is not None:
            query = query.where(items.c.id > decode_cursor(cursor, CURSOR, 1)[0])
        for category in categories:
            member = item_categories.c.item_row == items.c.row_id
            query = query.where(exists().where(member, item_categories.c.category == category))
        if missing is not None:
            part = features.c.item_row == items.c.row_id
            unread = (recoded_features.c.item_row == items.c.row_id) & (recoded_features.c.model == self.model)
            unread &= (recoded_features.c.modality == missing) & (recoded_features.c.vector == b"")
            has = exists().where(part, features.c.modality == missing) & ~exists().where(unread)
            query = query.where(~has)
        if generated is not None:
            its = exists().where(generated_features.c.item_row == items.c.row_id)
            its = its.where(generated_features.c.model == self.model)
            its = its if missing is None else its.where(generated_features.c.modality == missing)
            query = query.where(its if generated else ~its)
        if q:
            query = query.where(_position(connection, folded(q)) > 0)
        rows = connection.execute(query).all()
        page = _assemble(connection, self.model, rows[:limit])
        return Page(page, encode_cursor(CURSOR, page[-1].id) if len(rows) > limit and page else None)

    @reads
    def get_media(self, connection: Connection, sha256: str) -> Media | None:
        """A stored file."""
        return stored_media(connection, sha256)

    @reads
    def count_items(self, connection: Connection) -> int:
        """Number of items."""
        return connection.execute(select(func.count()).select_from(items)).scalar_one()


# --- writing -----------------------------------------------------------------------------------------------------


def _enqueue_outdated(
    connection: Connection, model: int, writes: Sequence[ItemWrite], rows: Mapping[str, int]
) -> list[str]:
    """Enqueue those of the written items for which the change log has more than their writer had seen."""
    seen = {write.item.id: write.seen for write in writes if write.seen is not None and write.item.id in rows}
    outdated = {}
    for chunk in chunks(seen):
        for item_id, position in connection.execute(_NEWEST_CHANGES, {"chosen": chunk}):
            if position > seen[item_id].position:
                outdated[item_id] = position
    for what in set(seen.values()):
        if others_changed(connection, model, what, but=seen.keys()):
            position = newest_position(connection)
            outdated |= {item_id: position for item_id, its in seen.items() if its == what}
    for item_id, position in outdated.items():
        enqueue(connection, model, [rows[item_id]], position)
    return list(outdated)


def _former(connection: Connection, row: int, models: Collection[int]) -> dict[int, bytes]:
    """What each of some models has made of an item; one that has made nothing yet may have read it all the same."""
    if not models:
        return {}
    query = select(item_states.c.model, item_states.c.derived)
    made = pairs(connection.execute(query.where(item_states.c.item_row == row, item_states.c.model.in_(models))))
    return {model: bytes(made.get(model, UNKNOWN)) for model in models}


def _stored_versions(connection: Connection, item_ids: Collection[str]) -> tuple[dict[str, int], dict[str, int]]:
    rows: dict[str, int] = {}
    versions: dict[str, int] = {}
    for chunk in chunks(item_ids):
        for item_id, row, version in connection.execute(_STORED_VERSIONS, {"ids": chunk}):
            rows[item_id], versions[item_id] = row, version
    return rows, versions


def _outcome(write: ItemWrite, version: int) -> WriteResult:
    if write.mode == "create" and version:
        return "exists"
    if write.expected_version is not None and write.expected_version != version:
        return "conflict"
    return "replaced" if version else "created"


def _store(
    connection: Connection,
    model: int,
    accepted: Mapping[str, StoredItem],
    rows: Mapping[str, int],
    media: Sequence[Media],
) -> dict[str, int]:
    replaced = {rows[key]: item for key, item in accepted.items() if key in rows}
    held = _forget_parts(connection, model, replaced)
    _update_items(connection, replaced)
    numbered = {**rows, **_insert_items(connection, [item for key, item in accepted.items() if key not in rows])}
    _insert_media(connection, accepted.values(), media)
    _insert_parts(connection, model, {numbered[key]: item for key, item in accepted.items()})
    _drop_unreferenced(connection, held)
    return {key: numbered[key] for key in accepted}


def _update_items(connection: Connection, replaced: Mapping[int, StoredItem]) -> None:
    if replaced:
        connection.execute(
            _UPDATE,
            [{**_item_values(item), "stored_row": row} for row, item in replaced.items()],
        )


def _insert_items(connection: Connection, new: Sequence[StoredItem]) -> dict[str, int]:
    if not new:
        return {}
    return pairs(connection.execute(_ADD_ITEMS, [_item_values(item) for item in new]))


def _item_values(item: StoredItem) -> dict[str, Any]:
    return {
        "id": item.id,
        "title": item.title,
        "categories": item.categories,
        "metadata": item.metadata,
        "available": item.available,
        "version": item.version,
        "created_at": item.created_at,
        "updated_at": item.updated_at,
        "search_text": folded(f"{item.id}\n{item.title or ''}"),
        "remarks": _remark_values(item.remarks),
    }


def _remark_values(remarks: Mapping[str, Remark]) -> dict[str, Any]:
    return {name: asdict(remark) for name, remark in remarks.items()}


def _state_row(row: int, model: int, made: StoredItem | GeneratedWrite) -> dict[str, Any]:
    return {
        "item_row": row,
        "model": model,
        "version": made.version,
        "model_version": made.model_version,
        "derived": made.derived,
        "remarks": _remark_values(made.remarks),
    }


def _save_states(connection: Connection, model: int, saves: Mapping[int, GeneratedWrite]) -> None:
    """Replace what a model has made of items, by their rows."""
    for chunk in chunks(saves):
        for statement in _DROP_MADE:
            connection.execute(statement, {"chosen": chunk, "own": model})
    _insert(connection, _ADD_STATES, [_state_row(row, model, save) for row, save in saves.items()])
    generated = [
        feature
        for row, save in saves.items()
        for feature in _generated_rows(row, model, save.generated, save.model_version)
    ]
    _insert(connection, _ADD_GENERATED, generated)
    for chunk in chunks(row for row, save in saves.items() if save.recoded is not None):
        its = recoded_features.c.item_row.in_(chunk) & (recoded_features.c.model == model)
        connection.execute(delete(recoded_features).where(its))
    recoded = [
        {"item_row": row, "model": model, "modality": name, "encoder": made.encoder, "vector": to_bytes(made.vector)}
        for row, save in saves.items()
        for name, made in (save.recoded or {}).items()
    ]
    _insert(connection, _ADD_RECODED, recoded)


def _insert_parts(connection: Connection, model: int, stored: Mapping[int, StoredItem]) -> None:
    categories = ((row, category) for row, item in stored.items() for category in dict.fromkeys(item.categories))
    _insert(connection, _ADD_CATEGORIES, [{"item_row": row, "category": category} for row, category in categories])
    _insert(connection, _ADD_FEATURES, [part for row, item in stored.items() for part in _observed_rows(row, item)])
    derived = {row: item for row, item in stored.items() if item.model_version}
    _insert(connection, _ADD_STATES, [_state_row(row, model, item) for row, item in derived.items()])
    generated = [
        part
        for row, item in derived.items()
        for part in _generated_rows(row, model, item.generated, item.model_version)
    ]
    _insert(connection, _ADD_GENERATED, generated)


def _observed_rows(row: int, item: StoredItem) -> Iterator[dict[str, Any]]:
    for modality, observed in item.observed.items():
        yield {
            "item_row": row,
            "modality": modality,
            "source": observed.source,
            "encoder": observed.encoder,
            "text": observed.text,
            "media": observed.media,
            "media_type": observed.media_type,
            "vector": to_bytes(observed.vector),
        }


def _generated_rows(
    row: int, model: int, generated: Mapping[str, Generated], model_version: str
) -> list[dict[str, Any]]:
    return [
        {
            "item_row": row,
            "model": model,
            "modality": modality,
            "generator": part.generator,
            "confidence": float(part.confidence),
            "basis": part.basis,
            "model_version": model_version,
            "vector": to_bytes(part.vector),
        }
        for modality, part in generated.items()
    ]


def _insert_media(connection: Connection, stored: Iterable[StoredItem], media: Sequence[Media]) -> None:
    needed = {observed.media for item in stored for observed in item.observed.values()}
    files = {file.sha256: file for file in media if file.sha256 in needed}
    rows = [
        {"sha256": file.sha256, "media_type": file.media_type, "size": len(file.data), "data": file.data}
        for file in files.values()
    ]
    if rows:
        connection.execute(insert_new(connection, media_table), rows)


def _insert(connection: Connection, statement: Insert, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(statement, rows)


def _forget_parts(connection: Connection, model: int, rows: Collection[int]) -> set[str]:
    """Remove what hangs on items that are being replaced, but for what other models have made of them; answers the
    media they held."""
    held = _media_of(connection, rows)
    for chunk in chunks(rows):
        for statement in _DROP_GIVEN:
            connection.execute(statement, {"chosen": chunk})
        for statement in _DROP_MADE:
            connection.execute(statement, {"chosen": chunk, "own": model})
    return held


def _media_of(connection: Connection, rows: Collection[int]) -> set[str]:
    held: set[str] = set()
    for chunk in chunks(rows):
        held.update(connection.execute(_MEDIA, {"chosen": chunk}).scalars())
    return held


def _drop_unreferenced(connection: Connection, sha256s: Collection[str]) -> None:
    for chunk in chunks(sha256s):
        referenced = exists().where(features.c.media == media_table.c.sha256)
        connection.execute(delete(media_table).where(media_table.c.sha256.in_(chunk), ~referenced))


# --- reading -----------------------------------------------------------------------------------------------------


def items_after(connection: Connection, row: int, limit: int, model: int = 0) -> tuple[list[StoredItem], int]:
    """The next items in order of creation, with what a model has made of them, and the row to go on from."""
    query = select(items).where(items.c.row_id > row).order_by(items.c.row_id).limit(limit)
    rows = connection.execute(query).all()
    return _assemble(connection, model, rows), rows[-1].row_id if rows else row


def stored_media(connection: Connection, sha256: str) -> Media | None:
    """A stored file."""
    row = connection.execute(select(media_table).where(media_table.c.sha256 == sha256)).one_or_none()
    return None if row is None else Media(row.sha256, bytes(row.data), row.media_type)


def folded(text: str) -> str:
    """The text as it is searched: without regard to case and to how Unicode writes a letter."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _position(connection: Connection, part: str) -> ColumnElement[int]:
    # Unlike LIKE these know no wildcards and no limit on the pattern's length.
    find = func.instr if connection.dialect.name == "sqlite" else func.strpos
    found: ColumnElement[int] = find(items.c.search_text, part)
    return found


def _assemble(connection: Connection, model: int, rows: Sequence[Row[Any]]) -> list[StoredItem]:
    """The items, with what a model has made of them."""
    parts: dict[int, _Parts] = {row.row_id: _Parts() for row in rows}
    for chunk in chunks(parts):
        for part in connection.execute(_FEATURES, {"chosen": chunk}):
            parts[part.item_row].observed[part.modality] = Observed(
                to_vector(part.vector), part.source, part.encoder, part.text, part.media, part.media_type
            )
        for table, query in _OF_MODEL.items():
            for part in connection.execute(query, {"chosen": chunk, "own": model}):
                parts[part.item_row].take(table, part)
    return [_to_item(row, parts[row.row_id]) for row in rows]


@dataclass(slots=True)
class _Parts:
    """What hangs on an item."""

    observed: dict[str, Observed] = field(default_factory=dict)
    generated: dict[str, Generated] = field(default_factory=dict)
    recoded: list[Row[Any]] = field(default_factory=list)
    state: Row[Any] | None = None
    is_pending: bool = False

    def take(self, table: Table, row: Row[Any]) -> None:
        """Take a row of a table that is kept for each model."""
        if table is recoded_features:
            self.recoded.append(row)
        elif table is generated_features:
            self.generated[row.modality] = Generated(
                to_vector(row.vector), row.generator, row.confidence, tuple(row.basis)
            )
        elif table is item_states:
            self.state = row
        else:
            self.is_pending = True

    def read_by_model(self, remarks: Mapping[str, Remark]) -> dict[str, Observed]:
        """What is observed, as the model's own encoders read it. `remarks` hold the texts that others could not."""
        observed = dict(self.observed)
        for row in self.recoded:
            if not row.vector:
                observed.pop(row.modality, None)
                continue
            text = remarks[row.modality].text if row.modality in remarks else None
            source = observed.get(row.modality) or Observed(to_vector(b""), "text", text=text)
            observed[row.modality] = replace(source, vector=to_vector(row.vector), encoder=row.encoder)
        return observed


def _to_item(row: Row[Any], parts: _Parts) -> StoredItem:
    values, state = row._mapping, parts.state
    is_current = state is not None and state.version == values["version"]
    given = {name: Remark(**remark) for name, remark in values["remarks"].items()}
    return StoredItem(
        id=values["id"],
        title=values["title"],
        categories=tuple(values["categories"]),
        metadata=values["metadata"],
        available=values["available"],
        version=values["version"],
        created_at=values["created_at"],
        updated_at=values["updated_at"],
        observed=parts.read_by_model(given),
        generated=parts.generated if is_current else {},
        model_version=state.model_version if state is not None and is_current else "",
        derived=bytes(state.derived) if state is not None and is_current else b"",
        row=values["row_id"],
        remarks={name: Remark(**remark) for name, remark in state.remarks.items()}
        if state is not None and is_current
        else given,
        is_pending=parts.is_pending,
        former=bytes(state.derived) if state is not None and not is_current else b"",
    )
