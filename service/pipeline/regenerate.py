"""Background work by which what is derived follows what is stored.

Three steps, in this order, each a little at a time: changes of observed features reach the items that are generated
from them (`dependents`), which are enqueued; items that are pending are completed again, from their users and
neighbours (`complete`); and vectors in memory that are stale are computed again (`vectors.renew`). The store has the
first two queues, where a killed process cannot forget them; `Runtime.changed` and `Runtime.pending` are this worker's
part of them. The third belongs to each worker's own memory.

Work is done in rounds, with a rest in between (`REST_S`), in which writes gather: a round costs some ten queries,
however many writes there were. While requests are answered, it takes a part of the writer's thread only (`SHARE`).
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any

from models.dgmrec.serving import DGMRecServing
from service.domain import StoreUnavailableError
from service.metering import Meter
from service.pipeline import dependents, vectors
from service.pipeline.adopt import adopt
from service.pipeline.catalogue import Catalogue
from service.pipeline.engine import Engine
from service.pipeline.follow import catch_up
from service.pipeline.operate import look, settle

log = logging.getLogger(__name__)

ADOPTED = 10_000  # of the items that other workers have left pending, taken over at once
CHANGES = 64  # changes of features that are looked at at once
AT_ONCE = 64  # items completed at once
SLICE_S = 0.02  # longest time of the writer's thread in one go, as far as the steps allow
SHARE, BUSY_S = 0.67, 1.0  # of the time, for so long after a request that needed the writer's thread
ATTEMPTS = 3  # in one round, at what others write to meanwhile
REST_S = 0.9  # between two rounds
QUEUE = "/parts"  # name of a lock, which no item's id can be


def may_depend(catalogue: Catalogue, keys: Collection[int]) -> list[int]:
    """Those of some items, by key, of which what is stored may depend on their users. True where an item is not in the
    catalogue yet."""
    chosen = []
    for key in keys:
        known = key in catalogue.entries
        if not known or catalogue.trained[key] < 0 or not catalogue.observed[key].all():
            chosen.append(key)
    return chosen


def enqueue(engine: Engine, items: Iterable[str] = ()) -> None:
    """Let items be completed again in the background, and all other background work go on. An item that is pending
    already is pending once."""
    runtime = engine.runtime
    runtime.pending |= dict.fromkeys(items)
    if is_waiting(engine) and not runtime.is_locked(QUEUE) and not runtime.is_closing:
        runtime.background(_work_off(engine), apart=True)


def look_up(engine: Engine) -> None:
    """As `enqueue`, for items that a write has enqueued in the store without saying which."""
    engine.runtime.is_behind = True
    enqueue(engine)


def is_waiting(engine: Engine) -> bool:
    """Whether there is background work for this worker."""
    runtime = engine.runtime
    waiting = runtime.is_behind or runtime.pending or runtime.changed or len(engine.memory.catalogue.stale)
    return bool(waiting)


async def resume(engine: Engine) -> None:
    """Take up, at start, what anybody has left pending."""
    engine.runtime.changed |= {change.position: None for change in await engine.store.feature_changes(limit=ADOPTED)}
    _adopt(engine, await engine.store.pending(limit=ADOPTED))


async def adopt_abandoned(engine: Engine, seen: dict[str | int, int]) -> dict[str | int, int]:
    """Take over what has been pending since the last look, `seen`: the worker that enqueued it is gone, or has too much
    to do. Answers what is pending now. What this worker could not do itself it tries again."""
    pending = await engine.store.pending(limit=ADOPTED)
    changes = [change.position for change in await engine.store.feature_changes(limit=ADOPTED)]
    engine.runtime.changed |= dict.fromkeys(position for position in changes if position in seen)
    _adopt(
        engine,
        [
            item
            for item, position in pending.items()
            if seen.get(item) == position and item not in engine.runtime.pending
        ],
    )
    return dict[str | int, int](pending) | {position: position for position in changes}


def _adopt(engine: Engine, items: Collection[str]) -> None:
    # In any order: several workers may do so at once, and are not to do the same items at the same time.
    enqueue(engine, random.sample(list(items), len(items)))


async def _work_off(engine: Engine) -> None:
    """In rounds, so that what many writes have in common is done once for all of them."""
    runtime = engine.runtime
    async with runtime.lock(QUEUE):
        while is_waiting(engine) and not runtime.is_closing:
            await runtime.rest(runtime.round_at + REST_S - time.monotonic())
            try:
                await _round(engine)
            except StoreUnavailableError as error:
                log.warning("background work waits for the database: %s", error.reason)
                return
            finally:
                runtime.round_at = time.monotonic()


async def _round(engine: Engine) -> None:
    """Do what waits by now. What comes in meanwhile waits for the next round, else many small pieces would be done one
    by one."""
    runtime = engine.runtime
    await _timed(engine, _follow)
    await _repeat(engine, _spread, len(runtime.changed) / CHANGES)
    await _timed(engine, look)
    for _ in range(ATTEMPTS):
        await _timed(engine, _look_up)
        await _repeat(engine, _regenerate_some, len(runtime.pending) / AT_ONCE)
        await _timed(engine, look)
        if runtime.progress.needed is not None or not runtime.pending:
            break  # else something that has waited for long was written to meanwhile
    await _repeat(engine, _renew_some)
    await _timed(engine, settle)


async def _repeat(engine: Engine, step: Callable[[Engine], Coroutine[Any, Any, bool]], times: float = math.inf) -> None:
    """Take a step so many times, as long as there is anything to do."""
    done = 0
    while done < times and not engine.runtime.is_closing and await _timed(engine, step):
        done += 1


async def _follow(engine: Engine) -> bool:
    """Follow the change log, so that `Runtime.progress` waits in this round for all that has been written by now."""
    await catch_up(engine)
    engine.runtime.progress.begin(engine.runtime.followed.position, in_round=True)
    return True


async def _look_up(engine: Engine) -> bool:
    """Learn what is pending, where a write has enqueued items without saying which (see `look_up`)."""
    runtime, is_behind = engine.runtime, engine.runtime.is_behind
    if is_behind:
        runtime.is_behind = False
        runtime.pending |= dict.fromkeys(await engine.store.pending(limit=ADOPTED))
    return is_behind


async def _timed(engine: Engine, step: Callable[[Engine], Coroutine[Any, Any, object]]) -> bool:
    """Take a step, and leave the rest of the time to requests; whether there was anything to do."""
    runtime, started, meter = engine.runtime, time.monotonic(), Meter()
    done = await meter.run(step(engine))
    took = time.monotonic() - started
    runtime.timer.observe_step("background_processor", meter.seconds)
    if done:
        runtime.timer.observe_step("background", took)
        if time.monotonic() - runtime.busy_at < BUSY_S:
            # Of its own time: what other programs of the machine took is no reason to take longer still.
            await runtime.rest(min(took, meter.seconds) * (1 / SHARE - 1))
    return bool(done)


# --- changes of features ---------------------------------------------------------------------------------------------


async def _spread(engine: Engine) -> bool:
    """Enqueue the items that some changes of features reach."""
    runtime = engine.runtime
    if not runtime.changed:
        return False
    changes = [change for change in await engine.store.feature_changes() if change.position in runtime.changed]
    if not changes:
        runtime.changed.clear()  # by somebody else
        return False
    changes = changes[:CHANGES]
    await _reach(engine, changes[-1].position)
    for _ in range(ATTEMPTS):
        seen = runtime.seen()
        reached = await runtime.compute(dependents.find, engine.active.dgmrec, engine.memory.catalogue, changes)
        later = await engine.store.later_items([change.item for change in changes])
        items = dict.fromkeys([*(entry.id for entry in reached), *later])
        queued = await engine.store.finish_changes([change.position for change in changes], items, seen)
        if queued is not None:
            for change in changes:
                runtime.changed.pop(change.position, None)
            runtime.pending |= dict.fromkeys(queued)
            return True
        await catch_up(engine)
    return False  # until the next round


async def _reach(engine: Engine, position: int) -> None:
    """Follow the change log to a position: what has been enqueued for it reads memory."""
    if not engine.runtime.followed.has(position):
        await catch_up(engine)


# --- items -----------------------------------------------------------------------------------------------------------


async def _regenerate_some(engine: Engine) -> bool:
    """Complete some of the pending items again."""
    runtime = engine.runtime
    chosen = [item for item, _ in zip(runtime.pending, range(AT_ONCE), strict=False)]
    if not chosen:
        return False
    for item in chosen:
        del runtime.pending[item]
    try:
        queued = await engine.store.pending(chosen)  # the others are deleted, or another worker was faster
        if queued:
            await _reach(engine, max(queued.values()))
            await regenerate(engine, queued)
    except StoreUnavailableError:
        runtime.pending |= dict.fromkeys(chosen)
        raise
    return True


async def regenerate(engine: Engine, queued: dict[str, int]) -> None:
    """Compute what is stored of some items, by id with the positions that they were enqueued for, from their users and
    neighbours. The change log must have been followed to these positions, for both are read from memory."""
    catalogue, runtime = engine.memory.catalogue, engine.runtime
    async with runtime.lock(*queued):
        stored = (await engine.store.get_items(list(queued))).values()
        # What is not in memory is deleted, or was written under another model.
        await adopt(engine, [item for item in stored if item.id in catalogue or not item.derived], queued)
    # Where somebody wrote meanwhile, an item is still pending.
    runtime.pending |= dict.fromkeys(await engine.store.pending(list(queued)))


# --- vectors ---------------------------------------------------------------------------------------------------------


async def _renew_some(engine: Engine) -> bool:
    """Compute some stale vectors again."""
    return await engine.runtime.compute(_renew_for, engine.active.dgmrec, engine.memory.catalogue, SLICE_S)


def _renew_for(model: DGMRecServing, catalogue: Catalogue, seconds: float) -> bool:
    """Compute stale vectors for some time; False where there were none."""
    until, done = time.monotonic() + seconds, False
    while vectors.renew(model, catalogue):
        done = True
        if time.monotonic() >= until:
            break
    return done


async def renew_all(engine: Engine) -> None:
    """Compute all vectors that are stale in this worker's memory."""
    while await _renew_some(engine):
        pass
