"""LRMM as the paper has it (`form=paper`): Wang et al., EMNLP 2018; equation numbers are the paper's.

One LSTM tower for each kind of document (the user's reviews, the item's reviews, its title and description), a learned
map of every other feature (the picture's), an autoencoder for each modality, and a linear score, all trained together.
What the paper leaves open or prints two ways:

* Eq. 20 is the KL divergence; the first term's factor rho, which is missing in print, is there.
* A modality that is present enters the score as its embedding (eq. 11), one that is missing as its reconstruction.
* A dropped modality's own autoencoder sees zeros and returns a constant; `joint` decodes from all that is present.
* alpha and beta are learned as uncertainties (Kendall et al., 2018): as plain factors they would fall without end.
* Nothing is known of users and items but documents, so that a side without words is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor, nn

from models import losses
from models.arrays import Array
from models.lrmm.config import LRMMPaperConfig
from models.lrmm.documents import padded
from models.lrmm.model import Prediction
from models.lrmm.reviews import PADDING, SPECIAL, make_orthogonal, mean_of_words

BATCH = 64  # documents that are read at once


class Tower(nn.Module):
    """Word ids -> the hidden states of an LSTM. (eq. 5-8)"""

    def __init__(self, n_words: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words + SPECIAL, width, padding_idx=PADDING)
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        nn.init.xavier_uniform_(self.lstm.weight_ih_l0)  # type: ignore[arg-type]  # nn.Module knows no better
        make_orthogonal(self.lstm)

    def forward(self, ids: Tensor) -> Tensor:
        """`[n, length]`, padded at the end with zeros -> `[n, length, d]`."""
        states: Tensor = self.lstm(self.embedding(ids))[0]
        return states


class AutoEncoder(nn.Module):
    """m-auto of one modality: an embedding of length d -> hidden units -> the embedding. (eq. 17-18)"""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.encoder, self.decoder = glorot(size, hidden), glorot(hidden, size)

    def encode(self, embedding: Tensor) -> Tensor:
        """`[..., d]` -> `[..., h]`."""
        return torch.sigmoid(self.encoder(embedding))

    def decode(self, hidden: Tensor) -> Tensor:
        """`[..., h]` -> `[..., d]`."""
        return torch.sigmoid(self.decoder(hidden))


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch before its towers.

    Attributes:
        documents: by modality the distinct documents of the batch `[n, length]` and which is each pair's `[b]`.
        features: by modality raw features `[b, dim]`; rows that are missing may hold anything finite.
        present: which modalities the pairs have, bool `[b, M]`, columns as in `names`.
    """

    documents: Mapping[str, tuple[Tensor, Tensor]]
    features: Mapping[str, Tensor]
    present: Tensor


@dataclass(frozen=True, slots=True)
class Embedded:
    """A batch behind its towers: embeddings `[b, d]` by modality; where texts are rebuilt word by word, their
    reconstructions `[b, d]` and mean hidden states `[b, h]`."""

    embeddings: Mapping[str, Tensor]
    by_words: Mapping[str, tuple[Tensor, Tensor]]


