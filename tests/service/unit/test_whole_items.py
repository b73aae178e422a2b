"""Whole items through the pipeline against the trained model: from what is observed and who the users are to the final
vector, with neighbours from an index here and from graphs there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.dgmrec.config import PAPER
from models.dgmrec.model import ItemContent
from models.dgmrec.serving import DGMRecServing
from models.modality import ModalBatch
from models.vocabulary import Vocabulary
from service.domain import Observed, State
from service.pipeline import vectors
from service.pipeline.active import Active
from service.pipeline.catalogue import Catalogue, Derived, Entry, Shape
from service.pipeline.complete import Content, words_of
from service.pipeline.impute import Completed, ImputationInput, UserEvidence, impute
from tests.fakes import BruteForceIndex
from tests.training.tiny import CONFIG, ITEMS, NEW, TRAINER, USERS, checkerboard
from training.dgmrec.recipe import serving_model
from training.dgmrec.task import DGMRecTask, TopNData
from training.trainer import train

FIRST_KEY = 7  # an item's key is its row from here on
HALF_COLD = NEW[1]  # an item without interactions, which lacks a modality
BARE = 5  # an item that lacks everything
CLOSE = {"rtol": 1e-3, "atol": 2e-5}


class Trained:
    """A small training, and the service's pipeline over the same catalogue."""

    def __init__(self, item_layers: int, **settings: Any) -> None:
        whole = checkerboard()
        missing = torch.zeros_like(whole.batch.observed)
        missing[HALF_COLD, 1] = True
        data = TopNData(whole.batch.masked(missing), whole.parts, USERS, ITEMS)
        self.task = DGMRecTask(data, CONFIG.model_copy(update={"item_layers": item_layers, **settings}), TRAINER)
        train(self.task, TRAINER)
        self.task.finish()
        assert self.task.content is not None
        self.content: ItemContent = self.task.content
        self.out, _ = self.task.final_embeddings()
        users, items = Vocabulary(f"u{row}" for row in range(USERS)), Vocabulary(f"i{row}" for row in range(ITEMS))
        self.online = serving_model(self.task, users, items)
        self.batch: ModalBatch = data.batch
        self.histories: NDArray[np.bool_] = self.task.interactions.user_mean.matrix.toarray() > 0
        self.active = cast(Active, SimpleNamespace(dgmrec=self.online, iris=None))
        self.items = self.catalogue()

    def layers(self) -> NDArray[np.float32]:
        """The parts before each layer of propagation `[L, M, n, 2d]`."""
        layers, parts = [], self.out.parts
        for _ in range(self.online.layers):
            layers.append(parts.numpy())
            graphs = (self.content.graphs[name] for name in self.online.names)
            parts = torch.stack([graph @ own for graph, own in zip(graphs, parts, strict=True)])
        return np.stack(layers)

    def catalogue(self) -> Catalogue:
        """Every item with what training completed it to; the vectors are computed from that."""
        config = self.online.config
        shape = Shape(
            self.online.ranks, self.online.size, self.online.layers, config.neighbours, config.cold_neighbours
        )
        catalogue = Catalogue(shape, BruteForceIndex, self.online.trained_row)
        nobody = np.zeros(self.online.size, dtype=np.float32)
        reach = np.full(len(self.online.names), np.inf, dtype=np.float32)
        for row in range(ITEMS):
            features = {name: block[row].numpy() for name, block in self.content.features.items()}
            observed = self.batch.observed[row].tolist()
            states = {
                name: State.OBSERVED if have else State.GENERATED
                for name, have in zip(self.online.names, observed, strict=True)
            }
            entry = Entry(FIRST_KEY + row, f"i{row}", None, (), True, 1, 0.0, states, {})
            catalogue.put([(entry, Derived(features, nobody, 0.0, reach))])
        for _ in vectors.derive(self.online, catalogue):
            pass
        return catalogue

    def vectors(self, name: str) -> NDArray[np.float32]:
        """A field of the vectors of all items `[n, ...]`."""
        return self.items.read_layer(np.arange(FIRST_KEY, FIRST_KEY + ITEMS), name)

    def input_of(self, row: int) -> ImputationInput:
        """An item as the service sees it: its observed features and its users."""
        raw = {
            name: self.batch.features[name][row].numpy()
            for column, name in enumerate(self.online.names)
            if self.batch.observed[row, column]
        }
        evidence = [self.evidence_of(user, row) for user in np.flatnonzero(self.histories[:, row])]
        features = {name: self.online.project(name, vector[None])[0] for name, vector in raw.items()}
        return ImputationInput(features, evidence, FIRST_KEY + row, raw=raw)

    def evidence_of(self, user: int, row: int) -> UserEvidence:
        """A user of an item, folded in from the history."""
        history = np.flatnonzero(self.histories[user])
        name, messages = f"u{user}", self.online.tables["item_message"][history]
        user_id = self.online.user_id(name, messages)
        return UserEvidence(
            self.online.user_preference(name, user_id),
            self.online.user_message(name, user_id, len(history)),
            FIRST_KEY + history[history != row],
            self.online.user_factor(name),
        )


