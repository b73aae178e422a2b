"""`lacuna retrain`: from what a service has stored to a bundle that it serves."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from models.bundle import read_manifest
from training import running_service
from training.cli.configs import all_recipes
from training.cli.options import (
    Budget,
    Cache,
    Seed,
    Settings,
    Threads,
    _place,
    cache_folder,
    is_bundle,
    key_of,
    parse_budget,
    parse_settings,
    print_json,
)
from training.cli.service import ADDRESS, AdminKey, Url
from training.cli.train import database_url, export_database, train_recipes
from training.content import DataOptions
from training.datasets.base import ITEMS
from training.dgmrec.recipe import DGMRecRecipe
from training.progress import Terminal
from training.publish import publish
from training.recipe import Recipe

DATA, BUNDLE, TOLD = "data", "bundle", "retrain.json"


def retrain(
    bundles: Annotated[
        str,
        typer.Option(
            "--bundles",
            envvar="LACUNA_BUNDLES",
            help="Where the service looks for bundles: a folder, or an fsspec URL such as s3://bucket/bundles.",
        ),
    ],
    from_db: Annotated[
        str | None,
        typer.Option(
            "--from-db", metavar="URL", help="The service's database; LACUNA_DATABASE_URL names it where this does not."
        ),
    ] = None,
    from_db_file: Annotated[
        Path | None, typer.Option("--from-db-file", help="The same, with the URL in a file.")
    ] = None,
    work: Annotated[
        Path, typer.Option("--work", callback=_place, help="Folder for the data, checkpoints and the bundle meanwhile.")
    ] = Path("build/retrain"),
    url: Url = ADDRESS,
    key_file: AdminKey = None,
    budget: Budget = "5m",
    threads: Threads = 2,
    seed: Seed = 0,
    cache: Cache = None,
    settings: Settings = None,
    force: Annotated[bool, typer.Option("--force", help="Activate the bundle also where it does worse.")] = False,
    every: Annotated[
        str | None, typer.Option("--every", help="Do it again and again, with a pause such as 24h between two.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what became of it for programs.")] = False,
) -> None:
    """Train on what a service's database holds, publish the bundle where the service finds it, and have it activated.

    The models are those of the bundle that is active, measured on held-out feedback and then fitted on everything; what
    was erased is not in it, and what was generated neither. A bundle that does worse on the service's held-out check
    is refused; the exit code is then 1. Interrupted, the same command goes on where it was.
    """
    pause = None if every is None else parse_budget(every)
    options = DataOptions(threads=threads, seed=seed, cache=cache_folder(cache))
    steps = _Retraining(
        _database(from_db, from_db_file), work, bundles, parse_budget(budget), parse_settings(settings), options
    )
    while True:
        with Terminal() as terminal, running_service.client_of(url, key_of(key_file)) as client:
            outcome = steps.run(client, terminal, force=force)
        if as_json:
            print_json(outcome)
        if pause is None:
            raise typer.Exit(0 if outcome["state"] == "active" else 1)
        time.sleep(pause)


def _database(given: str | None, file: Path | None) -> str:
    named = os.environ.get("LACUNA_DATABASE_URL")
    return named if given is None and file is None and named else database_url(given, file)


class _Retraining:
    """The steps, each of which is passed over where it was done before an interruption."""

    def __init__(
        self, database: str, work: Path, bundles: str, budget: float, settings: dict[str, Any], options: DataOptions
    ) -> None:
        self.database, self.work, self.bundles = database, work, bundles
        self.budget, self.settings, self.options = budget, settings, options

    def run(self, client: httpx.Client, terminal: Terminal, *, force: bool) -> dict[str, Any]:
        """Train, publish, activate; the bundle's version, and what became of it."""
        active = running_service.active_model(client)
        data, bundle = self.work / DATA, self.work / BUNDLE
        if not is_bundle(bundle) or not (self.work / TOLD).is_file():
            if not (data / ITEMS).is_file():
                trained_on = active["trained_on"]
                export_database(
                    self.database,
                    data,
                    trained_on["name"],
                    synthetic=trained_on["synthetic"],
                    min_rating=trained_on["min_rating"],
                )
            train_recipes(self._recipes(active), data, bundle, self.options, source=None, fresh=False)
            (self.work / TOLD).write_text(json.dumps({"trained": read_manifest(bundle).version}))
        version = read_manifest(bundle).version
        terminal.say(f"published as {publish(bundle, self.bundles)}")
        outcome = running_service.activate(client, version, terminal, force=force)
        for path in (data, bundle):
            shutil.rmtree(path, ignore_errors=True)
        (self.work / TOLD).unlink(missing_ok=True)
        return {"version": version, "state": outcome["state"], "detail": outcome.get("detail")}

    def _recipes(self, active: dict[str, Any]) -> list[Recipe]:
        forms = {f"{name}.form": model["form"] for name, model in active["models"].items() if model["form"] != "lacuna"}
        recipes = all_recipes({"seed": self.options.seed} | forms | self.settings)
        recipes = [recipe for recipe in recipes if recipe.name in active["models"]]
        return [replace(r, budget=self.budget, on_all=True) if isinstance(r, DGMRecRecipe) else r for r in recipes]
