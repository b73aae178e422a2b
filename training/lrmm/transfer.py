"""Cross-domain: a model that was trained on one dataset rates the pairs of another, as a service with new data would.

Nothing is learned from the target: profiles come from its training part, and its test part is rated. Its users and
items are new to the model, so that the other side of a review has neither bias nor latent factors. Content is not
carried over, since encoders may differ: it counts as missing. What items are described by in words is, in the paper's
form, whose words are its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.arrays import Array
from models.lrmm.factors import LatentFactors
from models.lrmm.model import ITEM, USER
from models.lrmm.paper_serving import PaperServing
from models.lrmm.profiles import Biases
from models.lrmm.serving import LRMMServing
from training.lrmm.documents import DESCRIPTION, DocumentBuilder
from training.lrmm.pairs import PairBuilder, RatingPairs
from training.lrmm.paper import embedded_pairs
from training.lrmm.ratings import RatingParts, Ratings


@dataclass(frozen=True)
class Target:
    """A split of the dataset to be rated; `sentences [n, d]` of its reviews are None where there are no texts, and
    `item_texts` by item where no item has words."""

    ratings: Ratings
    parts: RatingParts
    sentences: Array | None
    item_texts: tuple[str, ...] | None = None


def transferred(serving: LRMMServing | PaperServing, target: Target) -> RatingPairs:
    """The test pairs of the target under the profiles of its training part."""
    if isinstance(serving, PaperServing):
        return _transferred_documents(serving, target)
    ratings, parts = target.ratings, target.parts
    vectors = np.zeros((len(ratings), serving.vector_dim), np.float32)
    if serving.encoder is not None and target.sentences is not None:
        vectors = serving.encoder.encode(ratings.text, target.sentences)
    no_content = {
        name: (np.zeros((ratings.n_items, size), np.float32), np.zeros(ratings.n_items, np.bool_))
        for name, size in serving.model.sizes.items()
        if name not in (USER, ITEM)
    }
    builder = PairBuilder(ratings, vectors, serving.config, no_content)
    biases = Biases(serving.prior.mean, np.zeros(ratings.n_users), np.zeros(ratings.n_items))
    factors = LatentFactors.zeros(ratings.n_users, ratings.n_items, serving.sides.factors.size)
    sides = builder.sides_given(parts.train, serving.prior, biases, factors)
    return builder.pairs(parts.test, sides, serving.scales)


def _transferred_documents(serving: PaperServing, target: Target) -> RatingPairs:
    model, n_items = serving.model, target.ratings.n_items
    texts = target.item_texts or ("",) * n_items
    missing = {
        name: (np.zeros((n_items, size), np.float32), np.zeros(n_items, np.bool_))
        for name, size in model.mapped.items()
    }
    builder = DocumentBuilder(
        target.ratings,
        serving.vocabulary,
        serving.config.document_words,
        item_texts=texts if DESCRIPTION in model.worded else None,
        features=missing,
    )
    return embedded_pairs(model, builder.pairs(target.parts.test, target.parts.train), missing)
