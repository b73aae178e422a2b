"""The paper's form of LRMM as it is served: documents and features in, ratings with intervals out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from models.arrays import Array
from models.bundle import Bundle, BundleWriter, ModelEntry
from models.lrmm.config import LRMMPaperConfig
from models.lrmm.documents import concatenated, review_ids
from models.lrmm.paper import PaperLRMM
from models.lrmm.serving import FILE, METADATA, NAME, WORDS, Intervals, RatingServing, pair_name
from models.vocabulary import Vocabulary


class PaperServing(RatingServing[PaperLRMM]):
    """A trained LRMM in the paper's form.

    Args:
        vocabulary: of all documents.
        contents: the items' own content that is read, by the data's names of the modalities.
    """

    def __init__(
        self, model: PaperLRMM, *, vocabulary: Vocabulary, contents: Sequence[str], intervals: Intervals
    ) -> None:
        super().__init__(model, intervals)
        self.vocabulary = vocabulary
        self.contents: tuple[str, ...] = tuple(contents)

    @property
    def config(self) -> LRMMPaperConfig:
        """The model's settings."""
        return self.model.config

    def reads_words_of(self, modality: str) -> bool:
        """Whether a content modality of the data is read as a document, or as a feature."""
        return modality in METADATA and pair_name(modality) in self.model.worded

    def document(self, texts: Iterable[str]) -> tuple[int, ...]:
        """Word ids of texts, the newest first, cut to L words in all."""
        limit = self.config.document_words
        return concatenated((review_ids(self.vocabulary, text, limit) for text in texts), limit)

    def documents(self, name: str, documents: Sequence[Sequence[int]]) -> Array:
        """Embeddings `[n, d]` of documents in a modality of the pair."""
        return self.model.document_embeddings(name, documents)

    def content(self, modality: str, features: Array) -> Array:
        """Embeddings `[n, d]` of the items' own raw features `[n, dim]` in a content modality of the data."""
        return self.model.feature_embeddings(pair_name(modality), features)

    # --- bundle ------------------------------------------------------------------------------------------------------

    def save(self, writer: BundleWriter, metrics: Mapping[str, float]) -> ModelEntry:
        """Write weights and vocabulary into a bundle."""
        arrays: dict[str, np.ndarray[Any, Any]] = {
            f"model.{name}": tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()
        }
        arrays |= {"intervals.edges": self.intervals.edges, "intervals.width": self.intervals.width}
        writer.vocabulary(WORDS, self.vocabulary)
        writer.tensors(FILE, arrays)
        config = {
            "model": self.config.model_dump(),
            "worded": list(self.model.worded),
            "mapped": dict(self.model.mapped),
            "contents": list(self.contents),
        }
        return ModelEntry(form=self.config.form, config=config, metrics=dict(metrics), file=FILE)

    @classmethod
    def load(cls, bundle: Bundle) -> PaperServing:
        """Rebuild from a bundle that holds this form.

        Raises:
            BundleError: this Lacuna cannot read it.
        """
        entry = bundle.manifest.models[NAME]
        arrays = bundle.tensors(entry.file)
        with bundle.reading(NAME):
            config = LRMMPaperConfig.model_validate(entry.config["model"])
            vocabulary = bundle.vocabulary(WORDS)
            model = PaperLRMM(config, entry.config["worded"], entry.config["mapped"], len(vocabulary), 0.0)
            weights = {name: array for name, array in arrays.items() if name.startswith("model.")}
            model.load_state_dict(
                {name.removeprefix("model."): torch.from_numpy(array) for name, array in weights.items()}
            )
            intervals = Intervals(arrays["intervals.edges"], arrays["intervals.width"])
            return cls(model, vocabulary=vocabulary, contents=entry.config["contents"], intervals=intervals)
