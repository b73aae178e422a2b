"""What the API takes and answers, as pydantic models, and the step from the taken ones to the service's objects.

The models of requests are strict: no number passes for a string, no field goes unnoticed, and no string holds a NUL
character, which PostgreSQL could not store. The models of answers document the OpenAPI schema; the answers themselves
are written by `answers`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
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
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from service.api import limits, patterns
from service.api.errors import pointer
from service.domain import (
    EVENT_TYPES,
    MAX_METADATA_BYTES,
    UNSET,
    Content,
    Draft,
    Event,
    InvalidInputError,
    InvalidVectorError,
    MediaContent,
    Patch,
    State,
    TextContent,
    UrlContent,
    VectorContent,
)

MAX_METADATA_DEPTH = 16
MAX_VECTOR = 65_536
MAX_CLOCK_AHEAD = timedelta(days=1)

# --- values -------------------------------------------------------------------------------------------------------


def _no_dot_segment(value: str) -> str:
    """Clients resolve `.` and `..` in a path before they send it, so such an id could not be reached again."""
    if value in {".", ".."}:
        raise ValueError("'.' and '..' cannot stand in a path")
    return value


ItemId = Annotated[str, StringConstraints(pattern=patterns.ITEM_ID), AfterValidator(_no_dot_segment)]
UserId = Annotated[str, StringConstraints(pattern=patterns.USER_ID), AfterValidator(_no_dot_segment)]
ModalityName = Annotated[str, StringConstraints(pattern=patterns.NAME)]
Category = Annotated[str, StringConstraints(pattern=patterns.LABEL)]
Categories = Annotated[
    list[Category],
    Field(max_length=32, description="Only items that are in it; of several, in all"),
    AfterValidator(lambda several: list(dict.fromkeys(several))),
]
RecommendationId = Annotated[str, StringConstraints(pattern=patterns.LABEL)]
Title = Annotated[str, StringConstraints(max_length=1_000, pattern=patterns.PROSE)]
Text = Annotated[str, StringConstraints(pattern=patterns.PROSE), AfterValidator(limits.check_text)]
Floats = Annotated[list[FiniteFloat], Field(min_length=1, max_length=MAX_VECTOR)]
ModelName = Literal["dgmrec", "iris", "popular", "latest"]
Diversity = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[
    int, Field(ge=1, description="500 at most, unless configured otherwise"), AfterValidator(limits.check_n)
]


def _known_type(value: str) -> str:
    if value not in EVENT_TYPES:
        raise ValueError(f"an event's type is one of {', '.join(EVENT_TYPES)}")
    return value


EventType = Annotated[str, AfterValidator(_known_type), Field(json_schema_extra={"enum": list(EVENT_TYPES)})]


def _one_or_several(value: object, several: ValidatorFunctionWrapHandler) -> object:
    if value is None:
        return []
    if not isinstance(value, str):
        return several(value)
    try:
        return several([value])
    except ValidationError:  # its pointer would lead into a list that is none
        raise ValueError(patterns.SENTENCES[patterns.LABEL]) from None


OneOrSeveral = Annotated[
    Categories, WrapValidator(_one_or_several, json_schema_input_type=Category | list[Category] | None)
]


def _bounded_metadata(value: dict[str, Any]) -> dict[str, Any]:
    stack: list[tuple[object, int]] = [(value, 1)]
    while stack:
        node, level = stack.pop()
        if level > MAX_METADATA_DEPTH:
            raise ValueError(f"metadata may be nested {MAX_METADATA_DEPTH} levels deep at most")
        if isinstance(node, str) and "\0" in node:
            raise ValueError("no string may hold the NUL character")
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

# --- requests -----------------------------------------------------------------------------------------------------


class Strict(BaseModel):
    """A request's object: nothing is coerced, nothing unknown passes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ContentObject(Strict):
    """A modality's content as an object: exactly one of its fields."""

    text: Text | None = None
    base64: str | None = Field(None, min_length=1, description="A picture's bytes, base64")
    url: str | None = Field(
        None, min_length=1, max_length=2_048, description="A picture's public URL, where the service is set to fetch"
    )
    vector: Floats | None = Field(None, description="A ready feature vector of the modality's length")

    @model_validator(mode="after")
    def _exactly_one(self) -> ContentObject:
        if len(self.model_fields_set) != 1 or getattr(self, next(iter(self.model_fields_set))) is None:
            raise ValueError("exactly one of text, base64, url and vector must be given")
        return self


