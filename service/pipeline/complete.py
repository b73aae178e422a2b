"""What is stored of an item's model state: its generated features, and what its users make of it.

It follows from the item's own features, from its users, and from the *observed* features of its neighbours: from
nothing that is generated or computed of other items. So it is the same whenever it is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.arrays import Array
from models.dgmrec.serving import DGMRecServing
from models.iris.serving import IRISServing
from models.words import title_and_text
from service.domain import Generated, Observed, State
from service.pipeline.active import Active
from service.pipeline.catalogue import Catalogue, Derived
from service.pipeline.engine import Engine
from service.pipeline.evidence import input_of, users_of
from service.pipeline.impute import Completed, ImputationInput, UserEvidence, impute

TEXT = "text"  # the modality whose words are read
GROWN = 2  # times as many users as training knew, from which on an item's own users complete it


@dataclass(frozen=True, slots=True)
class Content:
    """An item to be completed: its id, its observed features, what its users say of it, how many are interested in it,
    and its title."""

    id: str
    observed: Mapping[str, Observed]
    users: Sequence[UserEvidence] = ()
    interested: int = 0
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Computed:
    """What the model makes of an item."""

    generated: Mapping[str, Generated]
    derived: Derived


def reads_users(model: DGMRecServing, item_id: str, observed: Mapping[str, Observed]) -> bool:
    """Whether what is stored of an item may depend on its users: generated features do, and what they make of an item
    that came after training."""
    return model.trained_row(item_id) is None or any(name not in observed for name in model.names)


async def with_users(
    engine: Engine, items: Mapping[str, Mapping[str, Observed]], titles: Mapping[str, str | None]
) -> list[Content]:
    """Items, by id with what is observed of them and their titles, with their users as far as these count."""
    model = engine.active.dgmrec
    counted = [item for item, observed in items.items() if as_in_training(model, item, observed)]
    counts = await engine.store.item_counts(counted, min_rating=engine.active.min_rating) if counted else {}
    contents = [
        Content(item, observed, interested=counts.get(item, 0), title=titles[item]) for item, observed in items.items()
    ]
    reading = [
        content.id
        for content in contents
        if reads_users(model, content.id, content.observed) and not _kept(model, content)
    ]
    users = await users_of(engine, reading)
    return [replace(content, users=users.get(content.id, ())) for content in contents]


def complete(active: Active, catalogue: Catalogue, contents: Sequence[Content]) -> list[Computed]:
    """Impute what items lack, and compute what is stored of them. The catalogue is read, not changed."""
    model = active.dgmrec
    inputs = [input_of(model, catalogue, item.id, item.observed, item.users) for item in contents]
    kept = [_kept(model, item) for item in contents]
    imputed = iter(impute(model, catalogue, [item for item, is_kept in zip(inputs, kept, strict=True) if not is_kept]))
    completed = [
        _trained(model, content, item) if is_kept else next(imputed)
        for content, item, is_kept in zip(contents, inputs, kept, strict=True)
    ]
    sides = _sides(model, active.iris, [item.id for item in contents], inputs, completed)
    return [
        Computed(
            result.generated,
            Derived(
                result.features,
                *_folded(model, item),
                result.reach,
                {name: side[row] for name, side in sides.items()},
                words_of(model, item),
            ),
        )
        for row, (item, result) in enumerate(zip(contents, completed, strict=True))
    ]


def as_in_training(model: DGMRecServing, item_id: str, observed: Mapping[str, Observed]) -> bool:
    """Whether training generated what an item lacks, from what is observed of it now."""
    row = model.trained_row(item_id)
    if row is None or model.config.imputation != "generate":
        return False
    cells: list[bool] = model.tables["observed"][row].astype(bool).tolist()
    return [name in observed for name in model.names] == cells


def _kept(model: DGMRecServing, item: Content) -> bool:
    """Whether an item stays as training completed it: while it lacks the same, and training knew most of its users."""
    row = model.trained_row(item.id)
    return (
        row is not None
        and as_in_training(model, item.id, item.observed)
        and item.interested <= GROWN * float(model.tables["item_degree"][row])
    )


def _trained(model: DGMRecServing, item: Content, given: ImputationInput) -> Completed:
    """An item as it was completed at the end of training."""
    row = model.items.row(item.id)
    features = {name: model.tables[f"feature.{name}"][row] for name in model.names} | dict(given.features)
    lacking = [name for name in model.names if name not in given.features]
    generated = {name: _trained_cell(model, item, name, row) for name in lacking if model.has_mean(name)}
    states = dict.fromkeys(model.names, State.OBSERVED) | dict.fromkeys(lacking, State.ABSENT)
    states |= dict.fromkeys(generated, State.GENERATED)
    return Completed(features, generated, states, np.full(len(model.names), np.inf, dtype=np.float32))


def _trained_cell(model: DGMRecServing, item: Content, name: str, row: int) -> Generated:
    confidence = float(model.tables["confidence"][row, model.names.index(name)])
    feature = model.tables[f"feature.{name}"][row]
    basis = (*(other for other in model.names if other in item.observed), "users")
    return Generated(model.unproject(name, feature[None])[0], model.generator(name), round(confidence, 4), basis)


def _folded(model: DGMRecServing, item: Content) -> tuple[Array, float]:
    """What its users make of an item that came after training `[d]`, and how many they are."""
    if model.trained_row(item.id) is not None or not item.users:
        return np.zeros(model.size, dtype=np.float32), 0.0
    messages = np.array([user.message for user in item.users], dtype=np.float32)
    return model.folded(messages), float(len(messages))


def words_of(model: DGMRecServing, item: Content) -> Array | None:
    """What the words of its title and text lead to expect of an item that came after training."""
    text = item.observed.get(TEXT)
    if model.trained_row(item.id) is not None or text is None:
        return None
    return model.words(title_and_text(item.title, text.text))


def _sides(
    model: DGMRecServing,
    iris: IRISServing | None,
    ids: Sequence[str],
    inputs: Sequence[ImputationInput],
    completed: Sequence[Completed],
) -> Mapping[str, Array]:
    """What IRIS needs of the items, by field `[b, ...]`, from raw features: the observed ones, else the generated."""
    if iris is None or not inputs:
        return {}
    features = {
        name: np.stack([_raw(model.specs[name].dim, name, *pair) for pair in zip(inputs, completed, strict=True)])
        for name in iris.names
    }
    told = (State.OBSERVED, State.GENERATED) if iris.reads_generated else (State.OBSERVED,)
    present = [[item.states[name] in told for name in iris.names] for item in completed]
    sides = iris.sides(features, np.array(present, dtype=np.bool_), ids)
    return {name: getattr(sides, name) for name in iris.shapes}


def _raw(dim: int, name: str, item: ImputationInput, completed: Completed) -> Array:
    if name in item.raw:
        return item.raw[name]
    if name in completed.generated:
        return completed.generated[name].vector
    return np.zeros(dim, dtype=np.float32)
