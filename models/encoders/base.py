"""What an encoder is: raw content in, one vector per item out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.arrays import Array

Content = TypeVar("Content")
Content_contra = TypeVar("Content_contra", contravariant=True)
Network = Callable[[NDArray[Any]], Array]


class EncoderUnavailableError(RuntimeError):
    """An encoder that cannot be had; the message is one sentence that names what is missing or different."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an encoder reads of a content: whether anything that it knows, and whether it stops before the end."""

    known: bool = True
    truncated: bool = False


class Encoder(Protocol[Content_contra]):
    """Raw content -> feature vector. Deterministic, and safe to call from several threads.

    Every item passes through the network alone, so its vector does not depend, in any bit, on what else is in the
    batch, nor on `threads`. Another machine, or torch instead of ONNX Runtime, agrees to a cosine of 0.99999.
    """

    @property
    def id(self) -> str:
        """`sentence-transformers:<name>`, `torchvision:<name>` or `catalogue`."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights, in hex: two encoders with the same id and hash give the same vectors."""

    def encode(self, batch: Sequence[Content_contra]) -> Array:
        """Vectors `[n, dim]` of `n` items; `[0, dim]` for none."""

    def reads(self, content: Content_contra) -> Reading:
        """What it reads of a content. Where that is nothing, the vector says nothing either."""


TextEncoder = Encoder[str]
ImageEncoder = Encoder[Image.Image]


class NetworkEncoder(Generic[Content]):
    """An encoder made of a preparation step and a network.

    Args:
        prepare: one item's content -> the network's input, with a leading axis of 1.
        network: that input -> `[1, dim]`.
        blank: some content, encoded once here to learn `dim` and to warm up.
        threads: how many items of a batch are encoded at a time; one item never uses more than one core.
        reads: what is read of a content; all of it, where it is left out.
    """

    def __init__(
        self,
        encoder_id: str,
        weights_sha256: str,
        *,
        prepare: Callable[[Content], NDArray[Any]],
        network: Network,
        blank: Content,
        threads: int = 1,
        reads: Callable[[Content], Reading] | None = None,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.id = encoder_id
        self.weights_sha256 = weights_sha256
        self._prepare = prepare
        self._network = network
        self._threads = threads
        self._reads = reads
        self.dim = len(self._encode_one(blank))

    def encode(self, batch: Sequence[Content]) -> Array:
        """Vectors `[n, dim]`; see `Encoder`."""
        vectors = np.empty((len(batch), self.dim), np.float32)
        if self._threads == 1 or len(batch) < 2:
            for row, content in enumerate(batch):
                vectors[row] = self._encode_one(content)
            return vectors
        with ThreadPoolExecutor(self._threads) as pool:
            for row, vector in enumerate(pool.map(self._encode_one, batch)):
                vectors[row] = vector
        return vectors

    def reads(self, content: Content) -> Reading:
        """What is read of a content; see `Encoder`."""
        return Reading() if self._reads is None else self._reads(content)

    def _encode_one(self, content: Content) -> Array:
        vector: Array = self._network(self._prepare(content))[0]
        return vector
