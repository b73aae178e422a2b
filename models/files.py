"""Files and folders that are whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ABANDONED_S = 3600.0  # nobody writes a file for so long


@contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, whole and on disk, if the block ends without an error.

    Whatever goes wrong, what was at `path` stays. What is no file, as /dev/stdout, is written to as it is.

    Args:
        mode: who may read a file that was not there; one that was stays as it is.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and (not path.is_file() or path.is_relative_to("/dev")):
        yield path
        return
    path = Path(os.path.realpath(path))  # a link stays one
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}-", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else mode)  # mkstemp makes it private
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def clear_abandoned(path: Path) -> None:
    """Remove what killed processes have left of writing `path` by `replacing`."""
    for left in path.parent.glob(f".{path.name[:100]}-*"):
        with suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - ABANDONED_S:
                left.unlink()


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
    """Wait until a file, or what a folder lists, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
