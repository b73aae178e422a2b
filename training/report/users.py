"""What a bundle's IRIS recommends to some users, and the items of their histories that speak for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from models.arrays import Mask, Rows
from models.bundle import CATALOGUE_FEATURES, CATALOGUE_FEEDBACK, CATALOGUE_ITEMS, Bundle
from models.dgmrec.serving import DGMRecServing
from models.iris.serving import Explained, IRISServing
from models.modality import ModalBatch
from training.report.results import ReportError
from training.report.sections import Block, Chapter, ItemCard, Recommendation, Section

RECOMMENDED, REASONS = 3, 3


@dataclass(frozen=True)
class Catalogue:
    """What a bundle knows of items and users: bodies, features `[n, dim_m]`, which are real `[n, M]`, rows by user."""

    bodies: Sequence[Mapping[str, Any]]
    content: ModalBatch  # generated cells count as present, for a model that reads them
    observed: Mask
    histories: Mapping[str, list[int]]


def users_chapter(path: Path, users: Sequence[str]) -> Chapter:
    """The first recommendations of some users, each with the history items of the largest relevance, by pictures.

    Raises:
        BundleError: the bundle is damaged.
        ReportError: it holds no IRIS or no catalogue, or does not know a user.
    """
    bundle = Bundle.load(path)
    iris = IRISServing.load(bundle)
    if iris is None or CATALOGUE_FEEDBACK not in bundle.manifest.files:
        raise ReportError(f"the bundle {path} holds no iris with its catalogue, so that nothing is known of users")
    catalogue = _read(bundle, generated=iris.reads_generated)
    unknown = next((user for user in users if user not in catalogue.histories), None)
    if unknown is not None:
        raise ReportError(f"the catalogue of the bundle {path} holds no feedback of the user {unknown!r}")
    blocks = [Block(f"User {user}", recommendations=list(_recommended(iris, catalogue, user))) for user in users]
    about = (
        f"Bundle {bundle.version}, trained on {bundle.manifest.data.name}. On the left what is recommended, with the "
        "probability that the model gives it among its sampled negatives; on the right the items of the user's own "
        "history with the largest relevance, which is what each adds to the log-odds, and the modality that most of "
        "it falls to. A modality in brackets was generated."
    )
    section = Section("users-0", "Recommendations and their reasons", about, blocks, bundle.manifest.data.synthetic)
    return Chapter("users", "What speaks for a recommendation", [section])


def _read(bundle: Bundle, *, generated: bool) -> Catalogue:
    lines = (bundle.path / CATALOGUE_ITEMS).read_bytes().splitlines()
    bodies = [orjson.loads(line) for line in lines]
    ids = [body["id"] for body in bodies]
    arrays = bundle.tensors(CATALOGUE_FEATURES)
    names = [name for name in arrays if f"{name}.observed" in arrays]
    observed = np.stack([arrays[f"{name}.observed"].astype(np.bool_) for name in names], axis=1)
    content = ModalBatch({name: torch.from_numpy(arrays[name]) for name in names}, torch.from_numpy(observed))
    content = generated_by(bundle, content, ids) if generated else content
    return Catalogue(bodies, content, observed, _histories(bundle, ids))


def generated_by(bundle: Bundle, content: ModalBatch, ids: Sequence[str]) -> ModalBatch:
    """Content of some items whose missing cells hold what the bundle's DGMRec generated, where it holds one."""
    if "dgmrec" not in bundle.manifest.models:
        return content
    model = DGMRecServing.load(bundle)
    places = torch.tensor([-1 if (row := model.items.get(item)) is None else row for item in ids])
    features, observed = dict(content.features), content.observed.clone()
    for column, name in enumerate(content.names):
        if name not in model.names or not model.has_mean(name):
            continue
        rows = ((places >= 0) & ~content.observed[:, column]).nonzero().squeeze(1)
        generated = model.unproject(name, model.tables[f"feature.{name}"][places[rows].numpy()])
        features[name] = features[name].index_copy(0, rows, torch.from_numpy(generated))
        observed[rows, column] = True
    return ModalBatch(features, observed)


def _histories(bundle: Bundle, ids: Sequence[str]) -> dict[str, list[int]]:
    """Rows of the items that each user has shown interest in, in the order of the events."""
    rows, least = {item: row for row, item in enumerate(ids)}, bundle.manifest.data.min_rating
    histories: dict[str, dict[int, None]] = {}
    with (bundle.path / CATALOGUE_FEEDBACK).open("rb") as stream:
        for event in map(json.loads, stream):
            disliked = least is not None and event["type"] in ("rating", "review") and event.get("value", least) < least
            if not disliked and event["item"] in rows:
                histories.setdefault(event["user"], {})[rows[event["item"]]] = None
    return {user: list(items) for user, items in histories.items()}


def _recommended(iris: IRISServing, catalogue: Catalogue, user: str) -> Iterator[Recommendation]:
    content, history = catalogue.content, np.array(catalogue.histories[user], dtype=np.int64)
    columns = [content.names.index(name) for name in iris.names]
    sides = iris.sides(
        {name: content.features[name].numpy() for name in iris.names},
        content.observed[:, columns].numpy(),
        [body["id"] for body in catalogue.bodies],
    )
    past, others = sides.select(history), np.setdiff1d(np.arange(len(sides)), history)
    best = others[np.argsort(-iris.score(past, sides.select(others)), kind="stable")[:RECOMMENDED]]
    explanation = iris.explain(past, sides.select(best))
    for place, row in enumerate(best):
        probability = 1 / (1 + np.exp(-float(explanation.score[place])))
        reasons = np.argsort(-explanation.relevance[place], kind="stable")[:REASONS]
        yield Recommendation(
            item_card(catalogue, int(row), f"{probability:.3f}"),
            [
                item_card(catalogue, int(history[item]), _why(iris, catalogue, explanation, place, int(item), history))
                for item in reasons
            ],
        )


def _why(iris: IRISServing, catalogue: Catalogue, explanation: Explained, place: int, item: int, history: Rows) -> str:
    """The relevance, and the modality that most of it falls to."""
    relevance, shares = f"{explanation.relevance[place, item]:.3f}", explanation.shares[place, item]
    if not shares.any():
        return relevance
    name = iris.names[int(shares.argmax())]
    observed = catalogue.observed[history[item], catalogue.content.names.index(name)]
    return f"{relevance}, {shares.max():.0%} {name if observed else f'[{name}]'}"


def item_card(catalogue: Catalogue, row: int, note: str) -> ItemCard:
    """An item by its title, or else its id, and its picture."""
    body = catalogue.bodies[row]
    pictures = [
        content["base64"]
        for content in (body.get("modalities") or {}).values()
        if isinstance(content, dict) and "base64" in content
    ]
    return ItemCard(body.get("title") or body["id"], note, pictures[0] if pictures else None)
