"""Several worker processes behind one listening socket, and the supervisor that replaces those that die."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

import uvicorn
import uvloop
from starlette.types import ASGIApp

from service.bootstrap import bootstrap
from service.connections import ConnectionLimits, LimitedProtocol
from service.logging import REFUSED, complain, configure_for
from service.main import create_app
from service.settings import Settings

logger = logging.getLogger(__name__)

PAUSE_S = 1.0  # before a dead worker is replaced
LOOK_S = 0.2
KEEP_ALIVE_S = 15
SHUTDOWN_S = 10

# Workers are forked from the supervisor, which has imported everything and started nothing: a new one is there in a
# moment, and the libraries' memory is shared.
_FORKS = multiprocessing.get_context("fork")


def server_of(app: ASGIApp, limits: ConnectionLimits) -> uvicorn.Server:
    """A server over the app, as every process of the service runs it."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=LimitedProtocol.of(limits),
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
    )


def spare_collections() -> None:
    """Keep what a start has made out of garbage collections from now on. It stays for good, and to look through all of
    it holds every thread for tenths of a second, time and again."""
    gc.collect()
    gc.freeze()


@dataclass
class _Worker:
    process: ForkProcess
    word: Connection  # says when the worker serves
    started: float


class Supervisor:
    """Keeps `settings.workers` processes serving from one socket.

    A worker takes connections once it can answer. One that dies is replaced; where none has ever served, a refused
    start ends it all.
    """

    def __init__(self, settings: Settings, listener: socket.socket, address: str) -> None:
        self._settings = settings
        self._listener = listener
        self._address = address
        self._workers: list[_Worker] = []
        self._is_serving = False
        self._stopping = False

    def run(self) -> int:
        """Serve until told to stop; the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._workers = [self._start() for _ in range(self._settings.workers)]
        code = 0
        while not self._stopping:
            wait([*(worker.process.sentinel for worker in self._workers), *self._unheard()], LOOK_S)
            self._listen_to_workers()
            code = self._replace_the_dead()
        self._stop()
        return code

    def _on_signal(self, *_: object) -> None:
        self._stopping = True

    def _start(self) -> _Worker:
        here, there = _FORKS.Pipe(duplex=False)
        process = _FORKS.Process(target=_work, args=(self._settings, self._listener, there), name="lacuna-worker")
        process.start()
        there.close()
        return _Worker(process, here, time.monotonic())

    def _unheard(self) -> list[Connection]:
        return [worker.word for worker in self._workers if not worker.word.closed]

    def _listen_to_workers(self) -> None:
        for word in self._unheard():
            if not word.poll():
                continue
            with contextlib.suppress(EOFError):  # died before it could say a word
                word.recv()
                if not self._is_serving:
                    logger.info("Serving at %s with %d workers", self._address, len(self._workers))
                self._is_serving = True
            word.close()

    def _replace_the_dead(self) -> int:
        for place, worker in enumerate(self._workers):
            code = worker.process.exitcode
            if code is None or self._stopping:
                continue
            if code == REFUSED and not self._is_serving:
                self._stopping = True
                return REFUSED
            if time.monotonic() - worker.started < PAUSE_S:
                continue
            logger.warning("Worker %d has ended with %d; starting another", worker.process.pid, code)
            worker.word.close()
            worker.process.close()
            self._workers[place] = self._start()
        return 0

    def _stop(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        until = time.monotonic() + 2 * SHUTDOWN_S
        for worker in self._workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.exitcode is None:
                logger.warning("Worker %d does not end; killing it", worker.process.pid)
                worker.process.kill()
                worker.process.join()


def _work(settings: Settings, listener: socket.socket, word: Connection) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # the supervisor's handlers are not for its workers
        signal.signal(number, signal.default_int_handler)
    configure_for(settings.log_level, settings.log_format)
    threading.Thread(target=_end_with_the_supervisor, daemon=True).start()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(_serve(settings, listener, word))
    except Exception as error:
        logger.debug("the worker did not start", exc_info=error)
        sys.exit(complain(error))


def _end_with_the_supervisor() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


async def _serve(settings: Settings, listener: socket.socket, word: Connection) -> None:
    try:
        serving = await bootstrap(settings)
    except Exception:
        # It ends by itself. The supervisor, told by another worker, would interrupt it while its event loop closes, and
        # a traceback of the loop's own thread would follow the reason.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise
    try:
        spare_collections()
        word.send("serving")
        app = create_app(settings, serving=serving)
        await server_of(app, ConnectionLimits.of(settings)).serve(sockets=[listener])
    finally:
        await serving.close()
