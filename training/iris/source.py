"""What IRIS learns from, and how, whatever the form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.graph import InteractionGraphs
from models.imputers import impute
from models.iris.model import IRIS, Histories
from models.modality import ModalBatch
from models.vocabulary import Vocabulary
from training.held_out import HeldOut, PairScores
from training.splits import Pairs
from training.trainer import TrainerConfig

METRIC = "ndcg@10"
TRAINER = TrainerConfig(
    epochs=4, batch_size=256, learning_rate=3e-3, patience=4, smoothing=1, tolerance=0, metric=METRIC
)
PAPER_TRAINER = TrainerConfig(  # Adam at 1e-3, mini-batches of 512, stopped by the validation part
    epochs=60,
    batch_size=512,
    learning_rate=1e-3,
    constant_fraction=1.0,
    patience=5,
    smoothing=1,
    tolerance=0,
    metric=METRIC,
)
PAPER_TRAINING: dict[str, Any] = {"negatives": 4, "drop": 0.0}
PAPER_ONLY = frozenset({"optimiser", "batches", "embedding_rate", "l2_factors", "l2_interest", "l2_towers", "l2_share"})
FORM_SETTINGS = {  # what one form has and the other has not
    "paper": PAPER_ONLY,
    "lacuna": frozenset(
        {"members", "rank", "whitening", "drop", "from_als", "als_weight", "als_penalty", "als_epochs", "als_rate"}
        | {"factor_epochs", "factor_rate", "factor_users", "tuning_rate"}
    ),
}


def foreign_to(form: str) -> frozenset[str]:
    """Settings that a form has not."""
    return FORM_SETTINGS["lacuna" if form == "paper" else "paper"]


class IRISTraining(BaseModel):
    """How IRIS is trained, beside the trainer's settings, which are those of the interests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    negatives: float = Field(20.0, gt=0, description="K, negatives for each positive; 4 in form=paper")
    optimiser: Literal["adam", "adagrad", "sgd"] = Field("adam", description="in form=paper")
    batches: Literal["pairs", "targets"] = Field(
        "pairs",
        description="samples of a step in form=paper: any, or those of items drawn at random, which takes a fraction "
        "of the time",
    )
    embedding_rate: float | None = Field(
        None,
        gt=0,
        description="learning rate of P and Q in form=paper; null: that of all else. Where batches=targets, an item is "
        "a target in one step of an epoch alone",
    )
    l2_factors: float = Field(1e-7, ge=0, description="lambda_1 of eq. 12, of P and Q, in form=paper")
    l2_interest: float = Field(1e-5, ge=0, description="lambda_2, of W_1 to W_4")
    l2_towers: float = Field(1e-5, ge=0, description="lambda_3, of W_i2i, W_t2t and the layer before them")
    l2_share: float = Field(1e-5, ge=0, description="lambda_4, of W_share")
    drop: float = Field(0.4, ge=0, lt=1, description="share of a history's entries that a step does not see")
    from_als: int = Field(1, ge=0, description="members that start from the factors of ALS; the others at random")
    als_weight: float = Field(5.0, ge=1, description="alpha of ALS")
    als_penalty: float = Field(50.0, gt=0)
    factor_epochs: int = Field(30, ge=1, description="epochs of a member that starts at random")
    factor_rate: float = Field(3e-2, gt=0, description="learning rate of a member that starts at random")
    als_epochs: int = Field(24, ge=1, description="epochs of a member that starts from ALS")
    als_rate: float = Field(1e-2, gt=0)
    factor_users: int = Field(512, ge=1, description="users in a step of a member's training, at most")
    tuning_rate: float = Field(0.0, ge=0, description="learning rate of the factors beside the interests")
    shuffled: bool = Field(False, description="each item has the content of another one: the ablation of content")


@dataclass(frozen=True)
class TopNSource:
    """What IRIS learns from: a leave-one-out split and the items' content, missing cells filled or left out."""

    held_out: HeldOut
    content: ModalBatch
    users: Vocabulary
    items: Vocabulary

    def fit(self, module: IRIS) -> None:
        """Fit a model's projections, or scales, on the content."""
        module.fit_projections(self.content.features, self._present(module))

    def read_by(self, module: IRIS) -> tuple[dict[str, Tensor], Tensor]:
        """What a model reads of the content: signals by modality `[n, r_m]`, and which are present, bool `[n, M]`."""
        return module.signals(self.content.features), self._present(module)

    def _present(self, module: IRIS) -> Tensor:
        names = self.content.names
        return self.content.observed[:, [names.index(name) for name in module.names]]

    @property
    def histories(self) -> Histories:
        """All users' training items."""
        return histories_of(self.held_out.train, len(self.users), len(self.items))


def histories_of(pairs: Pairs, n_users: int, n_items: int) -> Histories:
    """The histories `[users, items]` that (user, item) pairs make."""
    ones = np.ones(len(pairs), np.float32)
    return Histories(sp.csr_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(n_users, n_items)))


def completed(
    content: ModalBatch, pairs: Pairs, n_users: int, *, generated: bool, shuffled: bool, seed: int
) -> ModalBatch:
    """Content as the training wants it: missing cells hold a ridge regression on what else is known, of the pairs
    `[k, 2]` alone, and count as present; or they are left out. Shuffled, each item has another one's."""
    if generated and content.names and not bool(content.observed.all()):
        graphs = InteractionGraphs.build(pairs[:, 0], pairs[:, 1], n_users, len(content))
        filled = content.observed.any(dim=0).expand_as(content.observed)
        content = ModalBatch(impute(content, "ridge", graphs), filled.clone())
    if shuffled:
        return content.select(torch.from_numpy(np.random.default_rng(seed).permutation(len(content))))
    return content


def table_scores(scores: Callable[[Tensor], Tensor], items: int, at_once: int) -> PairScores:
    """Scores of any items for users, out of one table of all that is made of the columns `[u, b]` of some targets."""
    parts = torch.split(torch.arange(items), at_once)
    table = torch.cat([scores(part) for part in parts], dim=1).numpy()
    return lambda users, items: table[users[:, None], items]
