"""Other papers' models from the libraries of the extra `peers`: what they learn, and what is said without them."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.training.test_rating_baselines import data as rated
from tests.training.tiny import ITEMS, USERS, checkerboard
from training.baselines.peers import PEERS, RATING_PEERS, library, vbpr
from training.baselines.ranking import Baseline, BaselineData, BaselineError, popularity, tune
from training.baselines.rating import RATING_BASELINES, RatingBaseline, rmse, tune_rating_baseline
from training.metrics import evaluate_ranking

NEEDED = {"vbpr": "cornac", "neumf": "cornac", "lightgcn-bpr": "torch_geometric", "hft": "cornac"}
SMALL: dict[str, dict[str, float]] = {  # the settings of a grid are too slow learners for so little data
    "neumf": {"size": 8, "learning_rate": 0.01, "epochs": 20, "batch_size": 32}
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries


@pytest.fixture(scope="module")
def data() -> BaselineData:
    tiny = checkerboard()
    return BaselineData(tiny.parts, USERS, ITEMS, tiny.batch)


def need(model: str) -> None:
    """Skip where the extra is not installed."""
    pytest.importorskip(NEEDED[model])


@pytest.mark.parametrize("model", PEERS)
def test_a_peer_ranks_better_than_popularity(data: BaselineData, model: str) -> None:
    need(model)
    peer = PEERS[model]
    tuned = tune(Baseline(peer.fit, ({**peer.grid[0], **SMALL.get(model, {})},)), data)
    assert tuned.scores(np.array([3, 0])).shape == (2, ITEMS)
    np.testing.assert_allclose(tuned.scores(np.array([3, 0]))[1], tuned.scores(np.array([0]))[0], rtol=1e-4, atol=1e-6)
    alone = evaluate_ranking(popularity(data), data.parts.test, data.parts.train)["recall@20"]
    found = evaluate_ranking(tuned.scores, data.parts.test, data.parts.train)["recall@20"]
    assert found > alone + 0.1


@pytest.mark.parametrize("model", PEERS)
def test_a_peer_is_the_same_again(data: BaselineData, model: str) -> None:
    need(model)
    setting = {**PEERS[model].grid[0], "epochs": 2}
    first, second = (PEERS[model].fit(data, **setting)(np.arange(USERS)) for _ in range(2))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_vbpr_needs_features(data: BaselineData) -> None:
    need("vbpr")
    with pytest.raises(BaselineError, match="needs features"):
        vbpr(replace(data, batch=None), size=4, learning_rate=0.01, penalty=0.0, epochs=1)


def test_hft_learns_from_ratings_and_reviews() -> None:
    need("hft")
    world = rated()
    truth = world.ratings.value[world.parts.test]
    peer = RATING_PEERS["hft"]
    state = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    found = tune_rating_baseline(RatingBaseline(peer.fit, ({**peer.grid[0], "rounds": 2},)), world)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]  # noqa: NPY002
    alone = tune_rating_baseline(RATING_BASELINES["offset"], world)
    assert rmse(truth, found.predict(world.parts.test)) < 0.9 * rmse(truth, alone.predict(world.parts.test))


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cornac.models", None)  # as Python marks what cannot be imported
    with pytest.raises(BaselineError, match=r"vbpr needs the extra peers: pip install 'lacuna\[peers\]'"):
        library("cornac.models", "vbpr")
