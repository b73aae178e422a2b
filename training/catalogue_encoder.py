"""Trains the catalogue's own image encoder from its picture-text pairs.

Two losses on the same unit vectors, both InfoNCE (van den Oord et al., arXiv 1807.03748): a picture must find its text
among the batch's texts and the other way round (CLIP, Radford et al., ICML 2021), where the text side is a learned
projection of the fixed text encoder's vectors; and two views of a picture must find each other (SimCLR, Chen et al.,
ICML 2020), which is all that a picture without text can teach.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from models.arrays import Array
from models.encoders import CatalogueNetwork, CatalogueNetworkConfig, normalised, resized

MIN_PAIRS = 32
WARM_UP = 0.15  # share of the training in which the learning rate rises
Progress = Callable[[int, int], None]


class CatalogueEncoderConfig(BaseModel):
    """How the encoder is trained. `max_steps` and `max_seconds` bound the time on large catalogues, `max_pictures` the
    memory: of more, so many are drawn.

    `threads` are torch's. The network is so small that several wait for each other at every step: on a machine with
    other work to do, two took eight times as long as one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    network: CatalogueNetworkConfig = CatalogueNetworkConfig()
    epochs: int = Field(20, ge=1)
    max_steps: int = Field(1000, ge=1)
    max_seconds: float | None = Field(
        None, gt=0, description="of the processor, by which the learning rate has fallen to nothing"
    )
    max_pictures: int = Field(20_000, ge=MIN_PAIRS)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    temperature: float = Field(0.2, gt=0)
    agreement_weight: float = Field(0.1, ge=0, description="of the two views' loss beside the picture-text loss")
    seed: int = 0
    threads: int = Field(1, ge=1)


class TooFewPairsError(ValueError):
    """Not enough pictures with a text to learn from; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to learn from, and the text encoder's vector of its item's text, or None where it has none."""

    image: Image.Image
    text: Array | None


@dataclass(frozen=True)
class TrainedCatalogueEncoder:
    """The network, and the projection that takes text vectors `[n, t]` into its space (for evaluation only).

    `complete` says whether all steps were taken in the time that was given.
    """

    network: CatalogueNetwork
    text_projection: nn.Module
    complete: bool = True

    def project_texts(self, vectors: Array) -> Array:
        """Text vectors `[n, t]` -> unit vectors `[n, embedding_size]` in the pictures' space."""
        with torch.inference_mode():
            projected = functional.normalize(self.text_projection(torch.from_numpy(vectors)))
        return np.asarray(projected, np.float32)


def train_catalogue_encoder(
    pictures: Iterable[Picture],
    config: CatalogueEncoderConfig | None = None,
    *,
    progress: Progress | None = None,
) -> TrainedCatalogueEncoder:
    """Train on these pictures and nothing else: withheld cells must not be among them. They are gone through once, and
    what is kept of each is as small as the network's input.

    The same pictures, config and machine give the same weights, unless `max_seconds` end the training. `progress` gets
    (steps done, steps in all).

    Raises:
        TooFewPairsError: fewer than 32 pictures come with a text.
    """
    config = config or CatalogueEncoderConfig()
    examples = _Examples.of(pictures, config)
    with _torch_state(config):
        return _fit(examples, config, progress or (lambda _done, _total: None))


def require_pairs(pairs: int) -> None:
    """Refuse too few pictures with a text.

    Raises:
        TooFewPairsError: fewer than 32.
    """
    if pairs < MIN_PAIRS:
        raise TooFewPairsError(
            f"an image encoder of the catalogue's own needs at least {MIN_PAIRS} pictures with a text, and there are "
            f"{pairs}; use a pretrained one (torchvision:mobilenet_v2)"
        )


@contextmanager
def _torch_state(config: CatalogueEncoderConfig) -> Iterator[None]:
    """Seed and thread count for the block, as they were afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Examples:
    """Pictures a quarter larger than the network's input, bytes `[n, s, s, 3]`; text vectors `[n, t]`; which exist."""

    pixels: Tensor
    texts: Tensor
    has_text: Tensor

    @classmethod
    def of(cls, pictures: Iterable[Picture], config: CatalogueEncoderConfig) -> _Examples:
        """Those of all pictures.

        Raises:
            TooFewPairsError: too few of them come with a text.
        """
        side = config.network.input_size * 5 // 4
        pixels, texts = [], []
        for picture in pictures:
            pixels.append(resized(picture.image, side))
            texts.append(picture.text)
        known = [text for text in texts if text is not None]
        require_pairs(len(known))
        blank = np.zeros_like(known[0])
        return cls(
            torch.from_numpy(np.stack(pixels)),
            torch.from_numpy(np.stack([blank if text is None else text for text in texts])),
            torch.tensor([text is not None for text in texts]),
        )


