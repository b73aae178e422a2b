"""Optional traces (OpenTelemetry): a span for each request, and below it one for each step of the pipeline.

Nothing here is imported unless LACUNA_TRACES says so. Where spans are sent is OpenTelemetry's own to configure
(OTEL_EXPORTER_OTLP_ENDPOINT and the like).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Literal

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.ports import StepTimer
from service.settings import SettingsError

_PARENT = TraceContextTextMapPropagator()


class Traces:
    """Where spans go: `console` writes them to stderr as JSON, `otlp` sends them over HTTP.

    Raises:
        SettingsError: the packages that this takes are not installed.
    """

    def __init__(self, kind: Literal["console", "otlp"]) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
        except ImportError:
            raise SettingsError("LACUNA_TRACES needs OpenTelemetry's SDK: pip install 'lacuna[otel]'.") from None
        processor: SpanProcessor = (
            SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr))
            if kind == "console"
            else BatchSpanProcessor(OTLPSpanExporter())
        )
        self._provider = TracerProvider(resource=Resource.create({"service.name": "lacuna"}))
        self._provider.add_span_processor(processor)
        self.tracer: Tracer = self._provider.get_tracer("lacuna")

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


class TracedRequests:
    """A span for each request, below the caller's where it names one (W3C `traceparent`).

    OpenTelemetry's own ASGI instrumentation names a span by the path, with all the ids in it, and writes the query and
    the client's address into it; these are named by the route and tell of nobody.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other protocols pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        parent = _PARENT.extract(carrier)
        with self._tracer.start_as_current_span(scope["method"], parent, SpanKind.SERVER) as span:
            span.set_attribute("http.request.method", scope["method"])

            async def noting_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    request_id = dict(message["headers"]).get(b"x-request-id", b"")
                    span.set_attribute("lacuna.request_id", request_id.decode("latin-1"))
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            await self._app(scope, receive, noting_send)
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)


class TracedSteps:
    """`service.ports.StepTimer` that tells another one, and makes a span of each step of a traced request."""

    def __init__(self, timer: StepTimer, tracer: Tracer) -> None:
        self._timer = timer
        self._tracer = tracer

    def observe_step(self, step: str, seconds: float) -> None:
        self._timer.observe_step(step, seconds)
        if trace.get_current_span().is_recording():
            end = time.time_ns()
            self._tracer.start_span(step, start_time=end - round(seconds * 1e9)).end(end)

    def observe_lag(self, seconds: Sequence[float]) -> None:
        self._timer.observe_lag(seconds)
