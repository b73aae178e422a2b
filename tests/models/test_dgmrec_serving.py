"""DGMRec as the service uses it: a bundle brings it back, and its numbers are the module's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.bundle import MANIFEST, Bundle, BundleError, BundleWriter, DataEntry, ModalityEntry, file_sha256
from models.dgmrec.cold_start import SURE_DEGREE
from models.dgmrec.serving import FILE, FOLD_IN_PSEUDO_COUNT, DGMRecServing, ImputationEvidence
from models.graph import nearest
from models.imputers import GRAPH_IMPUTERS, IMPUTERS
from models.words import CatalogueWords
from tests.models.worlds import FALLBACK_SETTINGS, ITEMS, SMALL, USERS, World, online_of, small, world

Array = NDArray[np.float32]
D = SMALL.embedding_size
NEW_USER, NEW_ITEM = "somebody", "something"


def save(online: DGMRecServing, path: Path) -> Path:
    with BundleWriter(path) as writer:
        entry = online.save(writer, {"recall@20": 0.5})
        data = DataEntry(
            name="toy", synthetic=True, users=USERS, items=ITEMS, interactions=1, missing_cells=0.3, fingerprint="f",
            min_rating=None,
        )  # fmt: skip
        writer.finish(
            version="2026-11-21.1",
            lacuna_version="0",
            data=data,
            modalities=tuple(ModalityEntry(name=spec.name, dim=spec.dim) for spec in online.model.specs),
            models={"dgmrec": entry},
        )
    return path


@pytest.fixture
def w() -> World:
    return world()


@pytest.fixture
def online(w: World) -> DGMRecServing:
    return online_of(w)


def evidence_for(w: World, rows: NDArray[np.int64], preference: torch.Tensor) -> ImputationEvidence:
    evidence = w.evidence.select(torch.from_numpy(rows))
    own, neighbours, duplicates, means = (
        {name: block.numpy() for name, block in blocks.items()}
        for blocks in (evidence.own, evidence.neighbour_mean, evidence.near_duplicates, evidence.co_interaction_mean)
    )
    return ImputationEvidence(
        own,
        neighbours,
        duplicates,
        means,
        means,
        evidence.factors.numpy(),
        evidence.observed.numpy(),
        evidence.neighbour_valid.numpy(),
        evidence.co_interaction_valid.numpy(),
        preference[:, rows].contiguous().numpy(),
    )


def test_zeros_and_the_mean_tell_nothing(online: DGMRecServing, w: World) -> None:
    mean = w.model.tower("m0").projection.mean.numpy()
    other = mean + np.ones_like(mean)
    assert mean.any()
    for silent in (np.zeros_like(mean), mean, mean * np.float32(1 + 1e-7), np.full_like(mean, 1e-30)):
        assert not online.tells("m0", silent)
    assert online.tells("m0", other)
    assert online.tells("m0", mean * 2)


# --- bundle --------------------------------------------------------------------------------------------------------


def test_round_trip(w: World, online: DGMRecServing, tmp_path: Path) -> None:
    bundle = Bundle.load(save(online, tmp_path / "bundle"))
    assert bundle.manifest.models["dgmrec"].metrics == {"recall@20": 0.5}
    again = DGMRecServing.load(bundle)
    for key, value in online.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value), key
    assert again.tables.keys() == online.tables.keys()
    for key, table in online.tables.items():
        assert np.array_equal(again.tables[key], table), key
    assert (again.users, again.items) == (online.users, online.items)
    assert again.model.config == SMALL
    assert again.names == ("m0", "m1")
    assert again.ranks == {"m0": 4, "m1": 4}
    assert [again.specs[name].dim for name in again.names] == [6, 5]
    with torch.no_grad():
        evidence = evidence_for(w, np.arange(ITEMS), w.forward().preference)
    made, made_again = online.generate(evidence), again.generate(evidence)
    assert made.keys() == made_again.keys() == set(again.names)
    for name, (features, confidence) in made.items():
        assert np.array_equal(features, made_again[name][0])
        assert np.array_equal(confidence, made_again[name][1])


def test_a_bundle_tells_what_is_read(w: World, tmp_path: Path) -> None:
    w.model.tower("m1").select_inputs(co_interaction_mean=False, neighbour_mean=False)
    w.model.tower("m1").near_duplicate_weights.copy_(torch.tensor([0.0, 0.4]))
    again = DGMRecServing.load(Bundle.load(save(online_of(w), tmp_path / "bundle")))
    assert [again.reads_neighbours(name, warm=True) for name in again.names] == [True, False]
    for columns in ("interaction_mask", "content_mask", "near_duplicate_weights"):
        assert torch.equal(getattr(again.model.tower("m1"), columns), getattr(w.model.tower("m1"), columns))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> Bundle:
    raw = json.loads((path / MANIFEST).read_text())
    change(raw)
    raw["files"] = {name: file_sha256(path / name) for name in raw["files"]}
    (path / MANIFEST).write_text(json.dumps(raw))
    return Bundle.load(path)


def test_bundle_without_dgmrec(online: DGMRecServing, tmp_path: Path) -> None:
    bundle = rewrite(save(online, tmp_path / "bundle"), lambda raw: raw["models"].clear())
    with pytest.raises(BundleError, match="holds no dgmrec model"):
        DGMRecServing.load(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["models"]["dgmrec"]["config"].update(embedding_size=16),
        lambda raw: raw["models"]["dgmrec"]["config"].update(surprise=1),
        lambda raw: raw["modalities"].pop(),
        lambda raw: raw["modalities"][0].update(dim=9),
    ],
    ids=["size", "unknown setting", "modality gone", "other dimension"],
)
def test_model_that_does_not_fit(
    online: DGMRecServing, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    bundle = rewrite(save(online, tmp_path / "bundle"), change)
    with pytest.raises(BundleError, match=r"does not fit this Lacuna, train it anew: .") as caught:
        DGMRecServing.load(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lean", "the setting 'lean' is called 'knn_smoothing' now"),
        ("hide_rate", "the setting 'hide_rate' is gone: what it set is a constant now"),
    ],
)
def test_settings_of_an_earlier_version(online: DGMRecServing, tmp_path: Path, name: str, sentence: str) -> None:
    path = save(online, tmp_path / "bundle")
    bundle = rewrite(path, lambda raw: raw["models"]["dgmrec"]["config"].update({name: 0.5}))
    with pytest.raises(BundleError, match=f"does not fit this Lacuna, train it anew: {sentence}"):
        DGMRecServing.load(bundle)


def test_table_that_is_missing(online: DGMRecServing, tmp_path: Path) -> None:
    del online.tables["warm"]
    bundle = Bundle.load(save(online, tmp_path / "bundle"))
    assert "table.warm" not in bundle.tensors(FILE)
    with pytest.raises(BundleError, match=r"does not fit this Lacuna, .*: 'table\.warm'"):
        DGMRecServing.load(bundle)


def test_nothing_trains_any_more(online: DGMRecServing) -> None:
    assert not online.model.training
    assert not any(parameter.requires_grad for parameter in online.model.parameters())


# --- the module's own numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[0], [3, 29, 7]])
@pytest.mark.parametrize("trust", [0.0, 0.4])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "sigmoid"},
        {"gate": "tanh"},
        {"gate": "none"},
        {"knn_smoothing": 0.0},
        {"near_duplicates": False},
    ],
    ids=str,
)
@pytest.mark.parametrize(("shared", "near"), [(True, True), (False, True), (True, False)])
def test_generate(rows: list[int], trust: float, changes: dict[str, Any], shared: bool, near: bool) -> None:
    w = world(config=SMALL.model_copy(update=changes))
    w.model.tower("m1").select_inputs(co_interaction_mean=shared, neighbour_mean=near)
    w.model.fit_base(w.evidence, w.batch.observed)
    for name in w.batch.names:
        w.model.tower(name).calibration.fill_(0.1)
        w.model.tower(name).trust.fill_(trust)
        w.model.tower(name).mean_general.fill_(0.2)
    online = online_of(w)
    follows = w.model.tower("m1").near_duplicate_weights > 0
    assert online.reads_neighbours("m1", warm=True) == (near or bool(follows[0]))
    assert online.reads_neighbours("m1", warm=False) == (near or bool(follows[1]) or trust > 0)
    evidence = replace(
        w.evidence, cross_fitted_mean=w.evidence.co_interaction_mean
    )  # served cells are of items that no fit leaves out
    with torch.no_grad():
        preference = w.forward().preference
    made = online.generate(evidence_for(w, np.array(rows), preference))
    for column, name in enumerate(w.batch.names):
        assert (name in made) == (not w.batch.observed[rows, column].all())
        if name not in made:
            continue
        features, confidence = made[name]
        expected = w.model.generate(name, evidence, preference)
        np.testing.assert_allclose(features, expected.features[rows], atol=1e-5)
        np.testing.assert_allclose(confidence, w.model.tower(name).confidence(expected)[rows], atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"activation": "sigmoid"}, {"gate": "tanh"}, {"gate": "none"}], ids=str)
def test_encode_and_fuse(changes: dict[str, str]) -> None:
    w = world(config=SMALL.model_copy(update=changes))
    online = online_of(w)
    with torch.no_grad():
        out = w.forward()
    features = {name: feature.numpy() for name, feature in w.content.features.items()}
    parts = online.encode(features, out.preference.numpy())
    assert parts.shape == (2, ITEMS, 2 * D)
    np.testing.assert_allclose(parts, out.parts, atol=1e-6)
    propagated = w.model.propagated(w.content, out.parts).numpy()
    modal = online.fuse(propagated)
    np.testing.assert_allclose(modal, out.item_modal, atol=1e-6)
    warm = np.flatnonzero(~out.cold)
    served = online.combine(out.item_id.numpy(), modal)
    np.testing.assert_allclose(served[warm], out.items[warm], atol=1e-5)
    np.testing.assert_allclose(online.combine(out.item_id.numpy()[3], modal[3]), served[3], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"ranking": "bpr"}, {"prediction_scale": 1.0}, {"cold_neighbours": 2}])
@pytest.mark.parametrize("written", [False, True])
def test_cold_items_are_predicted_as_in_training(changes: dict[str, Any], written: bool) -> None:
    w = world(config=SMALL.model_copy(update=changes))
    degree, texts = w.graphs.item_degree, None
    if written:
        texts = [" ".join(f"word{(row * step) % 7}" for step in (1, 2, 3)) for row in range(ITEMS)]
        words_of = CatalogueWords.of(texts, degree.numpy(), (degree / (degree + SURE_DEGREE)).numpy())
        w = replace(w, content=replace(w.content, words=words_of))
    online = online_of(w)
    out = w.forward()
    items = w.model.final_embeddings(out, w.content, w.graphs.item_degree)[0].items
    rows = np.flatnonzero(out.cold)
    assert len(rows)
    around = neighbours_of(w, rows)
    features = {name: block[rows].numpy() for name, block in w.content.features.items()}
    observed = w.batch.observed[rows].numpy()
    words = np.stack([online.words(None if texts is None else texts[row]) for row in rows])
    assert bool(words[:, -1].any()) == written
    content = online.content_vectors(features, observed, words, np.zeros(len(rows), np.bool_))
    expected = online.expected_vectors(content, features, observed, words, *around)
    np.testing.assert_allclose(expected, items[rows], atol=1e-5)
    content = online.content_vectors(features, observed, words, np.ones(len(rows), np.bool_))
    later = online.expected_vectors(content, features, observed, words, *around)
    cold_start = w.model.cold_start
    raised = (w.model.config.popularity_offset - cold_start.offset) * cold_start.spread
    told = w.batch.observed[rows].any(dim=1) | torch.from_numpy(words[:, -1] > 0)
    lifted = torch.where(told, raised, -cold_start.offset.clamp_max(0) * cold_start.spread)
    np.testing.assert_allclose(later, items[rows] + lifted[:, None] * cold_start.popularity_axis, atol=1e-5)
    warm = np.flatnonzero(~out.cold)
    np.testing.assert_allclose(online.warm_vectors(warm, out.item_modal[warm].numpy()), items[warm], atol=1e-5)
    for row in warm:
        alone = online.warm_vectors(np.array([row]), out.item_modal[[row]].numpy())
        np.testing.assert_allclose(alone[0], items[row], atol=1e-5)


def neighbours_of(w: World, rows: NDArray[np.int64]) -> tuple[Array, tuple[NDArray[np.int64], Array, Array, Array]]:
    """What an index would find around some rows, by modality: what their users make of items, and which of them are the
    nearest warm ones, with cosines and degrees."""
    out, found, cosines = w.forward(), [], []
    for column, features in enumerate(w.content.features.values()):
        keys, near = nearest(
            features[rows],
            features,
            w.model.config.cold_neighbours,
            allowed=w.batch.observed[:, column] & (w.graphs.item_degree > 0),
            exclude=torch.from_numpy(rows),
        )
        keys[~features[rows].any(dim=1)] = -1
        found.append(keys)
        cosines.append(near)
    keys = torch.stack(found, dim=1)
    degree = torch.where(keys >= 0, w.graphs.item_degree[keys], 0).numpy()
    known = keys.clamp_min(0).numpy()
    return out.items.detach().numpy(), (known, torch.stack(cosines, dim=1).numpy(), degree, degree)


def test_preference(w: World, online: DGMRecServing) -> None:
    ids = w.forward().user_id
    np.testing.assert_allclose(online.preference(ids.numpy()), w.model.user_preference(ids), atol=1e-6)


def test_project_and_back(w: World, online: DGMRecServing) -> None:
    have = w.batch.observed[:, 1]
    raw = w.batch.features["m1"][have].numpy()
    projected = online.project("m1", raw)
    np.testing.assert_allclose(projected, w.evidence.own["m1"][have], atol=1e-6)
    for rank, atol in ((4, 0.5), (8, 1e-3)):
        some = online_of(world(config=SMALL.model_copy(update={"rank": rank})))
        back, projection = some.unproject("m1", some.project("m1", raw)), some.model.tower("m1").projection
        centred = raw - projection.mean.numpy()
        usual = centred / np.linalg.norm(centred, axis=1, keepdims=True) * projection.length.numpy()
        np.testing.assert_allclose(back - projection.mean.numpy(), usual, atol=atol)


def test_what_comes_from_a_database_is_read_only(w: World, online: DGMRecServing) -> None:
    evidence = evidence_for(w, np.arange(4), w.forward().preference)
    for array in (
        *evidence.own.values(),
        evidence.observed,
        evidence.neighbour_valid,
        evidence.co_interaction_valid,
        evidence.factors,
        evidence.preference,
    ):
        array.setflags(write=False)
    for name, (features, confidence) in online.generate(evidence).items():
        assert features.shape == (4, 4), name
        assert confidence.shape == (4,)
    raw = np.zeros((1, 6), np.float32)
    raw.setflags(write=False)
    assert online.project("m0", raw).shape == (1, 4)


def test_centred_cosine(w: World, online: DGMRecServing) -> None:
    mean = w.model.tower("m0").projection.mean.numpy()
    left, right = np.eye(6, dtype=np.float32)[0], np.eye(6, dtype=np.float32)[1]
    assert online.centred_cosine("m0", mean + left, mean + 3 * left) == pytest.approx(1, abs=1e-5)
    assert online.centred_cosine("m0", mean + left, mean - left) == pytest.approx(-1, abs=1e-5)
    assert online.centred_cosine("m0", mean + left, mean + right) == pytest.approx(0, abs=1e-5)
    assert online.centred_cosine("m0", mean, mean + right) == 0  # nothing to compare


# --- fold-in -------------------------------------------------------------------------------------------------------


def history_of(w: World, user: int) -> NDArray[np.int64]:
    return np.flatnonzero(w.graphs.user_mean.matrix.toarray()[user])


def test_user_id_of_a_trained_user(w: World, online: DGMRecServing) -> None:
    ids = w.model.collaborate(w.graphs).users
    for user in range(USERS - 1):
        messages = online.tables["item_message"][history_of(w, user)]
        np.testing.assert_allclose(online.user_id(f"u{user}", messages), ids[user], atol=1e-6)


def test_user_id_of_a_new_user(online: DGMRecServing) -> None:
    """The embedding's own layer is unknown: the mean of the others stands in."""
    layers = SMALL.layers
    messages = online.tables["item_message"][[1, 2, 3]]
    folded = messages.sum(axis=0) / np.sqrt(3) * (layers + 1) / layers
    for user in (None, NEW_USER, f"u{USERS - 1}"):  # the last one had no history in training
        np.testing.assert_allclose(online.user_id(user, messages), folded, rtol=1e-5)


