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
from models.dgmrec.config import OLD_NAMES, DGMRecConfig
from models.dgmrec.model import DGMRec, Embeddings
from models.graph import Graph, InteractionGraphs, mean_graph
from models.modality import ModalBatch
from tests.models.worlds import ITEMS, SMALL, USERS, World, generator, interactions, linear_batch, small, world

DIMS = (6, 5, 3, 7)
D = SMALL.embedding_size
LONELY_USER, COLD_ITEM = USERS - 1, ITEMS - 1


def all_losses(w: World, out: Embeddings) -> dict[str, Tensor]:
    users = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    positives, negatives = torch.tensor([3, 5, 8, 13, 2, 1, 0]), torch.tensor([9, 10, 11, 12, 13, 14, 15])
    terms = w.model.ranking_losses(out, users, positives, negatives, w.graphs, w.content)
    rows = torch.arange(ITEMS)
    return terms | w.model.content_losses(out, w.content, rows, w.evidence.observed, generator())


# --- config --------------------------------------------------------------------------------------------------------


def test_misspelt_setting() -> None:
    with pytest.raises(ValidationError, match="embeding_size"):
        DGMRecConfig.model_validate({"embeding_size": 8})


def test_old_names_of_settings_lead_to_those_of_today() -> None:
    assert {new for new in OLD_NAMES.values() if new is not None} <= DGMRecConfig.model_fields.keys()
    assert not OLD_NAMES.keys() & DGMRecConfig.model_fields.keys()
    with pytest.raises(ValidationError, match="lean"):
        DGMRecConfig.model_validate({"lean": 1.0})


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 0), ("cold_popularity", 3), ("gate", "relu"), ("layers", 0)]
)
def test_setting_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        DGMRecConfig.model_validate({name: value})


def test_it_needs_a_modality() -> None:
    with pytest.raises(ValueError, match="at least one modality"):
        DGMRec(SMALL, (), USERS, ITEMS)
    DGMRec(small(modal=False), (), USERS, ITEMS)


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
    for table in (out.items, out.item_id, out.item_modal):
        assert table.shape == (ITEMS, D)
    assert w.model.propagated(w.content, out.parts).shape == out.parts.shape == (count, ITEMS, 2 * D)
    assert out.preference.shape == (count, ITEMS, D)
    terms = all_losses(w, out)
    assert {"ranking", "l2", "behaviour", "club", "nce", "reconstruction", "generation"} == set(terms)
    assert all(term.isfinite() for term in terms.values())
    assert (terms["nce"] == 0) == (count == 1)
    for name in w.batch.names:
        learned = w.model.learned(name, w.evidence, out.preference)
        assert learned.general.shape == learned.specific.shape == (ITEMS, D)
        made = w.model.generate(name, w.evidence, out.preference)
        assert made.features.shape == learned.signal.shape == w.evidence.own[name].shape


@pytest.mark.parametrize("ranking", ["softmax", "bpr"])
def test_forward_without_modalities_is_lightgcn(ranking: str) -> None:
    model, graphs = DGMRec(small(modal=False, ranking=ranking), (), USERS, ITEMS), interactions()
    out = model(graphs, None)
    part = model.collaborate(graphs)
    for found, expected in zip((out.users, out.items), (part.users, part.items), strict=True):
        torch.testing.assert_close(found, functional.normalize(expected, dim=1) if ranking == "softmax" else expected)
    some = torch.arange(4)
    assert set(model.ranking_losses(out, some, some, some + 1, graphs, None)) == {"ranking", "l2"}


@pytest.mark.parametrize("name", ["behaviour", "user_item"])
def test_a_term_without_weight_is_left_out(name: str) -> None:
    for weight in (0.0, 0.1):
        w = world(config=small(**{name: weight}))
        assert (name in all_losses(w, w.forward())) == (weight > 0)


def test_collaborate_is_lightgcn() -> None:
    w = world()
    s = w.graphs.symmetric.matrix.toarray()
    users, items = w.model.users.weight.detach().numpy(), w.model.items.weight.detach().numpy()
    layers = [(users, items)]
    for _ in range(SMALL.layers):
        layers.append((s @ layers[-1][1], s.T @ layers[-1][0]))
    part = w.model.collaborate(w.graphs)
    for side, found in enumerate((part.users, part.items)):
        np.testing.assert_allclose(
            found.detach().numpy(), np.mean([layer[side] for layer in layers], axis=0), atol=1e-6
        )


