"""`lacuna serve`, and what else the service's own programs do: `backup`, `restore`, `export`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


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


def _forced(force: bool) -> list[str]:
    return ["--force"] if force else []


def exec_service(arguments: list[str], *, module: str = "service") -> None:
    """Become the service. The trainer never imports it: they share bundles and nothing else."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