def test_user_id_without_history(online: DGMRecServing) -> None:
    assert not online.user_id(NEW_USER, np.zeros((0, D), np.float32)).any()


def test_user_id_with_weights(online: DGMRecServing) -> None:
    messages = online.tables["item_message"][[1, 2]]
    doubled = online.user_id(None, messages, np.array([2, 1], np.float32))
    np.testing.assert_allclose(doubled, online.user_id(None, messages[[0, 0, 1]]), rtol=1e-5)


def test_messages_of_trained_users(w: World, online: DGMRecServing) -> None:
    ids = w.model.collaborate(w.graphs).users
    message = online.user_message("u0", ids[0].numpy(), 99)
    assert np.array_equal(message, online.tables["user_message"][0])


@pytest.mark.parametrize("degree", [0, 1, 4])
def test_messages_of_new_users_and_items(online: DGMRecServing, degree: int) -> None:
    own, nothing, count = np.ones((1, D), np.float32), np.zeros((1, D), np.float32), np.array([degree], np.float32)
    passed_on = own[0] * SMALL.layers / (SMALL.layers + 1) / np.sqrt(max(degree, 1))
    np.testing.assert_allclose(online.user_message(NEW_USER, own[0], degree), passed_on, rtol=1e-6)
    share = degree / (FOLD_IN_PSEUDO_COUNT + degree)
    np.testing.assert_allclose(online.item_messages(nothing, own, count)[0], share * passed_on, rtol=1e-6)
    usual = (1 - share) * online.tables["id_length"] * passed_on
    np.testing.assert_allclose(online.item_messages(own, nothing, count)[0], usual, rtol=1e-6)


