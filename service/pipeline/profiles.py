"""What is known of users and items from their ratings and reviews: read from the store, encoded once, held in memory.

A review is encoded when its document is first needed, right after it came in (`encode_soon`) or at the next prediction,
and its vector is stored; a document is put together from the stored vectors. The paper's form reads whole documents:
they are read anew whenever one of their reviews changes, and nothing of them is stored. A change of somebody's reviews
drops the profile here; the other workers learn of it through the change log.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from cachetools import LRUCache

from models.arrays import Array, Double
from models.encoders import TextEncoder
from models.lrmm.documents import described
from models.lrmm.model import ITEM, USER
from models.lrmm.paper_serving import PaperServing
from models.lrmm.profiles import Reviewed, in_document
from models.lrmm.reviews import excerpt
from models.lrmm.serving import LRMMServing, pair_name
from service.domain import Review, StoredItem
from service.pipeline.active import RatingModel
from service.pipeline.catalogue import Catalogue
from service.pipeline.runtime import Runtime
from service.ports import Side, Store

PROFILES = 100_000  # in memory
REVIEWS = 500  # the newest of a user or item that count
EAGER = 64  # users and items whose reviews are encoded right after they came in
NAMES: Mapping[Side, str] = {"user": USER, "item": ITEM}


@dataclass(frozen=True, slots=True)
class Profile:
    """A side of a pair: its embedding `[d]`, what it brings to affinities, whether it has any review, and how many."""

    embedding: Array
    factors: Double
    has_reviews: bool
    reviews: int


class Profiles:
    """Profiles of users and items, and the embeddings of items' contents, the most recently used of them cached."""

    def __init__(self, model: RatingModel, store: Store, runtime: Runtime, catalogue: Catalogue) -> None:
        self.model = model
        self._store, self._runtime, self._catalogue = store, runtime, catalogue
        self._cached: LRUCache[tuple[Side, str], Profile] = LRUCache(PROFILES)
        # By item its row in SQL and version, and the embeddings of the content that it had then.
        self._contents: LRUCache[str, tuple[tuple[int, int], Mapping[str, Array]]] = LRUCache(PROFILES)
        self._changes = 0  # how often something was dropped: what was read before is not cached after it

    def forget(self, side: Side, keys: Iterable[str]) -> None:
        """Drop the profiles of users or items, after a write that changes them."""
        for key in keys:
            self._changes += 1
            self._cached.pop((side, key), None)

    def users(self) -> set[str]:
        """Users whose profiles are cached."""
        return {key for side, key in list(self._cached) if side == "user"}

    def erase(self, item: str) -> None:
        """Drop the content of a deleted item."""
        self._contents.pop(item, None)

    def clear(self) -> None:
        """Drop everything."""
        self._changes += 1
        self._cached.clear()
        self._contents.clear()

    # --- profiles ------------------------------------------------------------------------------------------------

    def encode_soon(self, users: Collection[str], items: Collection[str]) -> None:
        """Encode in the background what has just been written about a few users and items."""
        if _reads_texts(self.model.lrmm) and len(users) + len(items) <= EAGER:
            self._runtime.background(self._refresh(users, items))

    async def _refresh(self, users: Collection[str], items: Collection[str]) -> None:
        await self.of("user", users)
        await self.of("item", items)

    async def of(self, side: Side, keys: Collection[str]) -> dict[str, Profile]:
        """Profiles of users or items, with reviews or without."""
        profiles: dict[str, Profile] = {}
        absent: list[str] = []
        for key in dict.fromkeys(keys):
            profile = self._cached.get((side, key))
            if profile is None:
                absent.append(key)
            else:
                profiles[key] = profile
        if absent:
            before = self._changes
            reviews = await self._store.documents(side, absent, encoder=self.model.identity, limit=REVIEWS)
            computed = await self._computed(side, absent, {key: _latest(rows) for key, rows in reviews.items()})
            profiles |= computed
            if self._changes == before:
                self._cached.update({(side, key): profile for key, profile in computed.items()})
        return profiles

    async def _computed(
        self, side: Side, keys: Sequence[str], reviews: Mapping[str, Sequence[Review]]
    ) -> dict[str, Profile]:
        lrmm = self.model.lrmm
        if not isinstance(lrmm, PaperServing):
            return _profiles(lrmm, side, keys, await self._encoded(lrmm, reviews))
        with self._runtime.step("encode"):
            return await self._runtime.compute(_read, lrmm, side, keys, reviews)

    async def _encoded(self, lrmm: LRMMServing, documents: Mapping[str, Sequence[Review]]) -> dict[str, list[Review]]:
        """The same documents with a vector for every review that stands within their first L words."""
        read = {key: _within_document(lrmm, reviews) for key, reviews in documents.items()}
        new = {
            review.row: review
            for reviews in read.values()
            for review in reviews
            if review.words and review.vector is None
        }
        if not new:
            return read
        with self._runtime.step("encode"):
            texts = [review.text or "" for review in new.values()]
            vectors = dict(
                zip(new, await self._runtime.compute(_encode, lrmm, self.model.sentence, texts), strict=True)
            )
        await self._store.save_review_vectors(
            self.model.identity, [(row, review.words, vectors[row]) for row, review in new.items()]
        )
        return {
            key: [
                replace(review, vector=vectors[review.row]) if review.row in vectors else review for review in reviews
            ]
            for key, reviews in read.items()
        }

    # --- contents ------------------------------------------------------------------------------------------------

    async def contents(self, items: Collection[str]) -> dict[str, Mapping[str, Array]]:
        """Embeddings `[d_m]` of items' own content by modality, for what is observed of them; unknown items left
        out."""
        lrmm = self.model.lrmm
        if not lrmm.contents:
            return {}
        contents: dict[str, Mapping[str, Array]] = {}
        absent: list[str] = []
        for item in dict.fromkeys(items):
            entry, cached = self._catalogue.entry(item), self._contents.get(item)
            if entry is not None and cached is not None and cached[0] == (entry.key, entry.version):
                contents[item] = cached[1]
            else:
                absent.append(item)
        if absent:
            stored = list((await self._store.get_items(absent)).values())
            embeddings = _contents(lrmm, stored)
            if isinstance(lrmm, PaperServing):
                of_words = await self._runtime.compute(_described, lrmm, stored)
                embeddings = [features | words for features, words in zip(embeddings, of_words, strict=True)]
            for one, found in zip(stored, embeddings, strict=True):
                contents[one.id] = found
                self._contents[one.id] = (one.row, one.version), found
        return contents


