"""MovieLens: as GroupLens publishes it, and as tables with texts and posters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.feedback import EVENT_TYPES
from tests.training.sources import PICTURE, events_of, prepared, put, put_lines, real
from training.datasets import READERS, DatasetError, load_dataset

# --- tables of our own -------------------------------------------------------------------------------------------


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Three invented films in the layout of MovieLens 100K; nobody rated the last one."""
    source = tmp_path / "films"
    (source / "posters").mkdir(parents=True)
    put(source / "ratings.csv.gz", "user,item,rating,timestamp\n7,3,4,881250949\n7,1,1,881250950\n8,3,2,0\n")
    put(
        source / "movies.csv.gz",
        "item,title,genres,overview\n"
        '1,"Kettle, The (1951)",Drama|Noir,\n'
        '3,Spoons,Comedy,"Forks, too."\n'
        "4,Unseen (1960),Drama,Dark.\n",
    )
    put(source / "split_80_10_10.csv.gz", "user,item,split\n7,3,train\n7,1,test\n8,3,valid\n")
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
    assert list(dataset.content("text")) == ["Kettle, The (1951). Drama, Noir.", "Spoons. Comedy. Forks, too."]
    READERS["ml-100k-overviews"].prepare(films, tmp_path / "overviews")
    alone = load_dataset(tmp_path / "overviews")
    assert list(alone.content("text")) == ["Kettle, The (1951)", "Forks, too."]  # the title where there is no overview
    assert (alone.name, alone.items.ids) == ("ml-100k", ["1", "3"])
    assert list(dataset.content("image")) == [None, PICTURE]
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
    put(films / "interactions.csv.gz", "user,item\n7,3\n8,1\n")
    put(films / "movies.csv.gz", "item,title,year,genres,plot\n1,One (1951),1951,Drama,A plot.\n3,Two,,War,\n")
    np.savez(
        films / "leave_one_out.npz",
        users=np.array([8, 7]),
        test_item=np.array([1, 3]),
        valid_item=np.array([1, 3]),
        test_neg=np.array([[3], [1]]),
        valid_neg=np.array([[3], [1]]),
    )
    put(films / "ncf_test.csv.gz", "user,item\n7,3\n")
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
    assert list(dataset.content("text")) == ["One (1951). Drama. A plot.", "Two. War."]
    assert dataset.split is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("movies.csv.gz", "item,title,genres\n1,One\n", r"movies.csv.gz, line 2: 2 columns, the header has 3"),
        ("movies.csv.gz", "item,genres\n1,x\n", r"movies.csv.gz, line 1: the column title is missing"),
        (
            "movies.csv.gz",
            "item,title,genres\n1,A,x\n1,B,x\n",
            r"movies.csv.gz, line 3: the film '1' stands there twice",
        ),
        ("ratings.csv.gz", "user,film\n1,1\n", r"ratings.csv.gz, line 1: the column item or movieId is missing"),
        ("ratings.csv.gz", "user,item\n1,1\n7,99\n", r"ratings.csv.gz, line 3: the item '99' is not in the catalogue"),
        ("ratings.csv.gz", "user,item,rating\n7,1,\n", r"ratings.csv.gz, line 2: rating must be a number, got ''"),
        (
            "ratings.csv.gz",
            "user,item,rating\n7,1,six\n",
            r"ratings.csv.gz, line 2: rating must be a number, got 'six'",
        ),
        ("ratings.csv.gz", 'user,item,rating\n7,1,"3,5"\n', r"ratings.csv.gz, line 2: rating must be a number"),
        (
            "ratings.csv.gz",
            "user,item,rating\n7,1,nan\n",
            r"ratings.csv.gz, line 2: rating must be a number, got 'nan'",
        ),
        ("ratings.csv.gz", "user,item,rating\n7,1,0.5\n", r"ratings.csv.gz, line 2: rating must lie between 1 and 5"),
        ("ratings.csv.gz", "user,item,timestamp\n7,1,\n", r"ratings.csv.gz, line 2: timestamp must be a whole number"),
        ("ratings.csv.gz", "user,item,timestamp\n7,1,8.0\n", r"line 2: timestamp must be a whole number, got '8.0'"),
        (
            "ratings.csv.gz",
            "user,item,timestamp\n7,1,1609459200000\n",
            r"line 2: timestamp must be in seconds since 1970",
        ),
        ("ratings.csv.gz", "user,item,timestamp\n7,1,-1\n", r"line 2: timestamp must be in seconds since 1970"),
        ("split_80_10_10.csv.gz", "user,item,split\n7,3,train\n7,3,test\n", r"split_80_10_10.csv.gz, line 3: the pair"),
        (
            "split_80_10_10.csv.gz",
            "user,item,split\n8,1,train\n",
            r"split_80_10_10.csv.gz, line 2: .* not in the feedback",
        ),
        ("split_80_10_10.csv.gz", "user,item,split\n7,3,exam\n", r"split_80_10_10.csv.gz, line 2: expected a known"),
        ("split_80_10_10.csv.gz", "user,item,split\n7,1,test\n", r"split_80_10_10.csv.gz leaves out the pair '7', '3'"),
    ],
)
def test_a_bad_row_is_named(films: Path, tmp_path: Path, name: str, content: str, message: str) -> None:
    put(films / name, content)
    with pytest.raises(DatasetError, match=message):
        READERS["ml-100k"].prepare(films, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("missing_x.npz", {"missing": [[True]]}, "missing_x.npz must hold the arrays items, columns and missing"),
        (
            "missing_x.npz",
            {"items": [1, 3], "columns": ["image"], "missing": [[True]]},
            r"missing_x.npz: a mask of 2 items and 1 columns cannot be bool\[1, 1\]",
        ),
        (
            "missing_x.npz",
            {"items": [1.5], "columns": ["image"], "missing": [[True]]},
            "missing_x.npz must hold ids, whole numbers or texts, got float64",
        ),
        ("leave_one_out.npz", {"users": [7]}, "leave_one_out.npz must hold the arrays users, test_item, test_neg"),
        ("ncf_negatives.npz", {"items": [[1, 3]]}, "holds ncf_negatives.npz, but no ncf_test.csv.gz"),
        ("rating_split_x.npz", {"train": [0]}, "rating_split_x.npz must hold the arrays train, valid, test"),
        (
            "rating_split_x.npz",
            {"train": [0.0], "valid": [1.0], "test": [2.0]},
            "rating_split_x.npz must hold row numbers, whole numbers in one dimension",
        ),
        (
            "rating_split_x.npz",
            {"train": [0], "valid": [1], "test": [1]},
            "rating_split_x.npz must name every row in exactly one part",
        ),
        ("rating_split_x.npz", {"train": [0], "valid": [1], "test": [2, 3]}, "names 4 rows, the source has 3"),
    ],
)
def test_bad_arrays(films: Path, tmp_path: Path, name: str, arrays: dict[str, Any], message: str) -> None:
    np.savez(films / name, **arrays)
    with pytest.raises(DatasetError, match=message):
        READERS["ml-100k"].prepare(films, tmp_path / "out")