def test_which_users_training_knew(online: DGMRecServing) -> None:
    assert [online.knows_user(f"u{user}") for user in range(USERS)] == [True] * (USERS - 1) + [False]  # no history
    assert not online.knows_user(NEW_USER)


def test_a_new_item_moves_from_content_to_its_users(online: DGMRecServing) -> None:
    expected, modal = np.ones((1, D), np.float32), np.linspace(-1, 1, D, dtype=np.float32)
    usual, scale = online.tables["id_length"], (SMALL.layers + 1) / SMALL.layers
    nobody, none = online.folded(np.zeros((0, D), np.float32))[None], np.zeros(1, np.float32)
    assert not nobody.any()
    np.testing.assert_allclose(online.item_messages(expected, nobody, none), expected * usual / scale, rtol=1e-6)
    assert np.array_equal(online.final_vectors(expected, online.combine(nobody, modal), none), expected)
    message = np.full(D, 3, np.float32)
    for users in (1, 5, 500):
        folded, count = np.sqrt(users) * message * scale, np.array([users], np.float32)
        np.testing.assert_allclose(online.folded(np.tile(message, (users, 1))), folded, rtol=1e-4)
        share = FOLD_IN_PSEUDO_COUNT / (FOLD_IN_PSEUDO_COUNT + users)
        wanted = (share * expected * usual + (1 - share) * folded) / scale / np.sqrt(users)
        np.testing.assert_allclose(online.item_messages(expected, folded[None], count), wanted, rtol=1e-4)
        own = (folded + modal) / np.linalg.norm(folded + modal)
        wanted = share * expected + (1 - share) * own
        found = online.final_vectors(expected, online.combine(folded, modal)[None], count)
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_trained_row(online: DGMRecServing) -> None:
    assert online.trained_row("i0") == 0
    assert online.trained_row(f"i{ITEMS - 1}") is None  # in the vocabulary, but nobody had touched it
    assert online.trained_row(NEW_ITEM) is None


