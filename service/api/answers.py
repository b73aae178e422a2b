"""The response that writes JSON, and the service's objects where they are answered otherwise than they are.

Objects that are the answer (`Explanation`, `PredictedRating`, `User`, ...) are given to `Json` as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar
from urllib.parse import quote

import orjson
from starlette.responses import Response

from service.domain import (
    Event,
    FeedbackOutcome,
    Hit,
    Imputation,
    ItemView,
    ListChange,
    ModalityDetail,
    ModalityReport,
    Page,
    PredictedRating,
    Recommendations,
    State,
    WhatIf,
)

T = TypeVar("T")

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z


class Json(Response):
    """A JSON response straight from orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Dataclasses, dicts, lists, enums, aware datetimes and float32 arrays; NaN becomes null."""
        return orjson.dumps(content, option=_OPTIONS)


def report(modality: ModalityReport) -> dict[str, Any]:
    """State of a modality; where it is generated: by what, how surely, from what, and whether it is too unsure to be
    used; where content was given that is no observation, why; whether a text was not read to its end; and whether it is
    the title, as no text was given."""
    answer: dict[str, Any] = {"state": modality.state}
    if modality.state is State.GENERATED:
        answer["generator"] = modality.generator
        answer["confidence"] = modality.confidence
        answer["basis"] = modality.basis
        if modality.calibrated_on is not None:
            answer["calibrated_on"] = modality.calibrated_on
        if not modality.used:
            answer["used"] = False
    if modality.detail is not None:
        answer["detail"] = modality.detail
    if modality.truncated:
        answer["truncated"] = True
    if modality.from_title:
        answer["source"] = "title"
    return answer


def written(view: ItemView) -> dict[str, Any]:
    """The answer to a write."""
    return {
        "id": view.id,
        "version": view.version,
        "model_version": view.model_version,
        "modalities": {name: report(modality) for name, modality in view.modalities.items()},
        "timings_ms": view.timings_ms,
    }


def item(view: ItemView) -> dict[str, Any]:
    """The whole item, for GET. `media` maps a modality to the path of its stored file."""
    return {
        "id": view.id,
        "title": view.title,
        "text": view.text,
        "categories": view.categories,
        "metadata": view.metadata,
        "available": view.available,
        "version": view.version,
        "model_version": view.model_version,
        "pending": view.is_pending,
        "modalities": {name: report(modality) for name, modality in view.modalities.items()},
        "media": {name: f"/items/{quote(view.id)}/media/{quote(name)}" for name in view.media},
        "created_at": view.created_at,
        "updated_at": view.updated_at,
    }


def hit(found: Hit, *, explain: bool = False) -> dict[str, Any]:
    """One item of a list. `matched` only where a search went through a modality; `explain` adds its reasons."""
    answer: dict[str, Any] = {
        "id": found.id,
        "title": found.title,
        "score": found.score,
        "modalities": found.modalities,
    }
    if found.matched is not None:
        answer["matched"] = found.matched
    if explain:
        answer["reasons"] = found.reasons
    return answer


def hits(ranked: Iterable[Hit]) -> dict[str, Any]:
    """A list of found items, best first."""
    return {"items": [hit(item) for item in ranked]}


def recommendations(ranked: Recommendations, *, explain: bool) -> dict[str, Any]:
    """A ranked list; `explain` adds each item's reasons."""
    return _fields(ranked) | {"items": [hit(item, explain=explain) for item in ranked.items]}


def modality(detail: ModalityDetail) -> dict[str, Any]:
    """One modality of an item: state, provenance, content and the nearest observed neighbours."""
    answer = report(detail.report)
    answer["source"] = detail.source
    answer["text"] = detail.text
    answer["media"] = detail.media
    answer["neighbours"] = [hit(item) for item in detail.neighbours]
    if detail.vector is not None:
        answer["vector"] = detail.vector
    return answer


def imputation(imputed: Imputation) -> dict[str, Any]:
    """What was generated for an item that is not stored."""
    return _fields(imputed) | {"modalities": {name: modality(detail) for name, detail in imputed.modalities.items()}}


def what_if(imagined: WhatIf) -> dict[str, Any]:
    """What would change if an item's modalities were others."""
    lists = imagined.lists
    return {
        "id": imagined.id,
        "model_version": imagined.model_version,
        "modalities": {
            name: {"before": report(imagined.before[name]), "after": report(imagined.after[name])}
            for name in imagined.before
        },
        "lists": {
            "n": lists.n,
            "depth": lists.depth,
            "seed": lists.seed,
            "sampled": lists.sampled,
            "changed": lists.changed,
            "users": [
                {name: value for name, value in _fields(change).items() if name != "is_changed"}
                for change in lists.lists
            ],
        },
        "audience": {
            "before": lists.audience_before,
            "after": lists.audience_after,
            "gained": lists.gained,
            "lost": lists.lost,
        },
        "searches": {
            name: {
                "depth": searches.depth,
                "searched": searches.searched,
                "changed": searches.changed,
                "items": searches.searches,
            }
            for name, searches in imagined.searches.items()
        },
        "dependents": imagined.dependents,
        "timings_ms": imagined.timings_ms,
    }


def event(stored: Event) -> dict[str, Any]:
    """One feedback event; what was not given is left out."""
    return {name: value for name, value in _fields(stored).items() if value is not None}


def feedback(outcome: FeedbackOutcome) -> dict[str, Any]:
    """How many events were accepted, and which were not and why."""
    return {
        "accepted": outcome.accepted,
        "rejected": [{"index": index, "detail": detail} for index, detail in sorted(outcome.rejected)],
    }


def prediction(predicted: PredictedRating, model_version: str) -> dict[str, Any]:
    """What a user would rate an item, and by which bundle's model."""
    return _fields(predicted) | {"model_version": model_version}


def page(stored: Page[T], transform: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
    """One page of a list, each of its entries transformed."""
    return {"items": [transform(entry) for entry in stored.items], "next_cursor": stored.next_cursor}


def _fields(value: Event | Imputation | ListChange | PredictedRating | Recommendations) -> dict[str, Any]:
    """An object's fields by name, as they are."""
    return {field.name: getattr(value, field.name) for field in fields(value)}
