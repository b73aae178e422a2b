"""The forms of the collaborative part: closed form, hidden histories, and what is folded in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.nn import functional

from models.bundle import Bundle
from models.dgmrec import linear
from models.dgmrec.collaborative import Histories
from models.dgmrec.linear import ease_weights, messages_and_targets
from models.dgmrec.model import DGMRec
from models.dgmrec.serving import DGMRecServing
from models.graph import InteractionGraphs, Matrix
from tests.models.test_dgmrec_serving import NEW_ITEM, NEW_USER, save
from tests.models.worlds import ITEMS, USERS, interactions, online_of, small, world

PENALTY = 3.0
FORMS = ("autoencoder", "linear")


def histories(users: int = 60, items: int = 15) -> Matrix:
    return interactions(users=users, items=items, share=0.4).binary.matrix


# --- closed form ---------------------------------------------------------------------------------------------------


def test_ease_is_the_best_linear_map_without_a_diagonal() -> None:
    """Its definition: each column is the ridge regression of an item on all others."""
    table = histories().toarray().astype(np.float64)
    weights = ease_weights(sp.csr_array(table), PENALTY)
    for item in range(table.shape[1]):
        others = np.delete(np.arange(table.shape[1]), item)
        gram = table[:, others].T @ table[:, others] + PENALTY * np.eye(len(others))
        expected = np.linalg.solve(gram, table[:, others].T @ table[:, item])
        np.testing.assert_allclose(weights[others, item], expected, atol=1e-5)
        assert weights[item, item] == 0


@pytest.mark.parametrize("form", ["dense", "by users", "cut"])
def test_messages_and_targets_score_as_ease(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rank that nothing is cut off at: a user's scores are proportional, by one factor for all users."""
    monkeypatch.setattr(linear, "DENSE_ITEMS", 0 if form == "cut" else 10_000)
    monkeypatch.setattr(linear, "FEW_USERS", 100 if form == "by users" else 0)
    if form == "cut":
        monkeypatch.setattr(linear, "CUT_RANK", 59)  # fewer than there are users
    matrix = histories()  # nobody has touched the last item: its rank is one less than its width
    messages, targets = messages_and_targets(matrix, PENALTY, matrix.shape[1])
    scores, expected = matrix @ messages @ targets.T, matrix @ ease_weights(matrix, PENALTY)
    factor = float((scores * expected).sum() / (expected**2).sum())
    assert factor > 0
    np.testing.assert_allclose(scores, factor * expected, atol=1e-4 * np.abs(scores).max())


def test_targets_and_users_have_a_length_of_one() -> None:
    matrix = histories()
    messages, targets = messages_and_targets(matrix, PENALTY, 8)
    np.testing.assert_allclose(np.linalg.norm(targets, axis=1), 1, atol=1e-5)
    assert not messages[:, -1].any()
    degree = np.asarray(matrix.sum(axis=1)).ravel()
    users = (matrix @ messages)[degree > 0] / np.sqrt(degree[degree > 0, None])
    assert (users**2).sum(axis=1).mean() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (1, 5), (5, 1)])
def test_small_catalogues(shape: tuple[int, int]) -> None:
    messages, targets = messages_and_targets(sp.csr_array(np.ones(shape, np.float32)), PENALTY, 6)
    assert messages.shape == targets.shape == (shape[1], 6)
    assert np.isfinite(messages).all()
    assert np.isfinite(targets).all()
    nothing = messages_and_targets(sp.csr_array(shape, dtype=np.float32), PENALTY, 6)
    assert not nothing[0].any()


# --- histories -----------------------------------------------------------------------------------------------------


def test_thinned_histories_hide_a_share() -> None:
    graphs = interactions(users=80, items=60)
    whole = graphs.binary.matrix.toarray()
    thinned = Histories.thinned(graphs, 0.4, np.random.default_rng(0))
    kept = thinned.mean.matrix.toarray() > 0
    assert not (kept & (whole == 0)).any()
    assert 0.5 < kept.sum() / whole.sum() < 0.7
    np.testing.assert_array_equal(thinned.degree.numpy(), kept.sum(axis=1))
    rows = kept.any(axis=1)
    np.testing.assert_allclose(thinned.mean.matrix.toarray().sum(axis=1), rows, atol=1e-6)
    users, items = (torch.from_numpy(rows) for rows in whole.nonzero())
    np.testing.assert_array_equal(thinned.holds(users, items).numpy(), kept[whole.nonzero()])
    assert Histories.whole(graphs).holds(users, items).all()


