"""`lacuna demo` and `lacuna train`."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import BaseModel

from models.bundle import Bundle, BundleError, read_manifest, require_replaceable
from models.dgmrec.config import DGMRecConfig
from models.dgmrec.serving import DGMRecServing
from models.feedback import AUTO
from models.iris.config import IRISConfig
from models.lrmm.config import LRMMConfig
from models.rows import ANY_LENGTH
from training.cli.configs import dgmrec_configs, divide_settings, iris_configs, lrmm_configs
from training.cli.options import (
    CommandError,
    Device,
    ImageEncoderName,
    ImageWeights,
    Mask,
    MinRatingText,
    Missing,
    Out,
    Seed,
    Settings,
    Threads,
    _place,
    cache_of,
    interest_sentence,
    is_bundle,
    parse_device,
    parse_min_rating,
    parse_settings,
    print_json,
    read_line,
)
from training.cli.service import exec_service
from training.datasets import load_dataset
from training.datasets.native import prepare_files
from training.datasets.prepared import FEEDBACK, ITEMS
from training.demo.catalogue import NAME as DEMO_NAME
from training.demo.catalogue import prepare_demo
from training.dgmrec.recipe import DataOptions, make_bundle
from training.held_out import LeaveOneOutError
from training.iris.recipe import add_iris
from training.iris.task import IRISTraining
from training.lrmm.ratings import RatingDataError
from training.lrmm.recipe import add_lrmm
from training.progress import Terminal
from training.trainer import TrainerConfig

DEMO_SEED = 7


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
) -> None:
    """Make the synthetic demo catalogue, train on it, and serve it on http://127.0.0.1:8000.

    A bundle that is there already is served as it is; a demo bundle that another Lacuna made, and this one cannot read,
    is made anew.
    """
    require_replaceable(out)
    if not is_bundle(out) or _is_outdated_demo(out):
        data = out.with_name(f"{out.name}-data")
        options = DataOptions(seed=DEMO_SEED, threads=threads, cache=cache_of(data))
        with Terminal() as terminal:
            prepare_demo(data, items=items, users=users, seed=DEMO_SEED, progress=terminal.stage)
            _train(data, out, options, DEMO_SETTINGS, "cpu", terminal)
        _train_iris(data, out, options, {"seed": DEMO_SEED}, data, fresh=False, as_json=False)
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
    min_rating: MinRatingText = None,
    image_encoder: ImageEncoderName = "auto",
    image_weights: ImageWeights = None,
    catalogue: Annotated[
        bool, typer.Option(help="Ship the catalogue in the bundle, to fill an empty service with.")
    ] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore the checkpoint of an interrupted run.")] = False,
    device: Device = "auto",
    threads: Threads = 2,
    seed: Seed = 0,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the bundle's account for programs.")] = False,
) -> None:
    """Train a model and export a bundle; lrmm and iris join the bundle that is there, dgmrec and all replace it.

    Interrupted, the same command goes on where it was.
    """
    if sum(source is not None for source in (data, from_db, from_db_file)) != 1:
        raise CommandError("training needs its data: either --data DIR or --from-db URL, or --from-db-file FILE")
    data = data or _from_database(_url(from_db, from_db_file), out)
    least = parse_min_rating(min_rating)
    options = DataOptions(missing, mask, image_encoder, image_weights, cache_of(data), threads, seed, min_rating=least)
    chosen = {"seed": seed, **parse_settings(settings)}
    if model is Model.LRMM:
        _train_lrmm(data, out, options, chosen, fresh=fresh, as_json=as_json)
        return
    if model is Model.IRIS:
        _train_iris(data, out, options, chosen, data if catalogue else None, fresh=fresh, as_json=as_json)
        return
    if model is Model.ALL:
        _train_all(data, out, options, chosen, device, with_catalogue=catalogue, fresh=fresh)
    else:
        with Terminal() as terminal:
            _train(data, out, options, chosen, device, terminal, with_catalogue=catalogue, fresh=fresh)
    if as_json:
        print_json(json.loads(read_manifest(out).model_dump_json(include={"version", "data", "models"})))


def _train(
    data: Path,
    out: Path,
    options: DataOptions,
    settings: dict[str, Any],
    device: str,
    terminal: Terminal,
    **more: bool,
) -> None:
    torch.set_num_threads(options.threads)
    config, trainer = dgmrec_configs({**settings, "device": parse_device(device)})
    dataset = load_dataset(data, options.min_rating)
    terminal.say(interest_sentence(dataset.min_rating))
    try:
        manifest = make_bundle(dataset, data, out, config, trainer, options, terminal=terminal, **more)
    except KeyboardInterrupt:
        terminal.say("interrupted; the same command goes on where it was")
        raise
    metrics = manifest.models["dgmrec"].metrics
    shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("recall@20", "ndcg@20"))
    synthetic = " (synthetic data)" if dataset.synthetic else ""
    terminal.say(f"bundle {manifest.version} in {out}: test {shown}{synthetic}")


def _train_all(
    data: Path, out: Path, options: DataOptions, settings: dict[str, Any], device: str, **more: bool
) -> None:
    """DGMRec, then what joins it. A model that the data do not suffice for is left out; any other error ends it."""
    kinds: dict[Model, tuple[type[BaseModel], ...]] = {
        Model.DGMREC: (DGMRecConfig, TrainerConfig),
        Model.IRIS: (IRISConfig, IRISTraining, TrainerConfig),
        Model.LRMM: (LRMMConfig, TrainerConfig),
    }
    common = {name: value for name, value in settings.items() if name.partition(".")[0] not in kinds}
    every = dict.fromkeys(kind for some in kinds.values() for kind in some)
    divide_settings(common, *every)  # a misspelt name is said first
    own = {
        model: {name: value for name, value in common.items() if any(name in kind.model_fields for kind in some)}
        | {name.removeprefix(f"{model}."): value for name, value in settings.items() if name.startswith(f"{model}.")}
        for model, some in kinds.items()
    }
    dgmrec_configs(own[Model.DGMREC]), iris_configs(own[Model.IRIS]), lrmm_configs(own[Model.LRMM])
    with Terminal() as terminal:
        _train(data, out, options, own[Model.DGMREC], device, terminal, **more)
    joining: dict[Model, Callable[[], None]] = {
        Model.IRIS: lambda: _train_iris(data, out, options, own[Model.IRIS], None, fresh=more["fresh"], as_json=False),
        Model.LRMM: lambda: _train_lrmm(data, out, options, own[Model.LRMM], fresh=more["fresh"], as_json=False),
    }
    for model, join in joining.items():
        try:
            join()
        except (LeaveOneOutError, RatingDataError) as error:
            with Terminal() as terminal:
                terminal.say(f"left out: {model}, as {error}")


def _url(given: str | None, file: Path | None) -> str:
    """The database's URL, which holds no password where others could read it."""
    if file is not None:
        return read_line(file)
    url = given or ""
    if re.match(r"[^/]*://[^/@]*:[^/]*@", url) or "password=" in url:
        raise CommandError("--from-db holds a password, which others read in the list of processes: use --from-db-file")
    return url


