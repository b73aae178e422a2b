"""Requests made up from the OpenAPI document, right ones and wrong ones, over a socket to the real service: no 5xx but
those documented, every answer as documented, and a catalogue in one piece afterwards."""

from __future__ import annotations

import os

import hypothesis
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.main import create_app
from tests.service.running import Running
from tests.service.unit.fake_engine import settings_of

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NOT_SERVED = "/problems/not-served"  # the one 5xx that a request can ask for: a model that the bundle lacks
# Names that lead somewhere, which made-up ones hardly ever do.
KNOWN = {"item_id": "demo-0001", "user": "shopper-001", "modality": "image"}
EXAMPLES = int(os.environ.get("LACUNA_TEST_FUZZ_EXAMPLES", "10"))

schema = schemathesis.openapi.from_dict(create_app(settings_of()).openapi())


def check(case: schemathesis.Case, running: Running) -> None:
    response = case.call(base_url=running.url)
    not_served = response.status_code == 503 and response.json()["type"] == NOT_SERVED
    case.validate_response(response, checks=CHECKS[1:] if not_served else CHECKS)


@schema.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES <= 10,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_made_up_requests_are_answered_as_documented(case: schemathesis.Case, running: Running) -> None:
    check(case, running)
    known = {name: KNOWN.get(name, value) for name, value in (case.path_parameters or {}).items()}
    if known and case.method != "DELETE":
        case.path_parameters = known
        check(case, running)


def test_the_catalogue_is_in_one_piece_afterwards(running: Running) -> None:
    running.check_index()
    assert len(running.get("/recommend/shopper-002", n=500, exclude_seen=False)["items"]) > 100
