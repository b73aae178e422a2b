"""The rows that Lacuna takes: items and feedback events, whoever brings them.

`POST`, `lacuna import`, `lacuna prepare`, a bundle's catalogue and `lacuna train --from-db` all validate with these
models, so that a row is taken everywhere or nowhere. They are strict: no number passes for a string, no field goes
unnoticed, and no string holds a NUL character, which PostgreSQL could not store.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from models import patterns
from models.arrays import Array
from models.feedback import HIGHEST, LOWEST, RATED

MAX_TEXT_CHARS = 20_000  # unless the context of the validation says `text_chars`
ANY_LENGTH = 2**31  # for `text_chars`, where the rows were validated before
MAX_METADATA_BYTES = 64 * 1024  # of one item's metadata as JSON
MAX_METADATA_DEPTH = 16
MAX_VECTOR = 65_536
MAX_VALUE = 1e6  # of a vector: its square must stay finite in 32 bits, or similarities are not
MAX_CLOCK_AHEAD = timedelta(days=1)
_INTEGERS = range(-(2**63), 2**64)  # what JSON parsers keep whole

# --- parsing ------------------------------------------------------------------------------------------------------

_DIGITS_ALIKE = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19


def parse_json(raw: bytes) -> Any:
    """JSON as RFC 8259 has it: no NaN, no lone surrogates.

    An integer beyond 64 bits stays the integer it is, where the fast parser would round it to a double.

    Raises:
        ValueError: it is none; the message says where.
    """
    value = orjson.loads(raw)
    # Searching what all digits were made alike in is several times faster than a regular expression.
    return json.loads(raw) if _LONG_NUMBER in raw.translate(_DIGITS_ALIKE) else value


def decode_base64(value: str) -> bytes:
    """The bytes of a base64 text, which may be wrapped into lines or stand in a `data:` URI.

    Raises:
        ValueError: it is none.
    """
    if value[:5].lower() == "data:":
        head, comma, value = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("a data: URI must say ;base64 and hold its data after a comma")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("this is not base64") from None


def sentence(error: Mapping[str, Any]) -> str:
    """What is wrong with one value, for people; `error` is one of pydantic's `ValidationError.errors()`."""
    match error["type"]:
        case "string_pattern_mismatch":
            return patterns.SENTENCES.get(error["ctx"]["pattern"], str(error["msg"]))
        case "extra_forbidden":
            return "there is no such field"
        case "model_type":  # its own words name a class
            return "this has to be an object" + (", or a text" if "modalities" in error["loc"] else "")
    return str(error["msg"]).removeprefix("Value error, ")


