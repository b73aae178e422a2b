"""What the protocols count: rankings by kind of item, and imputed features against the truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from models.arrays import Mask, Rows
from models.calibration import calibration_error
from models.graph import nearest
from models.imputers import observed_means
from models.modality import ModalBatch
from training.metrics import Ranks, summarise

RELEVANT = 5
NEIGHBOURHOOD_HITS = (5, 10, 20)
SELF_HIT = 10
_TIE = 1e-6  # cosines nearer than this are equal: products of equal rows differ in their last bits
CELLS = 4_000_000  # similarities held at once


def ranking_by_level(ranks: Ranks, level: Rows) -> dict[str, float]:
    """The ranking metrics, and as `recall@20[level=k]` those of the test interactions with items that lack k modalities
    (`level [n]`), each ranked among all items."""
    metrics = summarise(ranks)
    for lacking in np.unique(level):
        metrics |= _of(ranks, level[ranks.items] == lacking, f"level={lacking}")
    return metrics


def ranking_of_new(ranks: Ranks, new_items: Rows) -> dict[str, float]:
    """The ranking metrics, and as `recall@20[new]` those of the test interactions with new items, ranked among all."""
    return summarise(ranks) | _of(ranks, np.isin(ranks.items, new_items), "new")


def _of(ranks: Ranks, chosen: Mask, label: str) -> dict[str, float]:
    if not chosen.any():
        return {}
    return {f"{name}[{label}]": value for name, value in summarise(ranks.select(chosen)).items()}


def retrieval(
    complete: ModalBatch,
    batch: ModalBatch,
    filled: Mapping[str, Tensor],
    confidence: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Imputed features of the withheld cells against the truth, by modality and by how many the item lacks.

    All similarities are centred cosines: the mean of the observed features is subtracted first. Ties count with their
    average rank.

    - `cosine`: of the imputed with the true feature.
    - `neighbourhood_hit@k`: the imputed feature searches the true features of all other items; a hit if one of the
      5 items truly nearest stands in the first k.
    - `self_hit@10`, `self_mrr`: the true feature searches all items, each by its observed or else its imputed feature;
      a hit if the item itself stands in the first 10.
    - `calibration_error` (with `confidence`): expected calibration error of the confidence as a forecast of `cosine`.

    Args:
        complete: all features, the withheld ones included.
        batch: the features that the imputation saw.
        filled: by modality `[n, d_m]`, every cell filled.
        confidence: by modality `[n]`.

    Returns:
        Means over cells as `name[modality]`, `name[modality][level=k]`, and `calibration_error` over all cells.
    """
    means, level = observed_means(batch), (~batch.observed).sum(dim=1)
    metrics: dict[str, float] = {}
    served, measured = [], []
    for column, name in enumerate(batch.names):
        known = complete.observed[:, column]
        rows = (known & ~batch.observed[:, column]).nonzero().squeeze(1)
        if not len(rows):
            continue
        truth, imputed = complete.features[name] - means[name], filled[name] - means[name]
        figures = _cell_figures(imputed, truth, known, rows)
        for label, chosen in _groups(name, level[rows]).items():
            metrics |= {f"{figure}{label}": values[chosen].mean().item() for figure, values in figures.items()}
            if confidence is not None:
                metrics[f"calibration_error{label}"] = _calibration(
                    confidence[name][rows][chosen], figures["cosine"][chosen]
                )
        if confidence is not None:
            served.append(confidence[name][rows])
            measured.append(figures["cosine"])
    if served:
        metrics["calibration_error"] = _calibration(torch.cat(served), torch.cat(measured))
    return metrics


def _groups(name: str, level: Tensor) -> dict[str, Tensor]:
    """Which cells `[k]` stand under each label: all of a modality's, and those of items that lack so many."""
    every = {f"[{name}]": torch.ones(len(level), dtype=torch.bool)}
    return every | {f"[{name}][level={lacking}]": level == lacking for lacking in sorted(set(level.tolist()))}


def _cell_figures(imputed: Tensor, truth: Tensor, known: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """Each figure of every cell `[k]` of one modality, from centred features `[n, d_m]`."""
    cosine = F.cosine_similarity(imputed[rows], truth[rows], dim=1).clamp(-1, 1)
    places = _neighbourhood_places(imputed, truth, known, rows)
    hits = {f"neighbourhood_hit@{k}": (places <= k).float() for k in NEIGHBOURHOOD_HITS}
    places = _self_places(imputed, truth, rows)
    return {"cosine": cosine, **hits, f"self_hit@{SELF_HIT}": (places <= SELF_HIT).float(), "self_mrr": 1 / places}


def _calibration(served: Tensor, measured: Tensor) -> float:
    return calibration_error(served.numpy(), measured.numpy())


def _neighbourhood_places(imputed: Tensor, truth: Tensor, known: Tensor, rows: Tensor) -> Tensor:
    """Best place `[k]` of an item's truly nearest ones when its imputed feature searches the others' true features."""
    relevant, _ = nearest(truth[rows], truth, RELEVANT, allowed=known, exclude=rows)
    queries, keys = F.normalize(imputed, dim=1), F.normalize(truth, dim=1)
    places = torch.full((len(rows),), torch.inf)
    for part in _blocks(len(rows), len(keys)):
        cosines = queries[rows[part]] @ keys.T
        cosines[:, ~known] = -torch.inf
        cosines.scatter_(1, rows[part, None], -torch.inf)
        for wanted in relevant[part].T:
            place = average_places(cosines, wanted.clamp_min(0))
            places[part] = torch.minimum(places[part], place.where(wanted >= 0, torch.inf))
    return places


def _self_places(imputed: Tensor, truth: Tensor, rows: Tensor) -> Tensor:
    """Place `[k]` of each item itself when its true feature searches all items as they are filled."""
    queries, keys = F.normalize(truth, dim=1), F.normalize(imputed, dim=1)
    places = torch.empty(len(rows))
    for part in _blocks(len(rows), len(keys)):
        places[part] = average_places(queries[rows[part]] @ keys.T, rows[part])
    return places


def average_places(cosines: Tensor, wanted: Tensor) -> Tensor:
    """Place `[b]` of one column a row, from 1; a tied group shares the mean of its places."""
    own = cosines.gather(1, wanted[:, None])
    above = (cosines > own + _TIE).sum(dim=1)
    tied = (cosines >= own - _TIE).sum(dim=1) - above
    return above + (tied + 1) / 2


def _blocks(queries: int, candidates: int) -> list[slice]:
    step = max(1, CELLS // max(candidates, 1))
    return [slice(start, min(start + step, queries)) for start in range(0, queries, step)]
