"""The `lacuna` command."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from models.errors import sentence_of
from training.cli.data import import_command, prepare
from training.cli.evaluate import evaluate_command, report
from training.cli.retrain import retrain
from training.cli.service import activate, backup, check, export, rebuild, restore, serve
from training.cli.start import start
from training.cli.train import demo, train_command

app = typer.Typer(
    name="lacuna",
    help="Recommendations for catalogues whose items come with holes in them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lacuna {version('lacuna')}")
        raise typer.Exit


@app.callback()
def _common(
    told: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of the command as a whole."""


app.command()(start)
app.command()(demo)
app.command()(prepare)
app.command(name="train")(train_command)
app.command(name="evaluate")(evaluate_command)
app.command()(report)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)(serve)
app.command()(backup)
app.command()(restore)
app.command()(export)
app.command(name="import")(import_command)
app.command()(check)
app.command()(rebuild)
app.command()(activate)
app.command()(retrain)


def main() -> None:
    """Run the command; an error is one sentence and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except Exception as error:
        logging.getLogger(__name__).debug("the command failed", exc_info=error)
        sys.stderr.write(f"lacuna: {sentence_of(error)}\n")
        sys.exit(2)
