"""The `lacuna` command."""

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
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from pydantic import BaseModel, ValidationError

from models.bundle import Bundle, BundleError, read_manifest, require_replaceable
from models.dgmrec import DGMRecConfig
from models.errors import sentence_of
from models.files import replacing
from models.iris import IRISConfig
from models.lrmm import LRMMConfig
from models.online import OnlineDGMRec
from training.datasets import READERS, load_dataset
from training.datasets.native import prepare_files
from training.datasets.prepared import FEEDBACK, ITEMS
from training.demo import NAME as DEMO_NAME
from training.demo import prepare_demo
from training.evaluate import (
    LEFT_OUT,
    MODELS,
    RATERS,
    LeaveOneOutPlan,
    Plan,
    Protocol,
    RatingPlan,
    evaluate,
    evaluate_left_out,
    evaluate_rating,
)
from training.held_out import LeaveOneOutError
from training.importing import Kind, import_file
from training.iris import TRAINER as IRIS_TRAINER
from training.iris import IRISTraining
from training.lrmm import TRAINER as RATING_TRAINER
from training.progress import Terminal
from training.rate import add_lrmm
from training.ratings import RatingDataError
from training.report.page import make_report
from training.similarity import add_iris
from training.train import DataOptions, make_bundle
from training.trainer import TrainerConfig

C = TypeVar("C", bound=BaseModel)

DEMO_SEED = 7
MOST, LARGEST = 2**31 - 1, 1e30  # of a setting that is a whole number, and of any other
DEMO_SETTINGS = {"seed": DEMO_SEED, "batch_size": 512, "patience": 10}  # a small catalogue, a short wait

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


class CommandError(Exception):
    """What a person did wrong; the message is one sentence."""


class Model(StrEnum):
    """Models that can be trained."""

    DGMREC = "dgmrec"
    LRMM = "lrmm"
    IRIS = "iris"
    ALL = "all"


def _place(path: Path | None) -> Path | None:
    """A folder by its whole name, beside which there may be others."""
    if path is None:
        return None
    found = Path(os.path.realpath(path))
    if not found.name or found.is_symlink():
        raise CommandError(f"{path} is no place for a folder; choose another")
    return found