def test_leave_one_out_of_other_shapes(films: Path, tmp_path: Path) -> None:
    arrays = {"users": [7, 8], "test_item": [3], "test_neg": [[1], [1]], "valid_item": [1, 3], "valid_neg": [[3], [1]]}
    np.savez(films / "leave_one_out.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=r"leave_one_out.npz holds arrays whose shapes do not fit each other"):
        READERS["ml-100k"].prepare(films, tmp_path / "out")
    np.savez(films / "leave_one_out.npz", **{**arrays, "test_item": [9, 9]})  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="the leave-one-out split 'random' names the item '9'"):
        READERS["ml-100k"].prepare(films, tmp_path / "out")


def test_new_items_are_a_list(films: Path, tmp_path: Path) -> None:
    np.save(films / "new_items.npy", np.array([[1, 3]]))
    with pytest.raises(DatasetError, match=r"new_items.npy must hold ids in one dimension, got \[1, 2\]"):
        READERS["ml-100k"].prepare(films, tmp_path / "out")
    np.savez(films / "new_items.npz", items=[1])
    (films / "new_items.npz").rename(films / "new_items.npy")
    with pytest.raises(DatasetError, match=r"new_items.npy must hold a single array"):
        READERS["ml-100k"].prepare(films, tmp_path / "out")


