"""DGMRec: shapes for any number of modalities and any holes, what may not leak, what must learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from models import losses
from models.dgmrec import DGMRec, DGMRecConfig, Embeddings, Projection
from models.graph import Graph, InteractionGraphs, mean_graph
from models.imputers import gather_evidence
from models.modality import ModalBatch, ModalitySpec
from tests.models.worlds import ITEMS, SMALL, USERS, World, interactions, linear_batch, world

DIMS = (6, 5, 3, 7)
D = SMALL.embedding_size
LONELY_USER, UNTOUCHED_ITEM = USERS - 1, ITEMS - 1


def config(**changes: object) -> DGMRecConfig:
    return DGMRecConfig.model_validate(SMALL.model_dump() | changes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_losses(w: World, out: Embeddings) -> dict[str, Tensor]:
    users = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    positives, negatives = torch.tensor([3, 5, 8, 13, 2, 1, 0]), torch.tensor([9, 10, 11, 12, 13, 14, 15])
    terms = w.model.ranking_losses(out, users, positives, negatives)
    rows = torch.arange(ITEMS)
    return terms | w.model.content_losses(out, w.side, rows, w.evidence.observed, generator())


# --- config --------------------------------------------------------------------------------------------------------


def test_misspelt_setting() -> None:
    with pytest.raises(ValidationError, match="embeding_size"):
        DGMRecConfig.model_validate({"embeding_size": 8})


@pytest.mark.parametrize(("name", "value"), [("temperature", 0), ("cold_rate", 1), ("gate", "relu"), ("layers", 0)])
def test_setting_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        DGMRecConfig.model_validate({name: value})


def test_it_needs_a_modality() -> None:
    with pytest.raises(ValueError, match="at least one modality"):
        DGMRec(SMALL, (), USERS, ITEMS)
    DGMRec(config(modal=False), (), USERS, ITEMS)


# --- projection ----------------------------------------------------------------------------------------------------


def pairwise(rows: Tensor) -> Tensor:
    unit = functional.normalize(rows, dim=1)
    return unit @ unit.T


@pytest.mark.parametrize("rank", [3, 6])
def test_projection_keeps_centred_cosines(rank: int) -> None:
    """Rank 3 holds all there is (the content is an image of three numbers), up to the noise."""
    rows = linear_batch((6,), missing=0, noise=0.01).features["m0"]
    projection = Projection(6, rank)
    projection.fit(rows)
    tolerance = 1e-5 if rank == 6 else 0.05
    torch.testing.assert_close(pairwise(projection(rows)), pairwise(rows - rows.mean(dim=0)), atol=tolerance, rtol=0)
    torch.testing.assert_close(projection.back(projection(rows)), rows, atol=tolerance * 10, rtol=0)
    assert projection(rows).pow(2).mean().item() == pytest.approx(1, abs=1e-4)
    assert projection(rows).mean(dim=0).abs().max() < 1e-5


def test_projection_takes_the_largest_components() -> None:
    rows = torch.randn(50, 4, generator=generator()) * torch.tensor([1.0, 10.0, 0.1, 5.0])
    projection = Projection(4, 2)
    projection.fit(rows)
    assert projection.components.abs().argmax(dim=0).tolist() == [1, 3]
    assert (projection.components.gather(0, projection.components.abs().argmax(0, keepdim=True)) > 0).all()


def test_projection_wider_than_the_feature() -> None:
    rows = torch.randn(10, 3, generator=generator())
    projection = Projection(3, 5)
    projection.fit(rows)
    assert projection(rows).shape == (10, 5)
    torch.testing.assert_close(projection.back(projection(rows)), rows)
    model = DGMRec(config(rank=50), [ModalitySpec("m", 3)], 2, 2)
    assert model.tower("m").ridge.shape[1] == 3


def test_projection_of_nothing_is_the_identity() -> None:
    projection = Projection(3, 3)
    projection.fit(torch.zeros(0, 3))
    rows = torch.randn(4, 3, generator=generator())
    assert torch.equal(projection(rows), rows)


@pytest.mark.parametrize("count", [1, 4])
def test_projection_of_equal_rows(count: int) -> None:
    projection = Projection(3, 2)
    projection.fit(torch.tensor([[1.0, 2.0, 3.0]]).expand(count, 3))
    assert projection(torch.tensor([[2.0, 2.0, 3.0]])).abs().max() <= 1


def test_project_reads_no_placeholder() -> None:
    w = world()
    noisy = ModalBatch(
        {
            name: torch.where(w.batch.observed[:, [column]], feature, torch.nan)
            for column, (name, feature) in enumerate(w.batch.features.items())
        },
        w.batch.observed,
    )
    model = DGMRec(SMALL, w.batch.specs, USERS, ITEMS)
    model.fit_projections(noisy)
    clean, dirty = w.model.project(w.batch), model.project(noisy)
    assert all(torch.equal(clean[name], dirty[name]) for name in w.batch.names)
    assert not clean["m0"][~w.batch.observed[:, 0]].any()


# --- forward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_forward_shapes(count: int) -> None:
    w = world(DIMS[:count])
    out = w.forward()
    for table in (out.users, out.user_id, out.user_modal):
        assert table.shape == (USERS, D)
    for table in (out.items, out.item_id, out.predicted_id, out.item_modal):
        assert table.shape == (ITEMS, D)
    assert out.user_parts.shape == (count, USERS, 2 * D)
    assert out.item_parts.shape == out.parts.shape == (count, ITEMS, 2 * D)
    assert out.taste.shape == (count, ITEMS, D)
    terms = all_losses(w, out)
    assert {"bpr", "l2", "behaviour", "user_item", "cold", "club", "nce", "reconstruction", "generation"} == set(terms)
    assert all(term.isfinite() for term in terms.values())
    assert (terms["nce"] == 0) == (count == 1)
    for name in w.batch.names:
        made = w.model.generate(name, w.evidence, out.taste)
        assert made.general.shape == made.specific.shape == (ITEMS, D)
        assert made.features.shape == w.evidence.own[name].shape


def test_forward_without_modalities_is_lightgcn() -> None:
    model, graphs = DGMRec(config(modal=False), (), USERS, ITEMS), interactions()
    out = model(graphs, None)
    users, items = model.collaborate(graphs)
    assert torch.equal(out.users, users)
    assert torch.equal(out.items, items)
    some = torch.arange(4)
    assert set(model.ranking_losses(out, some, some, some + 1)) == {"bpr", "l2"}


def test_collaborate_is_lightgcn() -> None:
    w = world()
    s = w.graphs.symmetric.matrix.toarray()
    users, items = w.model.users.weight.detach().numpy(), w.model.items.weight.detach().numpy()
    layers = [(users, items)]
    for _ in range(SMALL.layers):
        layers.append((s @ layers[-1][1], s.T @ layers[-1][0]))
    for side, found in enumerate(w.model.collaborate(w.graphs)):
        np.testing.assert_allclose(
            found.detach().numpy(), np.mean([layer[side] for layer in layers], axis=0), atol=1e-6
        )


@torch.no_grad()
def test_users_and_items_are_sums_of_their_parts() -> None:
    w = world()
    out = w.forward()
    torch.testing.assert_close(out.users, out.user_id + out.user_modal)
    warm = ~out.cold
    torch.testing.assert_close(out.items[warm], (out.item_id + out.item_modal)[warm])
    torch.testing.assert_close(out.items[out.cold], (out.predicted_id + out.item_modal)[out.cold])
    general, specific = out.item_parts.chunk(2, dim=-1)  # eq. 17
    torch.testing.assert_close(out.item_modal, (general.mean(dim=0) + specific.sum(dim=0)) / 3)
    history = w.graphs.user_mean.matrix[[0]].indices  # eq. 6
    torch.testing.assert_close(out.user_parts[:, 0], out.item_parts[:, history].mean(dim=1))


@torch.no_grad()
def test_user_without_history() -> None:
    w = world()
    out = w.forward()
    assert w.graphs.user_degree[LONELY_USER] == 0
    torch.testing.assert_close(out.user_id[LONELY_USER], w.model.users.weight[LONELY_USER] / (SMALL.layers + 1))
    assert not out.user_modal[LONELY_USER].any()


@torch.no_grad()
def test_untouched_item_is_cold_and_dropped_ones_are_treated_like_it() -> None:
    w = world()
    out = w.forward()
    assert out.cold[UNTOUCHED_ITEM]
    dropped = torch.zeros(ITEMS, dtype=torch.bool).index_fill_(0, torch.tensor([4]), value=True)
    again = w.forward(dropped)
    assert again.cold.nonzero().squeeze(1).tolist() == sorted({4, *out.cold.nonzero().squeeze(1).tolist()})
    own = (w.graphs.item_mean @ w.model.preference(out.user_id).transpose(0, 1).flatten(1)).view(ITEMS, -1, D)
    borrowed = w.model.kin_taste(own.transpose(0, 1), w.graphs.item_degree > 0, w.side.kin)
    torch.testing.assert_close(again.taste[:, 4], borrowed[:, 4])
    assert not torch.allclose(out.items[4], again.items[4])
    torch.testing.assert_close(again.user_id, out.user_id)


@torch.no_grad()
def test_a_modality_nobody_has() -> None:
    batch = linear_batch((6, 5))
    nobody = torch.tensor([[False, True]]).expand(ITEMS, 2)
    w = world(batch=batch.masked(nobody))
    out = w.forward()
    assert out.items.isfinite().all()
    terms = all_losses(w, out)
    assert all(term.isfinite() for term in terms.values())
    made = w.model.generate("m1", w.evidence, out.taste)
    assert made.features.isfinite().all()
    assert w.model.q_loss(out, w.evidence).isfinite()


@torch.no_grad()
def test_an_item_that_misses_everything() -> None:
    item = 3
    batch = linear_batch((6, 5), missing=0)
    w = world(batch=batch.masked(torch.arange(ITEMS)[:, None].eq(item).expand(ITEMS, 2)))
    assert not w.evidence.observed[item].any()
    assert w.side.kin.matrix[[item]].nnz == 0
    out = w.forward()
    filled = w.model.complete(w.evidence, out.taste)
    for name in w.batch.names:
        assert filled[name][item].isfinite().all()
        assert filled[name][item].any()  # generated from its users and its taste
        assert torch.equal(filled[name][:item], w.evidence.own[name][:item])
    assert out.items[item].isfinite().all()


def item_taste_loop(w: World, preference: Tensor, cold: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 2 and its stand-in, item by item."""
    histories = w.graphs.user_mean.matrix.toarray() > 0
    kin = w.side.kin.matrix.toarray()
    users = [np.flatnonzero(histories[:, item]) for item in range(ITEMS)]
    touched = [item for item in range(ITEMS) if len(users[item])]
    own = {item: preference[:, users[item]].mean(dim=1) for item in touched}
    everyone = torch.stack([own[item] for item in touched]).mean(dim=0)
    taste, borrowed = [], []
    for item in range(ITEMS):
        near = [other for other in np.flatnonzero(kin[item]) if other in own]
        weights = [float(kin[item, other]) for other in near]
        mean = sum(weight * own[other] for weight, other in zip(weights, near, strict=True)) if near else None
        borrowed.append(everyone if mean is None else mean / sum(weights))
        taste.append(borrowed[-1] if cold[item] else own[item])
    return torch.stack(taste, dim=1), torch.stack(borrowed, dim=1)


