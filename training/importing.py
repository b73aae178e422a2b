"""`lacuna import`: a file of POST bodies, one JSON object a line, sent to a running service.

A line that cannot be used is set down and takes no others with it: one that is no JSON object is not sent at all, and
the lines of a request that is refused as a whole are sent again in halves. What is away for a moment is waited for.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import orjson
from pydantic import BaseModel, Field, ValidationError

from models.files import replacing
from models.rows import parse_json, read_pictures
from training.progress import Terminal
from training.running_service import ServiceError, client_of

BOM = b"\xef\xbb\xbf"
LONGEST_LINE = 64 << 20  # bytes; the service reads no more of a body
SENT_BYTES = 6 << 20  # of lines in one request, below the service's limit of 8 MiB for a body
SHOWN = 20  # refused lines
ATTEMPTS = 8  # at one request
PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
TIMEOUT_S = 120.0
TEMPORARY = frozenset({429, 502, 503, 504})
DIVISIBLE = frozenset({400, 413, 422})  # a request so refused may owe it to one of its lines, or to their number
EXISTS = "/problems/item-exists"


class Kind(StrEnum):
    """What can be imported."""

    ITEMS = "items"
    FEEDBACK = "feedback"


PATHS = {Kind.ITEMS: "/items/batch", Kind.FEEDBACK: "/feedback"}
SENT_AT_ONCE = {Kind.ITEMS: 200, Kind.FEEDBACK: 5000}


class ImportingError(Exception):
    """What ends an import, in one sentence."""


@dataclass(frozen=True, slots=True)
class Line:
    """A JSON object of the file, by its number there."""

    number: int
    data: bytes
    id: str | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A line that was not stored. `reason` is what its detail has in common with others."""

    line: int
    id: str | None
    detail: str
    reason: str


class _Row(BaseModel):
    index: int = Field(ge=0)
    problem: dict[str, Any] | None = None


class _ItemsAnswer(BaseModel):
    items: list[_Row]


class _Rejected(BaseModel):
    index: int = Field(ge=0)
    detail: str


class _FeedbackAnswer(BaseModel):
    accepted: int
    rejected: list[_Rejected]


@dataclass
class Outcome:
    """What has become of a file's lines so far. All lines up to `through` were sent, or are among the refused."""

    accepted: int = 0
    kept: int = 0
    through: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    shown: list[Refusal] = field(default_factory=list)

    @property
    def refused(self) -> int:
        """How many lines were refused."""
        return self.reasons.total()


def import_file(file: Path, kind: Kind, url: str, key: str | None, report: Path | None, terminal: Terminal) -> Outcome:
    """Send a file, and say what became of it.

    Args:
        report: where each refused line is set down, as {"line", "id", "detail"}.

    Raises:
        ImportingError: the file, the URL or the key cannot be used, or the service cannot; all that was sent stays.
        OSError: the file cannot be read, or the report not be written.
    """
    _check_files(file, report)
    with ExitStack() as opened:
        client = opened.enter_context(_client(url, key))
        stream = opened.enter_context(file.open("rb"))
        total = sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b"")) + 1
        stream.seek(0)
        importing = _Import(client, kind, terminal, total, _writer(opened, report))
        stopped = importing.run(stream, file.parent if kind is Kind.ITEMS else None)
    _tell(importing.outcome, kind, terminal)
    if stopped is not None:
        raise stopped
    return importing.outcome


def _check_files(file: Path, report: Path | None) -> None:
    if file.is_dir():
        raise ImportingError(f"{file} is a folder, no file")
    if not file.is_file():
        raise ImportingError(f"{file} does not exist")
    if report is not None and report.exists() and report.samefile(file):
        raise ImportingError(f"the report would replace {file} itself; choose another place")


def _client(url: str, key: str | None) -> httpx.Client:
    try:
        return client_of(url, key, TIMEOUT_S)
    except ServiceError as error:
        raise ImportingError(str(error)) from None


