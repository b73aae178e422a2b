"""The service's objects and errors; knows no framework, database or model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any, Generic, TypeVar

from models.arrays import Array

Vector = Array
T = TypeVar("T")


class State(StrEnum):
    """Where the feature of a modality of an item comes from, if it has one."""

    OBSERVED = "observed"
    GENERATED = "generated"
    ABSENT = "absent"


# --- content: what a client sent for a modality ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextContent:
    """A modality given as text."""

    text: str


@dataclass(frozen=True, slots=True)
class MediaContent:
    """A modality given as a file (a picture), as bytes not yet decoded."""

    data: bytes
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class VectorContent:
    """A modality given as a ready feature vector."""

    vector: Vector


@dataclass(frozen=True, slots=True)
class UrlContent:
    """A modality given as a picture's URL, not yet fetched."""

    url: str


Content = TextContent | MediaContent | VectorContent | UrlContent


@dataclass(frozen=True, slots=True)
class Draft:
    """An item as a client describes it, parsed but neither encoded nor stored. `id` is empty for `/impute`."""

    id: str
    title: str | None = None
    modalities: Mapping[str, Content] = field(default_factory=dict)
    categories: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    available: bool = True


class Unset(Enum):
    """The type of UNSET, which stands for a field that a patch leaves as it is."""

    UNSET = "unset"


UNSET = Unset.UNSET


@dataclass(frozen=True, slots=True)
class Patch:
    """A JSON merge patch of an item. A field that was left out is UNSET; a modality mapped to None is removed."""

    title: str | Unset | None = UNSET
    modalities: Mapping[str, Content | None] = field(default_factory=dict)
    categories: tuple[str, ...] | Unset = UNSET
    metadata: Mapping[str, Any] | Unset = UNSET  # itself a merge patch: a None value removes its key
    available: bool | Unset = UNSET


# --- what is stored ----------------------------------------------------------------------------------------------


TITLE_SOURCE = "title"


@dataclass(frozen=True, slots=True)
class Observed:
    """An observed modality: its feature and the content it came from.

    `source` is `text`, `title` (which stood in for a text), `media` or `vector`. `text` holds the text itself, `media`
    the sha256 of the stored file.
    `encoder` identifies what made the vector (id and weights' hash); it is empty for ready vectors.
    """

    vector: Vector
    source: str
    encoder: str = ""
    text: str | None = None
    media: str | None = None
    media_type: str | None = None

    @property
    def is_title(self) -> bool:
        """Whether the title stands in for it."""
        return self.source == TITLE_SOURCE


@dataclass(frozen=True, slots=True)
class Generated:
    """A generated modality: raw feature, who made it from what, and the expected centred cosine to the true one."""

    vector: Vector
    generator: str
    confidence: float
    basis: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Remark:
    """A remark on the content that was given for a modality.

    `detail` tells why it is no observation, so that the modality counts as missing; `text` is then the text of which
    nothing could be read. `truncated`: the encoder reads less than the whole text.
    """

    detail: str | None = None
    truncated: bool = False
    text: str | None = None


@dataclass(frozen=True, slots=True)
class StoredItem:
    """Everything that is kept of an item.

    `derived` is the item's row of model state (pipeline.catalogue packs and unpacks it) under `model_version`; it can
    be recomputed at any time, and is stored so that a restart gives the same bits. It is empty, and so is `generated`,
    while the model has not seen this version of the item, which was written under another one; `former` is then what
    it had made of an earlier version. `row` is the item's number in SQL, never given twice; 0 for an item that is not
    stored yet.
    """

    id: str
    title: str | None
    categories: tuple[str, ...]
    metadata: Mapping[str, Any]
    available: bool
    version: int
    created_at: datetime
    updated_at: datetime
    observed: Mapping[str, Observed]
    generated: Mapping[str, Generated]
    model_version: str
    derived: bytes
    row: int = 0
    remarks: Mapping[str, Remark] = field(default_factory=dict)  # by modality
    is_pending: bool = False  # whether what is derived of it is about to be derived anew
    former: bytes = b""

    def state_of(self, modality: str) -> State:
        """State of one modality."""
        if modality in self.observed:
            return State.OBSERVED
        return State.GENERATED if modality in self.generated else State.ABSENT


