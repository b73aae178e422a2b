"""What the service needs from the outside, as Protocols, which the adapters implement."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from models.arrays import Array, Mask, Rows
from models.bundle import Manifest
from models.calibration import CalibrationMap
from models.feedback import Interaction
from service.domain import (
    Event,
    Generated,
    ModelState,
    Observed,
    Page,
    Remark,
    Review,
    ServedModel,
    StoredItem,
    User,
    Vector,
)

Mode = Literal["create", "upsert"]
WriteResult = Literal["created", "replaced", "exists", "conflict"]
# unchanged: the same event is stored already; replaced: it was, with another value or text; orphan: no such item
EventResult = Literal["new", "unchanged", "replaced", "orphan"]
Side = Literal["user", "item"]
Keys = Rows  # of items, in the catalogue and in its indexes
T = TypeVar("T")

BUCKETS = 10  # of a confidence, of equal width


@dataclass(frozen=True, slots=True)
class Committed(Generic[T]):
    """What a write answers: its outcome, and the positions that it took in the change log (none: it changed nothing).

    Who has taken its own write into memory need not read these entries again.
    """

    value: T
    positions: range = range(0)


@dataclass(frozen=True, slots=True)
class Seen:
    """Which changes a computation has read: all up to `position` of the change log, and those at `applied`."""

    position: int
    applied: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class ImputationPair:
    """How near a generated feature was to the real one that replaced it: the model's own `confidence` in it, what was
    `served` of that, and the centred `cosine`. `bundle` is the identity of the bundle whose model generated it, if that
    is the active one."""

    modality: str
    confidence: float
    served: float
    cosine: float
    model_version: str
    bundle: str | None


@dataclass(frozen=True, slots=True)
class ItemWrite:
    """One item to write.

    `create` refuses an existing id (`exists`). `upsert` creates or replaces; with `expected_version` it only writes
    over exactly that version (0: the id must be free) and answers `conflict` otherwise. The store sets nothing by
    itself: `item.version` is what the caller computed (expected_version + 1).

    `seen` is what the item's derived state was computed from: where more is known by now of its feedback, or of other
    items' features, the item is enqueued for regeneration.
    `before` says that the observed features change: it holds the former ones as `FeatureChange` has them.
    `pairs` are the generated features that real ones replace.
    """

    item: StoredItem
    mode: Mode
    expected_version: int | None = None
    seen: Seen | None = None
    before: bytes | None = None
    pairs: Sequence[ImputationPair] = ()


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Some pairs of generated and real features: how many, their mean served confidence, and their mean cosine."""

    pairs: int
    confidence: float
    cosine: float


@dataclass(frozen=True, slots=True)
class ImputationErrors:
    """The online imputation error by modality: of the newest pairs by bucket of the served confidence (of BUCKETS), of
    the very newest by the same, and by category, the largest first."""

    buckets: Mapping[str, Mapping[int, ErrorGroup]]
    recent: Mapping[str, Mapping[int, ErrorGroup]]
    categories: Mapping[str, Mapping[str, ErrorGroup]]


@dataclass(frozen=True, slots=True)
class PairCount:
    """How many pairs a calibration could rest on, and how many of them came after the present one."""

    pairs: int
    new: int


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs in the order in which they came: the model's confidences and the cosines. `newest` tells the last of them
    from every other."""

    newest: int
    confidences: Sequence[float]
    cosines: Sequence[float]


@dataclass(frozen=True, slots=True)
class StoredCalibration:
    """What the confidences of a modality are calibrated to, fitted on so many `pairs` of which `newest` was the last;
    the calibration error of the model's own confidences, and of these on pairs that they were not fitted on."""

    map: CalibrationMap
    pairs: int
    newest: int
    error_before: float
    error_after: float
    at: datetime


@dataclass(frozen=True, slots=True)
class GeneratedWrite:
    """What the model makes of an item, to be stored if the item still has `version` (which stays).

    `queued_at` is the item's position in the queue (see `Store.pending`) as it was before its feedback was read, `seen`
    what was known of other items. `recoded` replaces what the model's own encoders have made of content that others had
    encoded, by modality, with an empty vector where they read nothing; None leaves it. `before` is as in `ItemWrite`,
    for an item that another model has written.
    """

    item_id: str
    version: int
    generated: Mapping[str, Generated]
    model_version: str
    derived: bytes
    queued_at: int | None = None
    seen: Seen | None = None
    remarks: Mapping[str, Remark] = field(default_factory=dict)
    recoded: Mapping[str, Observed] | None = None
    before: bytes | None = None


