"""How near generated features were to the real ones that replace them: the online imputation error, and the calibration
of confidences on it.

A write that replaces a generated feature records the pair in its transaction. Once a modality has enough pairs under
the active bundle, and again with every tenth more, its calibration is fitted on the newest WINDOW of them
(`models.calibration.choose`), stored, and spread by the change log. Stored features and their own confidences stay as
they are: what is served, and whether a feature is used, is computed from these when it is asked for
(`pipeline.confidence`). In memory, vectors are computed again of the items whose feature is used from then on, or no
more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from models.calibration import choose
from service.domain import StoreUnavailableError
from service.pipeline import vectors
from service.pipeline.confidence import Calibration, Confidence
from service.pipeline.engine import Engine
from service.ports import BUCKETS, ErrorGroup, ImputationErrors, ItemWrite, StoredCalibration

log = logging.getLogger(__name__)

WINDOW = 5_000  # newest pairs of a modality that it is calibrated on
GROWTH = 0.1  # new pairs, in shares of those that it is calibrated on, after which it is calibrated again
FEWEST = 50  # pairs that a warning takes
REST_S = 1.0  # between a write and what follows from its pair, in which more gather
LOCK = "/confidence"  # name of a lock, which no item's id can be


async def load(engine: Engine) -> None:
    """Serve and use generated features by what is stored and set."""
    catalogue = engine.memory.catalogue
    async with engine.runtime.lock(LOCK):
        stored = await engine.store.calibrations(engine.active.identity)
        calibrations = {name: Calibration(one.map, one.pairs) for name, one in stored.items()}
        confidence = Confidence(engine.calibrating.least, calibrations)
        if confidence.identity != catalogue.confidence.identity:
            await engine.runtime.compute(vectors.use, catalogue, confidence)


def review_soon(engine: Engine, writes: Sequence[ItemWrite] | None = None) -> None:
    """Calibrate again where there are enough new pairs, and warn where errors are too large, in the background; after
    these `writes` only if they brought any pair."""
    runtime = engine.runtime
    if writes is not None and not any(write.pairs for write in writes):
        return
    if not runtime.is_reviewing and not runtime.is_closing:
        runtime.is_reviewing = True
        runtime.background(_review_later(engine))


async def _review_later(engine: Engine) -> None:
    await engine.runtime.rest(REST_S)
    engine.runtime.is_reviewing = False  # pairs from now on are for the next one
    try:
        await review(engine)
    except StoreUnavailableError as error:  # the next pair brings the next attempt
        log.warning("confidences are not calibrated now: %s", error.reason)


async def review(engine: Engine) -> None:
    """Calibrate the modalities that have enough new pairs, and warn of those whose errors are too large.

    Raises:
        StoreUnavailableError: the database does not answer.
    """
    least, bundle = engine.calibrating.pairs, engine.active.identity
    counts = await engine.store.count_pairs(bundle) if least else {}
    for modality, count in counts.items():
        known = min(count.pairs - count.new, WINDOW)
        if count.pairs >= least and count.new >= max(GROWTH * known, 1):
            await _calibrate(engine, modality)
    _warn(engine, await engine.store.imputation_errors())


async def _calibrate(engine: Engine, modality: str) -> None:
    bundle, runtime = engine.active.identity, engine.runtime
    pairs = await engine.store.pairs(bundle, modality, limit=WINDOW)
    chosen = await runtime.compute(choose, pairs.confidences, pairs.cosines)
    now = datetime.fromtimestamp(runtime.clock(), UTC)
    count = len(pairs.cosines)
    calibration = StoredCalibration(chosen.map, count, pairs.newest, chosen.error_before, chosen.error_after, now)
    saved = await engine.store.save_calibration(bundle, modality, calibration)
    if saved.value:
        await load(engine)
        runtime.applied(saved.positions)
        log.info(
            "the confidence of %s is calibrated on %d pairs (%s): calibration error %.3f, %.3f before",
            modality,
            count,
            chosen.map.form,
            chosen.error_after,
            chosen.error_before,
        )


# --- statistics ------------------------------------------------------------------------------------------------------


def describe(
    errors: ImputationErrors, calibrations: Mapping[str, StoredCalibration], warn_at: float
) -> dict[str, dict[str, Any]]:
    """The online imputation error by modality, in whole, by bucket of the served confidence and by category; what the
    confidence is calibrated to; and a warning, where the newest pairs give one."""
    return {
        modality: {
            **_group(_together(buckets)),
            "calibration_error": round(_error(buckets), 4),
            "recent": {
                "pairs": _together(errors.recent[modality]).pairs,
                "calibration_error": round(_error(errors.recent[modality]), 4),
            },
            "warning": _warning(modality, errors.recent[modality], warn_at),
            "confidence": [
                {"from": bucket / BUCKETS, "to": (bucket + 1) / BUCKETS, **_group(group)}
                for bucket, group in sorted(buckets.items())
            ],
            "categories": {name: _group(group) for name, group in errors.categories.get(modality, {}).items()},
            "calibration": _calibration(calibrations.get(modality)),
        }
        for modality, buckets in errors.buckets.items()
    }


def _warn(engine: Engine, errors: ImputationErrors) -> None:
    """Log warnings that are new, and those that are no more."""
    warned = engine.runtime.warned
    for modality, recent in errors.recent.items():
        warning = _warning(modality, recent, engine.calibrating.warn_at)
        if warning and modality not in warned:
            log.warning("%s", warning)
            warned.add(modality)
        elif not warning and modality in warned:
            log.info("the confidence of %s is right again", modality)
            warned.discard(modality)


def _warning(modality: str, recent: Mapping[int, ErrorGroup], warn_at: float) -> str | None:
    together = _together(recent)
    if not warn_at or together.pairs < FEWEST or _error(recent) <= warn_at:
        return None
    return (
        f"Of the newest {together.pairs} generated features of {modality!r} that real ones replaced, the confidence "
        f"was {together.confidence:.2f} and the cosine {together.cosine:.2f} on average; the calibration error is "
        f"{_error(recent):.2f}, more than {warn_at:g}."
    )


def _together(groups: Mapping[int, ErrorGroup]) -> ErrorGroup:
    count = sum(group.pairs for group in groups.values())
    confidence = sum(group.pairs * group.confidence for group in groups.values()) / max(count, 1)
    cosine = sum(group.pairs * group.cosine for group in groups.values()) / max(count, 1)
    return ErrorGroup(count, confidence, cosine)


def _error(groups: Mapping[int, ErrorGroup]) -> float:
    """The expected calibration error, as `models.calibration.calibration_error`, of groups by bucket."""
    count = sum(group.pairs for group in groups.values())
    return sum(group.pairs * abs(group.confidence - group.cosine) for group in groups.values()) / max(count, 1)


def _group(group: ErrorGroup) -> dict[str, Any]:
    return {"pairs": group.pairs, "mean_confidence": group.confidence, "mean_centred_cosine": group.cosine}


def _calibration(calibration: StoredCalibration | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    return {
        "form": calibration.map.form,
        "pairs": calibration.pairs,
        "calibration_error_before": round(calibration.error_before, 4),
        "calibration_error_held_out": round(calibration.error_after, 4),
        "at": calibration.at.isoformat(),
    }
