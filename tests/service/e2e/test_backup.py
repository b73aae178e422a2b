"""`lacuna backup` and `lacuna restore`: a consistent copy, while writing goes on, between both databases."""

from __future__ import annotations

import asyncio
import random
import threading
import zipfile
from pathlib import Path

import httpx
import pytest

from service import backup
from service.adapters.sql.store import SqlStore
from tests.service.crash.shop import Act, Shop, State
from tests.service.crash.stored import read_states
from tests.service.e2e.test_restart import answers, busy
from tests.service.processes import within
from tests.service.running import Running, settings_for


def run(capsys: pytest.CaptureFixture[str], what: str, file: Path, url: str) -> tuple[int, str]:
    """The exit code of `lacuna backup` or `lacuna restore`, and what it said."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LACUNA_DATABASE_URL", url)
        code = backup.main([what, str(file)])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_backup_restores_to_the_same_answers_on_the_other_database(
    demo_bundle: Path,
    demo_folder: Path,
    tmp_path: Path,
    postgres_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, first, last = (
        tmp_path / "copy.zip",
        f"sqlite+aiosqlite:///{tmp_path}/a.db",
        f"sqlite+aiosqlite:///{tmp_path}/b.db",
    )
    with Running(settings_for(demo_bundle, demo_folder, first)) as service:
        busy(service)
        before = answers(service)
        code, said = run(capsys, "create", file, first)
        assert (code, "123 items" in said) == (0, True), said
        service.create(id="later", title="not in the backup")
    for source, target in ((first, postgres_url), (postgres_url, last)):
        if source == postgres_url:
            assert run(capsys, "create", file, source)[0] == 0
        assert run(capsys, "restore", file, target)[0] == 0
        with Running(settings_for(demo_bundle, demo_folder, target)) as service:
            service.check_index()
            assert answers(service) == before
        code, said = run(capsys, "restore", file, target)
        assert (code, "not empty" in said) == (2, True), said
    with Running(settings_for(demo_bundle, demo_folder, last)) as service:
        service.create(id="later", title="counting goes on where it was")
        service.view("later", "shopper-001")
        service.check_index()


def test_a_backup_of_a_database_that_is_written_to_is_one_moment_of_it(anywhere: Running, tmp_path: Path) -> None:
    file, url = tmp_path / "copy.zip", anywhere.settings.database_url
    dims = {modality.name: modality.dim for modality in anywhere.engine.manifest.modalities}
    shops = [Shop(f"b{number}", dims, random.Random(number)) for number in range(3)]
    history: dict[str, list[State]] = {shop.name: [shop.state] for shop in shops}
    stop = threading.Event()

    def work(shop: Shop) -> None:
        with httpx.Client(base_url=anywhere.url, timeout=60) as client:

            def ask(act: Act) -> httpx.Response:
                history[shop.name].append(act.after)  # before it is sent: the backup may hold it before its answer came
                return client.request(act.method, act.path, json=act.body)

            shop.work(ask, lambda: not stop.is_set())

    threads = [threading.Thread(target=work, args=(shop,)) for shop in shops]
    for thread in threads:
        thread.start()
    within(60, lambda: sum(map(len, history.values())) > 40 or None)
    answered = {shop.name: shop.state for shop in shops}
    asyncio.run(backup.create(url, file))
    stop.set()
    for thread in threads:
        thread.join()
    assert [shop.violations for shop in shops] == [[], [], []]
    restored = f"sqlite+aiosqlite:///{tmp_path}/restored.db"
    asyncio.run(backup.restore(restored, file))
    states = asyncio.run(_states(restored, list(history)))
    for name, state in states.items():
        since = history[name].index(answered[name])
        assert state in history[name][since:]
    assert sum(len(state.items) for state in states.values()) > 5


async def _states(url: str, shops: list[str]) -> dict[str, State]:
    store = await SqlStore.open(url)
    try:
        return (await read_states(store, shops))[0]
    finally:
        await store.close()


def test_what_is_no_whole_backup_is_refused(seeded_file: Path, tmp_path: Path) -> None:
    file, target = tmp_path / "copy.zip", f"sqlite+aiosqlite:///{tmp_path}/new.db"
    asyncio.run(backup.create(f"sqlite+aiosqlite:///{seeded_file}", file))
    assert [one.name for one in tmp_path.iterdir()] == [file.name]
    data = file.read_bytes()
    for damaged in (b"", data[:1000], data[:-1], data[: len(data) // 2] + b"\0" + data[len(data) // 2 + 1 :]):
        if damaged == data:
            continue
        file.write_bytes(damaged)
        with pytest.raises(backup.BackupError, match="damaged"):
            asyncio.run(backup.restore(target, file))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(backup.ABOUT, '{"format": 99}')
        archive.writestr(backup.DATABASE, "")
    with pytest.raises(backup.BackupError, match="another version"):
        asyncio.run(backup.restore(target, file))
    with pytest.raises(backup.BackupError, match="does not exist"):
        asyncio.run(backup.restore(target, tmp_path / "nothing.zip"))
    with pytest.raises(backup.BackupError, match="does not exist"):
        asyncio.run(backup.create(f"sqlite+aiosqlite:///{seeded_file}", tmp_path / "nowhere" / "copy.zip"))
    assert not (tmp_path / "new.db").exists()
