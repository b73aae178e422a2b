"""`lacuna evaluate` and `lacuna report`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from models.files import replacing
from training.cli.configs import dgmrec_configs, iris_configs, lrmm_configs, with_device
from training.cli.options import (
    Cache,
    CommandError,
    Data,
    Device,
    Form,
    ImageEncoderName,
    ImageWeights,
    Mask,
    Settings,
    Threads,
    cache_folder,
    parse_budget,
    parse_device,
    parse_settings,
    print_json,
)
from training.cli.train import ENCODER_SHARE
from training.content import DataOptions
from training.datasets import load_dataset
from training.evaluate import (
    LEAVE_ONE_OUT_MODELS,
    MODELS,
    RATING_MODELS,
    LeaveOneOutPlan,
    Plan,
    Protocol,
    RatingPlan,
    evaluate,
    evaluate_leave_one_out,
    evaluate_rating,
)
from training.progress import Terminal
from training.report.page import make_report
from training.splits import SplitName
from training.titles import TitleAsText

AS_TRAINED = (Protocol.STRANGER, Protocol.POSTED)  # protocols that measure what `lacuna train` gives
UNLEVELLED = (Protocol.RATIO, Protocol.STRANGER, Protocol.POSTED)  # protocols that withhold no cells by themselves


def evaluate_command(
    model: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join(MODELS)}; imputers only under retrieval. "
            f"Under rating: {', '.join(RATING_MODELS)}. Under leave-one-out: {', '.join(LEAVE_ONE_OUT_MODELS)}."
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
            "Without it and --mask, equal shares of the items lack 0, 1, ..., all modalities. "
            "Under rating: the probability that a training pair lacks a modality, reviews included.",
        ),
    ] = None,
    mask: Mask = None,
    imputer: Annotated[
        str | None, typer.Option(help="Fill missing cells by this imputer before dgmrec or content sees them.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Number of runs, with seeds 1, 2, ...")] = 3,
    split: Annotated[
        str | None,
        typer.Option(
            help="Under leave-one-out: a published split for all seeds, instead of random ones. Under the rankings: "
            f"{', '.join(SplitName)} (see `lacuna train`)."
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Under stranger: how long dgmrec chooses its settings, as in `lacuna train`.")
    ] = "0",
    validation_only: Annotated[
        bool,
        typer.Option(
            "--validation-only",
            help="Under new-items and posted: draw other items as new for each seed and leave the test part unseen, "
            "to choose settings by.",
        ),
    ] = False,
    variant: Annotated[str | None, typer.Option(help="Name of these settings in the result.")] = None,
    item_reviews: Annotated[
        int | None, typer.Option(min=0, help="Under rating: at most so many training reviews tell of an item.")
    ] = None,
    item_ratings: Annotated[
        int | None,
        typer.Option(
            min=1, help="Under rating: at most so many training ratings of an item are left, for every model."
        ),
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="Under rating: the dataset that is rated by what lrmm learned from --data.")
    ] = None,
    title_as_text: Annotated[
        TitleAsText | None,
        typer.Option(
            "--title-as-text",
            help="Whether the title of an item without a text counts as its text (see `lacuna train`). Without it: "
            "auto under stranger and posted, as a training has it; else yes, so that all models see the same cells.",
        ),
    ] = None,
    image_encoder: ImageEncoderName = "auto",
    image_weights: ImageWeights = None,
    device: Device = "auto",
    threads: Threads = 2,
    cache: Cache = None,
    form: Form = None,
    settings: Settings = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the raw result goes.")] = None,
) -> None:
    """Train and test over several seeds; the result holds every seed's figures, their mean and spread."""
    torch.set_num_threads(threads)
    _check_place(json_file)
    chosen = parse_settings(settings, form)
    options = DataOptions(missing or 0.0, mask, image_encoder, image_weights, cache_folder(cache), threads)
    options = _as_measured(options, protocol, title_as_text, parse_budget(budget))
    run: Callable[..., dict[str, Any]]
    given = {
        "--mask": mask is not None,
        "--imputer": imputer is not None,
        "--split": split is not None,
        "--budget": parse_budget(budget) > 0,
        "--validation-only": validation_only,
        "--item-reviews": item_reviews is not None,
        "--item-ratings": item_ratings is not None,
        "--target": target is not None,
    }
    _refuse_unused(protocol, [name for name, is_given in given.items() if is_given])
    if protocol is Protocol.RATING:
        _check_model(model, protocol, RATING_MODELS)
        whole = replace(options, missing=0.0)
        other = None if target is None else load_dataset(target)
        configs = lrmm_configs(with_device(chosen, device))
        plan_of_ratings = RatingPlan(model, *configs, whole, item_reviews, other, missing or 0.0, item_ratings)
        run = partial(evaluate_rating, plan=plan_of_ratings)
    elif protocol is Protocol.LEAVE_ONE_OUT:
        _check_model(model, protocol, LEAVE_ONE_OUT_MODELS)
        run = partial(evaluate_leave_one_out, plan=LeaveOneOutPlan(model, *iris_configs(chosen), options, split))
    else:
        levels = missing is None and mask is None and protocol not in UNLEVELLED
        settings_given = {**chosen, "device": parse_device(device)}
        plan = Plan(
            model,
            protocol,
            replace(options, levels=levels, split=_split(protocol, split)),
            dgmrec_configs(settings_given),
            imputer,
            validation_only,
            parse_budget(budget) if model == "dgmrec" else 0.0,
            frozenset(settings_given),
        )
        run = partial(evaluate, plan=plan)
    dataset = load_dataset(data)
    with Terminal() as terminal:
        result = run(
            dataset, seeds=seeds, variant=variant or _variant_of(chosen), command=_command(), terminal=terminal
        )
    _write_result(result, json_file)


def _as_measured(
    options: DataOptions, protocol: Protocol, title_as_text: TitleAsText | None, seconds: float
) -> DataOptions:
    """With what the protocol has titles count as, and the share of the budget that an image encoder is trained in."""
    titles = title_as_text or (TitleAsText.AUTO if protocol in AS_TRAINED else TitleAsText.YES)
    return replace(options, title_as_text=titles, encoder_seconds=seconds * ENCODER_SHARE or None)


OF_RATING = ("--item-reviews", "--item-ratings", "--target")
UNUSED = {
    Protocol.RATING: ("--mask", "--imputer", "--split", "--budget", "--validation-only"),
    Protocol.LEAVE_ONE_OUT: (*OF_RATING, "--imputer", "--budget", "--validation-only"),
}  # what the rankings do not use of the others they say themselves


def _refuse_unused(protocol: Protocol, given: Sequence[str]) -> None:
    for name in UNUSED.get(protocol, OF_RATING):
        if name in given:
            raise CommandError(f"the protocol {protocol.value} has no use for {name}")


def _variant_of(settings: Mapping[str, Any]) -> str | None:
    """What a result is called that is not of the default form."""
    return "form-paper" if settings.get("form") == "paper" else None


def _check_model(model: str, protocol: Protocol, models: Sequence[str]) -> None:
    if model not in models:
        raise CommandError(f"the protocol {protocol.value} has no model {model!r}; it has {', '.join(models)}")


def _split(protocol: Protocol, split: str | None) -> SplitName:
    if split not in (None, *SplitName):
        raise CommandError(f"the protocol {protocol.value} has no split {split!r}; it has {', '.join(SplitName)}")
    return SplitName(split or SplitName.AUTO)


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
    print_json({"mean": result["mean"], "std": result["std"]})


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


def _command() -> str:
    return " ".join(["lacuna", *sys.argv[1:]])
