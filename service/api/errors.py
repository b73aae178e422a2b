"""Problems (RFC 9457): one table from the domain's errors to statuses, and the handlers that use it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from models.rows import sentence
from service.api.answers import Json
from service.domain import (
    BundleRefusedError,
    ConflictError,
    InvalidInputError,
    ItemExistsError,
    ItemNotFoundError,
    LacunaError,
    ModelNotFoundError,
    NotFollowedError,
    NotReadyError,
    NotServedError,
    StoreFullError,
    StoreUnavailableError,
    UserNotFoundError,
)
from service.logging import REQUEST_ID

logger = logging.getLogger(__name__)

STATUSES: Mapping[type[LacunaError], int] = {
    InvalidInputError: 422,
    ItemNotFoundError: 404,
    UserNotFoundError: 404,
    ItemExistsError: 409,
    ConflictError: 409,
    ModelNotFoundError: 404,
    BundleRefusedError: 409,
    NotServedError: 503,
    NotReadyError: 503,
    NotFollowedError: 503,
    StoreUnavailableError: 503,
    StoreFullError: 507,
}
RETRY_AFTER_S: Mapping[type[LacunaError], int] = {
    NotReadyError: 2,
    NotFollowedError: 1,
    StoreUnavailableError: 5,
    StoreFullError: 60,
}

MAX_ERRORS = 100  # a body of ten thousand bad rows is answered by the first hundred
ROW_ERRORS = 10  # of each row, where every row has an answer of its own


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one value: a JSON pointer to it, and a sentence."""

    pointer: str
    detail: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem before it is written: `slug` is the stable type, `headers` go with the response."""

    slug: str
    title: str
    status: int
    detail: str
    errors: tuple[FieldError, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The problem as JSON; names the request that runs in this context."""
        answer: dict[str, Any] = {
            "type": f"/problems/{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": REQUEST_ID.get(),
        }
        if self.errors:
            answer["errors"] = [{"pointer": error.pointer, "detail": error.detail} for error in self.errors]
        return answer

    def response(self) -> Response:
        """The problem as a response."""
        return Json(self.body(), status_code=self.status, headers=self.headers, media_type="application/problem+json")


