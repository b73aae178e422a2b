"""The catalogue in memory: every item's row of model state, its masks and its places in the vector indexes.

SQL is the truth; this is derived from it. What is stored of an item's derived state (`Derived`) comes from its own
content and from its users; what depends on other items' vectors besides is never stored, but computed here
(`service.pipeline.vectors`), from what `stale` says of what has changed.

An item's key is its row in SQL: never used twice, and the same in every worker and after every restart, so that ties
are decided everywhere alike. Only one thread writes.
Arrays are replaced whole when they grow, and a row is complete before an id or an index leads to it, so that readers
need no lock. Model state is kept in packed rows, so that memory follows the number of items; of a deleted item, the
masks keep some 30 bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import Array, Counts, Double, Mask
from models.iris.serving import ItemSides
from models.linalg import unit
from service.domain import State, StoredItem
from service.pipeline.confidence import Confidence
from service.pipeline.nearest import Nearest
from service.pipeline.rows import Rows
from service.pipeline.stale import ARRIVED, COOLED, DEPARTED, WARMED, Stale
from service.ports import Keys, VectorIndex

FINAL = "items"
COSINE, TARGETS = "items:cosine", "iris:targets"  # as no modality can be named
_STATES = (State.ABSENT, State.OBSERVED, State.GENERATED)
_FEATURE, _SIDE = "feature.", "side."
_OWN = ("folded", "users", "reach", "words")
KERNEL_FIELDS = ("kernel", "kernel.cosines")
NEAR_LISTS = ("near.list", "near.list.cosines")  # with the spare neighbours
KERNEL_LISTS = ("kernel.list", "kernel.list.cosines")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of an item's model state.

    `ranks` r_m by modality, `size` d, `layers` L of the item graph, `neighbours` k of it, `kernel` neighbours by each
    modality that a cold item's vector is expected from, and, where the bundle holds an IRIS, the shapes of what that
    needs of an item (`IRISServing.shapes`). `spare` more neighbours of both kinds are kept (see `pipeline.nearest`).
    """

    ranks: Mapping[str, int]
    size: int
    layers: int = 1
    neighbours: int = 10
    kernel: int = 80
    sides: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    spare: int = 16

    @property
    def names(self) -> tuple[str, ...]:
        """Modalities, in the bundle's order."""
        return tuple(self.ranks)

    def fields(self) -> dict[str, tuple[int, ...]]:
        """Shape of each part of the stored derived state, in the order in which they are packed."""
        features = {f"{_FEATURE}{name}": (rank,) for name, rank in self.ranks.items()}
        own = {"folded": (self.size,), "users": (), "reach": (len(self.ranks),), "words": (2 + self.size,)}
        return {**features, **own, **{f"{_SIDE}{name}": shape for name, shape in self.sides.items()}}

    def vectors(self) -> dict[str, tuple[int, ...]]:
        """Shape of each part that depends on other items: see `service.pipeline.vectors`."""
        count, d = len(self.ranks), self.size
        parts = {"parts": (self.layers, count, 2 * d), "near.reach": (count,), "degree": ()}
        return parts | dict.fromkeys(("modal", "own", "content", "base", "final", "message"), (d,))

    def layer_fields(self) -> dict[str, tuple[int, ...]]:
        """Shape of each field of the layers of vectors that every item has, in order; later ones have KERNEL_FIELDS as
        well."""
        count, d = len(self.ranks), self.size
        lists = {"near": (count, self.neighbours), "near.reach": (count,)}
        parts = {f"parts.{layer}": (count, 2 * d) for layer in range(self.layers)}
        vectors = dict.fromkeys(("content", "base", "modal", "own", "final", "message"), (d,))
        return {**lists, **parts, **vectors, "degree": (), "warm": ()}

    def list_fields(self, *, later: bool) -> dict[str, tuple[int, ...]]:
        """Shape of each field of the whole lists of neighbours that every item has, or `later` ones alone."""
        count = (self.kernel if later else self.neighbours) + self.spare + 1
        return dict.fromkeys(KERNEL_LISTS if later else NEAR_LISTS, (len(self.ranks), count))

    @property
    def length(self) -> int:
        """Number of floats of a packed item."""
        return sum(int(np.prod(shape)) for shape in self.fields().values())


