"""The prepared format and the readers that make it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.feedback import EVENT_TYPES
from training.datasets import READERS, DatasetError, load_dataset, write_dataset
from training.datasets.base import PublishedMask
from training.datasets.prepared import item_line, read_info

DATA = Path(os.environ.get("LACUNA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(stream, "PNG")
    return stream.getvalue()


PICTURE = png()


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
    write_dataset(out, arguments.pop("items", items()), arguments.pop("feedback", feedback()), **arguments)
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
    assert dataset.content("text") == ["first letter", "Beta", None]  # the title stands in
    assert dataset.content("image") == [PICTURE, None, None]
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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("u1", "a", "test"), ("u1", "c", "train")], "leaves out the pair 'u2', 'b'"),
        ([("u1", "a", "test"), ("u1", "b", "train")], "line 3: the pair is not in feedback"),
        ([("u1", "a", "test"), ("u2", "b", "train"), ("u1", "a", "train")], "line 4: the pair stands there twice"),
        ([("u1", "a", "exam")], "line 2: expected a known user"),
        ([("u9", "a", "test")], "line 2: expected a known user"),
    ],
)
def test_bad_split(tmp_path: Path, rows: list[tuple[str, str, str]], message: str) -> None:
    prepare(tmp_path / "out", split=rows)
    with pytest.raises(DatasetError, match=message):
        load_dataset(tmp_path / "out")


def test_mask_and_new_items_of_unknown_items(tmp_path: Path) -> None:
    mask = PublishedMask(("z",), ("image",), np.array([[True]]))
    prepare(tmp_path / "masked", masks={"x": mask})
    with pytest.raises(DatasetError, match=r"missing_x.npz names the item 'z'"):
        load_dataset(tmp_path / "masked")
    prepare(tmp_path / "new", new_items=["z"])
    with pytest.raises(DatasetError, match=r"new_items.json names the item 'z'"):
        load_dataset(tmp_path / "new")


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
    with pytest.raises(DatasetError, match=r"feedback.jsonl is empty"):
        READERS["lacuna"].prepare(native(tmp_path / "quiet", items(), []), tmp_path / "out")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DatasetError, match=r"items.jsonl does not exist"):
        READERS["lacuna"].prepare(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(DatasetError, match=r"the dataset lacuna needs a source: .*nowhere does not exist"):
        READERS["lacuna"].prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DatasetError, match=r"the dataset lacuna needs a source$"):
        READERS["lacuna"].prepare(None, tmp_path / "out")


# --- MovieLens ---------------------------------------------------------------------------------------------------


def packed(file: Path, text: str) -> None:
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.write(text)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Three invented films in the layout of MovieLens 100K; nobody rated the last one."""
    source = tmp_path / "films"
    (source / "posters").mkdir(parents=True)
    packed(source / "ratings.csv.gz", "user,item,rating,timestamp\n7,3,4,881250949\n7,1,1,881250950\n8,3,2,0\n")
    packed(
        source / "movies.csv.gz",
        "item,title,genres,overview\n"
        '1,"Kettle, The (1951)",Drama|Noir,\n'
        '3,Spoons,Comedy,"Forks, too."\n'
        "4,Unseen (1960),Drama,Dark.\n",
    )
    packed(source / "split_80_10_10.csv.gz", "user,item,split\n7,3,train\n7,1,test\n8,3,valid\n")
    (source / "posters" / "3.jpg").write_bytes(PICTURE)
    np.savez(
        source / "missing_thirds.npz",
        items=np.array([1, 3, 4]),
        columns=np.array(["text", "image"]),
        missing=np.array([[False, True], [True, True], [True, False]]),
    )
    np.save(source / "new_items.npy", np.array([3, 4]))
    return source


def test_movielens(films: Path, tmp_path: Path) -> None:
    info = READERS["ml-100k"].prepare(films, tmp_path / "out")
    dataset = load_dataset(tmp_path / "out", min_rating=None)
    assert (info.name, info.synthetic, info.min_rating) == ("ml-100k", False, 4)
    assert dataset.items.ids == ["1", "3"]
    assert dataset.users.ids == ["7", "8"]
    assert dataset.content("text") == ["Kettle, The (1951). Drama, Noir.", "Spoons. Comedy. Forks, too."]
    READERS["ml-100k-overviews"].prepare(films, tmp_path / "overviews")
    alone = load_dataset(tmp_path / "overviews")
    assert alone.content("text") == ["Kettle, The (1951)", "Forks, too."]  # the title where there is no overview
    assert (alone.name, alone.items.ids) == ("ml-100k", ["1", "3"])
    assert dataset.content("image") == [None, PICTURE]
    assert dataset.records[0]["metadata"] == {"year": 1951}
    assert dataset.records[1]["metadata"] == {}
    assert dataset.records[0]["categories"] == ["Drama", "Noir"]
    assert dataset.interactions.value.tolist() == [4, 1, 2]
    assert dataset.interactions.timestamp.tolist() == [881250949, 881250950, 0]
    assert dataset.split is not None
    assert dataset.split.tolist() == [0, 2, 1]
    assert dataset.withheld("thirds").tolist() == [[False, True], [True, True]]
    assert dataset.new_items is not None
    assert dataset.new_items.tolist() == [1]