def _from_database(url: str, out: Path) -> Path:
    """Prepare what a service's database holds, beside the bundle; what counts as interest stays as the bundle that is
    there has it."""
    prepared = out.with_name(f"{out.name}-data")
    known = read_manifest(out).data if is_bundle(out) else None
    with tempfile.TemporaryDirectory(prefix="lacuna-export-") as folder:
        command = [sys.executable, "-m", "service.export", folder]
        environment = {**os.environ, "LACUNA_DATABASE_URL": url, "LACUNA_DATABASE_URL_FILE": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().rpartition("\n")[2]  # warnings come first
            raise CommandError(re.sub(r" \(--force .*?\)", "", said.replace("LACUNA_DATABASE_URL", "--from-db")))
        sys.stderr.write(done.stderr)
        prepare_files(
            Path(folder) / ITEMS,
            Path(folder) / FEEDBACK,
            prepared,
            name=known.name if known else prepared.name,
            synthetic=known.synthetic if known else False,
            min_rating=known.min_rating if known else AUTO,
            text_chars=ANY_LENGTH,  # the service may be set to take longer ones than others do
        )
    return prepared


def _train_lrmm(
    data: Path, out: Path, options: DataOptions, settings: dict[str, Any], *, fresh: bool, as_json: bool
) -> None:
    torch.set_num_threads(options.threads)
    config, trainer = lrmm_configs(settings)
    with Terminal() as terminal:
        manifest = add_lrmm(
            load_dataset(data, options.min_rating), out, config, trainer, options, terminal=terminal, fresh=fresh
        )
        metrics = manifest.models[Model.LRMM].metrics
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("rmse[+F]", "mae[+F]"))
        terminal.say(f"bundle {manifest.version} in {out}: test {shown}")
    if as_json:
        print_json(json.loads(manifest.model_dump_json(include={"version", "data", "models"})))


def _train_iris(
    data: Path,
    out: Path,
    options: DataOptions,
    settings: dict[str, Any],
    source: Path | None,
    *,
    fresh: bool,
    as_json: bool,
) -> None:
    torch.set_num_threads(options.threads)
    configs = iris_configs(settings)
    with Terminal() as terminal:
        try:
            dataset = load_dataset(data, options.min_rating)
            manifest = add_iris(dataset, out, *configs, options, terminal=terminal, source=source, fresh=fresh)
        except KeyboardInterrupt:
            terminal.say("interrupted; the same command goes on where it was")
            raise
        metrics = manifest.models[Model.IRIS].metrics
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("hr@10", "ndcg@10"))
        terminal.say(f"bundle {manifest.version} in {out}: test {shown}")
    if as_json:
        print_json(json.loads(manifest.model_dump_json(include={"version", "data", "models"})))


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
