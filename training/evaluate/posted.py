"""New items as a service gets them: posted after training, which has seen nothing of them, with each modality alone and
with all that they have."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from models.arrays import Mask, Rows
from models.dgmrec.inference import kernel_weight
from models.evidence import Evidence
from models.graph import nearest
from models.modality import ModalBatch
from training.datasets.base import Dataset
from training.dgmrec.recipe import observed_texts
from training.dgmrec.task import DGMRecTask
from training.metrics import Ranks, ScoreFunction, Scores, rank_all, summarise
from training.splits import Pairs

FIRST = 20
ALL = "all"


def without_new(batch: ModalBatch, new_items: Rows, *, but: Sequence[str] = ()) -> ModalBatch:
    """The features without those of new items, or with some modalities of these."""
    hidden = torch.zeros_like(batch.observed)
    hidden[new_items] = True
    for name in but:
        hidden[:, batch.names.index(name)] = False
    return batch.masked(hidden)


def measure_posted(task: DGMRecTask, batch: ModalBatch, new_items: Rows, dataset: Dataset) -> dict[str, float]:
    """What becomes of the new items once they are posted, by what is observed of them: one modality, all but one
    (`audio + speech`) where there are more than two, or all.

    - `recall@20[text, among new]`: of the test interactions with new items, each ranked among the new alone; likewise
      `[text, neighbours]`, where they are ranked by the popularity of the warm items nearest by that modality, and
      `[text, TF-IDF neighbours]`, by the words of texts and titles; `[chance]`.
    - `recall@20[text, of all]`: of all test interactions, ranked among all items; `[text, new of all]`: of those
      with new items.
    - `hits@20[text, before]`: test interactions among the first 20 of the lists before the new items are posted,
      `[text, after]` afterwards, of them `[text, new]` with new items.

    Args:
        task: trained with `without_new`. batch: the whole features.
    """
    assert task.content is not None
    test, train = task.data.parts.test, task.data.parts.train
    of_new = np.isin(test[:, 1], new_items)
    metrics = _among_new(_for_everyone(torch.zeros(len(batch))), test[of_new], new_items, "chance")
    for name, kept in observed_kinds(batch.names):
        given = without_new(batch, new_items, but=kept)
        scores = _products(*posted_vectors(task, given, new_items, dataset))
        metrics |= _among_new(scores, test[of_new], new_items, f"{name}, among new")
        metrics |= _among_all(scores, test, train, new_items, name)
        if name in batch.names:
            popularity = _neighbours_popularity(task, given, name)
            metrics |= _among_new(_for_everyone(popularity), test[of_new], new_items, f"{name}, neighbours")
    words = _words(dataset)
    if words is not None:
        popularity = _kernel_mean(task, words, torch.ones(len(batch), dtype=torch.bool))
        metrics |= _among_new(_for_everyone(popularity), test[of_new], new_items, "text, TF-IDF neighbours")
    return metrics


def observed_kinds(names: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """What may be observed of a new item, by name: each modality alone, all but one, all."""
    fewer = itertools.combinations(names, len(names) - 1) if len(names) > 2 else ()
    return [*((name, (name,)) for name in names), *((" + ".join(some), some) for some in fewer), (ALL, names)]


def posted_vectors(task: DGMRecTask, batch: ModalBatch, new_items: Rows, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Users' and items' vectors, those of the new items from what the batch has of them."""
    content, module = task.content, task.module
    assert content is not None
    rows, own = torch.from_numpy(new_items), module.project(batch)
    features = {name: block.index_copy(0, rows, own[name][rows]) for name, block in content.features.items()}
    observed = content.evidence.observed.index_copy(0, rows, batch.observed[rows])
    evidence: Evidence = replace(content.evidence, observed=observed)
    task.reconfigure(catalogue_offset=task.config.popularity_offset)  # all of them are new
    degree = task.interactions.item_degree
    seen = replace(content, features=features, evidence=evidence, words=task.words_of(observed_texts(dataset, batch)))
    out, _ = module.final_embeddings(task.embed(), seen, degree, task.base)
    return out.users, out.items


def _among_new(scores: ScoreFunction, pairs: Pairs, new_items: Rows, label: str) -> dict[str, float]:
    place = np.full(int(new_items.max()) + 1, -1)
    place[new_items] = np.arange(len(new_items))
    renumbered = np.stack([pairs[:, 0], place[pairs[:, 1]]], axis=1)
    return _labelled(rank_all(lambda rows: scores(rows)[:, new_items], renumbered, pairs[:0]), label)


def _among_all(scores: ScoreFunction, test: Pairs, train: Pairs, new_items: Rows, name: str) -> dict[str, float]:
    after = rank_all(scores, test, train)
    of_new = np.isin(after.items, new_items)

    def old_alone(rows: Rows) -> Scores:
        table: Scores = scores(rows).copy()
        table[:, new_items] = -1e6
        return table

    before = rank_all(old_alone, test, train).hits(FIRST)[~of_new].sum()
    hits = {"before": before, "after": after.hits(FIRST).sum(), "new": after.hits(FIRST)[of_new].sum()}
    metrics = _labelled(after, f"{name}, of all") | _labelled(after.select(of_new), f"{name}, new of all")
    return metrics | {f"hits@{FIRST}[{name}, {when}]": float(count) for when, count in hits.items()}


def _labelled(ranks: Ranks, label: str) -> dict[str, float]:
    return {f"{name}[{label}]": value for name, value in summarise(ranks, (FIRST,)).items()}


def _products(users: Tensor, items: Tensor) -> ScoreFunction:
    left, right = users.cpu().numpy(), items.cpu().numpy()
    return lambda rows: left[rows] @ right.T


def _for_everyone(values: Tensor) -> ScoreFunction:
    return lambda rows: np.tile(values.numpy(), (len(rows), 1))


def _neighbours_popularity(task: DGMRecTask, batch: ModalBatch, name: str) -> Tensor:
    return _kernel_mean(task, task.module.project(batch)[name], batch.observed[:, batch.names.index(name)])


def _kernel_mean(task: DGMRecTask, features: Tensor, having: Mask | Tensor) -> Tensor:
    """The kernel-weighted mean logarithm `[n]` of the degrees of the nearest warm items."""
    config, degree = task.config, task.interactions.item_degree.cpu()
    allowed = torch.as_tensor(having) & (degree > 0)
    near, cosines = nearest(
        features, features, config.cold_neighbours, allowed=allowed, exclude=torch.arange(len(features))
    )
    weights = kernel_weight(config, cosines, degree[near], 0.0).where(near >= 0, 0)
    total = (weights * degree[near].clamp_min(1).log()).sum(dim=1)
    mean: Tensor = total / weights.sum(dim=1).clamp_min(1e-12)
    return mean


def _words(dataset: Dataset) -> Tensor | None:
    """TF-IDF `[n, words]` of the items' titles and texts; None where there are none."""
    texts = [_text_of(record) for record in dataset.records]
    if not any(texts):
        return None
    matrix = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=2).fit_transform(texts)
    return torch.from_numpy(matrix.toarray().astype(np.float32))


def _text_of(record: Mapping[str, object]) -> str:
    modalities = record.get("modalities")
    text = modalities.get("text") if isinstance(modalities, Mapping) else None
    return " ".join(part for part in (record.get("title"), text) if isinstance(part, str))
