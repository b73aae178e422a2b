"""Spans of requests and steps, as OpenTelemetry's own exporter writes them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.main import create_app
from service.settings import SettingsError
from tests.service.asgi import settings_of
from tests.service.running import Running, settings_for

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def spans_of(text: str) -> Iterator[dict[str, Any]]:
    """JSON objects one after the other, between lines of a log."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        span, end = decoder.raw_decode(text, place)
        yield span
        place = text.find("{", end)


def test_a_request_and_its_steps(
    seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = Path(shutil.copy(seeded_file, tmp_path / "lacuna.db"))
    with Running(settings_for(demo_bundle, demo_folder, file, traces="console")) as service:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "traced-1", "Idempotency-Key": "once"}
        assert service.client.post("/items", json={"id": "traced", "title": "mug"}, headers=headers).status_code == 201
        service.get("/items/traced/similar")
        service.get("/items/nothing", status=404)
        assert 'lacuna_step_seconds_count{step="encode"} 1.0' in service.client.get("/metrics").text
    spans = list(spans_of(capfd.readouterr().err))
    assert {span["resource"]["attributes"]["service.name"] for span in spans} == {"lacuna"}
    (write,) = (span for span in spans if span["name"] == "POST /items")
    assert (write["context"]["trace_id"], write["parent_id"]) == (f"0x{TRACE}", f"0x{PARENT}")
    assert write["attributes"] == {
        "http.request.method": "POST",
        "http.response.status_code": 201,
        "http.route": "/items",
        "lacuna.request_id": "traced-1",
    }
    steps = [span for span in spans if span["parent_id"] == write["context"]["span_id"]]
    assert [span["name"] for span in steps] == ["encode", "impute", "commit", "index"]
    assert all(write["start_time"] <= one["start_time"] <= one["end_time"] <= write["end_time"] for one in steps)
    (similar,) = (span for span in spans if span["name"] == "GET /items/{item_id}/similar")
    assert similar["parent_id"] is None
    assert [one["name"] for one in spans if one["parent_id"] == similar["context"]["span_id"]] == ["rank"]
    (missed,) = (span for span in spans if span["name"] == "GET /items/{item_id}")
    assert missed["attributes"]["http.response.status_code"] == 404


def test_without_the_packages_the_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"pip install 'lacuna\[otel\]'"):
        create_app(settings_of(traces="otlp"))


def test_by_default_there_are_none() -> None:
    app = create_app(settings_of())
    assert app.state.traces is None
    assert app.state.timer is app.state.metrics
