"""`lacuna prepare` and `lacuna import`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import httpx
import orjson
import typer

from models.feedback import AUTO
from training.cli.options import CommandError, MinRatingText, Out, interest_sentence, parse_min_rating
from training.datasets import READERS
from training.datasets.prepared import set_min_rating
from training.progress import Terminal

SENT_AT_ONCE = {"items": 200, "feedback": 5000}


SENT_BYTES = 6 * 1024 * 1024  # below the service's limit of 8 MiB for a body


class Kind(StrEnum):
    """What can be imported."""

    ITEMS = "items"
    FEEDBACK = "feedback"


def prepare(
    dataset: Annotated[str, typer.Argument(help=f"One of {', '.join(READERS)}.")],
    out: Out,
    source: Annotated[Path | None, typer.Option(help="The folder with the source's files.")] = None,
    min_rating: MinRatingText = None,
) -> None:
    """Read a dataset and write it in Lacuna's own format."""
    if dataset not in READERS:
        raise CommandError(f"there is no dataset reader {dataset!r}; there are {', '.join(READERS)}")
    least = parse_min_rating(min_rating)
    with Terminal() as terminal:
        info = READERS[dataset].prepare(source, out, lambda stage, done: terminal.stage(stage, done))
        if least != AUTO:
            info = set_min_rating(out, least)
        counts = info.counts
        terminal.say(
            f"{info.name}: {counts.items} items, {counts.users} users, {counts.feedback} feedback events in {out}"
        )
        terminal.say(interest_sentence(info.min_rating))


def import_command(
    kind: Annotated[Kind, typer.Argument(help="What the file holds.")],
    file: Annotated[Path, typer.Argument(help="A stream of POST bodies, one JSON object a line.")],
    url: Annotated[str, typer.Option(envvar="LACUNA_URL", help="Where the service runs.")] = "http://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(envvar="LACUNA_KEY", help="An API key with the role write.")] = None,
) -> None:
    """Send items or feedback from a file to a running service. Items that exist already are left as they are."""
    accepted, refused = 0, []
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with _client(url, headers) as client, Terminal() as terminal:
        for done, rows in _batches(file, kind):
            good, bad = _send(client, kind, rows, done)
            accepted += good
            refused += bad
            terminal.stage(f"sending {kind}", done + len(rows))
        terminal.say(f"{accepted} {kind} accepted, {len(refused)} refused")
        for line in refused[:20]:
            terminal.say(line)
    if refused:
        raise typer.Exit(1)


def _client(url: str, headers: dict[str, str]) -> httpx.Client:
    try:
        return httpx.Client(base_url=url, headers=headers, timeout=120)
    except httpx.InvalidURL as error:
        raise CommandError(f"{url!r} is no URL: {error}") from None


def _batches(file: Path, kind: Kind) -> Any:
    if not file.is_file():
        raise CommandError(f"{file} does not exist")
    rows: list[bytes] = []
    size, done = 0, 0
    with file.open("rb") as stream:
        for line in stream:
            if not line.strip():
                continue
            if rows and (len(rows) == SENT_AT_ONCE[kind] or size + len(line) > SENT_BYTES):
                yield done, rows
                done, rows, size = done + len(rows), [], 0
            rows.append(line.strip())
            size += len(line)
    if rows:
        yield done, rows


def _send(client: httpx.Client, kind: Kind, rows: list[bytes], done: int) -> tuple[int, list[str]]:
    body = b'{"' + kind.encode() + b'":[' + b",".join(rows) + b"]}"
    path = "/items/batch" if kind is Kind.ITEMS else "/feedback"
    try:
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    except httpx.HTTPError as error:
        raise CommandError(f"the service at {client.base_url} does not answer: {error}") from None
    try:
        found = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        raise CommandError(f"what runs at {client.base_url} is no Lacuna service: it answers no JSON") from None
    if answer.status_code != 200:
        raise CommandError(f"line {done + 1} and after: {answer.status_code} {found.get('detail')}")
    if kind is Kind.FEEDBACK:
        bad = [f"line {done + row['index'] + 1}: {row['detail']}" for row in found["rejected"]]
        return found["accepted"], bad
    bad = [
        f"line {done + row['index'] + 1}: {row['problem'].get('detail')}" for row in found["items"] if "problem" in row
    ]
    return len(rows) - len(bad), bad
