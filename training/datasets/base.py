"""Datasets in memory: items with holes in them, and who interacted with which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.feedback import deciding_events, interest_of
from models.rows import decode_base64
from models.vocabulary import Vocabulary
from training.datasets.stored import StoredText

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)
ITEMS, FEEDBACK = "items.jsonl", "feedback.jsonl"  # of a prepared dataset

Vector = NDArray[np.float32]
Content = str | bytes | Vector
Record = dict[str, Any]
Progress = Callable[[str, int], None]
R_co = TypeVar("R_co", covariant=True)


class DatasetError(ValueError):
    """Data that cannot be used; the message is one sentence naming the file, the line and what is wrong."""


class Place(NamedTuple):
    """Where a row stands: a file and a line, counted from 1."""

    file: Path
    line: int

    def error(self, words: str) -> DatasetError:
        """The error that names this place and says what is wrong there."""
        return DatasetError(f"{self.file.name}, line {self.line}: {words}")


class Located(NamedTuple, Generic[R_co]):
    """A row, and where its source has it."""

    place: Place
    row: R_co


@dataclass(frozen=True, slots=True)
class Tally:
    """What of a source was left out and what was changed, by reason."""

    left_out: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class PublishedMask:
    """Cells that a published protocol withholds: `missing` is bool `[len(items), len(columns)]`, True = withheld."""

    items: tuple[str, ...]
    columns: tuple[str, ...]
    missing: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.missing.dtype != np.bool_ or self.missing.shape != (len(self.items), len(self.columns)):
            raise DatasetError(
                f"a mask of {len(self.items)} items and {len(self.columns)} columns cannot be "
                f"{self.missing.dtype}{list(self.missing.shape)}"
            )


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """A published leave-one-out split: of each user one item is held out, to be ranked among given other ones.

    Attributes:
        users: rows or ids `[u]`.
        test: rows or ids of items `[u, 1 + c]`; column 0 is held out, the others are its negatives.
        valid: likewise, of another item of the same users, where the split publishes one.
    """

    users: NDArray[Any]
    test: NDArray[Any]
    valid: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        for trials in (self.test, self.valid):
            if trials is not None and (trials.ndim != 2 or trials.shape[0] != len(self.users) or trials.shape[1] < 2):
                raise DatasetError(
                    f"a leave-one-out split of {len(self.users)} users cannot have candidates of shape "
                    f"{list(trials.shape)}"
                )


@dataclass(frozen=True, slots=True)
class Interactions:
    """All feedback events, in file order, as parallel arrays `[n]`.

    `user` and `item` are rows, `type` a number in EVENT_TYPES, `value` and `timestamp` (epoch seconds) are nan where
    absent; `texts` holds the text of the events that have one, by position.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    type: NDArray[np.uint8]
    value: NDArray[np.float64]
    timestamp: NDArray[np.float64]
    texts: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user)


