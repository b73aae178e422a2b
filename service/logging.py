"""Log lines on stderr, as text or as JSON, each with the id of the request it belongs to."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import orjson

from models.errors import sentence_of

_logger = logging.getLogger(__name__)

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s [%(request_id)s] %(message)s"
_BREAKING = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")  # what ends a line, or moves a terminal's cursor


PRIVATE_MASK = 0o077  # of the files that the service's programs make: they are their user's alone


REFUSED = 2  # the exit code of a program that failed with a sentence


INTERRUPTED = 130  # and of one that was interrupted from the keyboard, as shells have it


def run(work: Callable[[], int]) -> int:
    """A program's work; its exit code. What goes wrong is one sentence."""
    try:
        return work()
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        _logger.debug("the program failed", exc_info=error)
        return complain(error)


def complain(error: Exception) -> int:
    """One sentence on stderr; the exit code."""
    sentence = sentence_of(error)
    reason = getattr(error, "reason", "")  # of a database: why it does not answer
    if reason not in sentence:
        sentence = f"{sentence.removesuffix('.')}: {' '.join(reason.split())}."
    sys.stderr.write(f"{sentence}\n")
    return REFUSED


def say(line: str) -> None:
    """A line on stdout, whatever a file's name in it is made of."""
    sys.stdout.write(f"{line}\n".encode("utf-8", "backslashreplace").decode())


class RequestIdFilter(logging.Filter):
    """Adds `request_id` to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass."""
        record.request_id = REQUEST_ID.get()
        return True


class TextFormatter(logging.Formatter):
    """A line for each record, and each line of a traceback indented below it: nothing that a message, or an error in
    it, was made of begins a line."""

    def __init__(self) -> None:
        super().__init__(_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback below it, whoever has written that down before."""
        record.exc_text = None
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """The line, for whatever its message holds."""
        record.message = _in_one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        """The traceback."""
        return "\n".join(f"    {_in_one_line(line)}" for line in super().formatException(ei).split("\n"))


def _in_one_line(text: str) -> str:
    return _BREAKING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, request_id, process, message, and the traceback as `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON, for whatever its message holds."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            "process": record.process,
            "message": record.getMessage().encode("utf-8", "backslashreplace").decode(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info).encode("utf-8", "backslashreplace").decode()
        return orjson.dumps(line).decode()


def configure(level: int = logging.INFO, *, as_json: bool = False) -> None:
    """Send the root logger to stderr. Libraries that tell about each request are turned down to warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("uvicorn", "httpx", "sentence_transformers", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def configure_for(log_level: str, log_format: str) -> None:
    """As the settings say."""
    configure(logging.getLevelNamesMapping()[log_level.upper()], as_json=log_format == "json")