# --- fold-in -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_a_user_is_the_sum_of_messages(form: str, tmp_path: Path) -> None:
    """Of training and of serving alike, also of one whom training never saw."""
    w = world(config=small(collaborative=form))
    w.model.initialise(w.graphs)
    out = w.forward()
    online = DGMRecServing.load(Bundle.load(save(online_of(w), tmp_path / "bundle")))
    table = w.graphs.binary.matrix.toarray() > 0
    for user in range(USERS):
        messages = online.tables["item_message"][table[user]]
        for name in (f"u{user}", NEW_USER, None):
            np.testing.assert_allclose(online.user_id(name, messages), out.user_id[user], atol=1e-5)
    assert not any(name.startswith("users") for name in online.model.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_new_users_and_items_pass_on_what_the_maps_say(form: str) -> None:
    w = world(config=small(collaborative=form))
    w.model.initialise(w.graphs)
    online = online_of(w)
    out = w.forward()
    own = out.user_id[0].numpy()
    np.testing.assert_allclose(
        online.user_message(NEW_USER, own, 4), online.tables["user_message"][0], rtol=1e-4, atol=1e-6
    )
    expected, folded, count = np.ones((2, len(own)), np.float32), np.zeros((2, len(own)), np.float32), np.array([0, 4])
    messages = online.item_messages(expected, folded, count.astype(np.float32))
    told = online.tables["id_length"] * expected[:1] @ online.tables["message_map"]
    np.testing.assert_allclose(messages[0], told[0], rtol=1e-4, atol=1e-6)
    assert online.trained_row(NEW_ITEM) is None


@torch.no_grad()
def test_the_maps_bring_an_item_back_that_its_users_tell_of() -> None:
    """Two tastes: an item's users alone say what its target and its message are about."""
    rng = np.random.default_rng(0)
    taste = rng.integers(2, size=200)
    likes = rng.random((200, 40)) < np.where(taste[:, None] == np.arange(40) % 2, 0.5, 0.02)
    graphs = InteractionGraphs.build(*likes.nonzero(), *likes.shape)
    model = DGMRec(small(collaborative="linear", modal=False), (), *likes.shape)
    model.initialise(graphs)
    part, tables = model.collaborate(graphs), model.fold_in_tables(graphs)
    for item in range(40):
        users = np.flatnonzero(likes[:, item])
        target = tables["user_message"][users].sum(dim=0) / len(users) ** 0.5
        message = target @ tables["message_map"]
        assert torch.cosine_similarity(target, part.items[item], dim=0) > 0.8
        told = part.items @ message
        assert told[item % 2 :: 2].min() > told[1 - item % 2 :: 2].max()


@torch.no_grad()
def test_the_linear_form_beside_the_autoencoder(tmp_path: Path) -> None:
    """Scores are the weighted sum of both cosines; the components stay as the closed form has them."""
    config = small(collaborative="autoencoder", embedding_size=12, linear_size=4, linear_weight=3.0)
    w = world(config=config)
    w.model.initialise(w.graphs)
    messages, targets = messages_and_targets(w.graphs.binary.matrix, config.linear_penalty, 4)
    out, online = w.forward(), DGMRecServing.load(Bundle.load(save(online_of(w), tmp_path / "bundle")))
    np.testing.assert_array_equal(out.item_message[:, -4:], messages)
    joint = (
        functional.normalize((out.user_id + out.user_modal)[:, :-4], dim=1)
        @ functional.normalize((out.item_id + out.item_modal)[:, :-4], dim=1).T
    )
    linear_cosine = functional.normalize(out.user_id[:, -4:], dim=1) @ torch.from_numpy(targets).T
    torch.testing.assert_close(out.users @ out.items.T, (joint + 3 * linear_cosine) / 4, atol=1e-5, rtol=1e-4)
    row = int(out.histories.degree.argmax())
    history = np.flatnonzero(w.graphs.binary.matrix.toarray()[row])
    user_id = online.user_id(NEW_USER, online.tables["item_message"][history])
    np.testing.assert_allclose(online.combine(user_id, out.user_modal[row].numpy()), out.users[row], atol=1e-5)


def test_the_linear_components_are_not_trained() -> None:
    w = world(config=small(collaborative="autoencoder", embedding_size=12, linear_size=4, linear_weight=0.0))
    w.model.initialise(w.graphs)
    (w.forward().users @ w.forward().items.T).square().sum().backward()
    for embedding in (w.model.messages, w.model.items):
        assert not embedding.weight.grad[:, -4:].any()
        assert embedding.weight.grad[:, :-4].any()


@pytest.mark.parametrize(
    "changes", [{"collaborative": "lightgcn"}, {"ranking": "bpr"}, {"linear_size": 7}, {"linear_size": 1}]
)
def test_where_the_linear_form_cannot_stand(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="linear_size"):
        small(**{"collaborative": "autoencoder", "linear_size": 4, **changes})


@torch.no_grad()
def test_the_linear_form_stays_as_it_is() -> None:
    w = world(config=small(collaborative="linear", linear_penalty=PENALTY))
    w.model.initialise(w.graphs)
    messages, targets = messages_and_targets(w.graphs.binary.matrix, PENALTY, w.model.config.embedding_size)
    part = w.model.collaborate(w.graphs)
    assert torch.equal(part.messages, torch.from_numpy(messages))
    assert torch.equal(part.items, torch.from_numpy(targets))
    assert not part.messages.requires_grad
    assert len(part.items) == ITEMS
