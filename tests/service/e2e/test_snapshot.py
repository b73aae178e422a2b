"""Starting from a snapshot: quicker, and never with another answer."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.adapters.sql.store import SqlStore
from service.pipeline.snapshot import NAME, SnapshotError, read
from tests.service.e2e.test_restart import answers, busy
from tests.service.running import Running, settings_for

Harm = Callable[[Path, bytes, str], None]


def flip(path: Path, data: bytes, _: str, place: int = 1000) -> None:
    path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])


def trim(_: Path, __: bytes, url: str) -> None:
    async def work() -> None:
        store = await SqlStore.open(url)
        assert await store.trim_changes(datetime.now(UTC)) > 0
        await store.close()

    asyncio.run(work())


def rewrite_log(_: Path, __: bytes, url: str) -> None:
    """As if the database had been another one since."""

    async def work() -> None:
        store = await SqlStore.open(url)
        await store.database.write(
            lambda connection: connection.exec_driver_sql("UPDATE changes SET at = '2020-01-01'")
        )
        await store.close()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path, data, url: None, None),  # noqa: ARG005
        (flip, "it is damaged"),
        (lambda path, data, url: flip(path, data, url, len(data) - 1), "it is damaged"),
        (lambda path, data, url: path.write_bytes(data[:-100]), "it is damaged"),  # noqa: ARG005
        (lambda path, data, url: path.write_bytes(b""), "it is damaged"),  # noqa: ARG005
        (lambda path, data, url: (path.unlink(), path.mkdir()), "it cannot be read"),  # noqa: ARG005
        (trim, "trimmed beyond this position"),
        (rewrite_log, "another entry at its position"),
    ],
)
def test_a_start_from_a_snapshot_answers_as_one_from_the_database(
    seeded_file: Path,
    demo_bundle: Path,
    data_dir: Path,
    caplog: pytest.LogCaptureFixture,
    harm: Harm,
    said: str | None,
) -> None:
    file = Path(shutil.copy(seeded_file, data_dir / "lacuna.db"))
    settings = settings_for(demo_bundle, data_dir, file, snapshot_minutes=0)
    with Running(settings) as service:
        service.create(id="again", title="Blue mug")
        service.create(id="before", title="Red mug")  # last: erased, the snapshot would lose its place in the log
        taken = service.post("/admin/snapshot", None)
        assert taken["items"] == 122
        path = data_dir / "snapshots" / NAME
        assert taken["bytes"] == path.stat().st_size
        assert [file.name for file in path.parent.iterdir()] == [NAME]
        busy(service)
        service.ask("DELETE", "/items/again", status=204)
        service.create(id="again", title="Green hat")
        service.patch("before", {"title": "Striped hat", "available": False})
        service.wait_until_idle()
        before = answers(service)
    harm(path, path.read_bytes(), settings.database_url)
    caplog.set_level("INFO")
    with Running(settings) as service:
        service.check_index()
        assert answers(service) == before
        assert service.get("/stats")["worker"]["position"] == service.get("/stats")["last_change"]
    assert ("started from the snapshot" in caplog.text) == (said is None)
    assert (said or "started from the snapshot") in caplog.text


def test_a_snapshot_of_another_bundle_is_not_used(
    demo_bundle: Path, other_bundle: Path, seeded_file: Path, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = Path(shutil.copy(seeded_file, data_dir / "lacuna.db"))
    with Running(settings_for(demo_bundle, data_dir, file)) as service:
        service.post("/admin/snapshot", None)
    with Running(settings_for(other_bundle, data_dir, file)) as service:
        service.check_index()
    with Running(settings_for(other_bundle, data_dir, file)) as service:
        service.check_index()
    assert "another bundle made it" in caplog.text


def test_a_snapshot_that_cannot_be_written_leaves_the_old_one(alone: Running, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    alone.engine.snapshots = folder
    alone.post("/admin/snapshot", None)
    first = (folder / NAME).read_bytes()
    old, new = folder / f".{NAME}-1", folder / f".{NAME}-2"  # of processes that were killed
    for left in (old, new):
        left.write_bytes(b"half of a snapshot")
    os.utime(old, (0, 0))
    alone.create(id="later", title="mug")
    shape = alone.engine.memory.catalogue.shape
    alone.engine.snapshots = Path("/proc/nowhere")
    problem: Any = alone.post("/admin/snapshot", None, status=503)
    assert "cannot be written" in problem["detail"]
    alone.engine.snapshots = folder
    assert len(read(folder / NAME, shape).entries) == 120
    assert (folder / NAME).read_bytes() == first
    alone.post("/admin/snapshot", None)
    assert len(read(folder / NAME, shape).entries) == 121
    assert sorted(file.name for file in folder.iterdir()) == [new.name, NAME]
    with pytest.raises(SnapshotError, match="cannot be read"):
        read(tmp_path / "nothing", shape)