@torch.no_grad()
@pytest.mark.parametrize("ranking", ["softmax", "bpr"])
@pytest.mark.parametrize("layers", [1, 2])
def test_users_and_items_are_sums_of_their_parts(ranking: str, layers: int) -> None:
    """Of unit length where cosines are the scores."""
    w = world(config=small(ranking=ranking, item_layers=layers))
    out = w.forward()
    assert out.cold.any()

    def final(total: Tensor) -> Tensor:
        return total / total.norm(dim=1, keepdim=True) if ranking == "softmax" else total

    torch.testing.assert_close(out.users, final(out.user_id + out.user_modal))
    torch.testing.assert_close(out.items, final(out.item_id + out.item_modal))
    propagated = out.parts  # eq. 5
    for _ in range(layers):
        steps = [w.content.graphs[name].matrix.toarray() for name in w.batch.names]
        propagated = torch.stack([torch.from_numpy(a) @ own for a, own in zip(steps, propagated, strict=True)])
    torch.testing.assert_close(w.model.propagated(w.content, out.parts), propagated)
    general, specific = propagated.chunk(2, dim=-1)  # eq. 17
    weight = w.model.weight.exp()[:, None, None]
    expected = ((general / 2 + specific) * weight).sum(dim=0) / 3
    torch.testing.assert_close(out.item_modal, expected)
    history = w.graphs.user_mean.matrix[[0]].indices  # eq. 6
    torch.testing.assert_close(out.user_modal[0], out.item_modal[history].mean(dim=0))


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_sum_to_what_is_fused(count: int) -> None:
    """Eq. 17 as written, where every modality weighs 1: the mean of the mean general part and every specific one."""
    model = world(DIMS[:count]).model
    model.weight.zero_()
    parts = torch.randn(count, 5, 2 * D, generator=generator())
    general, specific = parts[..., :D], parts[..., D:]
    expected = torch.stack([general.mean(dim=0), *specific]).mean(dim=0)
    torch.testing.assert_close(model.fuse(parts), expected)
    shares = model.shares(parts)
    torch.testing.assert_close(shares.sum(dim=0), expected)
    alone = parts * (torch.arange(count) == 0)[:, None, None]  # a modality's share is what the others do not bring
    torch.testing.assert_close(model.fuse(alone), shares[0])
    model.weight[0] = float(np.log(0.5))
    torch.testing.assert_close(model.shares(parts)[0], shares[0] / 2)
    torch.testing.assert_close(model.shares(parts)[1:], shares[1:])


@torch.no_grad()
def test_user_without_history() -> None:
    w = world()
    out = w.forward()
    assert w.graphs.user_degree[LONELY_USER] == 0
    torch.testing.assert_close(out.user_id[LONELY_USER], w.model.users.weight[LONELY_USER] / (SMALL.layers + 1))
    assert not out.user_modal[LONELY_USER].any()


@torch.no_grad()
def test_cold_items_take_their_neighbours_preference() -> None:
    w = world()
    out = w.forward()
    assert out.cold.tolist() == (w.graphs.item_degree == 0).tolist()
    assert out.cold[COLD_ITEM]
    own = (w.graphs.item_mean @ w.model.user_preference(out.user_id).transpose(0, 1).flatten(1)).view(ITEMS, -1, D)
    neighbours = w.model.neighbour_preference(
        own.transpose(0, 1), ~out.cold, w.content.neighbour_graph, torch.tensor([COLD_ITEM])
    )
    torch.testing.assert_close(out.preference[:, COLD_ITEM], neighbours[:, 0])


@torch.no_grad()
def test_a_modality_nobody_has() -> None:
    batch = linear_batch((6, 5))
    nobody = torch.tensor([[False, True]]).expand(ITEMS, 2)
    w = world(batch=batch.masked(nobody))
    out = w.forward()
    assert out.items.isfinite().all()
    terms = all_losses(w, out)
    assert all(term.isfinite() for term in terms.values())
    made = w.model.generate("m1", w.evidence, out.preference)
    assert made.features.isfinite().all()
    assert w.model.q_loss(out, w.evidence).isfinite()


