"""DGMRec with `form=paper` against the paper's equations in plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.dgmrec.config import PAPER, DGMRecConfig
from models.dgmrec.model import DGMRec
from models.modality import ModalitySpec
from tests.models.worlds import World, generator, online_of, world

Array = NDArray[np.float64]
D, T = 8, 0.2
WEIGHTS = {"club": 0.01, "nce": 0.01, "reconstruction": 0.1, "generation": 0.5, "behaviour": 0.01, "user_item": 0.01}


def paper(**changes: Any) -> DGMRecConfig:
    small = {"embedding_size": D, "neighbours": 3, "factors": 4, "fallback_imputer": "multi-hop"}
    return DGMRecConfig(form="paper", **(small | changes))


@pytest.fixture(params=["projected", "free"])
def w(request: pytest.FixtureRequest) -> World:
    made = world(config=paper(preference=request.param))
    with torch.no_grad():
        for name in made.model.names:
            made.model.tower(name).mean_general.copy_(torch.linspace(0.2, 0.8, D))
    return made


def np_of(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def linear(layer: Any) -> Callable[[Array], Array]:
    weight, bias = np_of(layer.weight), np_of(layer.bias)
    return lambda rows: rows @ weight.T + bias


def mlp(layers: Any) -> Callable[[Array], Array]:
    first, last = linear(layers[0]), linear(layers[2])
    return lambda rows: last(np.tanh(first(rows)))


def sigmoid(rows: Array) -> Array:
    return 1 / (1 + np.exp(-rows))


def info_nce(left: Array, right: Array) -> float:
    left, right = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (left, right))
    logits = np.exp(left @ right.T / T)
    return float(-np.log(np.diag(logits) / logits.sum(axis=1)).mean())


class Equations:
    """Everything that the equations name, of a world."""

    def __init__(self, w: World) -> None:
        model, self.w = w.model, w
        matrix = w.graphs.binary.matrix.toarray().astype(np.float64)  # R, [U, n]
        self.history = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        of_items = (matrix / np.maximum(matrix.sum(axis=0, keepdims=True), 1)).T
        # Eq. 18: LightGCN, the mean over the layers.
        scale = np.sqrt(np.maximum(matrix.sum(axis=1), 1)[:, None] * np.maximum(matrix.sum(axis=0), 1))
        users, items = [np_of(model.users.weight)], [np_of(model.items.weight)]
        for _ in range(3):
            users, items = [*users, (matrix / scale) @ items[-1]], [*items, (matrix / scale).T @ users[-1]]
        self.user_id, self.item_id = np.mean(users, axis=0), np.mean(items, axis=0)
        self.observed = w.batch.observed.numpy()
        self.x = [np_of(feature) for feature in w.batch.features.values()]
        # Eq. 2.
        if model.config.preference == "free":
            self.taste = np_of(model.preferences)
        else:
            self.taste = np.stack([np.tanh(linear(model.tower(m).preference)(self.user_id)) for m in model.names])
        self.p = np.stack([of_items @ own for own in self.taste])
        # Eq. 1 and 3.
        shared, towers = linear(model.general), [model.tower(m) for m in model.names]
        self.g = np.stack([sigmoid(shared(np.tanh(linear(t.encode)(x)))) for t, x in zip(towers, self.x, strict=True)])
        self.s = np.stack([sigmoid(linear(t.specific)(x)) for t, x in zip(towers, self.x, strict=True)])
        self.g, self.s = self.g * sigmoid(self.p), self.s * sigmoid(self.p)
        # Eq. 5-6.
        graphs = [w.content.graphs[m].matrix.toarray() for m in model.names]
        self.gg, self.ss = (
            np.stack([a @ rows for a, rows in zip(graphs, own, strict=True)]) for own in (self.g, self.s)
        )
        # Eq. 17-18.
        self.modal = (self.gg.mean(axis=0) + self.ss.sum(axis=0)) / (1 + len(self.ss))
        self.users = self.user_id + self.history @ self.modal
        self.items = self.item_id + self.modal

    def generated(self, m: int) -> tuple[Array, Array, Array]:
        """General and specific parts and the feature of a modality (eq. 12-13, 15)."""
        tower = self.w.model.tower(self.w.model.names[m])
        others = [
            np.where(self.observed[:, [o]], self.g[o], np_of(self.w.model.tower(self.w.model.names[o]).mean_general))
            for o in range(len(self.g))
            if o != m
        ]
        g = sigmoid(mlp(tower.general_generator)(np.concatenate(others, axis=1)))
        s = sigmoid(mlp(tower.specific_generator)(self.p[m]))
        return g, s, mlp(tower.decode)(np.concatenate([g, s], axis=1))


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=2e-4, atol=2e-5)


def test_forward(w: World) -> None:
    out, e = w.forward(), Equations(w)
    close(np_of(out.preference), e.p)
    close(np_of(out.parts), np.concatenate([e.g, e.s], axis=2))
    close(np_of(out.users), e.users)
    close(np_of(out.items), e.items)


def test_generation(w: World) -> None:
    e, preference = Equations(w), w.forward().preference
    for m, name in enumerate(w.model.names):
        g, s, x = e.generated(m)
        learned = w.model.learned(name, w.evidence, preference)
        close(np_of(learned.general), g)
        close(np_of(learned.specific), s)
        close(np_of(w.model.generate(name, w.evidence, preference).features), x)
        completed = w.model.complete(w.evidence, preference)[name]
        close(np_of(completed), np.where(e.observed[:, [m]], e.x[m], x))


def test_losses_of_the_ranking(w: World) -> None:
    e = Equations(w)
    pairs = np.argwhere(e.history > 0)[:6]
    u, i = pairs.T
    j = np.array([9, 10, 11, 12, 13, 14])
    terms = w.model.ranking_losses(w.forward(), *map(torch.from_numpy, (u, i, j)), w.graphs, w.content)
    gap = (e.users[u] * (e.items[i] - e.items[j])).sum(axis=1)
    close(terms["ranking"].item(), -np.log(sigmoid(gap)).mean())
    uu, ii = np.unique(u), np.unique(i)
    behaviour = info_nce(e.user_id[uu], (e.history @ e.modal)[uu]) + info_nce(e.item_id[ii], e.modal[ii])
    close(terms["behaviour"].item(), WEIGHTS["behaviour"] * behaviour)
    general = info_nce((e.history @ e.gg.sum(axis=0))[u], e.gg.sum(axis=0)[i])
    specific = sum(info_nce((e.history @ own)[u], own[i]) for own in e.ss)
    close(terms["user_item"].item(), WEIGHTS["user_item"] * (general + specific))


def test_losses_of_the_content(w: World) -> None:
    e, rows = Equations(w), np.arange(5, 20)
    cells = torch.from_numpy(e.observed)
    terms = w.model.content_losses(w.forward(), w.content, torch.from_numpy(rows), cells, generator())
    both = rows[e.observed[rows].all(axis=1)]
    close(terms["nce"].item(), WEIGHTS["nce"] * info_nce(e.g[0][both], e.g[1][both]))
    reconstruction = generation = 0.0
    for m, name in enumerate(w.model.names):
        have = rows[e.observed[rows, m]]
        decoded = mlp(w.model.tower(name).decode)(np.concatenate([e.g[m], e.s[m]], axis=1))
        reconstruction += ((decoded - e.x[m])[have] ** 2).mean()
        g, s, _ = e.generated(m)
        generation += ((g - e.g[m])[have] ** 2).mean() + ((s - e.s[m])[have] ** 2).mean()
    close(terms["reconstruction"].item(), WEIGHTS["reconstruction"] * reconstruction)
    close(terms["generation"].item(), WEIGHTS["generation"] * generation)


def test_alignment_bends_both_sides(w: World) -> None:
    u, i = torch.tensor([0, 1]), torch.tensor([3, 4])
    w.model.ranking_losses(w.forward(), u, i, i, w.graphs, w.content)["behaviour"].backward()  # type: ignore[no-untyped-call]
    assert w.model.users.weight.grad.any()
    assert w.model.tower("m0").specific.weight.grad.any()
    assert w.model.weight.grad is None  # modalities weigh alike


def test_vectors_are_not_changed_after_training(w: World) -> None:
    out = w.forward()
    final, prediction = w.model.final_embeddings(out, w.content, w.graphs.item_degree)
    assert torch.equal(final.items, out.items)
    assert not prediction.any()


@torch.no_grad()
def test_served_like_it_was_trained(w: World) -> None:
    online, e = online_of(w), Equations(w)
    warm = np.flatnonzero(e.history.any(axis=0))
    modal = e.modal.astype(np.float32)
    close(online.warm_vectors(warm, modal[warm]), e.items[warm])
    known = np.flatnonzero(e.history.any(axis=1))
    for user in known[:3].tolist():
        messages = online.tables["item_message"][np.flatnonzero(e.history[user])]
        user_id = online.user_id(f"u{user}", messages)
        close(user_id, e.user_id[user])
        close(online.user_preference(f"u{user}", user_id), e.taste[:, user])
    stranger = online.user_preference("somebody", user_id)
    everybody = e.taste[:, known].mean(axis=1)
    close(stranger, everybody if w.model.config.preference == "free" else online.preference(user_id[None])[:, 0])
    close(online.mean_feature("m0"), np_of(w.model.tower("m0").projection.mean))
    assert online.generator("m0") == "dgmrec"
    assert not online.expects_by_regression


def test_lambda_is_honoured_to_the_end() -> None:
    assert paper(refine_weight=0.4).final_refinement == 0.4
    assert DGMRecConfig(refine_weight=0.4).final_refinement == 1.0
    assert paper(refine_weight=0).final_refinement == DGMRecConfig(refine_weight=0).final_refinement == 0


def test_settings_stand_over_the_form() -> None:
    assert paper(ranking="softmax").ranking == "softmax"
    assert DGMRecConfig.model_validate(paper(layers=1).model_dump()).layers == 1
    assert DGMRecConfig().model_dump().keys() >= PAPER.keys()


def test_one_modality_has_none_to_be_generated_from() -> None:
    with pytest.raises(ValueError, match="two modalities"):
        DGMRec(paper(), [ModalitySpec("m0", 6)], 3, 4)
