"""`python -m service`: its help, its refusals, and one life from start to interrupt."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from models.bundle import BundleError
from service import __main__ as program
from service import main
from service.settings import describe_settings
from tests.service.unit import fake_engine
from tests.service.unit.fake_engine import FakeEngine


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


def test_failed_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def bootstrap(_: object) -> FakeEngine:
        raise BundleError("The bundle is damaged:\n its manifest is missing.")

    monkeypatch.setattr(main, "bootstrap", bootstrap)
    assert program.main(["--port", "0"]) == 2
    assert capsys.readouterr().err == "The bundle is damaged: its manifest is missing.\n"


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


def test_serves_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    engine, port = FakeEngine(), _free_port()
    answers: list[httpx.Response] = []
    fake_engine.install(monkeypatch)

    async def bootstrap(_: object) -> FakeEngine:
        return engine

    def ask_and_interrupt() -> None:
        for _ in range(500):
            with suppress(httpx.TransportError):
                answers.append(httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False))
                if answers[-1].status_code == 200:
                    break
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(main, "bootstrap", bootstrap)
    asking = threading.Thread(target=ask_and_interrupt)
    asking.start()
    with caplog.at_level(logging.INFO, "service"):
        assert program.main(["--port", port]) == 0
    asking.join()
    assert answers[-1].status_code == 200
    assert "server" not in answers[-1].headers
    assert engine.is_closed
    assert f"Serving 0 items with bundle 2026-01-02.1 at http://127.0.0.1:{port}; the docs are at" in caplog.text
