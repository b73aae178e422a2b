"""Training of LRMM: what is predicted is never read, and what can be learned is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundle import Bundle, EncoderRef
from models.lrmm.config import LRMMConfig
from models.lrmm.model import ITEM, USER
from models.lrmm.profiles import Prior
from models.lrmm.reviews import fold_of
from models.lrmm.serving import LRMMServing
from models.modality import ModalBatch
from models.vocabulary import Vocabulary
from tests.training.test_rating_baselines import ITEMS, USERS, ratings
from training.content import DataOptions
from training.datasets import load_dataset, write_dataset
from training.evaluate import RatingPlan, evaluate_rating
from training.lrmm import reviews
from training.lrmm.pairs import PairBuilder
from training.lrmm.ratings import RatingDataError, Ratings, random_parts
from training.lrmm.recipe import LRMMRecipe
from training.lrmm.reviews import fit_reviews
from training.lrmm.task import TRAINER, RatingSource, measured, train_lrmm
from training.progress import Terminal
from training.recipe import train_into_bundle

CONFIG = LRMMConfig(
    members=2,
    hidden=16,
    rating_hidden=8,
    word_embedding_size=8,
    lstm_hidden=8,
    lstm_epochs=2,
    sentence_size=4,
    content_size=4,
    min_word_count=5,
    folds=4,
    repeats=2,
)
QUICK = TRAINER.model_copy(update={"epochs": 4, "learning_rate": 3e-3, "batch_size": 64})


def terminal() -> Terminal:
    return Terminal(quiet=True)


def source(world: Ratings, *, texts: bool = True) -> RatingSource:
    """Sentence vectors that tell the shift of the review's item, and items' content that tells it too."""
    rng = np.random.default_rng(1)
    side = np.where(world.item % 2 == 0, 1.0, -1.0)
    sentences = (side[:, None] + 0.3 * rng.normal(size=(len(world), 6))).astype(np.float32)
    feature = np.where(np.arange(ITEMS) % 2 == 0, 1.0, -1.0)[:, None] + 0.1 * rng.normal(size=(ITEMS, 6))
    observed = torch.from_numpy(rng.random((ITEMS, 1)) < 0.8)
    return RatingSource(
        ratings=world,
        parts=random_parts(len(world), 0),
        sentences=(sentences, EncoderRef(kind="text", id="test", dim=6, weights_sha256="0")) if texts else None,
        content=ModalBatch({"text": torch.from_numpy(feature).float()}, observed),
        users=Vocabulary(f"u{row}" for row in range(USERS)),
        items=Vocabulary(f"i{row}" for row in range(ITEMS)),
    )


# --- what is predicted is not read -----------------------------------------------------------------------------------


def test_the_predicted_review_may_be_anything() -> None:
    """Neither the stars nor the words of a training review reach the profiles that it is predicted from."""
    world = ratings()
    train = np.arange(300)
    vectors = np.random.default_rng(0).normal(size=(len(world), 5)).astype(np.float32)
    prior = Prior.of(world.value[train])
    value, other = world.value.copy(), vectors.copy()
    victim = 17
    value[victim], other[victim] = 1.0, 1e3
    found = []
    for one, read in ((world, vectors), (replace(world, value=value), other)):
        builder = PairBuilder(one, read, CONFIG.model_copy(update={"factor_penalty": 0.5}), {})
        rng = np.random.default_rng(0)
        rows = np.concatenate(
            [fold for _ in range(CONFIG.repeats) for fold in np.array_split(rng.permutation(train), CONFIG.folds)]
        )
        pairs, scales = builder.held_out(train, prior, np.random.default_rng(0))
        raw = {side: pairs.embeddings[side] / scales[side].factor + scales[side].mean for side in (USER, ITEM)}
        raw["affinity"] = pairs.affinity
        found.append({side: one[rows == victim] for side, one in raw.items()})
    assert found[0]["affinity"].any()
    for side in found[0]:
        assert len(found[0][side]) == CONFIG.repeats
        np.testing.assert_allclose(found[0][side], found[1][side], atol=1e-4)


def test_reviews_of_validation_and_test_reach_nothing() -> None:
    world = ratings()
    given = source(world)
    held = np.concatenate([given.parts.valid, given.parts.test])
    text = list(world.text)
    for row in held:
        text[row] = "other words"
    value = world.value.copy()
    value[given.parts.test] = 1.0
    assert given.sentences is not None
    noise = given.sentences[0].copy()
    noise[held] = 99.0
    changed = replace(
        given, ratings=replace(world, value=value, text=tuple(text)), sentences=(noise, given.sentences[1])
    )
    outcomes = [train_lrmm(one, CONFIG, QUICK, terminal=terminal()) for one in (given, changed)]
    for one, other in zip(*(outcome.test.embeddings.values() for outcome in outcomes), strict=True):
        np.testing.assert_array_equal(one, other)
    weights, others = (outcome.serving.model.state_dict() for outcome in outcomes)
    for name in weights:
        assert torch.equal(weights[name], others[name]), name


def test_documents_hold_the_newest_reviews() -> None:
    world = ratings()
    config = CONFIG.model_copy(update={"document_words": 1})
    vectors = np.random.default_rng(0).normal(size=(len(world), 5)).astype(np.float32)
    builder = PairBuilder(world, vectors, config, {})
    every = np.arange(len(world))
    biases = builder.biases(every)
    reviewed = builder.reviewed(USER, every, biases, builder.factors(every, biases.mean))
    newest = {int(user): int(np.flatnonzero(world.user == user).max()) for user in range(USERS)}
    for user in range(USERS):
        told = reviewed.vector[(reviewed.group == user) & reviewed.has_text]
        np.testing.assert_array_equal(told, vectors[[newest[user]]])


# --- what is learned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [True, False])
def test_training_beats_the_mean_in_every_regime(texts: bool) -> None:
    given = source(ratings(), texts=texts)
    trained = train_lrmm(given, CONFIG, QUICK, terminal=terminal())
    found = measured(trained.serving, trained.test)
    value = given.ratings.value
    alone = float(np.sqrt(np.mean((value[given.parts.test] - value[given.parts.train].mean()) ** 2)))
    assert found["rmse[+F]"] < 0.75 * alone
    assert found["rmse[+F]"] < min(found["rmse[-U]"], found["rmse[-O]"])
    assert max(found["rmse[-U]"], found["rmse[-O]"]) < alone
    assert "rmse[-M]" in found
    assert "rmse[-V]" not in found  # there are no pictures
    assert (trained.serving.encoder is not None) == texts
    assert found["coverage[+F]"] > 0.8


def test_the_same_seed_gives_the_same_model() -> None:
    given = source(ratings())
    first, second = (train_lrmm(given, CONFIG, QUICK, terminal=terminal()).serving for _ in range(2))
    for name, weights in first.model.state_dict().items():
        assert torch.equal(weights, second.model.state_dict()[name])


def test_the_sentiment_of_a_review_is_fitted_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-fitted: a word that only one review has tells nothing of that review's own rating."""
    world = ratings()
    text = [f"{one} unique{row}" for row, one in enumerate(world.text)]
    given = source(replace(world, text=tuple(text)))
    assert given.sentences is not None
    monkeypatch.setattr(reviews, "MIN_GRAM_REVIEWS", 1)
    config = CONFIG.model_copy(update={"lstm_epochs": 0})
    encoder = fit_reviews(given.ratings, given.parts.train, given.sentences[0], config, 0, terminal())
    sentiment = encoder.sentiment
    for row in given.parts.train[:40]:
        gram = sentiment.grams.get(f"unique{row}")
        assert gram is not None
        own = fold_of(given.ratings.text[row], sentiment.folds)
        assert sentiment.weights[own, gram] == 0, "the fold of the review itself has learned its word"