def test_repeated_rows_are_merged_and_counted(films: Path, tmp_path: Path) -> None:
    np.savez(films / "rating_split.npz", train=[0, 1], valid=[3], test=[2])
    put(
        films / "ratings.csv.gz",
        "user,item,rating,timestamp\n7,3,4,881250949\n7,1,1,881250950\n7,3,4,881250949\n8,3,2,0\n",
    )
    put(films / "movies.csv.gz", "item,title,genres,overview\n1,One,Drama,x\n3,Two,War,y\n1,One,Drama,x\n")
    dataset, info = prepared("ml-100k", films, tmp_path / "out")
    assert info.left_out == {"repeated rows of films, merged": 1, "repeated rows of feedback, merged": 1}
    assert [event[:4] for event in events_of(dataset)] == [
        ("7", "3", "rating", 4.0),
        ("7", "1", "rating", 1.0),
        ("8", "3", "rating", 2.0),
    ]
    assert dataset.rating_split is not None
    assert dataset.rating_split.tolist() == [0, 0, 1]  # the repeated row's part went with it


def test_pictures_that_are_none(films: Path, tmp_path: Path) -> None:
    put(films / "posters" / "1.jpg", b"")
    put(films / "posters" / "3.jpg", PICTURE[:40])
    dataset, info = prepared("ml-100k", films, tmp_path / "out")
    assert dataset.modalities == ("text",)
    assert info.left_out["pictures that cannot be decoded"] == 2


# --- as GroupLens publishes it -----------------------------------------------------------------------------------


U_ITEM = (
    "1|Toy Story (1995)|01-Jan-1995||http://x|0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "2|Misérables, Les (1995)|01-Jan-1995||http://y|0|0|0|0|0|0|0|0|1|0|0|0|1|0|0|0|0|0|0\n"
    "267|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
)


