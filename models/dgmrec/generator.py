"""What one modality has of its own in DGMRec: its encoder and decoder, and what generates it (eq. 12-15).

Where the paper leaves a gap:

* Generation starts from a closed-form base over what training-free imputers know (`evidence.Evidence`, whose blocks for
  a cell never contain that cell; hidden cells decide which of them are read). What is learned is the step away from it,
  trained by hiding observed cells; of that step it takes the share (`trust`) that cells it never learned from bear out.
* What is alike by one modality is alike by another, and the nearer the more: the text of an item with the very same
  picture tells nearly all, that of a similar one next to nothing. A linear map of features cannot see how near the
  nearest are. The mean of a few of them, as long as they are near, therefore joins the base, by a weight for touched
  items and one for untouched ones (`closest`).
* A guess from a regression is a mean over all that a feature could be, and lies where few features do. It therefore
  leans on the real features nearest to it, the more the less sure it is (`lean`): by this it comes nearer to the truth
  and is found more often by those who search for it.
* A generated signal is as long as it is sure: the base is a regression on unit vectors, whose length is the cosine that
  it expects, so that an unsure guess enters the encoder close to the modality's mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor, nn

from models import linalg
from models.evidence import (
    EVIDENCE_NEIGHBOURS,
    Evidence,
    content_columns,
    content_width,
    interaction_columns,
    interaction_width,
    mean_of,
)
from models.graph import nearest
from models.modality import ModalitySpec
from models.projection import Projection

if TYPE_CHECKING:
    from models.dgmrec.config import DGMRecConfig

EVIDENCE_SCALE = 8.0
LENGTH = 1  # the column of a generation's facts with the base's length
# A cosine lies some .25 around what is expected of it, and the base's length some .03 beside that; the ratio of their
# squares, for each of the four ways in which a held-out cell is asked for.
CALIBRATION_PENALTY = 300.0
REAL_ROWS = 8192  # features that a guess may lean on: a request's time must not grow with the catalogue


@dataclass(frozen=True)
class Generation:
    """What is generated of one modality, for all rows asked."""

    FACTS = 8

    features: Tensor  # [n, r_m], signals
    facts: Tensor  # [n, FACTS], what the confidence is read from


class Tower(nn.Module):
    """One modality's own weights and closed forms."""

    from_interactions: Tensor
    from_content: Tensor
    from_content_alone: Tensor
    from_closest: Tensor
    told_by: Tensor
    shown_by: Tensor
    mean_general: Tensor
    calibration: Tensor
    trust: Tensor
    real: Tensor

    def __init__(self, spec: ModalitySpec, config: DGMRecConfig, ranks: Mapping[str, int], n_items: int) -> None:
        super().__init__()
        self.name, self.config, self.ranks = spec.name, config, ranks
        d, rank = config.embedding_size, ranks[spec.name]
        told, shown = interaction_width(ranks, config.factors), content_width(ranks)
        hidden = 2 * d
        self.projection = Projection(spec.dim, rank, config.whitening)
        self.encode = nn.Linear(rank, d)  # enc_m
        self.specific = nn.Linear(rank, d)  # F_m
        self.taste = nn.Linear(d, d)  # W_m
        self.decode = _mlp(2 * d, hidden, rank)  # D_m
        self.general_generator = _mlp((len(ranks) - 1) * d + told + shown, hidden, d)  # MLP_m
        self.specific_generator = _mlp(d + told + shown, hidden, d)  # MLP'_m
        self.q = _mlp(d, hidden, 2 * d)  # CLUB's q(s | g): mean and log variance
        # The base, closed forms, each with a constant as its last row: what interactions tell, what content adds, what
        # content tells of an untouched item.
        self.register_buffer("from_interactions", torch.zeros(told + 1, rank))
        self.register_buffer("from_content", torch.zeros(shown + 1, rank))
        self.register_buffer("from_content_alone", torch.zeros(shown + 1, rank))
        # What the closest items add, to a touched item's guess and to an untouched one's.
        self.register_buffer("from_closest", torch.zeros(2))
        # Which columns of both kinds of evidence are read, see `read`.
        self.register_buffer("told_by", torch.ones(told))
        self.register_buffer("shown_by", torch.ones(shown))
        self.register_buffer("mean_general", torch.zeros(d))
        self.register_buffer("calibration", torch.zeros(Generation.FACTS))
        self.register_buffer("trust", torch.zeros(()))  # share of the learned step that held-out cells bear out
        # Directions of observed features, for guesses to lean on; zero rows where there are fewer.
        self.register_buffer("real", torch.zeros(min(n_items, REAL_ROWS), rank))

    # --- what is read ------------------------------------------------------------------------------------------

    def read(self, *, shared: bool, near: bool) -> None:
        """Choose whether the modality is generated from the co-interaction means of itself, and from its mean over the
        neighbours by other modalities.

        Both come from the very features that are to be guessed. Where data are dense, what a mean over others lacks of
        the whole tells the item's own feature, and a regression learns that rather than what holds for an item whose
        feature nobody has.
        """
        columns = interaction_columns(self.ranks, self.config.factors, unread=None if shared else self.name)
        self.told_by.copy_(columns)
        self.shown_by.copy_(content_columns(self.ranks, self.name, near=near))

    def known(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """What is read of the evidence: from interactions `[n, interaction_width]` and from content
        `[n, content_width]`, the rest zero."""
        return evidence.from_interactions(self.name) * self.told_by, evidence.from_content(self.name) * self.shown_by

    def _closest(self, evidence: Evidence) -> Tensor:
        """`Evidence.closest` as directions among the components `[n, r_m]`."""
        closest = evidence.closest[self.name]
        return self.projection.direction(closest * closest.shape[1] ** 0.5)

    # --- the base ----------------------------------------------------------------------------------------------

    def base(self, evidence: Evidence) -> Tensor:
        """The closed form that generation starts from: directions `[n, r_m]` as long as the cosine that they expect."""
        shown = evidence.from_content(self.name)
        touched, described = evidence.touched()[:, None], evidence.described(self.name)[:, None]
        closest = self._closest(evidence)
        told = _answer(evidence.from_interactions(self.name), self.from_interactions)
        content = _answer(shown, self.from_content) + self.from_closest[0] * closest
        alone = _answer(shown, self.from_content_alone) + self.from_closest[1] * closest
        return torch.where(touched, told + described * content, described * alone)

    @torch.no_grad()
    def fit_base(self, evidence: Evidence, cells: Tensor) -> Tensor:
        """Fit the closed forms on the modality's `cells` (bool `[n]`), one after the other: the directions of the
        features from interactions, then what that leaves from content; and from content alone, for untouched items.
        How much of what is left after each the closest items tell is one number. The same cells are what guesses lean
        on. Each has a constant: features are centred, but their directions are not.

        Returns the base `[n, r_m]` of touched items' cells, of one that was learned from by a fit without its fold;
        zero rows for other items.

        Fitted apart, each learns from all the items that have what it reads.
        """
        target = linalg.unit(self.projection.direction(evidence.own[self.name]))
        told, shown = (F.pad(known, (0, 1), value=1.0) for known in self.known(evidence))
        touched, described = (cells & some for some in (evidence.touched(), evidence.described(self.name)))
        first = linalg.cross_validated_ridge(told, target, touched)
        self.from_interactions.copy_(first.weights)
        # What the first leaves of cells that it learned from is too little to learn from.
        second = linalg.cross_validated_ridge(shown, target, touched & described, base=first.estimate)
        self.from_content.copy_(second.weights)
        alone = linalg.cross_validated_ridge(shown, target, described)
        self.from_content_alone.copy_(alone.weights)
        closest = self._closest(evidence)
        if self.config.closest:
            rest = target - first.estimate - second.estimate
            self.from_closest[0] = _share(closest, rest, touched & described)
            self.from_closest[1] = _share(closest, target - alone.estimate, described)
        self._keep_real(target[cells])
        content = evidence.described(self.name)[:, None] * (second.estimate + self.from_closest[0] * closest)
        return evidence.touched()[:, None] * (first.estimate + content)

    def _keep_real(self, directions: Tensor) -> None:
        """Keep directions `[k, r_m]` of observed features for guesses to lean on, a sample of too many."""
        if len(directions) > len(self.real):
            order = torch.randperm(len(directions), generator=torch.Generator().manual_seed(0))
            directions = directions[order[: len(self.real)].to(directions.device)]
        self.real.zero_()
        self.real[: len(directions)] = directions

    # --- generation --------------------------------------------------------------------------------------------

    def generation(self, evidence: Evidence, learned: Tensor | None) -> Generation:
        """Generate the modality for every row of the evidence, whether it is observed or not: the base, and from it the
        share of the learned generator's step that held-out cells bear out.

        Args:
            evidence: of `n` rows; the modality's own observed features are not looked at.
            learned: the learned generator's signals `[n, r_m]`; None where it is not trusted.
        """
        base = self.base(evidence)
        length = linalg.length(base).clamp_max(1)
        direction = linalg.unit(base)
        if learned is not None:
            step = linalg.unit(self.projection.direction(learned)) - direction
            direction = linalg.unit(direction + self.trust * step)
        direction = self._leaning(direction, length)
        return Generation(self.projection.signal(direction * length), self._facts(evidence, length))

    def _leaning(self, direction: Tensor, sure: Tensor) -> Tensor:
        """Directions `[n, r_m]` drawn towards the mean of the real ones nearest to them, by how unsure they are."""
        there = self.real.any(dim=1)
        if not self.config.lean or not there.any():
            return direction
        found, _ = nearest(direction, self.real, leaned_on(int(there.sum())), allowed=there)
        real, _ = mean_of(self.real, found)
        return linalg.unit(direction + self.config.lean * (1 - sure) * linalg.unit(real))

    def _facts(self, evidence: Evidence, length: Tensor) -> Tensor:
        column = evidence.names.index(self.name)
        others = [c for c in range(len(evidence.names)) if c != column]
        own = evidence.observed[:, others].to(length.dtype).mean(dim=1, keepdim=True) if others else length * 0
        valid = torch.stack([evidence.near_valid[:, column], evidence.shared_valid[:, column]], dim=1).to(length.dtype)
        known = torch.cat([own, valid], dim=1)
        return torch.cat([torch.ones_like(length), length, known, length * known], dim=1)

    def confidence(self, generation: Generation) -> Tensor:
        """Expected centred cosine between the generated and the true feature `[n]`, in 0..1."""
        return (generation.facts @ self.calibration).clamp(0, 1)

    @torch.no_grad()
    def fit_calibration(self, facts: Tensor, cosines: Tensor) -> None:
        """Ridge from generation facts `[k, FACTS]` to how far the measured centred cosines `[k]` are from the base's
        length, which is a forecast by itself: a few cells alone would be a noisier one."""
        off = cosines - facts[:, LENGTH]
        self.calibration.copy_(linalg.ridge(facts, off[:, None], CALIBRATION_PENALTY)[:, 0])
        self.calibration[LENGTH] += 1

    def denoised(self, features: Tensor, guesses: Tensor, observed: Tensor) -> Tensor:
        """Completed features `[n, r_m]` as touched items settle by them: to an observed one (bool `[n]`) is added what
        is guessed of it without looking at it, by `guesses` `[n, r_m]` of `fit_base`."""
        guess = self.config.denoise * guesses
        mixed = self.projection.signal(linalg.unit(self.projection.direction(features) + guess))
        guessed = observed[:, None] & guess.any(dim=1, keepdim=True)
        return torch.where(guessed, mixed, features)

    # --- disentangling -----------------------------------------------------------------------------------------

    def club_q(self, general: Tensor, *, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """CLUB's q(s | g): mean and log variance `[b, d]`. `frozen` keeps gradients out of q's own weights."""
        if frozen:
            weights = {key: value.detach() for key, value in self.q.named_parameters()}
            output = torch.func.functional_call(self.q, weights, (general,))
        else:
            output = self.q(general)
        mean, log_variance = output.chunk(2, dim=1)
        return mean, torch.tanh(log_variance)


def leaned_on(count: int) -> int:
    """On how many of `count` real features a guess leans: a twentieth, as more of them are no longer near, and at most
    `EVIDENCE_NEIGHBOURS`."""
    return min(EVIDENCE_NEIGHBOURS, -(-count // 20))


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def _answer(told: Tensor, weights: Tensor) -> Tensor:
    """`[n, w]`, `[w + 1, r]` -> `[n, r]`, the last weights those of the constant."""
    return told @ weights[:-1] + weights[-1]


def _share(told: Tensor, target: Tensor, rows: Tensor) -> Tensor:
    """The number, not below zero, by which what is told `[n, r]` comes nearest to the target `[n, r]` in the given rows
    (bool `[n]`)."""
    told, target = told[rows], target[rows]
    return ((told * target).sum() / (told.square().sum() + 1)).clamp_min(0)
