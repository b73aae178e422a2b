"""An engine in a dict, and the pipeline's functions over it, so that the HTTP layer is tested by itself.

`install` puts the functions in the place of the pipeline's, under the same names and signatures.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from service.domain import (
    UNSET,
    Content,
    Draft,
    Event,
    Explanation,
    FeedbackOutcome,
    Hit,
    Imputation,
    InvalidInputError,
    ItemExistsError,
    ItemNotFoundError,
    ItemView,
    LacunaError,
    Match,
    MediaContent,
    ModalityDetail,
    ModalityReport,
    NotFollowedError,
    NotServedError,
    Page,
    Patch,
    Reason,
    Recommendations,
    State,
    TextContent,
    UnknownModalityError,
    User,
    UserNotFoundError,
    Written,
)
from service.pipeline.runtime import Followed
from service.ports import Media
from service.settings import Settings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MODALITIES = ("text", "image", "audio")


@dataclass
class FakeEngine:
    """Items and events in memory. `failure`, once set, is raised by every call; `calls` keeps what was asked."""

    items: dict[str, ItemView] = field(default_factory=dict)
    media: dict[tuple[str, str], Media] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    failure: Exception | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    is_closed: bool = False
    model_version: str = "2026-01-02.1"
    runtime: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(timer=None, followed=Followed()))
    last: int = 7  # the log's newest position

    @property
    def store(self) -> FakeEngine:
        return self

    async def count_items(self) -> int:
        return len(self.items)

    async def last_change(self) -> int:
        if self.failure is not None:
            raise self.failure
        return self.last

    async def close(self) -> None:
        self.is_closed = True

    def note(self, **call: Any) -> None:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure


def _reports(modalities: Mapping[str, Content]) -> dict[str, ModalityReport]:
    unknown = next((name for name in modalities if name not in MODALITIES), None)
    if unknown is not None:
        raise UnknownModalityError(f"the bundle declares no modality {unknown!r}", f"/modalities/{unknown}")
    generated = ModalityReport(State.GENERATED, "dgmrec", 0.71, ("text", "neighbours"))
    return {name: ModalityReport(State.OBSERVED) if name in modalities else generated for name in MODALITIES}


def _view(draft: Draft, version: int) -> ItemView:
    text = draft.modalities.get("text")
    return ItemView(
        id=draft.id,
        title=draft.title,
        categories=draft.categories,
        metadata=draft.metadata,
        available=draft.available,
        version=version,
        created_at=NOW,
        updated_at=NOW,
        model_version="2026-01-02.1",
        modalities=_reports(draft.modalities),
        text=text.text if isinstance(text, TextContent) else None,
        media={
            name: hashlib.sha256(content.data).hexdigest()
            for name, content in draft.modalities.items()
            if isinstance(content, MediaContent)
        },
        timings_ms={"encode": 9.8, "impute": 1.2, "index": 0.1, "commit": 1.9},
    )


def _hit(view: ItemView) -> Hit:
    return Hit(view.id, view.title, 0.5, {name: report.state for name, report in view.modalities.items()})


def _existing(engine: FakeEngine, item_id: str) -> ItemView:
    if item_id not in engine.items:
        raise ItemNotFoundError(f"there is no item {item_id!r}")
    return engine.items[item_id]


# --- service.pipeline.items, patch ----------------------------------------------------------------------------------


async def create_item(engine: FakeEngine, draft: Draft, keep: object = None) -> Written:  # noqa: ARG001
    engine.note(draft=draft)
    if draft.id in engine.items:
        raise ItemExistsError(f"an item {draft.id!r} exists already")
    return await put_item(engine, draft)


async def put_item(engine: FakeEngine, draft: Draft) -> Written:
    engine.note(draft=draft)
    old = engine.items.get(draft.id)
    engine.items[draft.id] = view = _view(draft, old.version + 1 if old else 1)
    for name, content in draft.modalities.items():
        if isinstance(content, MediaContent):
            engine.media[draft.id, name] = Media(
                view.media[name], content.data, content.media_type or "application/octet-stream"
            )
    return Written(view, created=old is None)


async def patch_item(engine: FakeEngine, item_id: str, patch: Patch) -> ItemView:
    engine.note(patch=patch)
    old = _existing(engine, item_id)
    changes = {
        name: getattr(patch, name)
        for name in ("title", "categories", "metadata", "available")
        if getattr(patch, name) is not UNSET
    }
    engine.items[item_id] = replace(old, version=old.version + 1, **changes)
    return engine.items[item_id]


async def delete_item(engine: FakeEngine, item_id: str) -> None:
    engine.note(item_id=item_id)
    _existing(engine, item_id)
    del engine.items[item_id]


async def create_batch(engine: FakeEngine, drafts: Sequence[Draft]) -> list[Written | LacunaError]:
    outcomes: list[Written | LacunaError] = []
    for draft in drafts:
        try:
            outcomes.append(await create_item(engine, draft))
        except LacunaError as error:
            outcomes.append(error)
    return outcomes


async def impute(engine: FakeEngine, draft: Draft, *, neighbours: int = 5, hidden: bool = True) -> Imputation:
    engine.note(draft=draft, neighbours=neighbours, hidden=hidden)
    details = {
        name: replace(_detail(report), item="", modality=name) for name, report in _reports(draft.modalities).items()
    }
    return Imputation("2026-01-02.1", details, {"impute": 1.2})


def _detail(report: ModalityReport) -> ModalityDetail:
    return ModalityDetail("a", "text", report, None, None, None, (), np.ones(3, np.float32))


# --- service.pipeline.follow --------------------------------------------------------------------------------------


async def reach(engine: FakeEngine, position: int) -> None:
    engine.note(position=position)
    if position > engine.last:
        raise NotFollowedError("not yet")


# --- service.pipeline.browse --------------------------------------------------------------------------------------


async def get_item(engine: FakeEngine, item_id: str) -> ItemView:
    engine.note(item_id=item_id)
    return _existing(engine, item_id)


async def list_items(
    engine: FakeEngine, *, limit: int, cursor: str | None, categories: Sequence[str], missing: str | None, q: str | None
) -> Page[ItemView]:
    engine.note(limit=limit, cursor=cursor, categories=categories, missing=missing, q=q)
    start = int(cursor) if cursor and cursor.isdecimal() else 0
    views = [engine.items[item_id] for item_id in sorted(engine.items)]
    more = len(views) > start + limit
    return Page(views[start : start + limit], str(start + limit) if more else None)


async def get_modality(
    engine: FakeEngine, item_id: str, modality: str, *, neighbours: int = 5, vector: bool = False, hidden: bool = True
) -> ModalityDetail:
    engine.note(item_id=item_id, modality=modality, neighbours=neighbours, vector=vector, hidden=hidden)
    view = _existing(engine, item_id)
    if modality not in view.modalities:
        raise UnknownModalityError(f"the bundle declares no modality {modality!r}")
    detail = _detail(view.modalities[modality])
    near = tuple(_hit(other) for other in list(engine.items.values())[:neighbours])
    return replace(detail, neighbours=near, vector=detail.vector if vector else None)


async def get_media(engine: FakeEngine, item_id: str, modality: str) -> Media:
    engine.note(item_id=item_id, modality=modality)
    if (item_id, modality) not in engine.media:
        raise ItemNotFoundError(f"item {item_id!r} has no file for {modality!r}")
    return engine.media[item_id, modality]


# --- service.pipeline.feedback ------------------------------------------------------------------------------------


async def add_feedback(
    engine: FakeEngine,
    events: Sequence[Event],
    *,
    strict: bool,
    keep: object = None,  # noqa: ARG001
) -> FeedbackOutcome:
    engine.note(events=events, strict=strict)
    rejected = tuple((k, "no such item") for k, event in enumerate(events) if event.item not in engine.items)
    if strict and rejected:
        raise InvalidInputError("no such item", f"/feedback/{rejected[0][0]}/item")
    engine.events += [event for event in events if event.item in engine.items]
    return FeedbackOutcome(len(events) - len(rejected), rejected)


async def list_feedback(
    engine: FakeEngine, *, limit: int, cursor: str | None, user: str | None, item: str | None, kind: str | None
) -> Page[Event]:
    engine.note(limit=limit, cursor=cursor, user=user, item=item, kind=kind)
    return Page(engine.events[:limit], None)


async def delete_feedback(engine: FakeEngine, *, user: str | None, item: str | None, kind: str | None) -> int:
    engine.note(user=user, item=item, kind=kind)
    if user is None and item is None and kind is None:
        raise InvalidInputError("name a user, an item or a type")
    chosen = {"user": user, "item": item, "type": kind}
    kept = [
        event
        for event in engine.events
        if any(value not in (None, getattr(event, name)) for name, value in chosen.items())
    ]
    deleted = len(engine.events) - len(kept)
    engine.events = kept
    return deleted


async def get_user(engine: FakeEngine, user: str) -> User:
    engine.note(user=user)
    count = sum(event.user == user for event in engine.events)
    if not count:
        raise UserNotFoundError(f"nothing is stored of user {user!r}")
    return User(user, count, count, NOW, NOW)


async def delete_user(engine: FakeEngine, user: str) -> None:
    await get_user(engine, user)
    await delete_feedback(engine, user=user, item=None, kind=None)


# --- service.pipeline.recommend, retrieve, operate ----------------------------------------------------------------


async def recommend_user(engine: FakeEngine, user: str, **options: Any) -> Recommendations:
    engine.note(user=user, **options)
    if options["model"] == "iris":
        raise NotServedError("the active bundle holds no model iris")
    known = any(event.user == user for event in engine.events)
    if not known and options["strict"]:
        raise UserNotFoundError(f"nothing is stored of user {user!r}")
    return _ranked(engine, user, None if known else "popular", options["n"])


async def recommend_session(engine: FakeEngine, items: Sequence[tuple[str, float]], **options: Any) -> Recommendations:
    engine.note(items=items, **options)
    if options["model"] == "iris":
        raise NotServedError("the active bundle holds no model iris")
    return _ranked(engine, None, None, options["n"])


def _ranked(engine: FakeEngine, user: str | None, fallback: str | None, n: int) -> Recommendations:
    states = {"text": State.OBSERVED, "image": State.GENERATED}
    reasons = (Reason("a", "A", 0.8, {"text": 0.6, "image": 0.4}, states),)
    hits = tuple(replace(_hit(view), reasons=reasons) for view in list(engine.items.values())[:n])
    return Recommendations(user, "r-1", "dgmrec", "2026-01-02.1", fallback, hits)


async def explain_pair(engine: FakeEngine, user: str, item_id: str, *, hidden: bool) -> Explanation:
    engine.note(user=user, item_id=item_id, hidden=hidden)
    view = _existing(engine, item_id)
    (hit,) = (hit for hit in _ranked(engine, user, None, len(engine.items)).items if hit.id == item_id)
    states = hit.modalities
    return Explanation(user, item_id, view.title, 1.3, 0.5, states, hit.reasons, engine.model_version, None)


async def similar(engine: FakeEngine, item_id: str, *, n: int, by: str) -> list[Hit]:
    engine.note(item_id=item_id, n=n, by=by)
    if by not in ("final", *MODALITIES):
        raise UnknownModalityError(f"the bundle declares no modality {by!r}", "/query/by")
    _existing(engine, item_id)
    return [_hit(view) for view in list(engine.items.values())[:n]]


async def retrieve(engine: FakeEngine, query: Mapping[str, Content], **options: Any) -> list[Hit]:
    engine.note(query=query, **options)
    match = Match("text", State.GENERATED)
    return [replace(_hit(view), matched=match) for view in list(engine.items.values())[: options["n"]]]


async def check_ready(engine: FakeEngine) -> None:
    engine.note()


def models(engine: FakeEngine) -> list[dict[str, Any]]:
    engine.note()
    return [{"version": "2026-01-02.1", "active": True}]


async def stats(engine: FakeEngine) -> dict[str, Any]:
    engine.note()
    return {
        "items": len(engine.items),
        "modalities": {"text": {"observed": len(engine.items), "generated": 0, "absent": 0}},
        "indexes": {"items": {"base": len(engine.items), "delta": 0, "tombstones": 0}},
        "pending": {"items": 0, "changes": 0, "oldest_seconds": 0.0, "vectors": 0},
    }


FACADE: dict[str, tuple[Any, ...]] = {
    "items": (create_item, put_item, delete_item, create_batch, impute),
    "patch": (patch_item,),
    "browse": (get_item, list_items, get_modality, get_media),
    "follow": (reach,),
    "feedback": (add_feedback, list_feedback, delete_feedback, get_user, delete_user),
    "recommend": (recommend_user, recommend_session),
    "explain": (explain_pair,),
    "retrieve": (similar, retrieve),
    "operate": (check_ready, models, stats),
}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the functions above in the place of the pipeline's; a name that the pipeline lost fails here."""
    for name, functions in FACADE.items():
        module = importlib.import_module(f"service.pipeline.{name}")
        for function in functions:
            monkeypatch.setattr(module, function.__name__, function)


@asynccontextmanager
async def client_of(app: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, without a socket. A failure of the app is an answer, as it is behind a server."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", **options) as client:
        yield client


def settings_of(**given: Any) -> Settings:
    """Settings with defaults for what is not given."""
    return Settings(**{"api_keys": (), **given})


def pointers(response: httpx.Response) -> list[str]:
    """What the problem points at."""
    return [error["pointer"] for error in response.json()["errors"]]
