"""What all routes share: problems, request ids, keys, start and end of the app, metrics, docs."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import httpx
import pytest

from service import domain
from service.adapters.sql.store import SqlStore
from service.api.errors import DESCRIPTIONS, STATUSES, problem_of
from service.main import create_app
from service.pipeline.engine import Engine
from service.settings import Settings, SettingsError
from tests.service.asgi import Failing, client_of, pointers, settings_of


@pytest.fixture
async def api(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(settings_of(), engine=engine)) as client:
        yield client


# --- problems -----------------------------------------------------------------------------------------------------


def _subclasses(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _subclasses(child))]


@pytest.mark.parametrize("kind", _subclasses(domain.LacunaError)[1:])
def test_every_domain_error_has_a_status_and_a_description(kind: type[domain.LacunaError]) -> None:
    problem = problem_of(kind("why"))
    assert problem.status in STATUSES.values()
    assert problem.detail == "why"
    assert problem.slug in DESCRIPTIONS


async def test_unavailable_says_when_to_retry(api: httpx.AsyncClient, engine: Engine, store: Failing) -> None:
    store.failure = domain.StoreUnavailableError("away")
    for path in ("/recommend/u1", "/items/a", "/health/ready"):
        _assert_unavailable(await api.get(path), "away")
    store.failure = None
    engine.runtime.superseded = "Another bundle serves this database."
    _assert_unavailable(await api.get("/health/ready"), "Another bundle serves this database. Restart this worker")


def _assert_unavailable(response: httpx.Response, why: str) -> None:
    assert response.status_code == 503
    assert response.json()["detail"].startswith(why)
    assert int(response.headers["retry-after"]) > 0


async def test_unexpected_failure_is_a_bare_500_and_is_logged_with_its_id(
    api: httpx.AsyncClient, store: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    store.failure = RuntimeError("secret inner workings")
    with caplog.at_level(logging.ERROR, "service.api.middleware"):
        response = await api.get("/items/a", headers={"x-request-id": "req-7"})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == response.json()["request_id"] == "req-7"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert any("secret inner workings" in str(record.exc_info) for record in caplog.records)


async def test_unknown_path_is_a_problem(api: httpx.AsyncClient) -> None:
    for path in ("/nope", "/items//", "/recommend/a%2Fb"):
        response = await api.get(path)
        assert response.status_code == 404
        assert response.json()["type"] == "/problems/not-found"


async def test_a_slash_at_the_end_of_a_path_leads_where_it_leads_without(api: httpx.AsyncClient) -> None:
    assert (await api.post("/items/", json={"id": "a"})).status_code == 201
    for path in ("/items/?limit=5", "/items/a/", "/items/a/similar/", "/health/live/", "/recommend/u/", "/docs/"):
        assert (await api.get(path)).status_code == 200
    assert (await api.get("/recommend/u/")).json()["user"] == "u"
    assert (await api.head("/items/a/")).status_code == 200
    assert (await api.delete("/items/a/")).status_code == 204
    text = (await api.get("/metrics/")).text
    assert 'lacuna_requests_total{method="GET",route="/items/{item_id}",status="200"} 1.0' in text


async def test_wrong_method_names_the_right_ones(api: httpx.AsyncClient) -> None:
    response = await api.post("/items/a")
    assert response.status_code == 405
    assert response.json()["type"] == "/problems/method-not-allowed"
    assert response.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"


async def test_options_names_the_methods(api: httpx.AsyncClient) -> None:
    response = await api.options("/feedback")
    assert response.status_code == 204
    assert response.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, POST"


async def test_head_is_get_without_a_body(api: httpx.AsyncClient) -> None:
    await api.post("/items", json={"id": "a"})
    head, get = await api.head("/items/a"), await api.get("/items/a")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]
    assert (await api.head("/items/no")).status_code == 404


@pytest.mark.parametrize("url", ["/items/%00", "/items?q=%00", "/users/a%00b", "/retrieve?text=%00"])
async def test_nul_in_the_url_is_refused(api: httpx.AsyncClient, url: str) -> None:
    assert (await api.get(url)).status_code == 422


@pytest.mark.parametrize("url", ["/items?q=%ff", "/users/%C3%28", "/retrieve?text=%ED%A0%80"])
async def test_url_that_is_no_utf8_is_malformed(api: httpx.AsyncClient, url: str) -> None:
    assert (await api.get(url)).status_code == 400


async def test_problem_types_are_described(api: httpx.AsyncClient) -> None:
    assert (await api.get("/problems/conflict")).json()["type"] == "/problems/conflict"
    assert (await api.get("/problems/unheard-of")).status_code == 404


# --- request ids --------------------------------------------------------------------------------------------------


async def test_request_id_of_the_client_comes_back(api: httpx.AsyncClient) -> None:
    for path in ("/health/live", "/nope", "/items/a b"):
        response = await api.get(path, headers={"x-request-id": "Trace-1.2_3"})
        assert response.headers["x-request-id"] == "Trace-1.2_3"


@pytest.mark.parametrize("sent", ["", "a b", "x" * 65, "a\tb", "é", '"}'])
async def test_odd_request_id_is_replaced(api: httpx.AsyncClient, sent: str) -> None:
    response = await api.get("/nope", headers={"x-request-id": sent.encode()})
    assert re.fullmatch(r"[0-9a-f]{16}", response.headers["x-request-id"])
    assert response.json()["request_id"] == response.headers["x-request-id"]


# --- keys ---------------------------------------------------------------------------------------------------------

SECRETS = {role: f"{role}-secret-0123456789" for role in ("read", "write", "admin")}


@pytest.fixture
async def locked(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    keys = ",".join(f"{role}er:{role}:{secret}" for role, secret in SECRETS.items())
    async with client_of(create_app(settings_of(api_keys=keys), engine=engine)) as client:
        yield client


@pytest.mark.parametrize(
    ("role", "read_status", "write_status"),
    [("read", 200, 403), ("write", 200, 201), ("admin", 200, 201)],
)
async def test_roles_reach_as_far_as_they_should(
    locked: httpx.AsyncClient, role: str, read_status: int, write_status: int
) -> None:
    for headers in ({"authorization": f"Bearer {SECRETS[role]}"}, {"x-api-key": SECRETS[role]}):
        assert (await locked.get("/items", headers=headers)).status_code == read_status
        response = await locked.post("/items", json={"id": headers.popitem()[0]}, headers={"x-api-key": SECRETS[role]})
        assert response.status_code == write_status


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": "wrong"},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {SECRETS['read']}"},
        {"authorization": "Bearer"},
        {"x-api-key": b"\xff\xfe"},
    ],
)
async def test_without_a_known_key_nothing_opens(locked: httpx.AsyncClient, headers: dict[str, str]) -> None:
    for path in ("/items", "/recommend/u1?n=0", "/metrics", "/models", "/stats", "/retrieve?text=a"):
        response = await locked.get(path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert response.json()["type"] == "/problems/unauthorized"


async def test_keys_come_before_the_body(locked: httpx.AsyncClient) -> None:
    assert (await locked.post("/items", content=b"{")).status_code == 401


async def test_health_and_docs_are_open(locked: httpx.AsyncClient) -> None:
    for path in ("/health/live", "/health/ready", "/docs", "/openapi.json", "/problems/conflict"):
        assert (await locked.get(path)).status_code == 200
    response = await locked.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")


async def test_every_route_but_the_open_ones_needs_a_key(locked: httpx.AsyncClient) -> None:
    paths = (await locked.get("/openapi.json")).json()["paths"]
    open_paths = {"/health/live", "/health/ready", "/problems/{slug}"}
    for path, operations in paths.items():
        for method in operations:
            response = await locked.request(method, re.sub(r"\{\w+\}", "a", path))
            assert (response.status_code == 401) == (path not in open_paths), (method, path)


# --- positions in the change log ----------------------------------------------------------------------------------

POSITION = "X-Lacuna-Position"
WRITES = [
    ("POST", "/items", {"id": "b"}),
    ("POST", "/items", {"id": "a"}),  # which exists
    ("POST", "/items/batch", {"items": [{"id": "c"}]}),
    ("PUT", "/items/a", {}),
    ("PATCH", "/items/a", {}),
    ("DELETE", "/items/a", None),
    ("POST", "/feedback", {"feedback": [{"user": "u", "item": "a", "type": "view"}]}),
    ("DELETE", "/feedback?user=u", None),
    ("DELETE", "/users/nobody", None),
]


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
async def test_every_write_tells_its_position(
    api: httpx.AsyncClient, engine: Engine, method: str, path: str, body: object
) -> None:
    await api.put("/items/a", json={})
    before = await engine.store.last_change()
    response = await api.request(method, path, json=body)
    after = await engine.store.last_change()
    assert response.status_code < 500
    position = int(response.headers[POSITION])
    assert before < position <= after if after > before else position == before


async def test_only_writes_tell_a_position(api: httpx.AsyncClient, store: Failing) -> None:
    for response in (await api.get("/items"), await api.post("/impute", json={}), await api.get("/health/ready")):
        assert response.status_code == 200
        assert POSITION not in response.headers
    store.failure = domain.StoreUnavailableError("away")
    assert POSITION not in (await api.put("/items/a", json={})).headers
    response = await api.post("/items", json={"id": "no such id"})  # refused before the store is asked
    assert (response.status_code, POSITION in response.headers) == (422, False)


async def test_a_request_waits_for_the_position_that_it_names(api: httpx.AsyncClient, engine: Engine) -> None:
    position = int((await api.put("/items/a", json={})).headers[POSITION])
    paths = ("/items", "/recommend/u", "/stats", "/metrics")
    for path in paths:
        assert (await api.get(path, headers={POSITION: str(position)})).status_code == 200
    assert engine.runtime.followed.position >= position
    late = {POSITION: str(position + 1000)}
    asked = [api.get(path, headers=late) for path in paths]
    for response in await asyncio.gather(*asked, api.put("/items/b", json={}, headers=late)):
        assert response.status_code == 503
        assert response.json()["type"] == "/problems/not-followed"
        assert int(response.headers["retry-after"]) > 0
    assert (await api.get("/items/b")).status_code == 404


@pytest.mark.parametrize("sent", ["", "x", "-1", "1.5", "٣", "1, 2", "9" * 19, "1" * 20, "0x1"])
async def test_what_is_no_position_is_refused(api: httpx.AsyncClient, sent: str) -> None:
    response = await api.get("/items", headers={POSITION: sent.encode()})
    assert response.status_code == 422
    assert pointers(response) == [f"/header/{POSITION}"]
    twice = await api.get("/items", headers=[(POSITION, "1"), (POSITION, "2")])
    assert twice.status_code == 422


async def test_strangers_wait_for_nothing(locked: httpx.AsyncClient, store: Failing) -> None:
    store.failure = domain.StoreUnavailableError("away")  # which nobody asks
    for sent in ("5", "x"):
        assert (await locked.get("/items", headers={POSITION: sent})).status_code == 401


async def test_positions_are_documented(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    sent = {"$ref": f"#/components/parameters/{POSITION}"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            is_open = path.startswith(("/health", "/problems"))
            assert (sent in operation.get("parameters", [])) != is_open, path
            success = next(answer for status, answer in operation["responses"].items() if status < "300")
            writes = method in ("put", "patch", "delete") or path in ("/items/batch", "/feedback", "/items")
            assert (POSITION in success.get("headers", {})) == (writes and method != "get"), (method, path)
    assert document["components"]["parameters"][POSITION]["name"] == POSITION


# --- pages of other origins ---------------------------------------------------------------------------------------

SHOP = "https://shop.example"


@pytest.fixture
async def shop(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(
        settings_of(cors_origins=f"{SHOP}, http://localhost:3000", api_keys="w:write:abc-abc-abc-abc-abc"),
        engine=engine,
    )
    async with client_of(app, headers={"origin": SHOP}) as client:
        yield client


async def test_pages_of_a_named_origin_may_call(shop: httpx.AsyncClient, store: Failing) -> None:
    asked = {"access-control-request-method": "PUT", "access-control-request-headers": "authorization,content-type"}
    preflight = await shop.options("/items/a", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == SHOP
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    response = await shop.put("/items/a", json={}, headers={"authorization": "Bearer abc-abc-abc-abc-abc"})
    assert response.status_code == 201
    exposed = response.headers["access-control-expose-headers"]
    assert {name.strip() for name in exposed.split(",")} == {POSITION, "X-Request-ID", "Retry-After"}
    store.failure = RuntimeError("inner workings")
    refused = [await shop.get("/items"), await shop.get("/nope"), await shop.get("/items?q=%ff"), await shop.get(
        "/items/a", headers={"x-api-key": "abc-abc-abc-abc-abc"}
    )]  # fmt: skip
    for response, status in zip([*refused, preflight], (401, 404, 400, 500, 200), strict=True):
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == SHOP
        assert response.headers["x-request-id"]


async def test_pages_of_other_origins_may_not(shop: httpx.AsyncClient, api: httpx.AsyncClient) -> None:
    asked = {"origin": "https://other.example", "access-control-request-method": "GET"}
    assert "access-control-allow-origin" not in (await shop.options("/items", headers=asked)).headers
    assert "access-control-allow-origin" not in (await shop.get("/items", headers=asked)).headers
    for response in (await api.options("/items", headers=asked), await api.get("/items", headers=asked)):
        assert not [name for name in response.headers if name.startswith("access-control")]  # none by default


async def test_pages_of_any_origin_may_call_where_the_setting_says_so(engine: Engine) -> None:
    async with client_of(create_app(settings_of(cors_origins="*"), engine=engine)) as client:
        response = await client.get("/items", headers={"origin": SHOP})
        assert response.headers["access-control-allow-origin"] == "*"


# --- start and end ------------------------------------------------------------------------------------------------


async def _until_answer(client: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    for _ in range(3000):
        response = await client.get(path)
        if response.status_code == status:
            return response
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path} never answered {status}")


async def test_app_answers_while_the_engine_starts(startable: Callable[..., Settings]) -> None:
    ready: list[Engine] = []

    async def on_ready(started: Engine) -> None:
        ready.append(started)

    app = create_app(startable(), on_ready=on_ready)
    other = await SqlStore.open(startable().database_url)
    async with client_of(app) as client, AsyncExitStack() as starting:
        await starting.enter_async_context(other.alone())  # as a worker that prepares the database
        async with app.router.lifespan_context(app):
            assert (await client.get("/health/live")).status_code == 200
            assert (await client.get("/metrics")).status_code == 200
            for path in ("/health/ready", "/recommend/u1", "/items"):
                response = await client.get(path)
                assert response.status_code == 503
                assert response.json()["type"] == "/problems/not-ready"
                assert "retry-after" in response.headers
            await starting.aclose()
            await _until_answer(client, "/health/ready", 200)
    await other.close()
    (engine,) = ready
    assert engine is app.state.engine
    assert engine.runtime.is_closing


async def test_failed_start_is_handed_on() -> None:
    failures: list[Exception] = []
    app = create_app(settings_of(), on_failure=failures.append)
    async with app.router.lifespan_context(app), client_of(app) as client:
        while not failures:
            await asyncio.sleep(0.01)
        assert (await client.get("/health/ready")).status_code == 503
    (failure,) = failures
    assert isinstance(failure, SettingsError)
    assert str(failure).startswith("LACUNA_BUNDLE is not set")


async def test_stop_while_starting_ends_the_start(startable: Callable[..., Settings]) -> None:
    other = await SqlStore.open(startable().database_url)
    app = create_app(startable())
    async with other.alone():
        before = asyncio.all_tasks()
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0.1)
            assert asyncio.all_tasks() > before
        assert asyncio.all_tasks() == before
    assert app.state.engine is None
    await other.close()


async def test_engine_that_was_handed_in_stays_its_owners(engine: Engine) -> None:
    app = create_app(settings_of(), engine=engine)
    async with app.router.lifespan_context(app):
        pass
    assert not engine.runtime.is_closing
    await engine.store.ping()


# --- metrics, models, docs ----------------------------------------------------------------------------------------


async def test_metrics_count_by_route_and_show_the_engine(api: httpx.AsyncClient) -> None:
    for path in ("/items/a", "/items/b", "/nope/1", "/nope/2"):
        await api.get(path)
    text = (await api.get("/metrics")).text
    assert 'lacuna_requests_total{method="GET",route="/items/{item_id}",status="404"} 2.0' in text
    assert 'lacuna_requests_total{method="GET",route="unmatched",status="404"} 2.0' in text
    assert 'lacuna_request_seconds_count{method="GET",route="/items/{item_id}"} 2.0' in text
    assert 'lacuna_items{modality="text",state="observed"} 0.0' in text
    assert 'lacuna_index_vectors{index="items",part="base"} 0.0' in text


async def test_steps_of_the_pipeline_are_measured(api: httpx.AsyncClient, engine: Engine) -> None:
    engine.runtime.timer.observe_step("encode", 0.004)
    text = (await api.get("/metrics")).text
    assert 'lacuna_step_seconds_bucket{le="0.003",step="encode"} 0.0' in text
    assert 'lacuna_step_seconds_bucket{le="0.005",step="encode"} 1.0' in text


async def test_metrics_are_told_while_the_store_is_away(api: httpx.AsyncClient, store: Failing) -> None:
    store.failure = domain.StoreUnavailableError("away")
    response = await api.get("/metrics")
    assert response.status_code == 200
    assert "lacuna_requests_total" in response.text


async def test_the_log_says_why_the_store_is_away_and_the_answer_does_not(
    api: httpx.AsyncClient, store: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    store.failure = domain.StoreUnavailableError("The database does not answer.", 'role "shop" does not exist')
    response = await api.get("/items/a")
    assert (response.status_code, response.json()["detail"]) == (503, "The database does not answer.")
    assert 'The database does not answer: role "shop" does not exist' in caplog.text
    caplog.clear()
    store.failure = None
    assert (await api.get("/items/a")).status_code == 404
    assert caplog.text == ""


async def test_models_and_stats(api: httpx.AsyncClient, engine: Engine) -> None:
    assert (await api.get("/models")).json()["models"][0]["version"] == engine.model_version
    assert (await api.get("/stats")).json()["modalities"]["text"]["observed"] == 0


async def test_docs_need_no_network(api: httpx.AsyncClient) -> None:
    page = (await api.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        assert (await api.get(path)).status_code == 200


async def test_openapi_resolves_and_documents_problems(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    known = document["components"]["schemas"]
    for reference in re.findall(r"#/components/schemas/(\w+)", str(document)):
        assert reference in known
    assert "HTTPValidationError" not in known
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "503" in operation["responses"] or path in ("/health/live", "/problems/{slug}")
