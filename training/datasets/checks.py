"""Rows of datasets, validated by the models that the service validates with (`models.rows`)."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models.encoders import ImageError, decode_image
from models.feedback import EVENT_TYPES, RATED
from models.rows import ANY_LENGTH, EVENT_ROW, ITEM_ROW, ContentObject, row_sentence
from models.vocabulary import Vocabulary
from training.datasets.base import DatasetError, Record

T = TypeVar("T")

MAX_PIXELS = 20_000_000  # as the service has it unless set otherwise
_NUMBERS = {name: number for number, name in enumerate(EVENT_TYPES)}


class RowError(ValueError):
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
    except RowError as error:
        raise DatasetError(f"{file.name}, line {line}: {error}") from None


class ItemCheck:
    """Validates item bodies one after another, collects their ids and brings contents into one form: a text is a
    string, a picture `{"base64": ...}` without line breaks, a ready vector a float32 array `[dim]`.

    `pictures` says whether pictures are decoded, too: what cannot be is better refused now than at the first training.
    Texts may have `text_chars` characters.
    """

    def __init__(self, *, pictures: bool = False, text_chars: int = ANY_LENGTH) -> None:
        self.ids = Vocabulary()
        self._context = {"text_chars": text_chars}
        self._pictures = pictures
        self._dims: dict[str, int] = {}

    def __call__(self, row: object) -> Record:
        try:
            item = ITEM_ROW.validate_python(row, context=self._context)
        except ValidationError as error:
            raise RowError(row_sentence(error)) from None
        if item.id in self.ids:
            raise RowError(f"the item {item.id!r} stands there twice")
        assert isinstance(row, dict)  # as it is valid
        contents = {name: self._content(name, content) for name, content in item.modalities.items()}
        self.ids.add(item.id)
        return {**row, "modalities": contents} if contents else row

    def _content(self, name: str, content: ContentObject) -> object:
        if content.text is not None:
            return content.text
        if (vector := content.array) is not None:
            expected = self._dims.setdefault(name, len(vector))
            if len(vector) != expected:
                raise RowError(
                    f"the vector of modality {name!r} has {len(vector)} numbers, those before have {expected}"
                )
            return {"vector": vector}
        if content.base64 is None:
            raise RowError(f"modality {name!r}: pictures are not fetched here; send {{'base64': ...}}")
        return {"base64": self._picture(name, content)}

    def _picture(self, name: str, content: ContentObject) -> str:
        try:
            data = content.data
            if self._pictures:
                decode_image(data or b"", max_pixels=MAX_PIXELS)
        except (ValueError, ImageError) as error:
            raise RowError(f"modality {name!r}: {error}") from None
        text = content.base64 or ""
        return "".join(text.partition(",")[2].split()) if text[:5].lower() == "data:" else "".join(text.split())


class EventCheck:
    """Validates feedback events on the items of a vocabulary; texts may have `text_chars` characters."""

    def __init__(self, items: Vocabulary, *, text_chars: int = ANY_LENGTH) -> None:
        self._items = items
        self._context = {"text_chars": text_chars}
        self._users: set[str] = set()
        self._ratings = array("d")

    def __call__(self, row: object) -> Event:
        try:
            event = EVENT_ROW.validate_python(row, context=self._context)
        except ValidationError as error:
            raise RowError(row_sentence(error)) from None
        item = self._items.get(event.item)
        if item is None:
            raise RowError(f"the item {event.item!r} is not in the catalogue")
        self._users.add(event.user)
        if event.type in RATED and event.value is not None:
            self._ratings.append(event.value)
        return Event(
            user=event.user,
            item=item,
            type=_NUMBERS[event.type],
            value=float("nan") if event.value is None else event.value,
            timestamp=float("nan") if event.timestamp is None else event.timestamp.timestamp(),
            text=event.text,
        )

    @property
    def ratings(self) -> NDArray[np.float64]:
        """The ratings so far `[n]`."""
        return np.array(self._ratings, dtype=np.float64)

    @property
    def n_users(self) -> int:
        """Number of distinct users so far."""
        return len(self._users)
