"""The service's objects as JSON-ready dicts, and the response that writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import orjson
from starlette.responses import Response

from service.domain import (
    Event,
    Explanation,
    FeedbackOutcome,
    Hit,
    Imputation,
    ItemView,
    ModalityDetail,
    ModalityReport,
    PredictedRating,
    Reason,
    Recommendations,
    State,
    User,
)

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z


class Json(Response):
    """A JSON response straight from orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Dicts, lists, enums, aware datetimes and float32 arrays; NaN becomes null."""
        return orjson.dumps(content, option=_OPTIONS)


def report(modality: ModalityReport) -> dict[str, Any]:
    """State of a modality; where it is generated: by what, how surely, from what; where content was given that is no
    observation, why; and whether a text was not read to its end."""
    answer: dict[str, Any] = {"state": modality.state}
    if modality.state is State.GENERATED:
        answer["generator"] = modality.generator
        answer["confidence"] = modality.confidence
        answer["basis"] = modality.basis
    if modality.detail is not None:
        answer["detail"] = modality.detail
    if modality.truncated:
        answer["truncated"] = True
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
        "modalities": {name: report(modality) for name, modality in view.modalities.items()},
        "media": {name: f"/items/{quote(view.id)}/media/{quote(name)}" for name in view.media},
        "created_at": view.created_at,
        "updated_at": view.updated_at,
    }


def hit(found: Hit) -> dict[str, Any]:
    """One item of a list. `matched` only where a search went through a modality."""
    answer: dict[str, Any] = {
        "id": found.id,
        "title": found.title,
        "score": found.score,
        "modalities": found.modalities,
    }
    if found.matched is not None:
        answer["matched"] = {"modality": found.matched.modality, "state": found.matched.state}
    return answer


def hits(found: list[Hit]) -> dict[str, Any]:
    """A list of found items, best first."""
    return {"items": [hit(one) for one in found]}


def reason(given: Reason) -> dict[str, Any]:
    """One item of the history, and how it speaks for another one."""
    return {
        "item": given.item,
        "title": given.title,
        "relevance": given.relevance,
        "modalities": given.modalities,
        "states": given.states,
    }


def explanation(found: Explanation) -> dict[str, Any]:
    """What a user's history says of an item."""
    return {
        "user": found.user,
        "item": found.item,
        "title": found.title,
        "score": found.score,
        "item_bias": found.item_bias,
        "modalities": found.modalities,
        "reasons": [reason(given) for given in found.reasons],
        "model_version": found.model_version,
        "fallback": found.fallback,
    }


def recommendations(ranked: Recommendations, *, explain: bool) -> dict[str, Any]:
    """A ranked list; `explain` adds each item's reasons."""
    items = [hit(one) for one in ranked.items]
    if explain:
        for answer, one in zip(items, ranked.items, strict=True):
            answer["reasons"] = [reason(given) for given in one.reasons]
    return {
        "user": ranked.user,
        "recommendation_id": ranked.recommendation_id,
        "model": ranked.model,
        "model_version": ranked.model_version,
        "fallback": ranked.fallback,
        "items": items,
    }


def modality(detail: ModalityDetail) -> dict[str, Any]:
    """One modality of an item: state, provenance, content and the nearest observed neighbours."""
    answer = report(detail.report)
    answer["source"] = detail.source
    answer["text"] = detail.text
    answer["media"] = detail.media
    answer["neighbours"] = [hit(one) for one in detail.neighbours]
    if detail.vector is not None:
        answer["vector"] = detail.vector
    return answer


def imputation(made: Imputation) -> dict[str, Any]:
    """What was generated for an item that is not stored."""
    return {
        "model_version": made.model_version,
        "modalities": {name: modality(detail) for name, detail in made.modalities.items()},
        "timings_ms": made.timings_ms,
    }


def event(stored: Event) -> dict[str, Any]:
    """One feedback event; what was not given is left out."""
    answer: dict[str, Any] = {
        "user": stored.user,
        "item": stored.item,
        "type": stored.type,
        "timestamp": stored.timestamp,
        "value": stored.value,
        "text": stored.text,
        "recommendation_id": stored.recommendation_id,
    }
    return {name: value for name, value in answer.items() if value is not None}


def feedback(outcome: FeedbackOutcome) -> dict[str, Any]:
    """How many events were accepted, and which were not and why."""
    return {
        "accepted": outcome.accepted,
        "rejected": [{"index": index, "detail": detail} for index, detail in sorted(outcome.rejected)],
    }


def prediction(found: PredictedRating) -> dict[str, Any]:
    """What a user would rate an item."""
    return {
        "user": found.user,
        "item": found.item,
        "rating": found.rating,
        "interval": found.interval,
        "modalities": found.modalities,
        "unknown": found.unknown,
    }


def user(stored: User) -> dict[str, Any]:
    """What is stored of a user."""
    return {
        "id": stored.id,
        "events": stored.events,
        "items": stored.items,
        "first_event": stored.first_event,
        "last_event": stored.last_event,
    }


def page(items: list[dict[str, Any]], next_cursor: str | None) -> Mapping[str, Any]:
    """One page of a list."""
    return {"items": items, "next_cursor": next_cursor}