def _from_plain_text(value: object) -> object:
    return {"text": value} if isinstance(value, str) else value


ContentIn = Annotated[ContentObject, BeforeValidator(_from_plain_text, json_schema_input_type=Text | ContentObject)]
Modalities = Annotated[dict[ModalityName, ContentIn], Field(max_length=64)]


class ImputeBody(Strict):
    """An item without an id, for `POST /impute`."""

    title: Title | None = None
    modalities: Modalities = {}
    categories: list[Category] = Field([], max_length=32)
    metadata: Metadata = {}
    available: bool = True


class ItemBody(ImputeBody):
    """An item as a client describes it."""

    id: ItemId


class PutBody(ImputeBody):
    """An item whose id stands in the path; given here too, it must be the same."""

    id: ItemId | None = None


class PatchBody(Strict):
    """A JSON merge patch (RFC 7396) of an item: null removes a modality or the title, what is left out stays."""

    title: Title | None = None
    modalities: Annotated[dict[ModalityName, ContentIn | None], Field(max_length=64)] = {}
    categories: Annotated[list[Category], Field(max_length=32)] | None = None
    metadata: Metadata = {}
    available: bool = True


class BatchBody(Strict):
    """Many items; each row is read by itself."""

    items: Annotated[list[Any], AfterValidator(limits.check_batch)] = Field(
        min_length=1,
        description="1,000 rows at most, unless configured otherwise",
        json_schema_extra={"items": {"$ref": "#/components/schemas/ItemBody"}},
    )


class EventBody(Strict):
    """One feedback event."""

    user: UserId
    item: ItemId
    type: Literal["view", "click", "cart", "purchase", "rating", "review"]
    value: FiniteFloat | None = Field(None, description="1..5 for a review, and for a rating, which needs it")
    text: Text | None = None
    timestamp: Timestamp | None = Field(None, description="RFC 3339 with an offset; now where left out")
    recommendation_id: RecommendationId | None = None

    @model_validator(mode="after")
    def _rating_in_range(self) -> EventBody:
        if self.type == "rating" and (self.value is None or not 1 <= self.value <= 5):
            raise ValueError("a rating needs a value between 1 and 5")
        if self.type == "review" and self.value is not None and not 1 <= self.value <= 5:
            raise ValueError("a review's value lies between 1 and 5")
        return self


class FeedbackBody(Strict):
    """Many events; each row is read by itself."""

    feedback: Annotated[list[Any], AfterValidator(limits.check_feedback)] = Field(
        min_length=1,
        description="10,000 rows at most, unless configured otherwise",
        json_schema_extra={"items": {"$ref": "#/components/schemas/EventBody"}},
    )


class WeightedItem(Strict):
    """An item of a session, and how much it counts."""

    id: ItemId
    weight: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False)


class PairBody(Strict):
    """A user and an item."""

    user: UserId
    item: ItemId


class PairsBody(Strict):
    """Pairs to be rated."""

    pairs: list[PairBody] = Field(min_length=1, max_length=1_000)


class SessionBody(Strict):
    """A session without a user."""

    items: list[WeightedItem] = Field(min_length=1, max_length=1_000)
    n: Count = 20
    model: ModelName | None = None
    category: OneOrSeveral = []
    exclude_seen: bool = True
    diversity: Diversity = 0.0
    explain: bool = False


