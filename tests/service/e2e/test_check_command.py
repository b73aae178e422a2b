"""`lacuna check` and `lacuna rebuild` beside a running service."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tests.service.processes import free_port
from tests.service.running import Running, settings_for
from training.cli import app
from training.running_service import ServiceError

KEY = "an-admin-key-of-the-tests"


@pytest.fixture(scope="module")
def service(seeded_file: Path, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("checked")
    file = Path(shutil.copy(seeded_file, folder / "lacuna.db"))
    with Running(settings_for(demo_bundle, folder, file, api_keys=f"ops:admin:{KEY}")) as running:
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        yield running


def lacuna(service: Running, *arguments: str, key: str | None = KEY) -> Result:
    return CliRunner().invoke(app, [*arguments, "--url", service.url], env={"LACUNA_KEY": key}, catch_exceptions=True)


def test_a_check_says_what_differs_and_a_rebuild_mends_it(service: Running, tmp_path: Path) -> None:
    count = len(service.engine.memory.catalogue)
    sound = lacuna(service, "check")
    assert (sound.exit_code, sound.stdout) == (0, f"{count} of {count} items checked, 0 differ\n")
    catalogue = service.engine.memory.catalogue
    key = np.array([catalogue.key("demo-0005")])
    final = catalogue.final(key)
    catalogue.rows.put_all("final", key, -final)
    harmed = lacuna(service, "check")
    assert harmed.exit_code == 1
    assert f"{count} of {count} items checked, 1 differ\ndemo-0005: final (by up to 2 of" in harmed.stdout
    report = json.loads(lacuna(service, "check", "--json").stdout)
    assert [row["id"] for row in report["differences"]] == ["demo-0005"]
    (tmp_path / "key").write_text(KEY + "\n")
    rebuilt = lacuna(service, "rebuild", "--key-file", str(tmp_path / "key"), key=None)
    assert rebuilt.exit_code == 0, rebuilt.output
    assert f"{count} items derived anew" in rebuilt.stderr
    np.testing.assert_allclose(catalogue.final(key), final, atol=1e-6)
    few = lacuna(service, "check", "--sample", "7")
    assert few.stdout == f"7 of {count} items checked, 0 differ\n"


@pytest.mark.parametrize("command", ["check", "rebuild"])
def test_what_cannot_be_asked_is_said_in_a_sentence(service: Running, command: str) -> None:
    refused = lacuna(service, command, key="a-key-that-nobody-has")
    assert isinstance(refused.exception, ServiceError)
    assert "was answered 401" in str(refused.exception)
    for url, said in (
        (f"http://127.0.0.1:{free_port()}", "does not answer"),
        ("no-url", "is no URL"),
    ):
        failed = CliRunner().invoke(app, [command, "--url", url])
        assert isinstance(failed.exception, ServiceError)
        assert said in str(failed.exception)
        assert "\n" not in str(failed.exception)
