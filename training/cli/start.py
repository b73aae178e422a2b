"""`lacuna start`: from a file of items to a running service."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from models.bundle import file_sha256
from models.files import replacing
from training.cli.configs import dgmrec_configs
from training.cli.options import (
    Budget,
    Cache,
    CommandError,
    ImageEncoderName,
    ImageWeights,
    MinRatingText,
    Threads,
    TitleText,
    _place,
    cache_folder,
    is_bundle,
    parse_budget,
    parse_min_rating,
)
from training.cli.service import exec_service
from training.cli.train import ENCODER_SHARE, train_recipes
from training.content import DataOptions
from training.datasets.base import ITEMS
from training.datasets.native import prepare_files
from training.dgmrec.recipe import DGMRecRecipe
from training.progress import Terminal
from training.titles import TitleAsText

SOURCE = "source.json"  # the sha256 of what was trained on
OTHERS = (
    "the files are others than the bundle was made of, which is served as it is: `lacuna import` adds rows to the "
    "running service, --anew trains again"
)
PLACES = ("LACUNA_DATA_DIR", "LACUNA_DATABASE_URL", "LACUNA_DATABASE_URL_FILE")


def start(
    items: Annotated[Path, typer.Argument(help="A file of POST /items bodies, one JSON object a line.")],
    feedback: Annotated[
        Path | None, typer.Option(help="A file of POST /feedback events, one a line; without it, nobody has come yet.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into",
            callback=_place,
            help="The folder for all that is made: the prepared data, the bundle, and the service's database unless "
            "LACUNA_DATA_DIR or LACUNA_DATABASE_URL names another. By default NAME-lacuna in the present folder.",
        ),
    ] = None,
    bundle_only: Annotated[bool, typer.Option("--bundle-only", help="Make the bundle and do not serve it.")] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Train again; the database of the service stays what it is.")
    ] = False,
    min_rating: MinRatingText = None,
    title_as_text: TitleText = TitleAsText.AUTO,
    image_encoder: ImageEncoderName = "auto",
    image_weights: ImageWeights = None,
    budget: Budget = "5m",
    threads: Threads = 2,
    cache: Cache = None,
) -> None:
    """From a file of items, with or without feedback, to a running service on http://127.0.0.1:8000.

    Trains dgmrec if there is no bundle yet, fills the empty database of the service with the items and the feedback,
    and serves; a second call serves at once. `lacuna serve --help` lists the settings (LACUNA_PORT, ...).
    """
    files = {name: file for name, file in (("items", items), ("feedback", feedback)) if file is not None}
    for file in files.values():
        if not file.is_file():
            raise CommandError(f"{file} is no file")
    into = into or Path.cwd() / f"{_name(items)}-lacuna"
    bundle, source = into / "bundle", into / SOURCE
    seen = {name: file_sha256(file) for name, file in files.items()}
    if anew or not is_bundle(bundle):
        seconds, least = parse_budget(budget), parse_min_rating(min_rating)
        with Terminal() as terminal:
            name = _name(items)
            prepare_files(items, feedback, into / "data", name=name, min_rating=least, progress=terminal.stage)
        options = DataOptions(
            image_encoder=image_encoder,
            image_weights=image_weights,
            cache=cache_folder(cache),
            threads=threads,
            encoder_seconds=seconds * ENCODER_SHARE or None,
            title_as_text=title_as_text,
        )
        recipe = DGMRecRecipe(*dgmrec_configs({}), budget=seconds, on_all=True)
        train_recipes([recipe], into / "data", bundle, options, source=into / "data", fresh=False)
        with replacing(source) as file:
            file.write_text(json.dumps(seen) + "\n", "utf-8")
    elif source.is_file() and seen.items() - json.loads(source.read_text("utf-8")).items():
        typer.echo(OTHERS, err=True)
    if not bundle_only:
        elsewhere = any(os.environ.get(name) for name in PLACES)
        exec_service(["--bundle", str(bundle), *([] if elsewhere else ["--data-dir", str(into / "service")])])


def _name(items: Path) -> str:
    """What a file of items is called by: its folder where it has the usual name."""
    whole = items.resolve()
    return (whole.parent.name if items.name == ITEMS else whole.stem) or "items"
