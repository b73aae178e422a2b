"""Another bundle is made ready beside the one that serves, and takes over: nothing is lost, nothing fails, and what is
derived is what a start under it derives."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from tests.service.processes import Program, within
from tests.service.running import Running, base64_of, picture, settings_for, sign
from training.cli import app

BUSY_S = 120.0


def version_of(bundle: Path) -> str:
    version: str = json.loads((bundle / "manifest.json").read_text())["version"]
    return version


@pytest.fixture
def bundles(demo_bundle: Path, other_bundle: Path, tmp_path: Path) -> Path:
    """A folder with two bundles of the same catalogue."""
    folder = tmp_path / "bundles"
    shutil.copytree(demo_bundle, folder / "one")
    shutil.copytree(other_bundle, folder / "two")
    return folder


@pytest.fixture
def database(request: pytest.FixtureRequest, seeded_file: Path, tmp_path: Path) -> str:
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite+aiosqlite:///{shutil.copy(seeded_file, tmp_path / 'lacuna.db')}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def served(bundles: Path, demo_folder: Path, database: str) -> Iterator[Running]:
    settings = settings_for(bundles / "one", demo_folder, database, bundles=str(bundles))
    with Running(settings) as service:
        yield service


def states(client: httpx.Client) -> dict[str, str]:
    return {one["version"]: one["state"] for one in client.get("/models").json()["models"]}


def wait_for(client: httpx.Client, version: str, *wanted: str) -> Any:
    """What GET /models/{version} says once the bundle's state is one of these."""

    def look() -> Any:
        answer = client.get(f"/models/{version}").json()
        return answer if answer["state"] in wanted else None

    return within(BUSY_S, look)


def activate(running: Running, version: str, **query: Any) -> None:
    """Activate a bundle, and wait until this worker serves it."""
    answer = running.ask("POST", f"/models/{version}/activate", status=202, params=query or None)
    assert answer["state"] in ("preparing", "active")
    wait_for(running.client, version, "active")
    within(BUSY_S, lambda: running.engine.model_version == version or None)


def test_a_bundle_takes_over_with_all_that_was_written(served: Running, bundles: Path) -> None:
    one, two = version_of(bundles / "one"), version_of(bundles / "two")
    assert states(served.client) == {one: "active", two: "available"}
    bare = served.create(title="a bare thing")
    text = served.create(modalities={"text": "a red woollen scarf"})
    image = served.create(modalities={"image": base64_of(picture("blue"))})
    served.view(text["id"], "shopper-001", "shopper-002", kind="like")
    served.wait_until_idle()
    before = {item["id"]: served.get(f"/items/{item['id']}") for item in (bare, text, image)}
    listed = served.get("/recommend/shopper-001", n=50)

    activate(served, two, force=True)

    assert states(served.client) == {two: "active", one: "previous"}
    for item_id, was in before.items():
        item = served.get(f"/items/{item_id}")
        assert item["model_version"] == two
        assert item["version"] == was["version"]
        assert {name: one["state"] for name, one in item["modalities"].items()} == {
            name: one["state"] for name, one in was["modalities"].items()
        }
    assert served.get("/recommend/shopper-001", n=50)["model_version"] == two
    served.check_index()

    assert served.ask("POST", "/models/rollback", status=202)["version"] == one
    wait_for(served.client, one, "active")
    within(BUSY_S, lambda: served.engine.model_version == one or None)
    served.check_index()
    for item_id, was in before.items():
        assert served.get(f"/items/{item_id}") == was
    again = served.get("/recommend/shopper-001", n=50)
    assert [(hit["id"], hit["score"]) for hit in again["items"]] == [
        (hit["id"], hit["score"]) for hit in listed["items"]
    ]


def write_for_long(running: Running, until: threading.Event, log: list[tuple[str, int]]) -> None:
    """Writes of all kinds, each noted with its status."""
    with httpx.Client(base_url=running.url, timeout=60) as client:
        for number in range(10_000):
            if until.is_set():
                return
            item = f"meanwhile-{number}"
            body: dict[str, Any] = {"id": item, "title": f"thing {number}", "modalities": {"text": f"a thing {number}"}}
            requests = [("POST", "/items", body)]
            requests.append(("POST", "/feedback", {"feedback": [
                {"user": f"shopper-{number % 7:03d}", "item": item, "type": "like"},
                {"user": f"newcomer-{number % 3}", "item": f"demo-{number % 100:04d}", "type": "like"},
            ]}))  # fmt: skip
            if number % 3 == 1:
                requests.append(("PATCH", f"/items/{item}", {"modalities": {"text": f"another thing {number}"}}))
            if number % 4 == 2:
                requests.append(("DELETE", f"/items/meanwhile-{number - 1}", None))
            if number % 5 == 3:
                requests.append(("DELETE", f"/users/newcomer-{number % 3}", None))
            for method, path, content in requests:
                status = client.request(method, path, json=content).status_code
                if status >= 400:
                    log.append((f"{method} {path}", status))


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_what_is_written_meanwhile_is_derived_under_both(served: Running, bundles: Path) -> None:
    two = version_of(bundles / "two")
    end, failed = threading.Event(), list[tuple[str, int]]()
    writer = threading.Thread(target=write_for_long, args=(served, end, failed))
    writer.start()
    try:
        activate(served, two, force=True)
        time.sleep(1)
    finally:
        end.set()
        writer.join()
    assert failed == []
    served.check_index()
    assert served.ask("POST", "/admin/check")["differing"] == 0
    served.ask("POST", "/models/rollback", status=202)
    within(BUSY_S, lambda: served.engine.model_version != two or None)
    served.check_index()


