"""Item bodies and events made of what sources hold: within the limits of the service's API, and counted where not.

A number or a time that is none is an error that names its place. What is too long is cut, what the API would refuse is
left out, and either is counted in a `Tally`.
"""

from __future__ import annotations

import base64
import math
import re
import reprlib
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from models import patterns
from models.encoders import ImageError, decode_image
from models.feedback import HIGHEST, LOWEST
from models.rows import MAX_METADATA_BYTES, MAX_TEXT_CHARS
from training.datasets.base import DatasetError, Place, Record, Tally
from training.datasets.checks import MAX_PIXELS

MAX_TITLE = 1_000
MAX_LABEL = 128
MAX_CATEGORIES = 32
MAX_PICTURE = 6_000_000  # bytes; in base64 just below the 8 MiB that a request's body may have
HALF_STARS = 0.5  # the lowest rating of a scale of half stars, whose highest is 5
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
MAPPED = f"ratings mapped linearly from {HALF_STARS:g}..{HIGHEST:g} onto {LOWEST:g}..{HIGHEST:g}"
HALVES = "texts with half characters (cut surrogate pairs), replaced by U+FFFD"

_DAY = 24 * 60 * 60
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_ITEM_ID = re.compile(patterns.ITEM_ID)
_USER_ID = re.compile(patterns.USER_ID)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_HALF = re.compile(r"[\ud800-\udfff]")


# --- numbers and times -------------------------------------------------------------------------------------------


def as_number(raw: str) -> float | None:
    """A field as a finite number, or None."""
    value = float(raw) if _NUMBER.fullmatch(raw) else math.nan
    return value if math.isfinite(value) else None


def number(raw: str, what: str, place: Place) -> float:
    """A field as a finite number.

    Raises:
        DatasetError: it is none; names the place.
    """
    value = as_number(raw)
    if value is None:
        raise place.error(f"{what} must be a number, got {reprlib.repr(raw)}")
    return value


def whole_number(raw: str, what: str, place: Place) -> int:
    """A field as a whole number.

    Raises:
        DatasetError: it is none; names the place.
    """
    if not _WHOLE.fullmatch(raw):
        raise place.error(f"{what} must be a whole number, got {reprlib.repr(raw)}")
    return int(raw)


def in_scale(value: float, lowest: float, highest: float, what: str, place: Place) -> float:
    """A rating of a scale, mapped linearly onto 1..5.

    Raises:
        DatasetError: it lies outside the scale; names the place.
    """
    if not lowest <= value <= highest:
        raise place.error(f"{what} must lie between {lowest:g} and {highest:g}, got {value:g}")
    if (lowest, highest) == (LOWEST, HIGHEST):
        return value
    return LOWEST + (value - lowest) * (HIGHEST - LOWEST) / (highest - lowest)


def moment(seconds: float, what: str, place: Place) -> str:
    """A time in seconds since 1970 as RFC 3339.

    Raises:
        DatasetError: it lies before 1970 or more than a day ahead; names the place.
    """
    if not 0 <= seconds <= time.time() + _DAY:
        raise place.error(f"{what} must be in seconds since 1970 and no more than a day from now, got {seconds:.15g}")
    return datetime.fromtimestamp(seconds, UTC).isoformat()


# --- records -----------------------------------------------------------------------------------------------------


