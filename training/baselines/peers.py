"""Models of other papers, as kept libraries have them (the extra `peers`), beside which ours are measured.

VBPR, NeuMF and HFT are Cornac's, LightGCN is PyTorch Geometric's with its own BPR loss. Nothing of them is written here
but how they get our splits, and how their scores come back to our measures. A library is loaded when one of its models
is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from models.arrays import Array, Double, Rows
from models.imputers import impute, observed_means
from models.modality import ModalBatch
from training.baselines.ranking import BASELINES, SEED, Baseline, BaselineData, BaselineError, inner_products
from training.baselines.rating import RATING_BASELINES, BaselineRatings, Predict, RatingBaseline
from training.metrics import ScoreFunction, Scores, evaluate_ranking
from training.sampling import NegativeSampler

LIGHTGCN_BATCH = 2048
EVALUATE_EVERY = 5  # epochs of LightGCN
PATIENCE = 5  # evaluations without a better one
WORDS = 5000  # of HFT's vocabulary


def library(module: str, model: str) -> Any:
    """A module of one of the extra's libraries.

    Raises:
        BaselineError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BaselineError(f"{model} needs the extra peers: pip install 'lacuna[peers]' ({error})") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what a library prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# --- ranking ---------------------------------------------------------------------------------------------------------


def vbpr(
    data: BaselineData, *, size: int, learning_rate: float, penalty: float, epochs: int, batch_size: int = 1024
) -> ScoreFunction:
    """VBPR (He and McAuley, AAAI 2016) on the features of all modalities side by side, each of unit length; a missing
    cell is the modality's mean.

    Args:
        size: of the free factors, and again of those that are made of features.

    Raises:
        BaselineError: there are no features, or the extra is not installed.
    """
    models = library("cornac.models", "vbpr")
    if data.batch is None or not data.batch.features:
        raise BaselineError("vbpr needs features")
    model = models.VBPR(
        k=size,
        k2=size,
        n_epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        lambda_w=penalty,
        seed=SEED,
        verbose=False,
    )
    train = _interactions(data)
    train.add_modalities(item_image=library("cornac.data", "vbpr").ImageModality(features=_side_by_side(data.batch)))
    with _quiet():
        model.fit(train)
    users = np.concatenate([model.gamma_user, model.theta_user], axis=1)
    items = np.concatenate([model.gamma_item, model.theta_item], axis=1)
    bias = model.beta_item + model.visual_bias

    def scores(rows: Rows) -> Scores:
        table: Scores = users[rows] @ items.T + bias
        return table

    return scores


def neumf(data: BaselineData, *, size: int, learning_rate: float, epochs: int, batch_size: int = 1024) -> ScoreFunction:
    """NeuMF (He et al., WWW 2017): `size` factors, a tower of 4 size, 2 size, size units, four negatives a positive.

    Raises:
        BaselineError: the extra is not installed.
    """
    model = library("cornac.models", "neumf").NeuMF(
        num_factors=size,
        layers=(4 * size, 2 * size, size),
        num_epochs=epochs,
        batch_size=batch_size,
        lr=learning_rate,
        backend="pytorch",
        seed=SEED,
        verbose=False,
    )
    with _quiet():
        model.fit(_interactions(data))

    def scores(rows: Rows) -> Scores:
        table: Scores = np.stack([model.score(int(user)) for user in rows])
        return table

    return scores


def lightgcn_bpr(
    data: BaselineData, *, size: int, layers: int, learning_rate: float, penalty: float, epochs: int
) -> ScoreFunction:
    """LightGCN (He et al., SIGIR 2020) with one uniform negative a positive and BPR, stopped by validation Recall@20.

    Raises:
        BaselineError: the extra is not installed.
    """
    kind = library("torch_geometric.nn.models", "lightgcn-bpr").LightGCN
    torch.manual_seed(SEED)
    model = kind(data.n_users + data.n_items, size, layers)
    graph, optimiser = _edges(data), torch.optim.Adam(model.parameters(), lr=learning_rate)
    rng, sampler = np.random.default_rng(SEED), NegativeSampler(data.parts.train, data.n_users, data.n_items)
    best, found, waited = -1.0, inner_products(*_embeddings(model, graph, data.n_users)), 0
    for epoch in range(1, epochs + 1):
        _bpr_epoch(model, graph, data, sampler, rng, optimiser, penalty)
        if epoch % EVALUATE_EVERY and epoch < epochs:
            continue
        scores = inner_products(*_embeddings(model, graph, data.n_users))
        recall = evaluate_ranking(scores, data.parts.valid, data.parts.train)["recall@20"]
        best, found, waited = (recall, scores, 0) if recall > best else (best, found, waited + 1)
        if waited == PATIENCE:
            break
    return found


