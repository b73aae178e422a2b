"""What is answered of an item."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import Array
from service.domain import (
    Generated,
    Hit,
    ItemView,
    Match,
    ModalityDetail,
    ModalityReport,
    Observed,
    Reason,
    Remark,
    State,
    StoredItem,
    Vector,
)
from service.pipeline.catalogue import Catalogue
from service.pipeline.confidence import Confidence
from service.pipeline.impute import Completed
from service.pipeline.vectors import nearest
from service.ports import Keys

UNUSED = "Its confidence is below {:g}, so it is left out of searches and of the item's vector."


def report(
    confidence: Confidence,
    modality: str,
    state: State,
    generated: Generated | None,
    remark: Remark | None,
    observed: Observed | None = None,
) -> ModalityReport:
    """State and provenance, and what is to be said of the content."""
    remark = remark or Remark()
    if state is not State.GENERATED or generated is None:
        from_title = observed is not None and observed.is_title
        return ModalityReport(state, detail=remark.detail, truncated=remark.truncated, from_title=from_title)
    served, least = confidence.serve(modality, generated.confidence), confidence.least.get(modality, 0.0)
    details = [remark.detail, None if served >= least else UNUSED.format(least)]
    return ModalityReport(
        state,
        generated.generator,
        served,
        generated.basis,
        " ".join(filter(None, details)) or None,
        remark.truncated,
        used=served >= least,
        calibrated_on=confidence.calibrated_on(modality),
    )


def report_of(confidence: Confidence, item: StoredItem, modality: str) -> ModalityReport:
    """The report on one modality of a stored item."""
    generated, remark = item.generated.get(modality), item.remarks.get(modality)
    return report(confidence, modality, item.state_of(modality), generated, remark, item.observed.get(modality))


def text_of(observed: Observed | None, remark: Remark | None) -> str | None:
    """The text that was given, whether or not it could be read."""
    if observed is not None:
        return observed.text
    return remark.text if remark is not None else None


def item(stored: StoredItem, catalogue: Catalogue, timings: Mapping[str, float] | None = None) -> ItemView:
    """A stored item as it is answered, with the modalities `names` of the active bundle."""
    return ItemView(
        id=stored.id,
        title=stored.title,
        categories=stored.categories,
        metadata=stored.metadata,
        available=stored.available,
        version=stored.version,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        model_version=stored.model_version,
        modalities={name: report_of(catalogue.confidence, stored, name) for name in catalogue.names},
        text=text_of(stored.observed.get("text"), stored.remarks.get("text")),
        media={name: feature.media for name, feature in stored.observed.items() if feature.media is not None},
        timings_ms=dict(timings or {}),
        is_pending=stored.is_pending,
    )


def hits(
    catalogue: Catalogue,
    keys: Keys,
    scores: NDArray[np.floating[Any]],
    modality: str | None = None,
    reasons: Mapping[int, tuple[Reason, ...]] = MappingProxyType({}),
) -> list[Hit]:
    """Search results `[k]` as answers, best first; items that vanished meanwhile and padding are left out. `reasons` by
    key."""
    answer = []
    for key, score in zip(keys.tolist(), scores.tolist(), strict=True):
        entry = catalogue.entries.get(key)
        if key < 0 or entry is None:
            continue
        matched = Match(modality, entry.states[modality]) if modality is not None else None
        answer.append(Hit(entry.id, entry.title, score, entry.states, matched, reasons.get(key, ())))
    return answer


def neighbours(
    catalogue: Catalogue, modality: str, feature: Array, k: int, key: int | None = None, *, hidden: bool
) -> tuple[Hit, ...]:
    """The items whose observed feature is nearest to a projected one `[r_m]`: what it means, in items to look at.
    `hidden` ones, which are not available, may be among them or not."""
    if k == 0:
        return ()
    mask = catalogue.having(modality, excluded=key)
    if not hidden:
        mask &= catalogue.available[: len(mask)]
    keys, cosines = nearest(catalogue.observed_indexes[modality], feature[None], k, mask)
    return tuple(hits(catalogue, keys[0], cosines[0], modality))


def imputed(
    catalogue: Catalogue,
    completed: Completed,
    observed: Observed | None,
    remark: Remark | None,
    modality: str,
    k: int,
    *,
    hidden: bool,
) -> ModalityDetail:
    """One modality of an item that is not stored, with its vector."""
    generated = completed.generated.get(modality)
    vector: Vector | None = observed.vector if observed else generated.vector if generated else None
    return ModalityDetail(
        item="",
        modality=modality,
        report=report(catalogue.confidence, modality, completed.states[modality], generated, remark, observed),
        source=observed.source if observed else None,
        text=text_of(observed, remark),
        media=None,
        neighbours=neighbours(catalogue, modality, completed.features[modality], k, hidden=hidden),
        vector=vector,
    )
