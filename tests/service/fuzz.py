"""Every endpoint fuzzed for half an hour: no 5xx, and every answer as the OpenAPI document says.

    python -m tests.service.fuzz --bundle build/demo-bundle --minutes 30 --json docs/results/faults/fuzz.json

schemathesis makes requests up from the service's own OpenAPI document, right ones and wrong ones, with another seed in
each round; names that lead somewhere are put into some of them. Between rounds, shops write what is right and must be
answered so, and what is stored must be what they were told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
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
from tests.service.crash.long import database
from tests.service.crash.shop import Act, Shop
from tests.service.crash.stored import read_states
from tests.service.processes import Program

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# The 5xx that a request can ask for: a model that the bundle lacks, and a write that nobody has done.
ASKED_FOR = ("/problems/not-served", "/problems/not-followed")
# Names that lead somewhere, which made-up ones hardly ever do.
KNOWN = {"item_id": "demo-0001", "item": "demo-0002", "user": "shopper-001", "modality": "image"}
ACTS = 40  # of a shop between two rounds
POSITION = "X-Lacuna-Position"
KEPT = 20  # failures told in full


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


@dataclass
class Found:
    """What was answered."""

    statuses: Counter[str] = field(default_factory=Counter)
    not_served: int = 0
    failures: list[str] = field(default_factory=list)

    def note(self, case: schemathesis.Case, url: str) -> None:
        """Send a request and note what became of it."""
        response = without_waiting(case).call(base_url=url)
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


def main() -> int:
    """Run, print, write; the exit code says whether anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--examples", type=int, default=20, help="requests of one kind in a round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found, rounds = Found(), 0
    with tempfile.TemporaryDirectory() as folder, database(options.database, Path(folder)) as (url, _):
        settings = {"bundle": options.bundle, "data_dir": folder, "database_url": url}
        with Program(Path(folder) / "log", fresh=True, **settings) as program:
            schema = schemathesis.openapi.from_dict(httpx.get(f"{program.url}/openapi.json").json())
            operations = [operation.ok() for operation in schema.get_all_operations()]
            modalities = httpx.get(f"{program.url}/models").json()["models"][0]["modalities"]
            dims = {modality["name"]: modality["dim"] for modality in modalities}
            shop = Shop("fuzz", dims, random.Random(options.seed))
            started = time.monotonic()
            while time.monotonic() - started < options.minutes * 60:
                rounds += 1
                for operation in operations:
                    fuzz(operation, program.url, found, options.examples, options.seed + rounds)
                found.failures += trade(shop, program.url, url)
                print(f"round {rounds}: {found.statuses.total()} requests, {len(found.failures)} failures", flush=True)
            tracebacks = program.log.read_text().count("Traceback")
    by_class = Counter[str]()
    for name, count in found.statuses.items():
        by_class[f"{name.rpartition(' ')[2][0]}xx"] += count
    result = {
        "what": f"every endpoint fuzzed for {options.minutes:g} minutes, {options.database}",
        "command": " ".join(["python", "-m", "tests.service.fuzz", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "seconds": round(time.monotonic() - started),
        "rounds": rounds,
        "operations": len(operations),
        "requests": found.statuses.total(),
        "statuses": dict(sorted(by_class.items())),
        "server_errors": by_class["5xx"] - found.not_served,
        "not_served": found.not_served,
        "right_requests": dict(shop.acknowledged),
        "tracebacks_in_the_log": tracebacks,
        "failures": len(found.failures),
        "first_failures": found.failures[:KEPT],
        "answers": dict(sorted(found.statuses.items())),
    }
    print(json.dumps({name: value for name, value in result.items() if name != "answers"}, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 1 if found.failures or result["server_errors"] or tracebacks else 0


if __name__ == "__main__":
    sys.exit(main())