class Contents(Sequence[Content | None]):
    """One modality by row: text, the bytes of a file, a float32 vector, or None where it is missing.

    The title is the text of an item without one. A file is read and decoded each time that it is asked for, and not
    kept, so that a catalogue's pictures are never all in memory.
    """

    def __init__(self, records: Sequence[Record], modality: str) -> None:
        self._records, self._modality = records, modality

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: Any) -> Any:
        """The content of a row.

        Raises:
            DatasetError: a file is not valid base64.
        """
        return _decoded(self._records[row], self._modality)

    def form(self, row: int) -> type | None:
        """What kind of content a row has: str, bytes, or an array; nothing is decoded for that."""
        match _content_of(self._records[row], self._modality):
            case {"base64": _}:
                return bytes
            case {"vector": _}:
                return np.ndarray
            case str():
                return str
        return None


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset in memory.

    `records` are the item bodies in row order; ready vectors in them are float32 arrays, not lists, and pictures may be
    a `StoredText` (`item_line` writes any). `split` is aligned with `pairs()`, `rating_split` with the events;
    `leave_one_out` holds rows. `min_rating`: see DatasetInfo.
    """

    name: str
    synthetic: bool
    min_rating: float | None
    fingerprint: str
    items: Vocabulary
    users: Vocabulary
    records: list[Record]
    interactions: Interactions
    split: NDArray[np.uint8] | None = None
    masks: Mapping[str, PublishedMask] = field(default_factory=dict)
    new_items: NDArray[np.int64] | None = None
    rating_split: NDArray[np.uint8] | None = None
    leave_one_out: Mapping[str, LeaveOneOut] = field(default_factory=dict)

    def pairs(self) -> NDArray[np.int64]:
        """Distinct (user row, item row) pairs that show interest, `[n, 2]`, in the order of their first occurrence."""
        return self._pairs

    @cached_property
    def _pairs(self) -> NDArray[np.int64]:
        return distinct_pairs(self.interactions, len(self.items), self.min_rating)

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that some item has: text, image, then the others by name."""
        seen = {name for record in self.records for name in record.get("modalities") or ()} - {"text"}
        if any(_content_of(record, "text") is not None for record in self.records):
            seen.add("text")
        leading = [name for name in ("text", "image") if name in seen]
        return (*leading, *sorted(seen.difference(leading)))

    def content(self, modality: str) -> Contents:
        """The content of one modality by row."""
        return Contents(self.records, modality)

    def observed(self, modalities: Sequence[str] | None = None) -> NDArray[np.bool_]:
        """Which cells are there, bool `[n_items, M]`; columns as in `modalities`, by default the dataset's own."""
        names = self.modalities if modalities is None else modalities
        cells = [[_content_of(record, name) is not None for name in names] for record in self.records]
        return np.array(cells, dtype=np.bool_).reshape(len(self.records), len(names))

    def withheld(self, mask: str, modalities: Sequence[str] | None = None) -> NDArray[np.bool_]:
        """The cells that a published mask withholds, bool `[n_items, M]`, columns as for `observed`.

        Items and modalities that the mask does not know keep all they have.

        Raises:
            DatasetError: the dataset has no mask of this name.
        """
        if mask not in self.masks:
            known = ", ".join(sorted(self.masks)) or "none"
            raise DatasetError(f"the dataset {self.name} has no published mask {mask!r} (it has: {known})")
        published = self.masks[mask]
        names = self.modalities if modalities is None else tuple(modalities)
        rows = np.array([self.items.row(item) for item in published.items], dtype=np.int64)
        withheld = np.zeros((len(self.items), len(names)), dtype=np.bool_)
        for column, name in enumerate(names):
            if name in published.columns:
                withheld[rows, column] = published.missing[:, published.columns.index(name)]
        return withheld


def distinct_pairs(interactions: Interactions, n_items: int, min_rating: float | None) -> NDArray[np.int64]:
    """Distinct (user, item) pairs `[n, 2]` whose newest event shows interest (`models.feedback`), in the order of their
    first occurrence."""
    user, item = interactions.user, interactions.item
    keys = user * n_items + item
    newest = deciding_events(keys, interactions.type, interactions.timestamp)
    interested = interest_of(interactions.type[newest], interactions.value[newest], min_rating)
    _, first = np.unique(keys, return_index=True)  # in the order of the keys, as `newest` is
    first = np.sort(first[interested])
    return np.stack([user[first], item[first]], axis=1)


def _content_of(record: Record, modality: str) -> object:
    """What the body says of a modality, or None. Blank text is no text, and the title stands in for it."""
    content = (record.get("modalities") or {}).get(modality)
    if isinstance(content, str) and not content.strip():
        content = None
    if content is None and modality == "text":
        title = record.get("title")
        return title if title and title.strip() else None
    return content


def _decoded(record: Record, modality: str) -> Content | None:
    match _content_of(record, modality):
        case {"base64": str() | StoredText() as data}:
            try:
                return decode_base64(str(data))
            except ValueError as error:
                raise DatasetError(f"the item {record['id']!r}, modality {modality!r}: {error}") from None
        case {"vector": values}:
            return np.asarray(values, dtype=np.float32)
        case str(text):
            return text
    return None
