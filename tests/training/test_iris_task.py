"""Training of IRIS: it learns who likes what, from what is there alone, and ends in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundle import Bundle
from models.iris.config import IRISConfig, paper_settings
from models.iris.serving import IRISServing
from models.modality import ModalBatch
from models.vocabulary import Vocabulary
from tests.training.tiny import CONFIG as DGMREC
from tests.training.tiny import ITEMS, contents, vector_records
from tests.training.tiny import TRAINER as DGMREC_TRAINER
from training.content import DataOptions
from training.datasets import Dataset, load_dataset, write_dataset
from training.dgmrec.recipe import DGMRecRecipe
from training.evaluate import LeaveOneOutPlan, evaluate_leave_one_out
from training.held_out import HeldOut, Trials, measured, random_held_out
from training.iris.recipe import IRISRecipe
from training.iris.source import PAPER_TRAINER, TRAINER, IRISTraining, TopNSource, completed
from training.iris.task import TrainedIRIS, als_similarity, expected_log_loss, train_iris, train_member
from training.progress import Terminal
from training.recipe import train_into_bundle

CONFIG = IRISConfig(embedding_size=8, tower_hidden=8, tower_size=4, interest_size=3, rank=4)
TRAINING = IRISTraining(factor_epochs=10, als_epochs=4, factor_users=8, als_penalty=1.0)
QUICK = TRAINER.model_copy(update={"epochs": 3, "batch_size": 32})
RECIPE = IRISRecipe(CONFIG, TRAINING, QUICK)
OPTIONS = DataOptions(threads=1)
NEGATIVES = 20


def terminal() -> Terminal:
    return Terminal(quiet=True)


PEOPLE = 150


def many_events() -> list[dict[str, str]]:
    """More shoppers than `tiny` has: each likes a random third of one group's items, and nothing else."""
    rng = np.random.default_rng(0)
    liked = [(user, item) for user in range(PEOPLE) for item in rng.permutation(np.arange(user % 2, ITEMS, 2))[:10]]
    return [{"user": f"user-{user}", "item": f"item-{item}", "type": "click"} for user, item in liked]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("iris") / "data"
    write_dataset(folder, vector_records(), many_events(), name="many", source="test", synthetic=True)
    return load_dataset(folder)


def source(world: Dataset, placeholder: float = 0.0) -> TopNSource:
    features, observed = contents()
    filled = {
        name: torch.from_numpy(np.where(observed[:, [column]], feature, np.float32(placeholder)))
        for column, (name, feature) in enumerate(features.items())
    }
    content = ModalBatch(filled, torch.from_numpy(observed))
    return TopNSource(random_held_out(world, 1, negatives=NEGATIVES), content, world.users, world.items)


def trained(one: TopNSource, *, training: IRISTraining = TRAINING, **changes: object) -> TrainedIRIS:
    return train_iris(one, CONFIG.model_copy(update=changes), training, QUICK, terminal=terminal())


# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_sampled_negatives_on_average() -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(1, 30))).float()
    positive = torch.zeros(1, 30)
    positive[0, :5] = 1
    draws = []
    for _ in range(4000):
        chosen = 5 + rng.integers(25, size=4 * 5)  # K = 4 for each positive
        negative = torch.nn.functional.softplus(scores[0, chosen]).sum()
        draws.append(float(torch.nn.functional.softplus(-scores[0, :5]).sum() + negative) / 5)
    found = expected_log_loss(scores, positive, torch.tensor([[4 * 5 / 25]]))
    assert float(found) == pytest.approx(np.mean(draws), rel=0.01)


def test_als_as_a_similarity_scores_like_als_folding_in(world: Dataset) -> None:
    """For a user whose items are like everybody's, the similarity is the fold-in itself, up to a factor."""
    one = source(world)
    factors = als_similarity(one, 8, TRAINING, seed=0).double().numpy()
    histories = one.histories.rows.matrix.toarray()
    score = histories @ factors @ factors.T
    side = np.arange(ITEMS) % 2
    own, other = (np.stack([score[user, side == (user + k) % 2].mean() for user in range(PEOPLE)]) for k in (0, 1))
    assert (own > other).all()


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [None, ("audio",), ()])
def test_it_learns_the_groups(world: Dataset, reads: tuple[str, ...] | None) -> None:
    one = source(world)
    made = trained(one, reads=reads)
    found = measured(made.scores, one.held_out.test, cuts=(10,))
    assert found["hr@10"] > 0.75  # by chance 10 / 21
    assert made.serving.names == (("audio", "scan") if reads is None else reads)


