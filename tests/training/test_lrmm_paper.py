"""Training of the paper's form: its own review is never in a document, and what can be learned is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.lrmm.config import LRMMPaperConfig
from models.lrmm.model import ITEM, USER
from models.lrmm.paper_serving import PaperServing
from models.modality import ModalBatch
from models.vocabulary import Vocabulary
from tests.training.test_rating_baselines import ITEMS, USERS, ratings
from training.cli.configs import lrmm_configs
from training.cli.options import CommandError
from training.content import DataOptions
from training.datasets import load_dataset, write_dataset
from training.evaluate import RatingPlan, evaluate_rating
from training.lrmm.documents import DESCRIPTION, DocumentBuilder, document_words
from training.lrmm.paper import TRAINER_OF_PAPER, train_paper
from training.lrmm.ratings import RatingDataError, Ratings, random_parts
from training.lrmm.task import RatingSource, measured
from training.progress import Terminal

CONFIG = LRMMPaperConfig(
    lstm_hidden=8, hidden=12, word_embedding_size=8, min_word_count=5, document_words=12, optimizer="adam"
)
QUICK = TRAINER_OF_PAPER.model_copy(update={"epochs": 6, "learning_rate": 1e-2, "batch_size": 64})


def terminal() -> Terminal:
    return Terminal(quiet=True)


def source(world: Ratings) -> RatingSource:
    """Items' pictures and descriptions tell their shift."""
    rng = np.random.default_rng(1)
    sign = np.where(np.arange(ITEMS) % 2 == 0, 1.0, -1.0)
    image = torch.from_numpy(sign[:, None] + 0.1 * rng.normal(size=(ITEMS, 6))).float()
    texts = tuple("" if row % 5 == 0 else "splendid" if row % 2 == 0 else "poor" for row in range(ITEMS))
    observed = torch.tensor([[bool(text), row % 3 > 0] for row, text in enumerate(texts)])
    return RatingSource(
        ratings=world,
        parts=random_parts(len(world), 0),
        sentences=None,
        content=ModalBatch({"text": torch.zeros(ITEMS, 4), "image": image}, observed),
        users=Vocabulary(f"u{row}" for row in range(USERS)),
        items=Vocabulary(f"i{row}" for row in range(ITEMS)),
        item_texts=texts,
    )


def builder(world: Ratings, vocabulary: Vocabulary, **options: Any) -> DocumentBuilder:
    return DocumentBuilder(world, vocabulary, 12, item_texts=None, features={}, **options)


# --- what is predicted is not read -----------------------------------------------------------------------------------


def test_documents_are_the_newest_training_reviews_without_the_pairs_own() -> None:
    world = ratings()
    world = replace(world, text=tuple(f"w{row} x y z v" for row in range(len(world))))
    train = np.arange(0, 300)
    vocabulary = Vocabulary(f"w{row}" for row in range(len(world)))
    for rows in (train[::7], np.arange(300, 330)):
        pairs = builder(world, vocabulary).pairs(rows, train)
        for side, key in ((USER, world.user), (ITEM, world.item)):
            table, place = pairs.documents[side]
            for row, document in zip(rows, table[place], strict=True):
                others = [other for other in train[::-1] if key[other] == key[row] and other != row]
                told = [int(word) - 2 for word in document if word > 1]
                assert told == others[: len(told)]
                assert len(told) == min(len(others), 3)  # 12 words are two reviews of 5 and the beginning of a third
                assert int((document > 0).sum()) == min(5 * len(others), 12)
    counts = builder(world, vocabulary).pairs(train, train).review_count
    np.testing.assert_array_equal(counts[:, 0], np.bincount(world.user[train])[world.user[train]] - 1)


def test_few_reviews_tell_of_an_item() -> None:
    world, train = ratings(), np.arange(300)
    words = document_words(world, train, None, 1)
    pairs = builder(world, words, item_reviews=1).pairs(train, train)
    every = builder(world, words).pairs(train, train)
    assert pairs.review_count[:, 1].max() == 1
    np.testing.assert_array_equal(pairs.review_count[:, 0], every.review_count[:, 0])
    longest = max(len(text.split()) for text in world.text)
    assert (pairs.documents[ITEM][0] > 0).sum(axis=1).max() <= longest


def test_reviews_of_validation_and_test_reach_nothing() -> None:
    given = source(ratings())
    held = np.concatenate([given.parts.valid, given.parts.test])
    text, value = list(given.ratings.text), given.ratings.value.copy()
    for row in held:
        text[row] = "other words"
    value[given.parts.test] = 1.0
    changed = replace(given, ratings=replace(given.ratings, value=value, text=tuple(text)))
    first, second = (train_paper(one, CONFIG, QUICK, terminal=terminal()) for one in (given, changed))
    for name, embedding in first.test.embeddings.items():
        np.testing.assert_array_equal(embedding, second.test.embeddings[name])
    others = second.serving.model.state_dict()
    for name, weights in first.serving.model.state_dict().items():
        assert torch.equal(weights, others[name]), name


def test_words_are_those_of_training_and_of_what_its_items_are_described_by() -> None:
    world = ratings()
    world = replace(world, text=tuple("often" if row < 5 else "late" for row in range(len(world))))
    described = tuple(f"item{row}" for row in range(ITEMS))
    found = document_words(world, np.arange(5), described, 1)
    assert "often" in found
    assert "late" not in found
    assert sorted(word for word in found if word != "often") == sorted({f"item{row}" for row in world.item[:5]})