class Records:
    """Makes records that meet the rules of the API's rows; `tally` counts what does not fit into them."""

    def __init__(self) -> None:
        self.tally = Tally()

    def item(
        self,
        key: str,
        *,
        title: str = "",
        modalities: Mapping[str, Any] | None = None,
        categories: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Record | None:
        """An item's body, or None where its id cannot be one. Texts are those that `text` returns."""
        if not is_item_id(key):
            self.tally.left_out["items whose id the service does not take (A-Z a-z 0-9 . _ : -, up to 128)"] += 1
            return None
        return {
            "id": key,
            "title": self.text(title, "titles", MAX_TITLE) or None,
            "modalities": {name: content for name, content in (modalities or {}).items() if content},
            "categories": self._categories(categories),
            "metadata": self._metadata(metadata or {}),
        }

    def event(
        self,
        user: str,
        item: str,
        kind: str,
        *,
        value: float | None = None,
        text: str = "",
        timestamp: str | None = None,
    ) -> Record | None:
        """An event, or None where an id of it cannot be one."""
        if not is_item_id(item):
            self.tally.left_out["events of items that were left out"] += 1
            return None
        if not is_user_id(user):
            self.tally.left_out["events of users whose id the service does not take (no '/', up to 128)"] += 1
            return None
        event: Record = {"user": user, "item": item, "type": kind}
        if value is not None:
            event["value"] = value
        if text:
            event["text"] = text
        if timestamp is not None:
            event["timestamp"] = timestamp
        return event

    def interaction(
        self,
        row: Mapping[str, str],
        place: Place,
        scale: tuple[float, float] | None,
        seconds: Callable[[str, str, Place], float],
    ) -> Record | None:
        """A table's row (user, item, optionally rating and timestamp): a rating, or a view where there is none.

        Args:
            scale: the lowest and the highest rating, which are mapped onto 1..5; None: ratings are passed over.
            seconds: how a timestamp is read: `number` or `whole_number`.

        Raises:
            DatasetError: the rating or the timestamp is none; names the place.
        """
        value, timestamp = None, None
        if scale is not None and "rating" in row:
            value = in_scale(number(row["rating"], "rating", place), *scale, "rating", place)
        if "timestamp" in row:
            timestamp = moment(seconds(row["timestamp"], "timestamp", place), "timestamp", place)
        kind = "view" if value is None else "rating"
        return self.event(row["user"], row["item"], kind, value=value, timestamp=timestamp)

    def text(self, raw: str, what: str = "texts", limit: int = MAX_TEXT_CHARS) -> str:
        """A text as the API takes it: without NUL and half characters, trimmed, cut at the limit; "" where blank."""
        text = self.mended(raw).replace("\0", " ").strip()
        if len(text) > limit:
            self.tally.changed[f"{what} cut at {limit:,} characters"] += 1
            text = text[:limit].rstrip()
        return text

    def mended(self, raw: str) -> str:
        """A text whose halves of surrogate pairs, which no encoding can hold, are replaced by U+FFFD."""
        if not _HALF.search(raw):
            return raw
        self.tally.changed[HALVES] += 1
        return raw.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def picture(self, folder: Path, key: str) -> dict[str, str] | None:
        """The picture of an item in a folder of `<id>.jpg`, `.jpeg`, `.png` or `.webp`, as a modality's content.

        Raises:
            DatasetError: it cannot be read.
        """
        if not is_item_id(key):  # which might lead out of the folder
            return None
        file = next((file for ending in PICTURES if (file := folder / f"{key}{ending}").is_file()), None)
        if file is None:
            return None
        try:
            data = file.read_bytes()
        except OSError as error:
            raise DatasetError(f"{folder.name}/{file.name} cannot be read: {error}") from None
        if len(data) > MAX_PICTURE:
            self.tally.left_out[f"pictures above {MAX_PICTURE:,} bytes"] += 1
            return None
        try:
            decode_image(data, max_pixels=MAX_PIXELS)
        except ImageError:
            self.tally.left_out["pictures that cannot be decoded"] += 1
            return None
        return {"base64": base64.b64encode(data).decode("ascii")}

    def _categories(self, names: Iterable[str]) -> list[str]:
        labels = (self.text(_CONTROL.sub(" ", name), "categories", MAX_LABEL) for name in names)
        distinct = list(dict.fromkeys(filter(None, labels)))
        if beyond := distinct[MAX_CATEGORIES:]:
            self.tally.left_out[f"categories of an item beyond the first {MAX_CATEGORIES}"] += len(beyond)
        return distinct[:MAX_CATEGORIES]

    def _metadata(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: self.text(value) if isinstance(value, str) else value for name, value in metadata.items()}
        kept = {name: value for name, value in kept.items() if value not in (None, "")}
        if len(orjson.dumps(kept)) > MAX_METADATA_BYTES:
            self.tally.left_out[f"metadata of an item above {MAX_METADATA_BYTES // 1024} KiB"] += 1
            return {}
        return kept


def is_item_id(key: str) -> bool:
    """Whether the API takes this as an item's id."""
    return _ITEM_ID.fullmatch(key) is not None and key not in (".", "..")


def is_user_id(key: str) -> bool:
    """Whether the API takes this as a user's id."""
    return _USER_ID.fullmatch(key) is not None and key not in (".", "..") and not _HALF.search(key)