class ProblemError(Exception):
    """Raised where the HTTP layer itself finds the request at fault."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


# --- problems of the HTTP layer itself ----------------------------------------------------------------------------


def invalid(errors: Iterable[FieldError], total: int | None = None) -> Problem:
    """422 with the values that are wrong: the first of `total`, or all of them."""
    listed = tuple(errors)
    first = listed[0]
    detail = f"{first.pointer}: {first.detail}" if first.pointer else first.detail
    more = (total or len(listed)) - 1
    if more:
        detail += f" (and {more} more)"
    return Problem("invalid-input", "Invalid input", 422, detail, listed[:MAX_ERRORS])


def invalid_fields(error: ValidationError, most: int = MAX_ERRORS) -> Problem:
    """422 with what pydantic found, the first `most` of it."""
    return invalid(validation_errors(error, most=most), error.error_count())


def too_many_values() -> ProblemError:
    """422 where there are more values than any body may hold."""
    detail = "this holds more values than it can have use for"
    return ProblemError(invalid([FieldError("", detail)]))


def too_long_name(most: int) -> ProblemError:
    """422 where a field has a name that none can have."""
    return ProblemError(invalid([FieldError("", f"a field's name has more than {most} characters")]))


def malformed(detail: str) -> ProblemError:
    """400: the bytes are not what they say they are."""
    return ProblemError(Problem("malformed-request", "Malformed request", 400, detail))


def unsupported_media_type(accepted: Sequence[str]) -> ProblemError:
    """415 that names what is accepted."""
    detail = f"Send the body as {' or '.join(accepted)}."
    return ProblemError(Problem("unsupported-media-type", "Unsupported media type", 415, detail))


def unsupported_coding(accepted: Sequence[str]) -> ProblemError:
    """415 that names what a body may be compressed with."""
    detail = f"Send the body as it is, or compressed with {' or '.join(accepted)} (Content-Encoding)."
    headers = {"Accept-Encoding": ", ".join(accepted)}
    return ProblemError(Problem("unsupported-media-type", "Unsupported media type", 415, detail, headers=headers))


def too_large(limit: int) -> ProblemError:
    """413 that names the limit."""
    detail = f"The body is larger than the limit of {limit} bytes."
    return ProblemError(Problem("body-too-large", "Body too large", 413, detail))


def unauthorized(detail: str) -> ProblemError:
    """401."""
    headers = {"WWW-Authenticate": 'Bearer realm="lacuna"'}
    return ProblemError(Problem("unauthorized", "Unauthorized", 401, detail, headers=headers))


def forbidden(role: str) -> ProblemError:
    """403 that names the role that would do."""
    return ProblemError(Problem("forbidden", "Forbidden", 403, f"This needs a key with the role {role}."))


def too_many_requests(wait_s: float) -> ProblemError:
    """429 that says when to come back."""
    seconds = max(1, math.ceil(wait_s))
    detail = f"As many requests of a minute as may be were made by this key, or address; try again in {seconds} s."
    return ProblemError(
        Problem("too-many-requests", "Too many requests", 429, detail, headers={"Retry-After": str(seconds)})
    )


OVERLOADED = Problem(
    "overloaded",
    "Overloaded",
    503,
    "The service works on as many requests as it can, or takes from one caller; try again in a moment.",
    headers={"Retry-After": "1"},
)
TIMED_OUT = Problem(
    "timed-out",
    "Timed out",
    503,
    "The request took longer than it may. A write may have been done; reading tells.",
    headers={"Retry-After": "1"},
)
IN_PROGRESS = Problem(
    "request-in-progress",
    "Request in progress",
    409,
    "The first request with this Idempotency-Key is being worked on; send this one again later.",
    headers={"Retry-After": "1"},
)
KEY_REUSED = Problem(
    "idempotency-key-reused",
    "Idempotency key reused",
    422,
    "This Idempotency-Key was used for another request; a new request takes a new key.",
)
STOPPING = Problem(
    "stopping",
    "Stopping",
    503,
    "The service is stopping and did not wait any longer. A write may have been done if all of it was sent; reading "
    "tells.",
    headers={"Retry-After": "5"},
)
FOREIGN_HOST = Problem(
    "misdirected-request",
    "Misdirected request",
    421,
    "Without API keys, only names of this machine are answered, such as localhost and 127.0.0.1.",
)
FOREIGN_ORIGIN = Problem(
    "foreign-origin",
    "Foreign origin",
    403,
    "A web page of another origin asks for this; LACUNA_CORS_ORIGINS names those that may.",
)
NO_HTTP = Problem("malformed-request", "Malformed request", 400, "The request is no HTTP/1.1.")
HEADERS_TOO_SLOW = Problem(
    "request-timeout", "Request timeout", 408, "The request's headers took longer to come than they may."
)
HEADERS_TOO_LARGE = Problem(
    "headers-too-large", "Headers too large", 431, "The request's URL and headers are larger, or more, than accepted."
)
TOO_MANY_CONNECTIONS = Problem(
    "too-many-connections",
    "Too many connections",
    503,
    "There are as many connections as the service takes, or takes from one address; try again in a moment.",
    headers={"Retry-After": "1"},
)
INTERNAL = Problem(
    "internal-error", "Internal error", 500, "The service failed; its log tells more under this request's id."
)


# --- from exceptions ----------------------------------------------------------------------------------------------


def problem_of(error: LacunaError) -> Problem:
    """The problem that a domain error is."""
    known = next((kind for kind in type(error).__mro__ if kind in STATUSES), None)
    if known is None:
        return INTERNAL
    detail = str(error) or error.title
    errors: tuple[FieldError, ...] = ()
    if isinstance(error, InvalidInputError) and error.pointer:
        errors = (FieldError(error.pointer, detail),)
    headers = {"Retry-After": str(RETRY_AFTER_S[known])} if known in RETRY_AFTER_S else {}
    return Problem(error.slug, error.title, STATUSES[known], detail, errors, headers)


def answer(error: LacunaError) -> Response:
    """The problem that a domain error is, as a response; what a client is not told of it goes to the log."""
    if error.reason != str(error):
        logger.warning("%s: %s", str(error).removesuffix("."), error.reason)
    return problem_of(error).response()


def validation_errors(error: ValidationError, prefix: str = "", most: int = MAX_ERRORS) -> list[FieldError]:
    """What pydantic found, the first `most` of it, with pointers below `prefix`."""
    return field_errors(error.errors(include_url=False, include_input=False)[:most], prefix)


def field_errors(errors: Iterable[Any], prefix: str = "") -> list[FieldError]:
    """Pydantic's errors (of a ValidationError or of FastAPI) with JSON pointers below `prefix`."""
    return [FieldError(prefix + pointer(error["loc"]), sentence(error)) for error in errors]


