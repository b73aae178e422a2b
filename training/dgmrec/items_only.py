"""DGMRec of a catalogue that nobody has touched yet, or too few: content alone, in closed form.

The generator's closed forms need no interactions; without an epoch of training its learned part stays untrusted, and
the modal parts have no weight. Every item, of the catalogue or new, has the principal components of its content as its
vector, so that similar items, and what users with a few events are recommended, follow from the items' likeness; with
each event more of it is folded in, as into any model. There is no axis of popularity: nobody knows what is popular.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import linalg
from models.dgmrec import expectation, inference
from models.dgmrec.config import DGMRecConfig
from models.dgmrec.serving import DGMRecServing, serving_tables
from models.modality import ModalBatch
from models.vocabulary import Vocabulary
from training.dgmrec.task import DGMRecTask, TopNData
from training.splits import Parts
from training.trainer import TrainerConfig

NO_WEIGHT = 1e-6  # of the modal parts, which mean nothing where nothing is trained


def items_only_model(
    content: ModalBatch, items: Vocabulary, config: DGMRecConfig, trainer: TrainerConfig
) -> tuple[DGMRecServing, dict[str, float]]:
    """The model with the tables that serving needs, and the quality of its generated features (`DGMRecTask.finish`)."""
    closed = {"collaborative": "lightgcn", "initialisation": "random", "linear_size": 0}
    closed |= {"modal_weight": NO_WEIGHT, "prediction_scale": 1.0}
    config = DGMRecConfig.model_validate(config.model_dump() | closed)
    nobody = np.empty((0, 2), np.int64)
    task = DGMRecTask(TopNData(content, Parts(nobody, nobody, nobody), 1, len(items)), config, trainer)
    metrics = task.finish()
    assert task.content is not None  # the configuration is modal
    model, out = task.module, task.embed()
    vectors = _set_content_map(task)
    fallback = task.propagated_features(task.content.evidence)
    out = replace(out, items=vectors, item_id=vectors)
    tables = serving_tables(model, task.interactions, task.content, out, vectors, task.user_factors, fallback)
    users = [name for name in tables if name.startswith("user_")]
    tables |= {name: tables[name][:0] for name in users}  # the task had one, who did nothing
    model.add_module("users", nn.Embedding(0, config.embedding_size))
    model.config = config.model_copy(update={"fallback_imputer": task.fallback_imputer[0]})
    return DGMRecServing(model.cpu(), tables, Vocabulary(), items), metrics


@torch.no_grad()
def _set_content_map(task: DGMRecTask) -> Tensor:
    """Let the map from content to vectors be onto the principal components; answers the vectors `[n, d]`."""
    assert task.content is not None
    model, features = task.module, task.content.features
    rows = inference.content_row(features)
    wide = rows.double()
    _, axes = linalg.principal_axes(wide.T @ wide, model.config.embedding_size)
    cold, count, start = model.cold_start, len(features), 0
    cold.pseudo_count.fill_(1)  # there is no mean number of users to take a share of
    for block in features.values():  # a row of content has each block at its own scale, the regressions have none
        part = slice(start, start := start + block.shape[1])
        cold.slopes[part, 1 : 1 + axes.shape[1]] = (axes[part] / block.shape[1] ** 0.5).to(rows.dtype)
    # Each modality's components, and its neighbours once they have users, count for what they are; words say nothing,
    # and neither does anything of popularity.
    cold.gram[:, : 2 * count, : 2 * count] = torch.eye(2 * count)
    cold.moments[expectation.TASTE, : 2 * count] = 1
    cold.moments[expectation.POPULARITY, : 2 * count] = NO_WEIGHT
    vectors: Tensor = rows @ axes.to(rows.dtype)
    return functional.pad(vectors, (0, model.config.embedding_size - vectors.shape[1]))