def test_what_is_served_scores_as_training_did(world: Dataset) -> None:
    one = source(world)
    made = trained(one)
    features = {name: feature.numpy() for name, feature in one.content.features.items()}
    sides = made.serving.sides(features, one.content.observed.numpy(), world.items.ids)
    histories = one.histories.rows.matrix
    trials = one.held_out.test
    for user, items in zip(trials.users[:6], trials.items[:6], strict=True):
        history = histories.indices[histories.indptr[user] : histories.indptr[user + 1]].astype(np.int64)
        served = made.serving.score(sides.select(history), sides.select(items))
        np.testing.assert_allclose(served, made.scores(np.array([user]), items[None])[0], atol=2e-4)


def test_absent_content_may_hold_noise(world: Dataset) -> None:
    left, right = (trained(source(world, placeholder)).serving.model.state_dict() for placeholder in (0.0, 1e3))
    for name, weights in left.items():
        torch.testing.assert_close(weights, right[name], rtol=0, atol=0)


def test_missing_content_is_generated_from_what_is_seen_in_training(world: Dataset) -> None:
    one = source(world)

    def made(*, generated: bool = True, shuffled: bool = False) -> ModalBatch:
        return completed(one.content, one.held_out.train, PEOPLE, generated=generated, shuffled=shuffled, seed=0)

    filled = made()
    assert filled.observed.all()
    for name, feature in one.content.features.items():
        there = one.content.observed[:, one.content.names.index(name)]
        torch.testing.assert_close(filled.features[name][there], feature[there])
    assert made(generated=False) is one.content
    shuffled = made(shuffled=True)
    for name, feature in filled.features.items():
        assert (shuffled.features[name] == feature).all(dim=1).float().mean() < 0.2
        torch.testing.assert_close(shuffled.features[name].sort(dim=0).values, feature.sort(dim=0).values)


def test_an_interrupted_training_ends_with_the_same_bits(world: Dataset, tmp_path: Path) -> None:
    one, checkpoint = source(world), tmp_path / "checkpoint"

    def members_at(member: int) -> Path:
        return tmp_path / f"member-{member}"

    class Dying(Terminal):
        """Stops in the second epoch of the interests."""

        def epoch(self, epoch: int, losses: dict[str, float], metrics: dict[str, float], best: float) -> None:
            if self._interests and epoch == 2:
                raise KeyboardInterrupt
            super().epoch(epoch, losses, metrics, best)

        _interests = False

        def say(self, message: str) -> None:
            self._interests = self._interests or message == "interests"

    places: dict[str, Any] = {"fingerprint": "f", "checkpoint": checkpoint, "members_at": members_at}
    with pytest.raises(KeyboardInterrupt):
        train_iris(one, CONFIG, TRAINING, QUICK, terminal=Dying(quiet=True), **places)
    resumed = train_iris(one, CONFIG, TRAINING, QUICK, terminal=terminal(), **places).serving.model
    whole = trained(one).serving.model
    for name, weights in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weights, rtol=0, atol=0)


# --- the whole line --------------------------------------------------------------------------------------------------


def test_it_joins_a_bundle(world: Dataset, tmp_path: Path) -> None:
    folder, out = tmp_path / "data", tmp_path / "bundle"
    write_dataset(folder, vector_records(), many_events(), name="many", source="test", synthetic=True)
    train_into_bundle(DGMRecRecipe(DGMREC, DGMREC_TRAINER), world, out, OPTIONS, terminal=terminal(), source=folder)
    before = Bundle.load(out)
    manifest = train_into_bundle(RECIPE, world, out, OPTIONS, terminal=terminal())
    after = Bundle.load(out)
    assert {name: entry.form for name, entry in manifest.models.items()} == {"dgmrec": "lacuna", "iris": "lacuna"}
    assert set(before.manifest.files) < set(after.manifest.files)
    assert manifest.models["iris"].metrics["hr@10"] > 0.4  # by chance 0.2
    found = IRISServing.load(after)
    assert found is not None

    # What the other model generates rests on all feedback. Whatever it made, nothing of it was learned from.
    alone = train_into_bundle(RECIPE, world, tmp_path / "alone", OPTIONS, terminal=terminal())
    assert alone.models["iris"].metrics == manifest.models["iris"].metrics
    other = IRISServing.load(Bundle.load(tmp_path / "alone"))
    assert other is not None
    for name, weights in found.model.state_dict().items():
        torch.testing.assert_close(weights, other.model.state_dict()[name], rtol=0, atol=0)
    assert not list(tmp_path.glob(".*checkpoint*"))


