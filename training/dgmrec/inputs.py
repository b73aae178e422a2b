"""What each modality is generated from: whether from means of itself, and in how many folds these are cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from models.dgmrec.model import DGMRec
from models.evidence import Evidence, cross_fitted_means, gather_evidence
from models.graph import InteractionGraphs

HELD_CELLS = 0.1  # share of the observed cells in a group
MAX_ROUNDS, CELLS_WANTED = 5, 2000  # at most so many groups of hidden cells, for so many of each modality
FOLDS = (0, 2, 3)

Option = TypeVar("Option")
Blocks = Mapping[str, Tensor]


@dataclass(frozen=True)
class HeldOutScores:
    """Of predictions of hidden cells, the cosines `[k]` with the truth.

    `full` from all that is known of their items, `interactions` from their users alone, `content` from their other
    modalities alone; `described` (bool) where there are any.
    """

    full: Tensor
    interactions: Tensor
    content: Tensor
    described: Tensor

    @classmethod
    def of(cls, parts: Sequence[HeldOutScores]) -> HeldOutScores:
        """All of them as one."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def by_users(self) -> Tensor:
        """The mean of the predictions that read users `[k]`."""
        return (self.full + self.interactions) / 2

    def by_content(self) -> Tensor:
        """The mean of the predictions that read another modality, where there is one."""
        return ((self.full + self.content) / 2)[self.described]


@dataclass(frozen=True)
class Round:
    """A group of cells that is hidden: the evidence without them, and by number of folds the cross-fitted means."""

    evidence: Evidence
    means: Mapping[int, Blocks]

    def cut(self, folds: Mapping[str, int]) -> Evidence:
        """The evidence with each modality's means in so many folds; 0 for means that are not cross-fitted."""
        plain = self.evidence.co_interaction_mean
        cut = {name: self.means[count][name] if count else plain[name] for name, count in folds.items()}
        return replace(self.evidence, cross_fitted_mean=cut)


def select_inputs(
    model: DGMRec,
    own: dict[str, Tensor],
    observed: Tensor,
    interactions: InteractionGraphs,
    factors: Tensor,
    group: Tensor,
) -> dict[str, int]:
    """Choose for each tower whether it reads means of its own modality (`ModalityTower.select_inputs`), and in how many
    folds its co-interaction means are then cut (`cross_fitted_means`), which is answered.

    Several groups of cells (`[n, M]`, their numbers) are hidden one after the other and predicted as cells that nobody
    has; a large catalogue needs fewer groups. Few folds leave the means of a sparse catalogue poor; many, or the
    neighbours' mean, let those of a dense one give away what is to be predicted. More folds than needed have to be
    clearly better; the neighbours' mean just better, for near duplicates are followed either way.
    """
    rounds = _rounds(own, observed, interactions, factors, group)
    by_folds = {count: _scores(model, own, observed, rounds, dict.fromkeys(own, count)) for count in FOLDS}
    folds = {
        name: simplest_option({count: scores[name].by_users() for count, scores in by_folds.items()}) for name in own
    }
    with_neighbours = _scores(model, own, observed, rounds, folds, neighbour_mean=True)
    for name in own:
        # What is predicted of a modality does not depend on what the others read.
        without = by_folds[folds[name]][name]
        better = _mean(with_neighbours[name].by_content()) > _mean(without.by_content())
        model.tower(name).select_inputs(co_interaction_mean=folds[name] > 0, neighbour_mean=better)
    return folds


def _rounds(
    own: dict[str, Tensor], observed: Tensor, interactions: InteractionGraphs, factors: Tensor, group: Tensor
) -> list[Round]:
    fewest = min((count for count in observed.sum(dim=0).tolist() if count), default=0)
    enough = math.ceil(CELLS_WANTED / max(HELD_CELLS * fewest, 1))
    rounds = []
    for number in range(1, 1 + min(enough, MAX_ROUNDS)):  # the first group are the held cells
        seen = observed & (group != number)
        evidence = gather_evidence(own, seen, interactions, factors, folds=dict.fromkeys(own, 0))
        means = {folds: cross_fitted_means(evidence.own, seen, interactions, folds)[0] for folds in FOLDS if folds}
        rounds.append(Round(evidence, means))
    return rounds


def _scores(
    model: DGMRec,
    own: dict[str, Tensor],
    observed: Tensor,
    rounds: Sequence[Round],
    folds: Mapping[str, int],
    *,
    neighbour_mean: bool = False,
) -> dict[str, HeldOutScores]:
    """The scores over all rounds, by modality, of bases that are fitted without the hidden cells."""
    for name, count in folds.items():
        model.tower(name).select_inputs(co_interaction_mean=count > 0, neighbour_mean=neighbour_mean)
    scores: dict[str, list[HeldOutScores]] = {name: [] for name in folds}
    for hidden in rounds:
        evidence = hidden.cut(folds)
        model.fit_base(evidence, evidence.observed)
        for name, score in held_out_scores(model, evidence, own, observed).items():
            scores[name].append(score)
    return {name: HeldOutScores.of(parts) for name, parts in scores.items()}


def held_out_scores(model: DGMRec, evidence: Evidence, own: Blocks, observed: Tensor) -> dict[str, HeldOutScores]:
    """How near the bases come to the observed cells that the evidence lacks, by modality."""
    scores = {}
    for column, name in enumerate(model.names):
        tower = model.tower(name)
        rows = (observed[:, column] & ~evidence.observed[:, column]).nonzero().squeeze(1)
        truth, hidden = tower.projection.direction(own[name][rows]), evidence.select(rows)
        all_of, none_of = (torch.full((len(rows),), value, device=rows.device) for value in (True, False))
        by_users = hidden.without(name, others=all_of, interactions=none_of)
        by_content = hidden.without(name, others=none_of, interactions=all_of)
        full, interactions, content = (
            F.cosine_similarity(tower.base(known), truth, dim=1) for known in (hidden, by_users, by_content)
        )
        scores[name] = HeldOutScores(full, interactions, content, hidden.has_content(name))
    return scores


def simplest_option(scores: Mapping[Option, Tensor]) -> Option:
    """The first option than which none is better, in the mean over the same cells `[k]`, by more than two standard
    errors: the one-standard-error rule (Breiman et al., 1984) with twice the margin."""
    best = max(scores.values(), key=_mean)
    for option, cosines in scores.items():
        gains = best - cosines
        if len(gains) < 2 or gains.mean() <= 2 * gains.std() / len(gains) ** 0.5:
            return option
    raise AssertionError("the best is not better than itself")


def _mean(values: Tensor) -> float:
    return values.mean().item() if len(values) else 0.0