def _reads_texts(lrmm: LRMMServing | PaperServing) -> bool:
    return isinstance(lrmm, PaperServing) or lrmm.encoder is not None


def _contents(lrmm: LRMMServing | PaperServing, items: Sequence[StoredItem]) -> list[dict[str, Array]]:
    """Embeddings of the observed features of items, without those that are read as words."""
    read = [name for name in lrmm.contents if not (isinstance(lrmm, PaperServing) and lrmm.reads_words_of(name))]
    return [
        {name: lrmm.content(name, item.observed[name].vector[None])[0] for name in read if name in item.observed}
        for item in items
    ]


def _described(lrmm: PaperServing, items: Sequence[StoredItem]) -> list[dict[str, Array]]:
    """Embeddings of what items are described by, where that is read as words and there are any."""
    found: list[dict[str, Array]] = [{} for _ in items]
    for name in filter(lrmm.reads_words_of, lrmm.contents):
        texts = [described(item.title, item.observed[name].text) if name in item.observed else "" for item in items]
        documents = [lrmm.document([text]) for text in texts]
        for place, embedding in enumerate(lrmm.documents(pair_name(name), documents)):
            if documents[place]:
                found[place][name] = embedding
    return found


def _read(
    lrmm: PaperServing, side: Side, keys: Sequence[str], reviews: Mapping[str, Sequence[Review]]
) -> dict[str, Profile]:
    """Profiles from documents: the newest reviews, concatenated and cut to L words."""
    documents = [lrmm.document(review.text or "" for review in reviews.get(key, ())) for key in keys]
    embeddings, none = lrmm.documents(NAMES[side], documents), np.zeros(0)
    return {
        key: Profile(embeddings[row], none, bool(documents[row]), len(reviews.get(key, ())))
        for row, key in enumerate(keys)
    }


def _latest(reviews: Sequence[Review]) -> list[Review]:
    """Without those, newest first, that a newer one of the same pair has replaced, as in training."""
    by_pair: dict[tuple[str, str], Review] = {}
    for review in reviews:
        by_pair.setdefault((review.user, review.item), review)
    return list(by_pair.values())


def _within_document(lrmm: LRMMServing, reviews: Sequence[Review]) -> list[Review]:
    """The reviews of one document; those beyond its first L words have no words and no vector."""
    counted = [replace(review, words=_words(lrmm, review)) for review in reviews]
    words = np.array([review.words for review in counted])
    inside = in_document(np.zeros(len(counted), np.int64), words, lrmm.config.document_words) & (words > 0)
    return [
        review if is_inside else replace(review, words=0, vector=None)
        for review, is_inside in zip(counted, inside, strict=True)
    ]


def _words(lrmm: LRMMServing, review: Review) -> int:
    """Words of a review that are read; none where nothing reads them."""
    if lrmm.encoder is None:
        return 0
    return review.words if review.text is None else min(len(review.text.split()), lrmm.config.review_words)


def _encode(lrmm: LRMMServing, sentence: TextEncoder | None, texts: Sequence[str]) -> Array:
    encoder = lrmm.encoder
    assert encoder is not None  # only its words are counted, and only what has words is encoded
    assert sentence is not None  # it was loaded with the encoder
    return encoder.encode(texts, sentence.encode([excerpt(text, encoder.limit) for text in texts]))


def _profiles(
    lrmm: LRMMServing, side: Side, keys: Sequence[str], documents: Mapping[str, Sequence[Review]]
) -> dict[str, Profile]:
    reviews = [(place, review) for place, key in enumerate(keys) for review in documents.get(key, ())]
    zero = np.zeros(lrmm.vector_dim, np.float32)
    other_bias, other_factors = lrmm.sides.others(NAMES[side], [(review.user, review.item) for _, review in reviews])
    vectors = [zero if review.vector is None else review.vector for _, review in reviews]
    reviewed = Reviewed(
        group=np.array([place for place, _ in reviews], dtype=np.int64),
        value=np.array([np.nan if review.value is None else review.value for _, review in reviews], dtype=np.float64),
        other_bias=other_bias,
        other_factors=other_factors,
        vector=np.array(vectors).reshape(-1, len(zero)),
        has_text=np.array([review.vector is not None for _, review in reviews], dtype=np.bool_),
    )
    computed = lrmm.profile(NAMES[side], reviewed, len(keys))
    count = np.bincount(reviewed.group, minlength=len(keys))
    return {
        key: Profile(computed.embedding[row], computed.factors[row], bool(computed.known[row]), int(count[row]))
        for row, key in enumerate(keys)
    }
