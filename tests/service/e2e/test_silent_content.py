"""Content that says nothing of its item: vectors of zeros, the mean of all, texts without a word, pictures of one
colour; and texts that are longer than their encoder reads."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.bundle import CATALOGUE_FEATURES, CATALOGUE_ITEMS
from service.domain import Observed, Remark
from service.export import export
from service.pipeline import renew
from service.pipeline.encode import MEAN, UNREAD, ZERO, Encoded
from tests.contracts import stores
from tests.service.conftest import AUDIO
from tests.service.running import Running, base64_of, fresh_id, picture, settings_for, sign

SILENCE: dict[str, Any] = {"vector": [0] * AUDIO}
LONG = "mug " * 300
FROM_TITLE = {"state": "observed", "source": "title"}


def audio(answer: Any) -> Any:
    return answer["modalities"]["audio"]


def mean_of(service: Running) -> dict[str, Any]:
    return {"vector": service.engine.active.dgmrec.model.tower("audio").projection.mean.tolist()}


def test_a_vector_of_zeros_is_no_observation(anywhere: Running) -> None:
    """However it comes, it is as if nothing had been given, and the answer says why."""
    plain = anywhere.create(title="Red mug")
    expected = {**audio(plain), "detail": ZERO}
    assert expected["state"] == "generated"
    body = {"title": "Red mug", "modalities": {"audio": SILENCE}}
    created = anywhere.create(**body)
    assert audio(created) == expected
    assert audio(anywhere.ask("PUT", f"/items/{fresh_id()}", json=body, status=201)) == expected
    assert audio(anywhere.patch(plain["id"], {"modalities": {"audio": SILENCE}})) == expected
    (row,) = anywhere.post("/items/batch", {"items": [{"id": fresh_id(), **body}]})["items"]
    assert (row["status"], audio(row)) == (201, expected)
    imputed = audio(anywhere.post("/impute", body))
    assert {name: imputed[name] for name in expected} == expected
    assert audio(anywhere.get(f"/items/{created['id']}")) == expected
    detail = anywhere.get(f"/items/{created['id']}/modalities/audio", vector=True)
    assert (detail["detail"], detail["source"]) == (ZERO, None)
    assert detail["vector"] == anywhere.vector(plain["id"], "audio") == imputed["vector"]
    anywhere.check_index()


def test_the_mean_of_all_is_no_observation(anywhere: Running) -> None:
    created = anywhere.create(modalities={"audio": mean_of(anywhere)})
    assert audio(created) == {
        "state": "generated", "generator": "mean", "confidence": 0.0, "basis": [], "detail": MEAN
    }  # fmt: skip
    anywhere.check_index()


def test_the_reason_goes_with_the_content(alone: Running) -> None:
    item = alone.create(title="Red mug", modalities={"audio": SILENCE, "text": "🧦"})["id"]
    assert audio(alone.patch(item, {"available": False}))["detail"] == ZERO  # and stays with anything else
    assert audio(alone.patch(item, {"title": "Blue mug"}))["detail"] == ZERO
    assert "detail" not in audio(alone.patch(item, {"modalities": {"audio": None}}))
    alone.patch(item, {"modalities": {"audio": SILENCE}})
    assert audio(alone.patch(item, {"modalities": {"audio": {"vector": [0.5] * AUDIO}}})) == {"state": "observed"}
    assert audio(alone.patch(item, {"modalities": {"audio": SILENCE}}))["state"] == "generated"
    alone.view(item, "shopper-001")  # which generates it anew
    assert audio(alone.get(f"/items/{item}"))["detail"] == ZERO
    alone.check_index()


@pytest.mark.parametrize("text", ["🧦🧦", "...!", "<br>&nbsp;", "你好"])
def test_a_text_without_a_word_that_the_encoder_knows_is_no_observation(anywhere: Running, text: str) -> None:
    image = base64_of(picture("green"))
    plain = anywhere.create(modalities={"image": image})["modalities"]["text"]
    told = anywhere.create(modalities={"image": image, "text": text})
    assert told["modalities"]["text"] == {**plain, "detail": UNREAD}
    item = anywhere.get(f"/items/{told['id']}")
    assert (item["text"], item["modalities"]["text"]["detail"]) == (text, UNREAD)
    detail = anywhere.get(f"/items/{told['id']}/modalities/text")
    assert (detail["text"], detail["state"], detail["detail"]) == (text, "generated", UNREAD)
    titled = anywhere.create(title=text, modalities={"image": image})
    assert titled["modalities"]["text"] == {**plain, "detail": UNREAD}
    assert anywhere.patch(told["id"], {"title": "A mug"})["modalities"]["text"]["detail"] == UNREAD  # a text is given
    assert anywhere.patch(titled["id"], {"title": "A mug"})["modalities"]["text"] == FROM_TITLE
    assert anywhere.patch(told["id"], {"modalities": {"text": None}})["modalities"]["text"] == FROM_TITLE
    assert anywhere.get(f"/items/{told['id']}")["text"] is None  # the title stands in for it
    anywhere.check_index()


def test_html_is_no_word_and_is_stored_as_it_came(anywhere: Running) -> None:
    text = "<p>Salt &amp; <b>pepper</b> mills</p>"
    marked = anywhere.create(modalities={"text": text})["id"]
    plain = anywhere.create(modalities={"text": "Salt & pepper mills"})["id"]
    assert anywhere.vector(marked, "text") == anywhere.vector(plain, "text")
    assert anywhere.get(f"/items/{marked}")["text"] == text
    assert anywhere.found_by("/retrieve", text=text, n=2).keys() == {marked, plain}


def test_a_text_that_is_not_read_to_its_end_says_so(anywhere: Running) -> None:
    created = anywhere.create(title="Mug", modalities={"text": LONG})
    assert created["modalities"]["text"] == {"state": "observed", "truncated": True}
    assert anywhere.get(f"/items/{created['id']}")["modalities"]["text"] == {"state": "observed", "truncated": True}
    assert anywhere.get(f"/items/{created['id']}/modalities/text")["truncated"] is True
    assert anywhere.post("/impute", {"modalities": {"text": LONG}})["modalities"]["text"]["truncated"] is True
    assert anywhere.create(title=LONG[:900])["modalities"]["text"] == FROM_TITLE
    assert anywhere.patch(created["id"], {"modalities": {"text": "mug"}})["modalities"]["text"] == {"state": "observed"}


def test_a_query_that_says_nothing_is_refused(anywhere: Running) -> None:
    for body, at in (
        ({"vector": {"audio": SILENCE["vector"]}}, "/vector/audio"),
        ({"vector": {"audio": mean_of(anywhere)["vector"]}}, "/vector/audio"),
        ({"vector": {"audio": SILENCE["vector"]}, "target": "text"}, "/vector/audio"),
        ({"text": "🧦"}, "/text"),
    ):
        problem = anywhere.post("/retrieve", body, status=422)
        assert problem["errors"][0]["pointer"] == at
        assert "nothing is left to search for" in problem["detail"]
    assert anywhere.get("/retrieve", text="...", status=422)["errors"][0]["pointer"] == "/query/text"
    assert anywhere.get("/retrieve", text="mug")["items"]


def test_pictures_of_one_colour_are_pictures(alone: Running) -> None:
    ids = {}
    for colour in ("black", "white", "red"):
        for mode in ("RGB", "L") if colour == "black" else ("RGB",):
            created = alone.create(modalities={"image": base64_of(picture(colour, mode=mode))})
            assert created["modalities"]["image"] == {"state": "observed"}
            assert created["modalities"]["text"]["state"] == "generated"
            ids[created["id"]] = colour
    for item, colour in ids.items():
        found = alone.found_by(f"/items/{item}/similar", by="image", n=500)
        assert all(-1.001 <= hit["score"] <= 1.001 for hit in found.values())
        again = alone.post("/retrieve", {"image": base64_of(picture(colour)), "n": 2})["items"]
        assert ids[again[0]["id"]] == colour
    alone.check_index()


def test_what_could_not_be_read_is_exported(alone: Running, tmp_path: Path) -> None:
    item = alone.create(modalities={"text": "🧦", "audio": SILENCE})["id"]
    alone.run(export(alone.settings.database_url, tmp_path / "out"))
    bodies = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text("utf-8").splitlines()]
    (body,) = [body for body in bodies if body["id"] == item]
    assert body["modalities"] == {"text": "🧦"}


def test_content_that_another_encoder_finds_silent_is_missing_from_then_on() -> None:
    vector = np.ones(3, dtype=np.float32)
    observed = {name: Observed(vector, "vector") for name in ("text", "image", "audio")}
    old = {"text": Remark(truncated=True), "audio": Remark(truncated=True)}
    before = stores.item("a", observed=observed, remarks=old)
    contents: Any = dict.fromkeys(("text", "image"))
    again = Observed(vector * 2, "vector")
    after = renew._renewed(before, contents, Encoded({"image": again}, (), {"text": Remark(UNREAD)}))
    assert after.item.observed == {"image": again, "audio": observed["audio"]}
    assert after.item.remarks == {"text": Remark(UNREAD), "audio": Remark(truncated=True)}
    assert after.recoded is not None
    assert {name: len(one.vector) for name, one in after.recoded.items()} == {"text": 0, "image": 3}


def test_a_bundles_silent_features_are_seeded_as_missing(
    plain_bundle: Path, demo_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bundles that were made before zeros counted as missing hold them as observed."""
    bundle = tmp_path / "bundle"
    shutil.copytree(plain_bundle, bundle)
    features = load_file(bundle / CATALOGUE_FEATURES)
    rows = features["audio.observed"].nonzero()[0][:2]
    features["audio"][rows] = 0
    save_file(features, bundle / CATALOGUE_FEATURES)
    bodies = [json.loads(line) for line in (bundle / CATALOGUE_ITEMS).read_text("utf-8").splitlines()]
    told, unread = [body for body in bodies if "text" in body["modalities"]][:2]
    told["modalities"]["text"], unread["modalities"]["text"] = LONG, "🧦"
    (bundle / CATALOGUE_ITEMS).write_text("\n".join(map(json.dumps, bodies)), "utf-8")
    sign(bundle, CATALOGUE_FEATURES, CATALOGUE_ITEMS)
    with (
        caplog.at_level(logging.WARNING),
        Running(settings_for(bundle, demo_folder, tmp_path / "lacuna.db")) as service,
    ):
        assert caplog.text.count("3 features of the bundle's items say nothing and count as missing") == 1
        assert service.get(f"/items/{told['id']}")["modalities"]["text"] == {"state": "observed", "truncated": True}
        silent = service.get(f"/items/{unread['id']}")
        assert (silent["text"], silent["modalities"]["text"]["detail"]) == ("🧦", UNREAD)
        for row in rows.tolist():
            report = audio(service.get(f"/items/demo-{row:04d}"))
            assert (report["state"], report["detail"]) == ("generated", ZERO)
        service.check_index()