@dataclass(frozen=True, slots=True)
class Derived:
    """What is stored of an item's model state (see Shape.fields).

    Attributes:
        features: completed projected features, by modality `[r_m]`.
        folded: `[d]`, what its users make of an item that came after training; zero without any.
        users: how many of them say anything of it.
        reach: `[M]`, by modality the cosine beyond which another item that has it would be among those that the
            generated features follow from; infinite where there are none.
        sides: its row of each field of IRIS' `ItemSides`.
        words: `[2 + d]`, what the words of its text lead to expect of it (`DGMRecServing.words`); by default nothing.
    """

    features: Mapping[str, Array]
    folded: Array
    users: float
    reach: Array
    sides: Mapping[str, Array] = field(default_factory=dict)
    words: Array | None = None

    def fields(self) -> dict[str, Any]:
        """Each part of it (see Shape.fields)."""
        words = np.zeros(2 + len(self.folded), dtype=np.float32) if self.words is None else self.words
        features = {f"{_FEATURE}{name}": feature for name, feature in self.features.items()}
        own = {name: getattr(self, name) for name in _OWN} | {"words": words}
        return {**features, **own, **{f"{_SIDE}{name}": side for name, side in self.sides.items()}}

    @classmethod
    def of(cls, fields: Mapping[str, Array]) -> Derived:
        """The reverse of `fields`."""
        features, sides = _below(_FEATURE, fields), _below(_SIDE, fields)
        return cls(features, fields["folded"], float(fields["users"]), fields["reach"], sides, fields["words"])

    def pack(self, shape: Shape) -> bytes:
        """As little-endian float32, for the store, in the order of `Shape.fields`."""
        pieces = self.fields()
        return np.concatenate([np.ravel(pieces[name]) for name in shape.fields()]).astype("<f4").tobytes()

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
    confidence: Mapping[str, float]  # the model's own
    titled: tuple[str, ...] = ()  # modalities that are the title, as no content was given

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
            tuple(name for name, observed in item.observed.items() if observed.is_title),
        )


