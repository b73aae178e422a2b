"""Items: create, replace, patch, delete, read, list, and impute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from models.rows import ITEM_ROW, ImputeBody, ItemBody, ItemId, ModalityName
from service.api import answers, errors
from service.api.answers import Json
from service.api.deps import (
    MERGE_PATCH,
    READ,
    WRITE,
    EngineDep,
    HiddenDep,
    Upload,
    WithFiles,
    item_body,
    json_body,
)
from service.api.idempotency import key_of
from service.api.openapi import item_request, json_request, problems
from service.api.reading import in_thread, read_row
from service.api.schemas import requests, responses
from service.domain import Draft, InvalidInputError, ItemView, LacunaError, MediaContent, Written
from service.pipeline import browse, items, patch, retrieve, what_if
from service.ports import Answer, Keep

router = APIRouter(tags=["items"])

ItemPath = Annotated[ItemId, Path()]
ModalityPath = Annotated[ModalityName, Path()]

# What a browser may show by itself; anything else is handed over as bytes. SVG can hold scripts and is left out.
_SHOWN = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff"})


def _draft(given: WithFiles, item_id: str = "") -> Draft:
    draft = requests.to_draft(given.body, item_id)
    return replace(draft, modalities={**draft.modalities, **_media(given.files, draft.modalities)})


def _media(files: Mapping[str, Upload], described: Mapping[str, object]) -> dict[str, MediaContent]:
    for name in files:
        if name in described:
            detail = "this modality is given as a file and in the item's JSON"
            raise InvalidInputError(detail, errors.pointer(("modalities", name)))
    return {name: MediaContent(upload.data, upload.media_type) for name, upload in files.items()}


@router.post(
    "/items",
    status_code=201,
    dependencies=[WRITE],
    responses={201: {"model": responses.WrittenAnswer}, **problems(409, body=True)},
    openapi_extra=item_request(ItemBody),
)
async def create_item(
    engine: EngineDep, request: Request, given: Annotated[WithFiles, item_body(ItemBody)]
) -> Response:
    """Create an item. Its missing modalities are generated before the answer."""
    key = key_of(request)
    kept: Keep[ItemView] | None = None
    if key is not None:
        kept = Keep(key, lambda view: Answer(201, bytes(Json(answers.written(view)).body)))
    written = await items.create_item(engine, _draft(given, given.body.id), kept)
    return Json(answers.written(written.item), status_code=201)


@router.post(
    "/items/batch",
    dependencies=[WRITE],
    responses={200: {"model": responses.BatchAnswer}, **problems(body=True)},
    openapi_extra=json_request(requests.BatchBody),
)
async def create_batch(
    engine: EngineDep, request: Request, body: Annotated[requests.BatchBody, json_body(requests.BatchBody)]
) -> Response:
    """Create up to 1,000 items. Each row is answered as if it had come alone."""
    rows = await in_thread(request, _rows, body.items)
    outcomes = await items.create_batch(engine, [row for row in rows if isinstance(row, Draft)])
    done = iter(outcomes)
    return Json(
        {
            "items": [
                _row_answer(index, _row_id(row), next(done) if isinstance(draft, Draft) else draft)
                for index, (row, draft) in enumerate(zip(body.items, rows, strict=True))
            ]
        }
    )


def _rows(rows: Sequence[object]) -> list[Draft | errors.Problem]:
    return [_row(row) for row in rows]


def _row(row: object) -> Draft | errors.Problem:
    try:
        body = read_row(ITEM_ROW, row)
        return requests.to_draft(body, body.id)
    except errors.ProblemError as error:
        return error.problem
    except LacunaError as error:
        return errors.problem_of(error)


def _row_id(row: object) -> str | None:
    item_id = row.get("id") if isinstance(row, dict) else None
    return item_id if isinstance(item_id, str) else None


def _row_answer(index: int, item_id: str | None, outcome: Written | LacunaError | errors.Problem) -> dict[str, Any]:
    if isinstance(outcome, Written):
        return {"index": index, "status": 201, **answers.written(outcome.item)}
    problem = errors.problem_of(outcome) if isinstance(outcome, LacunaError) else outcome
    return {"index": index, "id": item_id, "status": problem.status, "problem": problem.body()}


@router.get("/items", dependencies=[READ], responses={200: {"model": responses.ItemPage}, **problems()})
async def list_items(engine: EngineDep, query: Annotated[requests.ListQuery, Query()]) -> Response:
    """A page of the catalogue, in order of id."""
    page = await browse.list_items(
        engine,
        limit=query.limit,
        cursor=query.cursor,
        categories=query.category,
        missing=query.missing,
        generated=query.generated,
        q=query.q,
    )
    return Json(answers.page(page, answers.item))


@router.get("/items/{item_id}", dependencies=[READ], responses={200: {"model": responses.ItemAnswer}, **problems(404)})
async def get_item(engine: EngineDep, item_id: ItemPath) -> Response:
    """One item."""
    return Json(answers.item(await browse.get_item(engine, item_id)))


@router.put(
    "/items/{item_id}",
    dependencies=[WRITE],
    responses={
        200: {"model": responses.WrittenAnswer},
        201: {"model": responses.WrittenAnswer},
        **problems(409, body=True),
    },
    openapi_extra=item_request(requests.PutBody),
)
async def put_item(
    engine: EngineDep, item_id: ItemPath, given: Annotated[WithFiles, item_body(requests.PutBody)]
) -> Response:
    """Create an item (201) or replace it (200)."""
    if given.body.id not in (None, item_id):
        raise InvalidInputError("the id differs from the one in the path", "/id")
    written = await items.put_item(engine, _draft(given, item_id))
    return Json(answers.written(written.item), status_code=201 if written.created else 200)


@router.patch(
    "/items/{item_id}",
    dependencies=[WRITE],
    responses={200: {"model": responses.WrittenAnswer}, **problems(404, 409, body=True)},
    openapi_extra=json_request(requests.PatchBody, MERGE_PATCH),
)
async def patch_item(
    engine: EngineDep,
    item_id: ItemPath,
    body: Annotated[requests.PatchBody, json_body(requests.PatchBody, MERGE_PATCH)],
) -> Response:
    """Change parts of an item: null removes a modality, what is left out stays."""
    return Json(answers.written(await patch.patch_item(engine, item_id, requests.to_patch(body))))


@router.delete("/items/{item_id}", status_code=204, dependencies=[WRITE], responses=problems(404, 409))
async def delete_item(engine: EngineDep, item_id: Annotated[str, Path(min_length=1)]) -> Response:
    """Remove an item, also one whose id is no longer taken; it is gone from every later answer."""
    await items.delete_item(engine, item_id)
    return Response(status_code=204)


@router.get(
    "/items/{item_id}/modalities/{modality}",
    dependencies=[READ],
    responses={200: {"model": responses.ModalityDetailAnswer}, **problems(404)},
)
async def get_modality(
    engine: EngineDep,
    item_id: ItemPath,
    modality: ModalityPath,
    query: Annotated[requests.ModalityQuery, Query()],
    hidden: HiddenDep,
) -> Response:
    """One modality of an item: its state, its provenance, and the items whose observed feature is nearest."""
    detail = await browse.get_modality(
        engine, item_id, modality, neighbours=query.neighbours, vector=query.vector, hidden=hidden
    )
    return Json(answers.modality(detail))


@router.get(
    "/items/{item_id}/media/{modality}",
    dependencies=[READ],
    response_class=Response,
    responses={
        200: {
            "description": "The stored file",
            "content": {media_type: {} for media_type in (*sorted(_SHOWN), "application/octet-stream")},
        },
        304: {"description": "Not modified"},
        **problems(404),
    },
)
async def get_media(engine: EngineDep, item_id: ItemPath, modality: ModalityPath, request: Request) -> Response:
    """The file that was stored for a modality."""
    media = await browse.get_media(engine, item_id, modality)
    headers = {
        "ETag": f'"{media.sha256}"',
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    is_shown = media.media_type in _SHOWN
    return Response(
        media.data, headers=headers, media_type=media.media_type if is_shown else "application/octet-stream"
    )


@router.get(
    "/items/{item_id}/similar",
    dependencies=[READ],
    responses={200: {"model": responses.HitsAnswer}, **problems(404)},
)
async def similar_items(
    engine: EngineDep, item_id: ItemPath, query: Annotated[requests.SimilarQuery, Query()]
) -> Response:
    """The items nearest to this one, by final vector or by one modality."""
    hits = await retrieve.similar(engine, item_id, n=query.n, by=query.by, include_generated=query.include_generated)
    return Json(answers.hits(hits))


@router.post(
    "/items/{item_id}/what-if",
    dependencies=[READ],
    responses={200: {"model": responses.WhatIfAnswer}, **problems(404, body=True)},
    openapi_extra=json_request(requests.WhatIfBody),
)
async def ask_what_if(
    engine: EngineDep,
    item_id: ItemPath,
    body: Annotated[requests.WhatIfBody, json_body(requests.WhatIfBody)],
    hidden: HiddenDep,
) -> Response:
    """Tell what would change in users' lists and in searches if an item lacked modalities or had others; nothing is
    stored."""
    return Json(answers.what_if(await what_if.what_if(engine, item_id, requests.to_question(body), hidden=hidden)))


@router.post(
    "/impute",
    dependencies=[READ],
    responses={200: {"model": responses.ImputationAnswer}, **problems(body=True)},
    openapi_extra=item_request(ImputeBody),
)
async def impute(
    engine: EngineDep,
    query: Annotated[requests.ImputeQuery, Query()],
    given: Annotated[WithFiles, item_body(ImputeBody)],
    hidden: HiddenDep,
) -> Response:
    """Generate the missing modalities of an item and answer them; nothing is stored."""
    imputation = await items.impute(engine, _draft(given), neighbours=query.neighbours, hidden=hidden)
    return Json(answers.imputation(imputation))
