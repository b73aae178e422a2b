"""How much processor time a piece of work takes, in whatever threads, without what other work takes meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from functools import partial, wraps
from types import coroutine
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Meter:
    """Processor seconds of one piece of work so far."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @coroutine
    def run(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Await some work in the event loop, and count what it takes there and in the functions that it has `metered`
        elsewhere."""
        token = _METER.set(self)
        resume: Callable[[], Any] = partial(work.send, None)
        try:
            while True:
                begin = time.thread_time()
                try:
                    awaited = resume()
                except StopIteration as end:
                    result: T = end.value
                    return result
                finally:
                    self.seconds += time.thread_time() - begin
                try:
                    resume = partial(work.send, (yield awaited))
                except BaseException as error:  # noqa: BLE001 - such as a cancellation: it is the work's
                    resume = partial(work.throw, error)
        finally:
            _METER.reset(token)


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


def metered(function: Callable[P, T]) -> Callable[P, T]:
    """A function that another thread is about to run, counted by the meter of the work that asks for it, if any."""
    meter = _METER.get()
    if meter is None:
        return function

    @wraps(function)
    def counted(*args: P.args, **options: P.kwargs) -> T:
        token, begin = _METER.set(meter), time.thread_time()  # set for the threads that it starts
        try:
            return function(*args, **options)
        finally:
            meter.seconds += time.thread_time() - begin
            _METER.reset(token)

    return counted
