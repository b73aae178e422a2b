"""The prepared format and the readers that make it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.feedback import EVENT_TYPES
from tests.training.sources import PICTURE
from training.datasets import READERS, DatasetError, load_dataset, write_dataset
from training.datasets.base import Located, Place, PublishedMask, Tally
from training.datasets.prepared import item_line, read_info
from training.datasets.published import Published


def picture(data: bytes = PICTURE) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


def items() -> list[dict[str, Any]]:
    return [
        {"id": "a", "title": "Alpha", "modalities": {"text": "first letter", "image": picture()}},
        {"id": "b", "title": "Beta", "modalities": {"sound": {"vector": [1.0, 2.5]}}, "categories": ["letters"]},
        {"id": "c", "title": None, "metadata": {"year": 1999}, "available": False},
    ]


def feedback() -> list[dict[str, Any]]:
    return [
        {"user": "u2", "item": "b", "type": "rating", "value": 2, "timestamp": "1970-01-01T00:01:00Z"},
        {"user": "u1", "item": "a", "type": "view"},
        {"user": "u2", "item": "b", "type": "review", "value": 5, "text": "better now"},
        {"user": "u1", "item": "a", "type": "purchase", "value": 1, "timestamp": "1970-01-01T02:00:00+01:00"},
        {"user": "u1", "item": "c", "type": "rating", "value": 1},
    ]


def prepare(out: Path, **options: Any) -> Path:
    arguments: dict[str, Any] = {"name": "letters", "source": "a test", "min_rating": None, **options}
    beside = {name: arguments.pop(name) for name in Published.__slots__ if name in arguments}
    rows = arguments.pop("items", items()), arguments.pop("feedback", feedback())
    write_dataset(out, *rows, published=Published(**beside), **arguments)
    return out


def native(folder: Path, item_lines: list[Any], feedback_lines: list[Any]) -> Path:
    folder.mkdir()
    for name, lines in (("items.jsonl", item_lines), ("feedback.jsonl", feedback_lines)):
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (folder / name).write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return folder


# --- round trip --------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    info = read_info(prepare(tmp_path / "out", synthetic=True))
    dataset = load_dataset(tmp_path / "out")

    assert (dataset.name, dataset.synthetic, dataset.min_rating) == ("letters", True, None)
    assert info.counts.model_dump() == {"items": 3, "users": 2, "feedback": 5}
    assert dataset.items.ids == ["a", "b", "c"]
    assert dataset.users.ids == ["u2", "u1"]  # first seen first
    assert dataset.fingerprint == info.fingerprint
    events = dataset.interactions
    assert len(events) == 5
    assert events.user.tolist() == [0, 1, 0, 1, 1]
    assert events.item.tolist() == [1, 0, 1, 0, 2]
    assert [EVENT_TYPES[kind] for kind in events.type] == ["rating", "view", "review", "purchase", "rating"]
    np.testing.assert_array_equal(events.value, [2, np.nan, 5, 1, 1])
    np.testing.assert_array_equal(events.timestamp, [60, np.nan, np.nan, 3600, np.nan])
    assert events.texts == {2: "better now"}
    assert (dataset.split, dataset.new_items, dict(dataset.masks)) == (None, None, {})


def test_records_can_be_written_again(tmp_path: Path) -> None:
    dataset = load_dataset(prepare(tmp_path / "out"))
    written = b"".join(item_line(record) for record in dataset.records)
    assert written == (tmp_path / "out" / "items.jsonl").read_bytes()


def test_content_and_modalities(tmp_path: Path) -> None:
    dataset = load_dataset(prepare(tmp_path / "out"))
    assert dataset.modalities == ("text", "image", "sound")
    assert list(dataset.content("text")) == ["first letter", "Beta", None]  # the title stands in
    assert list(dataset.content("image")) == [PICTURE, None, None]
    sound = dataset.content("sound")
    assert isinstance(sound[1], np.ndarray)
    assert sound[1].dtype == np.float32
    assert sound[1].tolist() == [1, 2.5]
    assert dataset.observed().tolist() == [[True, True, False], [True, False, True], [False, False, False]]
    assert dataset.observed(["image"]).tolist() == [[True], [False], [False]]


def test_no_text_modality_without_text_and_titles(tmp_path: Path) -> None:
    rows = [{"id": key, "modalities": {"audio": {"vector": [1]}, "image": {"vector": [1]}}} for key in "abc"]
    assert load_dataset(prepare(tmp_path / "out", items=rows)).modalities == ("image", "audio")


@pytest.mark.parametrize(
    ("min_rating", "expected"),
    [
        (None, [[0, 1], [1, 0], [1, 2]]),
        (2, [[0, 1], [1, 0]]),
        (3, [[0, 1], [1, 0]]),  # the purchase's value is no rating; the review, which is newer, makes (u2, b) count
    ],
)
def test_pairs_are_distinct_and_show_interest(
    tmp_path: Path, min_rating: float | None, expected: list[list[int]]
) -> None:
    dataset = load_dataset(prepare(tmp_path / "out", min_rating=min_rating))
    assert dataset.pairs().tolist() == expected


def test_split_masks_and_new_items(tmp_path: Path) -> None:
    mask = PublishedMask(("c", "a"), ("image", "scent"), np.array([[True, True], [True, False]]))
    prepare(
        tmp_path / "out",
        split=[("u1", "a", "test"), ("u1", "c", "train"), ("u2", "b", "valid")],
        masks={"half": mask},
        new_items=["c"],
    )
    dataset = load_dataset(tmp_path / "out")
    assert dataset.split is not None
    assert dataset.split.tolist() == [1, 2, 0]  # in the order of pairs(), not of the file
    assert dataset.withheld("half").tolist() == [[False, True, False], [False, False, False], [False, True, False]]
    assert dataset.new_items is not None
    assert dataset.new_items.tolist() == [2]
    with pytest.raises(DatasetError, match=r"no published mask 'third' \(it has: half\)"):
        dataset.withheld("third")


BAD_SPLITS = [
    ([("u1", "a", "test"), ("u1", "c", "train")], "split.csv leaves out the pair 'u2', 'b'"),
    ([("u1", "a", "test"), ("u1", "b", "train")], "split.csv, line 3: the pair is not in the feedback"),
    ([("u1", "a", "test"), ("u2", "b", "train"), ("u1", "a", "train")], "line 4: the pair stands there twice"),
    ([("u1", "a", "exam")], "split.csv, line 2: expected a known user"),
    ([("u9", "a", "test")], "split.csv, line 2: expected a known user"),
]
GOOD_SPLIT = [("u1", "a", "test"), ("u1", "c", "train"), ("u2", "b", "valid")]


@pytest.mark.parametrize(("rows", "message"), BAD_SPLITS)
def test_bad_split(tmp_path: Path, rows: list[tuple[str, str, str]], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        prepare(tmp_path / "out", split=rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rows", "message"), BAD_SPLITS)
def test_a_split_that_went_bad(tmp_path: Path, rows: list[tuple[str, str, str]], message: str) -> None:
    prepare(tmp_path / "out", split=GOOD_SPLIT)
    (tmp_path / "out" / "split.csv").write_text("user,item,split\n" + "".join(",".join(row) + "\n" for row in rows))
    with pytest.raises(DatasetError, match=message):
        load_dataset(tmp_path / "out")


def test_a_pair_that_a_split_repeats_is_merged(tmp_path: Path) -> None:
    prepare(tmp_path / "out", split=[*GOOD_SPLIT, ("u1", "a", "test")])
    written = (tmp_path / "out" / "split.csv").read_text().splitlines()
    assert written == ["user,item,split", "u1,a,test", "u1,c,train", "u2,b,valid"]


def test_masks_and_new_items_of_unknown_items(tmp_path: Path) -> None:
    mask = PublishedMask(("z",), ("image",), np.array([[True]]))
    with pytest.raises(DatasetError, match=r"missing_x.npz names the item 'z', which is not in items.jsonl"):
        prepare(tmp_path / "masked", masks={"x": mask})
    with pytest.raises(DatasetError, match=r"the list of new items names the item 'z'"):
        prepare(tmp_path / "new", new_items=["z"])
    known = PublishedMask(("a",), ("image",), np.array([[True]]))
    prepare(tmp_path / "masked", masks={"x": known}, new_items=["a"])
    (tmp_path / "masked" / "new_items.json").write_text('["z"]')
    with pytest.raises(DatasetError, match=r"new_items.json names the item 'z'"):
        load_dataset(tmp_path / "masked")
    np.savez(tmp_path / "masked" / "missing_x.npz", items=["z"], columns=["image"], missing=[[True]])
    with pytest.raises(DatasetError, match=r"missing_x.npz names the item 'z'"):
        load_dataset(tmp_path / "masked")


def test_a_mask_of_no_items(tmp_path: Path) -> None:
    empty = PublishedMask((), (), np.zeros((0, 0), dtype=np.bool_))
    prepare(tmp_path / "out", masks={"none": empty}, new_items=[])
    dataset = load_dataset(tmp_path / "out")
    assert not dataset.withheld("none").any()
    assert dataset.new_items is not None
    assert len(dataset.new_items) == 0


def test_mask_of_the_wrong_shape() -> None:
    with pytest.raises(DatasetError, match="2 items and 1 columns cannot be bool"):
        PublishedMask(("a", "b"), ("image",), np.ones((2, 2), dtype=np.bool_))


# --- writing whole or not at all ---------------------------------------------------------------------------------


def test_writing_replaces_an_older_dataset(tmp_path: Path) -> None:
    prepare(tmp_path / "out", new_items=["a"])
    prepare(tmp_path / "out", name="second")
    assert load_dataset(tmp_path / "out").name == "second"
    assert load_dataset(tmp_path / "out").new_items is None
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_writing_spares_other_folders(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(DatasetError, match="is no prepared dataset; choose another place"):
        prepare(tmp_path / "photos")
    assert (tmp_path / "photos" / "holiday.jpg").exists()


def test_a_failed_write_leaves_the_old_dataset(tmp_path: Path) -> None:
    prepare(tmp_path / "out")
    with pytest.raises(DatasetError, match=r"items.jsonl, line 4: the item 'a' stands there twice"):
        prepare(tmp_path / "out", items=[*items(), {"id": "a"}])
    assert load_dataset(tmp_path / "out").items.ids == ["a", "b", "c"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_fingerprint_depends_on_content_alone(tmp_path: Path) -> None:
    same = [read_info(prepare(tmp_path / name)).fingerprint for name in ("one", "two")]
    other = read_info(prepare(tmp_path / "three", feedback=feedback()[:-1])).fingerprint
    assert same[0] == same[1] != other


def test_changed_after_preparing(tmp_path: Path) -> None:
    prepare(tmp_path / "out")
    with (tmp_path / "out" / "feedback.jsonl").open("a") as stream:
        stream.write('{"user": "u1", "item": "b", "type": "view"}\n')
    with pytest.raises(DatasetError, match="was changed after it was prepared"):
        load_dataset(tmp_path / "out")


def test_progress_is_told(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    prepare(tmp_path / "out", progress=lambda stage, rows: calls.append((stage, rows)))
    assert calls == [("items", 3), ("feedback", 5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no prepared dataset: it has no dataset.json"),
        ("{", "dataset.json is not valid JSON"),
        ('{"format": 99}', "has format version 99, this Lacuna reads version 1"),
        ('{"format": 1, "name": "x"}', "dataset.json, field synthetic: Field required"),
    ],
)
def test_unusable_dataset_json(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_dataset(tmp_path)


# --- where rows come from, and what is left of them --------------------------------------------------------------


def test_a_bad_row_is_named_where_its_source_has_it(tmp_path: Path) -> None:
    place = Place(tmp_path / "shop.csv", 17)
    with pytest.raises(DatasetError, match=r"^shop.csv, line 17: id: an id is 1 to 128 characters"):
        prepare(tmp_path / "out", items=[*items(), Located(place, {"id": "white space"})])
    with pytest.raises(DatasetError, match=r"^shop.csv, line 17: the item 'z' is not in the catalogue"):
        prepare(tmp_path / "out", feedback=[*feedback(), Located(place, {"user": "u", "item": "z", "type": "view"})])
    with pytest.raises(DatasetError, match=r"^shop.csv, line 17: the pair is not in the feedback"):
        prepare(tmp_path / "out", split=[*GOOD_SPLIT, Located(place, ("u2", "a", "train"))])


def test_what_is_left_out_is_counted_and_kept(tmp_path: Path) -> None:
    tally = Tally()
    tally.left_out["rows nobody wants"] += 1
    tally.changed["rows bent"] += 2
    rows = [*feedback(), Located(Place(tmp_path, 9), None), feedback()[1], {**feedback()[1], "type": "click"}]
    split = np.array([0, 1, 2, 0, 1, 2, 0, 1], dtype=np.uint8)
    prepare(tmp_path / "out", feedback=rows, tally=tally, rating_split=split)
    info = read_info(tmp_path / "out")
    assert info.left_out == {"rows nobody wants": 1, "repeated rows of feedback, merged": 1}
    assert info.changed == {"rows bent": 2}
    assert info.counts.feedback == 6
    dataset = load_dataset(tmp_path / "out")
    assert dataset.rating_split is not None
    assert dataset.rating_split.tolist() == [0, 1, 2, 0, 1, 1]  # neither the row left out nor the one merged has a part


def test_repeated_events_stay_where_nothing_is_counted(tmp_path: Path) -> None:
    prepare(tmp_path / "out", feedback=[*feedback(), feedback()[1]])
    assert read_info(tmp_path / "out").counts.feedback == 6


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    mask = PublishedMask(("a",), ("image",), np.array([[True]]))
    prepare(tmp_path / "out", name="shop \udcff", masks={"\udcff": mask})
    assert load_dataset(tmp_path / "out").name == "shop ?"


def test_nothing_is_left(tmp_path: Path) -> None:
    tally = Tally()
    tally.left_out["rows nobody wants"] += 3
    nothing = [Located(Place(tmp_path, line), None) for line in (1, 2, 3)]
    with pytest.raises(DatasetError, match=r"no row is left for feedback.jsonl \(rows nobody wants: 3\)"):
        prepare(tmp_path / "out", feedback=nothing, tally=tally)


def test_a_dataset_json_of_before_there_were_counts(tmp_path: Path) -> None:
    prepare(tmp_path / "out")
    file = tmp_path / "out" / "dataset.json"
    old = json.loads(file.read_text())
    del old["left_out"], old["changed"]
    file.write_text(json.dumps(old))
    assert load_dataset(tmp_path / "out").name == "letters"
    assert (read_info(tmp_path / "out").left_out, read_info(tmp_path / "out").changed) == ({}, {})


# --- our own files -----------------------------------------------------------------------------------------------


def test_native_copies_and_keeps_what_the_folder_says(tmp_path: Path) -> None:
    source = prepare(tmp_path / "source", min_rating=3, synthetic=True)
    info = READERS["lacuna"].prepare(source, tmp_path / "out")
    assert (info.name, info.min_rating, info.synthetic) == ("letters", 3, True)
    assert (tmp_path / "out" / "items.jsonl").read_bytes() == (source / "items.jsonl").read_bytes()
    assert (tmp_path / "out" / "feedback.jsonl").read_bytes() == (source / "feedback.jsonl").read_bytes()


def test_native_without_dataset_json_is_named_after_its_folder(tmp_path: Path) -> None:
    source = native(tmp_path / "shop", [*items(), "", "  "], feedback())
    assert READERS["lacuna"].prepare(source, tmp_path / "out").name == "shop"
    assert load_dataset(tmp_path / "out").items.ids == ["a", "b", "c"]


def test_users_may_have_any_visible_name(tmp_path: Path) -> None:
    row = {"user": 'Zoë, "the" first', "item": "a", "type": "view"}
    prepare(tmp_path / "out", feedback=[row], split=[(row["user"], "a", "train")])
    assert load_dataset(tmp_path / "out").users.ids == [row["user"]]


def test_empty_and_absent_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"items.jsonl is empty"):
        READERS["lacuna"].prepare(native(tmp_path / "empty", [], feedback()), tmp_path / "out")
    quiet = native(tmp_path / "quiet", items(), [])
    for _ in range(2):  # an empty file, and none: nobody has come yet
        info = READERS["lacuna"].prepare(quiet, tmp_path / "out")
        assert (info.counts.users, info.counts.feedback) == (0, 0)
        assert len(load_dataset(tmp_path / "out").pairs()) == 0
        (quiet / "feedback.jsonl").unlink(missing_ok=True)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DatasetError, match=r"items.jsonl does not exist"):
        READERS["lacuna"].prepare(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(DatasetError, match=r"the dataset lacuna needs a source: .*nowhere does not exist"):
        READERS["lacuna"].prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DatasetError, match=r"the dataset lacuna needs a source$"):
        READERS["lacuna"].prepare(None, tmp_path / "out")
