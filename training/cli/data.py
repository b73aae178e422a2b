"""`lacuna prepare` and `lacuna import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.feedback import AUTO
from training.cli.options import CommandError, MinRatingText, Out, interest_sentence, key_of, parse_min_rating
from training.datasets import READERS
from training.datasets.prepared import set_min_rating
from training.importing import Kind, import_file
from training.progress import Terminal


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
        for what, reasons in (("left out", info.left_out), ("changed", info.changed)):
            for reason, number in reasons.items():
                terminal.say(f"{what}: {number:,} {reason}")
        terminal.say(interest_sentence(info.min_rating))


def import_command(
    kind: Annotated[Kind, typer.Argument(help="What the file holds.")],
    file: Annotated[Path, typer.Argument(help="A stream of POST bodies, one JSON object a line.")],
    url: Annotated[str, typer.Option(envvar="LACUNA_URL", help="Where the service runs.")] = "http://127.0.0.1:8000",
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", help="A file with an API key of the role write; without it, LACUNA_KEY holds one."),
    ] = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Where the refused lines are set down, as one JSON object a line.")
    ] = None,
) -> None:
    """Send items or feedback from a file to a running service. Items that exist already are left as they are.

    A line that cannot be used never keeps others from being stored. The exit code is 1 where lines were refused, 2
    where the service was away or would not have any; the same command may be given again.
    """
    with Terminal() as terminal:
        outcome = import_file(
            file,
            kind,
            url,
            key_of(key_file),
            report_file,
            terminal,
        )
    if outcome.refused:
        raise typer.Exit(1)
