"""Search across modalities."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from service.api import answers, schemas
from service.api.answers import Json
from service.api.deps import READ, EngineDep, json_body
from service.api.openapi import json_request, problems
from service.domain import TextContent
from service.pipeline import retrieve

router = APIRouter(tags=["retrieve"])


@router.get("/retrieve", dependencies=[READ], responses={200: {"model": schemas.HitsAnswer}, **problems()})
async def retrieve_by_text(engine: EngineDep, query: Annotated[schemas.RetrieveQuery, Query()]) -> Response:
    """Find items by a text; those that lack the target modality are reached through their generated feature."""
    found = await retrieve.retrieve(
        engine,
        {"text": TextContent(query.text)},
        n=query.n,
        target=query.target,
        include_generated=query.include_generated,
        categories=query.category,
        at="/query/text",
    )
    return Json(answers.hits(found))


@router.post(
    "/retrieve",
    dependencies=[READ],
    responses={200: {"model": schemas.HitsAnswer}, **problems(body=True)},
    openapi_extra=json_request(schemas.RetrieveBody),
)
async def retrieve_by_content(
    engine: EngineDep, body: Annotated[schemas.RetrieveBody, json_body(schemas.RetrieveBody)]
) -> Response:
    """Find items by a text, a picture or a ready vector."""
    found = await retrieve.retrieve(
        engine,
        schemas.to_query(body),
        n=body.n,
        target=body.target,
        include_generated=body.include_generated,
        categories=body.category,
        at=schemas.query_pointer(body),
    )
    return Json(answers.hits(found))