class PaperLRMM(nn.Module):
    """Documents and features, any of which may be missing -> ratings.

    Args:
        worded: the modalities that are documents.
        mapped: length of the raw features of the others, by name.
        n_words: size of the vocabulary.
        offset: the mean rating, at which the score's bias starts.
    """

    def __init__(
        self, config: LRMMPaperConfig, worded: Sequence[str], mapped: Mapping[str, int], n_words: int, offset: float
    ) -> None:
        super().__init__()
        self.config, self.worded, self.mapped = config, tuple(worded), dict(mapped)
        self.names = (*self.worded, *self.mapped)
        d = config.lstm_hidden
        self.towers = nn.ModuleDict({name: Tower(n_words, config.word_embedding_size, d) for name in self.worded})
        self.maps = nn.ModuleDict({name: glorot(size, d) for name, size in self.mapped.items()})
        self.autos = nn.ModuleDict({name: AutoEncoder(d, config.hidden) for name in self.names})
        self.score = glorot(len(self.names) * d, 1)
        nn.init.constant_(self.score.bias, offset)
        weights = torch.tensor([config.alpha, config.beta]).log()
        self.log_weights = nn.Parameter(weights, requires_grad=config.learn_loss_weights)  # of alpha and beta

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each modality's embedding, by name."""
        return dict.fromkeys(self.names, self.config.lstm_hidden)

    def _auto(self, name: str) -> AutoEncoder:
        auto: AutoEncoder = self.autos[name]  # type: ignore[assignment]  # nn.ModuleDict knows no better
        return auto

    # --- embeddings --------------------------------------------------------------------------------------------------

    def embed(self, inputs: Inputs) -> Embedded:
        """The modalities of a batch; zeros where one is missing."""
        embeddings, by_words = {}, {}
        flags = dict(zip(self.names, inputs.present.unbind(1), strict=True))
        for name, (documents, place) in inputs.documents.items():
            states = self.towers[name](documents)  # [n, length, d]
            embeddings[name] = mean_of_words(states, documents)[place] * flags[name][:, None]  # [b, d] (eq. 9)
            if self.config.word_level and not self.config.joint:
                rebuilt, hidden = self._by_words(name, states, documents)
                by_words[name] = rebuilt[place], hidden[place]
        for name, features in inputs.features.items():
            embeddings[name] = torch.where(flags[name][:, None], self.maps[name](features), 0.0)  # (eq. 10)
        return Embedded(embeddings, by_words)

    def _by_words(self, name: str, states: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
        """Documents' reconstructions `[n, d]` and mean hidden states `[n, h]`, over their words. (eq. 17-18)"""
        auto = self._auto(name)
        hidden = auto.encode(states)  # [n, length, h]
        return mean_of_words(auto.decode(hidden), documents), mean_of_words(hidden, documents)

    @torch.inference_mode()
    def document_embeddings(self, name: str, documents: Sequence[Sequence[int]]) -> Array:
        """Embeddings `[n, d]` of documents of word ids; zeros for those without words."""
        found = np.zeros((len(documents), self.config.lstm_hidden), np.float32)
        by_length = sorted(range(len(documents)), key=lambda row: len(documents[row]))
        for start in range(0, len(by_length), BATCH):
            rows = by_length[start : start + BATCH]
            ids = torch.from_numpy(padded([documents[row] for row in rows])).to(self.score.weight.device)
            found[rows] = mean_of_words(self.towers[name](ids), ids).cpu().numpy()
        return found

    @torch.inference_mode()
    def feature_embeddings(self, name: str, features: Array) -> Array:
        """Embeddings `[n, d]` of raw features `[n, dim]`. (eq. 10)"""
        mapped: Array = self.maps[name](torch.tensor(features, device=self.score.weight.device)).cpu().numpy()
        return mapped

    # --- ratings -----------------------------------------------------------------------------------------------------

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor, _affinity: Tensor | None = None) -> Prediction:
        """Rate pairs; the answer's leading axis of members has length 1.

        Args:
            embeddings: by modality `[b, d]`; rows that are not present may hold anything finite.
            present: bool `[b, M]`, columns as in `names`.
        """
        flags = {name: flag[:, None] for name, flag in zip(self.names, present.unbind(1), strict=True)}  # [b, 1]
        given = {name: torch.where(flags[name], embeddings[name], 0.0) for name in self.names}  # [b, d]
        hidden = {name: self._auto(name).encode(given[name]) for name in self.names}  # [b, h] (eq. 17)
        if self.config.joint:
            count = present.sum(1, keepdim=True).clamp_min(1)
            together = torch.stack([hidden[name] * flags[name] for name in self.names]).sum(0) / count
            hidden = dict.fromkeys(self.names, together)
        rebuilt = {name: self._auto(name).decode(hidden[name]) for name in self.names}  # [b, d] (eq. 18)
        filled = [
            self._after(name, torch.where(flags[name], given[name], rebuilt[name] * self.config.impute))
            for name in self.names
        ]
        rating = self.score(torch.cat(filled, dim=1)).squeeze(1)  # [b] (eq. 11)
        of_modalities = torch.stack([hidden[name] for name in self.names])  # [M, b, h]
        return Prediction(rating[None], {name: one[None] for name, one in rebuilt.items()}, of_modalities)

    def _after(self, name: str, embedding: Tensor) -> Tensor:
        """Dropout after the recurrent layer. On each word's state it would average out over the document."""
        rate = self.config.lstm_dropout if name in self.worded else 0.0
        return F.dropout(embedding, rate, self.training)

    def predict(self, embeddings: Mapping[str, Tensor], present: Tensor, _affinity: Tensor | None = None) -> Tensor:
        """Ratings `[b]`, within 1..5."""
        return self(embeddings, present).rating[0].clamp(1.0, 5.0)  # type: ignore[no-any-return]

    # --- training ----------------------------------------------------------------------------------------------------

    def drop(self, present: Tensor, generator: torch.Generator) -> Tensor:
        """m-drop: which modalities `[b, M]` are left of those present. (eq. 13-15)

        r keeps each with probability 1 - p_m, and with `noise` k keeps each with probability 1 - 1 / n_m.
        """
        kept = torch.rand(present.shape, generator=generator) >= self.config.drop
        if self.config.noise:
            kept &= torch.rand(present.shape, generator=generator) >= 1 / len(self.names)
        return present & kept.to(present.device)

    def loss(self, inputs: Inputs, rating: Tensor, kept: Tensor) -> Tensor:
        """alpha L_reg + beta L_recon of pairs of which m-drop has `kept [b, M]`. (eq. 19-22)

        The weight decay of eq. 19 is the optimiser's.
        """
        embedded = self.embed(inputs)
        out = self(embedded.embeddings, kept)
        regression = F.mse_loss(out.rating[0], rating)
        reconstruction = rating.new_zeros(())
        for column, name in enumerate(self.names):
            rebuilt, hidden, flag = out.rebuilt[name][0], out.hidden[column], kept[:, [column]]
            if name in embedded.by_words:  # of a dropped text every word is zeros, and so is the document
                of_words, hidden_of_words = embedded.by_words[name]
                rebuilt, hidden = torch.where(flag, of_words, rebuilt), torch.where(flag, hidden_of_words, hidden)
            squared = (rebuilt - embedded.embeddings[name]).pow(2).sum(1) * inputs.present[:, column]  # undropped
            divergence = self.config.hidden * losses.sparsity(hidden, self.config.rho)  # summed over units (eq. 20)
            reconstruction = reconstruction + squared.mean() + self.config.sparsity * divergence  # (eq. 21)
        alpha, beta = self.log_weights.exp().unbind()
        return alpha * regression + beta * reconstruction - self.log_weights.sum()


def glorot(inputs: int, outputs: int) -> nn.Linear:
    """A layer whose weights start uniform within sqrt(6 / (in + out)) and whose biases at zero. (section 3.3)"""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
