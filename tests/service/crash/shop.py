"""A seeded writer that remembers what was acknowledged.

Each shop owns items and users that nobody else writes to and does one thing at a time, so that its history is linear
whatever the workers do: what is stored must be its last acknowledged state, or, where the last answer never came, that
state with the last thing done to it, whole.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from training.demo.catalogue import demo_item

Event = tuple[str, str, str, str]  # user, item, type, timestamp
START = datetime(2026, 1, 1, tzinfo=UTC)
TYPES = ("view", "click", "cart", "purchase")
WORDS = ("red", "blue", "striped", "linen", "leather", "running", "winter", "kitchen", "soft", "mug", "shoe", "lamp")
CATEGORIES = ("mugs", "shoes", "lamps", "hats")
PICTURES = [demo_item(k=number).picture for number in range(6)]


@dataclass(frozen=True)
class Item:
    """What is known of one item: `observed` by modality as (source, fingerprint of its content)."""

    title: str | None
    observed: Mapping[str, tuple[str, str]]
    categories: tuple[str, ...]
    available: bool
    version: int


@dataclass(frozen=True)
class State:
    """Everything that one shop has stored."""

    items: Mapping[str, Item] = field(default_factory=dict)
    events: frozenset[Event] = frozenset()

    def with_items(self, items: Mapping[str, Item]) -> State:
        """With items created or replaced."""
        return replace(self, items={**self.items, **items})

    def without_item(self, item: str) -> State:
        """Without an item and its feedback."""
        left = {name: one for name, one in self.items.items() if name != item}
        return State(left, frozenset(event for event in self.events if event[1] != item))


@dataclass(frozen=True)
class Act:
    """One request: what it is called, what is sent, the only answer there may be, and the state after it."""

    name: str
    method: str
    path: str
    status: int
    after: State
    body: Any = None


def fingerprint(value: object) -> str:
    """A short stand-in for a content."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


