"""IRIS on the real service: its lists, and what it says of everybody's."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.arrays import Array
from models.bundle import Bundle, BundleError
from models.iris.serving import IRISServing, ItemSides
from service.bootstrap import load_iris
from service.pipeline import history, rank
from tests.service.irises import with_iris
from tests.service.running import Running, base64_of, fresh_id, settings_for
from training.demo.catalogue import demo_item

PRODUCT = demo_item(k=3)
USER = "shopper-005"
MODELS = ("dgmrec", "iris", "popular", "latest")


def reranker(service: Running) -> IRISServing:
    assert service.engine.active.iris is not None
    return service.engine.active.iris


def sides(service: Running, items: Sequence[str]) -> ItemSides:
    """What the model says of items whose features are read off the API."""
    one = reranker(service)
    features: dict[str, list[Any]] = {name: [] for name in one.names}
    present = []
    for item in items:
        details = {name: service.get(f"/items/{item}/modalities/{name}", vector=True) for name in one.names}
        present.append([details[name]["state"] != "absent" for name in one.names])
        for name in one.names:
            features[name].append(details[name]["vector"])
    arrays = {name: np.array(rows, dtype=np.float32) for name, rows in features.items()}
    return one.sides(arrays, np.array(present), items)


def kept(service: Running, items: Sequence[str]) -> ItemSides:
    """What the service keeps of items."""
    return service.engine.memory.catalogue.sides(service.engine.memory.catalogue.keys(items))


def history_of(service: Running, user: str) -> list[str]:
    """Newest first, each once."""
    events = service.get("/feedback", user=user, limit=500)["items"]
    return list(dict.fromkeys(event["item"] for event in sorted(events, key=lambda one: one["timestamp"])[::-1]))


def scores(service: Running, past: Sequence[str], targets: Sequence[str], weights: Array | None = None) -> Array:
    same = np.array([[one == other for one in past] for other in targets])
    return reranker(service).score(kept(service, past), kept(service, targets), weights=weights, same=same)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_a_list_by_iris_is_what_the_model_ranks(anywhere: Running) -> None:
    past = history_of(anywhere, USER)
    answer = anywhere.get(f"/recommend/{USER}", n=500, model="iris")
    assert (answer["model"], answer["fallback"]) == ("iris", None)
    everything = {item["id"] for item in anywhere.get("/items", limit=500)["items"]}
    found = [hit["id"] for hit in answer["items"]]
    assert set(found) == everything - set(past)
    given = [hit["score"] for hit in answer["items"]]
    assert given == sorted(given, reverse=True)
    np.testing.assert_allclose(given, scores(anywhere, past, found), rtol=1e-5, atol=1e-5)
    assert [hit["id"] for hit in anywhere.get(f"/recommend/{USER}", n=7, model="iris")["items"]] == found[:7]
    assert found != [hit["id"] for hit in anywhere.get(f"/recommend/{USER}", n=500)["items"]]


def test_a_list_by_iris_takes_all_options(alone: Running) -> None:
    past = history_of(alone, USER)
    lamps = alone.get(f"/recommend/{USER}", model="iris", category="lamps", n=500, exclude_seen=False)["items"]
    assert {hit["id"] for hit in lamps} == {item["id"] for item in alone.get("/items", category="lamps")["items"]}
    with_seen = alone.found_by(f"/recommend/{USER}", model="iris", n=500, exclude_seen=False)
    assert set(past) <= with_seen.keys()
    np.testing.assert_allclose(
        [with_seen[item]["score"] for item in past], scores(alone, past, past), rtol=1e-5, atol=1e-5
    )
    best = next(iter(alone.found_by(f"/recommend/{USER}", model="iris")))
    plain = list(alone.found_by(f"/recommend/{USER}", model="iris", n=30))
    diverse = list(alone.found_by(f"/recommend/{USER}", model="iris", n=30, diversity=0.9))
    assert diverse[0] == plain[0] == best
    assert diverse != plain
    alone.patch(best, {"available": False})
    assert best not in alone.found_by(f"/recommend/{USER}", model="iris", n=500)
    unknown = alone.get("/recommend/nobody", model="iris", n=5)
    assert (unknown["model"], unknown["fallback"], len(unknown["items"])) == ("popular", "popular", 5)
    alone.get("/recommend/nobody", model="iris", strict=True, status=404)


def test_iris_chooses_from_what_both_models_find(alone: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "CANDIDATES", 6)
    past = history_of(alone, USER)
    query = reranker(alone).alike(kept(alone, past))
    left = [item["id"] for item in alone.get("/items", limit=500)["items"] if item["id"] not in past]
    rough = np.concatenate([kept(alone, left).q, kept(alone, left).item_bias[:, None]], axis=1) @ query
    one, other = list(alone.found_by(f"/recommend/{USER}", n=6)), [left[row] for row in np.argsort(-rough)[:6]]
    assert set(one) != set(other)
    candidates = sorted({*one, *other})
    values = scores(alone, past, candidates)
    expected = [candidates[row] for row in np.argsort(-values)]
    assert list(alone.found_by(f"/recommend/{USER}", n=6, model="iris")) == expected[:6]


def test_a_session_is_ranked_by_iris_as_a_user_is(anywhere: Running) -> None:
    user = fresh_id("user")
    for item in ("demo-0001", "demo-0002"):
        anywhere.view(item, user)
    listed = anywhere.get(f"/recommend/{user}", model="iris", explain=True)["items"]
    items = [{"id": "demo-0002"}, {"id": "demo-0001"}]
    session = anywhere.post("/recommend", {"items": items, "model": "iris", "explain": True})
    assert (session["user"], session["model"]) == (None, "iris")
    assert [hit["id"] for hit in session["items"]] == [hit["id"] for hit in listed]
    np.testing.assert_allclose(
        [hit["score"] for hit in session["items"]], [hit["score"] for hit in listed], rtol=1e-5, atol=1e-5
    )
    assert [[reason["item"] for reason in hit["reasons"]] for hit in session["items"]] == [
        [reason["item"] for reason in hit["reasons"]] for hit in listed
    ]


def test_weights_of_a_session_count(anywhere: Running) -> None:
    def ask(*items: tuple[str, float]) -> dict[str, float]:
        body = {"items": [{"id": item, "weight": weight} for item, weight in items], "model": "iris", "n": 500}
        return {hit["id"]: hit["score"] for hit in anywhere.post("/recommend", body)["items"]}

    half = ask(("demo-0001", 2), ("demo-0002", 1))
    expected = scores(anywhere, ["demo-0001", "demo-0002"], list(half), np.array([1, 0.5], dtype=np.float32))
    np.testing.assert_allclose(list(half.values()), expected, rtol=1e-5, atol=1e-5)
    assert ask(("demo-0001", 4), ("demo-0002", 2)) == half
    assert ask(("demo-0001", 1), ("demo-0002", 1)) != half
    twice = ask(("demo-0001", 1), ("demo-0002", 1), ("demo-0001", 1))
    expected = scores(anywhere, ["demo-0001", "demo-0002"], list(twice), np.array([2, 1], dtype=np.float32))
    np.testing.assert_allclose(list(twice.values()), expected, rtol=1e-5, atol=1e-5)
    assert len(ask(("demo-0001", 1e-300))) > 100


# --- reasons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("options", [{}, {"diversity": 0.5, "n": 40}, {"category": "lamps", "exclude_seen": False}])
def test_a_list_is_the_same_with_and_without_reasons(anywhere: Running, model: str, options: dict[str, Any]) -> None:
    user = "shopper-007"
    for _ in range(2):  # the second time out of the cache
        plain = anywhere.get(f"/recommend/{user}", model=model, **options)
        told = anywhere.get(f"/recommend/{user}", model=model, explain=True, **options)
        assert (told["model"], told["fallback"]) == (plain["model"], plain["fallback"]) == (model, None)
        assert all("reasons" not in hit for hit in plain["items"])
        assert any(hit["reasons"] for hit in told["items"])
        assert [{**hit, "reasons": None} for hit in told["items"]] == [
            {**hit, "reasons": None} for hit in plain["items"]
        ]
        past = set(history_of(anywhere, user))
        for hit in told["items"]:
            assert len(hit["reasons"]) <= 3
            assert {reason["item"] for reason in hit["reasons"]} <= past - {hit["id"]}
        anywhere.wait_until_idle()


def test_who_has_no_history_is_given_no_reasons(anywhere: Running) -> None:
    answer = anywhere.get("/recommend/nobody", explain=True)
    assert answer["fallback"] == "popular"
    assert all(hit["reasons"] == [] for hit in answer["items"])


def test_reasons_are_the_models_and_say_what_they_rest_on(anywhere: Running) -> None:
    past = history_of(anywhere, USER)
    one = reranker(anywhere)
    hits = anywhere.get(f"/recommend/{USER}", explain=True)["items"]
    found = one.explain(kept(anywhere, past), kept(anywhere, [hit["id"] for hit in hits]))
    for row, hit in enumerate(hits):
        places = [place for place in np.argsort(-found.relevance[row])[:3] if found.relevance[row, place] > 0]
        assert [reason["item"] for reason in hit["reasons"]] == [past[place] for place in places]
        for place, reason in zip(places, hit["reasons"], strict=True):
            item = anywhere.get(f"/items/{reason['item']}")
            assert reason["title"] == item["title"]
            assert reason["states"] == {name: item["modalities"][name]["state"] for name in one.names}
            assert reason["relevance"] == pytest.approx(found.relevance[row, place], abs=1e-5)
            assert reason["interest"] == pytest.approx(found.interest[row, place], abs=1e-5)
            effects = dict(zip(one.names, found.effects[row, place].tolist(), strict=True))
            assert reason["effects"] == pytest.approx(effects, abs=1e-5)
            shares = dict(zip(one.names, found.shares[row, place].tolist(), strict=True))
            assert reason["modalities"] == pytest.approx(shares, abs=1e-3)
            assert sum(reason["modalities"].values()) == pytest.approx(1, abs=1e-3)


def test_a_pair_is_told_all_of_it(anywhere: Running) -> None:
    past = history_of(anywhere, USER)
    hits = anywhere.get(f"/recommend/{USER}", model="iris", explain=True)["items"]
    for hit in (hits[0], hits[-1]):
        told = anywhere.get(f"/explain/{USER}/{hit['id']}")
        assert (told["user"], told["item"], told["title"]) == (USER, hit["id"], hit["title"])
        assert (told["modalities"], told["fallback"]) == (hit["modalities"], None)
        assert told["model_version"] == anywhere.engine.model_version
        assert sorted(reason["item"] for reason in told["reasons"]) == sorted(past)
        relevances = [reason["relevance"] for reason in told["reasons"]]
        assert relevances == sorted(relevances, reverse=True)
        assert told["score"] == pytest.approx(told["item_bias"] + sum(relevances), abs=1e-3)
        assert told["score"] == pytest.approx(hit["score"], abs=1e-4)
        speaking = [reason for reason in told["reasons"] if reason["relevance"] > 0][:3]
        assert [reason["item"] for reason in hit["reasons"]] == [reason["item"] for reason in speaking]
        for one, other in zip(hit["reasons"], speaking, strict=True):
            assert one["relevance"] == pytest.approx(other["relevance"], abs=1e-5)


def test_an_item_is_no_reason_for_itself(anywhere: Running) -> None:
    past = history_of(anywhere, USER)
    listed = anywhere.found_by(f"/recommend/{USER}", explain=True, exclude_seen=False, n=500)
    for item in past:
        told = anywhere.get(f"/explain/{USER}/{item}")
        assert sorted(reason["item"] for reason in told["reasons"]) == sorted(set(past) - {item})
        assert told["score"] == pytest.approx(scores(anywhere, past, [item])[0], abs=1e-4)
        assert item not in {reason["item"] for reason in listed[item]["reasons"]}


def test_a_history_of_one_and_of_none(anywhere: Running) -> None:
    user = fresh_id("user")
    anywhere.get(f"/explain/{user}/demo-0001", status=404)
    anywhere.view("demo-0001", user)
    told = anywhere.get(f"/explain/{user}/demo-0002")
    assert [reason["item"] for reason in told["reasons"]] == ["demo-0001"]
    itself = anywhere.get(f"/explain/{user}/demo-0001")
    assert (itself["reasons"], itself["fallback"]) == ([], "popular")
    assert itself["score"] == itself["item_bias"]
    listed = anywhere.get(f"/recommend/{user}", model="iris", explain=True)["items"]
    assert {reason["item"] for hit in listed for reason in hit["reasons"]} == {"demo-0001"}


def test_what_cannot_be_explained(anywhere: Running) -> None:
    assert anywhere.get("/explain/nobody/demo-0001", status=404)["type"] == "/problems/user-not-found"
    assert anywhere.get(f"/explain/{USER}/nothing", status=404)["type"] == "/problems/item-not-found"
    assert anywhere.get(f"/explain/{USER}/a%20b", status=422)["type"] == "/problems/invalid-input"


def test_only_the_newest_of_a_history_speak(alone: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "EXPLAINING", 3)
    past = history_of(alone, USER)
    told = alone.get(f"/explain/{USER}/{next(iter(alone.found_by(f'/recommend/{USER}')))}")
    newest = alone.run(alone.engine.memory.histories.of(USER)).liked[:3]
    assert sorted(reason["item"] for reason in told["reasons"]) == sorted(newest)
    assert set(newest) < set(past)


# --- items come, change and go ----------------------------------------------------------------------------------------


def test_what_is_kept_of_items_is_what_the_model_says_of_their_features(alone: Running) -> None:
    """Observed, generated and generated anew, known to training and not."""
    shown = alone.create(modalities={"image": base64_of(PRODUCT.picture)})["id"]
    empty = alone.create()["id"]
    before = {item: kept(alone, [item]) for item in (shown, empty)}
    alone.view(shown, "shopper-001", "shopper-002")
    alone.view(empty, "shopper-003")
    items = [shown, empty, *(f"demo-{number:04d}" for number in range(10))]
    fresh, here = sides(alone, items), kept(alone, items)
    for name in reranker(alone).shapes:
        np.testing.assert_allclose(getattr(here, name), getattr(fresh, name), rtol=1e-3, atol=1e-4, err_msg=name)
    for item in (shown, empty):  # its generated features have followed its users
        assert np.abs(kept(alone, [item]).history - before[item].history).max() > 1e-4
    alone.patch("demo-0003", {"modalities": {"text": "something else entirely"}})
    assert np.abs(kept(alone, ["demo-0003"]).history - here.history[items.index("demo-0003")]).max() > 1e-4


def test_an_item_posted_later_is_explained_and_explains(alone: Running) -> None:
    new = alone.create(title="Just in", modalities={"image": base64_of(PRODUCT.picture)})["id"]
    states = {"text": "observed", "image": "observed", "audio": "generated"}  # the title is its text
    told = alone.get(f"/explain/{USER}/{new}")
    assert told["modalities"] == states
    assert len(told["reasons"]) == len(history_of(alone, USER))
    assert new in alone.found_by(f"/recommend/{USER}", model="iris", n=500)
    alone.view(new, "somebody", USER)
    hits = alone.get("/recommend/somebody", model="iris", explain=True, n=500)["items"]
    (reason,) = alone.get("/explain/somebody/demo-0001")["reasons"]
    assert (reason["item"], reason["title"], reason["states"]) == (new, "Just in", states)
    assert set(reason["modalities"]) == set(states)
    assert reason["modalities"]["audio"] > 0  # it rests on the generated feature too, and says so
    assert any(hit["reasons"] for hit in hits)
    assert new in {one["item"] for one in alone.get(f"/explain/{USER}/demo-0001")["reasons"]}


def test_a_deleted_item_is_no_reason(alone: Running) -> None:
    gone, *left = history_of(alone, USER)
    before = alone.get(f"/recommend/{USER}", model="iris", n=10, explain=True)
    target = before["items"][0]["id"]
    alone.ask("DELETE", f"/items/{gone}", status=204)
    told = alone.get(f"/explain/{USER}/{target}")
    assert sorted(reason["item"] for reason in told["reasons"]) == sorted(left)
    after = alone.get(f"/recommend/{USER}", model="iris", n=500, explain=True)["items"]
    assert gone not in {reason["item"] for hit in after for reason in hit["reasons"]}
    np.testing.assert_allclose(
        [hit["score"] for hit in after], scores(alone, left, [hit["id"] for hit in after]), rtol=1e-5, atol=1e-5
    )
    for item in left:
        alone.ask("DELETE", f"/items/{item}", status=204)
    assert alone.get(f"/recommend/{USER}", model="iris", explain=True)["fallback"] == "popular"
    alone.get(f"/explain/{USER}/{target}", status=404)


# --- bundles ----------------------------------------------------------------------------------------------------------


def test_a_bundle_without_iris_says_so_and_one_with_it_takes_over(
    plain_bundle: Path, demo_bundle: Path, demo_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "lacuna.db"
    with Running(settings_for(plain_bundle, demo_folder, file)) as service:
        for user in (USER, "nobody"):
            for query in ({"model": "iris"}, {"explain": True}, {"model": "popular", "explain": True}):
                assert service.get(f"/recommend/{user}", status=503, **query)["type"] == "/problems/not-served"
        for body in ({"model": "iris"}, {"explain": True}):
            session = {"items": [{"id": "demo-0001"}], **body}
            assert service.post("/recommend", session, status=503)["type"] == "/problems/not-served"
        assert service.get(f"/explain/{USER}/demo-0001", status=503)["type"] == "/problems/not-served"
        assert "iris:targets" not in service.get("/stats")["indexes"]
        service.check_index()
        without = service.get(f"/recommend/{USER}", n=500)["items"]
    with Running(settings_for(demo_bundle, demo_folder, file)) as service:
        service.check_index()
        assert service.get(f"/recommend/{USER}", n=500)["items"] == without
        assert len(service.get(f"/explain/{USER}/demo-0001")["reasons"]) > 1
        assert service.get("/stats")["indexes"]["iris:targets"]["delta"] == len(service.engine.memory.catalogue)


def test_iris_may_read_some_of_the_modalities(
    plain_bundle: Path, demo_folder: Path, seeded_file: Path, tmp_path: Path
) -> None:
    with_iris(plain_bundle, tmp_path / "bundle", reads=("image",))
    file = Path(shutil.copy(seeded_file, tmp_path / "lacuna.db"))
    with Running(settings_for(tmp_path / "bundle", demo_folder, file)) as service:
        service.check_index()
        for reason in service.get(f"/explain/{USER}/demo-0001")["reasons"]:
            assert reason["modalities"] == {"image": 1.0}
            assert reason["states"].keys() == {"image"}


def test_an_iris_that_reads_what_the_bundle_has_not_is_refused(demo_bundle: Path) -> None:
    bundle = Bundle.load(demo_bundle)
    name, *_ = reversed([modality.name for modality in bundle.manifest.modalities])
    fewer = bundle.manifest.model_copy(update={"modalities": bundle.manifest.modalities[:-1]})
    with pytest.raises(BundleError, match=f"reads '{name}' as [0-9]+ numbers, which the bundle has not"):
        load_iris(Bundle(bundle.path, fewer))