Data = Annotated[Path, typer.Option("--data", callback=_place, help="A prepared dataset (`lacuna prepare` makes one).")]
Out = Annotated[
    Path, typer.Option("--out", callback=_place, help="Where the result goes; replaced if it is one already.")
]
Seed = Annotated[int, typer.Option(min=0, max=MOST, help="Seed of everything random.")]
Missing = Annotated[float, typer.Option(min=0, max=0.95, help="Share of item-modality cells to withhold.")]
Mask = Annotated[str | None, typer.Option(help="A published mask of the dataset, instead of --missing.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the model or the trainer, as --set epochs=50."),
]
ImageEncoderName = Annotated[
    str, typer.Option(help="catalogue (trained on the catalogue's own pictures), torchvision:<name>, or auto.")
]
ImageWeights = Annotated[
    Path | None, typer.Option(envvar="LACUNA_IMAGE_WEIGHTS", help="Weights of the torchvision network (safetensors).")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads for computation.")]


@app.command()
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
    if not _is_bundle(out) or _is_outdated_demo(out):
        data = out.with_name(f"{out.name}-data")
        options = DataOptions(seed=DEMO_SEED, threads=threads, cache=_cache(data))
        with Terminal() as terminal:
            prepare_demo(data, items=items, users=users, seed=DEMO_SEED, progress=terminal.stage)
            _train(data, out, options, DEMO_SETTINGS, "cpu", terminal)
        _train_iris(data, out, options, {"seed": DEMO_SEED}, data, fresh=False, as_json=False)
    if not bundle_only:
        _exec_service(["--bundle", str(out)])


@app.command()
def prepare(
    dataset: Annotated[str, typer.Argument(help=f"One of {', '.join(READERS)}.")],
    out: Out,
    source: Annotated[Path | None, typer.Option(help="The folder with the source's files.")] = None,
) -> None:
    """Read a dataset and write it in Lacuna's own format."""
    if dataset not in READERS:
        raise CommandError(f"there is no dataset reader {dataset!r}; there are {', '.join(READERS)}")
    with Terminal() as terminal:
        info = READERS[dataset].prepare(source, out, lambda stage, done: terminal.stage(stage, done))
        counts = info.counts
        terminal.say(
            f"{info.name}: {counts.items} items, {counts.users} users, {counts.feedback} feedback events in {out}"
        )


@app.command()
def train(
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
    missing: Missing = 0.0,
    mask: Mask = None,
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
    if (data is None) == (from_db is None):
        raise CommandError("training needs its data: either --data DIR or --from-db URL")
    data = data or _from_database(from_db or "", out)
    options = DataOptions(missing, mask, image_encoder, image_weights, _cache(data), threads, seed)
    if model is Model.ALL:
        _train_all(
            data, out, options, {"seed": seed, **_parsed(settings)}, device, with_catalogue=catalogue, fresh=fresh
        )
        if as_json:
            _print_json(json.loads(read_manifest(out).model_dump_json(include={"version", "data", "models"})))
        return
    if model is Model.LRMM:
        _train_lrmm(data, out, options, {"seed": seed, **_parsed(settings)}, fresh=fresh, as_json=as_json)
        return
    if model is Model.IRIS:
        source = data if catalogue else None
        _train_iris(data, out, options, {"seed": seed, **_parsed(settings)}, source, fresh=fresh, as_json=as_json)
        return
    with Terminal() as terminal:
        _train(
            data,
            out,
            options,
            {"seed": seed, **_parsed(settings)},
            device,
            terminal,
            with_catalogue=catalogue,
            fresh=fresh,
        )
    if as_json:
        _print_json(json.loads(read_manifest(out).model_dump_json(include={"version", "data", "models"})))


@app.command(name="evaluate")
def evaluate_command(
    model: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join(MODELS)}; imputers only under retrieval. Under rating: {', '.join(RATERS)}. "
            f"Under leave-one-out: {', '.join(LEFT_OUT)}."
        ),
    ],
    data: Data,
    protocol: Annotated[Protocol, typer.Option(help="What to measure; see docs/evaluation.md.")] = Protocol.MISSING,
    missing: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.95,
            help="Share of item-modality cells to withhold. "
            "Without it and --mask, equal shares of the items lack 0, 1, ..., all modalities.",
        ),
    ] = None,
    mask: Mask = None,
    imputer: Annotated[
        str | None, typer.Option(help="Fill missing cells by this imputer before dgmrec or content sees them.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Number of runs, with seeds 1, 2, ...")] = 3,
    split: Annotated[
        str | None, typer.Option(help="Under leave-one-out: a published split for all seeds, instead of random ones.")
    ] = None,
    rehearsal: Annotated[
        bool,
        typer.Option(
            "--rehearsal",
            help="Under new-items: draw other items as new for each seed and leave the test part unseen, "
            "to choose settings by.",
        ),
    ] = False,
    variant: Annotated[str | None, typer.Option(help="Name of these settings in the result.")] = None,
    item_reviews: Annotated[
        int | None, typer.Option(min=0, help="Under rating: at most so many training reviews tell of an item.")
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="Under rating: the dataset that is rated by what lrmm learned from --data.")
    ] = None,
    image_encoder: ImageEncoderName = "auto",
    image_weights: ImageWeights = None,
    device: Device = "auto",
    threads: Threads = 2,
    settings: Settings = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the raw result goes.")] = None,
) -> None:
    """Train and test over several seeds; the result holds every seed's figures, their mean and spread."""
    torch.set_num_threads(threads)
    _check_place(json_file)
    if protocol is Protocol.RATING:
        if model not in RATERS:
            raise CommandError(f"the protocol rating has no model {model!r}; it has {', '.join(RATERS)}")
        options = DataOptions(
            image_encoder=image_encoder, image_weights=image_weights, cache=_cache(data), threads=threads
        )
        other = None if target is None else load_dataset(target)
        rating = RatingPlan(model, *_rating_configs(_parsed(settings)), options, item_reviews, other)
        with Terminal() as terminal:
            result = evaluate_rating(
                load_dataset(data), rating, seeds=seeds, variant=variant, command=_command(), terminal=terminal
            )
        _write_result(result, json_file)
        return
    if item_reviews is not None or target is not None:
        raise CommandError("--item-reviews and --target belong to the protocol rating")
    if protocol is Protocol.LEAVE_ONE_OUT:
        if model not in LEFT_OUT:
            raise CommandError(f"the protocol leave-one-out has no model {model!r}; it has {', '.join(LEFT_OUT)}")
        options = DataOptions(missing or 0.0, mask, image_encoder, image_weights, _cache(data), threads)
        left_out = LeaveOneOutPlan(model, *_iris_configs(_parsed(settings)), options, split)
        with Terminal() as terminal:
            result = evaluate_left_out(
                load_dataset(data), left_out, seeds=seeds, variant=variant, command=_command(), terminal=terminal
            )
        _write_result(result, json_file)
        return
    levels = missing is None and mask is None and protocol is not Protocol.RATIO
    options = DataOptions(missing or 0.0, mask, image_encoder, image_weights, _cache(data), threads, levels=levels)
    configs = _configs({**_parsed(settings), "device": _device(device)})
    plan = Plan(model, protocol, options, configs, imputer, rehearsal)
    dataset = load_dataset(data)
    with Terminal() as terminal:
        result = evaluate(dataset, plan, seeds=seeds, variant=variant, command=_command(), terminal=terminal)
    _write_result(result, json_file)


