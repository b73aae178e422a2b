"""Requests made up from the OpenAPI document, and what is wrong with their answers.

`python -m benchmarks.fuzz` asks them for half an hour, `tests/service/e2e/test_fuzz.py` some of each kind.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import hypothesis
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.adapters.sql.store import SqlStore
from tests.service.crash.shop import Act, Shop
from tests.service.crash.stored import read_states

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# The 5xx that a request can ask for: a model that the bundle lacks, and a write that nobody has done.
ASKED_FOR = ("/problems/not-served", "/problems/not-followed")
# Names that lead somewhere, which made-up ones hardly ever do.
KNOWN = {"item_id": "demo-0001", "item": "demo-0002", "user": "shopper-001", "modality": "image"}
ACTS = 40  # of a shop between two rounds
POSITION = "X-Lacuna-Position"


def is_asked_for(response: Any) -> bool:
    """Whether an answer says that a request asks for what is not there."""
    return response.status_code == 503 and response.json()["type"] in ASKED_FOR


def validate(case: schemathesis.Case, response: Any) -> None:
    """Raise what schemathesis raises for an answer that should not be."""
    case.validate_response(response, checks=CHECKS[1:] if is_asked_for(response) else CHECKS)


def without_waiting(case: schemathesis.Case) -> schemathesis.Case:
    """The request, but for a position that is hardly ever one: it would be waited for."""
    if (case.headers or {}).get(POSITION, "x").isdecimal():
        case.headers[POSITION] = "1"
    return case


def somewhere(case: schemathesis.Case) -> bool:
    """Put names that lead somewhere into the path; False where it takes none, or is about to delete."""
    known = {name: KNOWN.get(name, value) for name, value in (case.path_parameters or {}).items()}
    case.path_parameters = known or case.path_parameters
    return bool(known) and case.method != "DELETE"


def sparing(case: schemathesis.Case) -> schemathesis.Case:
    """The request, but for one that deletes all events of a type: others have written some, and look for them."""
    if case.method == "DELETE" and case.path == "/feedback" and set(case.query or {}) == {"type"}:
        case.query["user"] = KNOWN["user"]
    return case


@dataclass
class Found:
    """What was answered."""

    statuses: Counter[str] = field(default_factory=Counter)
    not_served: int = 0
    failures: list[str] = field(default_factory=list)
    right: Counter[str] = field(default_factory=Counter)  # requests that were, by kind

    def note(self, case: schemathesis.Case, url: str) -> None:
        """Send a request and note what became of it."""
        response = sparing(without_waiting(case)).call(base_url=url)
        self.statuses[f"{case.method} {case.operation.path} {response.status_code}"] += 1
        try:
            self.not_served += is_asked_for(response)
            validate(case, response)
        except Exception as error:  # noqa: BLE001 - schemathesis has many, and each is a finding
            self.failures.append(f"{case.method} {case.path}: {error}"[:2000])


def fuzz(operation: Any, url: str, found: Found, examples: int, seed: int) -> None:
    """Made-up requests for one operation."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy())
    def ask(case: schemathesis.Case) -> None:
        found.note(case, url)
        if somewhere(case):
            found.note(case, url)

    ask()


def trade(shop: Shop, url: str, store_url: str) -> list[str]:
    """Some right requests, and what is wrong with their answers or with what is then stored."""
    with httpx.Client(base_url=url, timeout=60) as client:

        def ask(act: Act) -> httpx.Response:
            return client.request(act.method, act.path, json=act.body)

        until = shop.acknowledged.total() + ACTS
        shop.work(ask, lambda: shop.acknowledged.total() < until and not shop.violations)
    fault = shop.resolve(asyncio.run(_stored(store_url, shop.name)))
    wrong = [*shop.violations, *([fault] if fault else [])]
    shop.violations.clear()
    return wrong


async def _stored(url: str, name: str) -> Any:
    store = await SqlStore.open(url)
    try:
        return (await read_states(store, [name]))[0][name]
    finally:
        await store.close()
