"""The catalogue in memory: every item's row of model state, its masks and its places in the vector indexes.

SQL is the truth; this is derived from it. An item's key is its row in SQL: never used twice, and the same in every
worker and after every restart, so that ties are decided everywhere alike. Only one thread writes.
Arrays are replaced whole when they grow, and a row is complete before an id or an index leads to it, so that readers
need no lock. Model state is kept in packed rows, so that memory follows the number of items; of a deleted item, the
masks keep some 20 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.arrays import Array, Counts, Double, Mask
from models.iris.serving import ItemSides
from models.linalg import unit
from service.domain import State, StoredItem
from service.pipeline.rows import Rows
from service.ports import Keys, VectorIndex

FINAL = "items"
COSINE, TARGETS = "items:cosine", "iris:targets"  # as no modality can be named
_STATES = (State.ABSENT, State.OBSERVED, State.GENERATED)
_FEATURE, _SIDE = "feature.", "side."
_PARTS = ("parts", "preference", "final", "message", "modal")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of an item's model state: `ranks` r_m by modality, `size` d, `layers` L of the item graph, and, where the
    bundle holds an IRIS, the shapes of what that needs of it (`IRISServing.shapes`)."""

    ranks: Mapping[str, int]
    size: int
    layers: int = 1
    sides: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities, in the bundle's order."""
        return tuple(self.ranks)

    def fields(self) -> dict[str, tuple[int, ...]]:
        """Shape of each part of the derived state, in the order in which they are packed."""
        count = len(self.ranks)
        features = {f"{_FEATURE}{name}": (rank,) for name, rank in self.ranks.items()}
        parts = {
            "parts": (self.layers, count, 2 * self.size),
            "preference": (count, self.size),
            "final": (self.size,),
            "message": (self.size,),
            "modal": (self.size,),
        }
        return {**features, **parts, **{f"{_SIDE}{name}": shape for name, shape in self.sides.items()}}

    @property
    def length(self) -> int:
        """Number of floats of a packed item."""
        return sum(int(np.prod(shape)) for shape in self.fields().values())


@dataclass(frozen=True, slots=True)
class Derived:
    """An item's model state (see Shape.fields): completed projected features, gated parts before each layer of
    propagation, preference p_i, the vector that it is ranked by, what it passes on to its users, the modal part, and
    its row of each field of IRIS' `ItemSides`."""

    features: Mapping[str, Array]
    parts: Array
    preference: Array
    final: Array
    message: Array
    modal: Array
    sides: Mapping[str, Array] = field(default_factory=dict)

    def fields(self) -> dict[str, Array]:
        """Each part of it (see Shape.fields)."""
        features = {f"{_FEATURE}{name}": feature for name, feature in self.features.items()}
        parts = {name: getattr(self, name) for name in _PARTS}
        return {**features, **parts, **{f"{_SIDE}{name}": side for name, side in self.sides.items()}}

    @classmethod
    def of(cls, fields: Mapping[str, Array]) -> Derived:
        """The reverse of `fields`."""
        features, sides = _below(_FEATURE, fields), _below(_SIDE, fields)
        parts, preference, final, message, modal = (fields[name] for name in _PARTS)
        return cls(features, parts, preference, final, message, modal, sides)

    def pack(self) -> bytes:
        """As little-endian float32, for the store."""
        return np.concatenate([piece.ravel() for piece in self.fields().values()]).astype("<f4").tobytes()

    @classmethod
    def unpack(cls, data: bytes, shape: Shape) -> Derived | None:
        """From the store, or None where the bytes are not of this shape."""
        flat = np.frombuffer(data, dtype="<f4").astype(np.float32) if len(data) % 4 == 0 else np.empty(0, np.float32)
        if len(flat) != shape.length:
            return None
        pieces: dict[str, Array] = {}
        start = 0
        for name, dims in shape.fields().items():
            size = int(np.prod(dims))
            pieces[name] = flat[start : start + size].reshape(dims)
            start += size
        return cls.of(pieces)


def _below(prefix: str, fields: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in fields.items() if name.startswith(prefix)}