@torch.no_grad()
def test_an_item_that_misses_everything() -> None:
    item = 3
    batch = linear_batch((6, 5), missing=0)
    w = world(batch=batch.masked(torch.arange(ITEMS)[:, None].eq(item).expand(ITEMS, 2)))
    assert not w.evidence.observed[item].any()
    assert w.content.neighbour_graph.matrix[[item]].nnz == 0
    out = w.forward()
    filled = w.model.complete(w.evidence, out.preference)
    for name in w.batch.names:
        assert filled[name][item].isfinite().all()
        assert filled[name][item].any()  # generated from its users and its preference
        assert torch.equal(filled[name][:item], w.evidence.own[name][:item])
    assert out.items[item].isfinite().all()


def item_preference_loop(w: World, preference: Tensor, cold: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 2 and its stand-in, item by item."""
    histories = w.graphs.user_mean.matrix.toarray() > 0
    neighbour_graph = w.content.neighbour_graph.matrix.toarray()
    users = [np.flatnonzero(histories[:, item]) for item in range(ITEMS)]
    touched = [item for item in range(ITEMS) if len(users[item]) and not cold[item]]
    own = {item: preference[:, users[item]].mean(dim=1) for item in touched}
    everyone = torch.stack([own[item] for item in touched]).mean(dim=0)
    preference, neighbours = [], []
    for item in range(ITEMS):
        near = [other for other in np.flatnonzero(neighbour_graph[item]) if other in own]
        weights = [float(neighbour_graph[item, other]) for other in near]
        mean = sum(weight * own[other] for weight, other in zip(weights, near, strict=True)) if near else None
        neighbours.append(everyone if mean is None else mean / sum(weights))
        preference.append(neighbours[-1] if cold[item] else own[item])
    return torch.stack(preference, dim=1), torch.stack(neighbours, dim=1)


@torch.no_grad()
def test_item_taste() -> None:
    w = world()
    preference = w.model.user_preference(torch.randn(USERS, D, generator=generator()))
    cold = (w.graphs.item_degree == 0) | (torch.arange(ITEMS) % 7 == 0)
    expected = item_preference_loop(w, preference, cold)
    found = (
        w.model.item_preference(preference, w.graphs, w.content.neighbour_graph, cold),
        w.model.neighbour_preference(
            w.model.item_preference(preference, w.graphs, w.content.neighbour_graph, cold),
            ~cold,
            w.content.neighbour_graph,
            torch.arange(ITEMS),
        ),
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_preference_of_an_item_without_neighbours_is_everyones() -> None:
    w = world()
    alone = Graph(mean_graph(torch.full((ITEMS, 1), -1), ITEMS))
    preference = w.model.user_preference(w.model.users.weight)
    preference = w.model.item_preference(preference, w.graphs, alone, w.graphs.item_degree == 0)
    neighbours = w.model.neighbour_preference(preference, w.graphs.item_degree > 0, alone, torch.arange(ITEMS))
    warm = w.graphs.item_degree > 0
    everyone = preference[:, warm].mean(dim=1)
    torch.testing.assert_close(preference[:, COLD_ITEM], everyone)
    torch.testing.assert_close(neighbours, everyone[:, None].expand_as(neighbours))


@torch.no_grad()
def test_preference_while_a_cell_is_hidden() -> None:
    """An item's own, unless its interactions are hidden too: then its neighbours' by the other modalities, and
    everyone's where those are hidden as well."""
    w = world()
    out = w.forward()
    warm = (~out.cold).nonzero().squeeze(1)
    neighbour_graph = w.content.neighbour_graph_without["m1"].matrix.toarray()
    read = [item for item in warm.tolist() if neighbour_graph[item, warm].any()]
    rows = torch.tensor([*read[:4], COLD_ITEM])
    others, hidden = torch.tensor([False, True, False, True, False]), torch.tensor([False, False, True, True, False])
    found = w.model.hidden_preference(out, w.content, "m1", rows, others=others, interactions=hidden)
    everyone = out.preference[:, warm].mean(dim=1)

    def neighbours(item: int) -> Tensor:
        weights = torch.from_numpy(neighbour_graph[item]).index_fill(0, out.cold.nonzero().squeeze(1), 0)
        return torch.einsum("i,mid->md", weights, out.preference) / weights.sum()

    torch.testing.assert_close(found[:, :2], out.preference[:, rows[:2]])
    torch.testing.assert_close(found[:, 2], neighbours(int(rows[2])))
    torch.testing.assert_close(found[:, 3], everyone)
    last = neighbours(COLD_ITEM) if neighbour_graph[COLD_ITEM, warm].any() else everyone
    torch.testing.assert_close(found[:, 4], last)


@torch.no_grad()
@pytest.mark.parametrize("gate", ["sigmoid", "tanh", "none"])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_parts(gate: str, activation: str) -> None:
    """Eq. 1 and 3 as they are written."""
    w = world(config=small(gate=gate, activation=activation))
    preference = torch.tanh(torch.randn(2, ITEMS, D, generator=generator()))
    parts = w.model.encode(w.evidence.own, preference)
    act = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}[activation]
    for column, name in enumerate(w.batch.names):
        tower, x = w.model.tower(name), w.evidence.own[name]
        factor = {"sigmoid": torch.sigmoid(preference[column]), "tanh": preference[column], "none": torch.ones(())}[
            gate
        ]
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
    other = world(config=small(seed=1))
    assert not torch.equal(world().model.users.weight, other.model.users.weight)


