"""The OpenAPI document: helpers that declare bodies and problems, and the page that shows it without a network."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import fastapi_offline
import orjson
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from models import rows
from service.api.deps import ADMIN, JSON, MULTIPART, READ, WRITE
from service.api.position import HEADER, LARGEST
from service.api.schemas import requests

PATH = "/openapi.json"
_REF = "#/components/schemas/{model}"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": _REF.format(model="ProblemAnswer")}}}
_ALWAYS = (400, 401, 403, 422, 429, 503, 507)
_BODY = (413, 415)

# Bodies are read by dependencies of ours, so FastAPI does not find these models by itself.
_MODELS: tuple[type[BaseModel], ...] = (
    requests.BatchBody,
    rows.EventBody,
    requests.FeedbackBody,
    rows.ImputeBody,
    rows.ItemBody,
    requests.PairsBody,
    requests.PatchBody,
    requests.PutBody,
    requests.RetrieveBody,
    requests.SessionBody,
    requests.WhatIfBody,
)

_POSITION: dict[str, Any] = {"schema": {"type": "integer", "minimum": 0, "maximum": LARGEST}}
_POSITION_SENT = {
    "name": HEADER,
    "in": "header",
    "description": "Answer once this worker knows the write that was answered with this position, or with 503",
    **_POSITION,
}
_POSITION_TOLD = {"description": "Where in the change log the write stands", **_POSITION}
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
# The page of the docs runs its own script and no other, and speaks to this service alone.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' {script}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def problems(*statuses: int, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """The problems an endpoint may answer, beside those that all do; `body` adds those of reading one."""
    every = {*_ALWAYS, *statuses, *(_BODY if body else ())}
    return {status: {"description": HTTPStatus(status).phrase, "content": _PROBLEM} for status in sorted(every)}


def json_request(model: type[BaseModel], *more_types: str) -> dict[str, Any]:
    """`openapi_extra` of an endpoint that takes a JSON body."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    content = {media_type: {"schema": schema} for media_type in (JSON, *more_types)}
    return {"requestBody": {"required": True, "content": content}}


def item_request(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of an endpoint that takes an item, as JSON or with files beside it."""
    extra = json_request(model)
    extra["requestBody"]["content"][MULTIPART] = {
        "schema": {
            "type": "object",
            "required": ["item"],
            "properties": {"item": {"type": "string", "contentMediaType": JSON}},
            "additionalProperties": {"type": "string", "format": "binary"},
            "description": "The item's JSON as the part `item`, and a file for each modality, named after it",
        }
    }
    return extra


def install(app: FastAPI, routers: Sequence[APIRouter], *, keys_needed: bool) -> None:
    """Serve /openapi.json as described here, of these routers, and /docs from files on disk instead of from a content
    network."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, routers, keys_needed=keys_needed)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
    app.include_router(_schema(document))
    app.mount("/docs/static", StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))
    app.include_router(_docs(app))


def _schema(document: Callable[[], dict[str, Any]]) -> APIRouter:
    router, once, written = APIRouter(include_in_schema=False), threading.Lock(), list[bytes]()

    def write() -> bytes:
        with once:
            if not written:
                written.append(orjson.dumps(document()))
        return written[0]

    @router.get(PATH)
    async def schema() -> Response:
        # Making it takes a few tenths of a second, in which the event loop answers others.
        body = written[0] if written else await asyncio.to_thread(write)
        return Response(body, media_type=JSON)

    return router


def _docs(app: FastAPI) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    page = get_swagger_ui_html(
        openapi_url=PATH,
        title=app.title,
        swagger_js_url="/docs/static/swagger-ui-bundle.js",
        swagger_css_url="/docs/static/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    (script,) = _INLINE_SCRIPT.findall(bytes(page.body))
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    page.headers["Content-Security-Policy"] = _DOCS_POLICY.format(script=f"'sha256-{digest}'")

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        return page

    return router


def _document(app: FastAPI, routers: Sequence[APIRouter], *, keys_needed: bool) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    _, definitions = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    components["securitySchemes"] = _SECURITY_SCHEMES
    components["parameters"] = {HEADER: _POSITION_SENT}
    components["headers"] = {HEADER: _POSITION_TOLD}
    for route in (route for router in routers for route in router.routes):
        if isinstance(route, APIRoute) and route.include_in_schema and set(route.dependencies) & {READ, WRITE, ADMIN}:
            for method in route.methods or ():
                operation = document["paths"][route.path_format][method.lower()]
                _add_position(operation, tells=WRITE in route.dependencies)
    document["security"] = _security(keys_needed)
    return document


def _add_position(operation: dict[str, Any], *, tells: bool) -> None:
    """Declare the header that a request may send and, where it `tells`, the one of the answer."""
    operation.setdefault("parameters", []).append({"$ref": f"#/components/parameters/{HEADER}"})
    for status, answer in operation["responses"].items():
        if tells and status < "300":
            answer["headers"] = {HEADER: {"$ref": f"#/components/headers/{HEADER}"}}


def _security(keys_needed: bool) -> Sequence[dict[str, list[str]]]:
    named: list[dict[str, list[str]]] = [{name: []} for name in _SECURITY_SCHEMES]
    return named if keys_needed else [{}, *named]
