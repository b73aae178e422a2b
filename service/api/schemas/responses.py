"""What the API answers, as the OpenAPI document describes it. The answers themselves are the service's own objects,
written as they are or as `service.api.answers` transforms them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from service.domain import State


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
    calibrated_on: int | None = Field(
        None,
        description="how many pairs of a generated feature and the real one that replaced it the confidence is from",
    )
    used: bool = Field(True, description="false where the confidence is below LACUNA_MIN_CONFIDENCE")
    detail: str | None = Field(
        None, description="why what was given is no observation, and the modality missing; why it is not used"
    )
    truncated: bool = Field(False, description="the text is longer than its encoder reads")
    source: str | None = Field(None, description="title, where the title stands in for a text that was not given")


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
    pending: bool = Field(description="Whether what is generated and computed of it is about to be made anew")
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
    interest: float = Field(description="how much it counts for the other, a_ij, however similar they are")
    effects: dict[str, float] = Field(
        description="by how much each of its modalities raises the relevance: the relevance less what it is without"
    )
    modalities: dict[str, float] = Field(
        description="how the relevance falls to the item's modalities: the size of the effects, as shares of 1"
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


class ModalityChange(BaseModel):
    """State of a modality as it is and as it would be."""

    before: ModalityAnswer
    after: ModalityAnswer


class ListChangeAnswer(BaseModel):
    """How the first items of a user's list would change."""

    user: str
    before: int | None = Field(description="the item's place; null where it is not listed, or beyond `depth`")
    after: int | None
    places: int | None = Field(description="by how many places it would rise; below 0 it would fall")
    in_history: bool = Field(description="whether it is in the user's history, so that all scores would change")
    replaced: int = Field(description="how many of the first `n` items would be others")


class ListChangesAnswer(BaseModel):
    """How the lists of a sample of users would change: `users` are those whose would."""

    n: int
    depth: int
    seed: int
    sampled: int = Field(description="users that were drawn, by their feedback, so that active ones are likelier")
    changed: int
    users: list[ListChangeAnswer]


class AudienceAnswer(BaseModel):
    """In how many of these lists the item stands, and for whom it would be new there or gone."""

    before: int
    after: int
    gained: list[str]
    lost: list[str]


class SearchChangeAnswer(BaseModel):
    """A search by the observed feature of an item, and the place of the item in question."""

    id: str
    title: str | None
    before: int | None
    after: int | None
    places: int | None


class SearchChangesAnswer(BaseModel):
    """How searches by one modality would change: `items` are those that would."""

    depth: int
    searched: int = Field(description="searches by the items whose feature is nearest to the former or the new one")
    changed: int
    items: list[SearchChangeAnswer]


class WhatIfAnswer(BaseModel):
    """What would change if an item lacked some modalities or had others; nothing is stored."""

    id: str
    model_version: str
    modalities: dict[str, ModalityChange]
    lists: ListChangesAnswer
    audience: AudienceAnswer
    searches: dict[str, SearchChangesAnswer] = Field(description="by each modality whose feature would be another one")
    dependents: int = Field(
        description="other items whose generated features would be made anew because of it, which is not part of this"
    )
    timings_ms: dict[str, float]


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


class PendingAnswer(BaseModel):
    """What is derived, but not yet from the present state."""

    items: int = Field(description="Items to regenerate")
    changes: int = Field(description="Changes of features that have yet to reach other items")
    oldest_seconds: float = Field(description="For how long the oldest of these has waited")
    vectors: int = Field(description="Vectors to compute in the memory of the worker that answers")
    through: int = Field(
        description="Position of the change log up to which all that is derived is computed in that worker"
    )


class DifferenceAnswer(BaseModel):
    """What of an item is not as it is derived, and the largest difference in shares of a field's largest number."""

    id: str
    fields: list[str]
    largest: float


class CheckAnswer(BaseModel):
    """What a check has found. `differences` names the first hundred of the differing items."""

    checked: int
    of: int
    differing: int
    pending: PendingAnswer
    differences: list[DifferenceAnswer]


class RebuildAnswer(BaseModel):
    """How many items will be derived anew."""

    items: int


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


class ModelAnswer(BaseModel):
    """A bundle: what it was trained on, its encoders by modality (None: it takes ready vectors alone), its models with
    their form and metrics. What is no longer in LACUNA_BUNDLES has its version, state and detail alone."""

    version: str
    state: Literal["available", "preparing", "active", "previous", "refused", "failed"]
    created_at: str | None = None
    trained_on: dict[str, Any] | None = None
    encoders: dict[str, Any] | None = None
    modalities: list[dict[str, Any]] | None = None
    models: dict[str, Any] | None = None
    detail: str | None = Field(None, description="why it was refused, or has failed")
    progress: dict[str, Any] | None = Field(
        None, description="while it is made ready: the `step`, and how many items of how many are `done`"
    )


class ModelsAnswer(BaseModel):
    """The bundles that can be served, the active one first."""

    models: list[ModelAnswer]


class HealthAnswer(BaseModel):
    """How the service is."""

    status: str


class ProblemDescription(BaseModel):
    """What a problem's type means."""

    type: str
    description: str
