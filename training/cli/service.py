"""`lacuna serve`, what else the service's own programs do (`backup`, `restore`, `export`), and what is asked of a
running service (`check`, `rebuild`, `activate`)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from training.cli.options import key_of
from training.progress import Terminal
from training.running_service import activate as activate_bundle
from training.running_service import check as check_service
from training.running_service import client_of
from training.running_service import rebuild as rebuild_service

Url = Annotated[str, typer.Option(envvar="LACUNA_URL", help="Where the service runs.")]
AdminKey = Annotated[
    Path | None,
    typer.Option("--key-file", help="A file with an API key of the role admin; without it, LACUNA_KEY holds one."),
]
ADDRESS = "http://127.0.0.1:8000"


def serve(context: typer.Context) -> None:
    """Serve a bundle over HTTP (`lacuna serve --help` lists all settings)."""
    exec_service(context.args)


def backup(
    file: Annotated[Path, typer.Argument(help="Where the copy goes; an earlier one is replaced.")],
    force: Annotated[
        bool, typer.Option("--force", help="Copy an empty database too, and replace a file that is no backup.")
    ] = False,
) -> None:
    """Copy what the service's database holds into a file, consistently, while the service runs."""
    exec_service(["create", *_forced(force), "--", str(file)], module="service.backup")


def restore(
    file: Annotated[Path, typer.Argument(help="A copy that `lacuna backup` made.")],
) -> None:
    """Fill the empty database that LACUNA_DATABASE_URL names from a backup."""
    exec_service(["restore", "--", str(file)], module="service.backup")


def export(
    folder: Annotated[Path, typer.Argument(help="Where the two files go; replaced if they are there.")],
    force: Annotated[
        bool, typer.Option("--force", help="Write an empty database too, or into a prepared dataset.")
    ] = False,
) -> None:
    """Write the items and feedback of the database that LACUNA_DATABASE_URL names as items.jsonl and feedback.jsonl.

    `lacuna prepare lacuna` and `lacuna import` read them. The service may run meanwhile.
    """
    exec_service([*_forced(force), "--", str(folder)], module="service.export")


def check(
    url: Url = ADDRESS,
    key_file: AdminKey = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Look at so many items, drawn at random, rather than at all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON, for programs.")] = False,
) -> None:
    """Compare what a running service has derived (generated features, vectors, counts) with what follows from its
    database now.

    The exit code is 1 where an item differs. Items that are pending are no differences.
    """
    with client_of(url, key_of(key_file)) as client:
        report = check_service(client, sample)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        pending = report["pending"]
        typer.echo(f"{report['checked']:,} of {report['of']:,} items checked, {report['differing']:,} differ")
        for row in report["differences"]:
            typer.echo(f"{row['id']}: {', '.join(row['fields'])} (by up to {row['largest']:.2g} of the largest number)")
        if pending["items"] or pending["changes"]:
            typer.echo(f"{pending['items']:,} items and {pending['changes']:,} changes are pending")
    if report["differing"]:
        raise typer.Exit(1)


def rebuild(url: Url = ADDRESS, key_file: AdminKey = None) -> None:
    """Have a running service derive everything anew from its database, while it goes on serving, and wait for it."""
    with Terminal() as terminal, client_of(url, key_of(key_file)) as client:
        items = rebuild_service(client, terminal)
        terminal.say(f"{items:,} items derived anew")


def activate(
    version: Annotated[str, typer.Argument(help="The bundle's version, as GET /models has it.")],
    url: Url = ADDRESS,
    key_file: AdminKey = None,
    force: Annotated[bool, typer.Option("--force", help="Also where it does worse than the active one.")] = False,
) -> None:
    """Have a running service make a bundle of its LACUNA_BUNDLES ready, check it, and go over to it.

    Requests are answered all the while. The exit code is 1 where the bundle is refused, or fails.
    """
    with Terminal() as terminal, client_of(url, key_of(key_file)) as client:
        outcome = activate_bundle(client, version, terminal, force=force)
    if outcome["state"] != "active":
        raise typer.Exit(1)


def _forced(force: bool) -> list[str]:
    return ["--force"] if force else []


def exec_service(arguments: list[str], *, module: str = "service") -> None:
    """Become the service. The trainer never imports it: they share bundles and nothing else."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