def _bpr_epoch(
    model: Any,
    graph: Tensor,
    data: BaselineData,
    sampler: NegativeSampler,
    rng: np.random.Generator,
    optimiser: torch.optim.Optimizer,
    penalty: float,
) -> None:
    order = rng.permutation(len(data.parts.train))
    for start in range(0, len(order), LIGHTGCN_BATCH):
        users, items = data.parts.train[order[start : start + LIGHTGCN_BATCH]].T
        nodes = [
            torch.from_numpy(rows) for rows in (users, items + data.n_users, sampler.sample(users, rng) + data.n_users)
        ]
        out = model.get_embedding(graph)
        user, positive, negative = (out[rows] for rows in nodes)
        loss = model.recommendation_loss(
            (user * positive).sum(1), (user * negative).sum(1), node_id=torch.cat(nodes), lambda_reg=penalty
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _embeddings(model: Any, graph: Tensor, n_users: int) -> tuple[Array, Array]:
    with torch.no_grad():
        out = model.get_embedding(graph).numpy()
    return out[:n_users], out[n_users:]


def _edges(data: BaselineData) -> Tensor:
    """The graph of users and items, every edge both ways `[2, edges]`."""
    users, items = torch.from_numpy(data.parts.train.T).clone()
    items = items + data.n_users
    return torch.stack([torch.cat([users, items]), torch.cat([items, users])])


def _interactions(data: BaselineData) -> Any:
    """The training part as Cornac's data set, with our rows as its."""
    return _cornac_set(data.parts.train[:, 0], data.parts.train[:, 1], None, data.n_users, data.n_items)


def _cornac_set(users: Rows, items: Rows, values: Double | None, n_users: int, n_items: int) -> Any:
    data = library("cornac.data", "this model")
    given = np.ones(len(users)) if values is None else values
    rows = list(zip(users.tolist(), items.tolist(), given.tolist(), strict=True))
    return data.Dataset.build(
        rows,
        global_uid_map={row: row for row in range(n_users)},
        global_iid_map={row: row for row in range(n_items)},
        seed=SEED,
    )


def _side_by_side(batch: ModalBatch) -> Array:
    """Centred features of all modalities `[items, ...]`, each of unit length."""
    means, filled = observed_means(batch), impute(batch, "mean")
    blocks = [F.normalize(filled[name] - means[name], dim=1).numpy() for name in batch.names]
    return np.concatenate(blocks, axis=1)


# --- ratings ---------------------------------------------------------------------------------------------------------


def hft(data: BaselineRatings, *, size: int, text: float, penalty: float, rounds: int) -> Predict:
    """Hidden Factors as Topics (McAuley and Leskovec, RecSys 2013): biases and factors, the items' tied to topics of
    their training reviews.

    Args:
        text: weight of the corpus' likelihood. rounds: of sampling topics and fitting the rest.

    Raises:
        BaselineError: the extra is not installed.
    """
    models, texts = library("cornac.models", "hft"), library("cornac.data.text", "hft")
    ratings, train = data.ratings, data.parts.train
    documents: list[list[str]] = [[] for _ in range(ratings.n_items)]
    for row in train.tolist():
        documents[ratings.item[row]].append(ratings.text[row])
    words = texts.TextModality(
        corpus=[" ".join(reviews) for reviews in documents],
        ids=list(range(ratings.n_items)),
        tokenizer=texts.BaseTokenizer(stop_words="english"),
        max_vocab=WORDS,
    )
    given = _cornac_set(
        ratings.user[train], ratings.item[train], ratings.value[train], ratings.n_users, ratings.n_items
    )
    words.build(id_map=given.iid_map)
    given.add_modalities(item_text=words)
    model = models.HFT(
        k=size,
        max_iter=rounds,
        lambda_text=text,
        l2_reg=penalty,
        vocab_size=words.vocab.size,
        seed=data.seed,
        verbose=False,
    )
    state = np.random.get_state()  # noqa: NPY002 - where HFT draws its topics from
    np.random.seed(data.seed)  # noqa: NPY002
    try:
        with _quiet():
            model.fit(given)
    finally:
        np.random.set_state(state)  # noqa: NPY002

    def predict(rows: Rows) -> Double:
        user, item = ratings.user[rows], ratings.item[rows]
        products = (model.gamma_u[user] * model.gamma_i[item]).sum(axis=1)
        predicted: Double = model.alpha + model.beta_u[user] + model.beta_i[item] + products
        return predicted

    return predict


PEERS: Mapping[str, Baseline] = {
    "vbpr": Baseline(
        vbpr,
        tuple(
            {"size": 32, "learning_rate": rate, "penalty": penalty, "epochs": epochs}
            for rate, penalty, epochs in product((0.005,), (0.01, 0.1), (20, 60))
        ),
        content=True,
    ),
    "neumf": Baseline(
        neumf,
        tuple({"size": size, "learning_rate": 0.001, "epochs": epochs} for size, epochs in product((16, 32), (10, 20))),
    ),
    "lightgcn-bpr": Baseline(
        lightgcn_bpr,
        tuple(
            {"size": 64, "layers": layers, "learning_rate": 0.005, "penalty": penalty, "epochs": 300}
            for layers, penalty in product((2, 3), (1e-4, 1e-2))
        ),
    ),
}
RATING_PEERS: Mapping[str, RatingBaseline] = {
    "hft": RatingBaseline(
        hft,
        tuple(
            {"size": 5, "text": text, "penalty": penalty, "rounds": 10} for text, penalty in product((0.1,), (0.1, 1.0))
        ),
    )
}
RANKERS: Mapping[str, Baseline] = {**BASELINES, **PEERS}
RATERS: Mapping[str, RatingBaseline] = {**RATING_BASELINES, **RATING_PEERS}
