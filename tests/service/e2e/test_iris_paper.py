"""IRIS as the paper has it on the real service: the tests of lists and explanations hold for it, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.e2e import test_explain
from tests.service.e2e.test_explain import USER, history_of, kept, reranker
from tests.service.irises import PAPER, with_iris
from tests.service.running import Running, seeded

test_lists = test_explain.test_a_list_by_iris_is_what_the_model_ranks
test_options = test_explain.test_a_list_by_iris_takes_all_options
test_candidates = test_explain.test_iris_chooses_from_what_both_models_find
test_sessions = test_explain.test_a_session_is_ranked_by_iris_as_a_user_is
test_weights = test_explain.test_weights_of_a_session_count
test_list_with_reasons = test_explain.test_a_list_is_the_same_with_and_without_reasons
test_reasons = test_explain.test_reasons_are_the_models_and_say_what_they_rest_on
test_pairs = test_explain.test_a_pair_is_told_all_of_it
test_itself = test_explain.test_an_item_is_no_reason_for_itself
test_short_histories = test_explain.test_a_history_of_one_and_of_none
test_not_explained = test_explain.test_what_cannot_be_explained
test_newest = test_explain.test_only_the_newest_of_a_history_speak
test_deleted = test_explain.test_a_deleted_item_is_no_reason


@pytest.fixture(scope="module")
def demo_bundle(plain_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("paper") / "bundle"
    with_iris(plain_bundle, path, config=PAPER)
    return path


@pytest.fixture(scope="module")
def seeded_file(demo_bundle: Path, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeded(demo_bundle, demo_folder, tmp_path_factory.mktemp("seeded") / "lacuna.db")


@pytest.fixture(scope="module")
def anywhere(running: Running) -> Running:
    return running


def test_models_tell_the_form(running: Running) -> None:
    (active,) = running.get("/models")["models"]
    assert {name: model["form"] for name, model in active["models"].items()} == {"dgmrec": "lacuna", "iris": "paper"}


def test_a_generated_feature_counts_as_missing(running: Running) -> None:
    told = running.get(f"/explain/{USER}/demo-0001")["reasons"]
    states = [(reason, name, state) for reason in told for name, state in reason["states"].items()]
    assert {state for _, _, state in states} == {"observed", "generated"}
    for reason, name, state in states:
        assert (reason["effects"][name] == 0) == (reason["modalities"][name] == 0) == (state == "generated")
    assert any(effect < 0 for reason in told for effect in reason["effects"].values())


def test_interests_are_those_of_the_model(running: Running) -> None:
    past = history_of(running, USER)
    found = reranker(running).explain(kept(running, past), kept(running, ["demo-0001"]))
    told = {reason["item"]: reason["interest"] for reason in running.get(f"/explain/{USER}/demo-0001")["reasons"]}
    expected = dict(zip(past, found.interest[0].tolist(), strict=True))
    assert told == {item: pytest.approx(expected[item], rel=1e-3, abs=1e-5) for item in told}
