"""LRMM in the paper's form: its equations in plain NumPy, and what is missing reaches nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.lrmm.config import LRMMPaperConfig
from models.lrmm.documents import concatenated, described, padded, review_ids
from models.lrmm.loading import load_lrmm
from models.lrmm.model import ITEM, USER
from models.lrmm.paper import Inputs, PaperLRMM
from models.lrmm.paper_serving import PaperServing
from models.lrmm.serving import Intervals
from models.vocabulary import Vocabulary
from tests.models.bundles import bundle_of

D, H, WORDS, DIM = 5, 7, 9, 6
NAMES = (USER, ITEM, "metadata", "image")
CONFIG = LRMMPaperConfig(
    lstm_hidden=D, hidden=H, word_embedding_size=4, lstm_dropout=0.0, drop=0.3, alpha=0.7, beta=1.3
)
Numbers = NDArray[np.float64]
DOCUMENTS = [[(2, 3, 4), (5,), ()], [(6, 7), (8, 9, 10, 2)], [(3, 3), (4, 5, 6)]]  # distinct ones, by modality
PLACES = [[0, 1, 2, 0], [0, 1, 1, 0], [1, 0, 1, 1]]
RATING = np.array([5.0, 1.0, 3.0, 4.0])


def model(**changes: object) -> PaperLRMM:
    torch.manual_seed(0)
    return PaperLRMM(CONFIG.model_copy(update=changes), NAMES[:3], {"image": DIM}, WORDS, 4.0).double().eval()


def inputs() -> Inputs:
    present = torch.ones(4, 4, dtype=torch.bool)
    present[2, 0] = False  # a user without words
    present[1, 3] = False  # an item without a picture
    documents = {
        name: (torch.from_numpy(padded(found)), torch.tensor(place))
        for name, found, place in zip(NAMES[:3], DOCUMENTS, PLACES, strict=True)
    }
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(4, DIM)))
    return Inputs(documents, {"image": features}, present)


class ByHand:
    """The paper's equations, one pair and one word at a time."""

    def __init__(self, made: PaperLRMM) -> None:
        self.w = {name: tensor.detach().numpy() for name, tensor in made.state_dict().items()}

    @staticmethod
    def sigm(x: Numbers) -> Numbers:
        return 1 / (1 + np.exp(-x))

    def states(self, name: str, document: tuple[int, ...]) -> list[Numbers]:
        """Eq. 6-8; torch orders the gates i, f, g, o."""
        tower = f"towers.{name}"
        h, c, states = np.zeros(D), np.zeros(D), []
        for word in document:
            x = self.w[f"{tower}.embedding.weight"][word]
            gates = self.w[f"{tower}.lstm.weight_ih_l0"] @ x + self.w[f"{tower}.lstm.weight_hh_l0"] @ h
            gates = gates + self.w[f"{tower}.lstm.bias_ih_l0"] + self.w[f"{tower}.lstm.bias_hh_l0"]
            i, f, g, o = np.split(gates, 4)
            c = self.sigm(f) * c + self.sigm(i) * np.tanh(g)
            h = self.sigm(o) * np.tanh(c)
            states.append(h)
        return states

    def hidden(self, name: str, embedding: Numbers) -> Numbers:
        """Eq. 17."""
        auto = f"autos.{name}.encoder"
        return self.sigm(self.w[f"{auto}.weight"] @ embedding + self.w[f"{auto}.bias"])

    def rebuilt(self, name: str, hidden: Numbers) -> Numbers:
        """A summand of eq. 18."""
        auto = f"autos.{name}.decoder"
        return self.sigm(self.w[f"{auto}.weight"] @ hidden + self.w[f"{auto}.bias"])

    def score(self, parts: list[Numbers]) -> float:
        """Eq. 11."""
        return float(self.w["score.weight"][0] @ np.concatenate(parts) + self.w["score.bias"][0])


def by_hand(made: PaperLRMM, given: Inputs, kept: NDArray[np.bool_]) -> tuple[Numbers, float]:
    """Ratings and the objective of eq. 22, with alpha and beta as they stand, without their own term."""
    paper, features = ByHand(made), given.features["image"].numpy()
    present = given.present.numpy()
    ratings, squared, hiddens = [], 0.0, {name: [] for name in NAMES}  # type: dict[str, list[Numbers]]
    for row in range(4):
        parts = []
        for column, name in enumerate(NAMES):
            if name == "image":
                words = [
                    made.maps["image"].weight.detach().numpy() @ features[row]
                    + made.maps["image"].bias.detach().numpy()
                ]
            else:
                words = paper.states(name, DOCUMENTS[column][PLACES[column][row]])
            embedding = np.mean(words, axis=0) if words else np.zeros(D)  # eq. 9
            seen = words if kept[row, column] else [np.zeros(D)]  # eq. 15
            hidden = [paper.hidden(name, word) for word in seen]
            rebuilt = np.mean([paper.rebuilt(name, one) for one in hidden], axis=0)  # eq. 18
            hiddens[name].append(np.mean(hidden, axis=0))
            squared += present[row, column] * ((rebuilt - embedding) ** 2).sum() / 4  # eq. 21
            parts.append(embedding if kept[row, column] else rebuilt)
        ratings.append(paper.score(parts))
    rho, divergence = made.config.rho, 0.0
    for found in hiddens.values():
        mean = np.mean(found, axis=0)
        divergence += (rho * np.log(rho / mean) + (1 - rho) * np.log((1 - rho) / (1 - mean))).sum()  # eq. 20
    regression = ((np.array(ratings) - RATING) ** 2).mean()  # eq. 19
    alpha, beta = made.log_weights.detach().exp().numpy()
    return np.array(ratings), float(alpha * regression + beta * (squared + made.config.sparsity * divergence))


