"""The engine that a request works with, from its beginning to its end, whichever takes over meanwhile."""

from __future__ import annotations

from starlette.types import Scope

from service.pipeline.engine import Engine

_ENGINE = "lacuna.engine"  # in a request's scope


def keep_engine(scope: Scope) -> None:
    """Let a request that begins work with the engine that serves now."""
    scope[_ENGINE] = scope["app"].state.engine


def engine_of(scope: Scope) -> Engine | None:
    """A request's engine; None while the service is starting."""
    engine: Engine | None = scope[_ENGINE] if _ENGINE in scope else scope["app"].state.engine
    return engine