@pytest.mark.parametrize("fallback_imputer", GRAPH_IMPUTERS)
def test_the_rung_over_the_graph(fallback_imputer: str, tmp_path: Path) -> None:
    """Of an item that training knew, it guesses what the imputer does, and a bundle brings it back."""
    w = world(config=SMALL.model_copy(update={"fallback_imputer": fallback_imputer}))
    online = online_of(w)
    again = DGMRecServing.load(Bundle.load(save(online, tmp_path / "bundle")))
    assert again.fallback_imputer == fallback_imputer
    guess = IMPUTERS[fallback_imputer].impute(
        w.evidence.own, w.batch.observed, w.graphs, **FALLBACK_SETTINGS[fallback_imputer]
    )
    histories = (w.graphs.user_mean.matrix.toarray() > 0).astype(np.int64)
    together = histories.T @ histories
    told = 0
    for column, name in enumerate(w.batch.names):
        for item in np.flatnonzero(~w.batch.observed[:, column].numpy()):
            rows = [row for row in range(ITEMS) if row != item and together[item, row]]
            found = online.fallback_guess(name, rows, together[item, rows].tolist())
            expected = guess[name][item].numpy()
            if not rows:
                assert found is None
                continue
            assert found is not None
            told += 1
            assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) == pytest.approx(1, abs=1e-5)
            brought = again.fallback_guess(name, rows, together[item, rows].tolist())
            assert np.array_equal(found, brought if brought is not None else np.zeros(0))
    assert told > 5
    untouched = [row for row in range(ITEMS) if not together[row].any()]
    assert untouched
    if fallback_imputer != "neigh-mean":  # which reads observed features alone
        assert online.fallback_guess("m0", untouched, [1] * len(untouched)) is None
    assert online.fallback_guess("m0", [], []) is None