def test_a_bundle_of_its_own(world: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    manifest = train_into_bundle(RECIPE, world, out, OPTIONS, terminal=terminal())
    assert set(manifest.models) == {"iris"}
    assert [entry.name for entry in manifest.modalities] == ["audio", "scan"]
    again = train_into_bundle(RECIPE, world, out, OPTIONS, terminal=terminal(), fresh=True)
    assert again.models["iris"].metrics == manifest.models["iris"].metrics  # nothing random is left


def test_without_any_content(tmp_path: Path) -> None:
    bare = [{"id": one["id"]} for one in vector_records()]
    write_dataset(tmp_path / "data", bare, many_events(), name="bare", source="test")
    world = load_dataset(tmp_path / "data")
    manifest = train_into_bundle(RECIPE, world, tmp_path / "b", OPTIONS, terminal=terminal())
    assert manifest.models["iris"].config["sizes"] == {}
    assert manifest.models["iris"].metrics["hr@10"] > 0.4  # by chance 0.2


# --- the protocol ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A catalogue with 99 items left for everybody."""
    folder = tmp_path_factory.mktemp("larger") / "data"
    extra = [{"id": f"extra-{row}", "modalities": {"audio": {"vector": [3.0] * 6}}} for row in range(60)]
    write_dataset(folder, [*vector_records(), *extra], many_events(), name="larger", source="test", synthetic=True)
    return load_dataset(folder)


@pytest.mark.parametrize("model", ["iris", "popularity", "item-knn"])
def test_results_of_leave_one_out(larger: Dataset, model: str) -> None:
    plan = LeaveOneOutPlan(model, CONFIG, TRAINING, QUICK, OPTIONS)
    result = evaluate_leave_one_out(larger, plan, seeds=2, variant=None, command="x", terminal=terminal())
    assert (result["protocol"], result["model"], result["dataset"]) == ("leave-one-out", model, "larger")
    assert [run["seed"] for run in result["runs"]] == [1, 2]
    assert all(run["split"] == "drawn" for run in result["runs"])
    for name in ("hr@10", "ndcg@10", "valid hr@10"):
        assert result["mean"][name] == pytest.approx(np.mean([run["metrics"][name] for run in result["runs"]]))
    assert 0.1 < result["mean"]["hr@10"] <= 1
    if model == "iris":
        assert result["mean"]["faithful"] > 0.8
        assert result["mean"]["fall ratio"] > 1
        assert result["config"]["model"]["negatives"] == TRAINING.negatives
    else:
        assert result["config"]["grid"]


def test_results_of_the_papers_form_go_on_where_they_were(larger: Dataset, tmp_path: Path) -> None:
    config, trainer = IRISConfig(**paper_settings(4)), PAPER_TRAINER.model_copy(update={"epochs": 2})
    options = DataOptions(threads=1, cache=tmp_path)
    plan = LeaveOneOutPlan("iris", config, IRISTraining(negatives=4, batches="targets"), trainer, options)
    first, again = (
        evaluate_leave_one_out(larger, plan, seeds=1, variant="paper", command="x", terminal=terminal())
        for _ in range(2)
    )
    assert first["config"]["model"]["form"] == "paper"
    assert "als_rate" not in first["config"]["model"]
    assert len(list(tmp_path.glob("iris-paper-*"))) == 1
    assert again["runs"][0]["training_seconds"] == first["runs"][0]["training_seconds"]  # nothing was trained again
    assert again["mean"] == first["mean"]
    assert {"deletion hr@10[relevance]", "insertion score[random]"} <= first["mean"].keys()
    assert len(first["runs"][0]["curves"]["deletion hr@10[relevance]"]) == 11


# --- small data ------------------------------------------------------------------------------------------------------


class Losses(Terminal):
    """Keeps the loss of each epoch."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.seen: list[float] = []

    def epoch(self, _: int, losses: dict[str, float], *_rest: Any) -> None:
        self.seen.append(losses["loss"])


@pytest.mark.parametrize(("users", "items", "each"), [(30, 200, 10), (200, 120, 20)])
@pytest.mark.parametrize("from_als", [0, 1])
def test_factors_do_not_diverge_on_small_data(users: int, items: int, each: int, from_als: int) -> None:
    """With the settings that nobody changed: few users, or few items that are all similar to each other."""
    rng = np.random.default_rng(0)
    liking = np.arange(1, items + 1) ** -0.7 * np.where(np.arange(items) % 4 == np.arange(users)[:, None] % 4, 5, 1)
    history = [rng.choice(items, each + 2, replace=False, p=own / own.sum()) for own in liking]
    pairs = np.array([(user, item) for user, own in enumerate(history) for item in own[2:]])
    held = np.array([[own[0], *np.setdiff1d(np.arange(items), own)[:20]] for own in history])
    trials = Trials.of(np.arange(users), held)
    nothing = ModalBatch({}, torch.zeros(items, 0, dtype=torch.bool))
    small = TopNSource(
        HeldOut(pairs, trials, trials), nothing, Vocabulary(map(str, range(users))), Vocabulary(map(str, range(items)))
    )
    losses = Losses()
    train_member(small, IRISConfig(), IRISTraining(from_als=from_als), TRAINER, 0, terminal=losses)
    assert losses.seen[0] < 15  # it was 84
    assert max(losses.seen) < 2 * losses.seen[0]  # it was ten times as much
    assert losses.seen[-1] < losses.seen[0]