def _check_place(file: Path | None) -> None:
    """Find out now, and not after hours of training, that a result cannot be written. Raises OSError."""
    if file is None:
        return
    if file.is_dir():
        raise CommandError(f"{file} is a folder; the result needs a file")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=file.parent):
        pass


def _write_result(result: dict[str, Any], json_file: Path | None) -> None:
    if json_file:
        with replacing(json_file) as file:
            file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    _print_json({"mean": result["mean"], "std": result["std"]})


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Raw results: files, and folders with all that is below them.")],
    html: Annotated[Path, typer.Option("--html", help="Where the page goes; replaced if it is there.")],
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Draw the parts of this bundle's items (t-SNE), too.")
    ] = None,
    user: Annotated[
        list[str] | None,
        typer.Option(help="Show what the bundle's IRIS recommends to this user of its catalogue, and why; repeatable."),
    ] = None,
    title: Annotated[str, typer.Option(help="What stands above the page.")] = "Lacuna: evaluation report",
) -> None:
    """Put raw results into one HTML page of tables and plots that needs no network.

    A file that is no raw result is named and left out.
    """
    if user and bundle is None:
        raise CommandError("--user needs --bundle, whose catalogue the user is of")
    page, left_out = make_report(results, title=title, bundle=bundle, users=user or ())
    html.parent.mkdir(parents=True, exist_ok=True)
    with replacing(html) as file:
        file.write_text(page, "utf-8", errors="xmlcharrefreplace")
    with Terminal() as terminal:
        for sentence in left_out:
            terminal.say(f"left out: {sentence}")
        terminal.say(f"{html} is written")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def serve(context: typer.Context) -> None:
    """Serve a bundle over HTTP (`lacuna serve --help` lists all settings)."""
    _exec_service(context.args)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="Where the copy goes; an earlier one is replaced.")],
    force: Annotated[
        bool, typer.Option("--force", help="Copy an empty database too, and replace a file that is no backup.")
    ] = False,
) -> None:
    """Copy what the service's database holds into a file, consistently, while the service runs."""
    _exec_service(["create", *_forced(force), "--", str(file)], module="service.backup")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A copy that `lacuna backup` made.")],
) -> None:
    """Fill the empty database that LACUNA_DATABASE_URL names from a backup."""
    _exec_service(["restore", "--", str(file)], module="service.backup")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where the two files go; replaced if they are there.")],
    force: Annotated[
        bool, typer.Option("--force", help="Write an empty database too, or into a prepared dataset.")
    ] = False,
) -> None:
    """Write the items and feedback of the database that LACUNA_DATABASE_URL names as items.jsonl and feedback.jsonl.

    `lacuna prepare lacuna` and `lacuna import` read them. The service may run meanwhile.
    """
    _exec_service([*_forced(force), "--", str(folder)], module="service.export")


