"""The catalogue's own image encoder: it learns, it repeats itself, and it refuses what cannot work."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from models.encoders import CatalogueNetworkConfig, catalogue_encoder
from training import catalogue_encoder as catalogue_encoder_training
from training.catalogue_encoder import (
    WARM_UP,
    CatalogueEncoderConfig,
    Picture,
    TooFewPairsError,
    train_catalogue_encoder,
)

COLOURS = ["red", "blue", "green", "yellow", "black", "purple"]
CONFIG = CatalogueEncoderConfig(
    network=CatalogueNetworkConfig(input_size=32, width=8, embedding_size=16), epochs=6, batch_size=32, threads=1
)


def _pictures(n: int, seed: int = 0) -> tuple[list[Picture], np.ndarray]:
    """Circles and squares in colours; the "text" says which colour and shape in random directions plus noise."""
    rng = np.random.default_rng(seed)
    meanings = np.random.default_rng(99).normal(size=(len(COLOURS) * 2, 24)).astype(np.float32)
    pictures, labels = [], rng.integers(len(meanings), size=n)
    for label in labels:
        image = Image.new("RGB", (48, 48), "white")
        left, top = (int(value) for value in rng.integers(2, 20, 2))
        draw = ImageDraw.Draw(image)
        (draw.ellipse if label % 2 else draw.rectangle)((left, top, left + 24, top + 24), fill=COLOURS[label // 2])
        pictures.append(Picture(image, meanings[label] + rng.normal(0, 0.1, 24).astype(np.float32)))
    return pictures, labels


def test_text_finds_new_pictures() -> None:
    pictures, _ = _pictures(240)
    trained = train_catalogue_encoder(pictures, CONFIG)
    new, labels = _pictures(60, seed=1)
    images = catalogue_encoder(trained.network).encode([picture.image for picture in new])
    texts = trained.project_texts(np.stack([picture.text for picture in new if picture.text is not None]))
    found = labels[(texts @ images.T).argmax(1)]
    assert np.mean(found == labels) > 0.7  # chance: 1/12


def test_pictures_without_text_teach_too() -> None:
    pictures, _ = _pictures(64)
    silent = [Picture(picture.image, picture.text if row < 40 else None) for row, picture in enumerate(pictures)]
    config = CONFIG.model_copy(update={"epochs": 1})
    one = train_catalogue_encoder(silent, config).network.to_bytes()
    silent[-1] = Picture(Image.new("RGB", (48, 48), "orange"), None)
    assert train_catalogue_encoder(silent, config).network.to_bytes() != one


def test_training_repeats_itself() -> None:
    pictures, _ = _pictures(64)
    config = CONFIG.model_copy(update={"epochs": 2})
    first, second = (train_catalogue_encoder(pictures, config).network.to_bytes() for _ in range(2))
    assert first == second
    assert train_catalogue_encoder(pictures, config.model_copy(update={"seed": 1})).network.to_bytes() != first


def test_progress_and_step_limit() -> None:
    pictures, _ = _pictures(64)
    seen: list[tuple[int, int]] = []
    config = CONFIG.model_copy(update={"max_steps": 3})
    train_catalogue_encoder(pictures, config, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes a second by this clock: the learning rate falls as fast as the time passes."""
    pictures, _ = _pictures(64)
    ticks = itertools.count()
    monkeypatch.setattr(catalogue_encoder_training.time, "process_time", lambda: float(next(ticks)))
    rates: list[float] = []
    set_rate = catalogue_encoder_training.set_one_cycle
    monkeypatch.setattr(
        catalogue_encoder_training,
        "set_one_cycle",
        lambda optimizer, *of: (set_rate(optimizer, *of), rates.append(optimizer.param_groups[0]["lr"])),
    )
    seen: list[tuple[int, int]] = []
    limited = CONFIG.model_copy(update={"epochs": 100, "max_seconds": 10.0})
    trained = train_catalogue_encoder(pictures, limited, progress=lambda *step: seen.append(step))
    assert not trained.complete
    assert [done for done, _ in seen] == list(range(1, 10))
    assert seen[-1][1] < 12  # of 200: the forecast follows the clock
    assert max(rates) == pytest.approx(CONFIG.learning_rate, rel=0.1)
    assert rates[-1] < CONFIG.learning_rate / 20


def test_learning_rate_is_that_of_one_cycle() -> None:
    """As torch's own schedule has it."""
    ours, theirs = (torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2))
    schedule = torch.optim.lr_scheduler.OneCycleLR(theirs, 1.0, total_steps=1001, pct_start=WARM_UP)
    for step in range(1001):
        catalogue_encoder_training.set_one_cycle(ours, 1.0, step / 1000)
        for setting in ("lr", "betas"):
            assert ours.param_groups[0][setting] == pytest.approx(theirs.param_groups[0][setting], abs=0.01)
        theirs.step()
        schedule.step()


def test_too_few_pairs() -> None:
    pictures, _ = _pictures(60)
    few = [Picture(picture.image, picture.text if row < 31 else None) for row, picture in enumerate(pictures)]
    with pytest.raises(TooFewPairsError, match="at least 32 pictures with a text, and there are 31"):
        train_catalogue_encoder(few, CONFIG)


def test_misspelt_option() -> None:
    with pytest.raises(ValueError, match="epoch"):
        CatalogueEncoderConfig(epoch=3)  # type: ignore[call-arg]
