"""`python -m service`: read the settings, listen, serve. What goes wrong is one sentence and exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from service import urls
from service.connections import ConnectionLimits, allow_files
from service.logging import PRIVATE_MASK, complain, configure_for, run
from service.main import create_app
from service.pipeline.engine import Engine
from service.settings import Settings, SettingsError, describe_settings
from service.workers import Supervisor, server_of, spare_collections

logger = logging.getLogger("service")

# Secrets stay out of the list of processes: API keys and passwords belong in the environment, or in files.
_FLAGS = (
    *("bundle", "host", "port", "workers", "data_dir", "image_weights", "log_level"),
    *("database_url", "database_url_file", "redis_url", "redis_url_file", "api_keys_file"),
)
_URLS = ("database_url", "redis_url")
_BACKLOG = 2048


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; the exit code."""
    options = vars(_parser().parse_args(arguments))
    return run(lambda: _main(options))


def _main(options: dict[str, Any]) -> int:
    for name in _URLS:
        if options[name] and urls.has_password(options[name]):
            raise SettingsError(
                f"--{name.replace('_', '-')} holds a password, which everybody reads in the list of processes: "
                f"set LACUNA_{name.upper()}, or name a file that holds the URL with --{name.replace('_', '-')}-file."
            )
    settings = Settings.load(**options)
    listener = _listen(settings)
    configure_for(settings.log_level, settings.log_format)
    allow_files(settings.max_connections)
    if settings.workers > 1:
        return Supervisor(settings, listener, _address(settings, listener)).run()
    return _serve(settings, listener)


def _parser() -> argparse.ArgumentParser:
    descriptions = {name: (default, text) for name, default, text in describe_settings()}
    width = max(map(len, descriptions))
    settings = (f"  {name:{width}}  {text} [{default or 'none'}]" for name, (default, text) in descriptions.items())
    parser = argparse.ArgumentParser(
        prog="lacuna serve",
        description="Serve a model bundle over HTTP.",
        epilog="settings, from the environment or .env, with their defaults:\n" + "\n".join(settings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in _FLAGS:
        _, text = descriptions[f"LACUNA_{name.upper()}"]
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, metavar="VALUE")
    return parser


def _listen(settings: Settings) -> socket.socket:
    """A listening socket. Raises SettingsError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(f"Cannot listen on {settings.host} port {settings.port}: {reason}.") from None


def _serve(settings: Settings, listener: socket.socket) -> int:
    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    announce = functools.partial(_announce, _address(settings, listener))
    server = server_of(create_app(settings, on_ready=announce, on_failure=stop), ConnectionLimits.of(settings))
    # Once it has shut down, uvicorn raises the signal that told it to once more.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return complain(failures[0]) if failures else 0


def _address(settings: Settings, listener: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"


async def _announce(address: str, engine: Engine) -> None:
    spare_collections()
    items = await engine.store.count_items()
    logger.info(
        "Serving %d items with bundle %s at %s; the docs are at %s/docs", items, engine.model_version, address, address
    )


if __name__ == "__main__":
    os.umask(PRIVATE_MASK)
    sys.exit(main())
