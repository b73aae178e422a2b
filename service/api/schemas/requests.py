"""What the API takes: pydantic models, and the step from them to the service's objects.

The models are strict: no number passes for a string, no field goes unnoticed, and no string holds a NUL character,
which PostgreSQL could not store.
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
    Modalities,
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
    TextContent,
    UrlContent,
    VectorContent,
)
from service.pipeline.what_if import Question

# --- values -------------------------------------------------------------------------------------------------------

SearchText = Annotated[str, StringConstraints(pattern=patterns.PROSE), AfterValidator(limits.check_text)]
ChosenCategories = Annotated[
    list[Category],
    Field(max_length=32, description="Only items that are in it; of several, in all"),
    AfterValidator(lambda several: list(dict.fromkeys(several))),
]
ModelName = Literal["dgmrec", "iris", "popular", "latest"]
IncludeGenerated = Annotated[
    bool,
    Field(
        description="false lists no item on the strength of a generated feature: none that has the modality which is "
        "searched by generated, or, where the list goes by whole items, any modality"
    ),
]
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
    include_generated: IncludeGenerated = True


class RetrieveBody(Strict):
    """A search by exactly one of text, picture and ready vector."""

    text: SearchText | None = None
    image: ContentIn | None = None
    vector: Annotated[dict[ModalityName, Vector], Field(min_length=1, max_length=1)] | None = Field(
        None, description="The modality's name mapped to the query's vector"
    )
    n: Count = 20
    target: ModalityName = "any"
    include_generated: IncludeGenerated = True
    category: OneOrSeveral = Field([])

    @model_validator(mode="after")
    def _exactly_one(self) -> RetrieveBody:
        if sum(query is not None for query in (self.text, self.image, self.vector)) != 1:
            raise ValueError("exactly one of text, image and vector must be given")
        return self


class WhatIfBody(Strict):
    """Modalities that an item is to lack or to have, and how much to look at."""

    withhold: list[ModalityName] = Field([], max_length=64, description="Modalities that the item has")
    add: Modalities = Field({}, description="Modalities with their content, new ones or others than it has")
    n: Count = 20
    users: int = Field(100, ge=0, le=1_000, description="Size of the sample of users")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="The same seed draws the same users")
    searches: int = Field(
        10, ge=0, le=100, description="Searches by each modality, near the former and the new feature"
    )


class Query(BaseModel):
    """Query parameters: read from text, so numbers and booleans are converted, but nothing unknown passes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ListQuery(Query):
    """What part of the catalogue to list."""

    limit: Count = 50
    cursor: str | None = Field(None, min_length=1, max_length=512)
    category: ChosenCategories = Field([])
    missing: ModalityName | None = Field(None, description="Only items that lack this modality")
    generated: bool | None = Field(
        None, description="Only items of which the missing modality, or without that any, is generated, or is not"
    )
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
    include_generated: IncludeGenerated = True


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
    include_generated: IncludeGenerated = True
    strict: bool = False


class RetrieveQuery(Query):
    """A search by text."""

    text: SearchText
    n: Count = 20
    target: ModalityName = Field("any", description="`any` or a modality")
    include_generated: IncludeGenerated = True
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


def to_question(body: WhatIfBody) -> Question:
    """What a client asks about an item. Raises InvalidInputError."""
    add = {name: to_content(content, pointer(("add", name))) for name, content in body.add.items()}
    return Question(tuple(dict.fromkeys(body.withhold)), add, body.n, body.users, body.seed, body.searches)


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