class Catalogue:
    """All items of the store under one bundle."""

    def __init__(
        self, shape: Shape, make_index: Callable[[int], VectorIndex], trained: Callable[[str], int | None] | None = None
    ) -> None:
        self.shape = shape
        self.names = shape.names
        self.entries: dict[int, Entry] = {}
        self._keys: dict[str, int] = {}
        self._trained_row = trained or (lambda _: None)
        self.indexes: dict[str, VectorIndex] = {name: make_index(rank) for name, rank in shape.ranks.items()}
        self.indexes[FINAL] = make_index(shape.size)
        self.indexes[COSINE] = make_index(shape.size)
        # Of the items that have a modality observed, and of the warm ones of these: those that neighbours are looked up
        # among. To pass over most of an index takes longer than to search all of it.
        self.observed_indexes: dict[str, VectorIndex] = {name: make_index(rank) for name, rank in shape.ranks.items()}
        self.warm_indexes: dict[str, VectorIndex] = {name: make_index(rank) for name, rank in shape.ranks.items()}
        if shape.sides:
            self.indexes[TARGETS] = make_index(shape.sides["q"][0] + 1)
        count = len(shape.ranks)
        self.rows = Rows(shape.fields() | shape.vectors())
        self.near = Nearest(count, shape.neighbours, shape.spare)
        self.kernel = Nearest(count, shape.kernel, shape.spare)
        self.available: Mask = np.zeros(0, dtype=np.bool_)
        # These have a place from the start, for -1, which is nobody's key, leads to the last one.
        self.observed: Mask = np.zeros((1, count), dtype=np.bool_)
        # The model's confidence in generated features, NaN where none is generated, and which features are used.
        self.raw_confidence: Array = np.full((1, count), np.nan, dtype=np.float32)
        self.used: Mask = np.ones((1, count), dtype=np.bool_)
        self.confidence = Confidence()
        self.trained: Keys = np.full(1, -1, dtype=np.int64)  # rows in the model's tables, -1 for items after training
        self.warm: Mask = np.zeros(0, dtype=np.bool_)  # items whose vector `own` says anything
        self.popularity: Counts = np.zeros(0, dtype=np.int64)
        self.created: Double = np.zeros(0, dtype=np.float64)
        self.stale = Stale()
        self._categories: dict[str, set[int]] = {}
        self._states: Counter[tuple[str, State]] = Counter()  # numbers of items by modality and state
        self._titled: Counter[str] = Counter()  # and of those whose title it is

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

    def ids(self, keys: Iterable[int]) -> list[str]:
        """Ids of those of the items that exist."""
        return [entry.id for key in keys if (entry := self.entries.get(key)) is not None]

    def entry(self, item_id: str) -> Entry | None:
        """What is kept of an item, or None."""
        key = self._keys.get(item_id)
        return None if key is None else self.entries.get(key)

    # --- writing -----------------------------------------------------------------------------------------------

    def put(self, rows: Sequence[tuple[Entry, Derived]], compute: Callable[[Keys, Mask], None] | None = None) -> None:
        """Insert or replace items, each id once, with what is stored of them. Their vectors, and with these their
        places in the lists, are for `compute` (`service.pipeline.vectors`) to write, before an id leads to them, from
        their keys `[n]` and whether their features are other than before, by modality `[n, M]`."""
        if not rows:
            return
        for entry, _ in rows:
            if self._keys.get(entry.id, entry.key) != entry.key:  # deleted and created again, elsewhere
                self.remove(entry.id)
        keys = np.array([entry.key for entry, _ in rows], dtype=np.int64)
        self._reserve(int(keys.max()) + 1)
        moved = np.array([self._note_features(entry, derived) for entry, derived in rows], dtype=np.bool_)
        for entry, derived in rows:
            self._forget_categories(entry.key)
            self._store(entry, derived)
        self._index(keys, rows, moved)
        if compute is not None:
            compute(keys, moved)
        self._keys.update((entry.id, entry.key) for entry, _ in rows)

    def remove(self, item_id: str) -> None:
        """Forget an item; when this returns, no index answers it."""
        key = self._keys.pop(item_id, None)
        if key is None:
            return
        for column in np.flatnonzero(self.observed[key]).tolist():
            self.stale.add_feature(DEPARTED, self.names[column], key)
            self.stale.drop_arrival(self.names[column], key)
        self.available[key] = False
        self.observed[key] = False
        self.raw_confidence[key] = np.nan
        self.warm[key] = False
        for index in self.every_index():
            index.remove(np.array([key], dtype=np.int64))
        self._forget_categories(key)
        if (entry := self.entries.pop(key, None)) is not None:
            self._uncount(entry)
        for rows in (self.rows, *self.near.rows, *self.kernel.rows):
            rows.remove(key)

    def write_layer(self, keys: Keys, layer: Mapping[str, NDArray[Any]]) -> Keys:
        """Write a layer of vectors of items `[n]` (see `service.pipeline.vectors`), by field `[n, ...]`; answers those
        items of which any field has changed."""
        changed = np.zeros(len(keys), dtype=np.bool_)
        for name, values in layer.items():
            rows, field_name, part = self._place_of(name)
            if rows is None:
                switched = self.warm[keys] != values
                changed |= switched
                self.stale.add(WARMED, keys[values & switched])
                self.stale.add(COOLED, keys[~values & switched])
                self.warm[keys] = values
                for column in range(len(self.names)) if switched.any() else ():
                    self._index_observed(keys[switched], column)
                continue
            differs = rows.get(field_name, keys, *part) != values
            if name in (*NEAR_LISTS, *KERNEL_LISTS):  # the spare ones count for nothing yet
                differs = differs[..., : (self.near if name in NEAR_LISTS else self.kernel).size]
            changed |= differs.reshape(len(keys), -1).any(axis=1)
            rows.put_all(field_name, keys, values, *part)
        if "final" in layer:
            self.indexes[FINAL].upsert(keys, layer["final"])
            self.indexes[COSINE].upsert(keys, unit(layer["final"]))
        return keys[changed]

    def read_layer(self, keys: Keys, name: str) -> NDArray[Any]:
        """A field `[n, ...]` of a layer of vectors, as it was written."""
        if name in (*KERNEL_FIELDS, "near"):
            lists = self.near if name == "near" else self.kernel
            whole = lists.cosines.get("cosines", keys) if name.endswith("cosines") else lists.keys.get("keys", keys)
            return whole[..., : lists.size]
        rows, field_name, part = self._place_of(name)
        return self.warm[keys] if rows is None else rows.get(field_name, keys, *part)

    def _place_of(self, name: str) -> tuple[Rows | None, str, tuple[int, ...]]:
        """Where a field of a layer is kept; None for the mask of warm items."""
        if name.startswith("parts."):
            return self.rows, "parts", (int(name.removeprefix("parts.")),)
        places: Mapping[str, tuple[Rows | None, str]] = {
            "near.list": (self.near.keys, "keys"),
            "near.list.cosines": (self.near.cosines, "cosines"),
            "kernel.list": (self.kernel.keys, "keys"),
            "kernel.list.cosines": (self.kernel.cosines, "cosines"),
            "warm": (None, "warm"),
        }
        return *places.get(name, (self.rows, name)), ()

    def near_to(self, keys: Keys, column: int | None = None) -> Keys:
        """The items which have any of these among their neighbours in the item graph, by one modality or any."""
        return self.near.holding(keys, self.capacity, column)

    def expected_from(self, keys: Keys, column: int | None = None) -> Keys:
        """The later items which have any of these among their kernel neighbours, by one modality or any."""
        return self.kernel.holding(keys, self.capacity, column)

    def set_confidence(self, confidence: Confidence) -> dict[str, Keys]:
        """Serve and use generated features by another rule; the items by modality whose feature is used from now on, or
        no more. Their places in the modality's index are changed, their vectors not yet."""
        self.confidence = confidence
        keys = np.array(sorted(self.entries), dtype=np.int64)
        switched = {}
        for column, name in enumerate(self.names):
            used = confidence.used(name, self.raw_confidence[keys, column].astype(np.float64))
            its = keys[used != self.used[keys, column]]
            self.used[its, column] = ~self.used[its, column]
            if len(its):
                switched[name] = its
                self._place(self.indexes[name], its, column, self._searched(its, column))
        return switched

    def features(self, name: str, keys: Keys) -> Array:
        """Projected features `[n, r_m]` of a modality as searches and vectors have them: zero where one is not used."""
        features = self.rows.get(f"{_FEATURE}{name}", keys)
        used = self.used[keys, self.names.index(name)]
        return features if used.all() else np.where(used[:, None], features, np.float32(0))

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
        for rows in (self.rows, *self.near.rows, *self.kernel.rows):
            rows.reserve(size)
        self.trained, self.warm = _grown(self.trained, size, -1), _grown(self.warm, size)
        self.observed, self.popularity = _grown(self.observed, size), _grown(self.popularity, size)
        self.created = _grown(self.created, size)
        self.raw_confidence = _grown(self.raw_confidence, size, np.nan)
        self.used = _grown(self.used, size, True)
        # Last: it is the length that readers go by.
        self.available = _grown(self.available, size)

    def _note_features(self, entry: Entry, derived: Derived) -> list[bool]:
        """Note which observed features are new, and which are gone; whether a feature has changed, by modality."""
        key, is_new = entry.key, entry.key not in self.entries
        used = self._used(entry)
        moved = []
        for column, name in enumerate(self.names):
            had, has = not is_new and self.observed[key, column], entry.states[name] is State.OBSERVED
            same = not is_new and np.array_equal(self.rows.get(f"{_FEATURE}{name}", key), derived.features[name])
            switched = not is_new and self.used[key, column] != used[column]
            moved.append(not same or switched or self.entries[key].states[name] is not entry.states[name])
            if had and not (has and same):
                self.stale.add_feature(DEPARTED, name, key)
            if has and not (had and same):
                self.stale.add_feature(ARRIVED, name, key)
            elif not has:
                self.stale.drop_arrival(name, key)
        return moved

    def _store(self, entry: Entry, derived: Derived) -> None:
        key = entry.key
        if key not in self.entries:
            row = self._trained_row(entry.id)
            self.trained[key] = -1 if row is None else row
        else:
            self._uncount(self.entries[key])
        self._states.update(entry.states.items())
        self._titled.update(entry.titled)
        self.rows.put(key, derived.fields())
        self.observed[key] = [entry.states[name] is State.OBSERVED for name in self.names]
        self.raw_confidence[key] = self._raw(entry)
        self.used[key] = self._used(entry)
        self.available[key] = entry.available
        self.created[key] = entry.created
        for category in entry.categories:
            self._categories.setdefault(category, set()).add(key)
        self.entries[key] = entry

    def _uncount(self, entry: Entry) -> None:
        self._states.subtract(entry.states.items())
        self._titled.subtract(entry.titled)

    def _index(self, keys: Keys, rows: Sequence[tuple[Entry, Derived]], moved: Mask) -> None:
        for column, name in enumerate(self.names):
            if (its := moved[:, column]).any():
                self._place(self.indexes[name], keys[its], column, self._searched(keys[its], column))
                self._index_observed(keys[its], column)
        if TARGETS in self.indexes:
            rows_of = [np.append(derived.sides["q"], derived.sides["item_bias"]) for _, derived in rows]
            self.indexes[TARGETS].upsert(keys, np.stack(rows_of))

    def _searched(self, keys: Keys, column: int) -> Mask:
        """Which items `[n]` are found by a modality: those that have it observed, or generated and used."""
        name = self.names[column]
        absent = [self.entries[key].states[name] is State.ABSENT for key in keys.tolist()]
        return np.asarray(self.used[keys, column] & ~np.array(absent, dtype=np.bool_))

    def _raw(self, entry: Entry) -> list[float]:
        return [
            entry.confidence.get(name, 0.0) if entry.states[name] is State.GENERATED else np.nan for name in self.names
        ]

    def _used(self, entry: Entry) -> list[bool]:
        raw = np.array(self._raw(entry), dtype=np.float32).astype(np.float64)
        return [bool(self.confidence.used(name, value)) for name, value in zip(self.names, raw, strict=True)]

    def _index_observed(self, keys: Keys, column: int) -> None:
        name, observed = self.names[column], self.observed[keys, column]
        self._place(self.observed_indexes[name], keys, column, observed)
        self._place(self.warm_indexes[name], keys, column, observed & self.warm[keys])

    def _place(self, index: VectorIndex, keys: Keys, column: int, chosen: Mask) -> None:
        """Index the directions of the chosen ones' features by a modality, and none of the others'."""
        features = self.rows.get(f"{_FEATURE}{self.names[column]}", keys)
        length = np.linalg.norm(features, axis=1)
        present = chosen & (length > 1e-6)  # a mean, which says nothing, cannot be found by it
        if present.any():
            index.upsert(keys[present], features[present] / length[present, None])
        if not present.all():
            index.remove(keys[~present])

    def _forget_categories(self, key: int) -> None:
        entry = self.entries.get(key)
        for category in entry.categories if entry else ():
            members = self._categories.get(category, set())
            members.discard(key)
            if not members:
                self._categories.pop(category, None)

    # --- reading -----------------------------------------------------------------------------------------------

    def every_index(self) -> list[VectorIndex]:
        """All indexes."""
        return [*self.indexes.values(), *self.observed_indexes.values(), *self.warm_indexes.values()]

    def final(self, keys: Keys) -> Array:
        """Final vectors `[k, d]`."""
        return self.rows.get("final", keys)

    def sides(self, keys: Keys) -> ItemSides:
        """What IRIS needs of items `[k]`."""
        return ItemSides(**{name: self.rows.get(f"{_SIDE}{name}", keys) for name in self.shape.sides})

    def eligible(
        self, categories: Iterable[str] = (), excluded: Keys | None = None, *, include_generated: bool = True
    ) -> Mask:
        """Which keys may be shown: available ones, in all of the categories, without the excluded and, unless these are
        included, without those of which any modality is generated."""
        allowed = self.available.copy()
        if not include_generated:
            allowed &= np.isnan(self.raw_confidence[: len(allowed)]).all(axis=1)
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
        return {name: {state.value: self._states[name, state] for state in _STATES} for name in self.names}

    def count_unused(self) -> dict[str, int]:
        """Number of generated features by modality that are not used."""
        left_out = ~self.used & ~np.isnan(self.raw_confidence[: len(self.used)])
        return dict(zip(self.names, left_out.sum(axis=0).tolist(), strict=True))

    def count_titles(self) -> dict[str, int]:
        """Number of items by modality whose observed content is the title, where there are any."""
        return {name: self._titled[name] for name in self.names if self._titled[name]}

    def count_categories(self) -> dict[str, int]:
        """Number of items by category, the largest first, ties by name."""
        counts = [(name, len(keys)) for name, keys in list(self._categories.items())]
        return dict(sorted(counts, key=lambda row: (-row[1], row[0])))


def _grown(array: NDArray[Any], size: int, fill: float = 0) -> NDArray[Any]:
    bigger = np.full((size, *array.shape[1:]), fill, dtype=array.dtype)
    bigger[: len(array)] = array
    return bigger
