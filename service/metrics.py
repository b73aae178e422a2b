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
        self._through = gauge(
            "lacuna_derived_position", "Position in the change log up to which all that is derived has been computed."
        )
        self._imputation = gauge(
            "lacuna_imputation_error",
            "Generated features that real ones replaced, by lower end of the served confidence's bucket.",
            ("modality", "bucket", "what"),
        )
        self._calibration = gauge(
            "lacuna_calibration_error", "Expected calibration error of the newest of them.", ("modality",)
        )
        self._calibration_warning = gauge(
            "lacuna_calibration_warning", "1 where that is more than LACUNA_WARN_CALIBRATION_ERROR.", ("modality",)
        )
        self._calibrated_on = gauge(
            "lacuna_calibrated_pairs", "Pairs that a modality's confidence is calibrated on.", ("modality",)
        )
        self._unused = gauge("lacuna_unused_features", "Generated features below LACUNA_MIN_CONFIDENCE.", ("modality",))
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
        self._through.set(pending["through"])

    def set_imputation_errors(self, errors: Mapping[str, Mapping[str, Any]], unused: Mapping[str, int]) -> None:
        """Replace the gauges of generated features that turned out so or so, and of those that are left out."""
        for gauge in (self._imputation, self._calibration, self._calibration_warning, self._calibrated_on):
            gauge.clear()
        for modality, error in errors.items():
            for bucket in error["confidence"]:
                for what in ("pairs", "mean_confidence", "mean_centred_cosine"):
                    self._imputation.labels(modality, f"{bucket['from']:.1f}", what).set(bucket[what])
            self._calibration.labels(modality).set(error["recent"]["calibration_error"])
            self._calibration_warning.labels(modality).set(error["warning"] is not None)
            self._calibrated_on.labels(modality).set((error["calibration"] or {}).get("pairs", 0))
        for modality, count in unused.items():
            self._unused.labels(modality).set(count)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
