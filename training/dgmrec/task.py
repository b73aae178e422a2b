"""Training DGMRec: the catalogue's graphs, one epoch, graph refinement, validation, calibration."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from numpy.typing import NDArray
from torch import Tensor

from models.dgmrec.config import DGMRecConfig
from models.dgmrec.model import DGMRec, Embeddings, ItemSide
from models.evidence import Evidence, collaborative_factors, folded_means, gather_evidence, user_factors
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
from models.imputers import GRAPH_IMPUTERS, Spread, chosen, spread
from models.modality import ModalBatch
from training.metrics import evaluate_ranking
from training.sampling import NegativeSampler, batches
from training.splits import Parts
from training.trainer import TrainerConfig, set_rate

CONTENT_ROWS = 512
CONTENT_EVERY = 4  # steps: the content losses settle long before the ranking does
Q_STEPS = 3
HELD_CELLS = 0.1
WAYS = 4  # in which a held-out cell is asked for: with its evidence, and without parts of it
TRUST = (0.25, 0.5, 0.75, 1.0)
READ_ROUNDS, READ_CELLS = 5, 2000  # at most so many groups of hidden cells, for so many of each modality
FOLDS = (0, 2, 3)


@dataclass(frozen=True)
class TopNData:
    """What top-N training reads: features with holes, and (user, item) pairs by part.

    Users without training pairs must not stand in the other parts (`Parts.evaluable`).
    """

    batch: ModalBatch
    parts: Parts
    n_users: int
    n_items: int


@dataclass(frozen=True)
class Settled:
    """Embeddings `out` whose items are those of `Settling.settle`, and what is `expected` of each item `[n, d]`."""

    out: Embeddings
    expected: Tensor


@dataclass(frozen=True)
class Asked:
    """What is answered for hidden cells, as cosines `[k]` with the truth.

    `full` from all that is known of their items, `told` from their users alone, `shown` from their other modalities
    alone; `described` (bool) where there are any.
    """

    full: Tensor
    told: Tensor
    shown: Tensor
    described: Tensor

    @classmethod
    def of(cls, parts: Sequence[Asked]) -> Asked:
        """All of them as one."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def by_users(self) -> Tensor:
        """The mean of the answers that read users `[k]`."""
        return (self.full + self.told) / 2

    def by_content(self) -> Tensor:
        """The mean of the answers that read another modality, where there is one."""
        return ((self.full + self.shown) / 2)[self.described]


Option = TypeVar("Option")


