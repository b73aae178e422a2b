"""Recommendations for a user, and for a session without one, and what explains them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from models.rows import ItemId, UserId
from service.api import answers
from service.api.answers import Json
from service.api.deps import READ, EngineDep, HiddenDep, MetricsDep, json_body
from service.api.openapi import json_request, problems
from service.api.schemas import requests, responses
from service.pipeline import explain, recommend
from service.pipeline.recommend import Among

router = APIRouter(tags=["recommend"])


@router.get(
    "/recommend/{user}",
    dependencies=[READ],
    responses={200: {"model": responses.RecommendationsAnswer}, **problems(404)},
)
async def recommend_user(
    engine: EngineDep,
    metrics: MetricsDep,
    user: Annotated[UserId, Path()],
    query: Annotated[requests.RecommendQuery, Query()],
    hidden: HiddenDep,
) -> Response:
    """The best items for a user. An unknown user gets a named fallback, or 404 with `strict`."""
    ranked = await recommend.recommend_user(
        engine,
        user,
        n=query.n,
        model=query.model,
        among=Among(query.category, query.exclude_seen, query.include_generated),
        diversity=query.diversity,
        strict=query.strict,
        explain=query.explain,
        hidden=hidden,
    )
    metrics.count_fallback(ranked.fallback)
    return Json(answers.recommendations(ranked, explain=query.explain))


@router.post(
    "/recommend",
    dependencies=[READ],
    responses={200: {"model": responses.RecommendationsAnswer}, **problems(body=True)},
    openapi_extra=json_request(requests.SessionBody),
)
async def recommend_session(
    engine: EngineDep,
    metrics: MetricsDep,
    body: Annotated[requests.SessionBody, json_body(requests.SessionBody)],
    hidden: HiddenDep,
) -> Response:
    """The best items for a session of weighted items."""
    ranked = await recommend.recommend_session(
        engine,
        [(item.id, item.weight) for item in body.items],
        n=body.n,
        model=body.model,
        among=Among(body.category, body.exclude_seen, body.include_generated),
        diversity=body.diversity,
        explain=body.explain,
        hidden=hidden,
    )
    metrics.count_fallback(ranked.fallback)
    return Json(answers.recommendations(ranked, explain=body.explain))


@router.get(
    "/explain/{user}/{item}",
    dependencies=[READ],
    responses={200: {"model": responses.ExplanationAnswer}, **problems(404)},
)
async def explain_pair(
    engine: EngineDep,
    user: Annotated[UserId, Path()],
    item: Annotated[ItemId, Path()],
    hidden: HiddenDep,
) -> Response:
    """What each item of a user's history says of an item, the most relevant first."""
    return Json(await explain.explain_pair(engine, user, item, hidden=hidden))