def _writer(opened: ExitStack, report: Path | None) -> Callable[[Refusal], object]:
    if report is None:
        return lambda _: None
    stream = opened.enter_context(opened.enter_context(replacing(report)).open("wb"))

    def write(refusal: Refusal) -> None:
        row = {"line": refusal.line, "id": refusal.id, "detail": refusal.detail}
        stream.write(orjson.dumps({name: value for name, value in row.items() if value is not None}) + b"\n")

    return write


def _tell(outcome: Outcome, kind: Kind, terminal: Terminal) -> None:
    kept = f", {outcome.kept} left as they are, since they exist" if outcome.kept else ""
    terminal.say(f"{outcome.accepted} {kind} accepted{kept}, {outcome.refused} refused")
    for refusal in outcome.shown:
        terminal.say(f"line {refusal.line}: {refusal.detail}")
    if outcome.refused > len(outcome.shown):
        terminal.say(f"... and {outcome.refused - len(outcome.shown)} more (--report FILE lists all)")
    for reason, count in outcome.reasons.most_common():
        terminal.say(f"{count} refused: {reason}")


# --- reading ---------------------------------------------------------------------------------------------------------


def read_lines(stream: BinaryIO, folder: Path | None = None) -> Iterator[Line | Refusal]:
    """The lines that hold anything, as objects or as refusals; numbers count blank lines too. Pictures that items give
    as paths are read below the `folder` of the file."""
    for number, data in enumerate(_raw_lines(stream), 1):
        if number == 1:
            data = data.removeprefix(BOM)
        if data.strip():
            yield _parsed(number, data.strip(), folder)


