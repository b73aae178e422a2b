"""What routes depend on: the engine, the caller's role, and the request's body, read within its limit."""

from __future__ import annotations

import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from models.rows import parse_json
from service.api import errors
from service.api.limits import LIMITS, row_context
from service.domain import NotReadyError
from service.metrics import Metrics
from service.pipeline.engine import Engine
from service.ports import Limiter
from service.settings import ApiKey, Role

ROLES = tuple(Role)  # each may do what those before it may

B = TypeVar("B", bound=BaseModel)

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
MULTIPART = "multipart/form-data"
_LENGTH_DIGITS = 20  # longer numbers are none that a server lets through
MAX_PARTS = 65  # an item's description and its modalities

# --- engine -------------------------------------------------------------------------------------------------------


async def _engine(request: Request) -> Engine:
    engine: Engine | None = request.app.state.engine
    if engine is None:
        raise NotReadyError("The service is starting.")
    return engine


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


EngineDep = Annotated[Engine, Depends(_engine)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]

# --- authorisation ------------------------------------------------------------------------------------------------


class Keyring:
    """The configured keys. An empty ring opens everything."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = [(key, key.key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, presented: bytes) -> ApiKey | None:
        """The key that was presented. Compares with every key, so that the time taken tells nothing."""
        found = None
        for key, secret in self._keys:
            if hmac.compare_digest(secret, presented):
                found = key
        return found


def _presented_key(request: Request) -> bytes:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip().encode("latin-1")
    return request.headers.get("x-api-key", "").encode("latin-1")


def require(role: Role) -> Callable[[Request], Awaitable[None]]:
    """A dependency that lets callers of this role or a higher one pass."""

    async def check(request: Request) -> None:
        keyring: Keyring = request.app.state.keyring
        if not keyring:
            await _count(request, request.client.host if request.client else "")
            return
        presented = _presented_key(request)
        if not presented:
            raise errors.unauthorized("Send a key as Authorization: Bearer <key> or X-API-Key.")
        key = keyring.find(presented)
        if key is None:
            raise errors.unauthorized("This key is not known.")
        if ROLES.index(key.role) < ROLES.index(role):
            raise errors.forbidden(role)
        await _count(request, key.name)

    return check


def key_name(request: Request) -> str | None:
    """The name of the request's API key if that may write, empty where no keys are set, None for all others."""
    keyring: Keyring = request.app.state.keyring
    if not keyring:
        return ""
    key = keyring.find(_presented_key(request))
    return key.name if key is not None and ROLES.index(key.role) >= ROLES.index(Role.WRITE) else None


async def _count(request: Request, name: str) -> None:
    limiter: Limiter | None = request.app.state.limiter
    wait_s = await limiter.take(name) if limiter else 0.0
    if wait_s:
        raise errors.too_many_requests(wait_s)


READ = Depends(require(Role.READ))
WRITE = Depends(require(Role.WRITE))
ADMIN = Depends(require(Role.ADMIN))

# --- bodies -------------------------------------------------------------------------------------------------------


async def _chunks(request: Request) -> AsyncGenerator[bytes, None]:
    """The body as it arrives, up to the limit, whether or not its length was declared."""
    limit = LIMITS.get().body_bytes
    declared = request.headers.get("content-length", "")
    if len(declared) < _LENGTH_DIGITS and declared.isdecimal() and int(declared) > limit:
        raise errors.too_large(limit)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise errors.too_large(limit)
        yield chunk


async def _body(request: Request) -> bytes:
    return b"".join([chunk async for chunk in _chunks(request)])


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def decode_json(raw: bytes) -> Any:
    """JSON as RFC 8259 has it: no NaN, no lone surrogates, nothing beyond a double. Raises ProblemError."""
    try:
        return parse_json(raw)
    except ValueError as error:
        raise errors.malformed(f"The body is no JSON: {error}") from None


def validated(model: type[B], value: object) -> B:
    """The value as the model. Raises ProblemError with a pointer to each thing that is wrong."""
    try:
        return model.model_validate(value, context=row_context())
    except ValidationError as error:
        raise errors.ProblemError(errors.invalid(row_errors(error))) from None


def row_errors(error: ValidationError, prefix: str = "") -> list[errors.FieldError]:
    """What pydantic found, with pointers below `prefix`."""
    return errors.field_errors(error.errors(include_url=False, include_input=False), prefix)


def json_body(model: type[B], *more_types: str) -> Any:
    """A dependency: the JSON body as `model`. `more_types` are media types accepted beside application/json."""
    accepted = (JSON, *more_types)

    async def parse(request: Request) -> B:
        if _media_type(request) not in accepted:
            raise errors.unsupported_media_type(accepted)
        return validated(model, decode_json(await _body(request)))

    return Depends(parse)


# --- items with files ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Upload:
    """A file part: its bytes and the type its sender claims."""

    data: bytes
    media_type: str | None


@dataclass(frozen=True, slots=True)
class WithFiles:
    """A parsed body and the files that came with it, by the names of their parts."""

    body: Any
    files: dict[str, Upload]


def item_body(model: type[B]) -> Any:
    """A dependency: `WithFiles` of a JSON body, or of multipart/form-data with a part `item` and files beside it."""

    async def parse(request: Request) -> WithFiles:
        media_type = _media_type(request)
        if media_type == JSON:
            return WithFiles(validated(model, decode_json(await _body(request))), {})
        if media_type == MULTIPART:
            return await _multipart(request, model)
        raise errors.unsupported_media_type((JSON, MULTIPART))

    return Depends(parse)


async def _multipart(request: Request, model: type[BaseModel]) -> WithFiles:
    parser = MultiPartParser(
        request.headers,
        _chunks(request),
        max_files=MAX_PARTS,
        max_fields=MAX_PARTS,
        max_part_size=LIMITS.get().body_bytes,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:
        raise errors.malformed(f"The multipart body cannot be read: {error}") from None
    try:
        return await _read_form(form, model)
    finally:
        await form.close()


async def _read_form(form: FormData, model: type[BaseModel]) -> WithFiles:
    description: bytes | None = None
    files: dict[str, Upload] = {}
    for name, part in form.multi_items():
        data = await part.read() if isinstance(part, UploadFile) else part.encode()
        if name == "item" and description is None:
            description = data
        elif isinstance(part, UploadFile) and name != "item" and name not in files:
            files[name] = Upload(data, part.content_type)
        else:
            at = errors.pointer((name,))
            detail = "a part is `item`, once, or a file named after its modality, once"
            raise errors.ProblemError(errors.invalid([errors.FieldError(at, detail)]))
    if description is None:
        raise errors.ProblemError(errors.invalid([errors.FieldError("/item", "the part `item` is missing")]))
    return WithFiles(validated(model, decode_json(description)), files)
