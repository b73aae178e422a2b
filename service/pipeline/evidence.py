"""What imputation and fold-in read of an item: its observed features, and the users who are interested in it.

A user says of an item what was known of the user when the interest began: the items that the user was interested in by
then. So what follows from it does not change with everything that the user does afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from models.arrays import Array
from models.dgmrec.serving import DGMRecServing
from service.domain import Observed
from service.pipeline.catalogue import Catalogue
from service.pipeline.engine import Engine
from service.pipeline.history import History
from service.pipeline.impute import ImputationInput, UserEvidence
from service.ports import Keys

USERS = 200  # the newest users of an item that count


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


async def users_of(engine: Engine, items: Collection[str]) -> dict[str, list[UserEvidence]]:
    """What the newest users who are interested in items say of them. A user who training did not see, and who was
    interested in nothing before, says nothing."""
    if not items:
        return {}
    interested = await engine.store.interested_users(items, limit=USERS, min_rating=engine.active.min_rating)
    everybody = dict.fromkeys(user for users in interested.values() for user in users)
    histories = await engine.memory.histories.of_all(everybody)
    evidence = {}
    for item, users in interested.items():
        evidence[item] = _evidence_of(engine, item, {user: histories[user] for user in users})
        await asyncio.sleep(0)  # what is computed of one item's users takes long enough
    return evidence


def _evidence_of(engine: Engine, item: str, users: Mapping[str, History]) -> list[UserEvidence]:
    model, catalogue = engine.active.dgmrec, engine.memory.catalogue
    evidence = []
    for user, history in users.items():
        earlier = history.earlier(item)
        if earlier is None:
            continue
        others = catalogue.keys(earlier)
        if len(others) or model.knows_user(user):
            evidence.append(_user_evidence(model, catalogue, user, others))
    return evidence


def _user_evidence(model: DGMRecServing, catalogue: Catalogue, user: str, others: Keys) -> UserEvidence:
    user_id = model.user_id(user, catalogue.rows.get("base", others))
    preference = model.user_preference(user, user_id)
    return UserEvidence(preference, model.user_message(user, user_id, len(others) + 1), others, model.user_factor(user))