def row_sentence(error: ValidationError) -> str:
    """What is wrong with a row first, and where in it."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = "/".join(map(str, first["loc"]))
    return f"{where}: {sentence(first)}" if where else sentence(first)


# --- values -------------------------------------------------------------------------------------------------------


def _no_dot_segment(value: str) -> str:
    """Clients resolve `.` and `..` in a path before they send it, so such an id could not be reached again."""
    if value in {".", ".."}:
        raise ValueError("'.' and '..' cannot stand in a path")
    return value


def _bounded_text(value: str, info: ValidationInfo) -> str:
    limit = (info.context or {}).get("text_chars", MAX_TEXT_CHARS)
    if len(value) > limit:
        raise ValueError(f"this may have {limit} characters at most")
    return value


def _finite_array(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """A vector as float32 `[dim]`; lists of numbers come from JSON, arrays from the readers of datasets."""
    if not isinstance(value, np.ndarray):
        value = handler(value)
    elif value.ndim != 1 or not 1 <= value.size <= MAX_VECTOR or value.dtype.kind != "f":
        raise ValueError(f"a vector has 1 to {MAX_VECTOR} numbers")
    with np.errstate(over="ignore"):
        vector = np.asarray(value, dtype=np.float32)
    if not (np.isfinite(vector).all() and np.abs(vector).max() <= MAX_VALUE):
        raise ValueError("a vector holds finite numbers between -1e6 and 1e6 only")
    return vector


ItemId = Annotated[str, StringConstraints(pattern=patterns.ITEM_ID), AfterValidator(_no_dot_segment)]
UserId = Annotated[str, StringConstraints(pattern=patterns.USER_ID), AfterValidator(_no_dot_segment)]
ModalityName = Annotated[str, StringConstraints(pattern=patterns.NAME)]
Category = Annotated[str, StringConstraints(pattern=patterns.LABEL)]
RecommendationId = Annotated[str, StringConstraints(pattern=patterns.LABEL)]
EventType = Literal["view", "click", "cart", "purchase", "rating", "review", "like", "dislike", "return"]
Title = Annotated[str, StringConstraints(max_length=1_000, pattern=patterns.PROSE)]
Text = Annotated[str, StringConstraints(pattern=patterns.PROSE), AfterValidator(_bounded_text)]
Vector = Annotated[
    list[FiniteFloat], Field(min_length=1, max_length=MAX_VECTOR), WrapValidator(_finite_array)
]  # validated to a float32 array


def _bounded_metadata(value: dict[str, Any]) -> dict[str, Any]:
    stack: list[tuple[object, int]] = [(value, 1)]
    while stack:
        node, level = stack.pop()
        if level > MAX_METADATA_DEPTH:
            raise ValueError(f"metadata may be nested {MAX_METADATA_DEPTH} levels deep at most")
        if isinstance(node, str) and "\0" in node:
            raise ValueError("no string may hold the NUL character")
        if isinstance(node, int) and node not in _INTEGERS:
            raise ValueError("an integer beyond 64 bits cannot be kept; send it as a string")
        if isinstance(node, dict):
            stack += [(child, level + 1) for child in (*node.keys(), *node.values())]
        elif isinstance(node, list):
            stack += [(child, level + 1) for child in node]
    if len(orjson.dumps(value)) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata may take {MAX_METADATA_BYTES} bytes as JSON at most")
    return value


Metadata = Annotated[dict[str, Any], AfterValidator(_bounded_metadata)]

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(value: object) -> datetime:
    if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
        raise ValueError("a timestamp is RFC 3339 with an offset, like 2026-01-31T12:00:00Z")
    try:
        moment = datetime.fromisoformat(value.upper())
    except ValueError:
        raise ValueError("no such date or time") from None
    now = datetime.now(UTC)
    in_reach = _EPOCH.year <= moment.year <= now.year + 1  # nearer the ends of the calendar an offset could overflow
    if not in_reach or not _EPOCH <= moment <= now + MAX_CLOCK_AHEAD:
        raise ValueError(f"a timestamp lies between {_EPOCH.year} and a day from now")
    return moment.astimezone(UTC)


Timestamp = Annotated[
    datetime,
    BeforeValidator(_moment, json_schema_input_type=Annotated[str, Field(json_schema_extra={"format": "date-time"})]),
]

# --- rows ---------------------------------------------------------------------------------------------------------


class Strict(BaseModel):
    """Nothing is coerced, nothing unknown passes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ContentObject(Strict):
    """A modality's content as an object: exactly one of its fields."""

    text: Text | None = None
    base64: str | None = Field(
        None, min_length=1, description="A picture's bytes, base64; wrapped lines and data: URIs are taken"
    )
    url: str | None = Field(
        None, min_length=1, max_length=2_048, description="A picture's public URL, where the service is set to fetch"
    )
    vector: Vector | None = Field(None, description="A ready feature vector of the modality's length")

    @model_validator(mode="after")
    def _exactly_one(self) -> ContentObject:
        if len(self.model_fields_set) != 1 or getattr(self, next(iter(self.model_fields_set))) is None:
            raise ValueError("exactly one of text, base64, url and vector must be given")
        return self

    @property
    def data(self) -> bytes | None:
        """The bytes of the picture, where there is one."""
        return None if self.base64 is None else decode_base64(self.base64)

    @property
    def array(self) -> Array | None:
        """The ready feature `[dim]`, where there is one."""
        return None if self.vector is None else np.asarray(self.vector, dtype=np.float32)


_LOCATION = re.compile(r"(?i)(?:https?://\S+|\S*\.(?:jpe?g|png|webp|gif|bmp|avif|tiff?|heic))\s*")
PICTURE = "image"