@pytest.mark.parametrize(("most", "told"), [(0, 0.0), (1, 1.0), (None, 12.0)])
def test_few_reviews_tell_of_an_item(most: int | None, told: float) -> None:
    """No more are read, of training pairs and of test pairs; what users wrote stays known."""
    given = replace(source(ratings()), item_reviews=most)
    trained = train_lrmm(given, CONFIG, QUICK, terminal=terminal())
    names = trained.serving.names
    amount = trained.test.review_count[:, names.index(ITEM)]
    assert (amount <= told if most is not None else amount > told).all()
    assert trained.test.present[:, names.index(ITEM)].all() == (most != 0)
    assert trained.test.present[:, names.index(USER)].all()
    found = measured(trained.serving, trained.test)
    if most == 0:
        assert found["rmse[+F]"] == found["rmse[-O]"]


def test_the_ratings_of_sparse_items_reach_no_profile() -> None:
    world = ratings()
    train = np.arange(300)
    prior = Prior.of(world.value[train])
    newest = {int(item): int(train[world.item[train] == item].max()) for item in range(ITEMS)}
    older = np.setdiff1d(train, list(newest.values()))
    value = world.value.copy()
    value[older[world.user[older] != 3]] = 1.0
    found = []
    for one in (world, replace(world, value=value)):
        builder = PairBuilder(one, np.zeros((len(world), 1), np.float32), CONFIG, {}, item_reviews=1)
        sides = builder.sides(train, prior)
        found.append((sides[ITEM].raw, sides[USER].raw[3]))
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)


