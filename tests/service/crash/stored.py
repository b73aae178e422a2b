"""What a database holds, read past the service: each shop's state, and whether the rest is whole."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

import sqlalchemy as sa

from service.adapters.sql.store import SqlStore
from service.adapters.sql.tables import feedback, generated_features, items
from service.domain import StoredItem
from tests.service.crash.shop import Event, Item, State, fingerprint


async def read_states(store: SqlStore, shops: Sequence[str]) -> tuple[dict[str, State], list[str]]:
    """Each shop's state, and what is wrong with any row."""
    found: dict[str, dict[str, Item]] = {name: {} for name in shops}
    wrong: list[str] = []
    events = await store.database.read(_events)
    wrong += [f"the event {event} is stored {count} times" for event, count in Counter(events).items() if count > 1]
    told = items_told_of(events)
    async for batch in store.iter_items():
        for item in batch:
            wrong += _faults(item, item.id in told)
            shop = item.id.partition("-")[0]
            if shop in found:
                found[shop][item.id] = _item(item)
    orphans = await store.database.read(_orphans)
    wrong += [f"{count} rows of {table} belong to no item" for table, count in orphans.items() if count]
    states = {
        name: State(found[name], frozenset(event for event in events if event[0].partition("-")[0] == name))
        for name in shops
    }
    return states, wrong


def _events(connection: sa.Connection) -> list[Event]:
    query = sa.select(feedback.c.user_id, items.c.id, feedback.c.type, feedback.c.timestamp).join(
        items, items.c.row_id == feedback.c.item_row
    )
    return [(user, item, kind, moment.isoformat()) for user, item, kind, moment in connection.execute(query)]


def _orphans(connection: sa.Connection) -> dict[str, int]:
    return {
        table.name: connection.execute(
            sa.select(sa.func.count()).select_from(table).where(table.c.item_row.not_in(sa.select(items.c.row_id)))
        ).scalar_one()
        for table in (feedback, generated_features)
    }


def items_told_of(events: Iterable[Event]) -> set[str]:
    """The items of which any user says something: one who had met another item by the first event with this one. All
    events show interest, and training knew none of the users."""
    first: dict[str, dict[str, datetime]] = defaultdict(dict)
    for user, item, _, stamp in events:
        moment = datetime.fromisoformat(stamp)
        first[user][item] = min(first[user].get(item, moment), moment)
    return {
        item
        for met in first.values()
        for item, moment in met.items()
        if any(earlier <= moment for other, earlier in met.items() if other != item)
    }


def _item(item: StoredItem) -> Item:
    observed = {}
    for name, one in item.observed.items():
        content: object = {"text": one.text, "title": item.title}.get(one.source)
        if one.source == "vector":
            content = [round(value, 3) for value in one.vector.tolist()]
        observed[name] = (one.source, one.media or fingerprint(content))
    return Item(item.title, observed, item.categories, item.available, item.version)


def _faults(item: StoredItem, is_told_of: bool) -> list[str]:
    """Half an item, and generated parts that do not follow the item's feedback once nothing awaits it any more."""
    faults = []
    if not item.derived:
        faults.append(f"the item {item.id} was stored by half")
    if item.observed.keys() & item.generated.keys():
        faults.append(f"the item {item.id} has a modality twice")
    for name, one in item.generated.items():
        if item.id.startswith("demo-"):
            continue
        if one.generator == "dgmrec" and ("users" in one.basis) != is_told_of:
            who = "some" if is_told_of else "no"
            faults.append(f"{name} of {item.id} was generated from {one.basis}, and {who} user tells of it")
    return faults
