"""The real program in processes of its own, which can be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import psutil

REPOSITORY = Path(__file__).parents[2]
START_S = 120.0
T = TypeVar("T")


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def within(seconds: float, probe: Callable[[], T | None]) -> T:
    """The first answer of `probe` that is not None; a failure after so many seconds."""
    until = time.monotonic() + seconds
    while (found := probe()) is None:
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.02)
    return found


class Program:
    """`python -m service` with some settings, in a process group of its own.

    Args:
        log: where its standard error goes.
        settings: by their names without the prefix.
    """

    def __init__(self, log: Path, **settings: Any) -> None:
        self.log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {"port": self.port, "log_level": "warning", **settings}
        self.process: subprocess.Popen[bytes] | None = None
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
        environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service"], env=environment, stderr=log, start_new_session=True, cwd=REPOSITORY
            )

    def wait_ready(self) -> None:
        """Until it answers that it is ready."""
        assert self.process is not None
        until = time.monotonic() + START_S
        while not self._is_ready():
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < until, "the service did not start"
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL to all of its processes at once."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> int:
        """SIGTERM, as an operator does; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def client(self) -> httpx.Client:
        """A connection of its own, which stays with one worker."""
        client = httpx.Client(base_url=self.url, timeout=30, limits=httpx.Limits(max_connections=1))
        self._clients.append(client)
        return client

    def worker_pids(self) -> set[int]:
        """The processes that answer requests."""
        assert self.process is not None
        if int(self.settings.get("workers", 1)) == 1:
            return {self.process.pid}
        # They are forked from a child of the supervisor.
        every = psutil.Process(self.process.pid).children(recursive=True)
        return {child.pid for child in every if child.ppid() != self.process.pid}

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
