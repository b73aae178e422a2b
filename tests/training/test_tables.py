"""Tables in the dialects of spreadsheets and statistics programs, and files that are damaged."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.training.sources import put
from training.datasets import READERS, DatasetError
from training.datasets.tables import load_arrays, read_columns, read_fields, read_jsonl, read_table

COLUMNS = ("user", "item")


def rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    return [(place.line, row) for place, row in read_table(file, COLUMNS)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("user,item\n1,2\n3,4\n", [2, 3]),
        ("\ufeffuser,item\n1,2\n3,4\n", [2, 3]),
        ("user,item\r\n1,2\r\n3,4\r\n", [2, 3]),
        ("user,item\n1,2\n3,4", [2, 3]),
        ('"user","item"\n"1","2"\n"3","4"\n', [2, 3]),
        ('\ufeff"user";"item"\n1;2\n3;4\n', [2, 3]),
        ("user\titem\n1\t2\n3\t4\n", [2, 3]),
        ('"user"\t"item"\n"1"\t"2"\n3\t4\n', [2, 3]),
        ("user , item\n 1, 2\n3 ,4 \n", [2, 3]),
        ("user,item\n1,2\n3,4\n\n\n", [2, 3]),
        ("user,item\n\n1,2\n  \n3,4\n,\n", [3, 5]),
        ("\n\nuser,item\n1,2\n3,4\n", [4, 5]),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.inter"])
def test_dialects(tmp_path: Path, text: str, lines: list[int], name: str) -> None:
    expected = [{"user": "1", "item": "2"}, {"user": "3", "item": "4"}]
    assert rows(put(tmp_path / name, text)) == list(zip(lines, expected, strict=True))


def test_quoted_fields_may_hold_what_parts_them(tmp_path: Path) -> None:
    file = put(tmp_path / "t.csv", 'user,item\r\n"1","a\r\nb"\r\n"2","say ""x"", y"\r\n\r\n3,c\r\n')
    assert rows(file) == [
        (2, {"user": "1", "item": "a\r\nb"}),
        (4, {"user": "2", "item": 'say "x", y'}),
        (6, {"user": "3", "item": "c"}),
    ]


def test_lines_of_atomic_files_are_rows_whatever_they_quote(tmp_path: Path) -> None:
    file = put(tmp_path / "t.item", 'user:token\titem:token_seq\n1\t"Great" one\n2\t12" single\n3\t"all ""of"" it"\n')
    assert [row["item"] for _, row in rows(file)] == ['"Great" one', '12" single', 'all "of" it']
    assert read_columns(file) == {"user": "token", "item": "token_seq"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"t.csv is empty$"),
        ("\n \n", r"t.csv is empty$"),
        ("user,item\n", r"t.csv has a header and no rows$"),
        ("user,film\n1,2\n", r"t.csv, line 1: the column item is missing$"),
        ("user,item,item\n1,2,3\n", r"t.csv, line 1: the column item stands there twice$"),
        ("user,item\n1,2\n3\n", r"t.csv, line 3: 1 columns, the header has 2$"),
        ("user,item\n1,2,3\n", r"t.csv, line 2: 3 columns, the header has 2$"),
        ('user,item\n1,"2\n3,4\n', r"t.csv, line 2: no row of a table \(unexpected end of data\)$"),
        ('user,item\n1,2\n3,"4"x\n', r"t.csv, line 3: no row of a table"),
        ("user,item\n1,2\r3,4\n", r"t.csv, line 2: no row of a table \(new-line character"),
        (f"user,item\n1,{'x' * 200_000}\n", r"t.csv, line 2: no row of a table \(field larger than field limit"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        rows(put(tmp_path / "t.csv", text))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    file = put(tmp_path / "t.csv", "user,item\n1,2\n3,é\n", encoding)
    with pytest.raises(
        DatasetError, match=r"t.csv, line [13]: not UTF-8 text \(byte 0x(e9|ff)\); save the file as UTF-8"
    ):
        rows(file)


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DatasetError, match=r"folder.csv is no file$"):
        rows(tmp_path / "folder.csv")
    with pytest.raises(DatasetError, match=r"absent.csv does not exist$"):
        rows(tmp_path / "absent.csv")
    whole = gzip.compress(b"user,item\n" + b"".join(b"%d,%d\n" % (row, row * row) for row in range(20_000)))
    for content in (
        b"",
        b"no gzip",
        whole[: len(whole) // 2],
        whole[:50] + b"\0" * 50 + whole[100:],
        whole[:-4] + b"1234",
    ):
        (tmp_path / "t.csv.gz").write_bytes(content)
        with pytest.raises(DatasetError, match=r"^t.csv.gz (is empty|cannot be read( after line \d+)?: .+)$"):
            rows(tmp_path / "t.csv.gz")


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(tmp_path / "t.csv", "user,item\n1,2\n")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DatasetError, match=r"t.csv cannot be read: .*Permission denied"):
        rows(file)


def test_nul_bytes(tmp_path: Path) -> None:
    put(tmp_path / "k" / "ratings.csv", b"user,item,rating\n7,1,4\n8\0,1,4\n")
    put(tmp_path / "k" / "movies.csv", b"item,title,genres\n1,O\0ne,W\0ar\n")
    info = READERS["ml-100k"].prepare(tmp_path / "k", tmp_path / "out")
    assert info.counts.feedback == 1  # the text loses its NUL, the user cannot be one
    assert "O ne" in (tmp_path / "out" / "items.jsonl").read_text()


def test_json_lines(tmp_path: Path) -> None:
    file = put(tmp_path / "t.jsonl", '\ufeff{"a": 1}\n\n[2]\n')
    assert [(place.line, row) for place, row in read_jsonl(file)] == [(1, {"a": 1}), (3, [2])]
    for text, message in (
        ("\n", r"t.jsonl is empty"),
        ("{}\n{", r"t.jsonl, line 2: not valid JSON"),
        ('"\\ud83d"', r"t.jsonl, line 1: not valid JSON"),
    ):
        with pytest.raises(DatasetError, match=message):
            list(read_jsonl(put(file, text)))
    with pytest.raises(DatasetError, match=r"t.jsonl, line 1: not valid JSON"):
        list(read_jsonl(put(file, b'"\xff"')))


def test_plain_fields(tmp_path: Path) -> None:
    file = put(tmp_path / "t.dat", "\ufeff1::2\r\n\r\n3::4")
    assert [(place.line, row) for place, row in read_fields(file, "::", range(2, 3))] == [
        (1, ["1", "2"]),
        (3, ["3", "4"]),
    ]
    for text, message in (
        ("", r"t.dat is empty"),
        ("1::2\n3\n", r"t.dat, line 2: 1 fields parted by '::', expected 2"),
    ):
        with pytest.raises(DatasetError, match=message):
            list(read_fields(put(file, text), "::", range(2, 3)))


def test_archives_that_hold_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("note.txt", "hello")
    with pytest.raises(DatasetError, match=r"t.npz holds something else than arrays"):
        load_arrays(tmp_path / "t.npz")
    np.savez(tmp_path / "t.npz", a=np.array([None]))
    with pytest.raises(DatasetError, match=r"t.npz cannot be read as plain NumPy arrays"):
        load_arrays(tmp_path / "t.npz")
