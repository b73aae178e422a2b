"""Operating the service: health, metrics, models, statistics, and what problem types mean."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from service.api import errors
from service.api.answers import Json
from service.api.deps import ADMIN, READ, EngineDep, MetricsDep, ServingDep
from service.api.engines import engine_of
from service.api.openapi import problems
from service.api.schemas import responses
from service.domain import LacunaError
from service.metrics import CONTENT_TYPE
from service.pipeline import activation, check, operate, snapshot

logger = logging.getLogger(__name__)

router = APIRouter(tags=["operate"])

VersionPath = Annotated[str, Path(max_length=200, description="A bundle's version, as GET /models has it")]


@router.get("/", include_in_schema=False)
async def root() -> Response:
    """Lead a visitor to the docs."""
    return RedirectResponse("/docs")


@router.get("/health/live", responses={200: {"model": responses.HealthAnswer}, 400: problems()[400]})
async def live() -> Response:
    """Whether the process answers."""
    return Json({"status": "live"})


@router.get(
    "/health/ready",
    responses={200: {"model": responses.HealthAnswer}, **{status: problems()[status] for status in (400, 503)}},
)
async def ready(engine: EngineDep) -> Response:
    """Whether bundle, store and index are usable and warm."""
    await operate.check_ready(engine)
    return Json({"status": "ready"})


@router.get(
    "/metrics",
    dependencies=[READ],
    response_class=Response,
    responses={200: {"description": "Metrics as text", "content": {"text/plain": {}}}, **problems()},
)
async def metrics(request: Request, metrics: MetricsDep) -> Response:
    """What Prometheus reads; without an engine, without what only that knows."""
    engine = engine_of(request.scope)
    if engine is not None:
        metrics.set_followed(engine.runtime.followed.position, engine.runtime.followed.lag_s)
        try:
            stats = await operate.stats(engine)
        except LacunaError as error:  # the counters are worth most while something is away
            logger.warning("the gauges keep their last values: %s", error)
        else:
            metrics.set_items(stats["modalities"])
            metrics.set_indexes(stats["indexes"])
            metrics.set_pending(stats["pending"])
            metrics.set_imputation_errors(stats["imputation_error"], stats["unused"])
    return Response(metrics.render(), media_type=CONTENT_TYPE)


@router.get("/models", dependencies=[READ], responses={200: {"model": responses.ModelsAnswer}, **problems()})
async def models(serving: ServingDep) -> Response:
    """The bundles that can be served, the active one first: their states, models, measured metrics and modalities."""
    return Json({"models": await activation.models(serving)})


@router.post(
    "/models/rollback",
    dependencies=[ADMIN],
    status_code=202,
    responses={202: {"model": responses.ModelAnswer}, **problems(409)},
)
async def roll_back(serving: ServingDep) -> Response:
    """Go back to the bundle that was active before."""
    return Json(await activation.rollback(serving), 202)


@router.get(
    "/models/{version}",
    dependencies=[READ],
    responses={200: {"model": responses.ModelAnswer}, **problems(404)},
)
async def model(serving: ServingDep, version: VersionPath) -> Response:
    """One bundle; while it is made ready, with how far that is."""
    return Json(await activation.model(serving, version))


@router.post(
    "/models/{version}/activate",
    dependencies=[ADMIN],
    status_code=202,
    responses={202: {"model": responses.ModelAnswer}, **problems(404, 409)},
)
async def activate_model(
    serving: ServingDep,
    version: VersionPath,
    force: Annotated[bool, Query(description="Also where it does worse than the active one")] = False,
) -> Response:
    """Make a bundle ready beside the active one, and then serve it; `GET /models/{version}` says how far that is."""
    return Json(await activation.activate(serving, version, force=force), 202)


@router.get("/stats", dependencies=[READ], responses={200: {"description": "Statistics"}, **problems()})
async def stats(engine: EngineDep) -> Response:
    """Items by modality state and category, imputation error, fallbacks, index sizes."""
    return Json(await operate.stats(engine))


@router.post(
    "/admin/snapshot",
    dependencies=[ADMIN],
    responses={200: {"model": responses.SnapshotAnswer}, **problems(409)},
)
async def take_snapshot(engine: EngineDep) -> Response:
    """Write a snapshot of the index, from which the next start is quicker."""
    return Json(await snapshot.take(engine, engine.snapshots))


@router.post(
    "/admin/check",
    dependencies=[ADMIN],
    responses={200: {"model": responses.CheckAnswer}, **problems()},
)
async def check_state(
    engine: EngineDep,
    sample: Annotated[int | None, Query(ge=1, description="Items drawn at random; all without it")] = None,
) -> Response:
    """Compare what the worker that answers holds with what is derived from the store now."""
    return Json(await check.check(engine, sample))


@router.post(
    "/admin/rebuild",
    dependencies=[ADMIN],
    status_code=202,
    responses={202: {"model": responses.RebuildAnswer}, **problems()},
)
async def rebuild_state(engine: EngineDep) -> Response:
    """Derive everything anew in the background, in every worker; `GET /stats` says how much is `pending`."""
    return Json({"items": await check.rebuild(engine)}, 202)


@router.get(
    "/problems/{slug}",
    responses={
        200: {"model": responses.ProblemDescription},
        **{status: problems(404)[status] for status in (400, 404, 422)},
    },
)
async def problem(slug: Annotated[str, Path(max_length=64)]) -> Response:
    """What a problem's type means."""
    if slug not in errors.DESCRIPTIONS:
        raise HTTPException(404)
    return Json({"type": f"/problems/{slug}", "description": errors.DESCRIPTIONS[slug]})