class ModelState(StrEnum):
    """What a model is to a database: known, nothing of it kept; being prepared; ready, to be served once every worker
    is; active; what was active before, kept for going back; refused; failed."""

    KNOWN = "known"
    PREPARING = "preparing"
    READY = "ready"
    ACTIVE = "active"
    PREVIOUS = "previous"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a database is or was served with, by its row there; `identity` tells its bundle from every other.

    `position`: up to there, the change log's entries of other models are enqueued for this one. `worker` prepares it
    until `leased_until`.
    """

    id: int
    identity: str
    version: str
    state: ModelState
    position: int
    detail: str | None
    progress: Mapping[str, Any]
    forced: bool
    updated_at: datetime
    worker: str | None
    leased_until: datetime | None


@dataclass(frozen=True, slots=True)
class Event:
    """One feedback event. `item` and `user` are external ids; `timestamp` is aware, in UTC."""

    user: str
    item: str
    type: str
    timestamp: datetime
    value: float | None = None
    text: str | None = None
    recommendation_id: str | None = None


@dataclass(frozen=True, slots=True)
class Review:
    """A rating or review as documents need it: its row in SQL, whose, of what, stars, and what it says.

    `text` is only given where `vector` is not yet made (by the encoder that was asked for); `words` counts what of the
    text is read.
    """

    row: int
    user: str
    item: str
    value: float | None
    text: str | None
    words: int = 0
    vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class User:
    """What is stored of a user, in numbers."""

    id: str
    events: int
    items: int
    first_event: datetime
    last_event: datetime


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list and the cursor of the next, or None at the end."""

    items: list[T]
    next_cursor: str | None


# --- what is answered --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModalityReport:
    """State and provenance of one modality of one item. `confidence` and `basis` only when generated; `detail` and
    `truncated` as in `Remark`; `from_title` where the title stands in for a text that was not given; `used` unless a
    generated feature's confidence is too low for it to count; `calibrated_on` so many pairs of generated and real
    features, where the confidence is."""

    state: State
    generator: str | None = None
    confidence: float | None = None
    basis: tuple[str, ...] = ()
    detail: str | None = None
    truncated: bool = False
    from_title: bool = False
    used: bool = True
    calibrated_on: int | None = None


@dataclass(frozen=True, slots=True)
class ItemView:
    """An item as it is answered."""

    id: str
    title: str | None
    categories: tuple[str, ...]
    metadata: Mapping[str, Any]
    available: bool
    version: int
    created_at: datetime
    updated_at: datetime
    model_version: str
    modalities: Mapping[str, ModalityReport]
    text: str | None = None  # the text modality's content, where it came as text
    media: Mapping[str, str] = field(default_factory=dict)  # modality -> sha256 of its stored file
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    is_pending: bool = False  # see StoredItem


@dataclass(frozen=True, slots=True)
class Written:
    """The outcome of one write: the item, and whether it is new."""

    item: ItemView
    created: bool


@dataclass(frozen=True, slots=True)
class Match:
    """Through which modality a search found an item, and whether that modality's feature is real."""

    modality: str
    state: State


@dataclass(frozen=True, slots=True)
class Reason:
    """An item of a history, and its relevance to another one.

    `relevance` is what it adds to the score, which may be below 0; `interest` how much it counts for the other item
    (a_ij), whatever their similarity; `effects` by how much each of its modalities raises the relevance, `modalities`
    the size of these as shares of 1, and `states` whether their features are real.
    """

    item: str
    title: str | None
    relevance: float
    interest: float
    effects: Mapping[str, float]
    modalities: Mapping[str, float]
    states: Mapping[str, State]


@dataclass(frozen=True, slots=True)
class Hit:
    """One item of an answered list, best first."""

    id: str
    title: str | None
    score: float
    modalities: Mapping[str, State]
    matched: Match | None = None
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Recommendations:
    """A ranked list. `fallback` names what stood in for the model (`popular`, `latest`), or is None."""

    user: str | None
    recommendation_id: str
    model: str
    model_version: str
    fallback: str | None
    items: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a user's history says of an item: `score` is `item_bias`, the same for everybody, and all relevances.

    `fallback` names what the score rests on where no item of the history is relevant, or is None.
    """

    user: str
    item: str
    title: str | None
    score: float
    item_bias: float
    modalities: Mapping[str, State]
    reasons: tuple[Reason, ...]
    model_version: str
    fallback: str | None


@dataclass(frozen=True, slots=True)
class ModalityDetail:
    """One modality of one item: report, content's description, nearest items by observed feature, the vector."""

    item: str
    modality: str
    report: ModalityReport
    source: str | None
    text: str | None
    media: str | None
    neighbours: tuple[Hit, ...]
    vector: Vector | None


@dataclass(frozen=True, slots=True)
class Imputation:
    """The answer of `/impute`: as for an item, with the generated vectors and each modality's neighbours."""

    model_version: str
    modalities: Mapping[str, ModalityDetail]
    timings_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ListChange:
    """How a user's list would change with an item: its place in the list before and after, None where it would not be
    listed or is too far behind, and by how many places it would rise; whether it is in the user's history, so that the
    user's vector would change, how many of the first items would be others, and whether these would change at all."""

    user: str
    before: int | None
    after: int | None
    places: int | None
    in_history: bool
    replaced: int
    is_changed: bool


