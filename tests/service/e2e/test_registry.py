"""Bundles at a URL: published, found, fetched once, verified before they are served."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from models.bundle import MANIFEST, BundleError
from service.adapters.registry import BundleRegistry
from tests.service.e2e.test_activation import activate, version_of
from tests.service.running import Running, settings_for
from training.publish import PublishError, publish


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a folder in an S3 bucket of its own."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"shelf-{uuid.uuid4().hex}"  # the buckets of one process outlive its servers
    boto3.client("s3").create_bucket(Bucket=bucket)
    yield f"s3://{bucket}/bundles"
    S3FileSystem.clear_instance_cache()
    server.stop()


async def test_a_published_bundle_is_found_and_fetched_once(
    shelf: str, demo_bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    for bundle in (demo_bundle, other_bundle):
        assert publish(bundle, shelf) == f"{shelf}/{version_of(bundle)}"
    registry = BundleRegistry(shelf, None, tmp_path / "cache")
    found = {one.version: one for one in await registry.bundles()}
    assert found.keys() == {version_of(demo_bundle), version_of(other_bundle)}
    folder = await registry.fetch(found[version_of(other_bundle)])
    assert (folder / MANIFEST).read_bytes() == (other_bundle / MANIFEST).read_bytes()
    changed = (folder / MANIFEST).stat().st_mtime_ns
    assert await registry.fetch(found[version_of(other_bundle)]) == folder
    assert (folder / MANIFEST).stat().st_mtime_ns == changed
    shutil.rmtree(folder)
    assert await registry.fetch(found[version_of(other_bundle)]) == folder


async def test_what_is_damaged_there_is_not_served(shelf: str, demo_bundle: Path, tmp_path: Path) -> None:
    publish(demo_bundle, shelf)
    client = boto3.client("s3")
    file = json.loads((demo_bundle / MANIFEST).read_text())["models"]["dgmrec"]["file"]
    bucket = shelf.split("/")[2]
    client.put_object(Bucket=bucket, Key=f"bundles/{version_of(demo_bundle)}/{file}", Body=b"nothing")
    client.put_object(Bucket=bucket, Key="bundles/no-bundle/manifest.json", Body=b"{}")
    registry = BundleRegistry(shelf, None, tmp_path / "cache")
    (found,) = await registry.bundles()
    with pytest.raises(BundleError, match="damaged"):
        await registry.fetch(found)
    assert not list((tmp_path / "cache").iterdir())


def test_a_service_starts_with_and_goes_over_to_bundles_of_a_url(
    shelf: str, demo_bundle: Path, other_bundle: Path, demo_folder: Path, seeded_file: Path, tmp_path: Path
) -> None:
    publish(demo_bundle, shelf)
    file = Path(shutil.copy(seeded_file, tmp_path / "lacuna.db"))
    data = tmp_path / "data"
    data.mkdir()
    (data / "encoders").symlink_to(demo_folder / "encoders")
    settings = settings_for(demo_bundle, data, file, bundles=shelf)
    with Running(settings.model_copy(update={"bundle": None})) as service:
        assert service.engine.model_version == version_of(demo_bundle)
        publish(other_bundle, shelf)
        activate(service, version_of(other_bundle), force=True)
        service.check_index()


def test_a_folder_has_a_bundle_whole_or_not_at_all(demo_bundle: Path, tmp_path: Path) -> None:
    where = publish(demo_bundle, str(tmp_path / "bundles"))
    assert publish(demo_bundle, str(tmp_path / "bundles")) == where
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [version_of(demo_bundle)]
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match="cannot be written to"):
        publish(demo_bundle, str(tmp_path / "file"))