def pointer(location: Iterable[str | int]) -> str:
    """A JSON pointer (RFC 6901) from a path of keys and indices."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def http_problem(error: HTTPException) -> Problem:
    """The framework's own errors: unknown routes and methods, unreadable bodies."""
    phrase = HTTPStatus(error.status_code).phrase
    slug = phrase.lower().replace(" ", "-")
    detail = _HTTP_DETAILS.get(error.status_code, str(error.detail))
    return Problem(slug, phrase, error.status_code, detail, headers=error.headers or {})


_HTTP_DETAILS = {
    404: "There is nothing at this path; /docs lists what there is.",
    405: "This path does not take that method.",
}

Handler = Callable[[Request, Any], Any]


async def _on_domain_error(_: Request, error: LacunaError) -> Response:
    return answer(error)


async def _on_problem(_: Request, error: ProblemError) -> Response:
    return error.problem.response()


async def _on_invalid_parameters(_: Request, error: RequestValidationError) -> Response:
    return invalid(field_errors(error.errors())).response()


async def _on_http_error(_: Request, error: HTTPException) -> Response:
    return http_problem(error).response()


HANDLERS: dict[int | type[Exception], Handler] = {
    LacunaError: _on_domain_error,
    ProblemError: _on_problem,
    RequestValidationError: _on_invalid_parameters,
    HTTPException: _on_http_error,
}

# --- what /problems/{slug} says ------------------------------------------------------------------------------------

DESCRIPTIONS: Mapping[str, str] = {
    "invalid-input": "A value of the request cannot be used; `errors` points at it.",
    "unknown-modality": "The active bundle does not declare this modality; GET /models lists those it does.",
    "invalid-vector": "A vector has the wrong length for its modality, or values that are not finite numbers.",
    "invalid-image": "The bytes are no picture that can be decoded, or the picture is too large.",
    "image-not-fetched": "The picture's URL leads to no picture, or to an address that is not public.",
    "item-not-found": "No item has this id, or the item has nothing of what was asked for.",
    "item-exists": "POST creates only; PUT replaces and PATCH changes.",
    "user-not-found": "Nothing is stored of this user.",
    "conflict": "The item kept changing while it was written, or another bundle is being made ready; try again.",
    "model-not-found": "There is no bundle of this version; `GET /models` lists those that there are.",
    "bundle-refused": "The bundle is damaged, of another catalogue, or lacks an encoder; the detail says which.",
    "not-served": "The active bundle does not hold the model that this needs.",
    "not-ready": "The service is starting, or one of its parts is away; try again after Retry-After seconds.",
    "not-followed": "The worker that answers has not heard yet of the write that X-Lacuna-Position names; try again.",
    "store-unavailable": "The database does not answer; try again after Retry-After seconds.",
    "store-full": "The database has no room for this write, and nothing of it was done; reading goes on.",
    "malformed-request": "The request's bytes are no valid HTTP, JSON, multipart body, compressed body or URL.",
    "unsupported-media-type": "The body's Content-Type is none that this endpoint reads, or its Content-Encoding none.",
    "body-too-large": "The body is over the configured limit.",
    "unauthorized": "A key is needed: Authorization: Bearer <key>, or X-API-Key.",
    "forbidden": "The key's role does not reach this far; the roles are read, write and admin.",
    "too-many-requests": "The key, or address, has made its requests of this minute; try again after Retry-After s.",
    "misdirected-request": "The Host header names another machine; a service without API keys does not answer to it.",
    "foreign-origin": "A page of another origin may not change anything here, as there are no API keys to protect it.",
    "overloaded": "The service works on as many requests as it can, or of this caller; try again after Retry-After s.",
    "request-timeout": "The headers of the request did not arrive in time.",
    "headers-too-large": "The URL and the headers together are over the configured limit, or the headers too many.",
    "too-many-connections": "The process has as many connections as it takes; try again after Retry-After seconds.",
    "timed-out": "The request took longer than the configured limit; whether a write was done, reading tells.",
    "stopping": "The service was told to stop before the request was through; try again after Retry-After seconds.",
    "request-in-progress": "The first request with this Idempotency-Key is being worked on.",
    "idempotency-key-reused": "This Idempotency-Key was used for a request with another body; take a new one.",
    "not-found": "There is nothing at this path.",
    "method-not-allowed": "This path does not take that method; Allow lists those it takes.",
    "internal-error": "A fault of the service; its log tells more under the request's id.",
}
