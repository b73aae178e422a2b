"""Trained image encoders, kept by what they learned from, for the next training and for other data that share it.

A file holds the weights, the sha256 of each picture and text that the encoder learned from, how many there were to
choose from, and the seconds that ended its training early. It is used again where the settings are the same, all that
it learned from is still there, and little has come since: so a catalogue that grows slowly keeps its encoder, and with
it the vectors of its pictures, while a picture that is gone takes the encoder with it. Files are written whole or not
at all; a damaged one is removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models.files import replacing

log = logging.getLogger(__name__)

KEPT = 20  # encoders, the newest
LEAST_SHARE = 0.9  # of the pictures of now that there were when it learned
_PREFIX = "image-encoder-"
_SUFFIX = ".safetensors"

Digests = NDArray[np.uint8]


@dataclass(frozen=True)
class KeptEncoder:
    """Weights as bytes, and what they come from.

    Attributes:
        learned: digests `[n, k]` of what it learned from.
        among: how many pictures there were.
        seconds: that its training was given, where it took all of them; None where it came to its end.
    """

    weights: bytes
    learned: Digests
    among: int
    seconds: float | None = None

    def serves(self, present: Digests, seconds: float | None) -> bool:
        """Whether it can be used for the pictures of now, where a training would be given so many seconds."""
        if self.seconds is not None and (seconds is None or seconds > self.seconds):
            return False
        known = {row.tobytes() for row in present}
        return self.among >= LEAST_SHARE * len(present) and all(row.tobytes() in known for row in self.learned)


class EncoderCache:
    """The kept encoders of one kind.

    Args:
        folder: None keeps nothing.
        settings: names all that matters beside the pictures.
    """

    def __init__(self, folder: Path | None, settings: str) -> None:
        self._folder = folder
        self._name = f"{_PREFIX}{hashlib.sha256(settings.encode()).hexdigest()[:16]}"

    def find(self, present: Digests, seconds: float | None) -> KeptEncoder | None:
        """The one that learned from most of these pictures `[n, k]`, and from nothing else."""
        fitting = [kept for kept in self._all() if kept.serves(present, seconds)]
        return max(fitting, key=lambda kept: len(kept.learned), default=None)

    def add(self, kept: KeptEncoder) -> None:
        """Keep an encoder. Where the folder cannot be written, that only costs the next training some time."""
        if self._folder is None:
            return
        weights = np.frombuffer(kept.weights, np.uint8)
        checksum = _checksum(weights, kept.learned)
        facts = {"facts": json.dumps({"among": kept.among, "seconds": kept.seconds})}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._folder / f"{self._name}-{checksum}{_SUFFIX}") as temporary:
                save_file({"weights": weights, "learned": np.ascontiguousarray(kept.learned)}, temporary, facts)
            newest = sorted(self._folder.glob(f"{_PREFIX}*{_SUFFIX}"), key=lambda file: -file.stat().st_mtime)
            for file in newest[KEPT:]:
                file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the image encoder was not kept in %s (%s)", self._folder, error)

    def _all(self) -> Iterator[KeptEncoder]:
        for file in () if self._folder is None else sorted(self._folder.glob(f"{self._name}-*{_SUFFIX}")):
            try:
                yield _read(file)
            except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
                log.warning("the kept image encoder %s cannot be used (%s)", file, error)
                file.unlink(missing_ok=True)


def _read(file: Path) -> KeptEncoder:
    with safe_open(file, framework="numpy") as stored:
        weights, learned = stored.get_tensor("weights"), stored.get_tensor("learned")
        facts = json.loads((stored.metadata() or {})["facts"])
    if _checksum(weights, learned) not in file.name:
        raise ValueError("it is damaged")
    return KeptEncoder(weights.tobytes(), learned, int(facts["among"]), facts["seconds"])


def _checksum(weights: Digests, learned: Digests) -> str:
    return hashlib.sha256(weights.tobytes() + learned.tobytes()).hexdigest()[:16]