@torch.no_grad()
def test_item_taste() -> None:
    w = world()
    preference = w.model.preference(torch.randn(USERS, D, generator=generator()))
    cold = (w.graphs.item_degree == 0) | (torch.arange(ITEMS) % 7 == 0)
    expected = item_taste_loop(w, preference, cold)
    everything = torch.ones(ITEMS, dtype=torch.bool)
    found = (
        w.model.item_taste(preference, w.graphs, w.side.kin, cold),
        w.model.item_taste(preference, w.graphs, w.side.kin, everything),
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_taste_of_an_item_without_neighbours_is_everyones() -> None:
    w = world()
    alone = Graph(mean_graph(torch.full((ITEMS, 1), -1), ITEMS))
    preference = w.model.preference(w.model.users.weight)
    taste = w.model.item_taste(preference, w.graphs, alone, w.graphs.item_degree == 0)
    borrowed = w.model.kin_taste(taste, w.graphs.item_degree > 0, alone)
    warm = w.graphs.item_degree > 0
    everyone = taste[:, warm].mean(dim=1)
    torch.testing.assert_close(taste[:, UNTOUCHED_ITEM], everyone)
    torch.testing.assert_close(borrowed, everyone[:, None].expand_as(borrowed))


@torch.no_grad()
@pytest.mark.parametrize("gate", ["sigmoid", "tanh", "none"])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_parts(gate: str, activation: str) -> None:
    """Eq. 1 and 3 as they are written."""
    w = world(config=config(gate=gate, activation=activation))
    taste = torch.tanh(torch.randn(2, ITEMS, D, generator=generator()))
    parts = w.model.encode(w.evidence.own, taste)
    act = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}[activation]
    for column, name in enumerate(w.batch.names):
        tower, x = w.model.tower(name), w.evidence.own[name]
        factor = {"sigmoid": torch.sigmoid(taste[column]), "tanh": taste[column], "none": torch.ones(())}[gate]
        general = act(w.model.general(torch.tanh(tower.encode(x)))) * factor
        specific = act(tower.specific(x)) * factor
        torch.testing.assert_close(parts[column], torch.cat([general, specific], dim=1))