def test_movielens_1m_has_no_ratings(films: Path, tmp_path: Path) -> None:
    (films / "split_80_10_10.csv.gz").unlink()
    packed(films / "interactions.csv.gz", "user,item\n7,3\n8,1\n")
    packed(films / "movies.csv.gz", "item,title,year,genres,plot\n1,One (1951),1951,Drama,A plot.\n3,Two,,War,\n")
    np.savez(
        films / "leave_one_out.npz",
        users=np.array([8, 7]),
        test_item=np.array([1, 3]),
        valid_item=np.array([1, 3]),
        test_neg=np.array([[3], [1]]),
        valid_neg=np.array([[3], [1]]),
    )
    packed(films / "ncf_test.csv.gz", "user,item\n7,3\n")
    np.savez(films / "ncf_negatives.npz", items=np.array([[3, 1, 3]]))
    READERS["ml-1m"].prepare(films, tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert set(dataset.leave_one_out) == {"random", "last"}
    fixed, last = dataset.leave_one_out["random"], dataset.leave_one_out["last"]
    assert (fixed.users.tolist(), fixed.test.tolist()) == ([1, 0], [[0, 1], [1, 0]])
    assert fixed.valid is not None
    assert (last.users.tolist(), last.test.tolist(), last.valid) == ([0], [[1, 0, 1]], None)
    assert {EVENT_TYPES[kind] for kind in dataset.interactions.type} == {"view"}
    assert np.isnan(dataset.interactions.timestamp).all()
    assert dataset.content("text") == ["One (1951). Drama. A plot.", "Two. War."]
    assert dataset.split is None


def test_movielens_bad_sources(films: Path, tmp_path: Path) -> None:
    np.savez(films / "missing_thirds.npz", missing=np.array([[True]]))
    with pytest.raises(DatasetError, match=r"missing_thirds.npz must hold the arrays items, columns and missing"):
        READERS["ml-100k"].prepare(films, tmp_path / "out")
    (films / "missing_thirds.npz").unlink()
    packed(films / "movies.csv.gz", "item,title,genres,overview\n1,One\n")
    with pytest.raises(DatasetError, match=r"movies.csv.gz, line 2: 2 columns, the header has 4"):
        READERS["ml-100k"].prepare(films, tmp_path / "out")
    packed(films / "ratings.csv.gz", "user,film\n1,1\n")
    with pytest.raises(DatasetError, match=r"ratings.csv.gz, line 1: the column item is missing"):
        READERS["ml-100k"].prepare(films, tmp_path / "out")
    (films / "ratings.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DatasetError, match=r"ratings.csv.gz cannot be read as a table"):
        READERS["ml-100k"].prepare(films, tmp_path / "out")
    (films / "ratings.csv.gz").unlink()
    with pytest.raises(DatasetError, match=r"ratings.csv.gz does not exist"):
        READERS["ml-100k"].prepare(films, tmp_path / "out")


# --- the folder format -------------------------------------------------------------------------------------------


@pytest.fixture
def baby(tmp_path: Path) -> Path:
    source = tmp_path / "baby"
    source.mkdir()
    table = "userID\titemID\trating\ttimestamp\tx_label\n0\t2\t5.0\t1400000000\t0\n0\t1\t3.0\t1400000001\t2\n"
    (source / "baby.inter").write_text(table)
    (source / "other.inter").write_text("userID\titemID\n0\t0\n")  # NAME.inter of the folder's name goes first
    np.save(source / "text_feat.npy", np.eye(3, dtype=np.float16))
    np.save(source / "image_feat.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    np.savez(source / "missing_0.50.npz", missing=np.array([[True, False], [False, True], [False, False]]))
    return source


def test_folder(baby: Path, tmp_path: Path) -> None:
    np.save(baby / "new_items.npy", np.array([1]))
    info = READERS["folder"].prepare(baby, tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert info.name == "baby"
    assert dataset.items.ids == ["0", "1", "2"]
    assert dataset.modalities == ("text", "image")
    np.testing.assert_array_equal(np.array(dataset.content("image")), np.arange(6).reshape(3, 2))
    assert info.min_rating is None  # what a published split lists counts, whatever its rating
    assert dataset.pairs().tolist() == [[0, 2], [0, 1]]
    assert dataset.split is not None
    assert dataset.split.tolist() == [0, 2]
    assert dataset.interactions.value.tolist() == [5, 3]
    assert dataset.interactions.timestamp.tolist() == [1400000000, 1400000001]
    assert dataset.withheld("0.50").tolist() == [[True, False], [False, True], [False, False]]  # text, image assumed
    assert dataset.new_items is not None
    assert dataset.new_items.tolist() == [1]


def test_folder_without_split(baby: Path, tmp_path: Path) -> None:
    (baby / "baby.inter").write_text("userID,itemID\n4,0\n")
    READERS["folder"].prepare(baby, tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert dataset.split is None
    assert dataset.users.ids == ["4"]


def test_folder_bad_tables(baby: Path, tmp_path: Path) -> None:
    for row, message in (
        ("0\t3\t5\t1\t0", r"baby.inter, line 2: the item '3' is none of the 3 rows"),
        ("0\t1\tgood\t1\t0", r"baby.inter, line 2: rating and timestamp must be numbers"),
    ):
        (baby / "baby.inter").write_text(f"userID\titemID\trating\ttimestamp\tx_label\n{row}\n")
        with pytest.raises(DatasetError, match=message):
            READERS["folder"].prepare(baby, tmp_path / "out")
    (baby / "baby.inter").rename(baby / "third.inter")
    with pytest.raises(DatasetError, match=r"several interaction files \(other.inter, third.inter\)"):
        READERS["folder"].prepare(baby, tmp_path / "out")
    for name in ("other", "third"):
        (baby / f"{name}.inter").unlink()
    with pytest.raises(DatasetError, match=r"neither a NAME.inter nor an interactions.csv"):
        READERS["folder"].prepare(baby, tmp_path / "out")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 2), np.nan), "values that are not finite"),
        (np.ones(3), r"must be floats \[items, dim\]"),
        (np.ones((3, 2), dtype=np.int64), r"must be floats \[items, dim\]"),
        (np.ones((4, 2)), "disagree on the number of items"),
        (np.array([{"pickled": True}], dtype=object), "cannot be read as plain NumPy arrays"),
    ],
)
def test_folder_bad_features(baby: Path, tmp_path: Path, array: Any, message: str) -> None:
    np.save(baby / "audio_feat.npy", array, allow_pickle=True)
    with pytest.raises(DatasetError, match=message):
        READERS["folder"].prepare(baby, tmp_path / "out")


