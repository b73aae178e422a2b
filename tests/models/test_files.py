"""Files and folders that are put in place in one step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.files import clear_abandoned, folder_beside, replace_folder, replacing


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def _write_half(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("full")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"):
        _write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_goes_after_a_while(tmp_path: Path) -> None:
    path, old, new, other = (tmp_path / name for name in ("file", ".file-1", ".file-2", ".other-1"))
    for left in (path, old, new, other):
        left.write_text("left")
        os.utime(left, (0, 0))
    os.utime(new)
    clear_abandoned(path)
    assert sorted(tmp_path.iterdir()) == [new, other, path]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    for text in ("first", "second"):
        folder = folder_beside(path)
        (folder / "file").write_text(text)
        replace_folder(folder, path)
        assert (path / "file").read_text() == text
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "nothing", path)
    assert path.is_dir()


def test_a_file_is_replaced_and_keeps_who_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "result"
    file.write_text("old")
    file.chmod(0o600)
    with replacing(file) as unfinished:
        unfinished.write_text("new")
        assert file.read_text() == "old"
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o600)


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "result")
    for text in ("first", "second"):
        with replacing(tmp_path / "link") as unfinished:
            unfinished.write_text(text)
        assert (tmp_path / "result").read_text() == text
    assert (tmp_path / "link").is_symlink()


def test_what_is_no_file_is_written_to_or_refused(tmp_path: Path) -> None:
    with replacing(Path("/dev/null")) as unfinished:
        unfinished.write_text("gone")
    assert Path("/dev/null").is_char_device()
    for place in (tmp_path, tmp_path / "nowhere" / "result"):
        with pytest.raises(OSError, match=r"directory"), replacing(place) as unfinished:
            unfinished.write_text("new")
    assert os.listdir(tmp_path) == []


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    with replacing(tmp_path / ("x" * 255)) as unfinished:
        unfinished.write_text("new")
    assert os.listdir(tmp_path) == ["x" * 255]