# --- the same bits -------------------------------------------------------------------------------------------------


def test_same_seed_same_bits() -> None:
    state = torch.get_rng_state()
    one, two = world(), world()
    assert torch.equal(torch.get_rng_state(), state)  # global randomness is left alone
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[key]), key
    first, second = one.forward(), two.forward()
    assert torch.equal(first.items, second.items)
    for key, term in all_losses(one, first).items():
        assert torch.equal(term, all_losses(two, second)[key]), key


def test_another_seed_other_weights() -> None:
    other = world(config=config(seed=1))
    assert not torch.equal(world().model.users.weight, other.model.users.weight)


@torch.no_grad()
def test_nothing_is_random_outside_training() -> None:
    w = world()
    taste = w.forward().taste
    plain = w.model.generate("m1", w.evidence, taste).features
    assert torch.equal(plain, w.model.generate("m1", w.evidence, taste).features)
    noisy = w.model.generate("m1", w.evidence, taste, generator=generator()).features
    assert not torch.equal(plain, noisy)
    assert torch.equal(noisy, w.model.generate("m1", w.evidence, taste, generator=generator()).features)


# --- fold-in -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
def test_fold_in_tables_reproduce_lightgcn(layers: int) -> None:
    w = world(config=config(layers=layers))
    tables = w.model.fold_in_tables(w.graphs)
    users, items = w.model.collaborate(w.graphs)
    histories = w.graphs.user_mean.matrix.toarray() > 0
    for user in range(USERS):
        history = np.flatnonzero(histories[user])
        folded = tables["item_message"][history].sum(dim=0) / max(len(history), 1) ** 0.5
        torch.testing.assert_close(tables["user_residual"][user] + folded, users[user], atol=1e-6, rtol=1e-5)
    for item in range(ITEMS):
        touching = np.flatnonzero(histories[:, item])
        folded = tables["user_message"][touching].sum(dim=0) / max(len(touching), 1) ** 0.5
        torch.testing.assert_close(
            w.model.items.weight[item] / (layers + 1) + folded, items[item], atol=1e-6, rtol=1e-5
        )