UNKNOWN = b"unknown"


@dataclass(frozen=True, slots=True)
class FeatureChange:
    """A change of an item's observed features that has yet to reach the items which are generated from them.

    `position` is that of the change log; `before` are the former features (`pipeline.dependents` packs them), empty
    where there were none, and UNKNOWN where they are not known any more.
    """

    position: int
    item: str
    before: bytes


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is pending at one moment: so many `items` to regenerate, the first of them enqueued at `oldest_item` and the
    last at `newest_item`, and so many `changes` of features that have yet to reach others, the first of them at
    `oldest_change`, for the position `first_change` of the log; None where there are none. `position` is the log's
    newest by then."""

    items: int
    changes: int
    position: int
    oldest_item: datetime | None = None
    newest_item: datetime | None = None
    oldest_change: datetime | None = None
    first_change: int | None = None

    @property
    def since(self) -> datetime | None:
        """When the oldest of all came in, None where nothing is pending."""
        return min((moment for moment in (self.oldest_item, self.oldest_change) if moment is not None), default=None)


@dataclass(frozen=True, slots=True)
class Stored:
    """The outcome of writing items: one result a row, the rows in SQL of the items that were written, by id, and which
    of them were enqueued for regeneration because of `ItemWrite.seen`."""

    results: list[WriteResult]
    rows: Mapping[str, int]
    outdated: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Media:
    """A stored file, content-addressed."""

    sha256: str
    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Keep(Generic[T]):
    """Under which idempotency key a write keeps its answer, in its own transaction, and how that is made of its
    outcome; None keeps none."""

    key: str
    answer: Callable[[T], Answer | None]


Claim = Literal["mine", "busy", "other"] | Answer  # other: the key was used for another request


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of the change log. `position` grows with every committed write, in the order of the commits.

    Under an item's id: `item`, `item-generated`, and `item-feedback` where its users changed; under its row, for its id
    is erased, `item-deleted`. Under a user's id: `feedback`, `feedback-deleted`; under a digest of it (see
    `Store.erased_users`) `user-deleted`. Under no id: `rebuild`, all that is derived is made anew. Under a bundle's
    identity: `calibration`, confidences are served by another one. Under a model's version: `activated`. `model` is the
    one that it was written under (see `Store.under`).
    """

    position: int
    kind: str
    key: str
    at: datetime
    model: int = 0


@dataclass(frozen=True, slots=True)
class Departure:
    """An item that was deleted at a position of the change log, with its observed features as `FeatureChange` has
    them."""

    position: int
    item: str
    before: bytes


@dataclass(frozen=True, slots=True)
class ServingWorker:
    """A process that serves a database: with which model, by its row, which it could go over to (0: none), and how many
    seconds ago it said so."""

    id: str
    serving: int
    ready: int
    silent_s: float


