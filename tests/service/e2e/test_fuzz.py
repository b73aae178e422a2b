"""Requests made up from the OpenAPI document, right ones and wrong ones, over a socket to the real service: no 5xx but
those documented, every answer as documented, and a catalogue in one piece afterwards. `python -m tests.service.fuzz`
does so for half an hour."""

from __future__ import annotations

import re

import hypothesis
import schemathesis

from service.main import create_app
from tests.service.asgi import settings_of
from tests.service.fuzz import somewhere, validate, without_waiting
from tests.service.running import Running

schema = schemathesis.openapi.from_dict(create_app(settings_of()).openapi())


@hypothesis.settings(
    max_examples=8,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def answered_as_documented(case: schemathesis.Case, running: Running) -> None:
    validate(case, without_waiting(case).call(base_url=running.url))
    if somewhere(case):
        validate(case, case.call(base_url=running.url))


# A test function for each operation: those that schemathesis makes of one share an id, and of these several processes
# would run one only.
for found in schema.get_all_operations():
    operation = found.ok()
    name = re.sub(r"\W+", "_", f"test_made_up_requests_{operation.label}").rstrip("_").lower()
    globals()[name] = schema.include(path=operation.path, method=operation.method).parametrize()(answered_as_documented)


def test_the_catalogue_is_in_one_piece_afterwards(running: Running) -> None:
    running.check_index()
    assert len(running.get("/recommend/shopper-002", n=500, exclude_seen=False)["items"]) > 100
