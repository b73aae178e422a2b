"""A file is replaced when the new one is whole, and what goes wrong leaves the old one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.files import replacing


def test_a_file_appears_whole(tmp_path: Path) -> None:
    file = tmp_path / "result"
    with replacing(file) as unfinished:
        unfinished.write_text("new")
        assert not file.exists()
        assert unfinished.parent == tmp_path
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["result"]


def test_a_file_is_replaced_and_keeps_who_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "result"
    file.write_text("old")
    file.chmod(0o600)
    with replacing(file) as unfinished:
        unfinished.write_text("new")
        assert file.read_text() == "old"
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o600)


def test_what_goes_wrong_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "result"
    file.write_text("old")

    def break_off() -> None:
        with replacing(file) as unfinished:
            unfinished.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["result"]


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
