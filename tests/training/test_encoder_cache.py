"""Which kept image encoder is used again, and which is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.encoder_cache import Digests, EncoderCache, KeptEncoder


def digests(*numbers: int) -> Digests:
    return np.array([[number] * 64 for number in numbers], np.uint8)


LEARNED = digests(*range(20))


@pytest.fixture
def cache(tmp_path: Path) -> EncoderCache:
    cache = EncoderCache(tmp_path / "new", "settings")
    cache.add(KeptEncoder(b"weights", LEARNED, 20))
    return cache


def found(cache: EncoderCache, present: Digests, seconds: float | None = None) -> bytes | None:
    kept = cache.find(present, seconds)
    return None if kept is None else kept.weights


def test_the_same_pictures_in_any_order(cache: EncoderCache) -> None:
    assert found(cache, LEARNED[::-1]) == b"weights"


def test_a_few_more_pictures(cache: EncoderCache) -> None:
    assert found(cache, digests(*range(22))) == b"weights"
    assert found(cache, digests(*range(23))) is None  # more than a tenth are new


def test_a_picture_that_is_gone_takes_the_encoder_with_it(cache: EncoderCache) -> None:
    assert found(cache, digests(*range(1, 21))) is None


@pytest.mark.usefixtures("cache")
def test_other_settings(tmp_path: Path) -> None:
    assert found(EncoderCache(tmp_path / "new", "others"), LEARNED) is None


def test_a_training_that_was_cut_short_serves_where_there_is_no_more_time(tmp_path: Path) -> None:
    cache = EncoderCache(tmp_path, "settings")
    cache.add(KeptEncoder(b"early", LEARNED, 20, 10.0))
    assert found(cache, LEARNED, 10.0) == b"early"
    assert found(cache, LEARNED, 11.0) is None
    assert found(cache, LEARNED, None) is None


def test_a_sample_of_many_pictures(tmp_path: Path) -> None:
    cache = EncoderCache(tmp_path, "settings")
    cache.add(KeptEncoder(b"sampled", LEARNED[:5], 20))
    assert found(cache, LEARNED) == b"sampled"
    assert found(cache, digests(*range(30))) is None


@pytest.mark.parametrize("place", [20, -1])
def test_damage(cache: EncoderCache, tmp_path: Path, place: int, caplog: pytest.LogCaptureFixture) -> None:
    (file,) = (tmp_path / "new").iterdir()
    damaged = bytearray(file.read_bytes())
    damaged[place] ^= 1
    file.write_bytes(damaged)
    assert found(cache, LEARNED) is None
    assert "cannot be used" in caplog.text
    assert not file.exists()


def test_no_folder() -> None:
    cache = EncoderCache(None, "settings")
    cache.add(KeptEncoder(b"weights", LEARNED, 20))
    assert found(cache, LEARNED) is None


def test_a_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    EncoderCache(tmp_path / "file" / "cache", "settings").add(KeptEncoder(b"weights", LEARNED, 20))
    assert "was not kept" in caplog.text
