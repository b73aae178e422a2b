"""`python -m service`: its help, its refusals, and one life from start to interrupt."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from models.bundle import Bundle
from service import __main__ as program
from service.settings import describe_settings


@pytest.fixture(autouse=True)
def _logging_stays_as_pytest_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "configure_for", lambda *_: None)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def test_help_lists_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        program.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name, default, text in describe_settings():
        assert f"{name} " in shown
        assert f"{text} [{default or 'none'}]" in shown


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--port", "x"], "LACUNA_PORT"),
        (["--workers", "0"], "LACUNA_WORKERS"),
        (["--host", "0.0.0.0"], "LACUNA_HOST"),
        (["--host", "192.0.2.1"], "LACUNA_HOST"),
        (["--database-url", "mysql://x"], "LACUNA_DATABASE_URL"),
    ],
)
def test_wrong_setting_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], named: str) -> None:
    assert program.main(arguments) == 2
    shown = capsys.readouterr().err
    assert named in shown
    assert shown.count("\n") == 1


def test_taken_port_is_one_sentence(capsys: pytest.CaptureFixture[str], taken: int) -> None:
    assert program.main(["--port", str(taken)]) == 2
    assert capsys.readouterr().err.startswith(f"Cannot listen on 127.0.0.1 port {taken}: ")


def test_failed_start_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--port", "0", "--bundle", str(tmp_path / "no\nbundle"), "--data-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "no bundle" in said
    assert said.count("\n") == 1


def test_a_fault_is_one_sentence_that_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def listen(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(program.socket, "create_server", listen)
    assert program.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("a fault of Lacuna itself, KeyError at service/__main__.py, line ")
    assert said.endswith(": 'surprise'\n")


def test_interrupted_before_it_serves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def listen(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "_listen", listen)
    assert program.main([]) == 130
    assert capsys.readouterr().err == ""


def test_serves_until_it_is_interrupted(
    demo_bundle: Path, demo_folder: Path, seeded_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, port = Path(shutil.copy(seeded_file, tmp_path / "lacuna.db")), _free_port()
    answers: list[httpx.Response] = []

    def ask_and_interrupt() -> None:
        for _ in range(500):
            with suppress(httpx.TransportError):
                answers.append(httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False))
                if answers[-1].status_code == 200:
                    break
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    given = {
        "port": port,
        "bundle": demo_bundle,
        "data-dir": demo_folder,
        "database-url": f"sqlite+aiosqlite:///{file}",
    }
    asking = threading.Thread(target=ask_and_interrupt)
    asking.start()
    with caplog.at_level(logging.INFO, "service"):
        assert program.main([f"--{name}={value}" for name, value in given.items()]) == 0
    asking.join()
    assert answers[-1].status_code == 200
    assert "server" not in answers[-1].headers
    assert not file.with_name("lacuna.db-wal").exists()  # whoever closes a database last leaves none
    version = Bundle.load(demo_bundle).manifest.version
    assert f"Serving 120 items with bundle {version} at http://127.0.0.1:{port}; the docs are at" in caplog.text
