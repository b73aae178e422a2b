"""What every worker does all the time: follow the change log, work off what is pending, trim what is old."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from service.domain import LacunaError
from service.pipeline import check, regenerate
from service.pipeline.engine import Engine
from service.pipeline.follow import catch_up
from service.pipeline.runtime import Followed

log = logging.getLogger(__name__)

SWEEP_S = 10.0
TRIM_S = 600.0


async def keep_up(engine: Engine, interval_s: float, log_s: float) -> None:
    """Keep up with the change log until cancelled: every `interval_s`, and whenever another worker notifies of changes.
    Now and then, take over what others have left undone, check a few items, and trim entries of the log older than
    `log_s`."""
    runtime = engine.runtime
    seen: dict[str | int, int] = {}
    swept = trimmed = time.monotonic()
    checked = -1
    while True:
        await runtime.notifier.wait(interval_s)
        try:
            await catch_up(engine)
            regenerate.enqueue(engine)
            now = time.monotonic()
            if now - swept > SWEEP_S:
                swept = now
                await engine.store.absorb((), runtime.followed.position)
                seen = await regenerate.adopt_abandoned(engine, seen)
                if not regenerate.is_waiting(engine):
                    checked = await check.sweep(engine, checked)
            if now - trimmed > TRIM_S:
                trimmed = now
                await engine.store.trim_changes(datetime.fromtimestamp(runtime.clock() - log_s, UTC))
        except LacunaError as error:
            _note_failure(runtime.followed, error)
        except Exception:
            log.exception("following the change log failed; trying again")


def _note_failure(followed: Followed, error: LacunaError) -> None:
    if not followed.failing:
        log.warning("cannot follow the change log: %s", error.reason)
    followed.failing = True