class Store(Protocol):
    """SQL, the truth. Every method is one transaction; what it answered is committed, with its change log entries.

    What is derived is kept for every model that serves or is about to: all methods read and write that of `model`."""

    model: int

    def under(self, model: int) -> Store:
        """The same store, with what is derived under another model."""

    async def register(self, identity: str, version: str) -> int:
        """The number of the model of a bundle, by its identity."""

    async def served_models(self) -> list[ServedModel]:
        """The models that are registered, in order."""

    async def set_model(self, model: int, state: ModelState, values: Mapping[str, Any]) -> bool:
        """Change a model's state, and its `detail`, `progress`, `forced`, `worker` or `leased_until`, unless it is the
        active one; False where another one is being prepared already."""

    async def note_progress(self, model: int, worker: str, progress: Mapping[str, Any]) -> None:
        """Note how far the worker that prepares a model has come."""

    async def lease(self, model: int, worker: str, seconds: float) -> bool:
        """Be the worker that prepares a model, or go on being it; False where another one is, or none is wanted."""

    async def activate(self, model: int, version: str) -> Committed[None]:
        """Make a model the active one, and the one that was `previous`."""

    async def drop_derived(self, model: int) -> bool:
        """Remove some of what is kept under a model that neither serves nor is about to; whether there may be more."""

    async def absorb(self, entries: Sequence[Change], position: int, departed: Sequence[Departure] = ()) -> bool:
        """Enqueue under this model what entries of the change log, up to a position, say that was written under
        others, unless some worker has done so; whether anything was enqueued. `departed` are the items that these
        deleted."""

    async def start_over(self, position: int) -> None:
        """Note that everything up to a position of the change log is about to be derived under this model."""

    async def beat(self, worker: str, serving: int, ready: int) -> None:
        """Note that a worker is alive, what it serves, and what it could go over to."""

    async def leave(self, names: Collection[str]) -> None:
        """Forget workers that have ended."""

    async def serving_workers(self) -> list[ServingWorker]:
        """Workers that have said that they are alive and have not left."""

    async def ping(self) -> None:
        """Raise StoreUnavailableError where the database does not answer."""

    async def write_items(
        self, writes: Sequence[ItemWrite], media: Sequence[Media] = (), keep: Keep[Stored] | None = None
    ) -> Committed[Stored]:
        """Write items in one transaction, each row with its own outcome; refused rows leave the others alone."""

    async def get_item(self, item_id: str) -> StoredItem | None:
        """One item, whole."""

    async def get_items(self, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        """Those of the items that exist, by id."""

    async def existing(self, item_ids: Collection[str]) -> set[str]:
        """Those of the items that exist."""

    async def list_items(
        self,
        *,
        limit: int,
        cursor: str | None = None,
        categories: Sequence[str] = (),
        missing: str | None = None,
        generated: bool | None = None,
        q: str | None = None,
    ) -> Page[StoredItem]:
        """A page in order of id, of the items in all of the categories. `missing` names a modality that is not
        observed, `generated` says whether that one, or without it any, is generated; `q` is a part of the id or title,
        in any case and however Unicode writes its letters.

        Raises InvalidInputError on a cursor that is none of ours."""

    def iter_items(self, *, batch: int = 1000) -> AsyncIterator[list[StoredItem]]:
        """All items, whole, in order of creation, in batches."""

    async def delete_item(self, item_id: str, before: bytes = b"") -> Committed[bool]:
        """Remove an item, its features, unreferenced media and its feedback; False where there is none. `before` are
        its observed features, for `FeatureChange`. Items that its users met later are enqueued for regeneration."""

    async def save_generated(self, saves: Sequence[GeneratedWrite]) -> Committed[list[bool]]:
        """Replace the generated features and derived state of items, in one transaction; False for an item that is
        deleted, has another version by now, or is not pending any more where the write has `queued_at`. An item that is
        still pending for that position is dequeued, unless other items have changed since `seen`. A change that has yet
        to reach others does not count: who finishes it must have seen what is saved here (`finish_changes`)."""

    async def pending(self, items: Collection[str] | None = None, *, limit: int = 1000) -> dict[str, int]:
        """The items that are pending regeneration, of all or of these, each with the position of the change log that it
        was enqueued for, which grows with each write that enqueues it again."""

    async def backlog(self) -> Backlog:
        """How much is pending, and since when."""

    async def dequeue(self, positions: Mapping[str, int], seen: Seen) -> None:
        """Take items that have nothing to regenerate off the queue, unless they were enqueued again for a later
        position, or other items have changed since `seen` (as for `save_generated`)."""

    async def enqueue_all(self) -> int:
        """Enqueue every item for regeneration, with an entry `rebuild` in the change log; how many."""

    async def feature_changes(self, *, limit: int = 1000) -> list[FeatureChange]:
        """Changes of features that have yet to reach other items, the oldest first."""

    async def finish_changes(
        self, positions: Collection[int], dependents: Collection[str], seen: Seen | None = None
    ) -> dict[str, int] | None:
        """Enqueue the items which changes of features have reached, and forget these changes; answers the items'
        positions in the queue."""

    async def later_items(self, items: Collection[str]) -> list[str]:
        """The items that any user of these has met no earlier than these."""

    async def get_media(self, sha256: str) -> Media | None:
        """A stored file."""

    async def count_items(self) -> int:
        """Number of items."""

    async def add_feedback(
        self,
        events: Sequence[Event],
        *,
        strict: bool = False,
        min_rating: float | None = None,
        renew: Callable[[Collection[int]], Collection[int]] | None = None,
        keep: Keep[list[EventResult]] | None = None,
    ) -> Committed[list[EventResult]]:
        """Insert events; per event whether it is new. (user, item, type, timestamp) repeated is not: it replaces the
        stored event where its value or text differs. With `strict`, one orphan keeps all out.

        What an item's users say of it follows from what they were interested in before. So the items whose events
        changed, and those that their users met later where an interest began or ended, are enqueued for regeneration,
        as far as `renew` takes their rows; without it, none."""

    async def list_feedback(
        self,
        *,
        limit: int,
        cursor: str | None = None,
        user: str | None = None,
        item: str | None = None,
        kind: str | None = None,
    ) -> Page[Event]:
        """Events, newest first; `kind` is their type."""

    async def delete_feedback(
        self, *, user: str | None = None, item: str | None = None, kind: str | None = None
    ) -> Committed[int]:
        """Remove the events that are of a user, of an item and of a type, as far as these are given, one of them at
        least; answers how many. The items are enqueued for regeneration."""

    async def user_items(self, users: Collection[str], *, min_rating: float | None) -> dict[str, list[Interaction]]:
        """Every item of each of some users once, with the event that decides (`models.feedback`), newest first; users
        without any are left out."""

    async def newest_users(self, since: datetime, *, limit: int) -> list[str]:
        """Users with events after a moment, those with the newest first."""

    async def item_users(self, item: str, *, limit: int) -> list[str]:
        """Users with events on an item, newest first, each once."""

    async def sample_users(self, size: int, *, seed: int) -> list[str]:
        """Up to `size` users, drawn by their events, so that those with more are likelier; the same from the same
        events with the same seed."""

    async def interested_users(
        self, items: Collection[str], *, limit: int, min_rating: float | None
    ) -> dict[str, list[str]]:
        """Users who are interested in items, newest first, at most `limit` of each; items without any left out."""

    async def item_counts(self, items: Collection[str] | None = None, *, min_rating: float | None) -> dict[str, int]:
        """Number of interested users by item, of all items or of these; items without any left out."""

    async def documents(
        self, side: Side, keys: Collection[str], *, encoder: str, limit: int
    ) -> dict[str, list[Review]]:
        """The newest ratings and reviews by user or by item, newest first, with the vectors that `encoder` has made.

        Those without any are left out."""

    async def save_review_vectors(self, encoder: str, vectors: Sequence[tuple[int, int, Vector]]) -> None:
        """Store an encoder's vectors of reviews: (row, words read, vector). Deleted reviews are passed over."""

    async def get_user(self, user: str) -> User | None:
        """What is stored of a user."""

    async def delete_user(self, user: str) -> Committed[bool]:
        """Erase all that is stored of a user; False where there was nothing. The user's items are enqueued for
        regeneration."""

    async def erased_users(self, digests: Collection[str], users: Collection[str]) -> list[str]:
        """Those of some users whom `user-deleted` entries of the change log, under these digests, are about."""

    async def changes(self, since: int, *, limit: int = 1000) -> list[Change]:
        """Entries of the change log after a position, in order.

        Raises ChangesLostError where entries after it have been trimmed."""

    async def claim(self, key: str, fingerprint: str, *, lease_s: float) -> Claim:
        """Take an idempotency key for a request, or learn what became of it: its answer; that somebody else works on
        it (`busy`, until the lease is over); that it stands for a request with another fingerprint (`other`)."""

    async def answered(self, key: str, answer: Answer) -> None:
        """Note what the request of a claimed key was answered."""

    async def release(self, key: str) -> None:
        """Give a claimed key back, unless its write was done."""

    async def trim_changes(self, before: datetime) -> int:
        """Remove entries, and idempotency keys, older than a moment; answers how many entries."""

    async def last_change(self) -> int:
        """The newest position of the change log, 0 for an empty one."""

    async def imputation_errors(self) -> ImputationErrors:
        """What the newest pairs of generated and real features say."""

    async def count_pairs(self, bundle: str) -> dict[str, PairCount]:
        """By modality how many pairs there are of a bundle of which its model said anything."""

    async def pairs(self, bundle: str, modality: str, *, limit: int) -> Pairs:
        """The newest of these pairs of one modality, in order."""

    async def calibrations(self, bundle: str) -> dict[str, StoredCalibration]:
        """By modality what confidences under a bundle are calibrated to."""

    async def save_calibration(self, bundle: str, modality: str, calibration: StoredCalibration) -> Committed[bool]:
        """Store a calibration, with an entry `calibration` in the change log, unless there is one that knows later
        pairs; whether it was stored."""

    async def get_meta(self, key: str) -> str | None:
        """A stored setting of the service itself."""

    async def set_meta(self, key: str, value: str) -> None:
        """Store a setting of the service itself."""

    def alone(self) -> AbstractAsyncContextManager[None]:
        """Be the only process over this database that is inside. Who dies inside leaves."""

    async def close(self) -> None:
        """Release connections."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A bundle of the registry: its folder on this machine, or None where it has yet to be fetched from `name`."""

    version: str
    identity: str
    manifest: Manifest
    folder: Path | None
    name: str = ""


class Registry(Protocol):
    """The bundles that may be served."""

    async def bundles(self) -> list[Registered]:
        """All that can be read, the newest first. Raises NotReadyError where the place does not answer."""

    async def fetch(self, bundle: Registered) -> Path:
        """A verified bundle's folder on this machine. Raises BundleError where it is damaged, NotReadyError where the
        place does not answer."""


class VectorIndex(Protocol):
    """Inner-product search over vectors under integer keys. Safe to call from several threads."""

    dim: int

    def upsert(self, keys: Keys, vectors: Array) -> None:
        """Insert or replace vectors `[n, dim]` under keys `[n]` (non-negative)."""

    def remove(self, keys: Keys) -> None:
        """Forget keys; unknown ones are ignored."""

    def search(self, queries: Array, k: int, allowed: Mask | None = None) -> tuple[Keys, Array]:
        """Keys `[q, k]` and inner products `[q, k]`, best first, ties by smaller key; short rows padded with -1 and
        -inf. `allowed[key]` False (or beyond the array's end) keeps a key out."""

    def products(self, queries: Array, vectors: Array) -> Array:
        """Inner products `[q, n]` of queries `[q, dim]` and vectors `[n, dim]`, to the bit as `search` answers them."""

    def __len__(self) -> int: ...

    def __contains__(self, key: int) -> bool: ...

    def stats(self) -> Mapping[str, int]:
        """Sizes: `base`, `delta`, `tombstones`."""


class Cache(Protocol):
    """A cache of bytes with expiry. Losing an entry costs time, never truth."""

    async def get(self, key: str) -> bytes | None: ...

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None: ...

    async def close(self) -> None: ...


class Limiter(Protocol):
    """Counts requests by name."""

    async def take(self, name: str) -> float:
        """Count one request: 0 where it is allowed, else the seconds until the next one may be."""

    async def close(self) -> None: ...


class ChangeNotifier(Protocol):
    """Notifies other processes that there are changes, and is notified by them. A lost notification costs time, never
    truth."""

    def notify(self) -> None:
        """Notify the others; returns at once."""

    async def wait(self, timeout_s: float) -> None:
        """Until a notification comes, or the time is up."""

    async def close(self) -> None:
        """Stop notifying and listening."""


class Fetcher(Protocol):
    """Gets pictures from URLs that clients name."""

    async def fetch(self, url: str) -> bytes:
        """The bytes at a URL. Raises FetchError, without a pointer."""


class StepTimer(Protocol):
    """Records how long things took."""

    def observe_step(self, step: str, seconds: float) -> None:
        """Record one run of a step: `encode`, `impute`, `index`, `rank`, `explain`, `commit` or `background`; as
        `background_processor`, the processor time of the last."""

    def observe_lag(self, seconds: Sequence[float]) -> None:
        """Record how old changes of other workers were when this one had taken them over."""
