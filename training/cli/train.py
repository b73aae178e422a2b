"""`lacuna demo` and `lacuna train`."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from models.bundle import Bundle, BundleError, read_manifest, require_replaceable
from models.dgmrec.serving import DGMRecServing
from models.feedback import AUTO, MinRating
from models.rows import ANY_LENGTH
from training.cli.configs import RECIPES, all_recipes, with_device
from training.cli.options import (
    Budget,
    Cache,
    CommandError,
    Device,
    Form,
    ImageEncoderName,
    ImageWeights,
    Mask,
    Missing,
    Out,
    Seed,
    Settings,
    Split,
    Threads,
    TitleText,
    _place,
    cache_folder,
    interest_sentence,
    is_bundle,
    parse_budget,
    parse_device,
    parse_min_rating,
    parse_settings,
    print_json,
    read_line,
)
from training.cli.service import exec_service
from training.content import DataOptions
from training.datasets import load_dataset
from training.datasets.base import FEEDBACK, ITEMS
from training.datasets.native import prepare_files
from training.demo.catalogue import NAME as DEMO_NAME
from training.demo.catalogue import prepare_demo
from training.dgmrec.recipe import DGMRecRecipe
from training.held_out import LeaveOneOutError
from training.interest import choose_min_rating
from training.lrmm.ratings import RatingDataError
from training.progress import Terminal
from training.recipe import Recipe, train_into_bundle
from training.splits import SplitName
from training.titles import TitleAsText

DEMO_SEED = 7
CHOOSE = "choose"
ChosenMinRating = Annotated[
    str | None,
    typer.Option(
        "--min-rating",
        metavar=f"1..5|none|auto|{CHOOSE}",
        help="Ratings below it show no interest: they push the item down for that user and make nothing popular. "
        "none: every rating shows interest. Without it, and with auto, the data decide (4, or less where ratings are "
        f"low), or what the dataset was prepared with. {CHOOSE}: that, or less if the validation part's likes are then "
        "found better.",
    ),
]
ENCODER_SHARE = 1 / 3  # of the budget, in which the catalogue's own image encoder is trained

DEMO_SETTINGS = {"seed": DEMO_SEED, "batch_size": 512, "patience": 10}  # a small catalogue, a short wait


class Model(StrEnum):
    """Models that can be trained."""

    DGMREC = "dgmrec"
    LRMM = "lrmm"
    IRIS = "iris"
    ALL = "all"


def demo(
    out: Annotated[Path, typer.Option("--out", callback=_place, help="Where the demo bundle goes.")] = Path(
        "build/demo-bundle"
    ),
    bundle_only: Annotated[bool, typer.Option("--bundle-only", help="Make the bundle and do not serve it.")] = False,
    items: Annotated[int, typer.Option(min=100, help="Products to draw.")] = 1000,
    users: Annotated[int, typer.Option(min=50, help="Shoppers to simulate.")] = 300,
    threads: Threads = 2,
    cache: Cache = None,
) -> None:
    """Make the synthetic demo catalogue, train on it, and serve it on http://127.0.0.1:8000.

    A bundle that is there already is served as it is; a demo bundle that another Lacuna made, and this one cannot read,
    is made anew.
    """
    require_replaceable(out)
    if not is_bundle(out) or _is_outdated_demo(out):
        data = out.with_name(f"{out.name}-data")
        with Terminal() as terminal:
            prepare_demo(data, items=items, users=users, seed=DEMO_SEED, progress=terminal.stage)
        options = DataOptions(seed=DEMO_SEED, threads=threads, cache=cache_folder(cache))
        recipes = [RECIPES["dgmrec"](DEMO_SETTINGS), RECIPES["iris"]({"seed": DEMO_SEED})]
        train_recipes(recipes, data, out, options, source=data, fresh=False)
    if not bundle_only:
        exec_service(["--bundle", str(out)])


def train_command(
    model: Annotated[
        Model,
        typer.Argument(
            help="Which model; all: dgmrec, then iris and lrmm beside it, each as if by a command of its own with the "
            "same options, of which --device and --no-catalogue are dgmrec's and --set goes to those that have the "
            "setting, or to one as --set iris.epochs=50. What the data do not suffice for is left out, and said."
        ),
    ],
    out: Out,
    data: Annotated[
        Path | None, typer.Option("--data", callback=_place, help="A prepared dataset (`lacuna prepare` makes one).")
    ] = None,
    from_db: Annotated[
        str | None,
        typer.Option(
            "--from-db",
            metavar="URL",
            help="Instead of --data: a service's database, as LACUNA_DATABASE_URL names it. What the service stored "
            "last week is what is trained on tonight; what was erased there is gone.",
        ),
    ] = None,
    from_db_file: Annotated[
        Path | None,
        typer.Option("--from-db-file", help="The same, with the URL in a file: others can see a command's options."),
    ] = None,
    missing: Missing = 0.0,
    mask: Mask = None,
    min_rating: ChosenMinRating = None,
    title_as_text: TitleText = TitleAsText.AUTO,
    image_encoder: ImageEncoderName = "auto",
    image_weights: ImageWeights = None,
    catalogue: Annotated[
        bool, typer.Option(help="Ship the catalogue in the bundle, to fill an empty service with.")
    ] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore the checkpoint of an interrupted run.")] = False,
    budget: Budget = "5m",
    split: Split = SplitName.AUTO,
    device: Device = "auto",
    threads: Threads = 2,
    seed: Seed = 0,
    cache: Cache = None,
    form: Form = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the bundle's account for programs.")] = False,
) -> None:
    """Train a model and export a bundle; lrmm and iris join the bundle that is there, dgmrec and all replace it.

    Interrupted, the same command goes on where it was. dgmrec chooses its settings within --budget, is measured by a
    fit without the test part, and is then fitted on all feedback.
    """
    if sum(source is not None for source in (data, from_db, from_db_file)) != 1:
        raise CommandError("training needs its data: either --data DIR or --from-db URL, or --from-db-file FILE")
    data = data or _from_database(database_url(from_db, from_db_file), out)
    least = _chosen_min_rating(data, seed, split) if min_rating == CHOOSE else parse_min_rating(min_rating)
    seconds = parse_budget(budget)
    options = DataOptions(
        missing, mask, image_encoder, image_weights, cache_folder(cache), threads, seed, min_rating=least, split=split
    )
    options = replace(options, encoder_seconds=seconds * ENCODER_SHARE or None, title_as_text=title_as_text)
    chosen = {"seed": seed, **parse_settings(settings, form)}
    on_device = "dgmrec.device" if model is Model.ALL else "device"
    if model in (Model.DGMREC, Model.ALL):
        chosen[on_device] = parse_device(device)
    if model is Model.LRMM:
        chosen = with_device(chosen, device)
    recipes = all_recipes(chosen) if model is Model.ALL else [RECIPES[model](chosen)]
    recipes = [replace(r, budget=seconds, on_all=True) if isinstance(r, DGMRecRecipe) else r for r in recipes]
    train_recipes(recipes, data, out, options, source=data if catalogue else None, fresh=fresh)
    if as_json:
        print_json(json.loads(read_manifest(out).model_dump_json(include={"version", "data", "models"})))


def _chosen_min_rating(data: Path, seed: int, split: SplitName) -> float | None:
    """What the validation part prefers to count as interest; says what was found."""
    choice = choose_min_rating(load_dataset(data), seed, split)
    with Terminal() as terminal:
        terminal.say(str(choice))
    return choice.min_rating


def train_recipes(
    recipes: Sequence[Recipe], data: Path, out: Path, options: DataOptions, *, source: Path | None, fresh: bool
) -> None:
    """Train models one after the other into one bundle. Of several, those that the data do not suffice for are left
    out, and said; any other error ends it."""
    torch.set_num_threads(options.threads)
    dataset = load_dataset(data, options.min_rating)
    synthetic = " (synthetic data)" if dataset.synthetic else ""
    for recipe in recipes:
        with Terminal() as terminal:
            if recipe is recipes[0] and len(dataset.interactions):
                terminal.say(interest_sentence(dataset.min_rating))
            try:
                manifest = train_into_bundle(
                    recipe, dataset, out, options, terminal=terminal, source=source, fresh=fresh
                )
            except KeyboardInterrupt:
                terminal.say("interrupted; the same command goes on where it was")
                raise
            except (LeaveOneOutError, RatingDataError) as error:
                if len(recipes) == 1:
                    raise
                terminal.say(f"left out: {recipe.name}, as {error}")
                continue
            metrics = manifest.models[recipe.name].metrics
            shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in recipe.headline if name in metrics)
            told = f"test {shown}" if shown else "made of items alone"
            terminal.say(f"bundle {manifest.version} in {out}: {told}{synthetic}")


def database_url(given: str | None, file: Path | None) -> str:
    """The database's URL, which holds no password where others could read it.

    Raises:
        CommandError: it does, or none is given.
    """
    if file is not None:
        return read_line(file)
    url = given or ""
    if not url:
        raise CommandError("name the service's database with --from-db URL or --from-db-file FILE")
    if re.match(r"[^/]*://[^/@]*:[^/]*@", url) or "password=" in url:
        raise CommandError("--from-db holds a password, which others read in the list of processes: use --from-db-file")
    return url


def _from_database(url: str, out: Path) -> Path:
    """Prepare what a service's database holds, beside the bundle; what counts as interest stays as the bundle that is
    there has it."""
    prepared = out.with_name(f"{out.name}-data")
    known = read_manifest(out).data if is_bundle(out) else None
    if known is None:
        export_database(url, prepared, prepared.name, synthetic=False, min_rating=AUTO)
    else:
        export_database(url, prepared, known.name, synthetic=known.synthetic, min_rating=known.min_rating)
    return prepared


def export_database(url: str, prepared: Path, name: str, *, synthetic: bool, min_rating: MinRating) -> None:
    """Prepare what a service's database holds, under a name. What was erased is not in it, and what was generated
    neither.

    Raises:
        CommandError: the database cannot be read, or is empty.
    """
    with tempfile.TemporaryDirectory(prefix="lacuna-export-") as folder:
        command = [sys.executable, "-m", "service.export", folder]
        environment = {**os.environ, "LACUNA_DATABASE_URL": url, "LACUNA_DATABASE_URL_FILE": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            message = done.stderr.strip().rpartition("\n")[2]  # warnings come first
            raise CommandError(re.sub(r" \(--force .*?\)", "", message.replace("LACUNA_DATABASE_URL", "--from-db")))
        sys.stderr.write(done.stderr)
        prepare_files(
            Path(folder) / ITEMS,
            Path(folder) / FEEDBACK,
            prepared,
            name=name,
            synthetic=synthetic,
            min_rating=min_rating,
            text_chars=ANY_LENGTH,  # the service may be set to take longer ones than others do
        )


def _is_outdated_demo(path: Path) -> bool:
    """Whether this Lacuna made the bundle for its demo and cannot serve it any more."""
    if read_manifest(path).data.name != DEMO_NAME:
        return False
    try:
        DGMRecServing.load(Bundle.load(path))
    except BundleError as error:
        logging.getLogger(__name__).warning("%s; it is made anew", error)
        return True
    return False
