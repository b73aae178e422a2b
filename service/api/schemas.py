"""What the API takes and answers, as pydantic models, and the step from the taken ones to the service's objects.

The models of requests are strict: no number passes for a string, no field goes unnoticed, and no string holds a NUL
character, which PostgreSQL could not store. The models of answers document the OpenAPI schema; the answers themselves
are written by `answers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from models import patterns
from models.rows import (
    Categories,
    Category,
    ContentIn,
    ContentObject,
    EventBody,
    EventType,
    ImputeBody,
    ItemId,
    Metadata,
    ModalityName,
    PatchedModalities,
    Strict,
    Title,
    UserId,
    Vector,
)
from service.api import limits
from service.api.errors import pointer
from service.domain import (
    UNSET,
    Content,
    Draft,
    Event,
    InvalidInputError,
    MediaContent,
    Patch,
    State,
    TextContent,
    UrlContent,
    VectorContent,
)

# --- values -------------------------------------------------------------------------------------------------------

SearchText = Annotated[str, StringConstraints(pattern=patterns.PROSE), AfterValidator(limits.check_text)]
ChosenCategories = Annotated[
    list[Category],
    Field(max_length=32, description="Only items that are in it; of several, in all"),
    AfterValidator(lambda several: list(dict.fromkeys(several))),
]
ModelName = Literal["dgmrec", "iris", "popular", "latest"]
Diversity = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[
    int, Field(ge=1, description="500 at most, unless configured otherwise"), AfterValidator(limits.check_n)
]


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
    ChosenCategories, WrapValidator(_one_or_several, json_schema_input_type=Category | list[Category] | None)
]


# --- requests -----------------------------------------------------------------------------------------------------


class PutBody(ImputeBody):
    """An item whose id stands in the path; given here too, it must be the same."""

    id: ItemId | None = None


class PatchBody(Strict):
    """A JSON merge patch (RFC 7396) of an item: null removes a modality or the title, what is left out stays."""

    title: Title | None = None
    modalities: PatchedModalities = Field({})
    categories: Categories | None = None
    metadata: Metadata = Field({})
    available: bool = True


class BatchBody(Strict):
    """Many items; each row is read by itself."""

    items: Annotated[list[Any], AfterValidator(limits.check_batch)] = Field(
        min_length=1,
        description="1,000 rows at most, unless configured otherwise",
        json_schema_extra={"items": {"$ref": "#/components/schemas/ItemBody"}},
    )


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
    category: OneOrSeveral = Field([])
    exclude_seen: bool = True
    diversity: Diversity = 0.0
    explain: bool = False


class RetrieveBody(Strict):
    """A search by exactly one of text, picture and ready vector."""

    text: SearchText | None = None
    image: ContentIn | None = None
    vector: Annotated[dict[ModalityName, Vector], Field(min_length=1, max_length=1)] | None = Field(
        None, description="The modality's name mapped to the query's vector"
    )
    n: Count = 20
    target: ModalityName = "any"
    include_generated: bool = True
    category: OneOrSeveral = Field([])

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
    category: ChosenCategories = Field([])
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
    category: ChosenCategories = Field([])
    exclude_seen: bool = True
    diversity: Diversity = 0.0
    explain: bool = False
    strict: bool = False


class RetrieveQuery(Query):
    """A search by text."""

    text: SearchText
    n: Count = 20
    target: ModalityName = Field("any", description="`any` or a modality")
    include_generated: bool = True
    category: ChosenCategories = Field([])


# --- from requests to the service's objects -----------------------------------------------------------------------


def to_content(body: ContentObject, at: str) -> Content:
    """The content that the body holds; `at` is the JSON pointer to it. Raises InvalidInputError."""
    if body.text is not None:
        return TextContent(body.text)
    if (vector := body.array) is not None:
        return VectorContent(vector)
    if body.base64 is None:
        return UrlContent(body.url or "")
    try:
        return MediaContent(body.data or b"")
    except ValueError as error:
        raise InvalidInputError(str(error), f"{at}/base64") from None


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
    return {name: VectorContent(np.asarray(values, dtype=np.float32)) for name, values in vectors.items()}


def query_pointer(body: RetrieveBody) -> str:
    """The JSON pointer to what is searched by."""
    if body.vector is not None:
        return pointer(("vector", *body.vector))
    return "/text" if body.text is not None else "/image"


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
    """What a user's history says of an item: the score by IRIS is `item_bias` and all relevances together."""

    user: str
    item: str
    title: str | None
    score: float
    item_bias: float = Field(description="the part of the score that the item has for everybody")
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
