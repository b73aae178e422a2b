"""Every item whose generated features change with another item's observed ones is found before it is looked at."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from models.dgmrec.serving import DGMRecServing
from service.domain import Observed, State
from service.pipeline import dependents, vectors
from service.pipeline.active import Active
from service.pipeline.catalogue import Catalogue, Entry, Shape
from service.pipeline.complete import Computed, Content, complete
from service.ports import FeatureChange
from tests.fakes import BruteForceIndex
from tests.service.unit.test_whole_items import Trained

KEYS = 40


@pytest.fixture(scope="module")
def active() -> Active:
    """With a generator that reads preferences and neighbours."""
    trained = Trained(1)
    model = trained.task.module
    for name in model.names:
        model.tower(name).trust.fill_(0.6)
    online = DGMRecServing(model, trained.online.tables, trained.online.users, trained.online.items)
    trained.active.dgmrec = online  # type: ignore[misc]  # a namespace
    return cast(Active, trained.active)


class World:
    """Items with random features observed, all of which came after training but some."""

    def __init__(self, active: Active, seed: int) -> None:
        self.active, self.rng = active, np.random.default_rng(seed)
        model = active.dgmrec
        shape = Shape(model.ranks, model.size, model.layers, model.config.neighbours, model.config.cold_neighbours)
        self.catalogue = Catalogue(shape, BruteForceIndex, model.trained_row)
        self.contents: dict[int, Content] = {}
        for key in range(KEYS):
            self.contents[key] = self.content(key)
        self.put(list(self.contents))
        self.renew()

    def content(self, key: int) -> Content:
        observed = {
            name: Observed(self.rng.standard_normal(self.active.dgmrec.specs[name].dim).astype(np.float32), "vector")
            for name in self.active.dgmrec.names
            if self.rng.random() < 0.6
        }
        return Content(f"i{key}" if key % 4 == 0 else f"later-{key}", observed)

    def computed(self) -> dict[str, Computed]:
        contents = list(self.contents.values())
        return {
            content.id: made
            for content, made in zip(contents, complete(self.active, self.catalogue, contents), strict=True)
        }

    def put(self, keys: list[int]) -> None:
        """Twice, since an item's neighbours may be among them."""
        for _ in range(2):
            made = complete(self.active, self.catalogue, [self.contents[key] for key in keys])
            rows = []
            for key, result in zip(keys, made, strict=True):
                content = self.contents[key]
                states = {name: _state(name, content, result) for name in self.active.dgmrec.names}
                rows.append((Entry(key, content.id, None, (), True, 1, 0.0, states, {}), result.derived))
            vectors.put(self.active.dgmrec, self.catalogue, rows)

    def renew(self) -> None:
        while vectors.renew(self.active.dgmrec, self.catalogue):
            pass


def _state(name: str, content: Content, computed: Computed) -> State:
    if name in content.observed:
        return State.OBSERVED
    return State.GENERATED if name in computed.generated else State.ABSENT


@pytest.mark.parametrize("seed", range(15))
def test_all_that_changes_is_found(active: Active, seed: int) -> None:
    world = World(active, seed)
    before = world.computed()
    key = int(world.rng.integers(KEYS))
    kind = ("arrives", "departs", "changes")[seed % 3]
    former = world.contents[key]
    packed = dependents.pack(active.dgmrec, former.observed)
    if kind == "departs":
        world.catalogue.remove(former.id)
        del world.contents[key]
    else:
        key = KEYS if kind == "arrives" else key
        item_id = "arrived" if kind == "arrives" else former.id
        world.contents[key] = Content(item_id, world.content(key).observed)
        world.put([key])
    change = FeatureChange(1, former.id if kind != "arrives" else "arrived", b"" if kind == "arrives" else packed)
    found = {entry.id for entry in dependents.find(active.dgmrec, world.catalogue, [change])}
    after = world.computed()
    changed = {
        item
        for item in before.keys() & after.keys() - {former.id if kind != "arrives" else "arrived"}
        for name, feature in after[item].derived.features.items()
        if not np.allclose(feature, before[item].derived.features[name], atol=1e-6)
    }
    assert changed <= found
    assert seed or changed, "nothing follows from anything here"


def test_features_are_packed_as_they_are(active: Active) -> None:
    model = active.dgmrec
    world = World(active, 0)
    for content in world.contents.values():
        packed = dependents.pack(model, content.observed)
        unpacked = dependents.unpack(model, world.catalogue.shape, packed)
        assert unpacked.keys() == content.observed.keys()
        for name, feature in unpacked.items():
            np.testing.assert_allclose(feature, model.project(name, content.observed[name].vector[None])[0], rtol=1e-6)
    assert dependents.unpack(model, world.catalogue.shape, b"\0" * 12) == {}
