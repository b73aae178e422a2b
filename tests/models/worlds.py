"""Small worlds for the tests of the models: items with linear content, users with histories, graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.dgmrec.config import DGMRecConfig
from models.dgmrec.model import DGMRec, Embeddings, ItemContent
from models.dgmrec.serving import DGMRecServing, serving_tables
from models.evidence import Evidence, collaborative_factors, gather_evidence, user_factors
from models.graph import Graph, InteractionGraphs, mean_graph, nearest, with_self_loops
from models.imputers import propagate_features
from models.modality import ModalBatch
from models.vocabulary import Vocabulary

USERS, ITEMS = 12, 30
SMALL = DGMRecConfig(embedding_size=8, layers=2, neighbours=3, rank=4, factors=4, fallback_imputer="multi-hop")
FALLBACK_SETTINGS = {
    "neigh-mean": {},
    "multi-hop": {"hops": 2},
    "pers-pagerank": {"restart": 0.3},
    "heat": {"time": 1.0},
}


def small(**changes: object) -> DGMRecConfig:
    """Settings of a small model."""
    return DGMRecConfig.model_validate(SMALL.model_dump() | changes)


def generator(seed: int = 0) -> torch.Generator:
    """A source of noise."""
    return torch.Generator().manual_seed(seed)


def linear_batch(
    dims: Sequence[int], *, n: int = ITEMS, missing: float = 0.3, noise: float = 0.1, seed: int = 0
) -> ModalBatch:
    """Every modality is a linear image of one latent vector of three numbers, plus a little noise and a mean."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 3))
    features = {
        f"m{number}": torch.from_numpy(
            (latent @ rng.normal(size=(3, dim)) + noise * rng.normal(size=(n, dim)) + 2).astype(np.float32)
        )
        for number, dim in enumerate(dims)
    }
    observed = torch.from_numpy(rng.random((n, len(dims))) >= missing)
    return ModalBatch({name: f * observed[:, [c]] for c, (name, f) in enumerate(features.items())}, observed)


def interactions(*, users: int = USERS, items: int = ITEMS, seed: int = 0, share: float = 0.2) -> InteractionGraphs:
    """Random histories. The last user has none, the one before a single item; nobody has touched the last item."""
    some = np.random.default_rng(seed).random((users, items)) < share
    some[-2:], some[:, -1] = False, False
    some[-2, items // 2] = True
    who, what = some.nonzero()
    return InteractionGraphs.build(who, what, users, items)


def knn(features: Tensor, observed: Tensor, k: int) -> Graph:
    """The item graph of one modality: observed items read from their nearest, the others from themselves."""
    rows = observed.nonzero().squeeze(1)
    found = torch.full((len(features), k), -1, dtype=torch.long)
    found[rows], _ = nearest(features[rows], features, k, allowed=observed, exclude=rows)
    return Graph(with_self_loops(mean_graph(found, len(features))))


def neighbour_graph_of(evidence: Evidence, k: int, without: str | None = None) -> Graph:
    """Neighbours by the first modality (other than `without`); the items that lack it have none."""
    found = torch.full((len(evidence), k), -1, dtype=torch.long)
    column = next((c for c, name in enumerate(evidence.names) if name != without), None)
    if column is None:
        return Graph(mean_graph(found, len(evidence)))
    name = evidence.names[column]
    rows = evidence.observed[:, column].nonzero().squeeze(1)
    found[rows], _ = nearest(evidence.own[name][rows], evidence.own[name], k, exclude=rows)
    return Graph(mean_graph(found, len(evidence)))


@dataclass(frozen=True)
class World:
    """A model with everything that a forward pass reads."""

    model: DGMRec
    batch: ModalBatch
    graphs: InteractionGraphs
    content: ItemContent

    @property
    def evidence(self) -> Evidence:
        return self.content.evidence

    def forward(self) -> Embeddings:
        out: Embeddings = self.model(self.graphs, self.content)
        return out


def world(dims: Sequence[int] = (6, 5), config: DGMRecConfig = SMALL, batch: ModalBatch | None = None) -> World:
    """A fitted but untrained model over `linear_batch(dims)` (or the batch given)."""
    batch = linear_batch(dims) if batch is None else batch
    graphs = interactions(items=len(batch))
    model = DGMRec(config, batch.specs, USERS, len(batch))
    model.fit_projections(batch)
    factors = collaborative_factors(graphs, user_factors(graphs, config.factors))
    evidence = gather_evidence(model.project(batch), batch.observed, graphs, factors)
    model.fit_base(evidence, batch.observed)
    content = ItemContent(
        features=evidence.own,
        evidence=evidence,
        graphs={
            name: knn(evidence.own[name], batch.observed[:, column], config.neighbours)
            for column, name in enumerate(batch.names)
        },
        neighbour_graph=neighbour_graph_of(evidence, config.neighbours),
        neighbour_graph_without={
            name: neighbour_graph_of(evidence, config.neighbours, without=name) for name in batch.names
        },
    )
    return World(model, batch, graphs, content)


def online_of(w: World) -> DGMRecServing:
    """The model of a world with its serving tables."""
    config = w.model.config
    out, prediction = w.model.final_embeddings(w.forward(), w.content, w.graphs.item_degree)
    factors, imputer = user_factors(w.graphs, config.factors), config.fallback_imputer
    fallback = propagate_features(w.evidence.own, w.batch.observed, w.graphs, imputer, FALLBACK_SETTINGS[imputer])
    tables = serving_tables(w.model, w.graphs, w.content, out, prediction, factors, fallback)
    users, items = Vocabulary(f"u{row}" for row in range(USERS)), Vocabulary(f"i{row}" for row in range(ITEMS))
    return DGMRecServing(w.model, tables, users, items)
