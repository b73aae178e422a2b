"""What is known of users and items from their reviews: read from the store, encoded once, kept in memory.

A review is encoded when its document is first needed, right after it came in (`follow`) or at the next prediction, and
its vector is stored; a document is put together from the stored vectors. A change of somebody's reviews drops the
profile here; the other workers hear of it through the change log.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from models.arrays import Array, Double
from models.encoders import TextEncoder
from models.lrmm.model import ITEM, USER
from models.lrmm.profiles import Reviewed, in_document
from models.lrmm.reviews import excerpt
from models.lrmm.serving import LRMMServing
from service.domain import Review
from service.pipeline.engine import Engine
from service.ports import Side

PROFILES = 100_000  # kept in memory
REVIEWS = 500  # the newest of a user or item that count
EAGER = 64  # users and items whose reviews are encoded right after they came in
NAMES: Mapping[Side, str] = {"user": USER, "item": ITEM}


@dataclass(frozen=True, slots=True)
class Profile:
    """A side of a pair: its embedding `[d]`, latent factors `[k]`, whether it has any review, and how many."""

    embedding: Array
    factors: Double
    known: bool
    reviews: int


@dataclass
class Documents:
    """The model that reads documents, and the profiles it has made.

    `identity` tells the encoder of reviews from every other; `changes` counts what was dropped, so that what was read
    before a change is not kept after it. `contents` has for an item what its row in SQL and its version were.
    """

    lrmm: LRMMServing
    sentence: TextEncoder | None
    identity: str
    profiles: OrderedDict[tuple[Side, str], Profile] = field(default_factory=OrderedDict)
    contents: OrderedDict[str, tuple[tuple[int, int], Mapping[str, Array]]] = field(default_factory=OrderedDict)
    changes: int = 0

    def forget(self, side: Side, keys: Iterable[str]) -> None:
        """Drop what is known of users or items, after a write that changes it."""
        self.changes += 1
        for key in keys:
            self.profiles.pop((side, key), None)


def forget(engine: Engine, items: Iterable[str]) -> None:
    """Drop what is known of items, where the bundle predicts ratings; of users, `history.forget` does."""
    if engine.documents is not None:
        engine.documents.forget("item", items)


def erase(engine: Engine, item: str) -> None:
    """Drop what is known of an item that is gone, and of its content."""
    forget(engine, [item])
    if engine.documents is not None:
        engine.documents.contents.pop(item, None)


def forget_all(engine: Engine) -> None:
    """Drop all that is known of anybody."""
    if engine.documents is not None:
        engine.documents.changes += 1
        engine.documents.profiles.clear()
        engine.documents.contents.clear()


def follow(engine: Engine, users: Collection[str], items: Collection[str]) -> None:
    """Encode what has just been written about a few users and items, after the answer."""
    documents = engine.documents
    if documents is not None and documents.lrmm.encoder is not None and len(users) + len(items) <= EAGER:
        engine.background(_refresh(engine, documents, users, items))


async def _refresh(engine: Engine, documents: Documents, users: Collection[str], items: Collection[str]) -> None:
    await profiles(engine, documents, "user", users)
    await profiles(engine, documents, "item", items)


async def profiles(engine: Engine, documents: Documents, side: Side, keys: Collection[str]) -> dict[str, Profile]:
    """Profiles of users or items, known or not."""
    found: dict[str, Profile] = {}
    absent: list[str] = []
    for key in dict.fromkeys(keys):
        profile = documents.profiles.get((side, key))
        if profile is None:
            absent.append(key)
        else:
            documents.profiles.move_to_end((side, key))
            found[key] = profile
    if absent:
        before = documents.changes
        read = await engine.store.documents(side, absent, encoder=documents.identity, limit=REVIEWS)
        read = await _encoded(engine, documents, {key: _latest(reviews) for key, reviews in read.items()})
        made = _profiles(documents.lrmm, side, absent, read)
        found |= made
        if documents.changes == before:
            _keep(documents, side, made)
    return found


def _keep(documents: Documents, side: Side, made: Mapping[str, Profile]) -> None:
    for key, profile in made.items():
        documents.profiles[side, key] = profile
    while len(documents.profiles) > PROFILES:
        documents.profiles.popitem(last=False)


def _latest(reviews: Sequence[Review]) -> list[Review]:
    """Without those, newest first, that a newer one of the same pair has replaced, as in training."""
    found: dict[tuple[str, str], Review] = {}
    for one in reviews:
        found.setdefault((one.user, one.item), one)
    return list(found.values())


async def _encoded(
    engine: Engine, documents: Documents, read: Mapping[str, Sequence[Review]]
) -> dict[str, list[Review]]:
    """The same documents with a vector for every review that stands within their first L words."""
    lrmm = documents.lrmm
    kept: dict[str, list[Review]] = {}
    new: dict[int, Review] = {}
    for key, reviews in read.items():
        counted = [replace(one, words=_words(lrmm, one)) for one in reviews]
        words = np.array([one.words for one in counted])
        inside = in_document(np.zeros(len(counted), np.int64), words, lrmm.config.document_words) & (words > 0)
        kept[key] = [
            one if there else replace(one, words=0, vector=None) for one, there in zip(counted, inside, strict=True)
        ]
        new |= {one.row: one for one in kept[key] if one.words and one.vector is None}
    if not new:
        return kept
    with engine.step("encode"):
        vectors = await engine.compute(_encode, documents, [one.text or "" for one in new.values()])
    made = dict(zip(new, vectors, strict=True))
    await engine.store.save_review_vectors(
        documents.identity, [(row, one.words, made[row]) for row, one in new.items()]
    )
    return {
        key: [replace(one, vector=made[one.row]) if one.row in made else one for one in reviews]
        for key, reviews in kept.items()
    }


def _words(lrmm: LRMMServing, review: Review) -> int:
    """Words of a review that are read; none where nothing reads them."""
    if lrmm.encoder is None:
        return 0
    return review.words if review.text is None else min(len(review.text.split()), lrmm.config.review_words)


def _encode(documents: Documents, texts: Sequence[str]) -> Array:
    encoder, sentence = documents.lrmm.encoder, documents.sentence
    assert encoder is not None  # only its words are counted, and only what has words is encoded
    assert sentence is not None  # it was loaded with the encoder
    return encoder.encode(texts, sentence.encode([excerpt(text, encoder.limit) for text in texts]))


def _profiles(
    lrmm: LRMMServing, side: Side, keys: Sequence[str], read: Mapping[str, Sequence[Review]]
) -> dict[str, Profile]:
    reviews = [(place, one) for place, key in enumerate(keys) for one in read.get(key, ())]
    blank = np.zeros(lrmm.vector_dim, np.float32)
    other_bias, other_factors = lrmm.sides.others(NAMES[side], [(one.user, one.item) for _, one in reviews])
    reviewed = Reviewed(
        group=np.array([place for place, _ in reviews], dtype=np.int64),
        value=np.array([np.nan if one.value is None else one.value for _, one in reviews], dtype=np.float64),
        other_bias=other_bias,
        other_factors=other_factors,
        vector=np.array([blank if one.vector is None else one.vector for _, one in reviews]).reshape(-1, len(blank)),
        has_text=np.array([one.vector is not None for _, one in reviews], dtype=np.bool_),
    )
    made = lrmm.profile(NAMES[side], reviewed, len(keys))
    count = np.bincount(reviewed.group, minlength=len(keys))
    return {
        key: Profile(made.embedding[row], made.factors[row], bool(made.known[row]), int(count[row]))
        for row, key in enumerate(keys)
    }


async def contents(engine: Engine, documents: Documents, items: Collection[str]) -> dict[str, Mapping[str, Array]]:
    """Embeddings `[d_m]` of items' own content by modality, for what is observed of them; unknown items left out."""
    if not documents.lrmm.contents:
        return {}
    found: dict[str, Mapping[str, Array]] = {}
    absent: list[str] = []
    for item in dict.fromkeys(items):
        entry, kept = engine.catalogue.entry(item), documents.contents.get(item)
        if entry is not None and kept is not None and kept[0] == (entry.key, entry.version):
            found[item] = kept[1]
        else:
            absent.append(item)
    if absent:
        for item, stored in (await engine.store.get_items(absent)).items():
            found[item] = {
                name: documents.lrmm.content(name, stored.observed[name].vector[None])[0]
                for name in documents.lrmm.contents
                if name in stored.observed
            }
            documents.contents[item] = (stored.row, stored.version), found[item]
        while len(documents.contents) > PROFILES:
            documents.contents.popitem(last=False)
    return found
