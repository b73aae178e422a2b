"""Training DGMRec: the catalogue's graphs, one epoch, graph refinement, validation, calibration."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from numpy.typing import NDArray
from torch import Tensor

from models.arrays import Array
from models.calibration import calibration_error
from models.dgmrec.cold_start import SURE_DEGREE
from models.dgmrec.collaborative import Histories
from models.dgmrec.config import DGMRecConfig
from models.dgmrec.model import DGMRec, Embeddings, ItemContent
from models.evidence import Evidence, collaborative_factors, gather_evidence, user_factors
from models.graph import (
    Graph,
    InteractionGraphs,
    Matrix,
    blend_rows,
    mean_graph,
    nearest,
    rescaled,
    with_self_loops,
)
from models.imputers import GRAPH_IMPUTERS, PropagatedFeatures, chosen, propagate_features
from models.modality import ModalBatch
from models.words import CatalogueWords
from training.dgmrec.inputs import HELD_CELLS, select_inputs
from training.metrics import evaluate_ranking
from training.sampling import NegativeSampler, batches
from training.splits import Parts
from training.trainer import TrainerConfig, set_rate

Q_STEPS = 3
SEARCH_QUERIES = 500  # items whose features ask for held-out ones
WAYS = 4  # in which a held-out cell is generated: with its evidence, and without parts of it
CATALOGUE_OFFSETS = (1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0)
NOT_AMONG = -1e30  # added to a score, below all others
OFFSET_TOLERANCE = 0.005  # of the validation metric, for a cold item to stand higher
TRUST = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class TopNData:
    """What top-N training reads: features with holes, (user, item) pairs by part, and the items' texts where they are
    observed.

    Users without training pairs must not stand in the other parts (`Parts.evaluable`).
    """

    batch: ModalBatch
    parts: Parts
    n_users: int
    n_items: int
    texts: Sequence[str | None] | None = None


class DGMRecTask:
    """DGMRec for the trainer."""

    def __init__(self, data: TopNData, config: DGMRecConfig, trainer: TrainerConfig) -> None:
        self.data, self.config, self.trainer = data, config, trainer
        self.device = torch.device(trainer.device)
        self.rng = np.random.default_rng(trainer.seed)
        self.generator = torch.Generator().manual_seed(trainer.seed)
        train = data.parts.train
        self.sampler = NegativeSampler(train, data.n_users, data.n_items)
        self.warm = np.unique(train[:, 1])
        self.interactions = InteractionGraphs.build(train[:, 0], train[:, 1], data.n_users, data.n_items, self.device)
        # Closed forms know what they are to predict in training; with them the others would not learn it.
        alone = config.model_copy(update={"linear_weight": 0.0})
        self._module = DGMRec(alone, data.batch.specs if config.modal else (), data.n_users, data.n_items)
        self._module.to(self.device)
        self._module.initialise(self.interactions)
        self.content: ItemContent | None = None
        self.steps = 0
        if config.modal:
            self._prepare_content(data.batch)
        q = [parameter for name, parameter in self.module.named_parameters() if ".q." in name]
        rest = [p for name, p in self.module.named_parameters() if ".q." not in name and p.requires_grad]
        self.optimiser = torch.optim.Adam(rest, lr=trainer.learning_rate, fused=True)
        self.q_optimiser = torch.optim.Adam(q, lr=1e-4, fused=True) if q else None

    @property
    def module(self) -> DGMRec:
        """The model being trained."""
        return self._module

    # --- content -----------------------------------------------------------------------------------------------

    def _prepare_content(self, batch: ModalBatch) -> None:
        batch = ModalBatch(
            {name: feature.to(self.device) for name, feature in batch.features.items()}, batch.observed.to(self.device)
        )
        self.raw, model = batch, self.module
        model.fit_projections(batch)
        self.user_factors = user_factors(self.interactions, self.config.factors)
        factors = collaborative_factors(self.interactions, self.user_factors)
        own = model.project(batch)
        chance = torch.rand(batch.observed.shape, generator=self.generator).to(self.device)
        # Cells that the generator never learns from: its confidence is calibrated on them.
        self.held_cells = batch.observed & (chance < HELD_CELLS)
        self.cells = batch.observed & ~self.held_cells
        folds = None
        self.base: dict[str, Tensor] = {}  # of every cell, by fits that did not learn from it
        if self.config.imputation == "generate" and self.config.generator == "residual":
            group = (chance / HELD_CELLS).int()
            folds = select_inputs(model, own, batch.observed, self.interactions, factors, group)
        evidence = gather_evidence(own, batch.observed, self.interactions, factors, folds=folds)
        if self.config.imputation == "generate":
            self.base = model.fit_base(evidence, self.cells)
        self.words = self.words_of(self.data.texts)
        self.matrices: dict[str, Matrix] = {}
        features = self._impute(evidence, None)
        for column, name in enumerate(model.names):
            observed = evidence.observed[:, column]
            # Of the imputations by other means, all cells count as observed.
            from_all = self.config.refine_weight > 0 or self.config.imputation != "generate"
            rows = torch.ones_like(observed) if from_all else observed
            self.matrices[name] = self._item_graph(features[name], observed, rows)
        self._set_content(features, evidence)

    def words_of(self, texts: Sequence[str | None] | None) -> CatalogueWords | None:
        """The words of these texts of the items, for the cold start to learn from."""
        if texts is None or not any(texts):
            return None
        degree: Array = self.interactions.item_degree.cpu().numpy()
        return CatalogueWords.of(texts, degree, degree / (degree + np.float32(SURE_DEGREE)))

    def _impute(self, evidence: Evidence, preference: Tensor | None) -> dict[str, Tensor]:
        """Features with every cell filled, by the configured imputation."""
        if self.config.imputation == "generate" and preference is not None:
            return self.module.complete(evidence, preference)
        filled = {}
        over_graph = self.config.imputation in GRAPH_IMPUTERS
        propagated = self.propagated_features(evidence).imputations(self.interactions) if over_graph else {}
        for column, name in enumerate(evidence.names):
            imputed = propagated.get(name, torch.zeros_like(evidence.own[name]))
            if self.config.imputation == "generate":
                tower = self.module.tower(name)
                imputed = tower.projection.signal(tower.base(evidence))
            elif self.config.imputation == "nn":
                imputed = evidence.neighbour_mean[name]
            filled[name] = torch.where(evidence.observed[:, [column]], evidence.own[name], imputed)
        return filled

    @cached_property
    def fallback_imputer(self) -> tuple[str, Mapping[str, Any]]:
        """The imputer over the co-interaction graph that the service falls back on, and its setting: the configured
        one, or the best on held-out cells."""
        wanted = next((n for n in (self.config.imputation, self.config.fallback_imputer) if n in GRAPH_IMPUTERS), None)
        return chosen(self.raw, GRAPH_IMPUTERS if wanted is None else [wanted], self.interactions)

    def propagated_features(self, evidence: Evidence) -> PropagatedFeatures:
        """The observed features of the catalogue as that imputer has propagated them."""
        return propagate_features(evidence.own, evidence.observed, self.interactions, *self.fallback_imputer)

    def _item_graph(self, features: Tensor, observed: Tensor, rows: Tensor) -> Matrix:
        """Top-k neighbours of the given rows (bool `[n]`), the others empty.

        Only items that have the modality are read from, so that a generated feature is never passed on; the cells
        that a training-free imputer fills count as observed.
        """
        allowed = observed if self.config.imputation == "generate" else None
        wanted = (rows & (features.norm(dim=1) > 0)).nonzero().squeeze(1)
        neighbours = torch.full((len(features), self.config.neighbours), -1, dtype=torch.long, device=self.device)
        neighbours[wanted], _ = nearest(
            features[wanted], features, self.config.neighbours, allowed=allowed, exclude=wanted
        )
        return mean_graph(neighbours, len(features))

    def _set_content(self, features: dict[str, Tensor], evidence: Evidence) -> None:
        if self.content is None:
            neighbour_graph = self._neighbour_graph(evidence, evidence.names)
            without = {
                name: self._neighbour_graph(evidence, [n for n in evidence.names if n != name])
                for name in evidence.names
            }
        else:
            neighbour_graph, without = self.content.neighbour_graph, dict(self.content.neighbour_graph_without)
        graphs = {name: Graph(with_self_loops(matrix), self.device) for name, matrix in self.matrices.items()}
        self.content = ItemContent(features, evidence, graphs, neighbour_graph, without, self.words)

    def _neighbour_graph(self, evidence: Evidence, names: Sequence[str]) -> Graph:
        """Each item's mean over its neighbours by those of the modalities that it has."""
        total: Any = sp.csr_array((len(evidence), len(evidence)), dtype=np.float32)
        for name in names:
            have = evidence.observed[:, evidence.names.index(name)]
            total = sp.csr_array(total + self._item_graph(evidence.own[name], have, have))
        return Graph(rescaled(total), self.device)

    @torch.no_grad()
    def refresh(self, *, weight: float | None = None) -> None:
        """Regenerate every unobserved cell and refine the graphs towards them (eq. 15-16).

        Args:
            weight: lambda; by default the configured one. 1 replaces the rows, which is where refining converges to
                and what the service does for a new item.
        """
        if self.content is None or self.config.imputation != "generate":
            return
        evidence = self.content.evidence
        out = self.module(self.interactions, self.content)
        self.module.update_mean_generals(out, evidence.observed)
        self.weigh_generator(out)
        self._regenerate(out, self.config.refine_weight if weight is None else weight)

    def _regenerate(self, out: Embeddings, share: float) -> None:
        assert self.content is not None
        evidence = self.content.evidence
        features = self._impute(evidence, out.preference)
        for column, name in enumerate(evidence.names):
            lacking = ~evidence.observed[:, column]
            if lacking.any() and share:
                fresh = self._item_graph(features[name], evidence.observed[:, column], lacking)
                self.matrices[name] = blend_rows(self.matrices[name], fresh, lacking.cpu().numpy(), share)
        self._set_content(features, evidence)

    # --- the trainer's side ------------------------------------------------------------------------------------

    def train_epoch(self, epoch: int, progress: Callable[[int, int], None]) -> dict[str, float]:
        """One pass over the training pairs; every few epochs the missing cells are regenerated first."""
        self.module.train()
        if epoch > 1 and (epoch - 1) % self.config.refine_every == 0:
            self.refresh()
        self._fit_q()
        if self.config.generator == "parts":
            self._update_mean_generals()
        total = -(-len(self.data.parts.train) // self.trainer.batch_size)
        seen: dict[str, list[float]] = defaultdict(list)
        for done, pairs in enumerate(batches(self.data.parts.train, self.trainer.batch_size, self.rng), start=1):
            set_rate(self.optimiser, self.trainer.rate(epoch - 1 + (done - 1) / total))
            negatives = self.negatives(pairs[:, 0])
            for key, value in self.step(pairs, negatives).items():
                seen[key].append(value)
            progress(done, total)
        means = {key: float(np.mean(values)) for key, values in seen.items()}
        return {"loss": sum(means.values())} | means

    def negatives(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """One item that the user has not interacted with for each pair, or different ones for the whole batch.

        The latter are warm items: an item that is new could only ever be a negative, and the model
        would learn to recommend it to nobody.
        """
        if self.config.ranking == "bpr":
            return self.sampler.sample(users, self.rng)
        return self.rng.permutation(self.warm)[: self.config.negatives]

    def step(self, pairs: NDArray[np.int64], negatives: NDArray[np.int64]) -> dict[str, float]:
        """One step on a batch of pairs `[b, 2]`; answers each loss."""
        users, positives, negative = (
            torch.from_numpy(np.ascontiguousarray(rows)).to(self.device) for rows in (*pairs.T, negatives)
        )
        excluded = None
        if self.config.ranking == "softmax":
            excluded = self.sampler.interacted(users, negative)
        self.steps += 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.casts):
            out = self.module(self.interactions, self.content, self._histories())
            terms = self.module.ranking_losses(
                out, users, positives, negative, self.interactions, self.content, excluded
            )
            # By default not at every step: the content losses converge long before the ranking does.
            if self.content is not None and self.steps % self.config.content_every == 0:
                rows = self._content_rows(positives)
                terms |= self.module.content_losses(out, self.content, rows, self.cells, self.generator)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        self.optimiser.zero_grad(set_to_none=True)
        if loss.requires_grad:  # the linear form without content has nothing to train
            loss.backward()  # type: ignore[no-untyped-call]  # torch's backward is untyped
            self.optimiser.step()
        return {key: value.item() for key, value in terms.items()}

    def _content_rows(self, positives: Tensor) -> Tensor:
        """The items whose content a step learns from."""
        if not self.config.content_rows:
            of_batch: Tensor = torch.unique(positives)
            return of_batch
        order = torch.randperm(self.data.n_items, generator=self.generator)
        return order[: self.config.content_rows].to(self.device)

    def _histories(self) -> Histories:
        """What users are made of at a step."""
        if self.config.collaborative == "lightgcn" or not self.config.history_dropout:
            return Histories.whole(self.interactions)
        return Histories.thinned(self.interactions, self.config.history_dropout, self.rng)

    @torch.no_grad()
    def _update_mean_generals(self) -> None:
        """What stands in for general parts that are missing (eq. 12), for generators that read them all the time."""
        if self.content is not None:
            self.module.update_mean_generals(
                self.module(self.interactions, self.content), self.content.evidence.observed
            )

    @property
    def casts(self) -> bool:
        """Whether the forward pass runs in bfloat16 where that is precise enough."""
        return self.trainer.autocast and self.device.type == "cuda"

    def _fit_q(self) -> None:
        if self.content is None or self.q_optimiser is None or not self.config.club:
            return
        if not self.content.evidence.observed.any():
            return
        with torch.no_grad():
            out = self.module(self.interactions, self.content)
        for _ in range(Q_STEPS):
            self.q_optimiser.zero_grad(set_to_none=True)
            self.module.q_loss(out, self.content.evidence).backward()  # type: ignore[no-untyped-call]
            self.q_optimiser.step()

    def validate(self) -> dict[str, float]:
        """Ranking metrics on the validation part, the generator's centred cosine on held-out cells, and how similar the
        parts are."""
        out = self.embed()
        metrics = self._ranking(out, self.data.parts.valid, self.data.parts.train, among=self.warm)
        metrics |= {f"cosine[{name}]": cosines.mean().item() for name, cosines in self.held_cosines(out).items()}
        return metrics | self._similarities(out)

    def _similarities(self, out: Embeddings) -> dict[str, float]:
        """Mean cosines between two parts of the same item, over the items that have what they are made of: general
        parts, which training draws together (eq. 8), and a modality's own two, which it draws apart (eq. 7)."""
        if self.content is None:
            return {}
        names, observed = self.module.names, self.content.evidence.observed
        general, specific = out.parts.chunk(2, dim=2)  # [M, n, d]
        pairs = {
            f"similarity[general {names[a]}, general {names[b]}]": (general[a], general[b], observed[:, [a, b]])
            for a, b in itertools.combinations(range(len(names)), 2)
        }
        pairs |= {
            f"similarity[general {name}, specific {name}]": (general[a], specific[a], observed[:, [a]])
            for a, name in enumerate(names)
        }
        return {
            name: F.cosine_similarity(left[rows], right[rows], dim=1).mean().item()
            for name, (left, right, have) in pairs.items()
            if (rows := have.all(dim=1)).any()
        }

    def test(self) -> dict[str, float]:
        """Ranking metrics of what would be served: of the validation part (`valid ...`) among the warm items, and of
        the test part among all."""
        out, parts = self.final_embeddings()[0], self.data.parts
        valid = self._ranking(out, parts.valid, parts.train, among=self.warm)
        return {f"valid {name}": value for name, value in valid.items()} | self._ranking(out, parts.test, parts.train)

    @torch.no_grad()
    def embed(self) -> Embeddings:
        """All embeddings, as training sees them."""
        self.module.eval()
        out: Embeddings = self.module(self.interactions, self.content)
        return out

    def final_embeddings(self) -> tuple[Embeddings, Tensor]:
        """All embeddings, with the vectors that items are ranked by once training is over, and each item's prediction
        from its content `[n, d]`."""
        out = self.embed()
        if self.content is None:
            return out, torch.zeros_like(out.items)
        return self.module.final_embeddings(out, self.content, self.interactions.item_degree, self.base)

    def _ranking(
        self, out: Embeddings, pairs: NDArray[np.int64], seen: NDArray[np.int64], among: NDArray[np.int64] | None = None
    ) -> dict[str, float]:
        users, items = out.users.cpu().numpy(), out.items.cpu().numpy()
        offset = np.zeros(len(items), dtype=np.float32)
        if among is not None:
            offset += NOT_AMONG
            offset[among] = 0
        return evaluate_ranking(lambda rows: users[rows] @ items.T + offset, pairs, seen, (20, 50))

    def held_cosines(self, out: Embeddings) -> dict[str, Tensor]:
        """By modality the centred cosines of the held-out cells `[k]`."""
        if self.content is None or self.config.imputation != "generate":
            return {}
        return {
            name: F.cosine_similarity(features, truth, dim=1)
            for name, (_, features, truth) in self._held_generations(out).items()
        }

    @torch.no_grad()
    def _held_generations(self, out: Embeddings) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """By modality: facts `[k, FACTS]`, generated and true centred raw features `[k, dim]` of the held-out cells,
        each as it would be generated with its evidence, without the others, without interactions, without both."""
        generations = {}
        for column, name in enumerate(self.module.names):
            rows = self.held_cells[:, column].nonzero().squeeze(1)
            if not len(rows):
                continue
            projection = self.module.tower(name).projection
            ways = itertools.product((False, True), repeat=2)
            facts, features = zip(*(self._hidden_generation(out, name, rows, *way) for way in ways), strict=True)
            truth = self.raw.features[name][rows] - projection.mean
            generations[name] = (torch.cat(facts), torch.cat(features), truth.repeat(WAYS, 1))
        return generations

    def _hidden_generation(
        self, out: Embeddings, name: str, rows: Tensor, others: bool, interactions: bool
    ) -> tuple[Tensor, Tensor]:
        """Facts and centred raw features of some rows `[k]` while their other modalities or interactions are hidden."""
        assert self.content is not None
        hidden = {
            "others": torch.full((len(rows),), others, device=self.device),
            "interactions": torch.full((len(rows),), interactions, device=self.device),
        }
        preference = self.module.hidden_preference(out, self.content, name, rows, **hidden)
        evidence = self.content.evidence.select(rows).without(name, **hidden)
        generation = self.module.generate(name, evidence, preference)
        projection = self.module.tower(name).projection
        return generation.facts, projection.back(generation.features) - projection.mean

    def finish(self) -> dict[str, float]:
        """After training: bring the linear form in, regenerate, calibrate the confidence on the held-out cells.

        Returns the calibration's quality by modality: `cosine[m]` and `calibration_error[m]`, the expected calibration
        error over ten bins, each half of the held-out cells judged by the fit on the other half; and `trust[m]`, the
        share of the learned step in what is generated.
        """
        self.weigh_linear(self.config.linear_weight)
        if self.content is None or self.config.imputation != "generate":
            return {}
        self.base = self.module.fit_base(self.content.evidence, self.cells)  # as in training, if called again
        self.refresh(weight=self.config.final_refinement)
        report = {}
        for name, (facts, features, truth) in self._held_generations(self.embed()).items():
            cosines = F.cosine_similarity(features, truth, dim=1)
            even = torch.arange(len(cosines) // WAYS, device=self.device).repeat(WAYS) % 2 == 0  # a cell is in one half
            served = torch.empty_like(cosines)
            for half in (even, ~even):
                self.module.tower(name).fit_calibration(facts[~half], cosines[~half])
                served[half] = (facts[half] @ self.module.tower(name).calibration).clamp(0, 1)
            self.module.tower(name).fit_calibration(facts, cosines)
            report[f"trust[{name}]"] = self.module.tower(name).trust.item()
            self._fit_search_scale(name, features, truth)
            report[f"cosine[{name}]"] = cosines.mean().item()
            report[f"calibration_error[{name}]"] = calibration_error(served.cpu().numpy(), cosines.cpu().numpy())
        # What is served may know the cells that confidence had to be measured on.
        self.base = self.module.fit_base(self.content.evidence, self.raw.observed)
        self._regenerate(self.embed(), self.config.final_refinement)
        return report

    def _fit_search_scale(self, name: str, features: Tensor, truth: Tensor) -> None:
        """Fit how cosines with generated features compare, by centred features of held-out cells `[k, dim]`, asked for
        by other items."""
        tower, column = self.module.tower(name), self.module.names.index(name)
        others = self.cells[:, column].nonzero().squeeze(1)
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0)).to(self.device)
        queries = self.raw.features[name][others[order[:SEARCH_QUERIES]]]
        mean = tower.projection.mean
        by_way = [rows.chunk(WAYS) for rows in (features, truth)]
        for way, warm in ((0, True), (1, False)):  # with all its evidence, and without interactions
            generated, true = (tower.projection(rows[way] + mean) for rows in by_way)
            something = generated.any(dim=1)
            tower.fit_search_scale(tower.projection(queries), generated[something], true[something], warm=warm)

    def weigh_linear(self, weight: float) -> None:
        """Give the components of the linear form a weight beside the others, as soon as these are trained."""
        self.module.config = self.module.config.model_copy(update={"linear_weight": weight})

    def choose_catalogue_offset(self) -> float | None:
        """Place the cold items of the catalogue lower (`catalogue_offset`) if the validation part is ranked the better
        for it, among all items; answers where, None where they stay."""
        cold = self.interactions.item_degree == 0
        if self.content is None or not cold.any() or self.config.cold_start == "modal":
            return None
        out, module = self.final_embeddings()[0], self.module
        own, axis = float(module.cold_start.offset), module.cold_start.popularity_axis
        scores = {}
        for offset in (own, *(lower for lower in CATALOGUE_OFFSETS if lower < own)):
            moved = cold[:, None] * (offset - own) * module.cold_start.spread * axis
            found = self._ranking(replace(out, items=out.items + moved), self.data.parts.valid, self.data.parts.train)
            scores[offset] = (found["recall@20"] * found["ndcg@20"]) ** 0.5
        best = max(scores.values())
        chosen = next(offset for offset, score in scores.items() if score >= best * (1 - OFFSET_TOLERANCE))
        if chosen == own:
            return None
        self.reconfigure(catalogue_offset=chosen)
        return chosen

    def reconfigure(self, **settings: float) -> None:
        """Change settings of the cold start, which nothing that has been trained depends on."""
        self.config = self.config.model_copy(update=settings)
        for part in (self.module, self.module.cold_start):
            part.config = part.config.model_copy(update=settings)

    def weigh_generator(self, out: Embeddings) -> None:
        """Take of each generator's learned step away from its base the share that is best on the held-out cells; none
        where its gain is within two standard errors, as the largest of several noisy gains is too high a forecast."""
        if self.config.generator == "parts":
            return
        for name in self.module.names:
            self.module.tower(name).trust.zero_()
        base = self.held_cosines(out)
        best = dict.fromkeys(base, (0.0, 0.0))  # gain and share
        for share in TRUST:
            for name in self.module.names:
                self.module.tower(name).trust.fill_(share)
            for name, cosines in self.held_cosines(out).items():
                gains = cosines - base[name]
                gain, doubt = gains.mean().item(), gains.std().item() / max(len(gains), 1) ** 0.5
                if gain > max(2 * doubt, best[name][0]):
                    best[name] = (gain, share)
        for name in self.module.names:
            self.module.tower(name).trust.fill_(best[name][1] if name in best else 0.0)

    def state(self) -> dict[str, Any]:
        """Optimisers, random states, and the graphs with the features they came from."""
        tree: dict[str, Any] = {
            "optimiser": self.optimiser.state_dict(),
            "q": self.q_optimiser.state_dict() if self.q_optimiser else {},
            "generator": self.generator.get_state(),
            "rng": self.rng.bit_generator.state,
            "steps": self.steps,
        }
        if self.content is not None:
            tree["features"] = dict(self.content.features)
            tree["matrices"] = {
                name: [torch.from_numpy(np.asarray(part)) for part in (matrix.data, matrix.indices, matrix.indptr)]
                for name, matrix in self.matrices.items()
            }
        return tree

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.optimiser.load_state_dict(state["optimiser"])
        if self.q_optimiser:
            self.q_optimiser.load_state_dict(state["q"])
        self.generator.set_state(state["generator"])
        self.rng.bit_generator.state = state["rng"]
        self.steps = state["steps"]
        if self.content is not None:
            shape = (self.data.n_items, self.data.n_items)
            self.matrices = {
                name: sp.csr_array(tuple(part.numpy() for part in parts), shape=shape)
                for name, parts in state["matrices"].items()
            }
            features = {name: feature.to(self.device) for name, feature in state["features"].items()}
            self._set_content(features, self.content.evidence)