@torch.no_grad()
def test_nothing_is_random_outside_training() -> None:
    w = world()
    preference = w.forward().preference
    w.model.tower("m1").trust.fill_(0.5)
    plain = w.model.generate("m1", w.evidence, preference).features
    assert torch.equal(plain, w.model.generate("m1", w.evidence, preference).features)
    certain = w.model.learned("m1", w.evidence, preference).signal
    assert torch.equal(certain, w.model.learned("m1", w.evidence, preference).signal)
    noisy = w.model.learned("m1", w.evidence, preference, generator=generator()).signal
    assert not torch.equal(certain, noisy)
    assert torch.equal(noisy, w.model.learned("m1", w.evidence, preference, generator=generator()).signal)


# --- fold-in -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
def test_fold_in_tables_reproduce_lightgcn(layers: int) -> None:
    w = world(config=small(layers=layers))
    tables = w.model.fold_in_tables(w.graphs)
    part = w.model.collaborate(w.graphs)
    histories = w.graphs.user_mean.matrix.toarray() > 0
    for user in range(USERS):
        history = np.flatnonzero(histories[user])
        folded = tables["item_message"][history].sum(dim=0) / max(len(history), 1) ** 0.5
        torch.testing.assert_close(tables["user_residual"][user] + folded, part.users[user], atol=1e-6, rtol=1e-5)
    for item in range(ITEMS):
        touching = np.flatnonzero(histories[:, item])
        folded = tables["user_message"][touching].sum(dim=0) / max(len(touching), 1) ** 0.5
        torch.testing.assert_close(
            w.model.items.weight[item] / (layers + 1) + folded, part.items[item], atol=1e-6, rtol=1e-5
        )


# --- learning ------------------------------------------------------------------------------------------------------

Q = {"q.0.weight", "q.0.bias", "q.2.weight", "q.2.bias"}
GENERATORS = {
    *(
        f"{which}_generator.{layer}.{kind}"
        for which in ("general", "specific")
        for layer in (0, 2)
        for kind in ("weight", "bias")
    ),
}


def without_gradient(w: World) -> set[str]:
    """Names of the parameters that the losses do not reach, without the tower's own part."""
    torch.stack(list(all_losses(w, w.forward()).values())).sum().backward()  # type: ignore[no-untyped-call]
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
    assert without_gradient(world(config=small(imputation=imputation))) == Q | GENERATORS


