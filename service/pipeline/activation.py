"""Going over from one bundle to another while requests are answered.

Which bundle is active is a row in SQL. One worker, which holds the lease of the row of the next one, derives what is
stored under it, beside the engine that serves; then every worker loads it beside its own; when all have, the row
becomes the active one, and each worker hands new requests to its new engine. A request keeps the engine that it began
with, so that no answer mixes two models. What was written meanwhile, under either, reaches the other by the change log
(`follow`). A worker that dies loses nothing: the lease ends, and another one goes on from what is stored.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.bundle import BundleError
from models.encoders import EncoderUnavailableError
from service.domain import (
    BundleRefusedError,
    ConflictError,
    LacunaError,
    ModelNotFoundError,
    ModelState,
    NotReadyError,
    ServedModel,
)
from service.pipeline import follow, holdout, regenerate, snapshot
from service.pipeline.engine import Engine
from service.pipeline.keep_up import keep_up
from service.pipeline.rebuild import load_catalogue
from service.ports import Registered, Registry

log = logging.getLogger(__name__)

LOOK_S, QUICK_S = 1.0, 0.1  # between two looks at the table of models: as a rule, and while one is being prepared
LEASE_S = 10.0  # so long after its last sign of life, a worker counts as dead
NOTE_S = 1.0  # between two notes of the progress
GRACE_S = 5.0  # after a switch, beyond the longest time of a request, until the former engine is let go
LEAST_KNOWN = 0.1  # of the items that a bundle was trained on, that must be in the catalogue
SHARE = 0.5  # of one core, that deriving under another bundle takes while one serves
FROM = "from"  # in the progress: the state that a model had before
UNDER_WAY = (ModelState.PREPARING, ModelState.READY)
DROPPED = (ModelState.KNOWN, ModelState.REFUSED, ModelState.FAILED)

# An engine with an empty catalogue, over a model's number, beside the present one.
Open = Callable[[Engine, Registered, int], Awaitable[Engine]]
Inspect = Callable[[Engine, Registered], Awaitable[Sequence[str]]]  # checks that a bundle can be served; its items


async def _anything(_: Engine, __: Registered) -> Sequence[str]:
    return ()


@dataclass
class Settled:
    """How an engine keeps up (see `keep_up`), how long a request may take, and how often a snapshot is written (0:
    never)."""

    follow_s: float = 0.2
    log_s: float = 72 * 3600.0
    request_s: float = 120.0
    snapshot_s: float = 0.0


@dataclass
class Serving:
    """One worker's engines: the one that serves and, while another bundle is made ready, the one under that.

    `switched` is called with the new engine when it takes over.
    """

    engine: Engine
    registry: Registry | None = None
    open: Open | None = None
    inspect: Inspect = _anything
    settled: Settled = field(default_factory=Settled)
    worker: str = field(default_factory=lambda: uuid.uuid4().hex)
    switched: Callable[[Engine], None] = lambda _: None
    coming: Engine | None = None
    is_ready: bool = False  # whether `coming` could serve
    progress: Mapping[str, Any] = field(default_factory=dict)
    _preparing: asyncio.Task[None] | None = None
    _attending: asyncio.Task[None] | None = None
    _retiring: set[asyncio.Task[None]] = field(default_factory=set)
    _noted: float = 0.0
    _beaten: tuple[int, float] = (-1, 0.0)  # what was last said to be ready, and when
    _seen: float | None = None  # since when a bundle is being made ready
    _dropped: bool = False

    def attend(self) -> None:
        """Look after the models until closed."""
        self._attending = asyncio.get_running_loop().create_task(_attend(self))

    async def close(self) -> None:
        """Leave the other workers, and let go of everything."""
        if self._attending is not None:
            await _cancel(self._attending)
        await self.give_up()
        for task in list(self._retiring):
            await _cancel(task)
        if self._attending is not None:
            try:
                await self.engine.store.leave([self.worker])
            except LacunaError as error:
                log.debug("left without a word: %s", error)
        await self.engine.close()

    async def give_up(self) -> None:
        """Let go of the engine that was being prepared, if any; what it has stored stays."""
        if self._preparing is not None:
            await _cancel(self._preparing)
        coming, self.coming, self.is_ready, self._preparing = self.coming, None, False, None
        if coming is not None:
            await coming.retire()

    async def go_over(self) -> None:
        """Let the engine that is ready serve."""
        former, coming = self.engine, self.coming
        assert coming is not None
        await follow.catch_up(coming)
        coming.runtime.share, coming.runtime.timer = 1.0, former.runtime.timer
        self.engine, self.coming, self.is_ready, self._preparing, self._dropped = coming, None, False, None, False
        self.switched(coming)
        if self.settled.snapshot_s:
            every_s = self.settled.snapshot_s
            coming.runtime.run(snapshot.take_regularly(coming, coming.snapshots, every_s, restored=False))
        log.info("serving bundle %s instead of %s", coming.model_version, former.model_version)
        task = asyncio.get_running_loop().create_task(_retire(former, self.settled.request_s + GRACE_S))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


# --- what is asked for -----------------------------------------------------------------------------------------------


async def models(serving: Serving) -> list[dict[str, Any]]:
    """The bundles of the registry and of the database, the active one first."""
    rows = {row.identity: row for row in await serving.engine.store.served_models()}
    try:
        found = await serving.registry.bundles() if serving.registry is not None else []
    except NotReadyError as error:  # what the database knows is told all the same
        log.warning("%s", error)
        found = []
    active = serving.engine.active.manifest
    known = {one.identity: one.manifest for one in found} | {active.identity: active}
    views = [_view(manifest, rows.get(identity), serving) for identity, manifest in known.items()]
    gone = [row for identity, row in rows.items() if identity not in known and row.state is not ModelState.KNOWN]
    views += [{"version": row.version, "state": _state(row, serving), "detail": row.detail} for row in gone]
    return sorted(views, key=lambda view: view["state"] != ModelState.ACTIVE)


async def model(serving: Serving, version: str) -> dict[str, Any]:
    """One of them.

    Raises:
        ModelNotFoundError: there is none of this version.
    """
    for view in await models(serving):
        if view["version"] == version:
            return view
    raise _not_found(version)


def _not_found(version: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"There is no bundle {version!r}; GET /models lists those that there are.")


def _view(manifest: Any, row: ServedModel | None, serving: Serving) -> dict[str, Any]:
    view = {
        "version": manifest.version,
        "state": _state(row, serving) if row else _unlisted(manifest.identity, serving),
        "created_at": manifest.created_at.isoformat(),
        "trained_on": manifest.data.model_dump(mode="json"),
        "encoders": {one.name: one.encoder.model_dump() if one.encoder else None for one in manifest.modalities},
        "modalities": [modality.model_dump() for modality in manifest.modalities],
        "models": {name: {"form": entry.form, "metrics": entry.metrics} for name, entry in manifest.models.items()},
        "detail": row.detail if row else None,
    }
    progress = {name: value for name, value in row.progress.items() if name != FROM} if row else {}
    return view | ({"progress": progress} if progress else {})


def _unlisted(identity: str, serving: Serving) -> str:
    return "active" if identity == serving.engine.active.identity else "available"


def _state(row: ServedModel, serving: Serving) -> str:
    if row.id == serving.engine.store.model and row.state is not ModelState.ACTIVE:
        return row.state if row.state is ModelState.PREVIOUS else "active"
    return {ModelState.KNOWN: "available", ModelState.READY: "preparing"}.get(row.state, row.state.value)


async def activate(serving: Serving, version: str, *, force: bool = False) -> dict[str, Any]:
    """Have a bundle made ready beside the one that serves, and then served. `force`: also where it does worse.

    Raises:
        ModelNotFoundError: there is none of this version. ConflictError: another one is being made ready.
        BundleRefusedError: it cannot be served here, and why.
    """
    found = await serving.registry.bundles() if serving.registry is not None else []
    bundle = next((one for one in found if one.version == version), None)
    if bundle is None or serving.registry is None or serving.open is None:
        raise _not_found(version)
    store = serving.engine.store
    number = await store.register(bundle.identity, bundle.version)
    row = next(row for row in await store.served_models() if row.id == number)
    if row.state is not ModelState.ACTIVE and row.state not in UNDER_WAY:
        try:
            items = await serving.inspect(serving.engine, bundle)
            await _require_items(serving.engine, items, force=force)
        except (BundleError, EncoderUnavailableError) as error:
            if row.state in DROPPED:
                await store.set_model(number, ModelState.REFUSED, {"detail": str(error)})
            raise BundleRefusedError(f"The bundle {version} is refused: {error}") from error
        await _begin(serving, row, force=force)
    return await model(serving, version)


async def _require_items(engine: Engine, items: Sequence[str], *, force: bool) -> None:
    """Check that a bundle was trained on items of this catalogue.

    Raises:
        BundleError: next to none of them is there.
    """
    if force or not items or not len(engine.memory.catalogue):
        return
    known = sum(item in engine.memory.catalogue for item in items)
    if known < LEAST_KNOWN * len(items):
        raise BundleError(
            f"it was trained on another catalogue: {known} of its {len(items)} items are here; "
            "activate it with force=true to have it all the same"
        )


async def rollback(serving: Serving) -> dict[str, Any]:
    """Have the bundle that was active before served again.

    Raises:
        ConflictError: there is none, or another one is being made ready.
    """
    rows = await serving.engine.store.served_models()
    previous = next((row for row in rows if row.state is ModelState.PREVIOUS), None)
    if previous is None:
        raise ConflictError("No other bundle was active before, so there is none to go back to.")
    await _begin(serving, previous, force=True)
    return await model(serving, previous.version)


async def _begin(serving: Serving, row: ServedModel, *, force: bool) -> None:
    progress = {"step": "waiting", FROM: row.state}
    values = {"detail": None, "progress": progress, "forced": force, "worker": None, "leased_until": None}
    if not await serving.engine.store.set_model(row.id, ModelState.PREPARING, values):
        raise ConflictError("Another bundle is being made ready; GET /models says how far it is.")


# --- what every worker does ------------------------------------------------------------------------------------------


async def _attend(serving: Serving) -> None:
    while True:
        quick = False
        try:
            quick = await _look(serving)
        except LacunaError as error:
            log.debug("the table of models cannot be read: %s", error)
        except Exception:
            log.exception("looking after the models failed; trying again")
        await asyncio.sleep(QUICK_S if quick else LOOK_S)


async def _look(serving: Serving) -> bool:
    """Do what the table of models asks for; whether to look again soon."""
    store = serving.engine.store
    rows = await store.served_models()
    active = next((row for row in rows if row.state is ModelState.ACTIVE), None)
    target = next((row for row in rows if row.state in UNDER_WAY), None)
    is_other = active is not None and active.id != store.model
    serving._seen = None if target is None else serving._seen or time.monotonic()
    if target is not None or is_other:  # while nothing is under way, nobody asks who is alive
        await _beat(serving)
    if active is not None and is_other:
        await _follow_others(serving, active)
        return True
    serving.engine.runtime.superseded = None
    if serving._preparing is not None and serving._preparing.done() and not serving.is_ready:
        await serving.give_up()  # it was refused, or has failed; the same bundle may be wanted again
    if target is None:
        if serving.coming is not None or serving._preparing is not None:
            await serving.give_up()
        if not serving._dropped:
            serving._dropped = not await _drop_some(serving, rows)
        return False
    if serving.coming is not None and serving.coming.store.model != target.id:
        await serving.give_up()
    if target.state is ModelState.PREPARING:
        await _prepare(serving, target)
    else:
        await _join(serving, target)
    return True


async def _beat(serving: Serving) -> None:
    """Say that this worker is alive, and what it could go over to: where that is news, and now and then."""
    ready = serving.coming.store.model if serving.coming is not None and serving.is_ready else 0
    said, at = serving._beaten
    if ready != said or time.monotonic() - at > NOTE_S:
        await serving.engine.store.beat(serving.worker, serving.engine.store.model, ready)
        serving._beaten = ready, time.monotonic()


async def _follow_others(serving: Serving, active: ServedModel) -> None:
    """Go over to the bundle that is active by now."""
    if serving.coming is not None and serving.coming.store.model == active.id:
        if serving.is_ready:
            await serving.go_over()
        return
    if serving.coming is not None:
        await serving.give_up()
    if serving._preparing is None and not serving.engine.runtime.superseded:
        bundle = await _find(serving, active)
        if bundle is None:
            serving.engine.runtime.superseded = f"The database is served with bundle {active.version} by now."
            return
        _start(serving, active, bundle, prepares=False)


async def _find(serving: Serving, row: ServedModel) -> Registered | None:
    found = await serving.registry.bundles() if serving.registry is not None else []
    return next((one for one in found if one.identity == row.identity), None)


async def _prepare(serving: Serving, target: ServedModel) -> None:
    """Derive what is stored under a bundle, unless another worker does."""
    store = serving.engine.store
    if serving._preparing is not None and time.monotonic() - serving._noted <= NOTE_S:
        return
    if not await store.lease(target.id, serving.worker, LEASE_S):
        if serving._preparing is not None:  # it took too long, and another one has begun
            await serving.give_up()
        return
    if serving._preparing is not None:
        await _note(serving, target)
        return
    bundle = await _find(serving, target)
    if bundle is None:
        detail = "LACUNA_BUNDLES does not hold it any more"
        await store.set_model(target.id, ModelState.FAILED, {"detail": detail})
        return
    _start(serving, target, bundle, prepares=True)


async def _join(serving: Serving, target: ServedModel) -> None:
    """Load a bundle that is ready beside the one that serves; and, once every worker has, make it the active one."""
    if serving._preparing is None and serving.coming is None:
        bundle = await _find(serving, target)
        if bundle is not None:
            _start(serving, target, bundle, prepares=False)
        return
    store = serving.engine.store
    if not serving.is_ready or time.monotonic() - (serving._seen or math.inf) < 2 * LOOK_S:
        return  # others may not have looked yet
    workers = await store.serving_workers()
    gone = [one.id for one in workers if one.silent_s > LEASE_S]
    if gone:
        await store.leave(gone)
    are_ready = all(target.id in (one.ready, one.serving) for one in workers if one.id not in gone)
    if are_ready and await store.lease(target.id, serving.worker, LEASE_S):
        await store.activate(target.id, target.version)


async def _note(serving: Serving, target: ServedModel) -> None:
    serving._noted = time.monotonic()
    progress = {**serving.progress, FROM: target.progress.get(FROM)}
    await serving.engine.store.note_progress(target.id, serving.worker, progress)


def _start(serving: Serving, row: ServedModel, bundle: Registered, *, prepares: bool) -> None:
    work = _make_ready(serving, row, bundle, prepares=prepares)
    serving._preparing = asyncio.get_running_loop().create_task(work)


async def _make_ready(serving: Serving, row: ServedModel, bundle: Registered, *, prepares: bool) -> None:
    """Bring up an engine under a bundle; `prepares`: for all workers, and only if it does no worse."""
    store = serving.engine.store
    try:
        serving.progress = {"step": "bundle"}
        await _bring_up(serving, row, bundle)
        coming = serving.coming
        assert coming is not None
        if prepares and not row.forced:
            serving.progress = {"step": "check"}
            comparison = await holdout.compare(serving.engine, coming)
            report = comparison.report() if comparison else None
            if comparison is not None and comparison.is_worse:
                refused = ModelState.PREVIOUS if row.progress.get(FROM) == ModelState.PREVIOUS else ModelState.REFUSED
                await store.set_model(row.id, refused, {"detail": _refusal(comparison), "progress": {}})
                return
            serving.progress = {"step": "workers", "check": report}
        if prepares:
            progress = {**serving.progress, "step": "workers", FROM: row.progress.get(FROM)}
            await store.set_model(row.id, ModelState.READY, {"progress": progress})
        settled = serving.settled
        coming.runtime.run(keep_up(coming, settled.follow_s, settled.log_s))
        serving.is_ready = True
    except (LacunaError, BundleError, EncoderUnavailableError) as error:
        log.warning("the bundle %s cannot be served: %s", row.version, error)
        await _give_in(serving, row, str(error))
    except Exception:
        log.exception("the bundle %s cannot be served", row.version)
        await _give_in(serving, row, "it could not be made ready; the log says why")


async def _give_in(serving: Serving, row: ServedModel, detail: str) -> None:
    """Note that this worker cannot serve a bundle: nobody goes over to it then, unless the others have already."""
    if row.state is ModelState.ACTIVE:
        serving.engine.runtime.superseded = f"The database is served with bundle {row.version} by now; {detail}."
    else:
        await serving.engine.store.set_model(row.id, ModelState.FAILED, {"detail": detail, "progress": {}})


async def _bring_up(serving: Serving, row: ServedModel, bundle: Registered) -> None:
    """An engine under a bundle, with its catalogue, at the end of the change log."""
    assert serving.open is not None

    def report(step: str, done: int, of: int) -> None:
        serving.progress = {"step": step, "done": done, "of": of}

    engine = await serving.open(serving.engine, bundle, row.id)
    engine.runtime.share = SHARE
    serving.coming = engine
    await load_catalogue(engine, report)
    await follow.start(engine)
    await follow.catch_up(engine)
    await regenerate.resume(engine)


def _refusal(comparison: holdout.Comparison) -> str:
    return (
        f"it does worse than the active one: {holdout.METRIC} {comparison.candidate:.4f} instead of "
        f"{comparison.active:.4f} (± {comparison.interval:.4f}, {comparison.users} users, by {comparison.by}); "
        "activate it with force=true to have it all the same"
    )


async def _drop_some(serving: Serving, rows: list[ServedModel]) -> bool:
    """Remove some of what is kept under bundles that are no longer wanted; whether there may be more."""
    store = serving.engine.store
    for row in rows:
        if row.state in DROPPED and row.id != store.model and await store.drop_derived(row.id):
            return True
    return False


async def _retire(engine: Engine, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await engine.retire()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
