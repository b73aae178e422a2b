"""DGMRec in training: what is masked stays out, what can be known is learnt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.calibration import calibration_error
from models.dgmrec.config import DGMRecConfig
from models.dgmrec.model import DGMRec
from models.evidence import Evidence, cross_fitted_means
from models.graph import Matrix
from models.imputers import GRAPH_IMPUTERS, IMPUTERS
from models.modality import ModalBatch
from tests.training.tiny import CONFIG, ITEMS, NEW, TRAINER, USERS, checkerboard, contents, group, parts
from training.dgmrec import inputs
from training.dgmrec.inputs import HeldOutScores
from training.dgmrec.placement import OFFSETS, choose_new_offset
from training.dgmrec.task import CATALOGUE_OFFSETS, TRUST, DGMRecTask, TopNData
from training.splits import Parts
from training.trainer import train


def config(**changes: object) -> DGMRecConfig:
    return DGMRecConfig.model_validate(CONFIG.model_dump() | changes)


def task_of(data: TopNData | None = None, *, rounds: int = TRAINER.epochs, **changes: object) -> DGMRecTask:
    return DGMRecTask(data or checkerboard(), config(**changes), TRAINER.model_copy(update={"epochs": rounds}))


def epochs(task: DGMRecTask, count: int) -> list[dict[str, float]]:
    return [task.train_epoch(epoch, lambda done, total: None) for epoch in range(1, count + 1)]  # noqa: ARG005


# --- masked features reach nothing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("imputation", ["generate", "mean", "nn", "multi-hop"])
@pytest.mark.parametrize("placeholder", ["noise", "nan"])
def test_masked_features_change_nothing(imputation: str, placeholder: str) -> None:
    """Losses, metrics, graphs, generated features and the final figures are the same bits."""
    noise = 100 * np.random.default_rng(8).normal(size=(ITEMS, 1)).astype(np.float32)
    clean = task_of(imputation=imputation)
    dirty = task_of(checkerboard(noise if placeholder == "noise" else np.nan), imputation=imputation)
    assert epochs(clean, 3) == epochs(dirty, 3)
    assert clean.validate() == dirty.validate()
    assert clean.finish() == dirty.finish()
    assert clean.test() == dirty.test()
    assert clean.content is not None
    assert dirty.content is not None
    for name in clean.module.names:
        assert torch.equal(clean.content.features[name], dirty.content.features[name])
        assert (clean.matrices[name] != dirty.matrices[name]).nnz == 0
    for key, value in clean.module.state_dict().items():
        assert torch.equal(value, dirty.module.state_dict()[key]), key


def test_observed_features_do_change_something() -> None:
    """So that the test above would notice."""
    data = checkerboard()
    changed = {name: feature.clone() for name, feature in data.batch.features.items()}
    row = int(data.batch.observed[:, 0].nonzero()[0])
    changed["audio"][row] += 1
    other = TopNData(ModalBatch(changed, data.batch.observed), data.parts, USERS, ITEMS)
    assert epochs(task_of(), 1) != epochs(task_of(other), 1)


def test_test_and_validation_pairs_change_no_weight() -> None:
    data = checkerboard()
    fewer = TopNData(data.batch, type(data.parts)(data.parts.train, data.parts.test, data.parts.valid), USERS, ITEMS)
    assert epochs(task_of(data), 2) == epochs(task_of(fewer), 2)


def test_same_seed_same_bits() -> None:
    one, two = task_of(), task_of()
    assert epochs(one, 3) == epochs(two, 3)
    other = DGMRecTask(checkerboard(), CONFIG, TRAINER.model_copy(update={"seed": 1}))
    assert epochs(other, 1) != epochs(task_of(), 1)


# --- learning ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt() -> DGMRecTask:
    task = task_of(rounds=10)
    train(task, task.trainer)
    task.finish()
    return task


def scores(task: DGMRecTask) -> NDArray[np.float32]:
    """As they would be served."""
    out = task.final_embeddings()[0]
    table: NDArray[np.float32] = (out.users @ out.items.T).numpy()
    return table


def share_of_own_group(table: NDArray[np.float32]) -> float:
    """Of each user's best ten unseen items, how many are of the user's group."""
    table = table.copy()
    seen = parts().train
    table[tuple(seen.T)] = -np.inf
    best = np.argsort(-table, axis=1)[:, :10]
    return float((group(ITEMS)[best] == group(USERS)[:, None]).mean())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ranking": "bpr"},
        {"collaborative": "autoencoder"},
        {"collaborative": "linear"},
        {"collaborative": "autoencoder", "embedding_size": 16, "linear_size": 8},
    ],
)
def test_checkerboard_is_learnt(changes: dict[str, object]) -> None:
    task = task_of(rounds=10, **changes)
    train(task, task.trainer)
    task.finish()
    assert share_of_own_group(scores(task)) > (0.95 if task.config.collaborative != "linear" else 0.85)
    assert task.test()["ndcg@20"] > task_of(**changes).test()["ndcg@20"]


def test_autocast_learns_the_same_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU here: what bfloat16 stumbles over is the same everywhere."""
    monkeypatch.setattr(DGMRecTask, "casts", property(lambda _: True))
    for changes in ({}, {"modal": False}, {"ranking": "bpr", "user_item": 0.1}):
        task = task_of(rounds=10, **changes)
        train(task, task.trainer)
        task.finish()
        assert all(weights.dtype == torch.float32 for weights in task.module.parameters())
        assert share_of_own_group(scores(task)) > (0.95 if task.config.modal else 0.5)


