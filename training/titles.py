"""Whether a title counts as the text of an item that has none.

A title is shown to people and may say what a text would (a product's name) or next to nothing of it (a film's). Items
that have both tell: their titles' vectors are compared with their texts', and so is what a ridge regression makes of
their other modalities and users where their texts are hidden. What comes nearer to the texts wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from models.arrays import Mask, Rows
from models.encoders import TextEncoder
from models.graph import InteractionGraphs
from models.imputers import impute
from models.modality import ModalBatch
from training.datasets.base import Dataset

TEXT = "text"
FEWEST, MOST = 30, 500  # items with a title, a text and another modality: fewer say nothing, more are not looked at


class TitleAsText(StrEnum):
    """What a title is where there is no text: the text, nothing, or what items with both say is better."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


@dataclass(frozen=True)
class TitleChoice:
    """Whether titles count as texts, and the mean centred cosines with the true texts that it was chosen by, where it
    was: of titles, and of what is generated instead."""

    as_text: bool
    titles: float | None = None
    generated: float | None = None

    def __str__(self) -> str:
        """In a line."""
        what = "count as their text" if self.as_text else "do not count as a text, which is generated"
        told = ""
        if self.titles is not None and self.generated is not None:
            told = f" (cosine with true texts: {self.titles:.2f} of titles, {self.generated:.2f} of generated ones)"
        return f"titles of items without a text {what}{told}"


def titled(dataset: Dataset) -> Mask:
    """The items whose text is their title, bool `[n]`."""
    own = [(record.get("modalities") or {}).get(TEXT) for record in dataset.records]
    given = np.array([text is not None and bool(str(text).strip()) for text in own], dtype=np.bool_)
    named = np.array([bool((record.get("title") or "").strip()) for record in dataset.records], dtype=np.bool_)
    return named & ~given


def without_titles(dataset: Dataset, batch: ModalBatch) -> ModalBatch:
    """The features without the texts that are titles."""
    if TEXT not in batch.names:
        return batch
    cells = torch.zeros_like(batch.observed)
    cells[:, batch.names.index(TEXT)] = torch.from_numpy(titled(dataset))
    return batch.masked(cells)


def choose(dataset: Dataset, batch: ModalBatch, encoder: TextEncoder, seed: int) -> TitleChoice:
    """What items with both say is better. Titles count where no item needs one, or too few tell."""
    if TEXT not in batch.names or len(batch.names) < 2 or not titled(dataset).any():
        return TitleChoice(True)
    column = batch.names.index(TEXT)
    observed = batch.observed.numpy()
    whole = observed[:, column] & ~titled(dataset) & np.delete(observed, column, axis=1).any(axis=1)
    named = np.array([bool((record.get("title") or "").strip()) for record in dataset.records], dtype=np.bool_)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(whole & named))[:MOST]
    if len(rows) < FEWEST:
        return TitleChoice(True)
    texts = batch.features[TEXT][torch.from_numpy(np.flatnonzero(observed[:, column] & ~titled(dataset)))]
    mean, truth = texts.mean(dim=0), batch.features[TEXT][rows]
    titles = torch.from_numpy(encoder.encode([dataset.records[row]["title"] for row in rows.tolist()]))
    generated = _generated(dataset, without_titles(dataset, batch), rows)
    found = [_mean_cosine(guess - mean, truth - mean) for guess in (titles, generated)]
    return TitleChoice(found[0] >= found[1], *found)


def _generated(dataset: Dataset, batch: ModalBatch, rows: Rows) -> Tensor:
    """The texts `[k, dim]` of some items as a ridge regression makes them of all else, half of them hidden at a time:
    were all hidden at once, it would often have too few to learn from."""
    pairs = dataset.pairs()
    graphs = InteractionGraphs.build(pairs[:, 0], pairs[:, 1], max(len(dataset.users), 1), len(batch))
    made = torch.zeros(len(rows), batch.features[TEXT].shape[1])
    for half in (slice(0, None, 2), slice(1, None, 2)):
        hidden = torch.zeros_like(batch.observed)
        hidden[torch.from_numpy(rows[half]), batch.names.index(TEXT)] = True
        made[half] = impute(batch.masked(hidden), "ridge", graphs)[TEXT][torch.from_numpy(rows[half])]
    return made


def _mean_cosine(left: Tensor, right: Tensor) -> float:
    return float(F.cosine_similarity(left, right, dim=1).mean())
