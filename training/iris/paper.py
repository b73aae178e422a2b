"""IRIS as the paper trains it: latent factors and interests together from the start, the log loss over K sampled
negatives for each positive, with L2 (eq. 12). Whatever is missing is zero; nothing starts from another model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor
from torch.nn import init

from models.arrays import Rows
from models.iris.config import IRISConfig
from models.iris.model import IRIS
from training.held_out import PairScores, measured
from training.iris.source import IRISTraining, TopNSource, table_scores
from training.sampling import NegativeSampler
from training.trainer import TrainerConfig, falling_share

FACTOR_SPREAD = 0.01  # of the embeddings at the start
TARGETS_AT_ONCE = 512  # of validation

OPTIMISERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


class PaperTask:
    """The paper's training for the trainer."""

    def __init__(self, source: TopNSource, module: IRIS, config: IRISTraining, trainer: TrainerConfig) -> None:
        self.module = module
        self._source, self._config, self._trainer = source, config, trainer
        self._histories = source.histories
        self._sampler = NegativeSampler(source.held_out.train, len(source.users), len(source.items))
        self._signals, self._present = source.read_by(module)
        factors = [module.p, module.q]
        others = [tensor for name, tensor in module.named_parameters() if name not in ("p", "q", "item_bias")]
        self._rates = (config.embedding_rate or trainer.learning_rate, trainer.learning_rate)
        groups = [{"params": group, "lr": rate} for group, rate in zip((factors, others), self._rates, strict=True)]
        self._optimizer = OPTIMISERS[config.optimiser](groups)  # without the item bias: eq. 5 has none

    def train_epoch(self, epoch: int, progress: Callable[[int, int], None]) -> dict[str, float]:
        """One pass over the positives, each with new negatives."""
        rng = np.random.default_rng((self._trainer.seed, epoch))
        samples = self.samples(rng)
        steps = -(-len(samples) // self._trainer.batch_size)
        total = penalty = 0.0
        for done, batch in enumerate(np.array_split(samples, steps)):
            share = falling_share((epoch - 1 + done / steps) / self._trainer.epochs, self._trainer.constant_fraction)
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * share
            users, targets, labels = torch.from_numpy(batch.T.copy())
            log_loss = sampled_log_loss(self.scores(users, targets), labels.float())
            l2 = l2_penalty(self.module, self._config)
            self._optimizer.zero_grad()
            (log_loss + l2).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total, penalty = total + log_loss.item(), penalty + l2.item()
            progress(done + 1, steps)
        return {"loss": (total + penalty) / steps, "log_loss": total / steps, "l2": penalty / steps}

    def samples(self, rng: np.random.Generator) -> Rows:
        """User, target and label of every sample of an epoch, `[(1 + K) positives, 3]`, in the order of its steps."""
        pairs, k = self._source.held_out.train, int(self._config.negatives)
        negatives = self._sampler.sample(pairs[:, 0], rng, k)
        users = np.repeat(pairs[:, 0], 1 + k)
        targets = np.concatenate([pairs[:, 1:], negatives], axis=1).reshape(-1)
        labels = np.tile(np.arange(1 + k) == 0, len(pairs)).astype(np.int64)
        order = rng.permutation(len(users))
        if self._config.batches == "targets":
            place = rng.permutation(len(self._source.items))
            order = order[np.argsort(place[targets[order]], kind="stable")]
        samples: Rows = np.stack([users, targets, labels], axis=1)[order]
        return samples

    def scores(self, users: Tensor, targets: Tensor) -> Tensor:
        """r_uj of the pairs `[s]`."""
        if self._config.batches == "targets":  # few targets, all users: the interests are shared by the users
            columns, place = torch.unique(targets, return_inverse=True)
            return self._table(columns)[users, place]
        here = torch.unique(torch.cat([self._histories.entries(torch.unique(users))[1], targets]))
        roles = self.module.roles({n: signal[here] for n, signal in self._signals.items()}, self._present[here])
        whole = [role.new_zeros(len(self._present), role.shape[1]).index_copy(0, here, role) for role in roles]
        return self.module.pair_score(self._histories, users, targets, (whole[0], whole[1]))

    def _table(self, columns: Tensor) -> Tensor:
        """r_uj of all users and some targets `[u, b]`."""
        roles = self.module.roles(self._signals, self._present)
        return self.module.score(self._histories, self.module.similarities(*roles, columns))

    def validate(self) -> dict[str, float]:
        """Hit rates and NDCG on the validation part."""
        return measured(self.scorer(), self._source.held_out.valid)

    @torch.no_grad()
    def scorer(self) -> PairScores:
        """Scores of any items for users, after their training histories."""
        roles = self.module.roles(self._signals, self._present)

        def scores(columns: Tensor) -> Tensor:
            return self.module.score(self._histories, self.module.similarities(*roles, columns))

        return table_scores(scores, len(self._source.items), TARGETS_AT_ONCE)

    def state(self) -> dict[str, Any]:
        """The optimiser's state; what is random depends on the epoch alone."""
        return {"optimizer": self._optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self._optimizer.load_state_dict(state["optimizer"])


def paper_module(source: TopNSource, config: IRISConfig, seed: int) -> IRIS:
    """A model as it starts: Xavier's initialisation, biases of 0, embeddings of N(0, 0.01)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = IRIS(config, source.content.specs, len(source.items))
        for name, tensor in module.named_parameters():
            if name in ("p", "q"):
                init.normal_(tensor, 0, FACTOR_SPREAD)
            elif name == "h":
                init.xavier_uniform_(tensor[None])
            elif tensor.dim() == 2:
                init.xavier_uniform_(tensor)
            else:
                init.zeros_(tensor)
    source.fit(module)
    return module


def sampled_log_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean log loss of samples `[s]`, whose probability is the sigmoid of their score. (eq. 12)"""
    return F.binary_cross_entropy_with_logits(scores, labels)


def l2_penalty(module: IRIS, config: IRISTraining) -> Tensor:
    """The squared Frobenius norms of eq. 12, each group by its weight: P and Q; W_1 to W_4; W_i2i, W_t2t with the layer
    before; W_share."""
    readers = [*module.as_history.parameters(), *module.as_target.parameters()]
    towers = [*module.towers.own.parameters(), *(t for t in module.towers.first.parameters() if t.dim() == 2)]
    share = [] if module.towers.share is None else [module.towers.share.weight]
    groups = (
        (config.l2_factors, [module.p, module.q]),
        (config.l2_interest, readers),
        (config.l2_towers, towers),
        (config.l2_share, share),
    )
    terms = [weight * tensor.square().sum() for weight, tensors in groups if weight for tensor in tensors]
    return torch.stack(terms).sum() if terms else module.p.new_zeros(())
