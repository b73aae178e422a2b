"""Files and folders that are put in place in one step: readers of the path find the old one or the new one whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

ABANDONED_S = 3600.0  # nobody writes a file for so long


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, to be written in the block, that takes its place in the end, on disk for good.

    Whatever goes wrong before leaves the old file. What killed processes have left of theirs is removed after an hour.
    What is no file, as /dev/stdout, is written to as it is.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and (not path.is_file() or path.is_relative_to("/dev")):
        yield path
        return
    path = Path(os.path.realpath(path))  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_away(path)
    temporary = path.with_name(f"{path.name[:100]}.{uuid.uuid4().int}")
    try:
        yield temporary
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def folder_beside(path: Path) -> Path:
    """A new, empty folder beside `path`, for `replace_folder`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))


def replace_folder(folder: Path, path: Path) -> None:
    """Move a finished folder to `path`, in place of what is there."""
    folder.chmod(0o755)  # mkdtemp makes it private; another user's service must read it
    if not path.exists():
        folder.rename(path)
        return
    old = path.with_name(f".{path.name}-old-{os.getpid()}")
    path.rename(old)
    folder.rename(path)
    shutil.rmtree(old)


def sync(path: Path) -> None:
    """Wait until the disk holds a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear_away(path: Path) -> None:
    for left in path.parent.glob(f"{path.name}.*"):
        if not left.suffix[1:].isdigit():
            continue
        with contextlib.suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - ABANDONED_S:
                left.unlink()
