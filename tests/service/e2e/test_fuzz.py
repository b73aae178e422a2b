"""Requests made up from the OpenAPI document, right ones and wrong ones, over a socket: no 5xx but those documented,
and every answer as documented."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.main import create_app
from tests.service.unit import fake_engine
from tests.service.unit.fake_engine import FakeEngine, settings_of

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NOT_SERVED = "/problems/not-served"  # the one 5xx that a request can ask for: a model that the bundle lacks


@pytest.fixture(scope="module")
def app() -> Iterator[FastAPI]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake_engine.install(monkeypatch)
        yield create_app(settings_of(), engine=FakeEngine())


@pytest.fixture(scope="module")
def base_url(app: FastAPI) -> Iterator[str]:
    """The app behind a real server on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


schema = schemathesis.openapi.from_dict(create_app(settings_of()).openapi())


@schema.parametrize()
@hypothesis.settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_made_up_requests_are_answered_as_documented(case: schemathesis.Case, base_url: str) -> None:
    response = case.call(base_url=base_url)
    not_served = response.status_code == 503 and response.json()["type"] == NOT_SERVED
    case.validate_response(response, checks=CHECKS[1:] if not_served else CHECKS)