def test_100k_as_published(tmp_path: Path) -> None:
    put(tmp_path / "k" / "u.data", "196\t1\t3\t881250949\n186\t2\t5\t891717742\n")
    put(tmp_path / "k" / "u.item", U_ITEM, "latin-1")
    put(tmp_path / "k" / "u.user", "1|24|M|technician|85711\n")
    dataset, info = prepared("ml-100k", tmp_path / "k", tmp_path / "out")
    assert (info.name, info.left_out, info.changed) == ("ml-100k", {}, {})
    assert events_of(dataset) == [
        ("196", "1", "rating", 3.0, 881250949.0),
        ("186", "2", "rating", 5.0, 891717742.0),
    ]
    assert dataset.records == [
        {
            "id": "1",
            "title": "Toy Story (1995)",
            "modalities": {"text": "Toy Story (1995). Animation, Children's, Comedy."},
            "categories": ["Animation", "Children's", "Comedy"],
            "metadata": {"year": 1995},
        },
        {
            "id": "2",
            "title": "Misérables, Les (1995)",
            "modalities": {"text": "Misérables, Les (1995). Drama, Musical."},
            "categories": ["Drama", "Musical"],
            "metadata": {"year": 1995},
        },
        {  # a film that nobody rated is a new item
            "id": "267",
            "title": "unknown",
            "modalities": {"text": "unknown. unknown."},
            "categories": ["unknown"],
            "metadata": {},
        },
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_1m_as_published(tmp_path: Path, encoding: str) -> None:
    put(tmp_path / "m" / "ratings.dat", "1::1193::5::978300760\r\n1::661::3::978302109\r\n\r\n")
    put(tmp_path / "m" / "movies.dat", "661::Café: L'Été (1996)::Comedy|Drama\r\n1193::Two (1975)::Drama\r\n", encoding)
    put(tmp_path / "m" / "users.dat", "1::F::1::10::48067\r\n")
    dataset, _ = prepared("ml-1m", tmp_path / "m", tmp_path / "out")
    assert [record["title"] for record in dataset.records] == ["Café: L'Été (1996)", "Two (1975)"]
    assert events_of(dataset) == [
        ("1", "1193", "rating", 5.0, 978300760.0),
        ("1", "661", "rating", 3.0, 978302109.0),
    ]
    again, info = prepared("movielens", tmp_path / "m", tmp_path / "again")  # users.dat says that stars are whole
    assert events_of(again) == events_of(dataset)
    assert info.name == "m"


MOVIES = (
    "movieId,title,genres\r\n"
    '1,"American President, The (1995)",Comedy|Drama|Romance\r\n'
    '2,"""Great Performances"" Cats (1998)",(no genres listed)\r\n'
    "3,Nameless,War\r\n"
)


def latest(folder: Path, ratings: str = "1,1,4.0,1256677221\r\n1,2,0.5,1256677222\r\n2,1,5.0,1256677223\r\n") -> Path:
    put(folder / "ratings.csv", f"userId,movieId,rating,timestamp\r\n{ratings}")
    put(folder / "movies.csv", MOVIES)
    put(folder / "tags.csv", "userId,movieId,tag,timestamp\r\n1,1,fun,1256677221\r\n")
    put(folder / "links.csv", "movieId,imdbId,tmdbId\r\n1,0112346,9087\r\n")
    return folder


def test_latest_as_published(tmp_path: Path) -> None:
    dataset, info = prepared("movielens", latest(tmp_path / "ml-latest-small"), tmp_path / "out")
    assert info.name == "ml-latest-small"
    assert info.changed == {"ratings mapped linearly from 0.5..5 onto 1..5": 3}
    assert [event[:3] for event in events_of(dataset)] == [
        ("1", "1", "rating"),
        ("1", "2", "rating"),
        ("2", "1", "rating"),
    ]
    np.testing.assert_allclose(dataset.interactions.value, [1 + 3.5 * 8 / 9, 1, 5])
    assert list(dataset.content("text")) == [
        "American President, The (1995). Comedy, Drama, Romance.",
        '"Great Performances" Cats (1998).',
        "Nameless. War.",
    ]
    assert dataset.records[1]["categories"] == []


def test_10m_as_published(tmp_path: Path) -> None:
    put(tmp_path / "ml-10M" / "ratings.dat", "1::122::5::838985046\n1::185::0.5::838983525\n")
    put(tmp_path / "ml-10M" / "movies.dat", "122::Boomerang (1992)::Comedy|Romance\n185::Net, The (1995)::Action\n")
    put(tmp_path / "ml-10M" / "tags.dat", "15::4973::excellent!::1215184630\n")
    dataset, _ = prepared("movielens", tmp_path / "ml-10M", tmp_path / "out")
    assert dataset.interactions.value.tolist() == [5, 1]


def test_100k_by_the_general_name(tmp_path: Path) -> None:
    put(tmp_path / "k" / "u.data", "196\t1\t3\t881250949\n")
    put(tmp_path / "k" / "u.item", U_ITEM, "latin-1")
    dataset, info = prepared("movielens", tmp_path / "k", tmp_path / "out")
    assert (info.name, dataset.interactions.value.tolist()) == ("k", [3])


def test_posters_and_texts_beside_the_files(tmp_path: Path) -> None:
    source = latest(tmp_path / "ml")
    for name in ("1.png", "2.webp", "3.jpg"):
        put(source / "posters" / name, PICTURE)
    put(source / "texts.csv", 'movieId,overview\n1,"A president,\nin love."\n9,gone\n1,"A president,\nin love."\n')
    dataset, info = prepared("movielens", source, tmp_path / "out")
    assert list(dataset.content("image")) == [PICTURE] * 3
    assert (
        dataset.content("text")[0] == "American President, The (1995). Comedy, Drama, Romance. A president,\nin love."
    )
    assert info.left_out == {"texts of films that are not listed": 1}
    (source / "texts.csv").unlink()
    put_lines(source / "texts.jsonl.gz", [{"id": 3, "text": "No name."}, {"item": "2", "plot": "Cats."}])
    dataset, _ = prepared("movielens", source, tmp_path / "out")
    assert list(dataset.content("text"))[1:] == ['"Great Performances" Cats (1998). Cats.', "Nameless. War. No name."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("texts.csv", "id,text\n1,a\n1,b\n", "texts.csv, line 3: the film '1' stands there twice, and not alike"),
        ("texts.csv", "id,words\n1,a\n", "texts.csv, line 1: the column text or overview or plot or description"),
        ("texts.jsonl", '{"id": 1}\n', 'texts.jsonl, line 1: must be an object with the texts "id" and "text"'),
        ("texts.jsonl", "[1]\n", "texts.jsonl, line 1: must be an object"),
        ("texts.jsonl", "{\n", "texts.jsonl, line 1: not valid JSON"),
    ],
)
def test_bad_texts(tmp_path: Path, name: str, content: str, message: str) -> None:
    source = latest(tmp_path / "ml")
    put(source / name, content)
    with pytest.raises(DatasetError, match=message):
        READERS["movielens"].prepare(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "ratings.csv",
            "userId,movieId,rating,timestamp\n1,1,5.5,1\n",
            r"ratings.csv, line 2: rating must lie between 0.5",
        ),
        (
            "ratings.csv",
            "userId,movieId,rating,timestamp\n1,1,0,1\n",
            r"ratings.csv, line 2: rating must lie between 0.5",
        ),
        ("ratings.csv", "userId,movieId,rating,timestamp\n", r"ratings.csv has a header and no rows"),
        ("ratings.csv", "", r"ratings.csv is empty"),
        ("movies.csv", "movieId,title,genres\n1,A \xff,x\n", r"movies.csv, line 2: not UTF-8 text \(byte 0xff\)"),
    ],
)
def test_bad_published_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    source = latest(tmp_path / "ml")
    put(source / name, content, "latin-1")
    with pytest.raises(DatasetError, match=message):
        READERS["movielens"].prepare(source, tmp_path / "out")


