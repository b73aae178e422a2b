"""Operating the real service."""

from __future__ import annotations

import json
import re
from pathlib import Path

from models.bundle import Bundle
from tests.service.processes import Program
from tests.service.running import Running, base64_of, picture


def test_health_docs_and_the_way_there(running: Running) -> None:
    assert running.get("/health/live") == {"status": "live"}
    assert running.get("/health/ready") == {"status": "ready"}
    root = running.client.get("/")
    assert (root.status_code, root.headers["location"]) == (307, "/docs")
    page = running.client.get("/docs").text
    for asset in re.findall(r'(?:src|href)="(/docs/static/[^"]+)"', page):
        assert running.client.get(asset).status_code == 200
    paths = running.get("/openapi.json")["paths"]
    assert {"/items", "/recommend/{user}", "/retrieve", "/impute", "/feedback", "/stats"} <= paths.keys()


def test_every_answer_carries_the_requests_id(running: Running) -> None:
    for path in ("/items/demo-0001", "/items/nobody", "/nowhere", "/stats"):
        own = running.client.get(path, headers={"X-Request-ID": "mine-1"})
        assert own.headers["x-request-id"] == "mine-1"
        one, two = (running.client.get(path).headers["x-request-id"] for _ in range(2))
        assert one != two


def test_models_are_what_the_bundle_says(running: Running) -> None:
    (model,) = running.get("/models")["models"]
    manifest = Bundle.load(running.settings.bundle or "").manifest
    assert (model["version"], model["state"]) == (manifest.version, "active")
    assert [modality["name"] for modality in model["modalities"]] == ["text", "image", "audio"]
    assert model["models"]["dgmrec"]["metrics"] == manifest.models["dgmrec"].metrics
    assert model["trained_on"]["synthetic"] is True


def test_stats_and_metrics_count_what_happens(alone: Running) -> None:
    before = alone.get("/stats")
    assert before["items"] == before["available"] == 120
    assert before["synthetic"] is True
    assert all(sum(states.values()) == 120 for states in before["modalities"].values())
    alone.create(title="One", categories=["extra"])
    alone.create(modalities={"image": base64_of(picture())}, categories=["extra"], available=False)
    after = alone.get("/stats")
    assert after["modalities"]["text"].pop("source") == {"title": 1}
    assert (after["items"], after["available"], after["categories"]["extra"]) == (122, 121, 2)
    grown = {
        name: {state: count - before["modalities"][name][state] for state, count in states.items()}
        for name, states in after["modalities"].items()
    }
    assert grown["text"] == {"observed": 1, "generated": 1, "absent": 0}
    assert grown["image"] == {"observed": 1, "generated": 1, "absent": 0}
    assert grown["audio"] == {"observed": 0, "generated": 2, "absent": 0}
    assert after["last_change"] > before["last_change"]
    for index in after["indexes"].values():
        assert index["base"] + index["delta"] == 122
    alone.get("/items/nobody", status=404)
    text = alone.client.get("/metrics").text
    assert 'lacuna_items{modality="image",state="observed"} 97.0' in text
    assert 'lacuna_requests_total{method="POST",route="/items",status="201"} 2.0' in text
    assert 'lacuna_requests_total{method="GET",route="/items/{item_id}",status="404"} 1.0' in text
    for step in ("encode", "impute", "index", "commit"):
        assert re.search(rf'lacuna_step_seconds_count{{step="{step}"}} [1-9]', text), step
    assert 'lacuna_index_vectors{index="items",part="delta"}' in text


def test_problems_explain_themselves(running: Running) -> None:
    problem = running.get("/items/nobody", status=404)
    assert running.get(problem["type"])["description"]
    assert running.get("/problems/no-such-problem", status=404)
    assert running.ask("POST", "/stats", status=405)["type"] == "/problems/method-not-allowed"


def test_no_secret_reaches_the_log(
    demo_bundle: Path, data_dir: Path, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Even where everything is logged, and whatever goes wrong."""
    password, key, guess = "pass-s3cret-word", "key-s3cret-of-the-writer", "guess-s3cret-ed"
    settings = {
        "bundle": demo_bundle,
        "data_dir": data_dir,
        "database_url": postgres_url.replace("postgres@", f"postgres:{password}@"),
        "redis_url": redis_url.replace("redis://", f"redis://:{password}@"),  # which Redis, that has none, refuses
        "api_keys": f"writer:write:{key}",
        "log_level": "debug",
        "log_format": "json",
    }
    with Program(tmp_path / "log", **settings) as program:
        client = program.client()
        for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}, {"X-API-Key": guess}, {}):
            known = key in "".join(headers.values())
            assert client.get("/stats", headers=headers).status_code == (200 if known else 401)
            named = {**headers, "Idempotency-Key": f"of-{len(headers)}"}
            assert client.post("/items", json={"id": "odd", "nonsense": 1}, headers=named).status_code == (
                422 if known else 401
            )
        assert client.post("/admin/snapshot", headers={"X-API-Key": key}).status_code == 403
        assert client.get("/nowhere", headers={"X-API-Key": key}).status_code == 404
        assert program.stop() == 0
    log = program.log.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"time", "level", "logger", "request_id", "process", "message"} <= lines[0].keys()
    assert any(line["level"] == "debug" for line in lines)
    assert "s3cret" not in log
