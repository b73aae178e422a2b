"""What imputation reads of an item: its observed features, and the users who are interested in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from models.arrays import Array
from models.dgmrec.serving import DGMRecServing
from service.domain import Observed
from service.pipeline import history
from service.pipeline.catalogue import Catalogue
from service.pipeline.engine import Engine
from service.pipeline.impute import ImputationInput, UserEvidence
from service.ports import Keys

USERS = 200  # the newest users of an item that its generated parts are made from


def input_of(
    model: DGMRecServing,
    catalogue: Catalogue,
    item_id: str,
    observed: Mapping[str, Observed],
    users: Sequence[UserEvidence] = (),
) -> ImputationInput:
    """An item as imputation wants it."""
    row, tables = model.trained_row(item_id), model.tables
    preference, factors = (None, None) if row is None else (tables["item_preference"][row], tables["item_factor"][row])
    raw = {name: feature.vector for name, feature in observed.items()}
    return ImputationInput(projected(model, observed), users, catalogue.key(item_id), preference, factors, raw)


def projected(model: DGMRecServing, observed: Mapping[str, Observed]) -> dict[str, Array]:
    """Observed features by modality, projected `[r_m]`."""
    return {name: model.project(name, feature.vector[None])[0] for name, feature in observed.items()}


async def users_of(engine: Engine, item_id: str) -> list[UserEvidence]:
    """The newest users who showed interest in an item, as the model sees them without it."""
    model, catalogue = engine.active.dgmrec, engine.memory.catalogue
    evidence = []
    users = await engine.store.interested_users(item_id, limit=USERS, min_rating=engine.active.min_rating)
    for user in users:
        liked = (await engine.memory.histories.of(user)).liked
        if item_id not in liked:
            continue
        others = catalogue.keys(other for other in liked if other != item_id)
        evidence.append(_user_evidence(model, catalogue, user, others, len(liked)))
    return evidence


def _user_evidence(model: DGMRecServing, catalogue: Catalogue, user: str, others: Keys, degree: int) -> UserEvidence:
    user_id = history.user_vector(model, catalogue, user, others).id
    preference = model.preference(user_id[None])[:, 0]
    return UserEvidence(preference, model.user_message(user, user_id, degree), others, model.user_factor(user))
