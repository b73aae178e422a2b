"""Pictures given by URL, on the real service; what is fetched at all is `integration/test_fetcher.py`'s."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.adapters.fetcher import UrlFetcher
from tests.service.integration.test_fetcher import PICTURE, port
from tests.service.running import Running, base64_of, settings_for

__all__ = ["port"]


@pytest.fixture(scope="module")
def fetching(
    seeded_file: Path, demo_bundle: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A service that fetches."""
    file = Path(shutil.copy(seeded_file, tmp_path_factory.mktemp("fetching") / "lacuna.db"))
    with Running(settings_for(demo_bundle, demo_folder, file, allow_image_urls=True, image_url_seconds=2)) as service:
        yield service


@pytest.fixture
def trusting(fetching: Running) -> Iterator[Running]:
    """The same, to which this machine is public."""
    usual = fetching.engine.fetcher
    fetching.engine.fetcher = UrlFetcher(seconds=2, max_bytes=100_000, is_public=lambda address: address == "127.0.0.1")
    yield fetching
    fetching.engine.fetcher = usual


def by_url(port: int, path: str = "picture") -> dict[str, Any]:
    return {"image": {"url": f"http://127.0.0.1:{port}/{path}"}}


def test_a_picture_by_url_is_as_good_as_one_that_was_sent(trusting: Running, port: int) -> None:
    sent = trusting.create(modalities={"image": base64_of(PICTURE)})["id"]
    made = trusting.create(modalities=by_url(port, "moved/picture"))["id"]
    changed = trusting.create(title="mug")["id"]
    trusting.patch(changed, {"modalities": by_url(port)})
    trusting.ask("PUT", "/items/put", status=201, json={"modalities": by_url(port)})
    for item in (made, changed, "put"):
        assert trusting.client.get(f"/items/{item}/media/image").content == PICTURE
        assert trusting.vector(item, "image") == trusting.vector(sent, "image")
    found = trusting.post("/retrieve", by_url(port) | {"n": 4})["items"]
    assert found == trusting.post("/retrieve", {"image": base64_of(PICTURE), "n": 4})["items"]
    assert trusting.post("/impute", {"modalities": by_url(port)})["modalities"]["image"]["state"] == "observed"


def test_each_row_of_a_batch_fetches_for_itself(trusting: Running, port: int) -> None:
    rows = [
        {"id": f"row-{path}", "modalities": by_url(port, path)} for path in ("picture", "missing", "endless", "untyped")
    ]
    answers = trusting.post("/items/batch", {"items": rows})["items"]
    assert [answer["status"] for answer in answers] == [201, 422, 422, 201]
    assert answers[1]["problem"]["type"] == "/problems/image-not-fetched"
    assert answers[1]["problem"]["errors"][0]["pointer"] == "/modalities/image/url"
    trusting.check_index()


@pytest.mark.parametrize("path", ["missing", "page", "silent", "endless", "slow", "away/http:~127.0.0.2/picture"])
def test_a_picture_that_cannot_be_had(trusting: Running, port: int, path: str) -> None:
    problem = trusting.post("/items", {"id": "none", "modalities": by_url(port, path)}, status=422)
    assert problem["type"] == "/problems/image-not-fetched"
    assert problem["errors"][0]["pointer"] == "/modalities/image/url"
    assert trusting.post("/retrieve", by_url(port, path), status=422)["type"] == "/problems/image-not-fetched"
    trusting.get("/items/none", status=404)


def test_what_is_fetched_must_be_a_picture(trusting: Running, port: int) -> None:
    problem = trusting.post("/items", {"id": "none", "modalities": by_url(port, "noise")}, status=422)
    assert problem["type"] == "/problems/invalid-image"
    wrong = {"id": "none", "modalities": {"audio": by_url(port)["image"]}}
    assert trusting.post("/items", wrong, status=422)["errors"][0]["pointer"] == "/modalities/audio"
    unknown = {"id": "none", "modalities": {"smell": by_url(port)["image"]}}
    assert trusting.post("/items", unknown, status=422)["type"] == "/problems/unknown-modality"
    trusting.get("/items/none", status=404)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1"])
def test_a_service_that_fetches_stays_out_of_its_own_network(fetching: Running, port: int, host: str) -> None:
    body = {"id": "none", "modalities": {"image": {"url": f"http://{host}:{port}/picture"}}}
    problem = fetching.post("/items", body, status=422)
    assert problem["type"] == "/problems/image-not-fetched"
    assert "not public" in problem["detail"] or "not known" in problem["detail"]


def test_by_default_nothing_is_fetched(running: Running, port: int) -> None:
    problem = running.post("/items", {"id": "none", "modalities": by_url(port)}, status=422)
    assert "off" in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/modalities/image/url"
