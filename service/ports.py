"""What the service needs from the outside, as Protocols, which the adapters implement."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.domain import Event, Generated, Page, StoredItem, User

Mode = Literal["create", "upsert"]
WriteResult = Literal["created", "replaced", "exists", "conflict"]


@dataclass(frozen=True, slots=True)
class ItemWrite:
    """One item to write.

    `create` refuses an existing id (`exists`). `upsert` creates or replaces; with `expected_version` it only writes
    over exactly that version (0: the id must be free) and answers `conflict` otherwise. The store sets nothing by
    itself: `item.version` is what the caller computed (expected_version + 1).
    """

    item: StoredItem
    mode: Mode
    expected_version: int | None = None


@dataclass(frozen=True, slots=True)
class GeneratedWrite:
    """What the model made of an item, to be stored if the item still has `version` (which stays)."""

    item_id: str
    version: int
    generated: Mapping[str, Generated]
    model_version: str
    derived: bytes


@dataclass(frozen=True, slots=True)
class Media:
    """A stored file, content-addressed."""

    sha256: str
    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of the change log. `position` grows with every committed write."""

    position: int
    kind: str  # item, item-deleted, item-generated, feedback, user-deleted, feedback-deleted
    key: str  # item id or user id
    at: datetime


class Store(Protocol):
    """SQL, the truth. Every method is one transaction; what it answered is committed."""

    async def ping(self) -> None:
        """Raise StoreUnavailableError where the database does not answer."""

    async def write_items(self, writes: Sequence[ItemWrite], media: Sequence[Media] = ()) -> list[WriteResult]:
        """Write items in one transaction, each row with its own outcome; refused rows leave the others alone."""

    async def get_item(self, item_id: str) -> StoredItem | None:
        """One item, whole."""

    async def get_items(self, item_ids: Sequence[str]) -> dict[str, StoredItem]:
        """Those of the items that exist, by id."""

    async def list_items(
        self,
        *,
        limit: int,
        cursor: str | None = None,
        category: str | None = None,
        missing: str | None = None,
        q: str | None = None,
    ) -> Page[StoredItem]:
        """A page in order of id. `missing` names a modality that is not observed; `q` is a case-insensitive part of
        the id or title. `derived` may be left empty.

        Raises InvalidInputError on a cursor that is none of ours."""

    def iter_items(self, *, batch: int = 1000) -> AsyncIterator[list[StoredItem]]:
        """All items, whole, in order of creation, in batches."""

    async def delete_item(self, item_id: str) -> bool:
        """Remove an item, its features, unreferenced media and its feedback; False where there is none."""

    async def save_generated(self, saves: Sequence[GeneratedWrite]) -> list[bool]:
        """Replace the generated features and derived state of items, in one transaction; False for an item that is
        gone or has another version by now."""

    async def get_media(self, sha256: str) -> Media | None:
        """A stored file."""

    async def count_items(self) -> int:
        """Number of items."""

    async def add_feedback(self, events: Sequence[Event]) -> list[bool]:
        """Insert events; per event whether it is new ((user, item, type, timestamp) repeated is not).

        Items must exist: the caller checks; an event whose item vanished meanwhile is skipped (False)."""

    async def list_feedback(
        self, *, limit: int, cursor: str | None = None, user: str | None = None, item: str | None = None
    ) -> Page[Event]:
        """Events, newest first."""

    async def delete_feedback(self, *, user: str | None = None, item: str | None = None) -> int:
        """Remove the events of a user, of an item, or of the pair; answers how many."""

    async def user_history(self, user: str, *, limit: int) -> list[Event]:
        """The user's newest events, newest first."""

    async def item_users(self, item: str, *, limit: int) -> list[str]:
        """Users with events on an item, newest first, each once."""

    async def item_counts(self, items: Collection[str] | None = None) -> dict[str, int]:
        """Number of distinct users by item, of all items or of these; items without any left out."""

    async def get_user(self, user: str) -> User | None:
        """What is stored of a user."""

    async def delete_user(self, user: str) -> bool:
        """Erase all that is stored of a user; False where there was nothing."""

    async def changes(self, since: int, *, limit: int = 1000) -> list[Change]:
        """Entries of the change log after a position, in order."""

    async def last_change(self) -> int:
        """The newest position of the change log, 0 for an empty one."""

    async def add_imputation_error(
        self, item: str, modality: str, confidence: float, cosine: float, model_version: str
    ) -> None:
        """Record how near a generated feature was to the real one that replaced it."""

    async def imputation_errors(self) -> dict[str, tuple[int, float, float]]:
        """By modality: number of pairs, mean served confidence, mean centred cosine."""

    async def get_meta(self, key: str) -> str | None:
        """A stored setting of the service itself."""

    async def set_meta(self, key: str, value: str) -> None:
        """Store a setting of the service itself."""

    async def close(self) -> None:
        """Release connections."""


class VectorIndex(Protocol):
    """Inner-product search over vectors under integer keys. Safe to call from several threads."""

    dim: int

    def upsert(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Insert or replace vectors `[n, dim]` under keys `[n]` (non-negative)."""

    def remove(self, keys: NDArray[np.int64]) -> None:
        """Forget keys; unknown ones are ignored."""

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Keys `[q, k]` and inner products `[q, k]`, best first, ties by smaller key; short rows padded with -1 and
        -inf. `allowed[key]` False (or beyond the array's end) keeps a key out."""

    def __len__(self) -> int: ...

    def __contains__(self, key: int) -> bool: ...

    def stats(self) -> Mapping[str, int]:
        """Sizes: `base`, `delta`, `tombstones`."""


class Cache(Protocol):
    """A cache of bytes with expiry. Losing an entry costs time, never truth."""

    async def get(self, key: str) -> bytes | None: ...

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None: ...

    async def delete(self, *keys: str) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class StepTimer(Protocol):
    """Is told how long each step of the pipeline took."""

    def observe_step(self, step: str, seconds: float) -> None:
        """Record one run of a step: `encode`, `impute`, `index`, `rank` or `commit`."""
