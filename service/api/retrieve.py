"""Search across modalities."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from service.api import answers
from service.api.answers import Json
from service.api.deps import READ, EngineDep, json_body
from service.api.openapi import json_request, problems
from service.api.schemas import requests, responses
from service.domain import TextContent
from service.pipeline import retrieve

router = APIRouter(tags=["retrieve"])


@router.get("/retrieve", dependencies=[READ], responses={200: {"model": responses.HitsAnswer}, **problems()})
async def retrieve_by_text(engine: EngineDep, query: Annotated[requests.RetrieveQuery, Query()]) -> Response:
    """Find items by a text; those that lack the target modality are reached through their generated feature."""
    hits = await retrieve.retrieve(
        engine,
        {"text": TextContent(query.text)},
        n=query.n,
        target=query.target,
        include_generated=query.include_generated,
        categories=query.category,
        at="/query/text",
    )
    return Json(answers.hits(hits))


@router.post(
    "/retrieve",
    dependencies=[READ],
    responses={200: {"model": responses.HitsAnswer}, **problems(body=True)},
    openapi_extra=json_request(requests.RetrieveBody),
)
async def retrieve_by_content(
    engine: EngineDep, body: Annotated[requests.RetrieveBody, json_body(requests.RetrieveBody)]
) -> Response:
    """Find items by a text, a picture or a ready vector."""
    hits = await retrieve.retrieve(
        engine,
        requests.to_query(body),
        n=body.n,
        target=body.target,
        include_generated=body.include_generated,
        categories=body.category,
        at=requests.query_pointer(body),
    )
    return Json(answers.hits(hits))
