"""Which items' vectors no longer follow from the others', layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from models.arrays import Mask
from service.ports import Keys

ARRIVED, DEPARTED = "arrived", "departed"  # items of which an observed feature is new, or a former one is gone
WARMED, COOLED = "warmed", "cooled"  # items that have become warm, or no longer are


class Stale:
    """Sets of items by the layer of `service.pipeline.vectors` that has to be computed again, or by a change of theirs
    that has yet to reach others. Only one thread writes."""

    def __init__(self) -> None:
        self._items: dict[str, dict[int, None]] = defaultdict(dict)  # in order, the longest waiting first
        self._features: dict[str, dict[str, dict[int, None]]] = {ARRIVED: {}, DEPARTED: {}}
        self._taken = 0

    def __len__(self) -> int:
        waiting = [*self._items.values(), *(keys for names in self._features.values() for keys in names.values())]
        return sum(map(len, waiting)) + self._taken

    @contextmanager
    def working_off(self) -> Iterator[None]:
        """What is taken meanwhile counts as stale until the end."""
        try:
            yield
        finally:
            self._taken = 0

    def add(self, layer: str, keys: Keys | Iterable[int]) -> None:
        """Note items under a layer or what else is said of them, such as WARMED or COOLED."""
        values = keys.tolist() if isinstance(keys, np.ndarray) else keys
        self._items[layer].update(dict.fromkeys(values))

    def take(self, layer: str, count: int) -> Keys:
        """Take the first items `[<= count]` from under a layer."""
        return self._take(self._items[layer], count)

    def holds(self, layer: str, keys: Keys) -> Mask:
        """Which of some items `[n]` are under a layer."""
        items = self._items[layer]
        return np.array([key in items for key in keys.tolist()], dtype=np.bool_)

    def add_feature(self, change: str, modality: str, key: int) -> None:
        """Note that an item's observed feature has ARRIVED, or a former one has DEPARTED."""
        self._features[change].setdefault(modality, {})[key] = None

    def drop_arrival(self, modality: str, key: int) -> None:
        """What had arrived is gone again."""
        self._features[ARRIVED].get(modality, {}).pop(key, None)

    def take_features(self, change: str, count: int) -> dict[str, Keys]:
        """Take the first such items `[<= count]` of each modality that has any."""
        waiting = {name: keys for name, keys in self._features[change].items() if keys}
        return {name: self._take(keys, count) for name, keys in waiting.items()}

    def clear(self) -> None:
        """Everything has been computed."""
        self._items.clear()
        for names in self._features.values():
            names.clear()

    def _take(self, keys: dict[int, None], count: int) -> Keys:
        taken = list(keys)[:count] if len(keys) > count else list(keys)
        self._taken += len(taken)
        for key in taken:
            del keys[key]
        return np.array(taken, dtype=np.int64)
