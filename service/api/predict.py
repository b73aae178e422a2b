"""Predicted ratings."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from models.rows import ItemId, UserId
from service.api import answers
from service.api.answers import Json
from service.api.deps import READ, EngineDep, json_body
from service.api.openapi import json_request, problems
from service.api.schemas import requests, responses
from service.pipeline import predict

router = APIRouter(tags=["predict"])


@router.get(
    "/predict/{user}/{item}", dependencies=[READ], responses={200: {"model": responses.PredictionAnswer}, **problems()}
)
async def predict_pair(engine: EngineDep, user: Annotated[UserId, Path()], item: Annotated[ItemId, Path()]) -> Response:
    """How a user would rate an item. Where one of them or both are unknown, the answer rests on what is known."""
    (prediction,) = await predict.predict(engine, [(user, item)])
    return Json(answers.prediction(prediction, engine.model_version))


@router.post(
    "/predict",
    dependencies=[READ],
    responses={200: {"model": responses.PredictionsAnswer}, **problems(body=True)},
    openapi_extra=json_request(requests.PairsBody),
)
async def predict_pairs(
    engine: EngineDep, body: Annotated[requests.PairsBody, json_body(requests.PairsBody)]
) -> Response:
    """The same for up to 1,000 pairs, answered in their order."""
    predictions = await predict.predict(engine, [(pair.user, pair.item) for pair in body.pairs])
    return Json({"items": predictions, "model_version": engine.model_version})