class RetrieveBody(Strict):
    """A search by exactly one of text, picture and ready vector."""

    text: Text | None = None
    image: ContentIn | None = None
    vector: Annotated[dict[ModalityName, Floats], Field(min_length=1, max_length=1)] | None = Field(
        None, description="The modality's name mapped to the query's vector"
    )
    n: Count = 20
    target: ModalityName = "any"
    include_generated: bool = True
    category: OneOrSeveral = []

    @model_validator(mode="after")
    def _exactly_one(self) -> RetrieveBody:
        if sum(query is not None for query in (self.text, self.image, self.vector)) != 1:
            raise ValueError("exactly one of text, image and vector must be given")
        return self


class Query(BaseModel):
    """Query parameters: read from text, so numbers and booleans are converted, but nothing unknown passes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ListQuery(Query):
    """What part of the catalogue to list."""

    limit: Count = 50
    cursor: str | None = Field(None, min_length=1, max_length=512)
    category: Categories = []
    missing: ModalityName | None = Field(None, description="Only items that lack this modality")
    q: str | None = Field(None, min_length=1, max_length=256, description="A part of the id or title")


class ModalityQuery(Query):
    """What to tell about a modality."""

    neighbours: int = Field(5, ge=0, le=100)
    vector: bool = False


class ImputeQuery(Query):
    """What to tell about each generated modality."""

    neighbours: int = Field(5, ge=0, le=100)


class SimilarQuery(Query):
    """How to find similar items."""

    n: Count = 20
    by: ModalityName = Field("final", description="`final` or a modality")


class StrictQuery(Query):
    """All or nothing."""

    strict: bool = False


class FeedbackQuery(Query):
    """Which events to list."""

    user: UserId | None = None
    item: ItemId | None = None
    type: EventType | None = None
    limit: Count = 50
    cursor: str | None = Field(None, min_length=1, max_length=512)


class FeedbackDeleteQuery(Query):
    """Which events to delete: at least one of these."""

    user: UserId | None = None
    item: ItemId | None = None
    type: EventType | None = None


class RecommendQuery(Query):
    """How to rank for a user."""

    n: Count = 20
    model: ModelName | None = None
    category: Categories = []
    exclude_seen: bool = True
    diversity: Diversity = 0.0
    explain: bool = False
    strict: bool = False


class RetrieveQuery(Query):
    """A search by text."""

    text: Text
    n: Count = 20
    target: ModalityName = Field("any", description="`any` or a modality")
    include_generated: bool = True
    category: Categories = []


# --- from requests to the service's objects -----------------------------------------------------------------------


def to_content(body: ContentObject, at: str) -> Content:
    """The content that the body holds; `at` is the JSON pointer to it. Raises InvalidInputError."""
    if body.text is not None:
        return TextContent(body.text)
    if body.base64 is not None:
        return MediaContent(_decode_base64(body.base64, f"{at}/base64"))
    if body.vector is not None:
        return to_vector(body.vector, f"{at}/vector")
    return UrlContent(body.url or "")


def to_vector(values: list[float], at: str) -> VectorContent:
    """A vector as float32. Raises InvalidVectorError where a value is too large for that."""
    with np.errstate(over="ignore"):
        vector = np.asarray(values, dtype=np.float32)
    if not np.isfinite(vector).all():
        raise InvalidVectorError("a value is too large for a 32-bit float", at)
    return VectorContent(vector)


def _decode_base64(value: str, at: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInputError("this is not base64", at) from None


def _contents(modalities: Mapping[str, ContentObject]) -> dict[str, Content]:
    return {name: to_content(body, pointer(("modalities", name))) for name, body in modalities.items()}


def to_draft(body: ImputeBody, item_id: str = "") -> Draft:
    """The item a client describes. Raises InvalidInputError."""
    return Draft(
        id=item_id,
        title=body.title,
        modalities=_contents(body.modalities),
        categories=tuple(dict.fromkeys(body.categories)),
        metadata=body.metadata,
        available=body.available,
    )


def to_patch(body: PatchBody) -> Patch:
    """The patch a client describes; only what it names is set. Raises InvalidInputError."""
    given = body.model_fields_set
    return Patch(
        title=body.title if "title" in given else UNSET,
        modalities={
            name: None if content is None else to_content(content, pointer(("modalities", name)))
            for name, content in body.modalities.items()
        },
        categories=tuple(dict.fromkeys(body.categories or ())) if "categories" in given else UNSET,
        metadata=body.metadata if "metadata" in given else UNSET,
        available=body.available if "available" in given else UNSET,
    )


def to_event(body: EventBody, now: datetime) -> Event:
    """The event a client tells of; without a timestamp it happens `now`."""
    return Event(
        user=body.user,
        item=body.item,
        type=body.type,
        timestamp=body.timestamp or now,
        value=body.value,
        text=body.text,
        recommendation_id=body.recommendation_id,
    )


def to_query(body: RetrieveBody) -> dict[str, Content]:
    """The one modality of a search and its content. Raises InvalidInputError."""
    if body.text is not None:
        return {"text": TextContent(body.text)}
    if body.image is not None:
        return {"image": to_content(body.image, "/image")}
    vectors = body.vector or {}
    return {name: to_vector(values, pointer(("vector", name))) for name, values in vectors.items()}


def query_pointer(body: RetrieveBody) -> str:
    """The JSON pointer to what is searched by."""
    if body.vector is not None:
        return pointer(("vector", *body.vector))
    return "/text" if body.text is not None else "/image"


ITEM_ROW: TypeAdapter[ItemBody] = TypeAdapter(ItemBody)
EVENT_ROW: TypeAdapter[EventBody] = TypeAdapter(EventBody)

# --- answers, for the OpenAPI document ----------------------------------------------------------------------------


class ErrorPart(BaseModel):
    """What is wrong with one value."""

    pointer: str = Field(description="JSON pointer into the body, or /query/<name>, /path/<name>")
    detail: str


class ProblemAnswer(BaseModel):
    """A problem (RFC 9457)."""

    type: str = Field(description="/problems/<slug>, stable")
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[ErrorPart] = []


class ModalityAnswer(BaseModel):
    """State of a modality; generator, confidence and basis where it is generated."""

    state: State
    generator: str | None = None
    confidence: float | None = None
    basis: list[str] = []
    detail: str | None = Field(None, description="why what was given is no observation, and the modality missing")
    truncated: bool = Field(False, description="the text is longer than its encoder reads")


class WrittenAnswer(BaseModel):
    """The answer to a write."""

    id: str
    version: int
    model_version: str
    modalities: dict[str, ModalityAnswer]
    timings_ms: dict[str, float]


class ItemAnswer(BaseModel):
    """A whole item."""

    id: str
    title: str | None
    text: str | None
    categories: list[str]
    metadata: dict[str, Any]
    available: bool
    version: int
    model_version: str
    modalities: dict[str, ModalityAnswer]
    media: dict[str, str] = Field(description="Modality to the path of its stored file")
    created_at: datetime
    updated_at: datetime


class ItemPage(BaseModel):
    """A page of items."""

    items: list[ItemAnswer]
    next_cursor: str | None


class BatchRow(BaseModel):
    """What became of one row: the answer to a write, or a problem."""

    index: int
    id: str | None
    status: int
    version: int | None = None
    model_version: str | None = None
    modalities: dict[str, ModalityAnswer] | None = None
    timings_ms: dict[str, float] | None = None
    problem: ProblemAnswer | None = None


class BatchAnswer(BaseModel):
    """What became of each row."""

    items: list[BatchRow]


class MatchAnswer(BaseModel):
    """Through which modality a search found an item, and whether that feature is real."""

    modality: str
    state: State


class HitAnswer(BaseModel):
    """An item of a list."""

    id: str
    title: str | None
    score: float
    modalities: dict[str, State]
    matched: MatchAnswer | None = None


class HitsAnswer(BaseModel):
    """Found items, best first."""

    items: list[HitAnswer]


class ReasonAnswer(BaseModel):
    """An item of the history, and how it speaks for another one."""

    item: str
    title: str | None
    relevance: float = Field(description="what it adds to the other's score by IRIS; below 0 it speaks against")
    modalities: dict[str, float] = Field(
        description="how the relevance falls to the item's modalities: what it "
        "changes by were the modality not there, as shares of 1"
    )
    states: dict[str, State] = Field(description="of the same modalities")


class ExplanationAnswer(BaseModel):
    """What a user's history says of an item: the score by IRIS is `lean` and all relevances together."""

    user: str
    item: str
    title: str | None
    score: float
    lean: float = Field(description="the part of the score that the item has for everybody")
    modalities: dict[str, State]
    reasons: list[ReasonAnswer]
    model_version: str
    fallback: str | None = Field(description="`popular` where no item of the history speaks")


