"""Features of a dataset: what becomes a vector, what counts as missing, and what the cache may decide."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models.encoders import CATALOGUE, NetworkEncoder, Reading
from models.vocabulary import Vocabulary
from training import vector_cache
from training.datasets.base import Dataset, Interactions
from training.features import FeatureError, catalogue_pictures, encode_dataset
from training.vector_cache import VectorCache, digest_of

ALL = np.ones((5, 3), np.bool_)


def _picture(shade: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(buffer, kind)
    return buffer.getvalue()


def _base64(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


def _dataset(records: list[dict[str, Any]], fingerprint: str = "f1") -> Dataset:
    empty = np.array([], np.int64)
    interactions = Interactions(empty, empty, empty.astype(np.uint8), empty.astype(float), empty.astype(float))
    items = Vocabulary(record["id"] for record in records)
    return Dataset("test", True, None, fingerprint, items, Vocabulary(), records, interactions)


@pytest.fixture
def dataset() -> Dataset:
    return _dataset(
        [
            {"id": "a", "title": "one", "modalities": {"image": _base64(_picture(50)), "audio": {"vector": [1, 2]}}},
            {"id": "b", "modalities": {"text": "three", "image": _base64(b"\xff\xd8\xffbroken")}},
            {"id": "c", "modalities": {"image": _base64(_picture(200, "JPEG"))}},
            {"id": "d", "modalities": {"text": "go", "audio": {"vector": [3, 4]}}},
            {"id": "e", "modalities": {"image": {"vector": [7.0, 8.0, 9.0]}}},
        ]
    )


class Counted:
    """Encoders of three numbers that count what they encode; `weights` stands for the hash of theirs."""

    def __init__(self, weights: str = "w1", image_id: str = "torchvision:mean") -> None:
        self.encoded: list[object] = []
        self.text: NetworkEncoder[str] = NetworkEncoder(
            "sentence-transformers:length",
            weights,
            prepare=self._prepare_text,
            network=lambda x: x,
            blank="",
            reads=lambda text: Reading(known=text != "?"),
        )
        self.image: NetworkEncoder[Image.Image] = NetworkEncoder(
            image_id, weights, prepare=self._prepare_image, network=lambda x: x, blank=Image.new("RGB", (1, 1))
        )
        self.encoded.clear()

    def _prepare_text(self, text: str) -> NDArray[np.float32]:
        self.encoded.append(text)
        return np.array([[len(text), 1, 0]], np.float32)

    def _prepare_image(self, image: Image.Image) -> NDArray[np.float32]:
        self.encoded.append(image.size)
        return np.asarray(image, np.float32).mean((0, 1))[None]

    @property
    def both(self) -> dict[str, Any]:
        return {"text_encoder": self.text, "image_encoder": self.image}


def test_encode_dataset(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    encoders = Counted()
    batch, references = encode_dataset(dataset, ALL, **encoders.both)
    assert batch.names == ("text", "image", "audio")
    assert batch.observed.int().tolist() == [[1, 1, 1], [1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert batch.features["text"].tolist() == [[3, 1, 0], [5, 1, 0], [0, 0, 0], [2, 1, 0], [0, 0, 0]]
    assert batch.features["image"].round().tolist() == [[50] * 3, [0] * 3, [200] * 3, [0] * 3, [7, 8, 9]]
    assert batch.features["audio"].tolist() == [[1, 2], [0, 0], [0, 0], [3, 4], [0, 0]]
    assert [record.message for record in caplog.records] == ["image: 1 pictures cannot be read and count as missing: b"]
    assert references["audio"] is None
    assert references["image"] is not None
    assert references["text"] is not None
    assert references["image"].model_dump() == {
        "kind": "image", "id": "torchvision:mean", "dim": 3, "weights_sha256": "w1", "file": None
    }  # fmt: skip
    assert (references["text"].kind, references["text"].id) == ("text", "sentence-transformers:length")


def test_what_says_nothing_counts_as_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Many data sets publish missing pictures as zeros."""
    silent: dict[str, Any] = {"audio": {"vector": [0, 0.0]}, "text": "?"}
    records = [{"id": f"s{row}", "modalities": silent} for row in range(11)]
    told = {"id": "told", "modalities": {"audio": {"vector": [0, 1]}, "text": "!"}}
    dataset = _dataset([*records, told])
    for _ in range(2):  # and again from the cache
        caplog.clear()
        batch, _ = encode_dataset(dataset, np.ones((12, 2), np.bool_), **Counted().both, cache_dir=tmp_path)
        assert batch.observed.tolist() == [[False, False]] * 11 + [[True, True]]
        assert not batch.features["text"][:11].any()
        listed = ", ".join(f"s{row}" for row in range(10))
        assert [record.message for record in caplog.records] == [
            f"text: 11 texts hold no word that the encoder knows and count as missing: {listed} and 1 more",
            f"audio: 11 vectors are zero and count as missing: {listed} and 1 more",
        ]


def test_withheld_cells_are_zero(dataset: Dataset, tmp_path: Path) -> None:
    encoders = Counted()
    full, _ = encode_dataset(dataset, ALL, **encoders.both, cache_dir=tmp_path)
    observed = ALL.copy()
    observed[0, 0] = observed[2, 1] = observed[3, 2] = False
    batch, _ = encode_dataset(dataset, observed, **encoders.both, cache_dir=tmp_path)
    expected = full.masked(torch.from_numpy(~observed))
    assert torch.equal(batch.observed, expected.observed)
    for name in batch.names:
        assert torch.equal(batch.features[name], expected.features[name])


