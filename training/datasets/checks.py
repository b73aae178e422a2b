"""Checks of single rows: item bodies and feedback events."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from models.vocabulary import Vocabulary
from training.datasets.base import EVENT_TYPES, DatasetError, Record, Vector

T = TypeVar("T")

_ITEM_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_USER_ID = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,128}")
_ITEM_FIELDS = {"id", "title", "modalities", "categories", "metadata", "available"}
_EVENT_FIELDS = {"user", "item", "type", "value", "text", "timestamp", "recommendation_id"}


class _RowError(ValueError):
    """What is wrong with one row; `located` adds the file and the line."""


class Event(NamedTuple):
    """A feedback event: type as its number in EVENT_TYPES, value and timestamp (epoch seconds) nan where absent."""

    user: str
    item: int
    type: int
    value: float
    timestamp: float
    text: str | None


def located(check: Callable[[object], T], row: object, file: Path, line: int) -> T:
    """`check(row)`, its complaint turned into a DatasetError that names file and line."""
    try:
        return check(row)
    except _RowError as error:
        raise DatasetError(f"{file.name}, line {line}: {error}") from None


class ItemCheck:
    """Checks item bodies one after another, collects their ids and turns ready vectors into float32 arrays."""

    def __init__(self) -> None:
        self.ids = Vocabulary()
        self._dims: dict[str, int] = {}

    def __call__(self, row: object) -> Record:
        record = _record(row, _ITEM_FIELDS)
        key = record.get("id")
        if not isinstance(key, str) or not _ITEM_ID.fullmatch(key):
            raise _RowError(f"id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -, got {key!r}")
        if key in self.ids:
            raise _RowError(f"the item {key!r} stands there twice")
        _typed(record, "title", str, "text")
        _typed(record, "metadata", dict, "an object")
        _typed(record, "available", bool, "true or false")
        _typed(record, "categories", list, "a list of texts")
        if not all(isinstance(category, str) for category in record.get("categories") or ()):
            raise _RowError("categories must be a list of texts")
        _typed(record, "modalities", dict, "an object")
        modalities = record.get("modalities")
        if modalities:
            record["modalities"] = {name: self._content(name, content) for name, content in modalities.items()}
        self.ids.add(key)
        return record

    def _content(self, name: str, content: object) -> object:
        if isinstance(content, str):
            return content
        if isinstance(content, dict) and len(content) == 1:
            match content:
                case {"base64": str()}:
                    return content
                case {"vector": values}:
                    return {"vector": self._vector(name, values)}
        raise _RowError(f'modality {name!r} must be a text, {{"base64": ...}} or {{"vector": [...]}}')

    def _vector(self, name: str, values: object) -> Vector:
        vector = _as_vector(values)
        if vector is None:
            raise _RowError(f"the vector of modality {name!r} must be a list of finite numbers")
        expected = self._dims.setdefault(name, len(vector))
        if len(vector) != expected:
            raise _RowError(f"the vector of modality {name!r} has {len(vector)} numbers, those before have {expected}")
        return vector


class EventCheck:
    """Parses feedback events on the items of a vocabulary."""

    def __init__(self, items: Vocabulary) -> None:
        self._items = items
        self._users: set[str] = set()

    def __call__(self, row: object) -> Event:
        record = _record(row, _EVENT_FIELDS)
        _typed(record, "text", str, "text")
        _typed(record, "recommendation_id", str, "text")
        kind = record.get("type")
        if kind not in EVENT_TYPES:
            raise _RowError(f"type must be one of {', '.join(EVENT_TYPES)}, got {kind!r}")
        value = _value(record.get("value"))
        if kind == "rating" and value != value:
            raise _RowError("a rating needs a value")
        return Event(
            user=self._user(record.get("user")),
            item=self._item(record.get("item")),
            type=EVENT_TYPES.index(kind),
            value=value,
            timestamp=_timestamp(record.get("timestamp")),
            text=record.get("text"),
        )

    def _user(self, user: object) -> str:
        if not isinstance(user, str) or (user not in self._users and not _USER_ID.fullmatch(user)):
            raise _RowError(f"user must be 1 to 128 characters without control characters, got {user!r}")
        self._users.add(user)
        return user

    @property
    def n_users(self) -> int:
        """Number of distinct users so far."""
        return len(self._users)

    def _item(self, item: object) -> int:
        row = self._items.get(item) if isinstance(item, str) else None
        if row is None:
            raise _RowError(f"the item {item!r} is not in the catalogue")
        return row


def _record(row: object, fields: set[str]) -> Record:
    if not isinstance(row, dict):
        raise _RowError("must be a JSON object")
    unknown = row.keys() - fields
    if unknown:
        raise _RowError(f"unknown field {min(unknown)!r}")
    return row


def _typed(record: Record, name: str, kind: type, words: str) -> None:
    value = record.get(name)
    if value is not None and not isinstance(value, kind):
        raise _RowError(f"{name} must be {words}")


def _as_vector(values: object) -> Vector | None:
    """A non-empty vector of finite numbers as float32, or None where it is none."""
    try:
        vector = np.asarray(values)
    except ValueError:  # nested lists of unequal lengths
        return None
    if vector.ndim != 1 or not vector.size or vector.dtype.kind not in "iuf":
        return None
    with np.errstate(over="ignore"):
        vector = np.ascontiguousarray(vector, dtype=np.float32)
    return vector if np.isfinite(vector).all() else None


def _value(value: object) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _RowError(f"value must be a number, got {value!r}")
    return float(value)


def _timestamp(value: object) -> float:
    if value is None:
        return float("nan")
    try:
        parsed = datetime.fromisoformat(value)  # type: ignore[arg-type]  # anything but a string raises TypeError
    except (TypeError, ValueError):
        raise _RowError(f"timestamp must be RFC 3339, got {value!r}") from None
    if parsed.tzinfo is None:
        raise _RowError(f"timestamp needs a time zone, got {value!r}")
    return parsed.timestamp()