class RankedAnswer(HitAnswer):
    """A recommended item; with `explain=true` up to three items of the history that speak for it."""

    reasons: list[ReasonAnswer] | None = None


class RecommendationsAnswer(BaseModel):
    """A ranked list. `fallback` names what stood in for the model."""

    user: str | None
    recommendation_id: str
    model: str
    model_version: str
    fallback: str | None
    items: list[RankedAnswer]


class ModalityDetailAnswer(ModalityAnswer):
    """A modality of an item, and the items whose observed feature is nearest."""

    source: str | None
    text: str | None
    media: str | None
    neighbours: list[HitAnswer]
    vector: list[float] | None = None


class ImputationAnswer(BaseModel):
    """What was generated; nothing is stored."""

    model_version: str
    modalities: dict[str, ModalityDetailAnswer]
    timings_ms: dict[str, float]


class RejectedAnswer(BaseModel):
    """A row that was not accepted, and why."""

    index: int
    detail: str


class FeedbackAnswer(BaseModel):
    """How many events were accepted, and which were not."""

    accepted: int
    rejected: list[RejectedAnswer]


class EventAnswer(BaseModel):
    """A stored event."""

    user: str
    item: str
    type: str
    timestamp: datetime
    value: float | None = None
    text: str | None = None
    recommendation_id: str | None = None


