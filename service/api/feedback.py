"""Feedback events and the users they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from models.rows import EVENT_ROW, UserId
from service.api import answers, errors, schemas
from service.api.answers import Json
from service.api.deps import READ, WRITE, EngineDep, json_body, row_errors
from service.api.idempotency import key_of
from service.api.limits import row_context
from service.api.openapi import json_request, problems
from service.domain import Event, FeedbackOutcome
from service.pipeline import feedback
from service.ports import Answer, Keep

router = APIRouter(tags=["feedback"])

UserPath = Annotated[UserId, Path()]
Rejected = dict[int, list[errors.FieldError]]


@router.post(
    "/feedback",
    dependencies=[WRITE],
    responses={200: {"model": schemas.FeedbackAnswer}, **problems(body=True)},
    openapi_extra=json_request(schemas.FeedbackBody),
)
async def add_feedback(
    engine: EngineDep,
    request: Request,
    query: Annotated[schemas.StrictQuery, Query()],
    body: Annotated[schemas.FeedbackBody, json_body(schemas.FeedbackBody)],
) -> Response:
    """Store up to 10,000 events. Rows that cannot be used are named and left out; with `strict` nothing is stored
    where one of them cannot."""
    events, rejected = _read(body.feedback, datetime.now(UTC))
    if query.strict and rejected:
        raise errors.ProblemError(errors.invalid(error for row in rejected.values() for error in row))

    def answer(outcome: FeedbackOutcome) -> Json:
        return Json(answers.feedback(_in_body_order(outcome, list(events), rejected)))

    key = key_of(request)
    kept: Keep[FeedbackOutcome] | None = None
    if key is not None:
        kept = Keep(key, lambda outcome: Answer(200, bytes(answer(outcome).body)))
    return answer(await feedback.add_feedback(engine, list(events.values()), strict=query.strict, kept=kept))


def _read(rows: Sequence[object], now: datetime) -> tuple[dict[int, Event], Rejected]:
    """The usable rows as events and the errors of the others, both by index."""
    events: dict[int, Event] = {}
    rejected: Rejected = {}
    context = row_context()
    for index, row in enumerate(rows):
        try:
            events[index] = schemas.to_event(EVENT_ROW.validate_python(row, context=context), now)
        except ValidationError as error:
            rejected[index] = row_errors(error, f"/feedback/{index}")
    return events, rejected


def _in_body_order(outcome: FeedbackOutcome, sent: Sequence[int], rejected: Rejected) -> FeedbackOutcome:
    """The outcome with the body's row numbers; `sent[k]` is the row that was the pipeline's k-th event."""
    unreadable = [(index, _sentence(found, index)) for index, found in rejected.items()]
    refused = [(sent[index], detail) for index, detail in outcome.rejected]
    return replace(outcome, rejected=tuple(unreadable + refused))


def _sentence(found: Sequence[errors.FieldError], index: int) -> str:
    parts = ((error.pointer.removeprefix(f"/feedback/{index}/"), error.detail) for error in found)
    return "; ".join(detail if name.startswith("/") else f"{name}: {detail}" for name, detail in parts)


@router.get("/feedback", dependencies=[READ], responses={200: {"model": schemas.EventPage}, **problems()})
async def list_feedback(engine: EngineDep, query: Annotated[schemas.FeedbackQuery, Query()]) -> Response:
    """A page of events, newest first."""
    page = await feedback.list_feedback(
        engine, limit=query.limit, cursor=query.cursor, user=query.user, item=query.item
    )
    return Json(answers.page([answers.event(one) for one in page.items], page.next_cursor))


@router.delete("/feedback", dependencies=[WRITE], responses={200: {"model": schemas.DeletedAnswer}, **problems()})
async def delete_feedback(engine: EngineDep, query: Annotated[schemas.FeedbackDeleteQuery, Query()]) -> Response:
    """Delete the events of a user, of an item, or of the pair."""
    return Json({"deleted": await feedback.delete_feedback(engine, user=query.user, item=query.item)})


@router.get("/users/{user}", dependencies=[READ], responses={200: {"model": schemas.UserAnswer}, **problems(404)})
async def get_user(engine: EngineDep, user: UserPath) -> Response:
    """What is stored of a user, in numbers."""
    return Json(answers.user(await feedback.get_user(engine, user)))


@router.delete("/users/{user:path}", status_code=204, dependencies=[WRITE], responses=problems(404))
async def delete_user(engine: EngineDep, user: Annotated[str, Path(min_length=1)]) -> Response:
    """Erase all that is stored of a user, also of one whose id is no longer taken (`a/b`)."""
    await feedback.delete_user(engine, user)
    return Response(status_code=204)