@pytest.mark.parametrize(
    ("weight", "idle"),
    [
        ("generation", GENERATORS),
        ("reconstruction", set()),
        ("club", set()),
    ],
)
def test_what_a_loss_alone_reaches(weight: str, idle: set[str]) -> None:
    assert without_gradient(world(config=small(**{weight: 0}))) == Q | idle


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
        expected -= losses.gaussian_log_likelihood(specific, *w.model.tower(name).club_q(general)).mean().item()
    assert w.model.q_loss(out, w.evidence).item() == pytest.approx(expected, rel=1e-5)


def test_ranking_does_not_train_the_generator() -> None:
    """It is to be true, not useful to the ranking."""
    w = world()
    out = w.forward()
    some = torch.arange(6)
    terms = w.model.ranking_losses(out, some, some + 3, some + 9, w.graphs, w.content)
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in w.model.named_parameters():
        if any(part in name for part in GENERATORS):
            assert parameter.grad is None, name


def some_pairs(w: World) -> tuple[Tensor, Tensor]:
    """A training pair of each of four users, one of whom has no other item."""
    histories = w.graphs.user_mean.matrix
    users = torch.tensor([0, 1, 2, int((w.graphs.user_degree == 1).nonzero()[0])])
    return users, torch.tensor([int(histories[[user]].indices[-1]) for user in users.tolist()])


def history_of(w: World, user: int) -> list[int]:
    items: list[int] = np.flatnonzero(w.graphs.user_mean.matrix.toarray()[user]).tolist()
    return items


def seen_without(w: World, out: Embeddings, user: int, positive: int) -> Tensor:
    """e_u as it was before the user met the positive."""
    rest = [item for item in history_of(w, user) if item != positive]
    told = w.model.fold_in_tables(w.graphs)["item_message"][rest].sum(dim=0) / max(len(rest), 1) ** 0.5
    own = w.model.users.weight[user] / (1 + w.model.config.layers)
    total = own + told + (out.item_modal[rest].mean(dim=0) if rest else torch.zeros(D))
    return total / total.norm() if w.model.config.ranking == "softmax" else total


def test_a_positive_may_stay_in_its_users_history() -> None:
    w = world(config=small(leave_positive_out=False, user_power=0, ranking="bpr"))
    u, i = some_pairs(w)
    j = torch.tensor([9, 10, 11, 12])
    out = w.forward()
    gap = (out.users[u] * (out.items[i] - out.items[j])).sum(dim=1)
    terms = w.model.ranking_losses(out, u, i, j, w.graphs, w.content)
    torch.testing.assert_close(terms["ranking"], -functional.logsigmoid(gap).mean())


@pytest.mark.parametrize("user_power", [0.0, 0.5])
@pytest.mark.parametrize("ranking", ["softmax", "bpr"])
def test_ranking_losses_are_the_formulas(ranking: str, user_power: float) -> None:
    weights = {"behaviour": 0.5, "user_item": 0.25, "l2": 0.1}
    w = world(config=small(ranking=ranking, user_power=user_power, **weights))
    u, i = some_pairs(w)
    j = torch.tensor([9, 10, 11, 12] if ranking == "bpr" else [9, 10, 11, 12, 13, 14])
    out = w.forward()
    excluded = None
    if ranking == "softmax":
        excluded = torch.tensor([[item in history_of(w, user) for item in j.tolist()] for user in u.tolist()])
        assert excluded.any()
    terms = w.model.ranking_losses(out, u, i, j, w.graphs, w.content, excluded)
    pairs = list(zip(u.tolist(), i.tolist(), strict=True))
    users = torch.stack([seen_without(w, out, user, positive) for user, positive in pairs])
    positive = (users * out.items[i]).sum(dim=1)
    if ranking == "bpr":
        each = -functional.logsigmoid(positive - (users * out.items[j]).sum(dim=1))
    else:
        touched = int((w.graphs.item_degree > 0).sum())
        t, stands_for = w.model.config.ranking_temperature, touched / len(j)
        others = ((users @ out.items[j].T / t).exp() * ~excluded).sum(dim=1) * stands_for  # type: ignore[operator]
        each = -((positive / t).exp() / ((positive / t).exp() + others)).log()
    counts = torch.tensor([len(history_of(w, user)) ** -user_power for user in u.tolist()])
    torch.testing.assert_close(terms["ranking"], (each * counts).sum() / counts.sum())
    t = w.model.config.temperature
    known = torch.unique(i)
    behaviour = losses.info_nce(out.user_id[u.sort()[0]], out.user_modal[u.sort()[0]], t) + losses.info_nce(
        out.item_id[known], out.item_modal[known], t
    )
    torch.testing.assert_close(terms["behaviour"], 0.5 * behaviour)
    propagated = w.model.propagated(w.content, out.parts)
    item_parts = propagated[:, i]
    user_parts = torch.stack([propagated[:, history_of(w, user)].mean(dim=1) for user in u.tolist()], dim=1)
    general = losses.info_nce(user_parts[..., :D].sum(0), item_parts[..., :D].sum(0), t)
    specific = sum(losses.info_nce(user_parts[m, :, D:], item_parts[m, :, D:], t) for m in range(2))
    torch.testing.assert_close(terms["user_item"], 0.25 * (general + specific))
    embeddings = (w.model.users.weight[u], w.model.items.weight[i], w.model.items.weight[j])
    norms = torch.stack([rows.pow(2).sum() for rows in embeddings]).sum()
    torch.testing.assert_close(terms["l2"], 0.1 * norms / 2 / len(u))