FORMS: dict[str, dict[str, Any]] = {
    "one item layer": {"item_layers": 1},
    "two item layers": {"item_layers": 2},
    "autoencoder": {"item_layers": 1, "collaborative": "autoencoder"},
    "linear": {"item_layers": 1, "collaborative": "linear"},
    "graphs of observed features": {"item_layers": 1, "refine_weight": 0.0},
    # A service has the graphs that refining converges to.
    "paper": {"item_layers": 1, **PAPER, "preference": "free", "converge_graphs": True},
}


@pytest.fixture(scope="module", params=FORMS.values(), ids=FORMS)
def trained(request: pytest.FixtureRequest) -> Trained:
    torch.set_num_threads(1)
    return Trained(**request.param)


def test_the_catalogue_has_all_kinds_of_items(trained: Trained) -> None:
    """So that the comparisons below mean something."""
    warm, observed = trained.histories.any(axis=0), trained.batch.observed
    assert not warm[list(NEW)].any()
    assert observed[NEW[0]].all()
    assert observed[HALF_COLD].tolist() == [True, False]
    assert not observed[BARE].any()
    assert warm[BARE]
    lacking = ~observed.all(dim=1).numpy() & warm
    assert lacking.sum() > 10


@pytest.mark.parametrize("trust", [None, 0.6], ids=["trained trust", "learned step"])
@pytest.mark.parametrize("at_once", [1, ITEMS])
def test_imputation(trained: Trained, trust: float | None, at_once: int) -> None:
    """Neighbours' and near duplicates' means, co-interaction means, factors and preferences lead to the same features
    and confidences, for one item at a time and for all at once."""
    model, online = trained.task.module, trained.online
    kept = {name: model.tower(name).trust.clone() for name in model.names}
    try:
        if trust is not None:
            for name in model.names:
                model.tower(name).trust.fill_(trust)
            online = DGMRecServing(model, trained.online.tables, trained.online.users, trained.online.items)
        with torch.no_grad():
            expected = {
                name: model.generate(name, trained.content.evidence, trained.out.preference) for name in model.names
            }
            sure = {name: model.tower(name).confidence(generation) for name, generation in expected.items()}
        completed: list[Completed] = []
        for start in range(0, ITEMS, at_once):
            inputs = [trained.input_of(row) for row in range(start, min(start + at_once, ITEMS))]
            completed += impute(online, trained.items, inputs)
        generated = 0
        for row, item in enumerate(completed):
            for column, name in enumerate(model.names):
                if trained.batch.observed[row, column]:
                    np.testing.assert_allclose(item.features[name], trained.content.evidence.own[name][row], **CLOSE)
                    assert name not in item.generated
                    continue
                generated += 1
                assert item.generated[name].generator == online.generator(name)
                np.testing.assert_allclose(item.features[name], expected[name].features[row], rtol=1e-3, atol=1e-4)
                assert item.generated[name].confidence == pytest.approx(sure[name][row].item(), abs=2e-4)  # rounded
                if trust is None:
                    np.testing.assert_allclose(
                        item.features[name], trained.content.features[name][row], rtol=1e-3, atol=1e-4
                    )
        assert generated > 20
    finally:
        for name in model.names:
            model.tower(name).trust.copy_(kept[name])