class EventPage(BaseModel):
    """A page of events."""

    items: list[EventAnswer]
    next_cursor: str | None


class SnapshotAnswer(BaseModel):
    """A snapshot: where in the change log it stands, what it holds, how large it is and how long it took."""

    position: int
    items: int
    bytes: int
    seconds: float


class DeletedAnswer(BaseModel):
    """How many events were deleted."""

    deleted: int


class UserAnswer(BaseModel):
    """What is stored of a user, in numbers."""

    id: str
    events: int
    items: int
    first_event: datetime
    last_event: datetime


class PairAnswer(BaseModel):
    """What a user would rate an item: within 1..5, with a 90 % interval, and what it rests on."""

    user: str
    item: str
    rating: float
    interval: list[float] = Field(min_length=2, max_length=2, description="lower and upper end, 90 %")
    modalities: dict[str, State] = Field(description="user_reviews, item_reviews, and the item's own content")
    unknown: list[Literal["user", "item"]] = Field(description="sides of which there are no ratings and no reviews")


class PredictionAnswer(PairAnswer):
    """One predicted rating."""

    model_version: str


class PredictionsAnswer(BaseModel):
    """Predicted ratings, in the order of the pairs."""

    items: list[PairAnswer]
    model_version: str


class ModelsAnswer(BaseModel):
    """The bundles that are known."""

    models: list[dict[str, Any]]


class HealthAnswer(BaseModel):
    """How the service is."""

    status: str


class ProblemDescription(BaseModel):
    """What a problem's type means."""

    type: str
    description: str