# --- learning ------------------------------------------------------------------------------------------------------

Q = {"q.0.weight", "q.0.bias", "q.2.weight", "q.2.bias"}
GENERATORS = {
    "step",
    *(
        f"{which}_generator.{layer}.{kind}"
        for which in ("general", "specific")
        for layer in (0, 2)
        for kind in ("weight", "bias")
    ),
}


def without_gradient(w: World) -> set[str]:
    """Names of the parameters that the losses do not reach, without the tower's own part."""
    dropped = torch.arange(ITEMS) % 3 == 0
    torch.stack(list(all_losses(w, w.forward(dropped)).values())).sum().backward()  # type: ignore[no-untyped-call]
    return {
        name.removeprefix("towers.m0.").removeprefix("towers.m1.")
        for name, parameter in w.model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }


@pytest.mark.parametrize("dims", [(6,), (6, 5), (6, 5, 3)])
def test_gradients_reach_everything_but_q(dims: tuple[int, ...]) -> None:
    """q has an optimiser of its own."""
    assert {name.removeprefix("towers.m2.") for name in without_gradient(world(dims))} == Q


@pytest.mark.parametrize("imputation", ["mean", "nn"])
def test_plain_imputation_trains_no_generator(imputation: str) -> None:
    assert without_gradient(world(config=config(imputation=imputation))) == Q | GENERATORS


