"""Vectors in a plane, to be drawn."""

from __future__ import annotations

import numpy as np
from sklearn.manifold import TSNE

from models.arrays import Array

PERPLEXITY = 30.0


def plane(rows: Array) -> Array:
    """Rows `[k, d]` in a plane `[k, 2]` by t-SNE (van der Maaten and Hinton, 2008), the same for the same rows."""
    if len(rows) < 3:
        return np.zeros((len(rows), 2), dtype=np.float32)
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    places: Array = TSNE(perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(rows)
    return places
