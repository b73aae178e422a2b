"""What routes depend on: the engine, the caller's role, and the request's body, read within its limit."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.types import Scope

from service.api import errors, position
from service.api.engines import engine_of
from service.api.limits import LIMITS, network_of
from service.api.reading import LONGEST_NAME, read
from service.domain import NotReadyError
from service.metrics import Metrics
from service.pipeline.activation import Serving
from service.pipeline.engine import Engine
from service.settings import ApiKey, Role

ROLES = tuple(Role)  # each may do what those before it may

B = TypeVar("B", bound=BaseModel)

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
MULTIPART = "multipart/form-data"
_HIDDEN, _CALLER = "lacuna.hidden", "lacuna.caller"  # in a request's scope
MAX_PARTS = 65  # an item's description and its modalities
_TURN_BYTES = 32 << 10

# --- engine -------------------------------------------------------------------------------------------------------


async def _engine(request: Request) -> Engine:
    engine = engine_of(request.scope)
    if engine is None:
        raise NotReadyError("The service is starting.")
    return engine


async def _serving(request: Request) -> Serving:
    serving: Serving | None = request.app.state.serving
    if serving is None:
        raise NotReadyError("The service is starting.")
    return serving


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


EngineDep = Annotated[Engine, Depends(_engine)]
ServingDep = Annotated[Serving, Depends(_serving)]
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


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request: the API key that is presented, if it is known, and the address.

    Attributes:
        name: what requests are counted under: the key's name or, without one that is known, the address.
    """

    name: str
    address: str
    key: ApiKey | None
    presented: bool


def caller_of(scope: Scope) -> Caller:
    """Who sends a request, looked up once."""
    found: Caller | None = scope.get(_CALLER)
    if found is None:
        keyring: Keyring = scope["app"].state.keyring
        presented = _presented_key(Request(scope)) if keyring else b""
        key = keyring.find(presented) if presented else None
        address = (scope.get("client") or ("",))[0]
        name = f"key:{key.name}" if key else f"address:{network_of(address)}"
        found = scope[_CALLER] = Caller(name, address, key, bool(presented))
    return found


def _presented_key(request: Request) -> bytes:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip().encode("latin-1")
    return request.headers.get("x-api-key", "").encode("latin-1")


def require(role: Role) -> Callable[[Request], Awaitable[None]]:
    """A dependency that lets callers of this role or a higher one pass, once the worker knows what they build on."""

    async def check(request: Request) -> None:
        key = _key(request, role) if request.app.state.keyring else None
        request.scope[_HIDDEN] = key is None or key.role is not Role.READ
        request.scope[position.WRITES] = role is Role.WRITE
        await position.reach(request)

    return check


def _key(request: Request, role: Role) -> ApiKey:
    """The request's key, which must have this role or a higher one."""
    caller = caller_of(request.scope)
    if not caller.presented:
        raise errors.unauthorized("Send a key as Authorization: Bearer <key> or X-API-Key.")
    if caller.key is None:
        raise errors.unauthorized("This key is not known.")
    if ROLES.index(caller.key.role) < ROLES.index(role):
        raise errors.forbidden(role)
    return caller.key


def key_name(scope: Scope) -> str | None:
    """The name of the request's API key if that may write, empty where no keys are set, None for all others."""
    if not scope["app"].state.keyring:
        return ""
    key = caller_of(scope).key
    return key.name if key is not None and ROLES.index(key.role) >= ROLES.index(Role.WRITE) else None


async def _sees_hidden(request: Request) -> bool:
    return bool(request.scope.get(_HIDDEN))


# Whether items that are not available may show: to all but the role `read`.
HiddenDep = Annotated[bool, Depends(_sees_hidden)]
READ = Depends(require(Role.READ))
WRITE = Depends(require(Role.WRITE))
ADMIN = Depends(require(Role.ADMIN))

# --- bodies -------------------------------------------------------------------------------------------------------


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def json_body(model: type[B], *more_types: str) -> Any:
    """A dependency: the JSON body as `model`. `more_types` are media types accepted beside application/json."""
    accepted = (JSON, *more_types)

    async def parse(request: Request) -> B:
        if _media_type(request) not in accepted:
            raise errors.unsupported_media_type(accepted)
        return await read(request, model, await request.body())

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
            return WithFiles(await read(request, model, await request.body()), {})
        if media_type == MULTIPART:
            return await _multipart(request, model)
        raise errors.unsupported_media_type((JSON, MULTIPART))

    return Depends(parse)


class _Parts(MultiPartParser):
    """Notes whether the body came to its end, which the parser does not ask; keeps files in memory, as bodies are."""

    spool_max_size = 1 << 40
    is_whole = False

    def on_end(self) -> None:
        """The last boundary."""
        self.is_whole = True


async def _multipart(request: Request, model: type[BaseModel]) -> WithFiles:
    parser = _Parts(
        request.headers,
        _in_turns(request.stream()),
        max_files=MAX_PARTS,
        max_fields=MAX_PARTS,
        max_part_size=LIMITS.get().body_bytes,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:
        raise errors.malformed(f"The multipart body cannot be read: {error}") from None
    try:
        if not parser.is_whole:
            raise errors.malformed("The multipart body ends early: its last boundary is missing.")
        return await _read_form(request, form, model)
    finally:
        await form.close()


async def _in_turns(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The chunks in pieces so small that the event loop gets its turn while they are parsed, byte by byte at worst."""
    async for chunk in chunks:
        for start in range(0, len(chunk), _TURN_BYTES):
            yield chunk[start : start + _TURN_BYTES]
            await asyncio.sleep(0)


async def _read_form(request: Request, form: FormData, model: type[BaseModel]) -> WithFiles:
    description: bytes | None = None
    files: dict[str, Upload] = {}
    for name, part in form.multi_items():
        data = await part.read() if isinstance(part, UploadFile) else part.encode()
        if name == "item" and description is None:
            description = data
        elif isinstance(part, UploadFile) and name != "item" and name not in files:
            files[name] = Upload(data, part.content_type)
        else:
            at = errors.pointer((name[:LONGEST_NAME],))
            detail = "a part is `item`, once, or a file named after its modality, once"
            raise errors.ProblemError(errors.invalid([errors.FieldError(at, detail)]))
    if description is None:
        raise errors.ProblemError(errors.invalid([errors.FieldError("/item", "the part `item` is missing")]))
    return WithFiles(await read(request, model, description), files)
