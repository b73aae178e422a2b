"""The paper's form of IRIS: its equations and its loss against plain NumPy, its training, its part of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.arrays import Array
from models.bundle import Bundle
from models.iris.config import IRISConfig, paper_settings
from models.iris.model import IRIS
from models.iris.serving import IRISServing
from models.modality import ModalBatch
from tests.training.test_iris_task import OPTIONS, source, terminal
from tests.training.test_iris_task import world as world  # a fixture
from tests.training.tiny import ITEMS
from training.cli.configs import iris_configs
from training.cli.options import CommandError
from training.datasets import Dataset
from training.held_out import measured
from training.iris.paper import PaperTask, l2_penalty, paper_module
from training.iris.recipe import IRISRecipe
from training.iris.source import PAPER_TRAINER, IRISTraining, TopNSource
from training.iris.task import TrainedIRIS, train_iris
from training.recipe import train_into_bundle

CONFIG = IRISConfig(**paper_settings(4))
TRAINING = IRISTraining(negatives=4, drop=0)
QUICK = PAPER_TRAINER.model_copy(update={"epochs": 4, "learning_rate": 3e-2, "batch_size": 128})


def trained(one: TopNSource, *, training: IRISTraining = TRAINING, **changes: object) -> TrainedIRIS:
    return train_iris(one, CONFIG.model_copy(update=changes), training, QUICK, terminal=terminal())


def drawn(one: TopNSource, **changes: object) -> IRIS:
    """A model whose weights are large enough to tell one reading of the equations from another."""
    module = paper_module(one, CONFIG.model_copy(update=changes), 3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.normal_(0, 0.5, generator=generator)
        module.item_bias.zero_()
    module.fit_prediction(*one.read_by(module), torch.ones(ITEMS, dtype=torch.bool))
    return module


# --- the equations ----------------------------------------------------------------------------------------------------


def towers(one: TopNSource, module: IRIS, item: int) -> list[Array]:
    """v' and t' of an item: [long -> short -> d] and [short -> d], W_share between them. (eq. 7-8)"""
    weight = {name: tensor.detach().numpy() for name, tensor in module.named_parameters()}
    width = min(feature.shape[1] for feature in one.content.features.values())
    hidden = []
    for column, (name, feature) in enumerate(one.content.features.items()):
        here = feature[one.content.observed[:, column]].numpy()
        raw = feature[item].numpy() / np.sqrt(np.square(here).mean())
        if len(raw) > width:
            raw = np.maximum(weight[f"towers.first.{name}.weight"] @ raw + weight[f"towers.first.{name}.bias"], 0)
        hidden.append(raw if one.content.observed[item, column] else np.zeros(width))
    share = weight.get("towers.share.weight")
    both = zip(module.names, hidden, reversed(hidden), strict=True)
    return [weight[f"towers.own.{n}.weight"] @ own + (0 if share is None else share @ other) for n, own, other in both]


def plain_score(one: TopNSource, module: IRIS, user: int, j: int) -> float:
    """r_uj as eq. 4-6 have it."""
    weight = {name: tensor.detach().numpy() for name, tensor in module.named_parameters()}
    config, history = module.config, set(one.held_out.train[one.held_out.train[:, 0] == user, 1].tolist()) - {j}
    interest = {}
    for i in history:
        inner = weight["bias"].copy()
        for name, own, target in zip(module.names, towers(one, module, i), towers(one, module, j), strict=True):
            inner += weight[f"as_history.{name}.weight"] @ own + weight[f"as_target.{name}.weight"] @ target
        interest[i] = np.exp(np.float64(weight["h"] @ np.maximum(inner, 0)))
    total = sum(interest.values()) ** config.beta
    similarity = {i: weight["p"][i] @ weight["q"][j] for i in history}
    return float(sum(interest[i] / total * similarity[i] for i in history) / len(history) ** config.alpha)


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.8), (0.5, 1.0)])
@pytest.mark.parametrize("batches", ["pairs", "targets"])
def test_scores_are_those_of_the_equations(
    world: Dataset, sharing: bool, alpha: float, beta: float, batches: str
) -> None:
    one = source(world, placeholder=9.0)  # what is missing holds anything
    module = drawn(one, sharing=sharing, alpha=alpha, beta=beta)
    task = PaperTask(one, module, TRAINING.model_copy(update={"batches": batches}), QUICK)
    users, targets = np.array([0, 0, 3, 17, 17]), np.array([5, 4, 11, 2, 31])
    targets[1] = one.held_out.train[0, 1] if one.held_out.train[0, 0] == 0 else targets[1]  # one of the user's own
    with torch.no_grad():
        found = task.scores(torch.from_numpy(users), torch.from_numpy(targets))
    expected = [plain_score(one, module, user, j) for user, j in zip(users.tolist(), targets.tolist(), strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=1e-5)


def test_interests_have_no_bound(world: Dataset) -> None:
    """f_ij beyond what an exponential can hold by itself, as large as the first epoch may drive it."""
    one = source(world)
    module = drawn(one)
    with torch.no_grad():
        module.bias += 100.0
        module.h.abs_().clamp_min_(0.2)
    expected = plain_score(one, module, 3, 11)
    users, targets = torch.tensor([3]), torch.tensor([11])
    for batches in ("pairs", "targets"):
        task = PaperTask(one, module, TRAINING.model_copy(update={"batches": batches}), QUICK)
        found = task.scores(users, targets)
        assert found.item() == pytest.approx(expected, rel=1e-2)
    found.sum().backward()
    assert module.h.grad is not None
    assert (module.h.grad != 0).any()


def test_the_two_batches_have_one_gradient(world: Dataset) -> None:
    one, gradients = source(world), []
    for batches in ("pairs", "targets"):
        module = drawn(one)
        task = PaperTask(one, module, TRAINING.model_copy(update={"batches": batches}), QUICK)
        users, targets = torch.arange(20), torch.arange(20) % 7
        task.scores(users, targets).tanh().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append({name: tensor.grad for name, tensor in module.named_parameters() if tensor.grad is not None})
    assert {"p", "q", "h", "towers.share.weight", "towers.first.audio.weight"} <= gradients[0].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4)


def test_the_penalty_is_that_of_eq_12(world: Dataset) -> None:
    module = drawn(source(world))
    norm = {name: float(np.square(tensor.detach().numpy()).sum()) for name, tensor in module.named_parameters()}
    weights = IRISTraining(negatives=4, l2_factors=0.1, l2_interest=0.2, l2_towers=0.3, l2_share=0.4)
    readers = sum(norm[f"as_{role}.{name}.weight"] for role in ("history", "target") for name in module.names)
    own = sum(norm[f"towers.own.{name}.weight"] for name in module.names) + norm["towers.first.audio.weight"]
    expected = 0.1 * (norm["p"] + norm["q"]) + 0.2 * readers + 0.3 * own + 0.4 * norm["towers.share.weight"]
    assert l2_penalty(module, weights).item() == pytest.approx(expected, rel=1e-5)
    nothing = IRISTraining(negatives=4, l2_factors=0, l2_interest=0, l2_towers=0, l2_share=0)
    assert l2_penalty(module, nothing).item() == 0


def test_the_length_of_features_does_not_matter(world: Dataset) -> None:
    """Vectors come in any unit: interests of long ones would stand at their bound from the start."""
    one = source(world)
    longer = {name: feature * 1000 for name, feature in one.content.features.items()}
    other = TopNSource(one.held_out, ModalBatch(longer, one.content.observed), world.users, world.items)
    left, right = (content.read_by(paper_module(content, CONFIG, 0))[0] for content in (one, other))
    for name, signal in left.items():
        torch.testing.assert_close(signal, right[name])


def test_widths_are_those_of_the_paper(world: Dataset) -> None:
    features = {"image": torch.zeros(ITEMS, 2048), "text": torch.zeros(ITEMS, 768)}
    content = ModalBatch(features, torch.ones(ITEMS, 2, dtype=torch.bool))
    one = TopNSource(source(world).held_out, content, world.users, world.items)
    shapes = {name: tuple(t.shape) for name, t in paper_module(one, CONFIG, 0).named_parameters()}
    assert shapes["towers.first.image.weight"] == (768, 2048)
    assert "towers.first.text.weight" not in shapes
    assert shapes["towers.own.image.weight"] == shapes["towers.own.text.weight"] == (4, 768)
    assert shapes["towers.share.weight"] == (4, 768)
    assert shapes["p"] == shapes["q"] == (ITEMS, 4)


@pytest.mark.parametrize("batches", ["pairs", "targets"])
def test_an_epoch_has_every_positive_once_and_new_negatives(world: Dataset, batches: str) -> None:
    one = source(world)
    training = TRAINING.model_copy(update={"batches": batches, "negatives": 3})
    task = PaperTask(one, paper_module(one, CONFIG, 0), training, QUICK)
    first, second = (task.samples(np.random.default_rng(seed)) for seed in (1, 2))
    positives = {tuple(pair) for pair in one.held_out.train.tolist()}
    assert len(first) == 4 * len(positives)
    for samples in (first, second):
        assert sorted(map(tuple, samples[samples[:, 2] == 1, :2].tolist())) == sorted(positives)
        assert not positives & {tuple(pair) for pair in samples[samples[:, 2] == 0, :2].tolist()}
    assert sorted(map(tuple, first.tolist())) != sorted(map(tuple, second.tolist()))
    if batches == "targets":
        assert (np.diff(first[:, 1]) != 0).sum() == len(np.unique(first[:, 1])) - 1


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"batches": "targets", "embedding_rate": 0.1}, {"optimiser": "adagrad"}])
def test_it_learns_the_groups(world: Dataset, changes: dict[str, Any]) -> None:
    one = source(world)
    made = trained(one, training=TRAINING.model_copy(update=changes))
    assert measured(made.scores, one.held_out.test, cuts=(10,))["hr@10"] > 0.75  # by chance 10 / 21
    module = made.serving.model
    assert (module.item_bias == 0).all()
    assert (module.p.std() > 0.05) & (module.q.std() > 0.05)  # learned from the start, not left as they were


def test_what_is_served_scores_as_training_did(world: Dataset) -> None:
    one = source(world)
    made = trained(one)
    features = {name: feature.numpy() for name, feature in one.content.features.items()}
    sides = made.serving.sides(features, one.content.observed.numpy(), world.items.ids)
    histories, trials = one.histories.rows.matrix, one.held_out.test
    for user, items in zip(trials.users[:6], trials.items[:6], strict=True):
        history = histories.indices[histories.indptr[user] : histories.indptr[user + 1]].astype(np.int64)
        served = made.serving.score(sides.select(history), sides.select(items))
        np.testing.assert_allclose(served, made.scores(np.array([user]), items[None])[0], atol=2e-4)


def test_a_missing_modality_is_zero_and_may_hold_noise(world: Dataset) -> None:
    left, right = (trained(source(world, placeholder)).serving.model.state_dict() for placeholder in (0.0, 1e3))
    for name, weights in left.items():
        torch.testing.assert_close(weights, right[name], rtol=0, atol=0)


def test_a_new_item_has_the_mean_factors(world: Dataset) -> None:
    one = source(world)
    serving = trained(one).serving
    features = {name: feature.numpy()[:2] for name, feature in one.content.features.items()}
    sides = serving.sides(features, np.ones((2, 2), np.bool_), ["new", world.items.ids[1]])
    warm = serving.model.warm.numpy()
    np.testing.assert_allclose(sides.q[0], serving.model.q.numpy()[warm].mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(sides.q[1], serving.model.q.numpy()[1])


# --- the whole line ---------------------------------------------------------------------------------------------------


def test_a_bundle_says_its_form(world: Dataset, tmp_path: Path) -> None:
    recipe = IRISRecipe(CONFIG, TRAINING, QUICK)
    manifest = train_into_bundle(recipe, world, tmp_path / "bundle", OPTIONS, terminal=terminal())
    assert manifest.models["iris"].form == "paper"
    found = IRISServing.load(Bundle.load(tmp_path / "bundle"))
    assert found is not None
    assert (found.model.config, found.reads_generated) == (CONFIG, False)
    assert manifest.models["iris"].metrics["hr@10"] > 0.4  # by chance 0.2


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_form_has_the_papers_settings() -> None:
    config, training, trainer = iris_configs({"form": "paper"})
    assert (config.embedding_size, config.tower_size, config.interest_size, config.members) == (64, 64, 64, 1)
    assert (config.alpha, config.beta, config.generated, config.tower_hidden) == (0, 0.8, False, None)
    assert (training.negatives, training.drop, training.optimiser, training.batches) == (4, 0, "adam", "pairs")
    assert (trainer.learning_rate, trainer.batch_size, trainer.rate(trainer.epochs - 1)) == (1e-3, 512, 1e-3)
    config, training, trainer = iris_configs(
        {"form": "paper", "embedding_size": 16, "interest_size": 8, "beta": 0.5, "l2_share": 0.1, "optimiser": "sgd"}
        | {"batch_size": 99, "learning_rate": 0.5, "negatives": 7, "alpha": 0.1}
    )
    assert (config.embedding_size, config.tower_size, config.interest_size) == (16, 16, 8)
    assert (config.alpha, config.beta, training.l2_share, training.negatives) == (0.1, 0.5, 0.1, 7)
    assert (training.optimiser, trainer.batch_size, trainer.learning_rate) == ("sgd", 99, 0.5)
    assert iris_configs({})[0] == IRISConfig()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "paper", "rank": 8}, "'rank' belongs to form=lacuna"),
        ({"l2_share": 1}, "'l2_share' belongs to form=paper"),
        ({"form": "papers"}, "'form'"),
        ({"form": "paper", "embedding_size": "many"}, "'embedding_size'"),
        ({"form": "paper", "negatives": 0.5}, "'negatives'"),
        ({"tower_hidden": None}, "tower_hidden is a number"),
    ],
)
def test_settings_of_another_form_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        iris_configs(settings)
