"""What Prometheus is told. Each app owns its registry, so that several apps can live in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from service.domain import State

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
STEPS = ("encode", "impute", "index", "rank", "explain", "commit", "background")

_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """Counters and histograms of one app. `observe_step` makes it a `service.ports.StepTimer`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, buckets=_BUCKETS, registry=self.registry)
        self._requests = counter("lacuna_requests", "Answered requests.", ("method", "route", "status"))
        self._latency = histogram(
            "lacuna_request_seconds", "Time from a request's headers to its answer's end.", ("method", "route")
        )
        self._steps = histogram("lacuna_step_seconds", "Time of one step of the pipeline.", ("step",))
        self._fallbacks = counter(
            "lacuna_fallbacks", "Recommendations that something stood in for the model.", ("fallback",)
        )
        self._items = gauge("lacuna_items", "Items by state of a modality.", ("modality", "state"))
        self._index = gauge(
            "lacuna_index_vectors", "Vectors in an index by part (base, delta, tombstones).", ("index", "part")
        )
        self._lags = histogram(
            "lacuna_follow_seconds", "Age of other workers' changes when this one had taken them over."
        )
        self._lag = gauge("lacuna_lag_seconds", "Time since this worker last knew every change.")
        self._pending = gauge(
            "lacuna_pending", "What is about to be derived anew: items, changes of features, vectors.", ("what",)
        )
        self._pending_age = gauge("lacuna_pending_seconds", "For how long the oldest of it has waited.")
        self._position = gauge("lacuna_followed_position", "Position in the change log.")
        for step in STEPS:
            self._steps.labels(step)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request under its route template (not its path, which has no bounds)."""
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)

    def observe_step(self, step: str, seconds: float) -> None:
        """Record how long one step of the pipeline took."""
        self._steps.labels(step).observe(seconds)

    def observe_lag(self, seconds: Sequence[float]) -> None:
        """Record how old other workers' changes were when they were taken over."""
        for lag in seconds:
            self._lags.observe(max(lag, 0.0))

    def set_followed(self, position: int, lag_s: float) -> None:
        """Replace the gauges of how far the change log was followed."""
        self._position.set(position)
        self._lag.set(lag_s)

    def count_fallback(self, fallback: str | None) -> None:
        """Count one recommendation that `fallback` stood in for; None is no fallback."""
        if fallback is not None:
            self._fallbacks.labels(fallback).inc()

    def set_items(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace the gauges of items: modality -> state -> number, and what else is counted."""
        self._items.clear()
        for modality, counts in states.items():
            for state in State:
                self._items.labels(modality, state.value).set(counts[state.value])

    def set_indexes(self, sizes: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace the gauges of the indexes: index -> part -> number of vectors."""
        self._index.clear()
        for index, parts in sizes.items():
            for part, count in parts.items():
                self._index.labels(index, part).set(count)

    def set_pending(self, pending: Mapping[str, Any]) -> None:
        """Replace the gauges of what is about to be derived anew."""
        for what in ("items", "changes", "vectors"):
            self._pending.labels(what).set(pending[what])
        self._pending_age.set(pending["oldest_seconds"])

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