def test_folder_without_features_or_with_a_foreign_mask(baby: Path, tmp_path: Path) -> None:
    np.savez(baby / "missing_0.50.npz", missing=np.ones((2, 2), dtype=np.bool_))
    with pytest.raises(DatasetError, match=r"missing_0.50.npz must hold an array `missing` of 3 items"):
        READERS["folder"].prepare(baby, tmp_path / "out")
    for file in baby.glob("*_feat.npy"):
        file.unlink()
    with pytest.raises(DatasetError, match=r"holds no <modality>_feat.npy"):
        READERS["folder"].prepare(baby, tmp_path / "out")


# --- real data, where it is there --------------------------------------------------------------------------------


def real(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"the dataset {name} is not on this machine (LACUNA_TEST_DATA names its folder)")
    return DATA / name


def test_real_ml_100k(tmp_path: Path) -> None:
    info = READERS["ml-100k"].prepare(real("ml-100k"), tmp_path / "out")
    assert info.min_rating == 4
    assert len(load_dataset(tmp_path / "out").pairs()) == 55_375
    dataset = load_dataset(tmp_path / "out", min_rating=None)
    assert info.counts.model_dump() == {"items": 1682, "users": 943, "feedback": 100_000}
    assert np.bincount(dataset.interactions.value.astype(int)).tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    assert dataset.observed().sum(axis=0).tolist() == [1682, 1663]
    assert len(dataset.pairs()) == 100_000
    assert dataset.split is not None
    assert np.bincount(dataset.split).tolist() == [80_024, 9_988, 9_988]
    lacking = dataset.withheld("two_thirds").sum(axis=1)
    assert np.bincount(lacking).tolist() == [560, 560, 562]
    assert dataset.new_items is not None
    assert len(dataset.new_items) == 336


def test_real_tiktok(tmp_path: Path) -> None:
    info = READERS["folder"].prepare(real("tiktok"), tmp_path / "out")
    dataset = load_dataset(tmp_path / "out")
    assert info.counts.model_dump() == {"items": 6710, "users": 9308, "feedback": 68_722}
    assert dataset.modalities == ("image", "audio")
    assert dataset.split is not None
    assert np.bincount(dataset.split).tolist() == [59_541, 6_130, 3_051]
    assert dataset.masks["0.60"].missing.sum(axis=0).tolist() == [2681, 2685, 2685]
    assert dataset.withheld("0.60").sum(axis=0).tolist() == [2685, 2685]
    image = np.array(dataset.content("image"))
    np.testing.assert_array_equal(image, np.load(DATA / "tiktok" / "image_feat.npy").astype(np.float32))
    assert dataset.new_items is not None
    assert len(dataset.new_items) == 1242
