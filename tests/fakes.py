"""Stand-ins that are simple enough to be right by inspection."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


class BruteForceIndex:
    """`service.ports.VectorIndex` as a dictionary and a sort."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._vectors: dict[int, NDArray[np.float32]] = {}

    def upsert(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        self._vectors.update(zip(keys.tolist(), vectors, strict=True))

    def remove(self, keys: NDArray[np.int64]) -> None:
        for key in keys.tolist():
            self._vectors.pop(key, None)

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        keys = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for row, query in enumerate(queries):
            found = sorted(
                (-float(vector @ query), key)
                for key, vector in self._vectors.items()
                if allowed is None or (key < len(allowed) and allowed[key])
            )[:k]
            for column, (score, key) in enumerate(found):
                keys[row, column], scores[row, column] = key, -score
        return keys, scores

    def products(self, queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        products = [[float(vector @ query) for vector in vectors] for query in queries]
        return np.array(products, np.float32).reshape(len(queries), len(vectors))

    def __len__(self) -> int:
        return len(self._vectors)

    def __contains__(self, key: int) -> bool:
        return key in self._vectors

    def stats(self) -> Mapping[str, int]:
        return {"base": len(self._vectors), "delta": 0, "tombstones": 0}