def _from_plain_text(value: object) -> object:
    return {"text": value} if isinstance(value, str) else value


def _no_locations(value: dict[str, ContentObject | None]) -> dict[str, ContentObject | None]:
    """A picture's name is no text that says what it shows, and no text at all is a picture."""
    for name, content in value.items():
        if content is None or content.text is None or name == "text":
            continue
        if _LOCATION.fullmatch(content.text):
            raise _at(
                name,
                'this is where a picture lies; send {"base64": ...}, or {"url": ...} where the service is set to fetch',
            )
        if name == PICTURE:
            raise _at(name, 'a picture is {"base64": ...} or {"vector": [...]}, not a text')
    return value


def _at(name: str, message: str) -> ValidationError:
    """An error that points at one key of a mapping."""
    error = PydanticCustomError("value_error", "{reason}", {"reason": message})
    return ValidationError.from_exception_data("modalities", [InitErrorDetails(type=error, loc=(name,), input=name)])


def read_pictures(row: Any, folder: Path) -> Any:
    """An item's row whose pictures are given as paths (`"image": "photos/a.jpg"`), with their bytes instead.

    Paths are relative to the `folder` of the row's file, and stay below it. All else is left as it is.

    Raises:
        ValueError: there is no such file, or it lies elsewhere.
    """
    modalities = row.get("modalities") if isinstance(row, dict) else None
    if not isinstance(modalities, dict):
        return row
    read = {name: _read_picture(name, content, folder) for name, content in modalities.items()}
    return {**row, "modalities": read}


def _read_picture(name: str, content: Any, folder: Path) -> Any:
    is_path = isinstance(content, str) and name != "text" and _LOCATION.fullmatch(content) and "://" not in content
    if not is_path:
        return content
    file = (folder / content.strip()).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r}: {content} lies outside the folder of the file that names it")
    if not file.is_file():
        raise ValueError(f"{name!r}: there is no file {content} beside the file that names it")
    return {"base64": base64.b64encode(file.read_bytes()).decode("ascii")}


ContentIn = Annotated[ContentObject, BeforeValidator(_from_plain_text, json_schema_input_type=Text | ContentObject)]
Modalities = Annotated[dict[ModalityName, ContentIn], Field(max_length=64), AfterValidator(_no_locations)]
PatchedModalities = Annotated[dict[ModalityName, ContentIn | None], Field(max_length=64), AfterValidator(_no_locations)]
Categories = Annotated[list[Category], Field(max_length=32)]


class ImputeBody(Strict):
    """An item without its id."""

    title: Title | None = None
    modalities: Modalities = {}
    categories: Categories = []
    metadata: Metadata = {}
    available: bool = True


class ItemBody(ImputeBody):
    """An item as a client describes it."""

    id: ItemId


class EventBody(Strict):
    """One feedback event."""

    user: UserId
    item: ItemId
    type: EventType
    value: FiniteFloat | None = Field(None, description="1..5 for a review, and for a rating, which needs it")
    text: Text | None = None
    timestamp: Timestamp | None = Field(None, description="RFC 3339 with an offset; now where left out")
    recommendation_id: RecommendationId | None = None

    @model_validator(mode="after")
    def _rating_in_range(self) -> EventBody:
        if self.type == "rating" and (self.value is None or not LOWEST <= self.value <= HIGHEST):
            raise ValueError("a rating needs a value between 1 and 5")
        if self.type in RATED and self.value is not None and not LOWEST <= self.value <= HIGHEST:
            raise ValueError("a review's value lies between 1 and 5")
        return self


ITEM_ROW: TypeAdapter[ItemBody] = TypeAdapter(ItemBody)
EVENT_ROW: TypeAdapter[EventBody] = TypeAdapter(EventBody)


def is_taken(row_type: TypeAdapter[Any], row: object, left_out: Counter[str]) -> bool:
    """Whether a stored row is one that would be taken today, whatever the length of its texts; if not, why is counted
    in `left_out`. What is stored may be older than the rules."""
    try:
        row_type.validate_python(row, context={"text_chars": ANY_LENGTH})
    except ValidationError as error:
        left_out[row_sentence(error)] += 1
        return False
    return True