def test_cache_saves_encoding(dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoders = Counted()
    first, _ = encode_dataset(dataset, ALL, **encoders.both, cache_dir=tmp_path / "new")
    assert len(encoders.encoded) == 5
    second, _ = encode_dataset(dataset, ALL, **encoders.both, cache_dir=tmp_path / "new")
    assert len(encoders.encoded) == 5
    for name in first.names:
        assert torch.equal(first.features[name], second.features[name])
    assert caplog.text.count("cannot be read") == 2


@pytest.mark.parametrize("change", ["weights", "cut short", "one byte"])
def test_cache_is_not_used_for_anything_else(
    change: str, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = encode_dataset(dataset, ALL, **Counted().both, cache_dir=tmp_path)
    encoders = Counted("w2" if change == "weights" else "w1")
    for file in tmp_path.iterdir():
        whole = file.read_bytes()
        if change == "cut short":
            file.write_bytes(whole[:40])
        if change == "one byte":
            file.write_bytes(whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:])
    for _ in range(2):  # what was damaged is made again once
        batch, _ = encode_dataset(dataset, ALL, **encoders.both, cache_dir=tmp_path)
        assert all(torch.equal(batch.features[name], first.features[name]) for name in batch.names)
        assert len(encoders.encoded) == 5
    assert ("are made again" in caplog.text) == (change != "weights")


def test_cache_serves_other_data(dataset: Dataset, tmp_path: Path) -> None:
    """What counts is the content: not the item, the dataset or the modality's name."""
    encode_dataset(dataset, ALL, **Counted(image_id=CATALOGUE).both, cache_dir=tmp_path)
    known: dict[str, Any] = {"note": "three", "photo": _base64(_picture(50))}
    other = _dataset([{"id": "z", "modalities": known}, {"id": "y", "title": "new"}], "another")
    encoders = Counted(image_id=CATALOGUE)
    batch, _ = encode_dataset(other, np.ones((2, 3), np.bool_), **encoders.both, cache_dir=tmp_path)
    assert encoders.encoded == ["new"]
    assert batch.features["note"].tolist() == [[5, 1, 0], [0, 0, 0]]
    assert batch.features["photo"][0].round().tolist() == [50, 50, 50]


def test_cache_that_cannot_be_written_costs_only_time(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    batch, _ = encode_dataset(dataset, ALL, **Counted().both, cache_dir=tmp_path / "file" / "cache")
    assert batch.observed.any()


def test_cache_stays_within_its_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not been asked for the longest goes first."""
    encoder = Counted().text
    cache, valid = VectorCache(tmp_path, encoder), np.ones(1, np.bool_)
    for row, text in enumerate(("old", "asked for", "new")):
        cache.add([digest_of(text)], np.full((1, 3), row, np.float32), valid)
        (newest,) = (file for file in tmp_path.iterdir() if file.stat().st_mtime > 1e6)
        os.utime(newest, (row, row))
    cache.find([digest_of("asked for")])
    monkeypatch.setattr(vector_cache, "MAX_BYTES", 3 * newest.stat().st_size)
    cache.add([digest_of("newest")], np.full((1, 3), 3, np.float32), valid)
    vectors, _, known = cache.find([digest_of(text) for text in ("old", "asked for", "new", "newest")])
    assert known.tolist() == [False, True, True, True]
    assert vectors[:, 0].tolist() == [0, 1, 2, 3]


def test_progress_counts_cells(dataset: Dataset) -> None:
    seen: list[tuple[str, int, int]] = []
    encode_dataset(dataset, ALL, **Counted().both, progress=lambda *step: seen.append(step))
    assert seen == [("text", 3, 3), ("image", 3, 3)]


def test_vectors_need_no_encoder() -> None:
    dataset = _dataset([{"id": "a", "modalities": {"image": {"vector": [1, 2]}}}, {"id": "b"}])
    batch, references = encode_dataset(dataset, np.ones((2, 1), np.bool_))
    assert references == {"image": None}
    assert batch.observed.tolist() == [[True], [False]]


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ([{"text": "one"}, {"text": {"vector": [1.0, 2.0]}}], "different lengths: .2, 3"),
        ([{"scan": "one"}, {"scan": _base64(_picture(1))}], "both texts and pictures"),
    ],
)
def test_content_that_does_not_fit(modalities: list[dict[str, Any]], message: str) -> None:
    dataset = _dataset([{"id": str(row), "modalities": content} for row, content in enumerate(modalities)])
    with pytest.raises(FeatureError, match=message):
        encode_dataset(dataset, np.ones((2, 1), np.bool_), **Counted().both)


def test_content_without_an_encoder(dataset: Dataset) -> None:
    with pytest.raises(FeatureError, match="'text' holds texts, and there is no text encoder"):
        encode_dataset(dataset, ALL)
    with pytest.raises(FeatureError, match="'image' holds pictures, and there is no image encoder"):
        encode_dataset(dataset, ALL, text_encoder=Counted().text)


def test_mask_of_another_shape(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 2\), the dataset \(5, 3\)"):
        encode_dataset(dataset, ALL[:, :2], **Counted().both)


def test_catalogue_pictures_are_the_observed_ones(dataset: Dataset) -> None:
    learned = catalogue_pictures(dataset, ALL, Counted().text)
    pictures = list(learned)  # the broken one is left out
    assert (len(learned), learned.pairs) == (3, 2)
    assert [picture.image.getpixel((0, 0)) for picture in pictures] == [(50, 50, 50), (200, 200, 200)]
    assert pictures[0].text is not None
    assert pictures[0].text.tolist() == [3, 1, 0]
    assert pictures[1].text is None
    observed = ALL.copy()
    observed[0, 0] = observed[2, 1] = False
    (left,) = catalogue_pictures(dataset, observed, Counted().text)
    assert left.image.getpixel((0, 0)) == (50, 50, 50)
    assert left.text is None