def _forced(force: bool) -> list[str]:
    return ["--force"] if force else []


@app.command(name="import")
def import_command(
    kind: Annotated[Kind, typer.Argument(help="What the file holds.")],
    file: Annotated[Path, typer.Argument(help="A stream of POST bodies, one JSON object a line.")],
    url: Annotated[str, typer.Option(envvar="LACUNA_URL", help="Where the service runs.")] = "http://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(envvar="LACUNA_KEY", help="An API key with the role write.")] = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Where the refused lines are set down, as one JSON object a line.")
    ] = None,
) -> None:
    """Send items or feedback from a file to a running service. Items that exist already are left as they are.

    A line that cannot be used never keeps others from being stored. The exit code is 1 where lines were refused, 2
    where the service was away or would not have any; the same command may be given again.
    """
    with Terminal() as terminal:
        outcome = import_file(file, kind, url, key, report_file, terminal)
    if outcome.refused:
        raise typer.Exit(1)


# --- helpers ---------------------------------------------------------------------------------------------------------


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
    config, trainer = _configs({**settings, "device": _device(device)})
    dataset = load_dataset(data)
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
    _divided(common, *every)  # a misspelt name is said first
    own = {
        model: {name: value for name, value in common.items() if any(name in kind.model_fields for kind in some)}
        | {name.removeprefix(f"{model}."): value for name, value in settings.items() if name.startswith(f"{model}.")}
        for model, some in kinds.items()
    }
    _configs(own[Model.DGMREC]), _iris_configs(own[Model.IRIS]), _rating_configs(own[Model.LRMM])
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


def _from_database(url: str, out: Path) -> Path:
    """Prepare what a service's database holds, beside the bundle; what counts as interest stays as the bundle that is
    there has it."""
    prepared = out.with_name(f"{out.name}-data")
    known = read_manifest(out).data if _is_bundle(out) else None
    with tempfile.TemporaryDirectory(prefix="lacuna-export-") as folder:
        command = [sys.executable, "-m", "service.export", folder]
        environment = {**os.environ, "LACUNA_DATABASE_URL": url}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().rpartition("\n")[2]  # warnings come first
            raise CommandError(re.sub(r" \(--force .*?\)", "", said.replace("LACUNA_DATABASE_URL", "--from-db")))
        prepare_files(
            Path(folder) / ITEMS,
            Path(folder) / FEEDBACK,
            prepared,
            name=known.name if known else prepared.name,
            synthetic=known.synthetic if known else False,
            min_rating=known.min_rating if known else None,
        )
    return prepared


def _train_lrmm(
    data: Path, out: Path, options: DataOptions, settings: dict[str, Any], *, fresh: bool, as_json: bool
) -> None:
    torch.set_num_threads(options.threads)
    config, trainer = _rating_configs(settings)
    with Terminal() as terminal:
        manifest = add_lrmm(load_dataset(data), out, config, trainer, options, terminal=terminal, fresh=fresh)
        metrics = manifest.models[Model.LRMM].metrics
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("rmse[+F]", "mae[+F]"))
        terminal.say(f"bundle {manifest.version} in {out}: test {shown}")
    if as_json:
        _print_json(json.loads(manifest.model_dump_json(include={"version", "data", "models"})))


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
    configs = _iris_configs(settings)
    with Terminal() as terminal:
        try:
            dataset = load_dataset(data)
            manifest = add_iris(dataset, out, *configs, options, terminal=terminal, source=source, fresh=fresh)
        except KeyboardInterrupt:
            terminal.say("interrupted; the same command goes on where it was")
            raise
        metrics = manifest.models[Model.IRIS].metrics
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("hr@10", "ndcg@10"))
        terminal.say(f"bundle {manifest.version} in {out}: test {shown}")
    if as_json:
        _print_json(json.loads(manifest.model_dump_json(include={"version", "data", "models"})))


