"""Whatever a source holds: a reader makes a dataset that can be loaded, or says in one sentence why not."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.sources import PICTURE, put
from training.datasets import READERS, DatasetError, load_dataset

EXAMPLES = settings(max_examples=75, deadline=None, suppress_health_check=list(HealthCheck))

Source = dict[str, bytes]


def array(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(values))
    return stream.getvalue()


def arrays(**values: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{name: np.asarray(value) for name, value in values.items()})
    return stream.getvalue()


def lines(*rows: Any) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def table(*rows: str) -> bytes:
    return "".join(f"{row}\n".replace(" ", "\t") for row in rows).encode()


SOURCES: dict[str, tuple[str, Source]] = {
    "100k as published": (
        "ml-100k",
        {
            "u.data": b"196\t1\t3\t881250949\n186\t2\t5\t891717742\n",
            "u.item": "1|Été (1995)|x||y|0|1|0\n2|Two (1995)|x||y|1|0|1\n".encode("latin-1"),
            "posters/1.jpg": PICTURE,
            "texts.csv": b'id,text\n1,"a\nb"\n',
        },
    ),
    "1m as published": (
        "ml-1m",
        {
            "ratings.dat": b"1::1::5::978300760\n1::2::3::978302109\n",
            "movies.dat": "1::Été (1995)::War\n2::Two::Drama|War\n".encode("latin-1"),
            "texts.jsonl": lines({"id": 1, "text": "a"}, {"id": "2", "text": "b"}),
        },
    ),
    "tables": (
        "ml-100k",
        {
            "ratings.csv": b"user,item,rating,timestamp\n7,1,4,881250949\n7,2,1,881250950\n8,1,5,0\n",
            "movies.csv": b'item,title,genres,overview\n1,"One, The (1951)",War,x\n2,Two,War|Drama,\n',
            "split_1.csv": b"user,item,split\n7,1,train\n7,2,test\n8,1,valid\n",
            "missing_x.npz": arrays(items=[1, 2], columns=["text"], missing=[[True], [False]]),
            "new_items.npy": array([2]),
            "rating_split.npz": arrays(train=[0], valid=[2], test=[1]),
            "leave_one_out.npz": arrays(
                users=[7, 8], test_item=[1, 1], test_neg=[[2], [2]], valid_item=[1, 1], valid_neg=[[2], [2]]
            ),
        },
    ),
    "latest": (
        "movielens",
        {
            "ratings.csv": b"userId,movieId,rating,timestamp\r\n1,1,4.5,1256677221\r\n1,2,0.5,1256677222\r\n",
            "movies.csv": b'movieId,title,genres\r\n1,"A, The (1995)",War|Drama\r\n2,B,(no genres listed)\r\n',
        },
    ),
    "packed latest": (
        "movielens",
        {
            "ratings.csv.gz": gzip.compress(
                b"userId,movieId,rating,timestamp\n1,1,4.5,1256677221\n1,2,0.5,9\n", mtime=0
            ),
            "movies.csv.gz": gzip.compress(b"movieId,title,genres\n1,A,War\n2,B,War\n", mtime=0),
        },
    ),
    "amazon 2014": (
        "amazon",
        {
            "reviews.json": lines(
                {"reviewerID": "A", "asin": "1", "overall": 5.0, "reviewText": "x", "unixReviewTime": 1393545600},
                {"reviewerID": "B", "asin": "2", "overall": 2.0, "summary": "y \ud83d"},
            ),
            "meta.json": b"{'asin': '1', 'title': 'It\\'s', 'description': \"d\", 'categories': [['a', 'b']]}\n",
            "images/1.jpg": PICTURE,
            "rating_split.npz": arrays(train=[0], valid=[1], test=np.zeros(0, dtype=int)),
        },
    ),
    "amazon 2023": (
        "amazon",
        {
            "Toys.jsonl": lines(
                {
                    "user_id": "A",
                    "parent_asin": "1",
                    "rating": 5.0,
                    "title": "t",
                    "text": "x",
                    "timestamp": 1588687728923,
                }
            ),
            "meta_Toys.jsonl": lines(
                {"parent_asin": "1", "title": "T", "features": ["f"], "description": [], "store": "S"}
            ),
        },
    ),
    "mmrec": (
        "folder",
        {
            "baby.inter": table(
                "userID itemID rating timestamp x_label", "0 0 5.0 1400000000 0", "0 1 4.0 1400000001 1"
            ),
            "image_feat.npy": array(np.eye(2, dtype=np.float32)),
            "missing.npz": arrays(missing=[[True], [False]], columns=["image"]),
            "new_items.npy": array([1]),
        },
    ),
    "recbole": (
        "recbole",
        {
            "x.inter": table("user_id:token item_id:token rating:float timestamp:float", "u a 5 1e9", "v b 3 10.5"),
            "x.item": table(
                "item_id:token title:token genre:token_seq price:float v:float_seq", "a A x 1 1,2", "b B y z 3,4"
            ),
            "image_feat/a.npy": array([1.0, 2.0]),
        },
    ),
    "our own": (
        "lacuna",
        {
            "items.jsonl": lines({"id": "a", "title": "One", "modalities": {"text": "x", "sound": {"vector": [1.0]}}}),
            "feedback.jsonl": lines({"user": "u", "item": "a", "type": "rating", "value": 4}),
        },
    ),
}


def outcome(reader: str, files: Source) -> str:
    """What a reader says of these files: "" or its one sentence; what it accepts can be loaded."""
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "source", Path(name) / "out"
        source.mkdir()
        for path, content in files.items():
            put(source / f"{path}.raw", content).rename(source / path)
        said = ""
        try:
            READERS[reader].prepare(source, out)
        except DatasetError as error:
            said = str(error)
        if said:
            assert "\n" not in said
            assert not out.exists()
        else:
            load_dataset(out, min_rating=None)
        return said


@pytest.mark.parametrize("name", SOURCES)
def test_the_sources_are_good(name: str) -> None:
    assert outcome(*SOURCES[name]) == ""


Change = Callable[[bytes, int, int, bytes], bytes]

CHANGES: dict[str, Change] = {
    "replaced": lambda data, start, _, new: data[:start] + new + data[start + len(new) :],
    "inserted": lambda data, start, _, new: data[:start] + new + data[start:],
    "removed": lambda data, start, length, _: data[:start] + data[start + length :],
    "cut": lambda data, start, *_: data[:start],
    "doubled": lambda data, start, length, _: data[: start + length] + data[start:],
}
BYTES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        [b"\n", b"\t", b",", b'"', b";", b"|", b"::", b"\0", b"\r", b"9" * 12, b"-", b"nan", b"1e999", b"/", b".."]
    ),
    st.text(max_size=4).map(lambda text: text.encode("utf-8", "surrogatepass")),
)


@pytest.mark.parametrize("name", SOURCES)
@EXAMPLES
@given(data=st.data())
def test_changed_files(name: str, data: st.DataObject) -> None:
    reader, source = SOURCES[name]
    files = dict(source)
    for _ in range(data.draw(st.integers(1, 3))):
        file = data.draw(st.sampled_from(sorted(files)))
        place = data.draw(st.integers(0, len(files[file])))
        change = CHANGES[data.draw(st.sampled_from(sorted(CHANGES)))]
        files[file] = change(files[file], place, data.draw(st.integers(1, 40)), data.draw(BYTES))
    outcome(reader, files)


@pytest.mark.parametrize("name", SOURCES)
@EXAMPLES
@given(data=st.data())
def test_random_files(name: str, data: st.DataObject) -> None:
    reader, source = SOURCES[name]
    file = data.draw(st.sampled_from(sorted(source)))
    content = data.draw(
        st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode("utf-8", "ignore")))
    )
    outcome(reader, {**source, file: content})


@pytest.mark.parametrize("name", SOURCES)
def test_folders_in_place_of_files_and_files_that_are_gone(name: str) -> None:
    reader, source = SOURCES[name]
    for file in source:
        rest = {path: content for path, content in source.items() if path != file}
        outcome(reader, rest)
        outcome(reader, {**rest, f"{file}/inside": b"x"})


DTYPES = st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?", "U3", "S3", "c8", "M8[s]", "V4"])
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@pytest.mark.parametrize(
    "name", [name for name, (_, source) in SOURCES.items() if any(".np" in file for file in source)]
)
@EXAMPLES
@given(data=st.data())
def test_arrays_of_other_types_and_shapes(name: str, data: st.DataObject) -> None:
    reader, source = SOURCES[name]
    file = data.draw(st.sampled_from([file for file in sorted(source) if ".np" in file]))
    wrong = np.zeros(data.draw(SHAPES), dtype=data.draw(DTYPES))
    if file.endswith(".npy"):
        content = array(wrong)
    else:
        kept = dict(np.load(io.BytesIO(source[file])))
        content = arrays(**{**kept, data.draw(st.sampled_from(sorted(kept))): wrong})
    outcome(reader, {**source, file: content})
