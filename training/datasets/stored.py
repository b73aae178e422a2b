"""Texts that stay in their file: pictures of a prepared dataset, which would fill the memory."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path


class TextFile:
    """A file that is kept open for as long as a text of it is known, whatever takes its place on disk."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from an offset on.

        Raises:
            OSError: they are not there.
        """
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise OSError("a file that is being read has become shorter")
        return data


@dataclass(frozen=True, slots=True)
class StoredText:
    """A text of ASCII characters in a file; `str` reads it."""

    file: TextFile
    offset: int
    length: int

    def __str__(self) -> str:
        return self.file.read(self.offset, self.length).decode("ascii")
