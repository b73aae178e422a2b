"""The HTTP application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api import admin, errors, feedback, items, openapi, predict, recommend, retrieve
from service.api.bodies import Bodies
from service.api.deps import Keyring
from service.api.idempotency import Idempotency
from service.api.limits import Limits
from service.api.middleware import Counting, Gate, LastResort, RequestContext
from service.api.origins import Origins
from service.api.position import HEADER, Position
from service.bootstrap import bootstrap, limiter_of
from service.connections import ConnectionLimits
from service.metrics import Metrics
from service.pipeline.activation import Serving
from service.pipeline.engine import Engine
from service.ports import StepTimer
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Traces

logger = logging.getLogger(__name__)

# Routes are tried in this order, so the ones asked most come first.
_ROUTERS = (recommend.router, retrieve.router, predict.router, items.router, feedback.router, admin.router)
_TITLE = "Lacuna"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_EXPOSED = (HEADER, "X-Request-ID", "Retry-After")  # what a page of another origin may read of an answer's headers
LEASE_S = 10.0  # beyond the time that a request may take
_DESCRIPTION = "Recommendations for catalogues whose items come with holes in them."

OnReady = Callable[[Engine], Awaitable[None]]
OnFailure = Callable[[Exception], None]


def create_app(
    settings: Settings,
    *,
    engine: Engine | None = None,
    serving: Serving | None = None,
    on_ready: OnReady | None = None,
    on_failure: OnFailure | None = None,
) -> FastAPI:
    """The application over `engine`, or over `serving`, which goes over from one engine to another; these stay their
    owner's to close. Without, it starts and closes its own.

    Raises SettingsError where LACUNA_TRACES asks for what is not installed.

    It answers at once: until the engine is there, /health/ready and all that needs it say 503. `on_ready` is awaited
    when it is, `on_failure` called with what kept it from starting.
    """
    if engine is not None:
        serving = Serving(engine)
    metrics = Metrics()
    timer: StepTimer = metrics
    traces = _traces(settings)
    if traces is not None:
        from service.tracing import TracedRequests, TracedSteps

        timer = TracedSteps(metrics, traces.tracer)
    app = FastAPI(
        title=_TITLE,
        description=_DESCRIPTION,
        lifespan=_lifespan(settings, serving, on_ready, on_failure),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # `openapi.install` serves it
        redirect_slashes=False,
        exception_handlers={**errors.HANDLERS, 405: _on_wrong_method},
    )
    _add_state(app, settings, metrics, timer)
    app.state.traces = traces
    if serving is not None:
        _serve(app, serving)
    _add_middleware(app, settings, metrics)
    if traces is not None:
        app.add_middleware(TracedRequests, tracer=traces.tracer)
    for router in _ROUTERS:
        app.include_router(router)
    openapi.install(app, _ROUTERS, keys_needed=bool(app.state.keyring))
    return app


def _add_state(app: FastAPI, settings: Settings, metrics: Metrics, timer: StepTimer) -> None:
    """What requests find in the application."""
    app.state.serving = app.state.engine = None
    app.state.metrics = metrics
    app.state.timer = timer
    app.state.keyring = Keyring(settings.api_keys)
    app.state.limiter = limiter_of(settings)
    app.state.reader = ThreadPoolExecutor(1, thread_name_prefix="reader")


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """The layers around the routes, the innermost first."""
    app.add_middleware(Idempotency, lease_s=settings.request_seconds + LEASE_S)
    app.add_middleware(Position)
    app.add_middleware(
        Gate,
        most=settings.max_concurrency,
        most_each=settings.max_concurrency if len(settings.api_keys) == 1 else settings.max_key_concurrency,
        seconds=settings.request_seconds,
        is_proxy=ConnectionLimits.of(settings).is_proxy,
    )
    if app.state.limiter is not None:
        app.add_middleware(Counting, limiter=app.state.limiter)
    app.add_middleware(LastResort)
    if not settings.api_keys:
        app.add_middleware(Origins, loopback_only=not settings.allow_anonymous, allowed=settings.cors_origins)
    app.add_middleware(
        Bodies, most=settings.max_body_bytes, together=settings.max_bodies_bytes, seconds=settings.request_seconds
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=_METHODS,
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    app.add_middleware(RequestContext, metrics=metrics, limits=Limits.of(settings))


def _lifespan(
    settings: Settings, serving: Serving | None, on_ready: OnReady | None, on_failure: OnFailure | None
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if serving is not None:
            yield
            await _close(app)
            return
        starting = asyncio.create_task(_start(app, settings, on_ready, on_failure))
        yield
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        if app.state.serving is not None:
            await app.state.serving.close()
        await _close(app)

    return lifespan


def _serve(app: FastAPI, serving: Serving) -> None:
    """Let requests that come from now on use the engine of the worker, whichever that is by then."""

    def switched(engine: Engine) -> None:
        app.state.engine = engine

    serving.switched = switched
    serving.engine.runtime.timer = app.state.timer
    app.state.serving, app.state.engine = serving, serving.engine


async def _close(app: FastAPI) -> None:
    app.state.reader.shutdown(wait=False)
    if app.state.limiter is not None:
        await app.state.limiter.close()
    if app.state.traces is not None:
        await asyncio.to_thread(app.state.traces.close)


def _traces(settings: Settings) -> Traces | None:
    if settings.traces == "none":
        return None
    from service import tracing  # here, so that it costs nothing where it is not wanted

    return tracing.Traces(settings.traces)


async def _start(app: FastAPI, settings: Settings, on_ready: OnReady | None, on_failure: OnFailure | None) -> None:
    try:
        started = await bootstrap(settings)
        _serve(app, started)
        if on_ready is not None:
            await on_ready(started.engine)
    except Exception as error:  # whoever runs the app decides what it means
        logger.debug("the engine did not start", exc_info=error)
        if on_failure is not None:
            on_failure(error)


async def _on_wrong_method(request: Request, _: HTTPException) -> Response:
    """405 that names all the methods of the path, and the answer to OPTIONS."""
    allow = {"Allow": ", ".join(sorted(_methods(request.scope["path"])))}
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=allow)
    return errors.http_problem(HTTPException(405, headers=allow)).response()


def _methods(path: str) -> set[str]:
    methods = {"OPTIONS"}
    for router in _ROUTERS:
        for route in router.routes:
            if isinstance(route, Route) and route.path_regex.match(path):
                methods |= route.methods or set()
    return methods | ({"HEAD"} if "GET" in methods else set())
