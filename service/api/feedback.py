"""Feedback events and the users they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from models.rows import EVENT_ROW
from service.api import answers, errors
from service.api.answers import Json
from service.api.deps import READ, WRITE, EngineDep, json_body
from service.api.idempotency import key_of
from service.api.openapi import json_request, problems
from service.api.reading import in_thread, read_row
from service.api.schemas import requests, responses
from service.domain import Event, FeedbackOutcome
from service.pipeline import feedback
from service.ports import Answer, Keep

router = APIRouter(tags=["feedback"])

StoredUser = Annotated[str, Path(min_length=1)]  # also one whose id would no longer be taken
FEW = 20  # rows that are read on the event loop


@router.post(
    "/feedback",
    dependencies=[WRITE],
    responses={200: {"model": responses.FeedbackAnswer}, **problems(body=True)},
    openapi_extra=json_request(requests.FeedbackBody),
)
async def add_feedback(
    engine: EngineDep,
    request: Request,
    query: Annotated[requests.StrictQuery, Query()],
    body: Annotated[requests.FeedbackBody, json_body(requests.FeedbackBody)],
) -> Response:
    """Store up to 10,000 events. Rows that cannot be used are named and left out; with `strict` nothing is stored
    where one of them cannot."""
    now = datetime.now(UTC)
    is_little = len(body.feedback) <= FEW
    rows = _read(body.feedback, now) if is_little else await in_thread(request, _read, body.feedback, now)
    if query.strict and rows.errors:
        raise errors.ProblemError(errors.invalid(rows.errors, rows.wrong))

    def answer(outcome: FeedbackOutcome) -> Json:
        return Json(answers.feedback(_in_body_order(outcome, rows)))

    key = key_of(request)
    kept: Keep[FeedbackOutcome] | None = None
    if key is not None:
        kept = Keep(key, lambda outcome: Answer(200, bytes(answer(outcome).body)))
    return answer(await feedback.add_feedback(engine, list(rows.events.values()), strict=query.strict, keep=kept))


@dataclass
class _Rows:
    """A body's rows, by their numbers: the usable ones as events, the others with a sentence each."""

    events: dict[int, Event] = field(default_factory=dict)
    unusable: list[tuple[int, str]] = field(default_factory=list)
    errors: list[errors.FieldError] = field(default_factory=list)  # the first
    wrong: int = 0  # errors in all


def _read(rows: Sequence[object], now: datetime) -> _Rows:
    read = _Rows()
    for index, row in enumerate(rows):
        try:
            read.events[index] = requests.to_event(read_row(EVENT_ROW, row), now)
        except errors.ProblemError as error:
            problems = error.problem.errors
            read.wrong += len(problems)
            read.unusable.append((index, _sentence(problems)))
            if len(read.errors) < errors.MAX_ERRORS:
                read.errors += [replace(problem, pointer=f"/feedback/{index}{problem.pointer}") for problem in problems]
    return read


def _sentence(problems: Sequence[errors.FieldError]) -> str:
    return "; ".join(
        f"{problem.pointer[1:]}: {problem.detail}" if problem.pointer else problem.detail for problem in problems
    )


def _in_body_order(outcome: FeedbackOutcome, rows: _Rows) -> FeedbackOutcome:
    """The outcome with the body's row numbers, where the pipeline's are those of the events that it got."""
    sent = list(rows.events)
    refused = [(sent[index], detail) for index, detail in outcome.rejected]
    return replace(outcome, rejected=(*rows.unusable, *refused))


@router.get("/feedback", dependencies=[READ], responses={200: {"model": responses.EventPage}, **problems()})
async def list_feedback(engine: EngineDep, query: Annotated[requests.FeedbackQuery, Query()]) -> Response:
    """A page of events, newest first."""
    page = await feedback.list_feedback(
        engine, limit=query.limit, cursor=query.cursor, user=query.user, item=query.item, kind=query.type
    )
    return Json(answers.page(page, answers.event))


@router.delete("/feedback", dependencies=[WRITE], responses={200: {"model": responses.DeletedAnswer}, **problems()})
async def delete_feedback(engine: EngineDep, query: Annotated[requests.FeedbackDeleteQuery, Query()]) -> Response:
    """Delete the events that are of a user, of an item and of a type, as far as these are given."""
    deleted = await feedback.delete_feedback(engine, user=query.user, item=query.item, kind=query.type)
    return Json({"deleted": deleted})


@router.get(
    "/users/{user:path}", dependencies=[READ], responses={200: {"model": responses.UserAnswer}, **problems(404)}
)
async def get_user(engine: EngineDep, user: StoredUser) -> Response:
    """What is stored of a user, in numbers."""
    return Json(await feedback.get_user(engine, user))


@router.delete("/users/{user:path}", status_code=204, dependencies=[WRITE], responses=problems(404))
async def delete_user(engine: EngineDep, user: StoredUser) -> Response:
    """Erase all that is stored of a user, also of one whose id is no longer taken (`a/b`)."""
    await feedback.delete_user(engine, user)
    return Response(status_code=204)