# --- what is learned -------------------------------------------------------------------------------------------------


def test_training_beats_the_mean_in_every_regime() -> None:
    given = source(ratings())
    trained = train_paper(given, CONFIG, QUICK, terminal=terminal())
    found = measured(trained.serving, trained.test)
    value = given.ratings.value
    alone = float(np.sqrt(np.mean((value[given.parts.test] - value[given.parts.train].mean()) ** 2)))
    assert trained.serving.names == (USER, ITEM, DESCRIPTION, "image")
    assert found["rmse[+F]"] < 0.8 * alone
    assert max(found[f"rmse[{regime}]"] for regime in ("-U", "-O", "-M", "-V")) < alone
    assert found["coverage[+F]"] > 0.8
    assert {"alpha", "beta"} <= set(trained.result.history[-1]["losses"])


@pytest.mark.parametrize(
    "change",
    [{"joint": True}, {"word_level": False}, {"learn_loss_weights": False}, {"optimizer": "sgd"}, {"drop": 0.5}],
)
def test_every_option_trains(change: dict[str, Any]) -> None:
    trained = train_paper(source(ratings()), CONFIG.model_copy(update=change), QUICK, terminal=terminal())
    losses = trained.result.history[-1]["losses"]
    assert trained.result.epochs > 1
    assert (losses["alpha"] == pytest.approx(1.0)) == (not change.get("learn_loss_weights", True))


def test_the_same_seed_gives_the_same_model() -> None:
    first, second = (train_paper(source(ratings()), CONFIG, QUICK, terminal=terminal()).serving for _ in range(2))
    others = second.model.state_dict()
    for name, weights in first.model.state_dict().items():
        assert torch.equal(weights, others[name])


def test_modalities_that_are_missing_in_training() -> None:
    given = replace(source(ratings()), missing=0.5)
    found = measured((trained := train_paper(given, CONFIG, QUICK, terminal=terminal())).serving, trained.test)
    usual = train_paper(replace(given, missing=0.0), CONFIG, QUICK, terminal=terminal())
    assert trained.test.present.mean() == usual.test.present.mean()  # of training pairs alone
    assert found["rmse[+F]"] != measured(usual.serving, usual.test)["rmse[+F]"]


# --- the whole line --------------------------------------------------------------------------------------------------


def test_the_form_is_chosen_by_a_setting() -> None:
    config, trainer = lrmm_configs({"form": "paper", "document_words": 50, "noise": False})
    assert isinstance(config, LRMMPaperConfig)
    assert (config.document_words, config.noise, config.lstm_hidden, config.hidden) == (50, False, 256, 1024)
    assert (config.rho, config.sparsity, config.weight_decay, config.optimizer) == (0.05, 0.01, 1e-4, "adadelta")
    assert trainer.batch_size == 256
    assert lrmm_configs({})[0].form == "lacuna"
    with pytest.raises(CommandError, match="no setting 'noise'"):
        lrmm_configs({"noise": False})
    with pytest.raises(CommandError, match="'form'"):
        lrmm_configs({"form": "other"})


def dataset(folder: Path, name: str = "rated", seed: int = 0) -> Any:
    world = ratings(seed=seed)
    items = [
        {"id": f"i{row}", "title": "splendid" if row % 2 == 0 else "poor", "modalities": {}} for row in range(ITEMS)
    ]
    events = [
        {"user": f"u{user}", "item": f"i{item}", "type": "review", "value": float(value), "text": text}
        for user, item, value, text in zip(world.user, world.item, world.value, world.text, strict=True)
    ]
    write_dataset(folder, items, events, name=name, source="test", synthetic=True)
    return load_dataset(folder)


def test_the_protocol_runs_it_here_and_on_another_dataset(tmp_path: Path) -> None:
    data, other = dataset(tmp_path / "data"), dataset(tmp_path / "other", "other", 5)
    plan = RatingPlan("lrmm", CONFIG, QUICK, DataOptions(cache=tmp_path / "cache", threads=1), missing=0.2)
    with terminal() as told:
        found = evaluate_rating(data, plan, seeds=1, variant=None, command="test", terminal=told)
        moved = evaluate_rating(data, replace(plan, target=other), seeds=1, variant=None, command="test", terminal=told)
    assert found["config"]["model"]["form"] == "paper"
    assert found["config"]["missing"] == 0.2
    assert {"rmse[-U]", "mae[-M]", "coverage[+F]"} <= set(found["mean"])
    assert set(found["runs"][0]["reconstructions"]) == {USER, ITEM, DESCRIPTION}
    assert moved["dataset"] == "other"
    assert moved["mean"]["rmse[+F]"] < 1.2 * found["mean"]["rmse[+F]"]
    with pytest.raises(RatingDataError, match="offset reads no modality"):
        replace(plan, model="offset")


def test_what_is_served_is_what_was_trained() -> None:
    trained = train_paper(source(ratings()), CONFIG, QUICK, terminal=terminal())
    assert isinstance(trained.serving, PaperServing)
    assert trained.serving.contents == ("text", "image")
    assert trained.serving.reads_words_of("text")
    assert trained.serving.document(["x y", "z"]) == trained.serving.document(["x y z"])