@dataclass(frozen=True, slots=True)
class Entry:
    """What the catalogue keeps of an item besides its vectors."""

    key: int
    id: str
    title: str | None
    categories: tuple[str, ...]
    available: bool
    version: int
    created: float
    states: Mapping[str, State]
    confidence: Mapping[str, float]

    @classmethod
    def of(cls, item: StoredItem, names: Sequence[str]) -> Entry:
        """The entry of a stored item, with the modalities `names` of the active bundle."""
        return cls(
            item.row,
            item.id,
            item.title,
            item.categories,
            item.available,
            item.version,
            item.created_at.timestamp(),
            {name: item.state_of(name) for name in names},
            {name: generated.confidence for name, generated in item.generated.items()},
        )


class Catalogue:
    """All items of the store under one bundle."""

    def __init__(self, shape: Shape, make_index: Callable[[int], VectorIndex]) -> None:
        self.shape = shape
        self.names = shape.names
        self.entries: dict[int, Entry] = {}
        self._keys: dict[str, int] = {}
        self.indexes: dict[str, VectorIndex] = {name: make_index(rank) for name, rank in shape.ranks.items()}
        self.indexes[FINAL] = make_index(shape.size)
        self.indexes[COSINE] = make_index(shape.size)
        if shape.sides:
            self.indexes[TARGETS] = make_index(shape.sides["q"][0] + 1)
        self.rows = Rows(shape.fields())
        self.available: Mask = np.zeros(0, dtype=np.bool_)
        self.observed: Mask = np.zeros((0, len(self.names)), dtype=np.bool_)
        self.popularity: Counts = np.zeros(0, dtype=np.int64)
        self.created: Double = np.zeros(0, dtype=np.float64)
        self._categories: dict[str, set[int]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._keys

    @property
    def capacity(self) -> int:
        """Length of the masks; every key is below it."""
        return len(self.available)

    def key(self, item_id: str) -> int | None:
        """An item's key, or None."""
        return self._keys.get(item_id)

    def keys(self, item_ids: Iterable[str]) -> Keys:
        """Keys of those of the items that exist, in order."""
        keys = [key for item_id in item_ids if (key := self._keys.get(item_id)) is not None]
        return np.array(keys, dtype=np.int64)

    def entry(self, item_id: str) -> Entry | None:
        """What is kept of an item, or None."""
        key = self._keys.get(item_id)
        return None if key is None else self.entries.get(key)

    # --- writing -----------------------------------------------------------------------------------------------

    def put(self, rows: Sequence[tuple[Entry, Derived]]) -> None:
        """Insert or replace items, each id once; when this returns, every index knows them."""
        if not rows:
            return
        for entry, _ in rows:
            if self._keys.get(entry.id, entry.key) != entry.key:  # deleted and created again, elsewhere
                self.remove(entry.id)
        keys = np.array([entry.key for entry, _ in rows], dtype=np.int64)
        self._reserve(int(keys.max()) + 1)
        for entry, derived in rows:
            self._forget_categories(entry.key)
            self._store(entry, derived)
        self._index(keys, rows)
        self._keys.update((entry.id, entry.key) for entry, _ in rows)

    def remove(self, item_id: str) -> None:
        """Forget an item; when this returns, no index answers it."""
        key = self._keys.pop(item_id, None)
        if key is None:
            return
        self.available[key] = False
        self.observed[key] = False
        for index in self.indexes.values():
            index.remove(np.array([key], dtype=np.int64))
        self._forget_categories(key)
        self.entries.pop(key, None)
        self.rows.remove(key)

    def set_popularity(self, users: Mapping[str, int]) -> None:
        """Note the number of users of these items; those that were deleted are left out."""
        for item_id, count in users.items():
            key = self._keys.get(item_id)
            if key is not None:
                self.popularity[key] = count

    def _reserve(self, size: int) -> None:
        have = self.capacity
        if size <= have:
            return
        size = max(size, 2 * have, 1024)
        self.rows.reserve(size)
        self.observed, self.popularity = _grown(self.observed, size), _grown(self.popularity, size)
        self.created = _grown(self.created, size)
        # Last: it is the length that readers go by.
        self.available = _grown(self.available, size)

    def _store(self, entry: Entry, derived: Derived) -> None:
        key = entry.key
        self.rows.put(key, derived.fields())
        self.observed[key] = [entry.states[name] is State.OBSERVED for name in self.names]
        self.available[key] = entry.available
        self.created[key] = entry.created
        for category in entry.categories:
            self._categories.setdefault(category, set()).add(key)
        self.entries[key] = entry

    def _index(self, keys: Keys, rows: Sequence[tuple[Entry, Derived]]) -> None:
        for name in self.names:
            vectors = np.stack([derived.features[name] for _, derived in rows])
            length = np.linalg.norm(vectors, axis=1)
            # An absent feature, and a mean, which says nothing, cannot be found by it.
            present = (length > 1e-6) & [entry.states[name] is not State.ABSENT for entry, _ in rows]
            if present.any():
                self.indexes[name].upsert(keys[present], vectors[present] / length[present, None])
            if not present.all():
                self.indexes[name].remove(keys[~present])
        final = np.stack([derived.final for _, derived in rows])
        self.indexes[FINAL].upsert(keys, final)
        self.indexes[COSINE].upsert(keys, unit(final))
        if TARGETS in self.indexes:
            rows_of = [np.append(derived.sides["q"], derived.sides["item_bias"]) for _, derived in rows]
            self.indexes[TARGETS].upsert(keys, np.stack(rows_of))

    def _forget_categories(self, key: int) -> None:
        entry = self.entries.get(key)
        for category in entry.categories if entry else ():
            members = self._categories.get(category, set())
            members.discard(key)
            if not members:
                self._categories.pop(category, None)

    # --- reading -----------------------------------------------------------------------------------------------

    def final(self, keys: Keys) -> Array:
        """Final vectors `[k, d]`."""
        return self.rows.get("final", keys)

    def degree(self, keys: Keys) -> Counts:
        """Number of users of items `[...]`, 0 for negative keys."""
        users = np.zeros(keys.shape, dtype=np.int64)
        valid = keys >= 0
        users[valid] = self.popularity[keys[valid]]
        return users

    def sides(self, keys: Keys) -> ItemSides:
        """What IRIS needs of items `[k]`."""
        return ItemSides(**{name: self.rows.get(f"{_SIDE}{name}", keys) for name in self.shape.sides})

    def eligible(self, categories: Iterable[str] = (), excluded: Keys | None = None) -> Mask:
        """Which keys may be shown: available ones, in all of the categories, without the excluded."""
        allowed = self.available.copy()
        for category in categories:
            members = list(self._categories.get(category, ()))  # at once: the writer may change the set meanwhile
            chosen = np.zeros(len(allowed), dtype=np.bool_)
            chosen[[key for key in members if key < len(chosen)]] = True
            allowed &= chosen
        if excluded is not None and len(excluded):
            allowed[excluded] = False
        return allowed

    def having(self, *modalities: str, excluded: int | None = None) -> Mask:
        """Which keys have all of these modalities observed."""
        columns = [self.observed[:, self.names.index(name)] for name in modalities]
        mask: Mask = columns[0].copy()
        for column in columns[1:]:
            mask &= column
        if excluded is not None:
            mask[excluded] = False
        return mask

    def count_states(self) -> dict[str, dict[str, int]]:
        """Number of items by modality and state."""
        counts = {name: dict.fromkeys((state.value for state in _STATES), 0) for name in self.names}
        for entry in list(self.entries.values()):
            for name, state in entry.states.items():
                counts[name][state.value] += 1
        return counts

    def count_categories(self) -> dict[str, int]:
        """Number of items by category, the largest first, ties by name."""
        counts = [(name, len(keys)) for name, keys in list(self._categories.items())]
        return dict(sorted(counts, key=lambda row: (-row[1], row[0])))


def _grown(array: NDArray, size: int) -> NDArray:  # type: ignore[type-arg]  # of whatever it was
    bigger = np.zeros((size, *array.shape[1:]), dtype=array.dtype)
    bigger[: len(array)] = array
    return bigger
