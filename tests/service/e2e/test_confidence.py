"""Generated features that are too unsure to be used, and confidences that are calibrated on what came true."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.domain import State
from service.settings import SettingsError
from tests.service.running import Running, base64_of, settings_for
from training.demo.catalogue import demo_item

WORDS = "A dotted canvas sneaker for long walks."
PAIRS = 12  # that a calibration takes in these tests
NOTHING: dict[str, Any] = {}


@pytest.fixture
def place(seeded_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(seeded_file, tmp_path / "lacuna.db"))


@pytest.fixture
def calibrating(place: Path, demo_bundle: Path, demo_folder: Path) -> Iterator[Running]:
    with Running(settings_for(demo_bundle, demo_folder, place, calibration_pairs=PAIRS)) as service:
        yield service


def bare(service: Running, k: int) -> str:
    """An item with the text of a product alone."""
    return str(service.create(modalities={"text": demo_item(k=k).text})["id"])


def replaced(service: Running, count: int, first: int = 0) -> None:
    """Items whose generated pictures are replaced by real ones."""
    for k in range(first, first + count):
        service.patch(bare(service, k), {"modalities": {"image": base64_of(demo_item(k=k).picture)}})
    service.run(service.engine.runtime.drain())


def vectors_of(service: Running) -> dict[str, Any]:
    """What lists are made of, by item."""
    catalogue = service.engine.memory.catalogue
    keys = {entry.id: np.array([key]) for key, entry in catalogue.entries.items()}
    return {item_id: catalogue.final(key)[0].tolist() for item_id, key in keys.items()}


# --- what is not used ---------------------------------------------------------------------------------------------


def test_an_unsure_feature_is_left_out_and_says_so(place: Path, demo_bundle: Path, demo_folder: Path) -> None:
    with Running(settings_for(demo_bundle, demo_folder, place, min_confidence="image=1,audio=0.001")) as service:
        answer = service.create(modalities={"text": WORDS})
        item_id, image = answer["id"], answer["modalities"]["image"]
        sure = image["confidence"] == 1
        assert image["state"] == "generated"
        assert sure or image["used"] is False
        assert sure or "below 1, so it is left out of searches" in image["detail"]
        assert "used" not in answer["modalities"]["audio"]
        assert service.get(f"/items/{item_id}")["modalities"]["image"] == image
        assert service.get(f"/items/{item_id}/modalities/image")["state"] == "generated"
        assert (item_id in service.found_by("/retrieve", text=WORDS, target="image", n=500)) == sure
        assert item_id in service.found_by("/retrieve", text=WORDS, n=500)
        assert bool(service.get(f"/items/{item_id}/similar", by="image")["items"]) == sure
        stats = service.get("/stats")
        assert stats["min_confidence"] == {"text": 0, "image": 1, "audio": 0.001}
        unused = sum(
            "used" in found["modalities"]["image"]
            for found in service.get("/items", limit=500, missing="image")["items"]
        )
        assert stats["unused"]["image"] == unused > 0
        assert f'lacuna_unused_features{{modality="image"}} {unused}' in service.client.get("/metrics").text
        assert service.ask("POST", "/admin/check")["differing"] == 0


@pytest.mark.parametrize("with_snapshot", [False, True])
def test_another_least_confidence_leads_to_what_a_start_derives(
    place: Path, tmp_path: Path, demo_bundle: Path, data_dir: Path, *, with_snapshot: bool
) -> None:
    with Running(settings_for(demo_bundle, data_dir, place)) as service:
        before = vectors_of(service)
        if with_snapshot:
            service.ask("POST", "/admin/snapshot")
    strict = {"min_confidence": "0.95"}
    with Running(settings_for(demo_bundle, data_dir, place, **strict)) as service:
        service.check_index()
        switched = vectors_of(service)
        assert service.ask("POST", "/admin/check")["differing"] == 0
        assert switched != before
    fresh = Path(shutil.copy(place, tmp_path / "fresh.db"))
    shutil.rmtree(data_dir / "snapshots", ignore_errors=True)
    with Running(settings_for(demo_bundle, data_dir, fresh, **strict)) as service:
        assert vectors_of(service) == switched
    with Running(settings_for(demo_bundle, data_dir, place)) as service:
        service.check_index()
        assert vectors_of(service) == before


def test_a_modality_that_the_bundle_has_not(place: Path, demo_bundle: Path, demo_folder: Path) -> None:
    with (
        pytest.raises(SettingsError, match="LACUNA_MIN_CONFIDENCE names the modality 'smell'; the bundle"),
        Running(settings_for(demo_bundle, demo_folder, place, min_confidence="smell=0.5")),
    ):
        pass


# --- lists without what is generated ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/recommend/shopper-001", NOTHING),
        ("/recommend/shopper-001", {"model": "iris"}),
        ("/recommend/shopper-001", {"model": "popular"}),
        ("/recommend/nobody", NOTHING),
        ("/items/demo-0003/similar", NOTHING),
    ],
)
def test_lists_of_whole_items_without_generated_ones(running: Running, path: str, query: dict[str, Any]) -> None:
    everything = running.found_by(path, n=500, **query)
    found = running.found_by(path, n=500, include_generated=False, **query)
    assert found.keys() == {
        item for item, hit in everything.items() if State.GENERATED not in hit["modalities"].values()
    }
    assert 0 < len(found) < len(everything)


def test_a_session_without_generated_items(running: Running) -> None:
    body = {"items": [{"id": "demo-0003"}], "n": 500, "include_generated": False}
    found = running.ask("POST", "/recommend", json=body)["items"]
    assert found
    assert all("generated" not in hit["modalities"].values() for hit in found)


def test_similar_by_a_modality_without_generated_features(running: Running) -> None:
    item_id = bare(running, 3)
    found = running.found_by(f"/items/{item_id}/similar", by="image", n=500, include_generated=False)
    assert found
    assert {hit["matched"]["state"] for hit in found.values()} == {"observed"}


def test_items_by_what_is_generated(running: Running) -> None:
    for generated, state in ((True, "generated"), (False, "absent")):
        page = running.get("/items", missing="image", generated=generated, limit=500)["items"]
        assert {item["modalities"]["image"]["state"] for item in page} <= {state}
    assert running.get("/items", missing="image", generated=True, limit=1)["items"]


# --- what came true ---------------------------------------------------------------------------------------------------


def test_pairs_by_bucket_and_category(calibrating: Running) -> None:
    item_id = calibrating.create(modalities={"text": WORDS}, categories=["shoes", "red"])["id"]
    served = calibrating.get(f"/items/{item_id}")["modalities"]["image"]["confidence"]
    calibrating.ask(
        "PUT",
        f"/items/{item_id}",
        json={
            "categories": ["shoes"],
            "modalities": {"text": WORDS, "image": base64_of(demo_item(k=1).picture)},
        },
    )
    found = calibrating.get("/stats")["imputation_error"]["image"]
    (bucket,) = found["confidence"]
    assert bucket["from"] <= served <= bucket["to"]
    assert (bucket["pairs"], found["pairs"], found["categories"]["shoes"]["pairs"]) == (1, 1, 1)
    assert "red" not in found["categories"]  # which it is no longer in
    assert found["calibration_error"] == pytest.approx(abs(served - found["mean_centred_cosine"]), abs=1e-4)
    assert found["calibration"] is None
    assert found["warning"] is None
    assert 'lacuna_imputation_error{bucket="' in calibrating.client.get("/metrics").text


def test_confidences_are_calibrated_once_there_are_enough_pairs(
    calibrating: Running, place: Path, demo_bundle: Path, demo_folder: Path
) -> None:
    waiting = bare(calibrating, 500)
    before = calibrating.get(f"/items/{waiting}")["modalities"]["image"]
    version = calibrating.get(f"/items/{waiting}")["version"]
    replaced(calibrating, PAIRS - 1)
    assert calibrating.get("/stats")["imputation_error"]["image"]["calibration"] is None
    replaced(calibrating, 1, PAIRS - 1)
    calibration = calibrating.get("/stats")["imputation_error"]["image"]["calibration"]
    assert calibration["pairs"] == PAIRS
    after = calibrating.get(f"/items/{waiting}")["modalities"]["image"]
    assert after["calibrated_on"] == PAIRS
    assert calibrating.get(f"/items/{waiting}")["version"] == version
    assert {name: value for name, value in before.items() if name != "confidence"} == {
        name: value for name, value in after.items() if name not in ("confidence", "calibrated_on")
    }
    assert "calibrated_on" not in calibrating.get(f"/items/{waiting}")["modalities"]["audio"]
    fresh = calibrating.client.post("/impute", json={"modalities": {"text": WORDS}}).json()["modalities"]["image"]
    assert fresh["calibrated_on"] == PAIRS
    with Running(settings_for(demo_bundle, demo_folder, place, calibration_pairs=PAIRS)) as other:
        assert other.get(f"/items/{waiting}")["modalities"]["image"] == after
        replaced(other, 4, 40)  # which is a tenth more
        assert other.get("/stats")["imputation_error"]["image"]["calibration"]["pairs"] > PAIRS
        follow_until(calibrating, other)
        assert calibrating.get(f"/items/{waiting}")["modalities"] == other.get(f"/items/{waiting}")["modalities"]


def follow_until(service: Running, other: Running) -> None:
    """Have a service follow what another has written."""
    service.ask("GET", "/items", headers={"X-Lacuna-Position": str(other.get("/stats")["last_change"])})


def test_what_is_used_follows_the_calibration_in_every_worker(
    place: Path, demo_bundle: Path, demo_folder: Path
) -> None:
    settings = {"calibration_pairs": PAIRS, "min_confidence": "image=0.6"}
    with (
        Running(settings_for(demo_bundle, demo_folder, place, **settings)) as one,
        Running(settings_for(demo_bundle, demo_folder, place, **settings)) as two,
    ):
        replaced(one, 2 * PAIRS)
        follow_until(two, one)
        for service in (one, two):
            service.check_index()
            assert service.ask("POST", "/admin/check")["differing"] == 0
        assert one.engine.memory.catalogue.confidence == two.engine.memory.catalogue.confidence
        assert one.engine.memory.catalogue.confidence.calibrated_on("image") is not None
        assert vectors_of(one) == vectors_of(two)
        held = vectors_of(one)
    with Running(settings_for(demo_bundle, demo_folder, place, **settings)) as service:
        assert vectors_of(service) == held


def test_it_warns_where_confidence_is_wrong(
    place: Path, demo_bundle: Path, demo_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.pipeline.recalibrate.FEWEST", 3)
    settings = {"calibration_pairs": 0, "warn_calibration_error": 0.001}
    with Running(settings_for(demo_bundle, demo_folder, place, **settings)) as service:
        replaced(service, 4)
        warning = service.get("/stats")["imputation_error"]["image"]["warning"]
        assert warning.startswith("Of the newest 4 generated features of 'image' that real ones replaced")
        assert warning in caplog.text
        assert 'lacuna_calibration_warning{modality="image"} 1.0' in service.client.get("/metrics").text