def test_described(w: World) -> None:
    lacking = world(batch=w.batch.masked(torch.tensor([[False, True]]).expand(ITEMS, 2)))
    online = online_of(lacking)
    assert online.has_mean("m0")
    assert not online.has_mean("m1")


def test_factors_of_new_items_are_those_of_training(w: World, online: DGMRecServing) -> None:
    histories = w.graphs.user_mean.matrix.toarray() > 0
    for item in range(ITEMS):
        rows = [online.user_factor(f"u{user}") for user in np.flatnonzero(histories[:, item])]
        folded = online.item_factor([row for row in rows if row is not None])
        assert folded.dtype == np.float32
        np.testing.assert_allclose(folded, w.evidence.factors[item], atol=1e-6)
    assert online.user_factor(NEW_USER) is None
    assert online.item_factor([]).shape == (SMALL.factors,)
    assert not online.item_factor([]).any()
    assert not online.item_factor([online.tables["user_factor"][USERS - 1]]).any()  # the user without a history


@pytest.mark.parametrize(
    ("imputation", "trust", "name"),
    [("generate", 0.5, "dgmrec"), ("generate", 0.0, "dgmrec-base"), ("multi-hop", 0.0, "multi-hop"), ("nn", 0.0, "nn")],
)
def test_who_makes_a_feature(imputation: str, trust: float, name: str) -> None:
    w = world(config=small(imputation=imputation))
    w.model.tower("m0").trust.fill_(trust)
    assert online_of(w).generator("m0") == name


def test_lambda_zero_passes_nothing_to_generated_features() -> None:
    assert online_of(world()).passes_to_generated
    assert not online_of(world(config=small(refine_weight=0))).passes_to_generated
