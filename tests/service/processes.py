"""The real program in processes of its own, which can be killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.context import ForkServerProcess, SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from unittest import mock

import httpx
import psutil

REPOSITORY = Path(__file__).parents[2]
START_S = 120.0
PORTS = range(20_000, 32_000)
T = TypeVar("T")

# Programs are forked from a process that has imported the service and started nothing, which saves each start the 4 s
# that importing takes.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__, "service.__main__"])
_ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


def free_port() -> int:
    """A port that nobody listens on just now, nor will by chance: connections going out are given higher ones, which a
    service that is started again would find taken."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if _is_free(port):
            return port
    raise OSError("there is no free port")


def _is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def within(seconds: float, probe: Callable[[], T | None]) -> T:
    """The first answer of `probe` that is not None; a failure after so many seconds."""
    until = time.monotonic() + seconds
    while (found := probe()) is None:
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.02)
    return found


def keep_encoders(data_dir: Path) -> None:
    """Let the graphs that encoders are exported to, which takes half a minute, outlive a data folder that has none."""
    kept, link = REPOSITORY / "build" / "encoders", data_dir / "encoders"
    if data_dir.is_dir() and not link.exists():
        kept.mkdir(parents=True, exist_ok=True)
        link.symlink_to(kept)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _serve(environment: Mapping[str, str], log: Path) -> None:
    os.setsid()
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    os.environ.clear()
    os.environ.update(environment)
    from service.__main__ import main  # imported already, in a fork

    sys.exit(main([]))


class Program:
    """What `python -m service` runs, with some settings, in a process group of its own.

    Args:
        log: where its standard error goes.
        fresh: start with a new interpreter, which imports everything itself, instead of a fork.
        settings: by their names without the prefix.
    """

    def __init__(self, log: Path, *, fresh: bool = False, **settings: Any) -> None:
        self.log = log
        self._fresh = fresh
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {"port": self.port, "log_level": "warning", **settings}
        if "data_dir" in settings:
            keep_encoders(Path(settings["data_dir"]))
        self.process: ForkServerProcess | SpawnProcess | None = None
        self._clients: list[httpx.Client] = []

    def start(self) -> Self:
        """Start, and wait until it serves."""
        self.launch()
        self.wait_ready()
        return self

    def launch(self) -> None:
        """Start and do not wait."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LACUNA_")}
        environment |= {f"LACUNA_{name.upper()}": str(value) for name, value in self.settings.items()}
        context = multiprocessing.get_context("spawn") if self._fresh else _FORKS
        self.process = context.Process(target=_serve, args=(environment | _ENVIRONMENT, self.log), name="lacuna")
        with mock.patch.dict(os.environ, _ENVIRONMENT):
            self.process.start()

    def wait_ready(self) -> None:
        """Until it answers that it is ready."""
        assert self.process is not None
        until = time.monotonic() + START_S
        while not self._is_ready():
            assert self.process.exitcode is None, self.log.read_text()[-2000:]
            assert time.monotonic() < until, "the service did not start"
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL to all of its processes at once."""
        family = psutil.Process(self.pid).children(recursive=True)
        os.killpg(self.pid, signal.SIGKILL)
        self.wait(30)
        within(30, lambda: not any(map(_lives, family)) or None)  # and hold the port
        within(30, lambda: _is_free(self.port) or None)  # a worker just being started is in no list

    def stop(self) -> int:
        """SIGTERM, as an operator does; the exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait(60)

    def wait(self, seconds: float) -> int:
        """The exit code, once it has ended."""
        assert self.process is not None
        self.process.join(seconds)
        code = self.process.exitcode
        assert code is not None, f"it runs on after {seconds} s"
        return code

    @property
    def pid(self) -> int:
        """The first process: the only one that serves, or the supervisor."""
        assert self.process is not None
        assert self.process.pid is not None
        return self.process.pid

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()
        if self.process is not None and self.process.exitcode is None:
            self.kill()

    def client(self) -> httpx.Client:
        """A connection of its own, which stays with one worker."""
        client = httpx.Client(base_url=self.url, timeout=30, limits=httpx.Limits(max_connections=1))
        self._clients.append(client)
        return client

    def worker_pids(self) -> set[int]:
        """The processes that answer requests."""
        if int(self.settings.get("workers", 1)) == 1:
            return {self.pid}
        return {child.pid for child in psutil.Process(self.pid).children()}

    def clients(self, count: int | None = None) -> dict[int, httpx.Client]:
        """A connection to each worker, by its process; waits until there are as many as the settings say."""
        wanted = count or int(self.settings.get("workers", 1))
        found: dict[int, httpx.Client] = {}
        until = time.monotonic() + START_S
        while len(found) < wanted:
            assert time.monotonic() < until, f"{len(found)} of {wanted} workers answer"
            client = self.client()
            pid = client.get("/stats").json()["worker"]["pid"]
            if found.setdefault(pid, client) is not client:
                client.close()
                time.sleep(0.01)
        return found
