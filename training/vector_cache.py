"""What encoders made of contents, kept by the contents, for the next training and for other data that share some.

A folder of safetensors files: each holds the vectors of some contents by one encoder, with the sha256 of each content.
A file is written whole or not at all and never changed; a damaged one is removed, and its contents are encoded again.
Beyond `MAX_BYTES` the files go that have not been asked for the longest.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models.arrays import Array, Mask
from models.encoders import Encoder
from models.files import replacing

log = logging.getLogger(__name__)

MAX_BYTES = 4 << 30
_READING = 2  # to be raised when what is read of a content changes, so that kept vectors are made anew
_SUFFIX = ".vectors.safetensors"

Digests = NDArray[np.uint8]


def digest_of(content: str | bytes) -> bytes:
    """The sha256 of a content, 32 bytes."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return hashlib.sha256(data).digest()


class VectorCache:
    """The vectors of one encoder, by what they were made of.

    Args:
        folder: where they are kept, together with those of other encoders; None keeps nothing.
    """

    def __init__(self, folder: Path | None, encoder: Encoder[str] | Encoder[object]) -> None:
        named = "\0".join((encoder.id, encoder.weights_sha256, str(encoder.dim), str(_READING)))
        self._folder, self._dim = folder, encoder.dim
        self._name = f"{encoder.id.rpartition(':')[2][:40]}-{hashlib.sha256(named.encode()).hexdigest()[:24]}"

    def find(self, digests: Sequence[bytes]) -> tuple[Array, Mask, Mask]:
        """Vectors `[n, dim]` of contents `[n]`, which of them say anything, and which are known at all."""
        vectors = np.zeros((len(digests), self._dim), np.float32)
        valid, known = np.zeros(len(digests), np.bool_), np.zeros(len(digests), np.bool_)
        places: dict[bytes, list[int]] = {}
        for row, digest in enumerate(digests):
            places.setdefault(digest, []).append(row)
        for file in self._files() if places else ():
            try:
                self._take(file, places, (vectors, valid, known))
            except (OSError, KeyError, ValueError, SafetensorError) as error:
                log.warning("the kept vectors %s cannot be used and are made again (%s)", file, error)
                _remove(file)
        return vectors, valid, known

    def _take(self, file: Path, places: dict[bytes, list[int]], into: tuple[Array, Mask, Mask]) -> None:
        vectors, valid, known = into
        with safe_open(file, framework="numpy") as stored:
            digests = stored.get_tensor("digests")
            found = [row for row, digest in enumerate(digests) if digest.tobytes() in places]
            if not found:
                return
            kept, told = stored.get_tensor("vectors"), stored.get_tensor("valid")
        if kept.shape != (len(digests), self._dim) or told.shape != (len(digests),):
            raise ValueError("its parts do not fit together")
        if hashlib.sha256(digests.tobytes() + kept.tobytes()).hexdigest()[:16] not in file.name:
            raise ValueError("it is damaged")
        for row in found:
            rows = places[digests[row].tobytes()]
            vectors[rows], valid[rows], known[rows] = kept[row], told[row], True
        os.utime(file)

    def add(self, digests: Sequence[bytes], vectors: Array, valid: Mask) -> None:
        """Keep the vectors `[n, dim]` of contents `[n]`. Where the folder cannot be written, that only costs the next
        training some time."""
        if self._folder is None or not len(digests):
            return
        contents = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
        kept = np.ascontiguousarray(vectors, dtype=np.float32)
        checksum = hashlib.sha256(contents.tobytes() + kept.tobytes()).hexdigest()[:16]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._folder / f"{self._name}-{checksum}{_SUFFIX}") as temporary:
                save_file({"digests": contents, "vectors": kept, "valid": np.asarray(valid, np.bool_)}, temporary)
            _keep_within(self._folder, MAX_BYTES)
        except OSError as error:
            log.warning("vectors were not kept in %s (%s)", self._folder, error)

    def _files(self) -> list[Path]:
        return [] if self._folder is None else sorted(self._folder.glob(f"{self._name}-*{_SUFFIX}"))


def _keep_within(folder: Path, most: int) -> None:
    files = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > most:
            _remove(file)


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed (%s)", file, error)