def _raw_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines; of one that is too long, its first bytes, one more than there may be."""
    while line := stream.readline(LONGEST_LINE + 1):
        yield line
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST_LINE)


def _parsed(number: int, data: bytes, folder: Path | None) -> Line | Refusal:
    if len(data) > LONGEST_LINE:
        return Refusal(number, None, f"the line is longer than {LONGEST_LINE} bytes", "the line is too long")
    try:
        value = parse_json(data)
    except ValueError as error:
        reason = re.sub(r": line 1 (column \d+) .*", r", \1", str(error))
        return Refusal(number, None, f"this is no valid JSON: {reason}", "this is no valid JSON")
    if not isinstance(value, dict):
        return Refusal(number, None, "this is no JSON object", "this is no JSON object")
    row_id = value.get("id") if isinstance(value.get("id"), str) else None
    try:
        row = value if folder is None else read_pictures(value, folder)
    except ValueError as error:
        return Refusal(number, row_id, str(error), "a picture's file cannot be read")
    return Line(number, data if row == value else json.dumps(row).encode(), row_id)


# --- sending ---------------------------------------------------------------------------------------------------------


class _Import:
    def __init__(
        self, client: httpx.Client, kind: Kind, terminal: Terminal, total: int, write: Callable[[Refusal], object]
    ) -> None:
        self.outcome = Outcome()
        self._client = client
        self._kind = kind
        self._terminal = terminal
        self._total = total
        self._write = write
        self._refused: list[Refusal] = []  # of the request under way, in any order
        url = client.base_url
        self._shown_url = f"{url.scheme}://{url.netloc.decode()}"  # without a password

    def run(self, stream: BinaryIO, folder: Path | None) -> BaseException | None:
        """Send all lines. What ends it early is answered, not raised, so that a report is written of what was done."""
        try:
            for lines in self._requests(read_lines(stream, folder)):
                self._send(lines)
                self._set_down()
                self._terminal.stage(f"sending {self._kind}", self.outcome.through, self._total)
        except ImportingError as error:
            return ImportingError(f"{error}; {self._done()}")
        except KeyboardInterrupt as error:
            self._terminal.say(f"interrupted; {self._done()}")
            return error
        finally:
            self._set_down()
        return None

    def _done(self) -> str:
        through = self.outcome.through
        return f"all up to line {through} was sent" if through else "nothing was sent before"

    def _requests(self, lines: Iterable[Line | Refusal]) -> Iterator[list[Line]]:
        """Lines to send at once; refusals are noted on the way."""
        some: list[Line] = []
        size = 0
        for line in lines:
            length = 0 if isinstance(line, Refusal) else len(line.data) + 1
            if some and (len(some) + len(self._refused) >= SENT_AT_ONCE[self._kind] or size + length > SENT_BYTES):
                yield some
                some, size = [], 0
            if isinstance(line, Line):
                some.append(line)
                size += length
                continue
            self._refused.append(line)
            if not some:  # nothing before it is under way
                self._set_down()
        if some:
            yield some

    def _set_down(self) -> None:
        for refusal in sorted(self._refused, key=lambda refused: refused.line):
            self.outcome.reasons[refusal.reason] += 1
            if len(self.outcome.shown) < SHOWN:
                self.outcome.shown.append(refusal)
            self._write(refusal)
        self._refused.clear()

    def _send(self, lines: list[Line]) -> None:
        answer = self._post(lines)
        status, content = answer.status_code, self._decoded(answer)
        if status in DIVISIBLE and len(lines) > 1:
            self._send(lines[: len(lines) // 2])
            self._send(lines[len(lines) // 2 :])
            return
        if status == 200:
            self._take(lines, content)
        elif status in DIVISIBLE:
            self._refused.append(_refusal(lines[0], content))
        else:
            raise ImportingError(f"line {lines[0].number} and after: {status} {_detail(content)}")
        self.outcome.through = lines[-1].number

    def _post(self, lines: list[Line]) -> httpx.Response:
        """The answer to a request, which is sent again while the service is away for a moment."""
        body = b'{"' + self._kind.encode() + b'":[' + b",".join(line.data for line in lines) + b"]}"
        for attempt in range(1, ATTEMPTS):
            pause = min(PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
            try:
                answer = self._ask(body)
            except ImportingError as error:
                if not self.outcome.through:  # it never answered
                    raise
                reason = str(error)
            else:
                if answer.status_code not in TEMPORARY:
                    return answer
                pause = _asked_pause(answer, pause)
                reason = f"the service answers {answer.status_code}"
            self._terminal.say(f"{reason}; trying again in {pause:g} s")
            time.sleep(pause)
        return self._ask(body)

    def _ask(self, body: bytes) -> httpx.Response:
        try:
            return self._client.post(PATHS[self._kind], content=body, headers={"Content-Type": "application/json"})
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise ImportingError(f"the service at {self._shown_url} does not answer: {reason}") from None

    def _decoded(self, answer: httpx.Response) -> Any:
        try:
            return orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            if answer.status_code in TEMPORARY:  # of a proxy before the service
                return answer.reason_phrase
            raise self._foreign(f"it answers {answer.status_code} and no JSON") from None

    def _foreign(self, reason: str) -> ImportingError:
        return ImportingError(f"what runs at {self._shown_url} is no Lacuna service: {reason}")

    def _take(self, lines: list[Line], content: Any) -> None:
        """Note what became of each line."""
        try:
            if self._kind is Kind.ITEMS:
                rows = _ItemsAnswer.model_validate(content).items
                problems = {row.index: row.problem for row in rows if row.problem is not None}
            else:
                rejected = _FeedbackAnswer.model_validate(content).rejected
                problems = {row.index: {"detail": row.detail} for row in rejected}
            refused = {index: lines[index] for index in problems}
        except (ValidationError, IndexError):
            raise self._foreign("it answers something else") from None
        self.outcome.accepted += len(lines) - len(problems)
        for index in sorted(refused):
            if problems[index].get("type") == EXISTS:
                self.outcome.kept += 1
            else:
                self._refused.append(_refusal(lines[index], problems[index]))


def _refusal(line: Line, problem: Any) -> Refusal:
    detail = _detail(problem)
    title = problem.get("title") if isinstance(problem, dict) else None
    # Ids stand in quotes; without them, details of one kind are alike.
    return Refusal(line.number, line.id, detail, str(title or re.sub(r"'[^']*'", "'...'", detail)))


def _detail(problem: Any) -> str:
    return str(problem.get("detail")) if isinstance(problem, dict) else str(problem)


def _asked_pause(answer: httpx.Response, otherwise: float) -> float:
    """The seconds that the service asks to wait, within bounds."""
    seconds = answer.headers.get("Retry-After", "")
    return min(float(seconds), LONGEST_PAUSE_S) if seconds.isascii() and seconds.isdigit() else otherwise