def test_vectors(trained: Trained) -> None:
    """What was completed leads to the same parts, before and after each layer of propagation, modal parts and final
    vectors."""
    layers, out = trained.layers(), trained.out
    for number, layer in enumerate(layers):
        parts = trained.vectors(f"parts.{number}").swapaxes(0, 1)
        np.testing.assert_allclose(parts, layer, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(trained.vectors("modal"), out.item_modal, rtol=1e-3, atol=1e-4)
    # Embeddings of items that nobody has met are noise, which the paper's form leaves in and a service leaves out.
    rows = slice(None) if trained.online.expects_by_regression else trained.histories.any(axis=0)
    np.testing.assert_allclose(trained.vectors("final")[rows], out.items[rows], rtol=1e-3, atol=1e-4)


def test_preferences_of_cold_items(trained: Trained) -> None:
    """They are expected from the trained ones among an item's neighbours, as training does."""
    rows = np.flatnonzero(~trained.histories.any(axis=0))
    keys = FIRST_KEY + rows
    near = trained.items.read_layer(keys, "near")
    preference = vectors.expected_preference(trained.online, trained.items, near, trained.items.observed[keys])
    np.testing.assert_allclose(preference.swapaxes(0, 1), trained.out.preference[:, rows], **CLOSE)


def test_what_is_stored_does_not_depend_on_the_order_of_the_modalities(trained: Trained) -> None:
    """An item's observed features come in the order of a request or of the store's rows."""
    for row in range(ITEMS):
        item = trained.input_of(row)
        turned = replace(item, features=dict(reversed(item.features.items())), raw=dict(reversed(item.raw.items())))
        one, other = (impute(trained.online, trained.items, [each])[0] for each in (item, turned))
        assert list(one.features) == list(other.features) == list(trained.online.names)
        nobody = np.zeros(trained.online.size, dtype=np.float32)
        packed = {Derived(each.features, nobody, 0.0, each.reach).pack(trained.items.shape) for each in (one, other)}
        assert len(packed) == 1


def test_another_neighbour_changes_an_item(trained: Trained) -> None:
    """So that the comparisons above would notice: an item's evidence follows from what the index holds."""
    row = HALF_COLD
    before = impute(trained.online, trained.items, [trained.input_of(row)])[0]
    catalogue = trained.catalogue()
    name, other = trained.online.names[1], trained.online.names[0]
    keys = np.arange(FIRST_KEY, FIRST_KEY + ITEMS)
    both = keys[catalogue.observed[keys].all(axis=1)]
    features = catalogue.rows.get(f"feature.{other}", both)
    own = catalogue.rows.get(f"feature.{other}", FIRST_KEY + row)
    nearest = both[np.argmax(features @ own / np.linalg.norm(features, axis=1))]
    entry = catalogue.entries[int(nearest)]
    fields = {field: catalogue.rows.get(field, int(nearest)) for field in catalogue.shape.fields()}
    fields[f"feature.{name}"] = -fields[f"feature.{name}"]
    catalogue.put([(replace(entry), Derived.of(fields))])
    after = impute(trained.online, catalogue, [trained.input_of(row)])[0]
    changes = not np.allclose(before.features[name], after.features[name], atol=1e-3)
    assert changes == (trained.online.config.generator == "residual")  # parts are generated from the item's own alone


def test_words_of_later_items_are_stored(trained: Trained) -> None:
    """What the words of an item's text say is part of its derived state; an item that training knew needs none."""
    model, shape = trained.online, trained.items.shape
    cold_start = model.model.cold_start
    before = [table.clone() for table in (cold_start.word_frequency, cold_start.word_slopes)]
    try:
        cold_start.word_frequency.fill_(1.0)
        cold_start.word_slopes.fill_(0.5)
        observed = {"text": Observed(np.zeros(3, np.float32), "text", text="red hat")}
        later, known = (words_of(model, Content(item, observed)) for item in ("later", "i7"))
        assert known is None
        assert later is not None
        np.testing.assert_allclose(later, [0.5 * 2**0.5] * (1 + model.size) + [1.0], rtol=1e-5)
        assert not model.words(None).any()
        titled = words_of(model, Content("later", observed, title="old hat"))
        assert titled is not None
        assert titled[0] > later[0]
        features = {name: np.zeros(rank, np.float32) for name, rank in model.ranks.items()}
        nobody_met, reach = np.zeros(model.size, np.float32), np.zeros(len(features), np.float32)
        derived = Derived(features, nobody_met, 0.0, reach, words=later)
        unpacked = Derived.unpack(derived.pack(shape), shape)
        assert unpacked is not None
        assert unpacked.words is not None
        np.testing.assert_array_equal(unpacked.words, later)
    finally:
        cold_start.word_frequency.copy_(before[0])
        cold_start.word_slopes.copy_(before[1])
