"""Options that several commands share, and what is read from them."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from models.bundle import BundleError, read_manifest
from models.feedback import AUTO, HIGHEST, LOWEST, MinRating
from training.splits import SplitName

MOST, LARGEST = 2**31 - 1, 1e30  # of a setting that is a whole number, and of any other


class CommandError(Exception):
    """What a person did wrong; the message is one sentence."""


def key_of(file: Path | None) -> str | None:
    """The API key in a file; without one, that of the environment, if there is any."""
    return os.environ.get("LACUNA_KEY") if file is None else read_line(file)


def read_line(file: Path) -> str:
    """The one line of a file that holds a secret."""
    try:
        text = file.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise CommandError(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    if not text or len(text.splitlines()) > 1:
        raise CommandError(f"{file} holds no one line of text")
    return text


def _place(path: Path | None) -> Path | None:
    """A folder by its whole name, beside which there may be others."""
    if path is None:
        return None
    whole = Path(os.path.realpath(path))
    if not whole.name or whole.is_symlink():
        raise CommandError(f"{path} is no place for a folder; choose another")
    return whole


Data = Annotated[Path, typer.Option("--data", callback=_place, help="A prepared dataset (`lacuna prepare` makes one).")]
Out = Annotated[
    Path, typer.Option("--out", callback=_place, help="Where the result goes; replaced if it is one already.")
]
BUDGET = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_budget(text: str) -> float:
    """Seconds of `90`, `90s`, `10m` or `1h`."""
    found = BUDGET.fullmatch(text.strip().lower())
    if found is None:
        raise CommandError(f"--budget takes a time such as 90s, 10m or 1h, or 0, not {text!r}")
    return float(found[1]) * UNITS[found[2]]


Budget = Annotated[
    str,
    typer.Option(
        help="For dgmrec: about how long to choose settings by the validation part, as 90s, 10m or 1h; what --set "
        "gives stays. 0 takes the defaults.",
    ),
]
Split = Annotated[
    SplitName,
    typer.Option(
        "--split",
        help="For dgmrec: what its metrics and choices are measured on. auto: the dataset's published split, or a "
        "random one; time: each user's last fifth is the test part, the tenth before it the validation part.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=MOST, help="Seed of everything random.")]
Missing = Annotated[float, typer.Option(min=0, max=0.95, help="Share of item-modality cells to withhold.")]
Mask = Annotated[str | None, typer.Option(help="A published mask of the dataset, instead of --missing.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the model or the trainer, as --set epochs=50."),
]
Form = Annotated[
    str | None,
    typer.Option("--form", metavar="lacuna|paper", help="paper: the model as its paper has it; as --set form=paper."),
]
ImageEncoderName = Annotated[
    str, typer.Option(help="catalogue (trained on the catalogue's own pictures), torchvision:<name>, or auto.")
]
ImageWeights = Annotated[
    Path | None, typer.Option(envvar="LACUNA_IMAGE_WEIGHTS", help="Weights of the torchvision network (safetensors).")
]
MinRatingText = Annotated[
    str | None,
    typer.Option(
        "--min-rating",
        metavar="1..5|none|auto",
        help="Ratings below it show no interest: they push the item down for that user and make nothing popular. "
        "none: every rating shows interest. Without it, and with auto, the data decide (4, or less where ratings are "
        "low), or what the dataset was prepared with.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads for computation.")]


def parse_settings(settings: list[str] | None, form: str | None = None) -> dict[str, Any]:
    parsed: dict[str, Any] = {} if form is None else {"form": form}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not equals:
            raise CommandError(f"--set wants NAME=VALUE, not {setting!r}")
        number = parsed[name] = _value(value)
        if isinstance(number, int | float) and not abs(number) <= (MOST if isinstance(number, int) else LARGEST):
            raise CommandError(f"the setting {name!r}: {value[:30]} is too large, or no number")
    return parsed


def parse_min_rating(text: str | None) -> MinRating:
    if text is None or text.lower() == AUTO:
        return AUTO
    if text.lower() == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not LOWEST <= value <= HIGHEST:
        raise CommandError(f"--min-rating is a number from 1 to 5, none or auto, not {text!r}")
    return value


def interest_sentence(min_rating: float | None) -> str:
    if min_rating is None:
        return "every rating counts as interest, also a low one (--min-rating changes it)"
    return f"ratings of {min_rating:g} and more count as interest, lower ones push down (--min-rating changes it)"


def _value(text: str) -> Any:
    """What JSON makes of it, or the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parse_device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise CommandError(f"there is no device {name!r}; there are cpu, cuda and auto")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CommandError("there is no CUDA device here, or this torch was built without CUDA")
    return name


def cache_of(data: Path) -> Path:
    """Features of fixed encoders, kept beside the dataset."""
    return data.with_name(f"{data.name}-cache")


def is_bundle(path: Path) -> bool:
    try:
        read_manifest(path)
    except BundleError:
        return False
    return True


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