def _rating_configs(settings: dict[str, Any]) -> tuple[LRMMConfig, TrainerConfig]:
    return _validated(settings, LRMMConfig, RATING_TRAINER.model_dump())


def _iris_configs(settings: dict[str, Any]) -> tuple[IRISConfig, IRISTraining, TrainerConfig]:
    model, training, trainer = _divided(settings, IRISConfig, IRISTraining, TrainerConfig)
    usual = IRIS_TRAINER.model_dump()
    return _checked(IRISConfig, model), _checked(IRISTraining, training), _checked(TrainerConfig, usual | trainer)


def _configs(settings: dict[str, Any]) -> tuple[DGMRecConfig, TrainerConfig]:
    return _validated(settings, DGMRecConfig, {})


def _validated(settings: dict[str, Any], kind: type[C], usual: dict[str, Any]) -> tuple[C, TrainerConfig]:
    """Settings by name for the model and the trainer (over its usual ones here)."""
    model, trainer = _divided(settings, kind, TrainerConfig)
    return _checked(kind, model), _checked(TrainerConfig, usual | trainer)


def _divided(settings: dict[str, Any], *kinds: type[BaseModel]) -> list[dict[str, Any]]:
    """The settings of each kind; a name that several have (seed) goes to all of them."""
    divided = [{name: value for name, value in settings.items() if name in kind.model_fields} for kind in kinds]
    unknown = settings.keys() - {name for some in divided for name in some}
    if unknown:
        known = ", ".join(sorted({name for kind in kinds for name in kind.model_fields}))
        raise CommandError(f"there is no setting {min(unknown)!r}; there are {known}")
    return divided


def _checked(kind: type[C], settings: dict[str, Any]) -> C:
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise CommandError(f"the setting {first['loc'][0]!r}: {first['msg']}") from None


def _parsed(settings: list[str] | None) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not equals:
            raise CommandError(f"--set wants NAME=VALUE, not {setting!r}")
        found = parsed[name] = _value(value)
        if isinstance(found, int | float) and not abs(found) <= (MOST if isinstance(found, int) else LARGEST):
            raise CommandError(f"the setting {name!r}: {value[:30]} is too large, or no number")
    return parsed


def _value(text: str) -> Any:
    """What JSON makes of it, or the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise CommandError(f"there is no device {name!r}; there are cpu, cuda and auto")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CommandError("there is no CUDA device here, or this torch was built without CUDA")
    return name


def _cache(data: Path) -> Path:
    """Features of fixed encoders, kept beside the dataset."""
    return data.with_name(f"{data.name}-cache")


def _is_bundle(path: Path) -> bool:
    try:
        read_manifest(path)
    except BundleError:
        return False
    return True


def _is_outdated_demo(path: Path) -> bool:
    """Whether this Lacuna made the bundle for its demo and cannot serve it any more."""
    if read_manifest(path).data.name != DEMO_NAME:
        return False
    try:
        OnlineDGMRec.load(Bundle.load(path))
    except BundleError as error:
        logging.getLogger(__name__).warning("%s; it is made anew", error)
        return True
    return False


def _command() -> str:
    return " ".join(["lacuna", *sys.argv[1:]])


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _exec_service(arguments: list[str], *, module: str = "service") -> None:
    """Become the service. The trainer never imports it: they share bundles and nothing else."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def main() -> None:
    """Run the command; an error is one sentence and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except Exception as error:
        logging.getLogger(__name__).debug("the command failed", exc_info=error)
        sys.stderr.write(f"lacuna: {sentence_of(error)}\n")
        sys.exit(2)