def test_bad_published_fields(tmp_path: Path) -> None:
    put(tmp_path / "k" / "u.data", "196\t1\t3\n")
    put(tmp_path / "k" / "u.item", U_ITEM)
    with pytest.raises(DatasetError, match=r"u.data, line 1: 3 fields parted by '\\t', expected 4$"):
        READERS["ml-100k"].prepare(tmp_path / "k", tmp_path / "out")
    put(tmp_path / "k" / "u.data", "196\t1\t3\t5\n")
    put(tmp_path / "k" / "u.item", "1|Toy Story\n")
    with pytest.raises(DatasetError, match=r"u.item, line 1: 2 fields parted by '\|', expected 5 to 24"):
        READERS["ml-100k"].prepare(tmp_path / "k", tmp_path / "out")
    put(tmp_path / "m" / "ratings.dat", "1::1::0.5::5\n")
    put(tmp_path / "m" / "movies.dat", "1::One::War\n")
    with pytest.raises(DatasetError, match=r"ratings.dat, line 1: rating must lie between 1 and 5, got 0.5"):
        READERS["ml-1m"].prepare(tmp_path / "m", tmp_path / "out")


@pytest.mark.parametrize(
    ("reader", "wanted"),
    [
        ("ml-100k", "u.data with u.item, ratings.csv with movies.csv"),
        ("ml-1m", "ratings.dat with movies.dat, interactions.csv with movies.csv"),
        ("movielens", "ratings.csv with movies.csv, ratings.dat with movies.dat, u.data with u.item"),
    ],
)
def test_what_is_wanted_is_said(tmp_path: Path, reader: str, wanted: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=f"holds none of these files of MovieLens: {wanted}"):
        READERS[reader].prepare(tmp_path / "empty", tmp_path / "out")
    name = wanted.split(" ")[0]
    put(tmp_path / "empty" / name, "x")
    with pytest.raises(DatasetError, match=f"holds {name}, but no "):
        READERS[reader].prepare(tmp_path / "empty", tmp_path / "out")


def test_films_and_users_whose_ids_are_none(tmp_path: Path) -> None:
    put(tmp_path / "k" / "ratings.csv", "user,item,rating\n7,1,4\na/b,1,4\n7,the one,4\n")
    put(tmp_path / "k" / "movies.csv", f"item,title,genres\n1,One,War\nthe one,Two,War\n{'x' * 300},Three,War\n")
    dataset, info = prepared("ml-100k", tmp_path / "k", tmp_path / "out")
    assert events_of(dataset) == [("7", "1", "rating", 4.0, None)]
    assert sum(info.left_out.values()) == 4
    assert info.left_out["events of items that were left out"] == 1


# --- real data, where it is there --------------------------------------------------------------------------------


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