@torch.no_grad()
def test_combine() -> None:
    left, right = torch.randn(2, 5, D, generator=generator())
    cosine, product = (world(config=small(ranking=ranking)).model for ranking in ("softmax", "bpr"))
    torch.testing.assert_close(product.combine(left, right), left + right)
    combined = cosine.combine(left, right)
    torch.testing.assert_close(combined.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(combined * (left + right).norm(dim=1, keepdim=True), left + right)
    assert not cosine.combine(left, -left).any()  # no direction, and no division by zero


def test_content_losses_look_at_observed_cells_only() -> None:
    """Noise in the imputation of an unobserved cell changes none of them."""
    w = world()
    terms = w.model.content_losses(w.forward(), w.content, torch.arange(ITEMS), w.evidence.observed, generator())
    noisy = {
        name: torch.where(w.evidence.observed[:, [c]], block, torch.randn(block.shape, generator=generator()))
        for c, (name, block) in enumerate(w.content.features.items())
    }
    side = replace(w.content, features=noisy)
    out = w.model(w.graphs, side)
    again = w.model.content_losses(out, side, torch.arange(ITEMS), w.evidence.observed, generator())
    for key, term in terms.items():
        torch.testing.assert_close(term, again[key])


def test_generator_learns_from_the_given_cells_only() -> None:
    w = world()
    none = torch.zeros_like(w.evidence.observed)
    terms = w.model.content_losses(w.forward(), w.content, torch.arange(ITEMS), none, generator())
    assert terms["generation"] == 0
    assert terms["reconstruction"] > 0


# --- generation ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_complete_fills_and_keeps() -> None:
    w = world()
    preference = w.forward().preference
    filled = w.model.complete(w.evidence, preference)
    for column, name in enumerate(w.batch.names):
        have = w.batch.observed[:, column]
        assert torch.equal(filled[name][have], w.evidence.own[name][have])
        assert torch.equal(filled[name][~have], w.model.generate(name, w.evidence, preference).features[~have])


@torch.no_grad()
def test_generals_stand_in_with_the_mean() -> None:
    w = world()
    out = w.forward()
    w.model.update_mean_generals(out, w.batch.observed)
    for column, name in enumerate(w.batch.names):
        general = w.model.known_general(name, w.evidence, out.preference)
        have = w.batch.observed[:, column]
        torch.testing.assert_close(general[have], out.parts[column, have, :D])
        mean = out.parts[column, have, :D].mean(dim=0)
        torch.testing.assert_close(general[~have], mean.expand(int((~have).sum()), -1))


def test_a_graph_without_interactions() -> None:
    none = np.array([], dtype=np.int64)
    w = world()
    graphs = InteractionGraphs.build(none, none, USERS, ITEMS)
    out = w.model(graphs, w.content)
    assert out.cold.all()
    assert out.items.isfinite().all()
