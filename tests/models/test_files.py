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
