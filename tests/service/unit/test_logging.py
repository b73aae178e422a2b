"""Log lines."""

from __future__ import annotations

import json
import logging
import sys

from service.logging import REQUEST_ID, JsonFormatter, RequestIdFilter


def line(message: str, *arguments: object, failing: bool = False) -> dict[str, object]:
    """A record as it is written."""
    error = None
    if failing:
        try:
            raise ValueError("out of\nluck")
        except ValueError:
            error = sys.exc_info()
    record = logging.LogRecord("service.test", logging.WARNING, __file__, 1, message, arguments, error)
    RequestIdFilter().filter(record)
    written = JsonFormatter().format(record)
    assert "\n" not in written
    found: dict[str, object] = json.loads(written)
    return found


def test_a_line_is_one_object_with_its_request() -> None:
    token = REQUEST_ID.set("r-1")
    try:
        found = line("%d items\nof %s", 3, 'a "shop" \udcff')
    finally:
        REQUEST_ID.reset(token)
    assert found["request_id"] == "r-1"
    assert (found["level"], found["logger"]) == ("warning", "service.test")
    assert found["message"] == '3 items\nof a "shop" \\udcff'
    assert str(found["time"]).endswith("+00:00")
    assert "exception" not in found


def test_a_failure_has_its_traceback() -> None:
    found = line("failed", failing=True)
    assert found["request_id"] == "-"
    assert "ValueError: out of\nluck" in str(found["exception"])