# --- the whole line --------------------------------------------------------------------------------------------------


def dataset(folder: Path, world: Ratings | None = None, name: str = "rated") -> Any:
    world = world or ratings()
    items = [{"id": f"i{row}", "title": None, "modalities": {}} for row in range(ITEMS)]
    events = [
        {"user": f"u{user}", "item": f"i{item}", "type": "review", "value": float(value), "text": text}
        for user, item, value, text in zip(world.user, world.item, world.value, world.text, strict=True)
    ][::4]  # sentences take time
    write_dataset(folder, items, events, name=name, source="test", synthetic=True)
    return load_dataset(folder)


def test_a_bundle_of_lrmm_alone_and_again(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    options = DataOptions(cache=tmp_path / "cache", threads=1)
    out = tmp_path / "bundle"
    for version in (1, 2):
        with terminal() as told:
            manifest = train_into_bundle(LRMMRecipe(CONFIG, QUICK), data, out, options, terminal=told)
        assert re.fullmatch(rf".*\.{version}-[0-9a-f]{{8}}", manifest.version)
        assert list(manifest.models) == ["lrmm"]
        assert 0.5 < manifest.models["lrmm"].metrics["coverage[+F]"] <= 1
    found = LRMMServing.load(Bundle.load(out))
    assert found is not None
    assert found.encoder is not None
    assert found.sides.users.ids[0] == "u0"
    assert found.sides.items.ids[0] == "i0"
    assert not list(tmp_path.glob(".*checkpoint"))


def test_the_protocol_runs_random_splits_and_says_how(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    plan = RatingPlan("lrmm", CONFIG, QUICK, DataOptions(cache=tmp_path / "cache", threads=1))
    with terminal() as told:
        result = evaluate_rating(data, plan, seeds=2, variant=None, command="test", terminal=told)
        baseline = evaluate_rating(
            data, replace(plan, model="offset"), seeds=2, variant=None, command="test", terminal=told
        )
    assert [run["seed"] for run in result["runs"]] == [1, 2]
    assert result["published"] is None
    assert result["config"]["model"]["members"] == 2
    assert result["mean"]["rmse[+F]"] < baseline["mean"]["rmse[+F]"]
    assert {"rmse[-U]", "mae[-O]", "coverage[-U-O]", "width[+F]"} <= set(result["mean"])


def test_every_model_is_left_with_the_same_ratings(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    plan = RatingPlan("lrmm", CONFIG, QUICK, DataOptions(cache=tmp_path / "cache", threads=1), item_ratings=2)
    with terminal() as told:
        found = [
            evaluate_rating(data, replace(plan, model=model), seeds=1, variant=None, command="test", terminal=told)
            for model in ("lrmm", "biases")
        ]
    for result in found:
        assert result["config"]["item_ratings"] == 2
        assert {row["reviews"] for row in result["runs"][0]["by_amount"]["item"]} <= {"0", "1", "2"}
    rows = [[(row["reviews"], row["rows"]) for row in one["runs"][0]["by_amount"]["user"]] for one in found]
    assert rows[0] == rows[1]


def test_another_dataset_is_rated_by_what_was_learned_from_the_first(tmp_path: Path) -> None:
    """Both are synthetic: the words mean the same, the users and items are others."""
    other = dataset(tmp_path / "other", ratings(seed=5), name="other")
    options = DataOptions(cache=tmp_path / "cache", threads=1)
    plan = RatingPlan("lrmm", CONFIG, QUICK, options, target=other)
    with terminal() as told:
        found = evaluate_rating(dataset(tmp_path / "data"), plan, seeds=1, variant=None, command="test", terminal=told)
        floor = evaluate_rating(
            other, RatingPlan("offset", CONFIG, QUICK, options), seeds=1, variant=None, command="test", terminal=told
        )
    assert found["dataset"] == "other"
    assert found["config"]["trained_on"] == "rated"
    assert found["mean"]["rmse[+F]"] < 0.8 * floor["mean"]["rmse[+F]"]
    with pytest.raises(RatingDataError, match="biases knows users and items alone"):
        replace(plan, model="biases")
