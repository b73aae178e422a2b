"""Folders of the literature: MMRec's, RecBole's atomic files, and tables of the same content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.sources import DATA, events_of, prepared, put, real
from training.datasets import READERS, DatasetError, load_dataset

# --- ready features by row: MMRec's folders ----------------------------------------------------------------------


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


HEADER = "userID\titemID\trating\ttimestamp\tx_label\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0\t3\t5\t1\t0", r"baby.inter, line 2: the item '3' is none of the 3 rows"),
        ("0\t1\tgood\t1\t0", r"baby.inter, line 2: rating must be a number, got 'good'"),
        ("0\t1\t\t1\t0", r"baby.inter, line 2: rating must be a number, got ''"),
        ("0\t1\t5\tsoon\t0", r"baby.inter, line 2: timestamp must be a number, got 'soon'"),
        ("0\t1\t5\t1400000000000\t0", r"baby.inter, line 2: timestamp must be in seconds since 1970"),
        ("0\t1\t5\t1\t9", r"baby.inter, line 2: a row's part must be 0, 1, 2 or train, valid, test, got '9'"),
        ("0\t1\t5\t1\t0\n0\t1\t5\t1\t2", r"baby.inter, line 3: the pair stands there twice, in two parts"),
        ("0\t1\t5\t1", r"baby.inter, line 2: 4 columns, the header has 5"),
    ],
)
def test_a_bad_row_is_named(baby: Path, tmp_path: Path, rows: str, message: str) -> None:
    put(baby / "baby.inter", f"{HEADER}{rows}\n")
    with pytest.raises(DatasetError, match=message):
        READERS["folder"].prepare(baby, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_repeated_rows_are_merged_and_counted(baby: Path, tmp_path: Path) -> None:
    row = "0\t2\t5.0\t1400000000\t0\n"
    put(baby / "baby.inter", f"{HEADER}{row}{row}0\t2\t1.0\t1400000009.5\t0\n\n")
    dataset, info = prepared("folder", baby, tmp_path / "out")
    assert info.left_out == {"repeated rows of feedback, merged": 1}
    assert events_of(dataset) == [  # a changed mind is no repetition
        ("0", "2", "rating", 5.0, 1400000000.0),
        ("0", "2", "rating", 1.0, 1400000009.5),
    ]
    assert dataset.split is not None
    assert dataset.split.tolist() == [0]


def test_which_file_has_the_interactions(baby: Path, tmp_path: Path) -> None:
    (baby / "baby.inter").rename(baby / "third.inter")
    with pytest.raises(DatasetError, match=r"several interaction files \(other.inter, third.inter\)"):
        READERS["folder"].prepare(baby, tmp_path / "out")
    for name in ("other", "third"):
        (baby / f"{name}.inter").unlink()
    with pytest.raises(DatasetError, match=r"neither a NAME.inter nor an interactions.csv"):
        READERS["folder"].prepare(baby, tmp_path / "out")
    put(baby / "interactions.csv.gz", "user,item,split\n4,0,train\n")
    dataset, _ = prepared("folder", baby, tmp_path / "out")
    assert events_of(dataset) == [("4", "0", "view", None, None)]


@pytest.mark.parametrize(
    ("ratings", "values", "told"),
    [
        ((1, 5), [1, 5], {}),
        ((0.5, 5), [1, 5], {"ratings mapped linearly from 0.5..5 onto 1..5": 2}),
        ((-1, 10), [None, None], {"ratings from -1 to 10, no scale of 1..5, read as views": 2}),
    ],
)
def test_ratings_of_other_scales(
    baby: Path, tmp_path: Path, ratings: tuple[float, float], values: list[Any], told: dict[str, int]
) -> None:
    put(baby / "baby.inter", f"userID,itemID,rating\n0,1,{ratings[0]}\n0,2,{ratings[1]}\n")
    dataset, info = prepared("folder", baby, tmp_path / "out")
    assert [event[3] for event in events_of(dataset)] == values
    assert [event[2] for event in events_of(dataset)] == ["view" if value is None else "rating" for value in values]
    assert info.changed == told


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 2), np.nan), "audio_feat.npy must hold finite numbers between -1e6 and 1e6"),
        (np.full((3, 2), 1e300), "audio_feat.npy must hold finite numbers between -1e6 and 1e6"),
        (np.ones(3), r"audio_feat.npy must be floats \[items, dim\], got float64\[3\]"),
        (np.ones((3, 0)), r"audio_feat.npy must be floats \[items, dim\]"),
        (np.ones((3, 2), dtype=np.int64), r"audio_feat.npy must be floats \[items, dim\], got int64"),
        (np.ones((4, 2)), "disagree on the number of items"),
        (np.array([{"pickled": True}], dtype=object), "audio_feat.npy cannot be read as plain NumPy arrays"),
    ],
)
def test_bad_features(baby: Path, tmp_path: Path, array: Any, message: str) -> None:
    np.save(baby / "audio_feat.npy", array, allow_pickle=True)
    with pytest.raises(DatasetError, match=message):
        READERS["folder"].prepare(baby, tmp_path / "out")


def test_features_that_are_no_arrays(baby: Path, tmp_path: Path) -> None:
    whole = (baby / "image_feat.npy").read_bytes()
    for content in (b"", b"text", whole[:-5], whole[:20]):
        put(baby / "image_feat.npy", content)
        with pytest.raises(DatasetError, match=r"image_feat.npy cannot be read as plain NumPy arrays"):
            READERS["folder"].prepare(baby, tmp_path / "out")
    (baby / "image_feat.npy").rename(baby / "my picture_feat.npy")
    put(baby / "my picture_feat.npy", whole)
    with pytest.raises(DatasetError, match=r"'my picture_feat.npy' names no modality: a name is 1 to 64 characters"):
        READERS["folder"].prepare(baby, tmp_path / "out")


@pytest.mark.parametrize("folder", ["feat", "features"])
def test_features_in_a_folder_of_their_own(baby: Path, tmp_path: Path, folder: str) -> None:
    (baby / folder).mkdir()
    (baby / "image_feat.npy").rename(baby / folder / "image_feat.npy")
    dataset, _ = prepared("folder", baby, tmp_path / "out")
    assert dataset.modalities == ("text", "image")


def test_no_features_and_a_foreign_mask(baby: Path, tmp_path: Path) -> None:
    np.savez(baby / "missing_0.50.npz", missing=np.ones((2, 2), dtype=np.bool_))
    with pytest.raises(DatasetError, match=r"missing_0.50.npz must hold an array `missing` of 3 items, got 2"):
        READERS["folder"].prepare(baby, tmp_path / "out")
    np.savez(baby / "missing_0.50.npz", missing=np.ones((3, 2)))
    with pytest.raises(DatasetError, match=r"missing_0.50.npz: a mask of 3 items and 2 columns cannot be float64"):
        READERS["folder"].prepare(baby, tmp_path / "out")
    np.savez(baby / "missing_0.50.npz", missing=np.ones(3, dtype=np.bool_))
    with pytest.raises(DatasetError, match=r"missing_0.50.npz must hold an array `missing` \[items, modalities\]"):
        READERS["folder"].prepare(baby, tmp_path / "out")
    np.save(baby / "new_items.npy", np.array([7]))
    (baby / "missing_0.50.npz").unlink()
    with pytest.raises(DatasetError, match=r"the list of new items names the item '7'"):
        READERS["folder"].prepare(baby, tmp_path / "out")
    for file in baby.glob("*_feat.npy"):
        file.unlink()
    with pytest.raises(DatasetError, match=r"holds no <modality>_feat.npy file and no item table"):
        READERS["folder"].prepare(baby, tmp_path / "out")


# --- item tables: RecBole's atomic files and tables --------------------------------------------------------------


ML = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"


def recbole(folder: Path, items: str, inter: str) -> Path:
    put(folder / f"{folder.name}.item", items)
    put(folder / f"{folder.name}.inter", inter)
    return folder


def test_recbole_ml_100k(tmp_path: Path) -> None:
    source = recbole(
        tmp_path / "ml-100k",
        f'{ML}1\tToy Story\t1995\tAnimation Children\'s Comedy\n2\t"GoldenEye"\t1995\tAction\n3\tNew "one"\t\t\n',
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t2\t3\t881250949\n186\t4\t3\t891717742.0\n",
    )
    put(source / "ml-100k.user", "user_id:token\tage:token\n196\t49\n")
    dataset, info = prepared("recbole", source, tmp_path / "out")
    assert info.left_out == info.changed == {}
    assert dataset.records == [
        {
            "id": "1",
            "title": "Toy Story",
            "modalities": {},
            "categories": ["Animation", "Children's", "Comedy"],
            "metadata": {"release_year": "1995"},
        },
        {
            "id": "2",
            "title": "GoldenEye",
            "modalities": {},
            "categories": ["Action"],
            "metadata": {"release_year": "1995"},
        },
        {"id": "3", "title": 'New "one"', "modalities": {}, "categories": [], "metadata": {}},
        {"id": "4", "title": None, "modalities": {}, "categories": [], "metadata": {}},  # only interacted with
    ]
    assert events_of(dataset) == [
        ("196", "2", "rating", 3.0, 881250949.0),
        ("186", "4", "rating", 3.0, 891717742.0),
    ]
    assert dataset.split is None


def test_recbole_amazon_and_anime(tmp_path: Path) -> None:
    source = recbole(
        tmp_path / "Amazon_Beauty",
        "item_id:token\ttitle:token\tsales_rank:float\tcategories:token_seq\tprice:float\tbrand:token\n"
        "B1\tComb\t12\t'Beauty', 'Hair & Care'\t9.99\tNorr\nB2\tSoap\tnone\tBeauty\t\t\n",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\nA1\tB1\t5.0\t1393545600\n",
    )
    dataset, _ = prepared("recbole", source, tmp_path / "out")
    assert [record["categories"] for record in dataset.records] == [["Beauty", "Hair & Care"], ["Beauty"]]
    assert dataset.records[0]["metadata"] == {"sales_rank": 12.0, "price": 9.99, "brand": "Norr"}
    assert dataset.records[1]["metadata"] == {"sales_rank": "none"}
    source = recbole(
        tmp_path / "anime",
        "item_id:token\tname:token_seq\tgenre:token_seq\n32281\tKimi no Na wa.\tDrama, Romance\n",
        "user_id:token\titem_id:token\trating:float\n1\t32281\t-1\n2\t32281\t10\n",
    )
    dataset, info = prepared("recbole", source, tmp_path / "out")
    assert events_of(dataset) == [("1", "32281", "view", None, None), ("2", "32281", "view", None, None)]
    assert info.changed == {"ratings from -1 to 10, no scale of 1..5, read as views": 2}
    assert dataset.records[0]["categories"] == ["Drama", "Romance"]


def test_recbole_without_ratings_and_with_other_names(tmp_path: Path) -> None:
    source = recbole(
        tmp_path / "lastfm",
        "artist_id:token\tname:token\n51\tDuran Duran\n",
        "user_id:token\tartist_id:token\tweight:float\n2\t51\t13883\n",
    )
    dataset, _ = prepared("recbole", source, tmp_path / "out")
    assert events_of(dataset) == [("2", "51", "view", None, None)]
    assert dataset.records[0]["title"] == "Duran Duran"


def test_recbole_ready_features_in_columns(tmp_path: Path) -> None:
    items = "item_id:token\tdescription:token_seq\timage_feat:float_seq\nx\tA thing\t0.5 1e-2 -3\ny\t\t\n"
    inter = "user_id:token\titem_id:token\nu\tx\nu\ty\n"
    dataset, _ = prepared("recbole", recbole(tmp_path / "shop", items, inter), tmp_path / "out")
    assert list(dataset.content("text")) == ["A thing", None]
    vectors = dataset.content("image")
    np.testing.assert_allclose(np.asarray(vectors[0]), [0.5, 0.01, -3])
    assert vectors[1] is None
    for bad, message in (("1 two", "image_feat must be a number, got 'two'"), ("1e7", "between -1e6 and 1e6")):
        recbole(tmp_path / "shop", items.replace("0.5 1e-2 -3", bad), inter)
        with pytest.raises(DatasetError, match=rf"shop.item, line 2: .*{message}"):
            READERS["recbole"].prepare(tmp_path / "shop", tmp_path / "out")
    recbole(tmp_path / "shop", items.replace("y\t\t", "y\t\t1 2"), inter)
    with pytest.raises(DatasetError, match=r"shop.item, line 3: .* has 2 numbers, those before have 3"):
        READERS["recbole"].prepare(tmp_path / "shop", tmp_path / "out")


def test_recbole_published_split(tmp_path: Path) -> None:
    source = tmp_path / "ml"
    put(source / "ml.item", "item_id:token\ttitle:token\n1\tOne\n2\tTwo\n")
    for part, row in (("train", "u\t1"), ("valid", "u\t2"), ("test", "v\t1")):
        put(source / f"ml.{part}.inter", f"user_id:token\titem_id:token\n{row}\n")
    dataset, info = prepared("recbole", source, tmp_path / "out")
    assert dataset.split is not None
    assert dataset.split.tolist() == [0, 1, 2]
    assert info.min_rating is None
    put(source / "ml.test.inter", "user_id:token\titem_id:token\nv\t1\nu\t1\n")
    with pytest.raises(DatasetError, match=r"ml.test.inter, line 3: the pair stands there twice, in two parts"):
        READERS["recbole"].prepare(source, tmp_path / "out")


def test_repeated_items(tmp_path: Path) -> None:
    inter = "user_id:token\titem_id:token\nu\t1\n"
    source = recbole(tmp_path / "ml", "item_id:token\ttitle:token\n1\tOne\n1\tOne\n", inter)
    _, info = prepared("recbole", source, tmp_path / "out")
    assert info.left_out == {"repeated rows of items, merged": 1}
    recbole(source, "item_id:token\ttitle:token\n1\tOne\n1\tTwo\n", inter)
    with pytest.raises(DatasetError, match=r"ml.item, line 3: the item '1' stands there twice, and not alike"):
        READERS["recbole"].prepare(source, tmp_path / "out")
    recbole(source, "title:token\nOne\n", inter)
    with pytest.raises(DatasetError, match=r"ml.item, line 1: the column item or itemID or .* is missing"):
        READERS["recbole"].prepare(source, tmp_path / "out")
    put(source / "other.item", "item_id:token\n1\n")
    (source / "ml.item").rename(source / "another.item")
    with pytest.raises(DatasetError, match=r"several item files \(another.item, other.item\)"):
        READERS["recbole"].prepare(source, tmp_path / "out")


def test_ids_that_are_none(tmp_path: Path) -> None:
    source = recbole(
        tmp_path / "books",
        "item_id:token\ttitle:token\n0330 299\tOne\n0330299\tTwo\n",
        "user_id:token\titem_id:token\nu\t0330 299\nu\t0330299\na/b\t0330299\n..\t0330299\n",
    )
    dataset, info = prepared("recbole", source, tmp_path / "out")
    assert events_of(dataset) == [("u", "0330299", "view", None, None)]
    assert info.left_out == {
        "items whose id the service does not take (A-Z a-z 0-9 . _ : -, up to 128)": 1,
        "events of items that were left out": 1,
        "events of users whose id the service does not take (no '/', up to 128)": 2,
    }
    recbole(source, "item_id:token\ttitle:token\n0330 299\tOne\n", "user_id:token\titem_id:token\nu\t0330 299\n")
    with pytest.raises(DatasetError, match=r"no row is left for items.jsonl \(items whose id"):
        READERS["recbole"].prepare(source, tmp_path / "out")


def test_a_split_leaves_out_what_its_rows_leave_out(tmp_path: Path) -> None:
    source = recbole(
        tmp_path / "books",
        "item_id:token\ttitle:token\n1\tOne\n",
        "user_id:token\titem_id:token\tx_label:float\nu\t1\t0.0\na/b\t1\t1.0\n",
    )
    dataset, _ = prepared("recbole", source, tmp_path / "out")
    assert dataset.split is not None
    assert dataset.split.tolist() == [0]


def test_texts_beside_ready_features(baby: Path, tmp_path: Path) -> None:
    """What lfm2k is like: the ready feature of the text goes first, and what it was made of is kept as metadata."""
    put(baby / "artists.csv.gz", 'item,artist_id,tags\n0,80,"rock,pop"\n2,66,jazz\n')
    dataset, info = prepared("folder", baby, tmp_path / "out")
    assert dataset.records[0]["metadata"] == {"artist_id": "80", "tags": "rock,pop"}
    assert "metadata" not in dataset.records[1] or dataset.records[1]["metadata"] == {}
    assert dataset.modalities == ("text", "image")
    assert "artists.csv.gz" in info.source
    (baby / "text_feat.npy").unlink()
    dataset, _ = prepared("folder", baby, tmp_path / "out")
    assert list(dataset.content("text")) == ["rock,pop", None, "jazz"]
    put(baby / "artists.csv.gz", "item,tags\n3,rock\n")
    with pytest.raises(DatasetError, match=r"artists.csv.gz, line 2: the item '3' is none of the 3 rows"):
        READERS["folder"].prepare(baby, tmp_path / "out")


def test_features_with_a_file_an_item(tmp_path: Path) -> None:
    source = recbole(tmp_path / "shop", "item_id:token\nB1\nB2\n", "user_id:token\titem_id:token\nu\tB1\n")
    (source / "image_feat").mkdir()
    np.save(source / "image_feat" / "B1.npy", np.array([[1.0, 2.0]]))
    dataset, _ = prepared("folder", source, tmp_path / "out")
    vectors = dataset.content("image")
    assert (np.asarray(vectors[0]).tolist(), vectors[1]) == ([1, 2], None)
    for array, message in (
        (np.ones(3), r"image_feat/B2.npy has 3 numbers, others have 2"),
        (np.ones((2, 2)), r"image_feat/B2.npy must be floats"),
        (np.full(2, np.inf), r"image_feat/B2.npy must hold finite numbers"),
    ):
        np.save(source / "image_feat" / "B2.npy", array)
        with pytest.raises(DatasetError, match=message):
            READERS["folder"].prepare(source, tmp_path / "out")


def test_a_mask_that_names_its_items(tmp_path: Path) -> None:
    source = recbole(tmp_path / "shop", "item_id:token\ttext:token\nB1\tx\n", "user_id:token\titem_id:token\nu\tB1\n")
    np.savez(source / "missing_all.npz", items=["B1"], columns=["text"], missing=[[True]])
    dataset, _ = prepared("folder", source, tmp_path / "out")
    assert dataset.withheld("all").tolist() == [[True]]


# --- real data, where it is there --------------------------------------------------------------------------------


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


def test_real_lfm2k(tmp_path: Path) -> None:
    dataset, info = prepared("folder", real("lfm2k"), tmp_path / "out")
    assert info.counts.model_dump() == {"items": 1425, "users": 1858, "feedback": 56_345}
    assert info.left_out == info.changed == {}
    assert dataset.modalities == ("text", "audio", "speech")
    assert all(record["metadata"]["tags"] for record in dataset.records)
    assert dataset.split is not None
    assert np.bincount(dataset.split).tolist() == [44_327, 4_799, 7_219]
    assert np.bincount(dataset.withheld("quarters").sum(axis=1)).sum() == 1425
    assert dataset.new_items is not None
    assert len(dataset.new_items) == 285