def test_ratings_and_objective_are_the_papers() -> None:
    made, given = model(), inputs()
    kept = given.present & torch.from_numpy(np.random.default_rng(1).random((4, 4)) < 0.6)
    assert (kept != given.present).any()
    wanted, objective = by_hand(made, given, kept.numpy())
    with torch.inference_mode():
        ratings = made(made.embed(given).embeddings, kept).rating[0].numpy()
        loss = made.loss(given, torch.from_numpy(RATING), kept)
    # A dropped text is a constant, whether it is rebuilt word by word or whole.
    np.testing.assert_allclose(ratings, wanted, atol=1e-9)
    assert float(loss) == pytest.approx(objective - float(made.log_weights.detach().sum()), abs=1e-6)


@pytest.mark.parametrize(
    "change", [{"sparsity": 0.0}, {"rho": 0.3}, {"alpha": 2.0}, {"beta": 0.1}, {"word_level": False}]
)
def test_every_part_of_the_objective_counts(change: dict[str, Any]) -> None:
    given = inputs()
    with torch.inference_mode():
        values = [float(one.loss(given, torch.from_numpy(RATING), given.present)) for one in (model(), model(**change))]
    assert abs(values[0] - values[1]) > 1e-6


def test_documents_are_cut_to_l_words_in_all() -> None:
    words = Vocabulary(["a", "b", "c"])
    newest, older = (review_ids(words, text, 4) for text in ("a strange b", "C a a a a"))
    assert newest == (2, 1, 3)
    assert concatenated([newest, older], 5) == (2, 1, 3, 4, 2)
    assert concatenated([], 5) == ()
    np.testing.assert_array_equal(padded([newest, ()]), [[2, 1, 3], [0, 0, 0]])
    assert described("a strap", "of leather") == "a strap\nof leather"
    assert described("a strap", "a strap") == "a strap"
    assert described(None, " ") == ""


def test_recurrent_weights_start_orthogonal_and_the_others_uniform() -> None:
    made = model()
    for name in NAMES[:3]:
        for gate in made.towers[name].lstm.weight_hh_l0.detach().split(D):  # type: ignore[union-attr, operator]
            np.testing.assert_allclose(gate @ gate.T, np.eye(D), atol=1e-6)
    bound = (6 / (D + H)) ** 0.5
    weights = made.autos[USER].encoder.weight.detach().abs()  # type: ignore[union-attr]
    assert bound / 2 < float(weights.max()) <= bound


@pytest.mark.parametrize(
    ("drop", "noise", "rate"), [(0.0, False, 0.0), (0.5, False, 0.5), (0.0, True, 0.25), (0.5, True, 0.625)]
)
def test_rates_of_m_drop(drop: float, noise: bool, rate: float) -> None:
    """r keeps with 1 - p_m, k with 1 - 1 / 4. (eq. 13-14)"""
    present = torch.ones(5000, 4, dtype=torch.bool)
    present[:, 1] = False
    kept = model(drop=drop, noise=noise).drop(present, torch.Generator().manual_seed(0))
    assert not kept[:, 1].any()
    np.testing.assert_allclose(1 - kept[:, [0, 2, 3]].double().mean(0), rate, atol=0.02)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("impute", [True, False])
def test_a_withheld_modality_may_hold_noise(joint: bool, impute: bool) -> None:
    made = model(joint=joint, impute=impute)
    generator = torch.Generator().manual_seed(0)
    embeddings = {name: torch.randn(20, D, generator=generator).double() for name in NAMES}
    present = torch.rand(20, 4, generator=generator) < 0.6
    noisy = {name: torch.where(present[:, [column]], one, 1e6) for column, (name, one) in enumerate(embeddings.items())}
    torch.testing.assert_close(made.predict(embeddings, present), made.predict(noisy, present), rtol=0, atol=0)
    rebuilt = made(embeddings, present).rebuilt[USER][0]
    withheld = rebuilt.detach()[~present[:, 0] & present.any(dim=1)]
    assert (float(withheld.std(dim=0).max()) > 1e-6) == joint  # as written it can only be a constant


def test_embeddings_do_not_depend_on_the_batch() -> None:
    made = model()
    together = made.document_embeddings(USER, DOCUMENTS[0])
    for document, embedding in zip(DOCUMENTS[0], together, strict=True):
        np.testing.assert_allclose(made.document_embeddings(USER, [document])[0], embedding, atol=1e-6)
    assert not together[2].any()  # no words


def test_a_bundle_gives_the_same_ratings(tmp_path: Path) -> None:
    words = Vocabulary(f"word{row}" for row in range(WORDS))
    intervals = Intervals(np.zeros((4, 2)), np.ones((4, 3)))
    serving = PaperServing(model().float(), vocabulary=words, contents=("text", "image"), intervals=intervals)
    again = load_lrmm(bundle_of(tmp_path / "bundle", "lrmm", serving))
    assert isinstance(again, PaperServing)
    assert again.config == serving.config
    assert again.reads_words_of("text")
    assert not again.reads_words_of("image")
    found = []
    for one in (serving, again):
        documents = [one.document(["word1 word2", "word3"]), one.document(["unheard"])]
        embeddings = {name: one.documents(name, documents) for name in NAMES[:3]}
        embeddings["image"] = one.content("image", np.ones((2, DIM), np.float32))
        present = np.array([[True] * 4, [False, True, False, True]])
        found.append(one.rate(embeddings, present, np.zeros(2), np.array([2.0, 1.0])))
    np.testing.assert_array_equal(found[0].rating, found[1].rating)
    np.testing.assert_array_equal(found[0].low, found[1].low)