@dataclass(frozen=True, slots=True)
class ListChanges:
    """How lists of `n` of so many `sampled` users would change, as far as `depth` places are looked at: how many would,
    in how many the item stands, before and after, who would get to see it and who no more, and those lists."""

    n: int
    depth: int
    seed: int
    sampled: int
    changed: int
    audience_before: int
    audience_after: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    lists: tuple[ListChange, ...]


@dataclass(frozen=True, slots=True)
class SearchChange:
    """An item whose observed feature is searched by, the place of the item in question before and after, None where it
    is not found, and by how many places it would rise."""

    id: str
    title: str | None
    before: int | None
    after: int | None
    places: int | None


@dataclass(frozen=True, slots=True)
class SearchChanges:
    """How searches by one modality would change, as far as `depth` places are looked at: of so many `searched`, those
    that would."""

    depth: int
    searched: int
    changed: int
    searches: tuple[SearchChange, ...]


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What would change if an item lacked some modalities, or had others: the reports on its modalities, lists and
    searches, and how many other items would be derived anew because of it, which is not looked at."""

    id: str
    model_version: str
    before: Mapping[str, ModalityReport]
    after: Mapping[str, ModalityReport]
    lists: ListChanges
    searches: Mapping[str, SearchChanges]
    dependents: int
    timings_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FeedbackOutcome:
    """How many events were accepted (a repeated one counts: it is stored already), and which were not and why."""

    accepted: int
    rejected: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class PredictedRating:
    """What a user would rate an item: within 1..5, with a 90 % interval, and what it rests on.

    `unknown` names the sides of which there are no reviews.
    """

    user: str
    item: str
    rating: float
    interval: tuple[float, float]
    modalities: Mapping[str, State]
    unknown: tuple[str, ...]


# --- errors ------------------------------------------------------------------------------------------------------


class LacunaError(Exception):
    """Base of the service's own errors. `slug` is the stable problem type; the message is for people.

    Attributes:
        reason: what the log says and the message, which clients read, does not; without one, the message.
    """

    slug = "error"
    title = "Error"

    def __init__(self, message: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class InvalidInputError(LacunaError):
    """The request's content cannot be used. `pointer` is a JSON pointer to the culprit."""

    slug = "invalid-input"
    title = "Invalid input"

    def __init__(self, detail: str, pointer: str = "") -> None:
        super().__init__(detail)
        self.pointer = pointer


class UnknownModalityError(InvalidInputError):
    """A modality that the active bundle does not declare."""

    slug = "unknown-modality"
    title = "Unknown modality"


class InvalidVectorError(InvalidInputError):
    """A vector of the wrong length, or with values that are not finite numbers."""

    slug = "invalid-vector"
    title = "Invalid vector"


class InvalidImageError(InvalidInputError):
    """Bytes that are no picture, a broken or an oversized one."""

    slug = "invalid-image"
    title = "Invalid image"


class FetchError(InvalidInputError):
    """A picture's URL that leads to no picture, or to where the service does not go."""

    slug = "image-not-fetched"
    title = "Image not fetched"


class ItemNotFoundError(LacunaError):
    """No item has this id."""

    slug = "item-not-found"
    title = "Item not found"


class ItemExistsError(LacunaError):
    """An item with this id exists already."""

    slug = "item-exists"
    title = "Item exists already"


class UserNotFoundError(LacunaError):
    """Nothing is stored of this user."""

    slug = "user-not-found"
    title = "User not found"


class ConflictError(LacunaError):
    """What is asked for does not go with what others are doing: an item that they keep changing, say."""

    slug = "conflict"
    title = "Conflicting write"


class ModelNotFoundError(LacunaError):
    """There is no bundle of this version."""

    slug = "model-not-found"
    title = "No such bundle"


class BundleRefusedError(LacunaError):
    """A bundle that is not to be served here."""

    slug = "bundle-refused"
    title = "Bundle refused"


class NotServedError(LacunaError):
    """The active bundle does not hold what the request needs."""

    slug = "not-served"
    title = "Not offered by the active bundle"


class NotReadyError(LacunaError):
    """The service is starting, or one of its parts is away."""

    slug = "not-ready"
    title = "Not ready"


class NotFollowedError(LacunaError):
    """This worker has not followed the change log as far as the request asks."""

    slug = "not-followed"
    title = "Not followed yet"


class StoreUnavailableError(LacunaError):
    """The database does not answer."""

    slug = "store-unavailable"
    title = "Database unavailable"


class StoreFullError(StoreUnavailableError):
    """The database has no room for a write; nothing of it was done."""

    slug = "store-full"
    title = "Database full"


class ChangesLostError(Exception):
    """Entries of the change log that a worker has not read yet were trimmed. Never answered: the worker reads all."""