class DGMRecTask:
    """DGMRec for the trainer."""

    def __init__(self, data: TopNData, config: DGMRecConfig, trainer: TrainerConfig) -> None:
        self.data, self.config, self.trainer = data, config, trainer
        self.device = torch.device(trainer.device)
        self.rng = np.random.default_rng(trainer.seed)
        self.generator = torch.Generator().manual_seed(trainer.seed)
        train = data.parts.train
        self.sampler = NegativeSampler(train, data.n_users, data.n_items)
        self.touched = np.unique(train[:, 1])
        self.interactions = InteractionGraphs.build(train[:, 0], train[:, 1], data.n_users, data.n_items, self.device)
        self._module = DGMRec(config, data.batch.specs if config.modal else (), data.n_users, data.n_items)
        self._module.to(self.device)
        self._module.start_from(self.interactions)
        self.side: ItemSide | None = None
        self.steps = 0
        if config.modal:
            self._prepare_content(data.batch)
        q = [parameter for name, parameter in self.module.named_parameters() if ".q." in name]
        rest = [parameter for name, parameter in self.module.named_parameters() if ".q." not in name]
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
        self.guesses: dict[str, Tensor] = {}  # of every cell, by fits that did not learn from it
        if self.config.imputation == "generate":
            folds = self._read(own, factors, (chance / HELD_CELLS).int())
        evidence = gather_evidence(own, batch.observed, self.interactions, factors, folds=folds)
        if self.config.imputation == "generate":
            self.guesses = model.fit_base(evidence, self.cells)
        self.matrices: dict[str, Matrix] = {}
        features = self._impute(evidence, None)
        for column, name in enumerate(model.names):
            everyone = torch.ones(len(batch), dtype=torch.bool, device=self.device)
            self.matrices[name] = self._item_graph(features[name], evidence.observed[:, column], everyone)
        self._set_side(features, evidence)

    def _read(self, own: dict[str, Tensor], factors: Tensor, group: Tensor) -> dict[str, int]:
        """Choose what each modality is generated from: whether from means of itself (`Tower.read`), and in how many
        folds its co-interaction means are then cut (`folded_means`), which is answered.

        Several groups of cells (`[n, M]`, their numbers) are hidden one after the other and asked for as cells that
        nobody has; a large catalogue needs fewer groups. Few folds leave the means of a sparse catalogue poor; many, or
        the neighbours' mean, let those of a dense one tell what is to be guessed. More folds than needed have to be
        clearly better; the neighbours' mean just better, for what is close is followed either way.
        """
        rounds = []
        fewest = min((count for count in self.raw.observed.sum(dim=0).tolist() if count), default=0)
        enough = math.ceil(READ_CELLS / max(HELD_CELLS * fewest, 1))
        for number in range(1, 1 + min(enough, READ_ROUNDS)):  # the first group are the held cells
            seen = self.raw.observed & (group != number)
            evidence = gather_evidence(own, seen, self.interactions, factors, folds=dict.fromkeys(own, 0))
            means = {folds: folded_means(evidence.own, seen, self.interactions, folds)[0] for folds in FOLDS if folds}
            rounds.append((evidence, means))

        def asked(folds: Mapping[str, int], near: bool) -> dict[str, Asked]:
            for name, count in folds.items():
                self.module.tower(name).read(shared=count > 0, near=near)
            answers: dict[str, list[Asked]] = {name: [] for name in folds}
            for evidence, means in rounds:
                folded = {name: means[count][name] if count else evidence.shared[name] for name, count in folds.items()}
                evidence = replace(evidence, folded=folded)
                self.module.fit_base(evidence, evidence.observed)
                for name, answer in self._asked_back(evidence, own).items():
                    answers[name].append(answer)
            return {name: Asked.of(parts) for name, parts in answers.items()}

        by_folds = {folds: asked(dict.fromkeys(own, folds), near=False) for folds in FOLDS}
        folds = {name: _plainest({count: found[name].by_users() for count, found in by_folds.items()}) for name in own}
        by_near = asked(folds, near=True)
        for name in own:
            # What a modality answers does not depend on what the others read.
            without = by_folds[folds[name]][name]
            near = _mean(by_near[name].by_content()) > _mean(without.by_content())
            self.module.tower(name).read(shared=folds[name] > 0, near=near)
        return folds

    def _asked_back(self, evidence: Evidence, own: dict[str, Tensor]) -> dict[str, Asked]:
        """The base's answers for the cells that the evidence lacks, by modality."""
        found = {}
        for column, name in enumerate(self.module.names):
            tower = self.module.tower(name)
            rows = (self.raw.observed[:, column] & ~evidence.observed[:, column]).nonzero().squeeze(1)
            truth, some = tower.projection.direction(own[name][rows]), evidence.select(rows)
            all_of, none_of = (torch.full((len(rows),), value, device=self.device) for value in (True, False))
            by_users = some.without(name, others=all_of, interactions=none_of)
            by_content = some.without(name, others=none_of, interactions=all_of)
            full, told, shown = (
                F.cosine_similarity(tower.base(way), truth, dim=1) for way in (some, by_users, by_content)
            )
            found[name] = Asked(full, told, shown, some.described(name))
        return found

    def _impute(self, evidence: Evidence, taste: Tensor | None) -> dict[str, Tensor]:
        """Features with every cell filled, by the configured imputation."""
        if self.config.imputation == "generate" and taste is not None:
            return self.module.complete(evidence, taste)
        filled = {}
        over_graph = self.config.imputation in GRAPH_IMPUTERS
        told = self.spread(evidence).guesses(self.interactions) if over_graph else {}
        for column, name in enumerate(evidence.names):
            guess = told.get(name, torch.zeros_like(evidence.own[name]))
            if self.config.imputation == "generate":
                tower = self.module.tower(name)
                guess = tower.projection.signal(tower.base(evidence))
            elif self.config.imputation == "nn":
                guess = evidence.near[name]
            filled[name] = torch.where(evidence.observed[:, [column]], evidence.own[name], guess)
        return filled

    @cached_property
    def rung(self) -> tuple[str, Mapping[str, Any]]:
        """The imputer over the co-interaction graph that the service falls back on, and its setting: the configured
        one, or the best on held-out cells."""
        wanted = next((n for n in (self.config.imputation, self.config.rung) if n in GRAPH_IMPUTERS), None)
        return chosen(self.raw, GRAPH_IMPUTERS if wanted is None else [wanted], self.interactions)

    def spread(self, evidence: Evidence) -> Spread:
        """The observed features of the catalogue as that imputer has spread them."""
        return spread(evidence.own, evidence.observed, self.interactions, *self.rung)

    def _item_graph(self, features: Tensor, observed: Tensor, rows: Tensor) -> Matrix:
        """Top-k neighbours of the given rows (bool `[n]`), the others empty.

        Only items that have the modality are read from, so that a generated feature never spreads; the plain
        imputations take their guesses for real, as their users do.
        """
        allowed = observed if self.config.imputation == "generate" else None
        some = features.norm(dim=1) > 0
        wanted = (rows & some).nonzero().squeeze(1)
        found = torch.full((len(features), self.config.neighbours), -1, dtype=torch.long, device=self.device)
        found[wanted], _ = nearest(features[wanted], features, self.config.neighbours, allowed=allowed, exclude=wanted)
        return mean_graph(found, len(features))

    def _set_side(self, features: dict[str, Tensor], evidence: Evidence) -> None:
        if self.side is None:
            kin = self._kin(evidence, evidence.names)
            without = {name: self._kin(evidence, [n for n in evidence.names if n != name]) for name in evidence.names}
        else:
            kin, without = self.side.kin, dict(self.side.kin_without)
        graphs = {name: Graph(with_self_loops(matrix), self.device) for name, matrix in self.matrices.items()}
        self.side = ItemSide(features, evidence, graphs, kin, without)

    def _kin(self, evidence: Evidence, names: Sequence[str]) -> Graph:
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
        if self.side is None or self.config.imputation != "generate":
            return
        evidence = self.side.evidence
        out = self.module(self.interactions, self.side)
        self.module.update_mean_generals(out, evidence.observed)
        self._weigh_generator(out)
        self._regenerate(out, self.config.refine_weight if weight is None else weight)

    def _regenerate(self, out: Embeddings, share: float) -> None:
        assert self.side is not None
        evidence = self.side.evidence
        features = self._impute(evidence, out.taste)
        for column, name in enumerate(evidence.names):
            lacking = ~evidence.observed[:, column]
            if lacking.any() and share:
                fresh = self._item_graph(features[name], evidence.observed[:, column], lacking)
                self.matrices[name] = blend_rows(self.matrices[name], fresh, lacking.cpu().numpy(), share)
        self._set_side(features, evidence)

    # --- the trainer's side ------------------------------------------------------------------------------------

    def train_epoch(self, epoch: int, progress: Callable[[int, int], None]) -> dict[str, float]:
        """One pass over the training pairs; every few epochs the missing cells are regenerated first."""
        self.module.train()
        if epoch > 1 and (epoch - 1) % self.config.refine_every == 0:
            self.refresh()
        self._fit_q()
        total = -(-len(self.data.parts.train) // self.trainer.batch_size)
        seen: dict[str, list[float]] = defaultdict(list)
        for done, pairs in enumerate(batches(self.data.parts.train, self.trainer.batch_size, self.rng), start=1):
            set_rate(self.optimiser, self.trainer.rate(epoch - 1 + (done - 1) / total))
            negatives = self._negatives(pairs[:, 0])
            for key, value in self._step(pairs, negatives).items():
                seen[key].append(value)
            progress(done, total)
        means = {key: float(np.mean(values)) for key, values in seen.items()}
        return {"loss": sum(means.values())} | means

    def _negatives(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """One item that the user has not touched for each pair, or different ones for the whole batch.

        The latter are items that somebody has touched: an item that is new could only ever be a negative, and the model
        would learn to recommend it to nobody.
        """
        if self.config.ranking == "bpr":
            return self.sampler.sample(users, self.rng)
        return self.rng.permutation(self.touched)[: self.config.negatives]

    def _step(self, pairs: NDArray[np.int64], negatives: NDArray[np.int64]) -> dict[str, float]:
        users, positives, negative = (
            torch.from_numpy(np.ascontiguousarray(rows)).to(self.device) for rows in (*pairs.T, negatives)
        )
        excluded = None
        if self.config.ranking == "softmax":
            excluded = self.sampler.touched(users, negative)
        self.steps += 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._casts):
            out = self.module(self.interactions, self.side)
            terms = self.module.ranking_losses(out, users, positives, negative, self.interactions, self.side, excluded)
            if self.side is not None and self.steps % CONTENT_EVERY == 0:
                order = torch.randperm(self.data.n_items, generator=self.generator)[:CONTENT_ROWS].to(self.device)
                terms |= self.module.content_losses(out, self.side, order, self.cells, self.generator)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's backward is untyped
        self.optimiser.step()
        return {key: value.item() for key, value in terms.items()}

    @property
    def _casts(self) -> bool:
        return self.trainer.autocast and self.device.type == "cuda"

    def _fit_q(self) -> None:
        if self.side is None or self.q_optimiser is None or not self.config.club:
            return
        with torch.no_grad():
            out = self.module(self.interactions, self.side)
        for _ in range(Q_STEPS):
            self.q_optimiser.zero_grad(set_to_none=True)
            self.module.q_loss(out, self.side.evidence).backward()  # type: ignore[no-untyped-call]
            self.q_optimiser.step()

    def validate(self) -> dict[str, float]:
        """Ranking metrics on the validation part, the generator's centred cosine on held-out cells, and how similar the
        parts are."""
        out = self.embed()
        metrics = self._ranking(out, self.data.parts.valid, self.data.parts.train, among=self.touched)
        metrics |= {f"cosine[{name}]": cosines.mean().item() for name, cosines in self._held_cosines(out).items()}
        return metrics | self._similarities(out)

    def _similarities(self, out: Embeddings) -> dict[str, float]:
        """Mean cosines between two parts of the same item, over the items that have what they are made of: general
        parts, which training draws together (eq. 8), and a modality's own two, which it draws apart (eq. 7)."""
        if self.side is None:
            return {}
        names, observed = self.module.names, self.side.evidence.observed
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
        """Ranking metrics of what would be served: of the validation part (`valid ...`) among the items that somebody
        touched, and of the test part among all."""
        out, parts = self.settled().out, self.data.parts
        valid = self._ranking(out, parts.valid, parts.train, among=self.touched)
        return {f"valid {name}": value for name, value in valid.items()} | self._ranking(out, parts.test, parts.train)

    @torch.no_grad()
    def embed(self) -> Embeddings:
        """All embeddings, as training sees them."""
        self.module.eval()
        out: Embeddings = self.module(self.interactions, self.side)
        return out

    @torch.no_grad()
    def settled(self) -> Settled:
        """All embeddings, with the vectors that items are ranked by once training is over."""
        out = self.embed()
        if self.side is None:
            return Settled(out, torch.zeros_like(out.items))
        observed, degree = self.side.evidence.observed, self.interactions.item_degree
        features, read = self.side.features, None
        if self.config.denoise and self.guesses:
            read = self.module.denoised(features, self.guesses, observed)
        items, expected = self.module.settling.settle(out, features, observed, degree, read)
        return Settled(replace(out, items=items), expected)

    def _ranking(
        self, out: Embeddings, pairs: NDArray[np.int64], seen: NDArray[np.int64], among: NDArray[np.int64] | None = None
    ) -> dict[str, float]:
        users, items = out.users.cpu().numpy(), out.items.cpu().numpy()
        offset = np.zeros(len(items), dtype=np.float32)
        if among is not None:
            offset -= 4  # below every cosine
            offset[among] = 0
        return evaluate_ranking(lambda rows: users[rows] @ items.T + offset, pairs, seen, (20, 50))

    def _held_cosines(self, out: Embeddings) -> dict[str, Tensor]:
        """By modality the centred cosines of the held-out cells `[k]`."""
        if self.side is None or self.config.imputation != "generate":
            return {}
        return {
            name: F.cosine_similarity(made, truth, dim=1)
            for name, (_, made, truth) in self._held_generations(out).items()
        }

    @torch.no_grad()
    def _held_generations(self, out: Embeddings) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """By modality: facts `[k, FACTS]`, generated and true centred raw features `[k, dim]` of the held-out cells,
        each as it would be generated with its evidence, without the others, without interactions, without both."""
        assert self.side is not None
        answers = {}
        for column, name in enumerate(self.module.names):
            rows = self.held_cells[:, column].nonzero().squeeze(1)
            if not len(rows):
                continue
            projection = self.module.tower(name).projection
            facts, made = [], []
            for others in (False, True):
                for untouched in (False, True):
                    flags = [torch.full((len(rows),), value, device=self.device) for value in (others, untouched)]
                    taste = self.module.hidden_taste(out, self.side, name, rows, others=flags[0], interactions=flags[1])
                    evidence = self.side.evidence.select(rows).without(name, others=flags[0], interactions=flags[1])
                    generation = self.module.generate(name, evidence, taste)
                    facts.append(generation.facts)
                    made.append(projection.back(generation.features) - projection.mean)
            truth = self.raw.features[name][rows] - projection.mean
            answers[name] = (torch.cat(facts), torch.cat(made), truth.repeat(WAYS, 1))
        return answers

    def finish(self) -> dict[str, float]:
        """After training: regenerate, calibrate the confidence on the held-out cells.

        Returns the calibration's quality by modality: `cosine[m]` and `calibration_error[m]`, the expected calibration
        error over ten bins, each half of the held-out cells judged by the fit on the other half.
        """
        if self.side is None or self.config.imputation != "generate":
            return {}
        self.guesses = self.module.fit_base(self.side.evidence, self.cells)  # as in training, if called again
        self.refresh(weight=1.0)
        report = {}
        for name, (facts, made, truth) in self._held_generations(self.embed()).items():
            cosines = F.cosine_similarity(made, truth, dim=1)
            even = torch.arange(len(cosines) // WAYS, device=self.device).repeat(WAYS) % 2 == 0  # a cell is in one half
            served = torch.empty_like(cosines)
            for half in (even, ~even):
                self.module.tower(name).fit_calibration(facts[~half], cosines[~half])
                served[half] = (facts[half] @ self.module.tower(name).calibration).clamp(0, 1)
            self.module.tower(name).fit_calibration(facts, cosines)
            report[f"cosine[{name}]"] = cosines.mean().item()
            report[f"calibration_error[{name}]"] = calibration_error(served.cpu().numpy(), cosines.cpu().numpy())
        # What is served may know the cells that confidence had to be measured on.
        self.guesses = self.module.fit_base(self.side.evidence, self.raw.observed)
        self._regenerate(self.embed(), share=1.0)
        return report

    def _weigh_generator(self, out: Embeddings) -> None:
        """Take of each generator's learned step away from its base the share that is best on the held-out cells; none
        where its gain is within two standard errors, as the largest of several noisy gains is an optimist."""
        for name in self.module.names:
            self.module.tower(name).trust.zero_()
        base = self._held_cosines(out)
        best = dict.fromkeys(base, (0.0, 0.0))  # gain and share
        for share in TRUST:
            for name in self.module.names:
                self.module.tower(name).trust.fill_(share)
            for name, cosines in self._held_cosines(out).items():
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
        if self.side is not None:
            tree["features"] = dict(self.side.features)
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
        if self.side is not None:
            shape = (self.data.n_items, self.data.n_items)
            self.matrices = {
                name: sp.csr_array(tuple(part.numpy() for part in parts), shape=shape)
                for name, parts in state["matrices"].items()
            }
            features = {name: feature.to(self.device) for name, feature in state["features"].items()}
            self._set_side(features, self.side.evidence)


def _plainest(answers: Mapping[Option, Tensor]) -> Option:
    """The first option than which none is better, in the mean over the same cells `[k]`, by more than two standard
    errors."""
    best = max(answers.values(), key=lambda cosines: _mean(cosines))
    for option, cosines in answers.items():
        gains = best - cosines
        if len(gains) < 2 or gains.mean() <= 2 * gains.std() / len(gains) ** 0.5:
            return option
    raise AssertionError("the best is not better than itself")


def _mean(values: Tensor) -> float:
    return values.mean().item() if len(values) else 0.0


def calibration_error(served: NDArray[np.float32], measured: NDArray[np.float32], bins: int = 10) -> float:
    """Expected calibration error: mean over equal-width bins of |mean served - mean measured|, weighted by size."""
    if len(served) == 0:
        return 0.0
    place = np.minimum((served * bins).astype(int), bins - 1)
    gaps = [
        abs(served[place == b].mean() - measured[place == b].mean()) * (place == b).mean()
        for b in range(bins)
        if (place == b).any()
    ]
    return float(np.sum(gaps))
