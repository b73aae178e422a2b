"""Settings -> real adapters -> a running engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from threadpoolctl import threadpool_limits

from models.bundle import Bundle, BundleError, EncoderRef
from models.dgmrec.serving import DGMRecServing
from models.encoders import ImageEncoder, TextEncoder, load_encoder
from models.iris.serving import IRISServing
from models.lrmm.loading import load_lrmm
from models.lrmm.paper_serving import PaperServing
from models.lrmm.serving import NAME as LRMM
from service.adapters.faiss_index import FaissIndex, use_one_thread
from service.adapters.fetcher import UrlFetcher
from service.adapters.limiters import MemoryLimiter, RedisLimiter
from service.adapters.memory_cache import MemoryCache
from service.adapters.redis.cache import RedisCache
from service.adapters.redis.notifier import NoNotifier, RedisNotifier
from service.adapters.registry import BundleRegistry
from service.adapters.sql.store import SqlStore
from service.domain import ModelState
from service.pipeline import follow, recalibrate, regenerate, snapshot
from service.pipeline.activation import Serving, Settled
from service.pipeline.active import Active, RatingModel
from service.pipeline.catalogue import Catalogue, Shape
from service.pipeline.engine import Calibrating, Engine, Limits
from service.pipeline.history import Histories
from service.pipeline.keep_up import keep_up
from service.pipeline.memory import Memory
from service.pipeline.profiles import Profiles
from service.pipeline.rebuild import Report, load_catalogue
from service.pipeline.runtime import Runtime
from service.pipeline.seed import seed
from service.ports import Cache, ChangeNotifier, Fetcher, Limiter, Registered, Registry, Store
from service.settings import Settings, SettingsError, parse_confidence

log = logging.getLogger(__name__)

REPORT_S = 10.0  # between two lines of the log on how far a start is
LISTS_BYTES = 8 << 20  # of cached lists, without Redis


async def bootstrap(settings: Settings) -> Serving:
    """Load the bundle that is to be served, open the store, bring the catalogue up.

    Raises:
        SettingsError, BundleError, EncoderUnavailableError, StoreUnavailableError: each with one sentence.
    """
    if settings.bundle is None and settings.bundles is None:
        raise SettingsError(
            "LACUNA_BUNDLE is not set: name the folder of a bundle (`lacuna demo` makes one, `lacuna train` yours), "
            "or with LACUNA_BUNDLES a folder that holds bundles."
        )
    place, several = settings.data_dir / "bundles", settings.bundles
    registry = BundleRegistry(several, settings.bundle if several is not None else None, place)
    if several is None:
        loaded = await asyncio.to_thread(load, settings)
        store = await SqlStore.open(settings.database_url)
    else:
        store = await SqlStore.open(settings.database_url)
        try:
            folder = await _chosen(settings, registry, store)
            loaded = await asyncio.to_thread(load, settings, folder)
        except BaseException:
            await store.close()
            raise
    engine = await _start(settings, store, *loaded)
    serving = Serving(
        engine,
        registry,
        partial(_open, settings, registry),
        partial(_inspect, settings, registry),
        Settled(
            settings.follow_seconds,
            settings.changes_kept_hours * 3600,
            settings.request_seconds,
            settings.snapshot_minutes * 60,
        ),
    )
    serving.attend()
    return serving


async def _chosen(settings: Settings, registry: Registry, store: Store) -> Path:
    """The folder of the bundle that the database is served with; before there is one, that of LACUNA_BUNDLE, or the
    newest.

    Raises:
        SettingsError: there is none.
    """
    found = await registry.bundles()
    active = next((row for row in await store.served_models() if row.state is ModelState.ACTIVE), None)
    chosen = next((one for one in found if active is not None and one.identity == active.identity), None)
    if chosen is None and active is not None:
        log.warning("LACUNA_BUNDLES does not hold the bundle %s, which the database was served with", active.version)
    chosen = chosen or next((one for one in found if one.folder == settings.bundle), None)
    chosen = chosen or next(iter(found), None)
    if chosen is None:
        raise SettingsError(f"LACUNA_BUNDLES names {settings.bundles}, which holds no usable bundle.")
    return await registry.fetch(chosen)


async def _start(settings: Settings, store: SqlStore, bundle: Bundle, active: Active) -> Engine:
    """The engine that serves, with its catalogue."""
    engine: Engine | None = None
    try:
        number = await store.register(active.identity, active.version)
        engine = _engine(settings, active, store.under(number), _cache(settings))
        prepared = await _is_active(store, number)
        restored = prepared and await snapshot.restore(engine, engine.snapshots)
        if prepared and not restored:
            await load_catalogue(engine, _log_progress())
        elif not prepared:
            async with store.alone():  # of several workers that start at once, one does the work
                if settings.seed_catalogue:
                    await seed(engine, bundle)
                await load_catalogue(engine, _log_progress())
                if not await _is_active(store, number):
                    await store.activate(number, active.version)
        await follow.start(engine)
        await regenerate.resume(engine)
        recalibrate.review_soon(engine)
        await engine.runtime.compute(_warm, active)
    except BaseException:
        await (store if engine is None else engine).close()
        raise
    if settings.snapshot_minutes:
        every_s = settings.snapshot_minutes * 60
        engine.runtime.run(snapshot.take_regularly(engine, engine.snapshots, every_s, restored=restored))
    engine.runtime.run(keep_up(engine, settings.follow_seconds, settings.changes_kept_hours * 3600))
    return engine


async def _is_active(store: Store, number: int) -> bool:
    """Whether a model has derived all that is in the store, and is the one that the store is served with."""
    return any(row.id == number and row.state is ModelState.ACTIVE for row in await store.served_models())


def _engine(settings: Settings, active: Active, store: Store, cache: Cache) -> Engine:
    return compose(
        active,
        store,
        cache=cache,
        notifier=_notifier(settings),
        limits=Limits(settings.max_image_pixels, settings.max_text_chars, settings.max_request_pixels),
        fetcher=_fetcher(settings),
        snapshots=settings.data_dir / "snapshots",
        calibrating=Calibrating(
            least_confidence(settings, active), settings.calibration_pairs, settings.warn_calibration_error
        ),
    )


async def _open(settings: Settings, registry: Registry, present: Engine, bundle: Registered, number: int) -> Engine:
    """An engine under another bundle, over the store and the cache of the present one; its catalogue is empty."""
    folder = await registry.fetch(bundle)
    _, active = await asyncio.to_thread(load, settings, folder, present.active)
    engine = _engine(settings, active, present.store.under(number), present.cache)
    await engine.runtime.compute(_warm, active)
    return engine


async def _inspect(settings: Settings, registry: Registry, present: Engine, bundle: Registered) -> Sequence[str]:
    """Check that a bundle can be served here; the items that it was trained on.

    Raises:
        BundleError, EncoderUnavailableError: it cannot, and why. NotReadyError: it cannot be fetched now.
    """
    folder = await registry.fetch(bundle)
    loaded, active = await asyncio.to_thread(load, settings, folder, present.active)
    await asyncio.to_thread(loaded.require_finite)
    return list(active.dgmrec.items)


def _log_progress() -> Report:
    """Tells in the log, now and then, how far the start is."""
    reported = time.monotonic()

    def report(step: str, done: int, of: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_S:
            reported = time.monotonic()
            log.info("%s: %d of %d items", step, done, of)

    return report


def compose(active: Active, store: Store, *, cache: Cache, notifier: ChangeNotifier, **options: Any) -> Engine:
    """An engine whose catalogue is still empty. `options` are the other fields of `Engine`."""
    catalogue, runtime = _empty_catalogue(active), Runtime(notifier)
    profiles = None if active.ratings is None else Profiles(active.ratings, store, runtime, catalogue)
    memory = Memory(catalogue, Histories(store, active.min_rating), profiles)
    closers = [index.close for index in catalogue.every_index() if isinstance(index, FaissIndex)]
    return Engine(store, cache, active, memory, runtime, closers=closers, **options)


def load(settings: Settings, folder: Path | None = None, shared: Active | None = None) -> tuple[Bundle, Active]:
    """The bundle of a folder, or the one that the settings name, and what is served of it. Encoders that another bundle
    has too are `shared` with it.

    Raises:
        SettingsError, BundleError, EncoderUnavailableError: each with one sentence.
    """
    folder = folder or settings.bundle
    if folder is None:
        raise SettingsError("LACUNA_BUNDLE is not set.")
    # One request is one small computation: threads would only wait for each other.
    use_one_thread()
    torch.set_num_threads(1)
    threadpool_limits(1, "blas")
    bundle = Bundle.load(folder)
    encoders = {
        modality.name: _encoder(settings, bundle, modality.encoder, shared)
        for modality in bundle.manifest.modalities
        if modality.encoder is not None
    }
    model = DGMRecServing.load(bundle)
    ratings = _load_ratings(settings, bundle, encoders)
    return bundle, Active(bundle.manifest, model, encoders, load_iris(bundle), ratings)


def _encoder(
    settings: Settings, bundle: Bundle, entry: EncoderRef, shared: Active | None
) -> TextEncoder | ImageEncoder:
    wanted = (entry.id, entry.weights_sha256)
    known = () if shared is None else shared.encoders.values()
    same = next((encoder for encoder in known if (encoder.id, encoder.weights_sha256) == wanted), None)
    return same or load_encoder(
        entry,
        bundle.path,
        image_weights=settings.image_weights,
        cache_dir=settings.data_dir / "encoders",
        threads=1,
    )


def least_confidence(settings: Settings, active: Active) -> dict[str, float]:
    """LACUNA_MIN_CONFIDENCE by the bundle's modalities; 0 for those that it does not name.

    Raises:
        SettingsError: it names a modality that the bundle has not.
    """
    given = parse_confidence(settings.min_confidence)
    for name in given.keys() - {"", *active.dgmrec.names}:
        known = ", ".join(active.dgmrec.names)
        raise SettingsError(
            f"LACUNA_MIN_CONFIDENCE names the modality {name!r}; the bundle {active.version} has {known}."
        )
    return {name: given.get(name, given.get("", 0.0)) for name in active.dgmrec.names}


def load_iris(bundle: Bundle) -> IRISServing | None:
    """What re-ranks and explains, where the bundle holds it.

    Raises:
        BundleError: it cannot be read, or reads modalities that are not the bundle's.
    """
    iris = IRISServing.load(bundle)
    known = {(modality.name, modality.dim) for modality in bundle.manifest.modalities}
    for spec in () if iris is None else iris.model.specs:
        if (spec.name, spec.dim) not in known:
            raise BundleError(
                f"the iris model of the bundle {bundle.path} reads {spec.name!r} as {spec.dim} numbers, "
                "which the bundle has not"
            )
    return iris


def _empty_catalogue(active: Active) -> Catalogue:
    """A catalogue that holds what the models need of items."""
    model, iris = active.dgmrec, active.iris
    config = model.config
    sides = {} if iris is None else iris.shapes
    shape = Shape(model.ranks, model.size, model.layers, config.neighbours, config.cold_neighbours, sides)
    return Catalogue(shape, FaissIndex, model.trained_row)


def _load_ratings(
    settings: Settings, bundle: Bundle, encoders: Mapping[str, TextEncoder | ImageEncoder]
) -> RatingModel | None:
    """What predicts ratings, where the bundle holds it; its sentence encoder is shared with the one of the items.

    Raises:
        BundleError, EncoderUnavailableError: each with one sentence.
    """
    lrmm = load_lrmm(bundle)
    if lrmm is None:
        return None
    identity = bundle.manifest.files[bundle.manifest.models[LRMM].file]
    if isinstance(lrmm, PaperServing) or lrmm.sentence is None:
        return RatingModel(lrmm, None, identity)
    wanted = (lrmm.sentence.id, lrmm.sentence.weights_sha256)
    shared = (encoder for encoder in encoders.values() if (encoder.id, encoder.weights_sha256) == wanted)
    sentence = next(shared, None) or load_encoder(
        lrmm.sentence, bundle.path, cache_dir=settings.data_dir / "encoders", threads=1
    )
    return RatingModel(lrmm, cast(TextEncoder, sentence), identity)


def limiter_of(settings: Settings) -> Limiter | None:
    """What counts requests, if anything does. It connects to nothing before the first request."""
    if not settings.rate_limit:
        return None
    share = -(-settings.rate_limit // settings.workers)  # processes that count by themselves divide it among them
    if settings.redis_url:
        return RedisLimiter(settings.redis_url, settings.rate_limit, alone=share)
    return MemoryLimiter(share)


def _cache(settings: Settings) -> Cache:
    return RedisCache(settings.redis_url) if settings.redis_url else MemoryCache(max_bytes=LISTS_BYTES)


def _notifier(settings: Settings) -> ChangeNotifier:
    return RedisNotifier(settings.redis_url) if settings.redis_url else NoNotifier()


def _fetcher(settings: Settings) -> Fetcher | None:
    if not settings.allow_image_urls:
        return None
    return UrlFetcher(seconds=settings.image_url_seconds, max_bytes=settings.max_body_bytes)


def _warm(active: Active) -> None:
    """Run encoders once, since their first call is slower than all others."""
    for modality in active.manifest.modalities:
        if modality.encoder is not None and modality.encoder.kind == "text":
            active.encoders[modality.name].encode(["warm"])  # type: ignore[list-item]  # of kind text, so a TextEncoder