def test_interactions_alone_are_learnt_too() -> None:
    task = task_of(modal=False, initialisation="random", rounds=60)
    before, ranking = share_of_own_group(scores(task)), task.test()["ndcg@20"]
    train(task, task.trainer)
    assert share_of_own_group(scores(task)) > before + 0.2
    assert task.test()["ndcg@20"] > 2 * ranking


def test_nothing_is_trained_in_the_linear_form_alone() -> None:
    task = task_of(modal=False, collaborative="linear", rounds=2)
    before = scores(task)
    train(task, task.trainer)
    assert np.array_equal(scores(task), before)
    assert share_of_own_group(before) > 0.5


def test_spectral_initialisation_is_ahead() -> None:
    """They tell the groups before anything is learned."""
    ahead, behind = (
        share_of_own_group(scores(task_of(modal=False, initialisation=start))) for start in ("spectral", "random")
    )
    assert ahead > behind + 0.1


def test_new_items_find_their_group(learnt: DGMRecTask) -> None:
    """Nobody has touched them: their content alone says who will like them."""
    table = scores(learnt)
    for item in NEW:
        own = group(USERS) == item % 2
        assert table[own, item].min() > table[~own, item].max()


def test_inputs_are_those_that_hidden_cells_bear_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses from users decide on the folds, and guesses from another modality on the neighbours."""
    quality = {"audio": {0: 0.4, 2: 0.3, 3: 0.302}, "scan": {0: 0.4, 2: 0.401, 3: 0.2}}
    by_means_alone, by_neighbours = {"audio": 0.4, "scan": 0.0}, {"audio": 0.002, "scan": -0.002}
    graphs = task_of().interactions

    def scores(model: DGMRec, evidence: Evidence, own: Any, observed: Any) -> dict[str, HeldOutScores]:  # noqa: ARG001
        answers = {}
        for name in own:
            count = folds_of(evidence, name)
            neighbours = bool(model.tower(name).content_mask.all())
            noise = torch.tensor([-0.05, 0.05]).repeat(25) * (count + neighbours)
            full = quality[name][count] + noise
            content = torch.full_like(full, neighbours * by_neighbours[name])
            users = full + (count > 0) * by_means_alone[name] - 1.0 * neighbours
            described = torch.ones(50, dtype=torch.bool)
            answers[name] = HeldOutScores(full + neighbours * by_neighbours[name], users, content, described)
        return answers

    def folds_of(evidence: Evidence, name: str) -> int:
        if torch.equal(evidence.cross_fitted_mean[name], evidence.co_interaction_mean[name]):
            return 0
        cut = {n: cross_fitted_means(evidence.own, evidence.observed, graphs, n)[0][name] for n in (2, 3)}
        return next(n for n, block in cut.items() if torch.equal(block, evidence.cross_fitted_mean[name]))

    monkeypatch.setattr(inputs, "held_out_scores", scores)
    task = task_of()
    assert task.content is not None
    assert {name: folds_of(task.content.evidence, name) for name in quality} == {"audio": 2, "scan": 0}
    for name, means, neighbours in (("audio", True, True), ("scan", False, False)):
        tower = task.module.tower(name)
        assert bool(tower.interaction_mask.all()) == means
        assert bool(tower.content_mask.all()) == neighbours


@pytest.mark.parametrize(("cells", "rounds"), [(inputs.CELLS_WANTED, inputs.MAX_ROUNDS), (1, 1)])
def test_hidden_cells_say_nothing_while_inputs_are_selected(
    monkeypatch: pytest.MonkeyPatch, cells: int, rounds: int
) -> None:
    seen: list[Evidence] = []
    monkeypatch.setattr(inputs, "CELLS_WANTED", cells)
    plain = inputs.held_out_scores

    def recorded(model: DGMRec, evidence: Evidence, *rest: Any) -> dict[str, HeldOutScores]:
        seen.append(evidence)
        return plain(model, evidence, *rest)

    monkeypatch.setattr(inputs, "held_out_scores", recorded)
    task = task_of()
    hidden = {tuple((task.raw.observed & ~evidence.observed).flatten().tolist()) for evidence in seen}
    assert len(hidden) == rounds
    held = task.held_cells.flatten().numpy()
    assert held.any()
    assert not any((np.array(cells) & held).any() for cells in hidden)  # confidence is measured on these
    assert np.array(list(hidden)).sum(axis=0).max() == 1  # each cell in one round at most
    for evidence in seen:
        lacking = task.raw.observed & ~evidence.observed
        assert lacking.any()
        for column, name in enumerate(task.module.names):
            assert not evidence.own[name][lacking[:, column]].any()


def test_the_simplest_option_is_taken_unless_another_is_clearly_better() -> None:
    cosines = torch.linspace(0, 1, 100)
    noise = torch.tensor([-0.2, 0.2]).repeat(50)
    assert inputs.simplest_option({"simple": cosines, "better": cosines + 0.01 + noise}) == "simple"
    assert inputs.simplest_option({"simple": cosines, "better": cosines + 0.1 + noise}) == "better"
    assert inputs.simplest_option({"simple": cosines, "worse": cosines - 0.1}) == "simple"
    assert inputs.simplest_option({"simple": cosines, "same": cosines}) == "simple"
    assert inputs.simplest_option({"simple": torch.zeros(0), "other": torch.zeros(0)}) == "simple"


def test_generated_features_tell_the_group(learnt: DGMRecTask) -> None:
    features, observed = contents()
    assert learnt.content is not None
    for column, name in enumerate(learnt.module.names):
        projection = learnt.module.tower(name).projection
        lacking = torch.from_numpy(~observed[:, column])
        made = projection.back(learnt.content.features[name][lacking]) - projection.mean
        truth = torch.from_numpy(features[name])[lacking] - projection.mean
        assert functional.cosine_similarity(made, truth, dim=1).mean() > 0.3


def test_content_is_learnt_every_few_steps() -> None:
    task = task_of()
    pairs = task.data.parts.train[:32]
    every = task.config.content_every
    having = ["reconstruction" in task.step(pairs, np.arange(20)) for _ in range(2 * every)]
    assert having == ([False] * (every - 1) + [True]) * 2
    again = task_of()
    again.load_state(task.state())
    assert again.steps == task.steps


def test_negatives() -> None:
    """Different ones for the whole batch, or one for each pair."""
    users = task_of().data.parts.train[:30, 0]
    drawn = task_of(negatives=20).negatives(users)
    assert len(set(drawn.tolist())) == len(drawn) == 20
    touched = sorted(set(parts().train[:, 1].tolist()))
    assert len(touched) < ITEMS
    assert sorted(task_of(negatives=500).negatives(users).tolist()) == touched  # never a new item
    met = {(int(user), int(item)) for user, item in checkerboard().parts.train}
    one_each = task_of(ranking="bpr").negatives(users)
    assert len(one_each) == 30
    assert not met & set(zip(users.tolist(), one_each.tolist(), strict=True))


def test_lightgcn_alone() -> None:
    task = task_of(modal=False)
    assert task.content is None
    result = train(task, TRAINER)
    assert set(result.best) == {"recall@20", "ndcg@20", "recall@50", "ndcg@50"}
    assert set(result.history[0]["losses"]) == {"loss", "ranking", "l2"}
    assert task.finish() == {}
    task.refresh()  # nothing to refresh
    assert task.content is None
    again = task_of(modal=False)
    again.load_state(task.state())
    assert again.state()["rng"] == task.state()["rng"]


# --- graphs and imputation -----------------------------------------------------------------------------------------


def columns_of(matrix: Matrix, rows: NDArray[np.bool_]) -> set[int]:
    return set(matrix[rows].indices.tolist())


def test_only_items_that_have_the_modality_are_read_from() -> None:
    task, (_, observed) = task_of(), contents()
    epochs(task, 3)  # refined once
    for column, name in enumerate(task.module.names):
        everyone = np.ones(ITEMS, dtype=bool)
        assert columns_of(task.matrices[name], everyone) <= set(np.flatnonzero(observed[:, column]).tolist())
        assert (task.matrices[name].diagonal() == 0).all()


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
def test_refresh_changes_rows_of_missing_cells_only(weight: float) -> None:
    task, (_, observed) = task_of(refine_weight=weight), contents()
    epochs(task, 2)
    for column, name in enumerate(task.module.names):  # forgotten, so that the refresh has something to do
        task.matrices[name] = sp.csr_array(sp.diags_array(observed[:, column].astype(np.float32)) @ task.matrices[name])
    before = {name: matrix.toarray() for name, matrix in task.matrices.items()}
    task.refresh()
    changed_rows = 0
    for column, name in enumerate(task.module.names):
        after = task.matrices[name].toarray()
        changed = (before[name] != after).any(axis=1)
        assert not changed[observed[:, column]].any()
        changed_rows += int(changed.sum())
        rows = after[~observed[:, column]]
        np.testing.assert_allclose(rows.sum(axis=1), weight > 0, rtol=1e-5)
        if weight == 1:
            assert ((rows > 0).sum(axis=1) == CONFIG.neighbours).all()
    assert (changed_rows > 0) == (weight > 0)


def test_refresh_regenerates_missing_cells_only() -> None:
    task, (_, observed) = task_of(), contents()
    epochs(task, 2)
    assert task.content is not None
    before = {name: feature.clone() for name, feature in task.content.features.items()}
    task.refresh()
    preference = task.embed().preference
    for column, name in enumerate(task.module.names):
        have, after = torch.from_numpy(observed[:, column]), task.content.features[name]
        assert torch.equal(after[have], before[name][have])
        assert not torch.equal(after[~have], before[name][~have])
        made = task.module.generate(name, task.content.evidence, preference).features
        torch.testing.assert_close(after[~have], made[~have])


@pytest.mark.parametrize("imputation", ["mean", "nn"])
def test_plain_imputation(imputation: str) -> None:
    task, (_, observed) = task_of(imputation=imputation), contents()
    losses = epochs(task, 3)
    assert all(np.isfinite(value) for value in losses[-1].values())
    assert losses[-1]["generation"] == 0
    assert task.content is not None
    for column, name in enumerate(task.module.names):
        lacking = torch.from_numpy(~observed[:, column])
        near = task.content.evidence.neighbour_mean[name][lacking]
        expected = near if imputation == "nn" else torch.zeros_like(near)
        assert torch.equal(task.content.features[name][lacking], expected)
    assert not any(name.startswith("cosine") for name in task.validate())
    assert task.finish() == {}


@pytest.mark.parametrize("imputation", GRAPH_IMPUTERS)
def test_imputation_over_the_graph(imputation: str) -> None:
    task, (_, observed) = task_of(imputation=imputation), contents()
    losses = epochs(task, 3)
    assert all(np.isfinite(value) for value in losses[-1].values())
    assert losses[-1]["generation"] == 0
    assert task.content is not None
    evidence, told = task.content.evidence, 0
    method, setting = task.fallback_imputer
    assert method == imputation
    expected = IMPUTERS[method].impute(evidence.own, evidence.observed, task.interactions, **setting)
    for column, name in enumerate(task.module.names):
        have = torch.from_numpy(observed[:, column])
        found = task.content.features[name]
        assert torch.equal(found[have], evidence.own[name][have])
        for row in (~have).nonzero().squeeze(1).tolist():
            assert functional.cosine_similarity(found[row], expected[name][row], dim=0) > 1 - 1e-5
            told += 1
    assert told > 20
    again = task_of(imputation=imputation)
    epochs(again, 3)
    assert torch.equal(again.embed().items, task.embed().items)


def test_a_modality_nobody_has() -> None:
    data = checkerboard()
    nobody = torch.tensor([[False, True]]).expand(ITEMS, 2)
    task = task_of(TopNData(data.batch.masked(nobody), data.parts, USERS, ITEMS))
    assert all(np.isfinite(value) for losses in epochs(task, 3) for value in losses.values())
    report = task.finish()
    assert set(report) == {"cosine[audio]", "calibration_error[audio]", "trust[audio]"}


# --- the generator's account ---------------------------------------------------------------------------------------


def test_held_cells() -> None:
    task, (_, observed) = task_of(), contents()
    assert torch.equal(task.held_cells | task.cells, torch.from_numpy(observed))
    assert not (task.held_cells & task.cells).any()
    assert task.held_cells.any()
    for column, name in enumerate(
        task.module.names
    ):  # nor does smoothing look among them, or they would find themselves
        assert task.module.tower(name).directions.any(dim=1).sum() == task.cells[:, column].sum()


def test_trust_is_what_held_out_cells_bear_out() -> None:
    """The share with the largest gain over the base, if the gain is beyond two standard errors."""
    task = task_of()
    epochs(task, 4)
    out = task.embed()
    task.weigh_generator(out)
    chosen = {name: task.module.tower(name).trust.item() for name in task.module.names}
    cosines = {}
    for share in (0.0, *TRUST):
        for name in task.module.names:
            task.module.tower(name).trust.fill_(share)
        cosines[share] = task.held_cosines(out)
    for name, trust in chosen.items():
        gains = {share: found[name] - cosines[0.0][name] for share, found in cosines.items()}
        sure = {s: float(g.mean()) for s, g in gains.items() if g.mean() > 2 * g.std() / len(g) ** 0.5}
        assert trust == max(sure, key=lambda share: sure[share], default=0.0)
        assert gains[1.0].any()


def test_before_training_the_base_is_generated() -> None:
    task, (_, observed) = task_of(), contents()
    assert task.content is not None
    for column, name in enumerate(task.module.names):
        lacking = torch.from_numpy(~observed[:, column])
        tower = task.module.tower(name)
        assert tower.trust == 0
        base = task.module.tower(name).base(task.content.evidence)
        assert base[lacking].any()
        torch.testing.assert_close(task.content.features[name][lacking], tower.projection.signal(base)[lacking])


def test_finish_reports_and_calibrates(learnt: DGMRecTask) -> None:
    report = learnt.finish()
    measures = ("cosine", "calibration_error", "trust")
    assert set(report) == {f"{what}[{name}]" for name in ("audio", "scan") for what in measures}
    assert all(-1 <= value <= 1 for value in report.values())
    assert report["cosine[audio]"] > 0.2
    assert learnt.content is not None
    preference = learnt.embed().preference
    for column, name in enumerate(learnt.module.names):
        made = learnt.module.generate(name, learnt.content.evidence, preference)
        confidence = learnt.module.tower(name).confidence(made)
        assert ((confidence >= 0) & (confidence <= 1)).all()
        assert confidence[~learnt.content.evidence.observed[:, column]].mean() > 0.2
        assert learnt.module.tower(name).calibration.any()
    assert learnt.finish() == report  # finishing again changes nothing


def test_what_is_served_has_learned_from_every_observed_cell(learnt: DGMRecTask) -> None:
    assert learnt.content is not None
    assert learnt.held_cells.any()
    served = {key: value.clone() for key, value in learnt.module.state_dict().items()}
    learnt.module.fit_base(learnt.content.evidence, learnt.raw.observed)
    assert all(torch.equal(value, served[key]) for key, value in learnt.module.state_dict().items())
    learnt.module.fit_base(learnt.content.evidence, learnt.cells)
    assert not all(torch.equal(value, served[key]) for key, value in learnt.module.state_dict().items())
    learnt.module.load_state_dict(served)


def test_validate_tells_the_cosines() -> None:
    metrics = task_of().validate()
    assert {"cosine[audio]", "cosine[scan]", "recall@20", "ndcg@50"} <= metrics.keys()


def test_validate_tells_how_similar_the_parts_are() -> None:
    task = task_of()
    out, metrics = task.embed(), task.validate()
    assert task.content is not None
    observed = task.content.evidence.observed
    audio, scan = (task.module.names.index(name) for name in ("audio", "scan"))
    general, specific = out.parts.chunk(2, dim=2)
    one, both = observed[:, audio], observed[:, [audio, scan]].all(dim=1)
    assert 0 < int(both.sum()) < int(one.sum())
    cosines = functional.cosine_similarity(general[audio][one], specific[audio][one], dim=1)
    assert metrics["similarity[general audio, specific audio]"] == pytest.approx(cosines.mean().item(), abs=1e-5)
    cosines = functional.cosine_similarity(general[audio][both], general[scan][both], dim=1)
    assert metrics["similarity[general audio, general scan]"] == pytest.approx(cosines.mean().item(), abs=1e-5)
    assert len([name for name in metrics if name.startswith("similarity")]) == 3


def test_calibration_error() -> None:
    served = np.array([0.05, 0.08, 0.55, 0.55, 1.0], np.float32)
    measured = np.array([0.10, 0.20, 0.50, 0.90, 0.70], np.float32)
    expected = 2 / 5 * abs(0.065 - 0.15) + 2 / 5 * abs(0.55 - 0.7) + 1 / 5 * abs(1 - 0.7)
    assert calibration_error(served, measured) == pytest.approx(expected, abs=1e-6)
    assert calibration_error(served, served) == 0
    assert calibration_error(served[:0], measured[:0]) == 0


# --- cold items of the catalogue -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lightgcn", "linear"])
def test_cold_items_stand_where_validation_has_them(form: str) -> None:
    """Nobody has met them in the validation part: far up they are in the way, and come down."""
    whole, third = checkerboard(), np.arange(0, ITEMS, 3)
    left = (pairs[~np.isin(pairs[:, 1], third)] for pairs in (whole.parts.train, whole.parts.valid, whole.parts.test))
    data = replace(whole, parts=Parts(*left).evaluable())
    task = task_of(data, rounds=5, collaborative=form, popularity_offset=9.0)
    train(task, task.trainer)
    task.finish()
    cold = (task.interactions.item_degree == 0).numpy()
    assert not set(task.data.parts.valid[:, 1].tolist()) & set(np.flatnonzero(cold).tolist())
    before, cold_start = scores(task)[:, cold].mean(), task.module.cold_start
    offset = task.choose_catalogue_offset()
    assert offset in CATALOGUE_OFFSETS
    assert scores(task)[:, cold].mean() < before - 0.3
    assert float(cold_start.offset) == pytest.approx(offset)
    assert task.config.catalogue_offset == offset


def test_cold_items_stay_where_validation_does_not_mind() -> None:
    task = task_of(rounds=5, popularity_offset=0.0)
    train(task, task.trainer)
    task.finish()
    task.module.cold_start.config = task.config.model_copy(update={"catalogue_offset": -3.0})
    before = scores(task)
    assert task.choose_catalogue_offset() is None
    assert np.array_equal(scores(task), before)


def test_without_cold_items_there_is_none_to_place() -> None:
    assert task_of(modal=False).choose_catalogue_offset() is None


# --- new items beside warm ones ---------------------------------------------------------------------------------------


def test_new_items_stand_where_hidden_ones_bring_most_hits() -> None:
    """By a plain recount: no lower place has nearly as many hits, and no higher one clearly more."""
    task = task_of(rounds=5)
    train(task, task.trainer)
    task.finish()
    out, cold_start = task.final_embeddings()[0], task.module.cold_start
    axis, spread, new = cold_start.popularity_axis.clone(), cold_start.spread, cold_start.as_new.clone()
    placed = choose_new_offset(task)
    assert placed is not None
    assert task.config.popularity_offset == cold_start.config.popularity_offset == placed.offset

    order = np.random.default_rng(task.trainer.seed).permutation(task.warm)
    hidden = set(order[: round(0.2 * len(order))].tolist())
    seen = {tuple(pair) for pair in task.data.parts.train.tolist()}
    worth = 1 + len(task.data.parts.train) / len(task.data.parts.valid)
    warm = set(task.warm.tolist())

    def hits(offset: float | None) -> float:
        total = 0.0
        for user, item in task.data.parts.valid.tolist():
            shown = [i for i in warm if (user, i) not in seen and (offset is not None or i not in hidden)]
            rows = {i: new[i] + (offset or 0) * spread * axis if i in hidden else out.items[i] for i in shown}
            ranked = sorted(shown, key=lambda i: -float(out.users[user] @ rows[i]))[:20]
            total += (worth if item in hidden else 1.0) * (item in ranked)
        return total

    found = {offset: hits(offset) for offset in OFFSETS}
    best = max(found.values())
    assert placed.after == pytest.approx(found[placed.offset])
    assert placed.before == pytest.approx(hits(None))
    assert placed.after >= 0.95 * best
    assert all(count < 0.95 * best for offset, count in found.items() if offset < placed.offset)
    assert f"popularity_offset={placed.offset}" in str(placed)


def test_without_content_nothing_is_placed() -> None:
    assert choose_new_offset(task_of(modal=False)) is None
