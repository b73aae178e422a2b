"""Opaque cursors of paged lists."""

from __future__ import annotations

import base64
import binascii
import json

from service.domain import InvalidInputError


def encode_cursor(*parts: str) -> str:
    """The cursor that stands for these parts."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, kind: str, parts: int) -> tuple[str, ...]:
    """The parts after the kind of a cursor made by `encode_cursor(kind, ...)`.

    Raises:
        InvalidInputError: the cursor is none of ours, or belongs to another list.
    """
    try:
        found = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError, binascii.Error):
        raise _malformed() from None
    if not isinstance(found, list) or len(found) != parts + 1 or found[0] != kind:
        raise _malformed()
    if not all(isinstance(part, str) for part in found):
        raise _malformed()
    return tuple(found[1:])


def decode_number(part: str, bits: int = 63) -> int:
    """A non-negative whole number out of a cursor.

    Raises:
        InvalidInputError: it is none, or needs more bits.
    """
    if not (part.isascii() and part.isdecimal() and len(part) <= 20 and int(part) < 1 << bits):
        raise _malformed()
    return int(part)


def _malformed() -> InvalidInputError:
    return InvalidInputError("the cursor is not one that this list handed out", "/cursor")