@pytest.mark.parametrize(
    ("weight", "idle"),
    [
        ("generation", GENERATORS),
        ("cold", set()),  # predict still scores the items that lost their collaborative part
        ("reconstruction", set()),
        ("club", set()),
    ],
)
def test_what_a_loss_alone_reaches(weight: str, idle: set[str]) -> None:
    assert without_gradient(world(config=config(**{weight: 0}))) == Q | idle


def test_q_loss_reaches_q_alone() -> None:
    w = world()
    w.model.q_loss(w.forward(), w.evidence).backward()  # type: ignore[no-untyped-call]
    reached = {name for name, parameter in w.model.named_parameters() if parameter.grad is not None}
    assert reached == {f"towers.{name}.{part}" for name in w.batch.names for part in Q}


def test_q_loss_is_the_negative_likelihood_of_observed_parts() -> None:
    w = world()
    out = w.forward()
    expected = 0.0
    for column, name in enumerate(w.batch.names):
        general, specific = out.parts[column, w.batch.observed[:, column]].chunk(2, dim=1)
        expected -= losses.gaussian_log_likelihood(specific, *w.model.q(name, general)).mean().item()
    assert w.model.q_loss(out, w.evidence).item() == pytest.approx(expected, rel=1e-5)


def test_predicting_the_collaborative_part_does_not_bend_the_content() -> None:
    w = world()
    w.forward().predicted_id.sum().backward()  # type: ignore[no-untyped-call]
    reached = {name for name, parameter in w.model.named_parameters() if parameter.grad is not None}
    assert reached == {f"predict.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}


def test_ranking_does_not_train_the_generator() -> None:
    """It is to be true, not useful to the ranking."""
    w = world()
    out = w.forward(torch.arange(ITEMS) % 3 == 0)
    some = torch.arange(6)
    torch.stack(list(w.model.ranking_losses(out, some, some + 3, some + 9).values())).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in w.model.named_parameters():
        if any(part in name for part in GENERATORS):
            assert parameter.grad is None, name


def some_pairs(w: World) -> tuple[Tensor, Tensor]:
    """A training pair of each of four users, one of whom has no other item."""
    histories = w.graphs.user_mean.matrix
    users = torch.tensor([0, 1, 2, int((w.graphs.user_degree == 1).nonzero()[0])])
    return users, torch.tensor([int(histories[[user]].indices[-1]) for user in users.tolist()])


def test_ranking_losses_are_the_formulas() -> None:
    w = world(config=config(cold=2.0, behaviour=0.5, user_item=0.25, l2=0.1))
    u, i = some_pairs(w)
    j = torch.tensor([9, 10, 11, 12])
    dropped = torch.zeros(ITEMS, dtype=torch.bool).index_fill_(0, i[:1], value=True)
    out = w.forward(dropped)
    terms = w.model.ranking_losses(out, u, i, j)
    assert not torch.isin(i[1:], i[:1]).any()
    histories = w.graphs.user_mean.matrix.toarray() > 0
    for row, (user, positive) in enumerate(zip(u.tolist(), i.tolist(), strict=True)):  # what u liked besides i
        rest = [item for item in np.flatnonzero(histories[user]) if item != positive]
        modal = out.item_modal[rest].mean(dim=0) if rest else torch.zeros(D)
        expected = out.user_id[user] + modal
        torch.testing.assert_close(w.model._without_positive(out, u, i)[row], expected, atol=1e-6, rtol=1e-5)
    score = (w.model._without_positive(out, u, i) * (out.items[i] - out.items[j])).sum(dim=1)
    torch.testing.assert_close(terms["bpr"], -functional.logsigmoid(score).mean())
    t = w.model.config.temperature
    known = torch.unique(i[1:])  # an item without a collaborative part has nothing to align with
    behaviour = losses.info_nce(out.user_id[u.sort()[0]], out.user_modal[u.sort()[0]], t) + losses.info_nce(
        out.item_id[known], out.item_modal[known], t
    )
    torch.testing.assert_close(terms["behaviour"], 0.5 * behaviour)
    general = losses.info_nce(out.user_parts[:, u, :D].sum(0), out.item_parts[:, i, :D].sum(0), t)
    specific = sum(losses.info_nce(out.user_parts[m, u, D:], out.item_parts[m, i, D:], t) for m in range(2))
    torch.testing.assert_close(terms["user_item"], 0.25 * (general + specific))
    gap = (out.predicted_id[i[0]] - out.item_id[i[0]]).pow(2).mean() / out.item_id.pow(2).mean()
    torch.testing.assert_close(terms["cold"], 2 * gap)


def test_content_losses_look_at_observed_cells_only() -> None:
    """Noise in the imputation of an unobserved cell changes none of them."""
    w = world()
    terms = w.model.content_losses(w.forward(), w.side, torch.arange(ITEMS), w.evidence.observed, generator())
    noisy = {
        name: torch.where(w.evidence.observed[:, [c]], block, torch.randn(block.shape, generator=generator()))
        for c, (name, block) in enumerate(w.side.features.items())
    }
    side = replace(w.side, features=noisy)
    out = w.model(w.graphs, side)
    again = w.model.content_losses(out, side, torch.arange(ITEMS), w.evidence.observed, generator())
    for key, term in terms.items():
        torch.testing.assert_close(term, again[key])


def test_generator_learns_from_the_given_cells_only() -> None:
    w = world()
    none = torch.zeros_like(w.evidence.observed)
    terms = w.model.content_losses(w.forward(), w.side, torch.arange(ITEMS), none, generator())
    assert terms["generation"] == 0
    assert terms["reconstruction"] > 0


# --- generation ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_generated_cell_does_not_depend_on_its_true_feature() -> None:
    w = world((6, 5, 4))
    taste = w.forward().taste
    for column, name in enumerate(w.batch.names):
        before = w.model.generate(name, w.evidence, taste)
        for item in w.batch.observed[:, column].nonzero().squeeze(1)[:6].tolist():
            own = {key: feature.clone() for key, feature in w.evidence.own.items()}
            own[name][item] = 50 * torch.randn(own[name].shape[1], generator=generator(item))
            evidence = gather_evidence(own, w.batch.observed, w.graphs)
            after = w.model.generate(name, evidence, taste)
            torch.testing.assert_close(after.features[item], before.features[item], atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(after.facts[item], before.facts[item], atol=1e-4, rtol=1e-3)
            fewer = w.batch.observed.clone()
            fewer[item, column] = False
            after = w.model.generate(name, gather_evidence(own, fewer, w.graphs), taste)
            torch.testing.assert_close(after.features[item], before.features[item], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_complete_fills_and_keeps() -> None:
    w = world()
    taste = w.forward().taste
    filled = w.model.complete(w.evidence, taste)
    for column, name in enumerate(w.batch.names):
        have = w.batch.observed[:, column]
        assert torch.equal(filled[name][have], w.evidence.own[name][have])
        assert torch.equal(filled[name][~have], w.model.generate(name, w.evidence, taste).features[~have])


@torch.no_grad()
def test_generals_stand_in_with_the_mean() -> None:
    w = world()
    out = w.forward()
    w.model.update_mean_generals(out, w.batch.observed)
    generals = w.model.generals(w.evidence, out.taste)
    for column in range(2):
        have = w.batch.observed[:, column]
        torch.testing.assert_close(generals[column, have], out.parts[column, have, :D])
        mean = out.parts[column, have, :D].mean(dim=0)
        torch.testing.assert_close(generals[column, ~have], mean.expand(int((~have).sum()), -1))


@torch.no_grad()
def test_ridge_beats_the_mean_on_linear_content() -> None:
    full = linear_batch((6, 5), n=150, missing=0)
    missing = torch.zeros(150, 2, dtype=torch.bool)
    missing[:40, 1] = True
    batch, graphs = full.masked(missing), interactions(items=150)
    model = DGMRec(SMALL, batch.specs, USERS, 150)
    model.fit_projections(batch)
    evidence = gather_evidence(model.project(batch), batch.observed, graphs)
    model.fit_ridge(evidence, batch.observed)
    tower = model.tower("m1")
    made = tower.projection.back(evidence.inputs("m1") @ tower.ridge)[:40]
    truth, mean = full.features["m1"][:40], tower.projection.mean
    assert (made - truth).pow(2).mean() < 0.2 * (mean - truth).pow(2).mean()
    assert functional.cosine_similarity(made - mean, truth - mean, dim=1).mean() > 0.9


@torch.no_grad()
def test_ridge_learns_from_the_given_cells_only() -> None:
    w, cells = world(), torch.ones(ITEMS, 2, dtype=torch.bool)
    cells[:, 1] = torch.arange(ITEMS) < 9  # too few
    for name in w.batch.names:
        w.model.tower(name).ridge.zero_()
    w.model.fit_ridge(w.evidence, cells & w.batch.observed)
    assert w.model.tower("m0").ridge.any()
    assert not w.model.tower("m1").ridge.any()


@torch.no_grad()
def test_confidence_is_between_0_and_1() -> None:
    w = world()
    made = w.model.generate("m0", w.evidence, w.forward().taste)
    for calibration in (3.0, -3.0):
        w.model.tower("m0").calibration.fill_(calibration)
        confidence = w.model.confidence("m0", made)
        assert confidence.shape == (ITEMS,)
        assert confidence.min() >= 0
        assert confidence.max() <= 1


@torch.no_grad()
def test_calibration_finds_what_the_facts_tell() -> None:
    w = world()
    made = w.model.generate("m0", w.evidence, w.forward().taste)
    w.model.fit_calibration("m0", made.facts.repeat(50, 1), 0.2 + 0.3 * made.facts[:, 2].repeat(50))
    torch.testing.assert_close(w.model.confidence("m0", made), 0.2 + 0.3 * made.facts[:, 2], atol=0.02, rtol=0)
    before = w.model.tower("m0").calibration.clone()
    w.model.fit_calibration("m0", made.facts[:0], torch.zeros(0))
    assert torch.equal(w.model.tower("m0").calibration, before)


def test_a_graph_without_interactions() -> None:
    none = np.array([], dtype=np.int64)
    w = world()
    out = w.model(InteractionGraphs.build(none, none, USERS, ITEMS), w.side)
    assert out.cold.all()
    assert out.items.isfinite().all()
