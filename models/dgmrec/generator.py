"""One modality's own weights in DGMRec: its encoder and decoder, and what generates it (eq. 12-15).

Where the paper leaves a gap:

* Generation starts from a closed-form base over what is known without a trained model (`models.evidence`, whose blocks
  for a cell never contain that cell; hidden cells decide which of them are read). What is learned is the step away from
  it, trained by hiding observed cells; of that step it takes the share (`trust`) that held-out cells bear out.
* What is alike by one modality is alike by another, and the nearer the more: the text of an item with the very same
  picture says nearly all, that of a similar one next to nothing. A linear map of features cannot see how near the
  nearest are. The mean of a few of them, as long as they are near, therefore joins the base, by a weight for warm items
  and one for cold ones (`near_duplicates`).
* A regression predicts a mean over all that a feature could be, and lies where few features do. kNN smoothing
  therefore draws it towards the mean of the real features nearest to it, the more the less sure it is
  (`knn_smoothing`): by this it comes nearer to the truth and is found more often by those who search for it.
* `generator=parts` is the paper's, without any of this: eq. 12-15 and nothing else.
* A generated signal is as long as it is sure: the base is a regression on unit vectors, whose length is the cosine that
  it expects, so that an unsure generation enters the encoder close to the modality's mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor, nn

from models import linalg
from models.dgmrec import inference
from models.dgmrec.config import DGMRecConfig
from models.evidence import (
    EVIDENCE_NEIGHBOURS,
    Evidence,
    content_columns,
    content_width,
    interaction_columns,
    interaction_width,
    weighted_mean,
)
from models.graph import nearest
from models.modality import ModalitySpec
from models.projection import Projection

# A cosine lies some .25 around what is expected of it, and the base's length some .03 beside that; the ratio of their
# squares, for each of the four ways in which a held-out cell is asked for.
CALIBRATION_PENALTY = 300.0
FEWEST_CELLS = 20  # held-out ones that say anything of a spread
WHITENING = 0.5  # how far components come to one variance: 0 not, 1 all
SMOOTHING_ROWS = 8192  # features that smoothing looks among: a request's time must not grow with the catalogue


@dataclass(frozen=True)
class Generation:
    """What is generated of one modality, for all rows asked."""

    features: Tensor  # [n, r_m], signals
    facts: Tensor  # [n, FACTS], what the confidence is read from


class ModalityTower(nn.Module):
    """One modality's own weights and closed forms."""

    interaction_weights: Tensor
    content_weights: Tensor
    content_only_weights: Tensor
    near_duplicate_weights: Tensor
    interaction_mask: Tensor
    content_mask: Tensor
    mean_general: Tensor
    calibration: Tensor
    trust: Tensor
    search_scale: Tensor
    directions: Tensor

    def __init__(self, spec: ModalitySpec, config: DGMRecConfig, ranks: Mapping[str, int], n_items: int) -> None:
        super().__init__()
        self.name, self.config, self.ranks = spec.name, config, ranks
        d, rank = config.embedding_size, ranks[spec.name]
        interactions, content = interaction_width(ranks, config.factors), content_width(ranks)
        inputs = interactions + content if config.generator == "residual" else 0
        hidden = 2 * d
        self.projection = Projection(spec.dim, rank, WHITENING, is_raw=config.raw_features)
        self.encode = nn.Linear(rank, d)  # enc_m
        self.specific = nn.Linear(rank, d)  # F_m
        self.preference = nn.Linear(d, d)  # W_m
        self.decode = _mlp(2 * d, hidden, rank)  # D_m
        self.general_generator = _mlp((len(ranks) - 1) * d + inputs, hidden, d)  # MLP_m
        self.specific_generator = _mlp(d + inputs, hidden, d)  # MLP'_m
        self.q = _mlp(d, hidden, 2 * d)  # CLUB's q(s | g): mean and log variance
        # The base, closed forms, each with a constant as its last row: from interactions, what content adds, and from
        # content alone for a cold item.
        self.register_buffer("interaction_weights", torch.zeros(interactions + 1, rank))
        self.register_buffer("content_weights", torch.zeros(content + 1, rank))
        self.register_buffer("content_only_weights", torch.zeros(content + 1, rank))
        # What near duplicates add, to a warm item's base and to a cold one's.
        self.register_buffer("near_duplicate_weights", torch.zeros(2))
        # Which columns of both kinds of evidence are read, see `select_inputs`.
        self.register_buffer("interaction_mask", torch.ones(interactions))
        self.register_buffer("content_mask", torch.ones(content))
        self.register_buffer("mean_general", torch.zeros(d))
        self.register_buffer("calibration", torch.zeros(inference.FACTS))
        # Share of the learned step that held-out cells bear out; without a base there is nothing else.
        self.register_buffer("trust", torch.tensor(float(config.generator == "parts")))
        # Of cosines with generated features of items with users, and of those without, see its fit.
        self.register_buffer("search_scale", torch.ones(2))
        # Directions of observed features, for kNN smoothing; zero rows where there are fewer.
        self.register_buffer("directions", torch.zeros(min(n_items, SMOOTHING_ROWS), rank))

    # --- what is read ------------------------------------------------------------------------------------------

    def select_inputs(self, *, co_interaction_mean: bool, neighbour_mean: bool) -> None:
        """Choose whether the modality is generated from the co-interaction means of itself, and from its mean over the
        neighbours by other modalities.

        Both come from the very features that are to be predicted. Where data are dense, what a mean over others lacks
        of the whole gives away the item's own feature, and a regression learns that rather than what holds for an item
        whose feature nobody has.
        """
        unread = None if co_interaction_mean else self.name
        self.interaction_mask.copy_(interaction_columns(self.ranks, self.config.factors, without=unread))
        self.content_mask.copy_(content_columns(self.ranks, self.name, neighbour_mean=neighbour_mean))

    def selected_inputs(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """What is read of the evidence: from interactions `[n, interaction_width]` and from content
        `[n, content_width]`, the rest zero."""
        interactions, content = evidence.interaction_evidence(self.name), evidence.content_evidence(self.name)
        return interactions * self.interaction_mask, content * self.content_mask

    # --- the base ----------------------------------------------------------------------------------------------

    def base(self, evidence: Evidence) -> Tensor:
        """The closed form that generation starts from (`inference.base`), `[n, r_m]`."""
        directions: Tensor = inference.base(self, evidence, self.name)
        return directions

    @torch.no_grad()
    def fit_base(self, evidence: Evidence, cells: Tensor) -> Tensor:
        """Fit the closed forms on the modality's `cells` (bool `[n]`), one after the other: the directions of the
        features from interactions, then what that leaves from content; and from content alone, for cold items. How much
        of what is left after each near duplicates say is one number. The same cells are what smoothing looks among.
        Each has a constant: features are centred, but their directions are not.

        Returns the base `[n, r_m]` of warm items' cells, of one that was learned from by a fit without its fold; zero
        rows for other items.

        Fitted apart, each learns from all the items that have what it reads.
        """
        target = linalg.unit(self.projection.direction(evidence.own[self.name]))
        interactions, content = (F.pad(inputs, (0, 1), value=1.0) for inputs in self.selected_inputs(evidence))
        warm, described = (cells & rows for rows in (evidence.has_interactions(), evidence.has_content(self.name)))
        first = linalg.cross_validated_ridge(interactions, target, warm)
        # What the first leaves of cells that it learned from is too little to learn from: its estimates are used.
        second = linalg.cross_validated_ridge(content, target, warm & described, base=first.estimate)
        alone = linalg.cross_validated_ridge(content, target, described)
        self.interaction_weights.copy_(first.weights)
        self.content_weights.copy_(second.weights)
        self.content_only_weights.copy_(alone.weights)
        duplicates = inference.near_duplicate_directions(self, evidence, self.name)
        if self.config.near_duplicates:
            rest = target - first.estimate - second.estimate
            self.near_duplicate_weights[0] = _share(duplicates, rest, warm & described)
            self.near_duplicate_weights[1] = _share(duplicates, target - alone.estimate, described)
        self._keep_directions(target[cells])
        added = second.estimate + self.near_duplicate_weights[0] * duplicates
        estimate = first.estimate + evidence.has_content(self.name)[:, None] * added
        fitted: Tensor = evidence.has_interactions()[:, None] * estimate
        return fitted

    def _keep_directions(self, directions: Tensor) -> None:
        """Keep directions `[k, r_m]` of observed features for smoothing, a sample of too many."""
        if len(directions) > len(self.directions):
            order = torch.randperm(len(directions), generator=torch.Generator().manual_seed(0))
            directions = directions[order[: len(self.directions)].to(directions.device)]
        self.directions.zero_()
        self.directions[: len(directions)] = directions

    # --- generation --------------------------------------------------------------------------------------------

    def mean_of_nearest(self, directions: Tensor) -> Tensor | None:
        """The mean `[n, r_m]` of the observed features' directions nearest to each direction `[n, r_m]`; None where
        there are none."""
        present = self.directions.any(dim=1)
        if not present.any():
            return None
        rows, _ = nearest(directions, self.directions, smoothing_neighbours(int(present.sum())), allowed=present)
        return weighted_mean(self.directions, rows)[0]

    def generation(self, evidence: Evidence, learned: Tensor | None) -> Generation:
        """Generate the modality for every row of the evidence, whether it is observed or not (`inference.generation`).

        Args:
            evidence: of `n` rows; the modality's own observed features are not looked at.
            learned: the learned generator's signals `[n, r_m]`; None where it is not trusted.
        """
        return Generation(*inference.generation(self.config, self, evidence, self.name, learned))

    def confidence(self, generation: Generation) -> Tensor:
        """Expected centred cosine between the generated and the true feature `[n]`, in 0..1."""
        cosines: Tensor = inference.confidence(self, generation.facts)
        return cosines

    @torch.no_grad()
    def fit_calibration(self, facts: Tensor, cosines: Tensor) -> None:
        """Ridge from generation facts `[k, FACTS]` to how far the measured centred cosines `[k]` are from the base's
        length, which is a forecast by itself: a few cells alone would be a noisier one."""
        off = cosines - facts[:, inference.LENGTH_FACT]
        penalty = CALIBRATION_PENALTY if self.config.generator == "residual" else 1.0  # without a base, no forecast
        self.calibration.copy_(linalg.ridge(facts, off[:, None], penalty)[:, 0])
        self.calibration[inference.LENGTH_FACT] += 1

    @torch.no_grad()
    def fit_search_scale(self, queries: Tensor, generated: Tensor, truth: Tensor, *, warm: bool) -> None:
        """By what a query's cosine with a generated feature is multiplied to stand beside those with observed ones.

        Generated features lie in fewer directions than real ones, so that more of them are near to any query, whatever
        it asks for. Held-out cells tell by how much: their cosines with the queries, scaled, spread as far as those of
        their true features.

        Args:
            queries: signals of other items `[q, r_m]`. generated, truth: signals of held-out cells `[k, r_m]`.
            warm: whether they were generated from users as well.
        """
        if len(generated) < FEWEST_CELLS or not len(queries):
            return
        directions = linalg.unit(queries)
        spreads = [(directions @ linalg.unit(signals).T).std() for signals in (truth, generated)]
        if spreads[1] > 0:
            self.search_scale[0 if warm else 1] = (spreads[0] / spreads[1]).clamp_max(1.0)

    def shrunk_features(self, features: Tensor, base: Tensor, observed: Tensor) -> Tensor:
        """Completed features `[n, r_m]` as warm items' vectors are predicted from them: to an observed one (bool `[n]`)
        is added the prediction that does not look at it, `base` `[n, r_m]` of `fit_base`."""
        shift = self.config.feature_shrinkage * base
        mixed = self.projection.signal(linalg.unit(self.projection.direction(features) + shift))
        return torch.where(observed[:, None] & shift.any(dim=1, keepdim=True), mixed, features)

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


def smoothing_neighbours(count: int) -> int:
    """Over how many of `count` real features kNN smoothing takes the mean: a twentieth, as more of them are no longer
    near, and at most `EVIDENCE_NEIGHBOURS`."""
    return min(EVIDENCE_NEIGHBOURS, -(-count // 20))


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def _share(directions: Tensor, target: Tensor, rows: Tensor) -> Tensor:
    """The number, not below zero, by which directions `[n, r]` come nearest to the target `[n, r]` in the given rows
    (bool `[n]`)."""
    directions, target = directions[rows], target[rows]
    return ((directions * target).sum() / (directions.square().sum() + 1)).clamp_min(0)
