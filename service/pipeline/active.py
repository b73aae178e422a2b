"""The active bundle: its manifest, its models and the encoders of its modalities. Nothing of it is ever changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from models.bundle import Manifest, ModalityEntry
from models.dgmrec.serving import DGMRecServing
from models.encoders import ImageEncoder, TextEncoder
from models.iris.serving import IRISServing
from models.lrmm.paper_serving import PaperServing
from models.lrmm.serving import LRMMServing
from service.domain import NotServedError


@dataclass(frozen=True, slots=True)
class RatingModel:
    """LRMM, the sentence encoder that its review encoder reads, if it reads reviews, and what tells the encoder of
    reviews from every other. The paper's form reads whole documents and keeps nothing of a single review."""

    lrmm: LRMMServing | PaperServing
    sentence: TextEncoder | None
    identity: str


@dataclass(frozen=True)
class Active:
    """The active bundle. `iris` is there where it re-ranks and explains, `ratings` where it predicts ratings."""

    manifest: Manifest
    dgmrec: DGMRecServing
    encoders: Mapping[str, TextEncoder | ImageEncoder]
    iris: IRISServing | None = None
    ratings: RatingModel | None = None

    @property
    def version(self) -> str:
        """The bundle's version, as answers carry it."""
        return self.manifest.version

    @cached_property
    def identity(self) -> str:
        """What tells the active bundle from every other; versions are counted per folder and do not."""
        return self.manifest.identity

    @property
    def min_rating(self) -> float | None:
        """Ratings below it show no interest."""
        return self.manifest.data.min_rating

    @property
    def title_as_text(self) -> bool:
        """The title of an item without a text counts as its text."""
        return self.manifest.data.title_as_text

    def modality(self, name: str) -> ModalityEntry | None:
        """What the manifest declares of a modality, or None."""
        return next((entry for entry in self.manifest.modalities if entry.name == name), None)

    def encoder_identity(self, modality: str) -> str:
        """Id and weights of a modality's encoder, as features carry it."""
        encoder = self.encoders[modality]
        return f"{encoder.id}@{encoder.weights_sha256[:16]}"

    def explainer(self) -> IRISServing:
        """The model that explains.

        Raises:
            NotServedError: the bundle holds none.
        """
        if self.iris is None:
            raise NotServedError(f"The active bundle {self.version} holds no model that explains.")
        return self.iris