def test_what_cannot_be_served_is_refused_before_anything_starts(
    served: Running, bundles: Path, other_bundle: Path
) -> None:
    broken = bundles / "broken"
    shutil.copytree(other_bundle, broken)
    manifest = json.loads((broken / "manifest.json").read_text())
    file = manifest["models"]["dgmrec"]["file"]
    tensors = load_file(broken / file)
    name = next(name for name, tensor in tensors.items() if tensor.dtype == np.float32 and tensor.size)
    tensors[name].ravel()[0] = np.nan
    save_file(tensors, broken / file)
    sign(broken, file, version="broken-1")
    damaged = bundles / "damaged"
    shutil.copytree(other_bundle, damaged)
    sign(damaged, version="damaged-1")
    (damaged / file).write_bytes(b"nothing")

    problem = served.ask("POST", "/models/broken-1/activate", status=409)
    assert problem["type"] == "/problems/bundle-refused"
    assert "NaN" in problem["detail"]
    assert wait_for(served.client, "broken-1", "refused")["detail"]
    served.ask("POST", "/models/damaged-1/activate", status=404)  # it does not count
    served.ask("POST", "/models/nobody's/activate", status=404)
    assert served.ask("POST", "/models/rollback", status=409)["type"] == "/problems/conflict"


def test_a_bundle_that_does_worse_is_refused_with_both_figures(served: Running, bundles: Path) -> None:
    one, two = version_of(bundles / "one"), version_of(bundles / "two")
    models = json.loads((bundles / "two" / "manifest.json").read_text())["models"]
    models["dgmrec"]["metrics"]["ndcg@20"] = 0.0
    sign(bundles / "two", models=models, version=f"{two}-worse")
    ours = served.engine.active.manifest.models["dgmrec"].metrics["ndcg@20"]
    assert ours > 0.2  # of 40 users: more than the interval
    served.ask("POST", f"/models/{two}-worse/activate", status=202)
    refused = wait_for(served.client, f"{two}-worse", "refused")
    assert f"0.0000 instead of {ours:.4f}" in refused["detail"]
    assert states(served.client)[one] == "active"
    activate(served, f"{two}-worse", force=True)


def test_a_start_serves_what_was_activated(bundles: Path, demo_folder: Path, database: str) -> None:
    settings = settings_for(bundles / "one", demo_folder, database, bundles=str(bundles))
    two = version_of(bundles / "two")
    with Running(settings) as service:
        activate(service, two, force=True)
        service.wait_until_idle()
        listed = service.get("/recommend/shopper-001", n=50)["items"]
    with Running(settings) as service:
        assert service.engine.model_version == two
        assert service.get("/recommend/shopper-001", n=50)["items"] == listed


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_workers_go_over_together_and_none_is_needed(
    database: str, bundles: Path, demo_folder: Path, tmp_path: Path
) -> None:
    """Two processes; the one that prepares is killed in the middle, and comes back."""
    common = {"bundle": bundles / "one", "bundles": bundles, "data_dir": demo_folder, "database_url": database}
    two = version_of(bundles / "two")
    with (
        Program(tmp_path / "a.log", **common) as first,
        Program(tmp_path / "b.log", **common) as second,
        httpx.Client(base_url=first.url, timeout=60) as a,
        httpx.Client(base_url=second.url, timeout=60) as b,
    ):
        assert a.post(f"/models/{two}/activate", params={"force": "true"}).status_code == 202
        within(BUSY_S, lambda: has_begun(a, two) or None)
        first.kill()
        wait_for(b, two, "active")
        within(BUSY_S, lambda: b.get("/recommend/shopper-001").json()["model_version"] == two or None)
        first.start()
        assert a.get("/recommend/shopper-001").json()["model_version"] == two
        checks = [client.post("/admin/check").json() for client in (a, b)]
        assert [check["differing"] for check in checks] == [0, 0]


def has_begun(client: httpx.Client, version: str) -> bool:
    """Whether a worker prepares the bundle."""
    progress: dict[str, Any] = client.get(f"/models/{version}").json().get("progress") or {}
    return progress.get("step", "waiting") != "waiting"


def test_retraining_on_what_is_stored_ends_with_the_new_bundle_active(
    served: Running, bundles: Path, database: str, demo_folder: Path, tmp_path: Path
) -> None:
    served.create(id="of-today", title="a lamp of today", modalities={"text": "a lamp of today"})
    served.view("of-today", "shopper-001", "shopper-002", "shopper-003", kind="like")
    command = ["retrain", "--bundles", str(bundles), "--from-db", database, "--url", served.url, "--force", "--json"]
    small = [f"--set={one}" for one in ("dgmrec.epochs=1", "iris.epochs=1", "dgmrec.embedding_size=32")]
    places = [
        "--work",
        str(tmp_path / "work"),
        "--cache",
        str(demo_folder / "encoders"),
        "--budget",
        "0",
        "--threads",
        "1",
    ]
    done = CliRunner().invoke(app, [*command, *places, *small])
    assert done.exit_code == 0, done.output
    outcome = json.loads(done.stdout[done.stdout.index("{") :])
    assert outcome["state"] == "active"
    within(BUSY_S, lambda: served.engine.model_version == outcome["version"] or None)
    assert (bundles / outcome["version"]).is_dir()
    assert not (tmp_path / "work" / "bundle").exists()
    assert served.engine.active.dgmrec.trained_row("of-today") is not None
    assert served.get("/models")["models"][0]["trained_on"]["until"] is not None
    served.check_index()