class Shop:
    """One writer.

    Args:
        name: prefix of its ids.
        dims: length of the vectors, by modality.
        rng: decides everything.
    """

    def __init__(self, name: str, dims: Mapping[str, int], rng: random.Random) -> None:
        self.name = name
        self.state = State()
        self.history = [self.state]  # since whenever somebody began to look
        self.pending: Act | None = None  # sent, and not answered
        self.acknowledged: Counter[str] = Counter()
        self.violations: list[str] = []
        self._dims = dims
        self._rng = rng
        self._number = 0

    # --- doing ---------------------------------------------------------------------------------------------------

    def work(self, ask: Callable[[Act], httpx.Response], goes_on: Callable[[], bool]) -> None:
        """Do one thing after the other, until told to stop or until an answer is missing."""
        while goes_on() and self.pending is None:
            act = self.next_act()
            self.pending = act
            try:
                answer = ask(act)
            except httpx.TransportError:
                return
            if answer.status_code >= 500:
                return
            if answer.status_code != act.status or not _is_whole(act, answer):
                self.violations.append(f"{act.method} {act.path} answered {answer.status_code}: {answer.text[:300]}")
                return
            self.state, self.pending = act.after, None
            self.history.append(self.state)
            self.acknowledged[act.name] += 1

    def resolve(self, stored: State) -> str | None:
        """Take what is stored as what was done: None, or how it is neither the acknowledged state nor the one after."""
        wanted = [self.state] if self.pending is None else [self.state, self.pending.after]
        self.pending = None
        if stored in wanted:
            self.state = stored
            self.history.append(stored)
            return None
        difference = _difference(wanted[0], stored)
        self.state = stored
        return f"shop {self.name}: {difference}"

    # --- deciding ------------------------------------------------------------------------------------------------

    def next_act(self) -> Act:
        """Something to do now."""
        if not self.state.items:
            return self._create()
        acts = [self._create, self._batch, self._put, self._patch, self._feedback, self._delete, self._forget]
        (act,) = self._rng.choices(acts, weights=[6, 1, 3, 4, 6, 2, 1])
        return act()

    def _create(self) -> Act:
        body, item = self._made(self._fresh())
        return Act("create", "POST", "/items", 201, self.state.with_items({body["id"]: item}), body)

    def _batch(self) -> Act:
        rows = [self._made(self._fresh()) for _ in range(self._rng.randint(2, 12))]
        after = self.state.with_items({body["id"]: item for body, item in rows})
        return Act("batch", "POST", "/items/batch", 200, after, {"items": [body for body, _ in rows]})

    def _put(self) -> Act:
        item_id = self._some_item() if self._rng.random() < 0.7 else self._fresh()
        body, item = self._made(item_id)
        known = self.state.items.get(item_id)
        after = self.state.with_items({item_id: replace(item, version=known.version + 1 if known else 1)})
        return Act("put", "PUT", f"/items/{item_id}", 200 if known else 201, after, body)

    def _patch(self) -> Act:
        item_id = self._some_item()
        item = self.state.items[item_id]
        body: dict[str, Any] = {}
        observed = dict(item.observed)
        for name in self._dims:
            chance = self._rng.random()
            if name != "text" and name in observed and chance < 0.3:
                body.setdefault("modalities", {})[name] = None
                del observed[name]
            elif chance > 0.8:
                body.setdefault("modalities", {})[name], observed[name] = self._content(name)
        if self._rng.random() < 0.4:
            body["title"] = self._words()
            item = replace(item, title=body["title"])
            if observed.get("text", ("title", ""))[0] == "title":
                observed["text"] = ("title", fingerprint(item.title))
        if self._rng.random() < 0.3:
            body["available"] = not item.available
            item = replace(item, available=not item.available)
        after = replace(item, observed=observed, version=item.version + 1)
        return Act("patch", "PATCH", f"/items/{item_id}", 200, self.state.with_items({item_id: after}), body)

    def _delete(self) -> Act:
        item_id = self._some_item()
        return Act("delete", "DELETE", f"/items/{item_id}", 204, self.state.without_item(item_id))

    def _feedback(self) -> Act:
        events = set()
        for _ in range(self._rng.randint(1, 6)):
            self._number += 1
            moment = (START + timedelta(seconds=self._number)).isoformat()
            events.add((f"{self.name}-u{self._rng.randrange(4)}", self._some_item(), self._rng.choice(TYPES), moment))
        if self.state.events and self._rng.random() < 0.3:
            events.add(self._rng.choice(sorted(self.state.events)))  # once more, and still once
        names = ("user", "item", "type", "timestamp")
        body = {"feedback": [dict(zip(names, event, strict=True)) for event in sorted(events)]}
        after = replace(self.state, events=self.state.events | events)
        return Act("feedback", "POST", "/feedback", 200, after, body)

    def _forget(self) -> Act:
        users = sorted({event[0] for event in self.state.events})
        if not users:
            return self._feedback()
        user = self._rng.choice(users)
        after = replace(self.state, events=frozenset(event for event in self.state.events if event[0] != user))
        return Act("forget", "DELETE", f"/users/{user}", 204, after)

    # --- making --------------------------------------------------------------------------------------------------

    def _fresh(self) -> str:
        self._number += 1
        return f"{self.name}-{self._number}"

    def _some_item(self) -> str:
        return self._rng.choice(sorted(self.state.items))

    def _made(self, item_id: str) -> tuple[dict[str, Any], Item]:
        """An item of any shape, down to one of which nothing is told."""
        body: dict[str, Any] = {"id": item_id, "categories": self._rng.sample(CATEGORIES, self._rng.randint(0, 2))}
        observed: dict[str, tuple[str, str]] = {}
        for name in self._dims:
            if self._rng.random() < 0.5:
                body.setdefault("modalities", {})[name], observed[name] = self._content(name)
        if self._rng.random() < 0.5:
            body["title"] = self._words()
            observed.setdefault("text", ("title", fingerprint(body["title"])))
        return body, Item(body.get("title"), observed, tuple(body["categories"]), True, 1)

    def _content(self, name: str) -> tuple[Any, tuple[str, str]]:
        if name == "text" and self._rng.random() < 0.7:
            text = self._words()
            return text, ("text", fingerprint(text))
        if name == "image" and self._rng.random() < 0.3:
            picture = self._rng.choice(PICTURES)
            return {"base64": base64.b64encode(picture).decode()}, ("media", hashlib.sha256(picture).hexdigest())
        vector = [round(self._rng.gauss(0, 1), 3) for _ in range(self._dims[name])]
        return {"vector": vector}, ("vector", fingerprint(vector))

    def _words(self) -> str:
        return " ".join(self._rng.choice(WORDS) for _ in range(self._rng.randint(2, 8))) + f" {self._number}"


def _is_whole(act: Act, answer: httpx.Response) -> bool:
    if act.name == "batch":
        return all(row["status"] == 201 for row in answer.json()["items"])
    if act.name == "feedback":
        return answer.json() == {"accepted": len(act.body["feedback"]), "rejected": []}
    if act.name in ("create", "put", "patch"):
        wanted = act.after.items[answer.json()["id"]]
        states = {name: one["state"] == "observed" for name, one in answer.json()["modalities"].items()}
        return answer.json()["version"] == wanted.version and {n for n, seen in states.items() if seen} == set(
            wanted.observed
        )
    return True


def _difference(wanted: State, stored: State) -> str:
    """The first things that are lost, resurrected or changed."""
    lost = sorted(set(wanted.items) - set(stored.items))
    found = sorted(set(stored.items) - set(wanted.items))
    changed = [name for name in wanted.items if name in stored.items and wanted.items[name] != stored.items[name]]
    parts = {
        "items lost": lost,
        "items that should not be": found,
        "items changed": [f"{name}: {stored.items[name]} for {wanted.items[name]}" for name in changed],
        "events lost": sorted(wanted.events - stored.events),
        "events that should not be": sorted(stored.events - wanted.events),
    }
    return "; ".join(f"{len(several)} {what}, as {several[0]}" for what, several in parts.items() if several)
