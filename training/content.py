"""Which cells are withheld from training, and by which encoders content becomes features."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch

from models.arrays import Mask
from models.bundle import EncoderRef
from models.encoders import CATALOGUE, MINILM, ImageEncoder, TextEncoder, catalogue_encoder, make_encoder
from models.feedback import AUTO, MinRating
from models.modality import ModalBatch
from training.catalogue_encoder import CatalogueEncoderConfig, Picture, require_pairs, train_catalogue_encoder
from training.datasets.base import Dataset
from training.encoder_cache import EncoderCache, KeptEncoder
from training.features import CataloguePictures, catalogue_pictures, encode_dataset, reference
from training.masking import mask_cells, mask_levels
from training.progress import Terminal
from training.splits import SplitName
from training.titles import TEXT, TitleAsText, TitleChoice, titled, without_titles
from training.titles import choose as choose_titles

WEIGHTS = "image_encoder.safetensors"
_LEARNING = 1  # to be raised when an encoder of the catalogue's own comes out otherwise, so that none is kept
MOBILENET = "torchvision:mobilenet_v2"


class TrainingDataError(ValueError):
    """A dataset that cannot be trained on; the message is one sentence."""


class TooLittleFeedbackError(TrainingDataError):
    """A dataset whose feedback does not suffice to learn from and to measure by."""


@dataclass(frozen=True)
class DataOptions:
    """Which cells are withheld, and how content becomes features.

    Attributes:
        missing: share of the cells to withhold from training, on top of those that the data lack by themselves.
        mask: name of a published mask of the dataset, instead of `missing`.
        image_encoder: `catalogue` (trained here on the catalogue's own pictures), `torchvision:<name>`, or `auto`:
            the latter's mobilenet_v2 where `image_weights` is given, else `catalogue`.
        image_weights: a local file with the weights of the torchvision network.
        cache: where what encoders made, and the catalogue's own encoder, are kept between runs.
        encoder_seconds: at most so long the catalogue's own encoder is trained; None: for as long as it takes.
        min_rating: ratings below it show no interest (None: all do); AUTO for what the dataset says.
        split: how interactions are divided; AUTO for the dataset's published split, or a random one.
        title_as_text: whether the title of an item without a text counts as its text.
        levels: withhold so that equal shares of the items lack 0, 1, ..., M modalities, instead of `missing`.
    """

    missing: float = 0.0
    mask: str | None = None
    image_encoder: str = "auto"
    image_weights: Path | None = None
    cache: Path | None = None
    threads: int = 2
    seed: int = 0
    levels: bool = False
    encoder_seconds: float | None = None
    min_rating: MinRating = AUTO
    split: SplitName = SplitName.AUTO
    title_as_text: TitleAsText = TitleAsText.YES


@dataclass(frozen=True)
class Prepared:
    """Features with holes, who encoded them, and what an encoder adds to the bundle.

    `complete` holds the withheld cells too; it is for measuring and never reaches a model. Titles that do not count as
    texts are in neither, and are among `withheld`. `titled` items have a title and no text.
    """

    batch: ModalBatch
    complete: ModalBatch
    withheld: Mask
    encoders: Mapping[str, EncoderRef | None]
    files: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)
    title_as_text: bool = True
    titled: int = 0


def withheld_cells(dataset: Dataset, options: DataOptions) -> Mask:
    """Cells to withhold on top of those that the data lack, bool `[n, M]`."""
    observed = dataset.observed()
    if options.mask is not None:
        return dataset.withheld(options.mask) & observed
    rng = np.random.default_rng(options.seed)
    if options.levels:
        return mask_levels(observed, rng)
    return mask_cells(observed, options.missing, rng)


def prepare_features(dataset: Dataset, options: DataOptions, terminal: Terminal) -> Prepared:
    """Encode all content that is not withheld. Withheld content reaches no encoder that learns.

    Raises:
        TrainingDataError: there is nothing to learn from. FeatureError, TooFewPairsError, EncoderUnavailableError.
    """
    if not dataset.modalities:
        raise TrainingDataError(f"the dataset {dataset.name} has neither texts, pictures nor vectors")
    taken = sorted({"any", "final", "items"} & set(dataset.modalities))
    if taken:
        raise TrainingDataError(f"a modality cannot be named {taken[0]!r}, which has a meaning of its own in searches")
    withheld = withheld_cells(dataset, options)
    observed = dataset.observed() & ~withheld
    pictured = any(isinstance(content, dict) and "base64" in content for content in _contents(dataset))
    written = any(isinstance(content, str) for content in _contents(dataset))
    text = text_encoder(options) if pictured or written else None
    image, weights = _image_encoder(dataset, observed, text, options, terminal) if pictured and text else (None, None)
    complete, encoders = encode_dataset(
        dataset,
        dataset.observed(),
        text_encoder=text,
        image_encoder=image,
        progress=terminal.stage,
        cache_dir=options.cache,
    )
    batch = _without(complete, withheld)
    choice = _title_choice(dataset, batch, text, options)
    titles = int(titled(dataset).sum()) if TEXT in batch.names else 0
    if titles:
        terminal.say(str(choice))
    if not choice.as_text:
        complete = without_titles(dataset, complete)
        withheld = withheld | (dataset.observed() & ~complete.observed.numpy())
        batch = _without(complete, withheld)
    if weights is None:
        return Prepared(batch, complete, withheld, encoders, title_as_text=choice.as_text, titled=titles)
    shipped = {
        name: ref.model_copy(update={"file": WEIGHTS}) if ref is not None and ref.id == CATALOGUE else ref
        for name, ref in encoders.items()
    }
    files = {WEIGHTS: lambda file: file.write_bytes(weights)}
    return Prepared(batch, complete, withheld, shipped, files, choice.as_text, titles)


def without_content(dataset: Dataset, options: DataOptions) -> Prepared:
    """What a model is shown of items without any content: a text modality that all of them lack, so that items to come
    can have texts."""
    encoder = text_encoder(options)
    nothing = torch.zeros(len(dataset.items), 1, dtype=torch.bool)
    batch = ModalBatch({TEXT: torch.zeros(len(dataset.items), encoder.dim)}, nothing)
    return Prepared(batch, batch, np.zeros((len(dataset.items), 1), dtype=np.bool_), {TEXT: reference("text", encoder)})


def _without(complete: ModalBatch, withheld: Mask) -> ModalBatch:
    """The features without the withheld ones; the same where nothing is lost, as a copy is large."""
    cells = torch.from_numpy(withheld)
    return complete.masked(cells) if (complete.observed & cells).any() else complete


def _title_choice(dataset: Dataset, batch: ModalBatch, text: TextEncoder | None, options: DataOptions) -> TitleChoice:
    if options.title_as_text is not TitleAsText.AUTO or text is None:
        return TitleChoice(options.title_as_text is not TitleAsText.NO)
    return choose_titles(dataset, batch, text, options.seed)


def no_content(dataset: Dataset) -> ModalBatch:
    """Items without any content."""
    return ModalBatch({}, torch.zeros(len(dataset.items), 0, dtype=torch.bool))


def _contents(dataset: Dataset) -> Iterator[object]:
    """All that is given as content, as it stands in the items' bodies; a title may stand in for a text."""
    for record in dataset.records:
        yield record.get("title")
        yield from (record.get("modalities") or {}).values()


def text_encoder(options: DataOptions) -> TextEncoder:
    """The encoder of texts that every new bundle has."""
    return cast(TextEncoder, make_encoder(MINILM, cache_dir=options.cache, threads=options.threads))


def _image_encoder(
    dataset: Dataset, observed: Mask, text: TextEncoder, options: DataOptions, terminal: Terminal
) -> tuple[ImageEncoder, bytes | None]:
    """The encoder of pictures, and its weights if the bundle is to ship them."""
    wanted = options.image_encoder
    if wanted == "auto":
        wanted = MOBILENET if options.image_weights else CATALOGUE
    if wanted != CATALOGUE:
        encoder = make_encoder(wanted, weights=options.image_weights, cache_dir=options.cache, threads=options.threads)
        return cast(ImageEncoder, encoder), None
    weights = _catalogue_weights(dataset, observed, text, options, terminal)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / WEIGHTS
        file.write_bytes(weights)
        return catalogue_encoder(file, threads=options.threads), weights


def _catalogue_weights(
    dataset: Dataset, observed: Mask, text: TextEncoder, options: DataOptions, terminal: Terminal
) -> bytes:
    """The weights of the catalogue's own encoder: of one that is kept, or of one trained now."""
    config = CatalogueEncoderConfig(seed=options.seed, max_seconds=options.encoder_seconds)
    pictures = catalogue_pictures(dataset, observed, text, progress=terminal.stage, cache_dir=options.cache)
    settings = config.model_dump_json(exclude={"max_seconds", "threads"})
    cache = EncoderCache(options.cache, "\0".join((settings, text.id, text.weights_sha256, str(_LEARNING))))
    require_pairs(pictures.pairs)
    kept = cache.find(pictures.digests, config.max_seconds)
    if kept is not None:
        terminal.say(
            f"image encoder: kept from a training on {len(kept.learned):,} of these {len(pictures):,} pictures"
        )
        return kept.weights
    chosen = pictures.draw(config.max_pictures, options.seed)
    trained = train_catalogue_encoder(
        _counted(chosen, terminal),
        config,
        progress=lambda done, total: terminal.stage("image encoder", done, total),
    )
    weights = trained.network.to_bytes()
    cache.add(KeptEncoder(weights, chosen.digests, len(pictures), None if trained.complete else config.max_seconds))
    return weights


def _counted(pictures: CataloguePictures, terminal: Terminal) -> Iterator[Picture]:
    for done, picture in enumerate(pictures, start=1):
        terminal.stage("pictures for the image encoder", done, len(pictures))
        yield picture
