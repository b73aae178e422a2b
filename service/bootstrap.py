"""Settings -> real adapters -> a running engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import cast

import torch
from threadpoolctl import threadpool_limits

from models.bundle import Bundle, BundleError
from models.dgmrec.serving import DGMRecServing
from models.encoders import ImageEncoder, TextEncoder, load_encoder
from models.iris.serving import IRISServing
from models.lrmm.serving import NAME as LRMM
from models.lrmm.serving import LRMMServing
from service.adapters.faiss_index import FaissIndex, use_one_thread
from service.adapters.fetcher import UrlFetcher
from service.adapters.limiters import MemoryLimiter, RedisLimiter
from service.adapters.memory_cache import MemoryCache
from service.adapters.redis.cache import RedisCache
from service.adapters.redis.notifier import RedisBell
from service.adapters.sql.store import SqlStore
from service.pipeline import follow, snapshot
from service.pipeline.catalogue import Catalogue, Shape
from service.pipeline.documents import Documents
from service.pipeline.engine import Engine, Limits, NoBell
from service.pipeline.rebuild import is_prepared, load_catalogue
from service.pipeline.seed import seed
from service.ports import Bell, Cache, Fetcher, Limiter
from service.settings import Settings, SettingsError

log = logging.getLogger(__name__)

LISTS_BYTES = 8 << 20  # of cached lists, without Redis

Loaded = tuple[Bundle, DGMRecServing, Mapping[str, TextEncoder | ImageEncoder], IRISServing | None]


async def bootstrap(settings: Settings) -> Engine:
    """Load the bundle, open the store, bring the catalogue up.

    Raises:
        SettingsError, BundleError, EncoderUnavailableError, StoreUnavailableError: each with one sentence.
    """
    bundle, model, encoders, reranker = await asyncio.to_thread(load, settings)
    documents = await asyncio.to_thread(load_documents, settings, bundle, encoders)
    store = await SqlStore.open(settings.database_url)
    catalogue = empty_catalogue(model, reranker)
    engine = Engine(
        store=store,
        cache=_cache(settings),
        manifest=bundle.manifest,
        model=model,
        encoders=encoders,
        catalogue=catalogue,
        limits=Limits(settings.max_image_pixels, settings.max_text_chars, settings.max_request_pixels),
        bell=_bell(settings),
        fetcher=_fetcher(settings),
        snapshots=settings.data_dir / "snapshots",
        documents=documents,
        reranker=reranker,
    )
    engine.closers += [index.close for index in catalogue.indexes.values() if isinstance(index, FaissIndex)]
    try:
        if await is_prepared(engine):
            if not await snapshot.restore(engine, engine.snapshots):
                await load_catalogue(engine)
        else:
            async with store.alone():  # of several workers that start at once, one does the work
                if settings.seed_catalogue:
                    await seed(engine, bundle)
                await load_catalogue(engine)
        await follow.resume(engine)
        await engine.compute(_warm, engine)
    except BaseException:
        await engine.close()
        raise
    if settings.snapshot_minutes:
        engine.run(snapshot.keep(engine, engine.snapshots, settings.snapshot_minutes * 60))
    engine.run(follow.follow(engine, settings.follow_seconds, settings.changes_kept_hours * 3600))
    return engine


def load(settings: Settings) -> Loaded:
    """The bundle that the settings name: its manifest, model and encoders, and what explains, if it holds that.

    Raises:
        SettingsError, BundleError, EncoderUnavailableError: each with one sentence.
    """
    if settings.bundle is None:
        raise SettingsError(
            "LACUNA_BUNDLE is not set: name the folder of a bundle (`lacuna demo` makes one, `lacuna train` yours)."
        )
    # One request is one small computation: threads would only wait for each other.
    use_one_thread()
    torch.set_num_threads(1)
    threadpool_limits(1, "blas")
    bundle = Bundle.load(settings.bundle)
    model = DGMRecServing.load(bundle)
    encoders = {
        modality.name: load_encoder(
            modality.encoder,
            bundle.path,
            image_weights=settings.image_weights,
            cache_dir=settings.data_dir / "encoders",
            threads=1,
        )
        for modality in bundle.manifest.modalities
        if modality.encoder is not None
    }
    return bundle, model, encoders, load_reranker(bundle)


def load_reranker(bundle: Bundle) -> IRISServing | None:
    """What re-ranks and explains, where the bundle holds it.

    Raises:
        BundleError: it cannot be read, or reads modalities that are not the bundle's.
    """
    reranker = IRISServing.load(bundle)
    known = {(modality.name, modality.dim) for modality in bundle.manifest.modalities}
    for spec in () if reranker is None else reranker.model.specs:
        if (spec.name, spec.dim) not in known:
            raise BundleError(
                f"the iris model of the bundle {bundle.path} reads {spec.name!r} as {spec.dim} numbers, "
                "which the bundle has not"
            )
    return reranker


def empty_catalogue(model: DGMRecServing, reranker: IRISServing | None) -> Catalogue:
    """A catalogue that holds what the models need of items."""
    shape = Shape(model.ranks, model.size, model.layers, {} if reranker is None else reranker.shapes)
    return Catalogue(shape, FaissIndex)


def load_documents(
    settings: Settings, bundle: Bundle, encoders: Mapping[str, TextEncoder | ImageEncoder]
) -> Documents | None:
    """What predicts ratings, where the bundle holds it; its sentence encoder is shared with the one of the items.

    Raises:
        BundleError, EncoderUnavailableError: each with one sentence.
    """
    lrmm = LRMMServing.load(bundle)
    if lrmm is None:
        return None
    identity = bundle.manifest.files[bundle.manifest.models[LRMM].file]
    if lrmm.sentence is None:
        return Documents(lrmm, None, identity)
    wanted = (lrmm.sentence.id, lrmm.sentence.weights_sha256)
    shared = (one for one in encoders.values() if (one.id, one.weights_sha256) == wanted)
    sentence = next(shared, None) or load_encoder(
        lrmm.sentence, bundle.path, cache_dir=settings.data_dir / "encoders", threads=1
    )
    return Documents(lrmm, cast(TextEncoder, sentence), identity)


def limiter_of(settings: Settings) -> Limiter | None:
    """What counts requests, if anything does. It connects to nothing before the first request."""
    if not settings.rate_limit:
        return None
    if settings.redis_url:
        return RedisLimiter(settings.redis_url, settings.rate_limit)
    return MemoryLimiter(settings.rate_limit)


def _cache(settings: Settings) -> Cache:
    return RedisCache(settings.redis_url) if settings.redis_url else MemoryCache(max_bytes=LISTS_BYTES)


def _bell(settings: Settings) -> Bell:
    return RedisBell(settings.redis_url) if settings.redis_url else NoBell()


def _fetcher(settings: Settings) -> Fetcher | None:
    if not settings.allow_image_urls:
        return None
    return UrlFetcher(seconds=settings.image_url_seconds, max_bytes=settings.max_body_bytes)


def _warm(engine: Engine) -> None:
    """Pay for first calls before the first request does."""
    for name, modality in ((entry.name, entry) for entry in engine.manifest.modalities):
        if modality.encoder is not None and modality.encoder.kind == "text":
            engine.encoders[name].encode(["warm"])  # type: ignore[list-item]  # of kind text, so a TextEncoder
