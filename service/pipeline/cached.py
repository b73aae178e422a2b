"""Users' lists as the cache holds them. Others may write to it: what is no list of this catalogue is ignored."""

from __future__ import annotations

import numpy as np
import orjson

from service.pipeline.catalogue import Catalogue
from service.pipeline.rank import Scores
from service.ports import Keys

_ENTRY_BYTES = 64  # more than a key and a score take


def packed(keys: Keys, scores: Scores) -> bytes:
    """A list of keys `[k]` with their scores `[k]`."""
    return orjson.dumps([keys.tolist(), scores.tolist()])


def unpacked(data: bytes | None, catalogue: Catalogue, n: int) -> tuple[Keys, Scores] | None:
    """The keys and scores of a list of at most `n` items that may be shown; None where this is no such list."""
    if data is None or len(data) > _ENTRY_BYTES * (n + 1):
        return None
    try:
        keys, scores = orjson.loads(data)
        is_list = len(keys) == len(scores) == len(set(keys)) <= n and {type(key) for key in keys} <= {int}
        values = np.array(scores, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    if not is_list or values.ndim != 1 or not (np.abs(values) <= np.finfo(np.float32).max).all():
        return None
    if not all(key in catalogue.entries and catalogue.available[key] for key in keys):
        return None
    return np.array(keys, dtype=np.int64), values.astype(np.float32)