def _fit(examples: _Examples, config: CatalogueEncoderConfig, progress: Progress) -> TrainedCatalogueEncoder:
    pixels, texts, has_text = examples.pixels, examples.texts, examples.has_text
    network = CatalogueNetwork(config.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    projection = nn.Linear(texts.shape[1], config.network.embedding_size)
    parameters = [*network.parameters(), *projection.parameters()]
    steps = min(config.epochs * math.ceil(len(pixels) / config.batch_size), config.max_steps)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    begin, complete = time.process_time(), True
    for step, rows in enumerate(_batches(len(pixels), config.batch_size, steps), start=1):
        passed = (time.process_time() - begin) / config.max_seconds if config.max_seconds else 0.0
        if passed >= 1:
            complete = False
            break
        set_one_cycle(optimizer, config.learning_rate, max((step - 1) / steps, passed))
        paired = has_text[rows]
        first, second = network(_views(normalised(pixels[rows]))).chunk(2)  # [b, d] each
        loss = config.agreement_weight * _info_nce(first, second, config.temperature)
        if int(paired.sum()) > 1:
            projected = functional.normalize(projection(texts[rows][paired]))  # [p, d]
            for view in (first, second):
                loss = loss + _info_nce(view[paired], projected, config.temperature) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        progress(step, max(step, min(steps, round(step / passed))) if passed else steps)
    return TrainedCatalogueEncoder(network.eval(), projection.eval(), complete)


def set_one_cycle(optimizer: torch.optim.Optimizer, highest: float, passed: float) -> None:
    """Learning rate and first moment of Adam after a share of the training: one cycle, annealed by cosine (Smith and
    Topin, arXiv 1708.07120), with the settings of torch's `OneCycleLR`."""
    rising = passed < WARM_UP
    share = passed / WARM_UP if rising else (passed - WARM_UP) / (1 - WARM_UP)
    start, end = (highest / 25, highest) if rising else (highest, highest / 25e4)
    moments = (0.95, 0.85) if rising else (0.85, 0.95)
    weight = (1 - math.cos(math.pi * min(share, 1.0))) / 2
    for group in optimizer.param_groups:
        group["lr"] = start + weight * (end - start)
        group["betas"] = (moments[0] + weight * (moments[1] - moments[0]), group["betas"][1])


def _batches(n: int, size: int, steps: int) -> Iterator[Tensor]:
    """Rows of `steps` batches; every picture once before any comes again. One epoch's rest is spread evenly."""
    done = 0
    while done < steps:
        for rows in torch.randperm(n).tensor_split(math.ceil(n / size)):
            if done == steps:
                return
            yield rows
            done += 1


def _views(pixels: Tensor) -> Tensor:
    """Two light random changes of each picture, `[b, 3, s, s]` -> `[2b, 3, 4s/5, 4s/5]`, first views first.

    Place, size, left-right, brightness and contrast change; hue does not, since texts name colours.
    """
    both = torch.cat([pixels, pixels])
    n, side = len(both), pixels.shape[-1] * 4 // 5
    zoom = torch.empty(n).uniform_(0.75, 1.0)
    flip = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    shift = torch.empty(n, 2).uniform_(-1, 1) * (1 - zoom)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom * flip, zoom, shift
    grid = functional.affine_grid(theta, [n, 3, side, side], align_corners=False)
    views = functional.grid_sample(both, grid, padding_mode="border", align_corners=False)
    contrast = torch.empty(n, 1, 1, 1).uniform_(0.8, 1.2)
    brightness = torch.empty(n, 1, 1, 1).uniform_(-0.2, 0.2)
    return (views * contrast + brightness).contiguous(memory_format=torch.channels_last)


def _info_nce(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE of two sets of unit vectors `[n, d]` whose rows belong together."""
    logits = a @ b.T / temperature  # [n, n]
    own = torch.arange(len(a))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
