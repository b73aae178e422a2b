"""The limits that settings can move, at hand for whatever reads a request.

Pydantic's field constraints are fixed when a model is made, before there are settings; validators look here instead.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sized
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from service.settings import Settings

S = TypeVar("S", bound=Sized)


@dataclass(frozen=True, slots=True)
class Limits:
    """The most of each that one request may bring or ask for."""

    n: int = 500
    batch: int = 1_000
    feedback: int = 10_000
    text_chars: int = 20_000
    body_bytes: int = 8 << 20

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The limits that the settings name."""
        return cls(
            n=settings.max_n,
            batch=settings.max_batch,
            feedback=settings.max_feedback,
            text_chars=settings.max_text_chars,
            body_bytes=settings.max_body_bytes,
        )


LIMITS: ContextVar[Limits] = ContextVar("limits", default=Limits())  # noqa: B039 - frozen


def network_of(address: str) -> str:
    """Whose address it is, as far as addresses tell: an IPv4 address, or the network of 64 bits of an IPv6 one, since
    a host has all of these."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:  # of a socket in the file system
        return address
    found = getattr(found, "ipv4_mapped", None) or found
    return str(found if found.version == 4 else ipaddress.ip_network((found.packed, 64), strict=False))


def row_context() -> dict[str, int]:
    """What the models of rows (`models.rows`) are to know of the limits."""
    return {"text_chars": LIMITS.get().text_chars}


def check_n(value: int) -> int:
    """A list's length. Raises ValueError beyond the limit."""
    limit = LIMITS.get().n
    if value > limit:
        raise ValueError(f"this may be {limit} at most")
    return value


def check_text(value: str) -> str:
    """A text. Raises ValueError beyond the limit."""
    return _check_size(value, LIMITS.get().text_chars, "characters")


def check_batch(value: S) -> S:
    """A batch's rows. Raises ValueError beyond the limit."""
    return _check_size(value, LIMITS.get().batch, "rows")


def check_feedback(value: S) -> S:
    """Feedback rows. Raises ValueError beyond the limit."""
    return _check_size(value, LIMITS.get().feedback, "rows")


def _check_size(value: S, limit: int, unit: str) -> S:
    if len(value) > limit:
        raise ValueError(f"this may have {limit} {unit} at most")
    return value
