"""Settings by name (`--set NAME=VALUE`) for the models and the trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from models.dgmrec.config import OLD_NAMES as DGMREC_OLD_NAMES
from models.dgmrec.config import DGMRecConfig
from models.iris.config import IRISConfig, paper_settings
from models.lrmm.config import OLD_NAMES as LRMM_OLD_NAMES
from models.lrmm.config import LRMMConfig, LRMMPaperConfig
from models.renamed import OldNames, refuse_old_names
from training.cli.options import CommandError, parse_device
from training.dgmrec.recipe import PAPER_TRAINER as DGMREC_PAPER_TRAINER
from training.dgmrec.recipe import DGMRecRecipe
from training.iris.recipe import IRISRecipe
from training.iris.source import PAPER_TRAINER, PAPER_TRAINING, IRISTraining, foreign_to
from training.iris.source import TRAINER as IRIS_TRAINER
from training.lrmm.paper import TRAINER_OF_PAPER
from training.lrmm.recipe import LRMMRecipe
from training.lrmm.task import TRAINER as RATING_TRAINER
from training.recipe import Recipe
from training.trainer import OLD_NAMES as TRAINER_OLD_NAMES
from training.trainer import TrainerConfig

C = TypeVar("C", bound=BaseModel)

OLD_NAMES: dict[type[BaseModel], OldNames] = {
    DGMRecConfig: DGMREC_OLD_NAMES,
    LRMMConfig: LRMM_OLD_NAMES,
    TrainerConfig: TRAINER_OLD_NAMES,
}
# The settings of each model, by its name in a bundle.
KINDS: dict[str, tuple[type[BaseModel], ...]] = {
    DGMRecRecipe.name: (DGMRecConfig, TrainerConfig),
    IRISRecipe.name: (IRISConfig, IRISTraining, TrainerConfig),
    LRMMRecipe.name: (LRMMConfig, TrainerConfig),
}
# In the order in which `all` trains them: what comes later reads what came before.
RECIPES: dict[str, Callable[[dict[str, Any]], Recipe]] = {
    DGMRecRecipe.name: lambda settings: DGMRecRecipe(*dgmrec_configs(settings), pinned=frozenset(settings)),
    IRISRecipe.name: lambda settings: IRISRecipe(*iris_configs(settings)),
    LRMMRecipe.name: lambda settings: LRMMRecipe(*lrmm_configs(settings)),
}


def all_recipes(settings: dict[str, Any]) -> list[Recipe]:
    """Every recipe with those of the settings that it has, or that are its own (`iris.epochs`).

    Raises:
        CommandError: none of them has a setting, or it cannot have the value.
    """
    common = {name: value for name, value in settings.items() if name.partition(".")[0] not in KINDS}
    divide_settings(common, *dict.fromkeys(kind for kinds in KINDS.values() for kind in kinds))  # misspelt names
    recipes = []
    for model, kinds in KINDS.items():
        shared = {name: value for name, value in common.items() if any(name in kind.model_fields for kind in kinds)}
        own = {
            name.removeprefix(f"{model}."): value for name, value in settings.items() if name.startswith(f"{model}.")
        }
        recipes.append(RECIPES[model](shared | own))
    return recipes


def lrmm_configs(settings: dict[str, Any]) -> tuple[LRMMConfig | LRMMPaperConfig, TrainerConfig]:
    if settings.get("form") == "paper":
        return _validated(settings, LRMMPaperConfig, TRAINER_OF_PAPER.model_dump())
    return _validated(settings, LRMMConfig, RATING_TRAINER.model_dump())


def with_device(settings: dict[str, Any], device: str) -> dict[str, Any]:
    """LRMM's settings with the device of the command, where its form is one that trains on it."""
    return {"device": parse_device(device), **settings} if settings.get("form") == "paper" else settings


def iris_configs(settings: dict[str, Any]) -> tuple[IRISConfig, IRISTraining, TrainerConfig]:
    model, training, trainer = divide_settings(settings, IRISConfig, IRISTraining, TrainerConfig)
    paper = settings.get("form") == "paper"
    if foreign := sorted(foreign_to("paper" if paper else "lacuna") & settings.keys()):
        raise CommandError(f"the setting {foreign[0]!r} belongs to form={'lacuna' if paper else 'paper'}")
    if paper:
        size = model.get("embedding_size")
        model = paper_settings(*([size] if isinstance(size, int) else [])) | model
        training = PAPER_TRAINING | training
        if not isinstance(k := training["negatives"], int) or k < 1:
            raise CommandError(f"the setting 'negatives': form=paper samples a whole number of them, not {k!r}")
    usual = (PAPER_TRAINER if paper else IRIS_TRAINER).model_dump()
    return _checked(IRISConfig, model), _checked(IRISTraining, training), _checked(TrainerConfig, usual | trainer)


def dgmrec_configs(settings: dict[str, Any]) -> tuple[DGMRecConfig, TrainerConfig]:
    return _validated(settings, DGMRecConfig, DGMREC_PAPER_TRAINER if settings.get("form") == "paper" else {})


def _validated(settings: dict[str, Any], kind: type[C], usual: dict[str, Any]) -> tuple[C, TrainerConfig]:
    """Settings by name for the model and the trainer (over its usual ones here)."""
    model, trainer = divide_settings(settings, kind, TrainerConfig)
    return _checked(kind, model), _checked(TrainerConfig, usual | trainer)


def divide_settings(settings: dict[str, Any], *kinds: type[BaseModel]) -> list[dict[str, Any]]:
    """The settings of each kind; a name that several have (seed) goes to all of them."""
    divided = [{name: value for name, value in settings.items() if name in kind.model_fields} for kind in kinds]
    unknown = settings.keys() - {name for some in divided for name in some}
    for kind in kinds:
        try:
            refuse_old_names(unknown, OLD_NAMES.get(kind, {}))
        except ValueError as error:
            raise CommandError(str(error)) from None
    if unknown:
        known = ", ".join(sorted({name for kind in kinds for name in kind.model_fields}))
        raise CommandError(f"there is no setting {min(unknown)!r}; there are {known}")
    return divided


def _checked(kind: type[C], settings: dict[str, Any]) -> C:
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        where = f"the setting {first['loc'][0]!r}: " if first["loc"] else ""  # some fit each other or not
        raise CommandError(f"{where}{reason}") from None
