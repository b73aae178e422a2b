"""What the protocols count, against slow readings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import training.evaluate.measures as module
from models.calibration import calibration_error
from models.imputers import observed_means
from models.modality import ModalBatch
from tests.models.worlds import linear_batch
from training.evaluate.measures import ranking_by_level, ranking_of_new, retrieval
from training.metrics import rank_all, recall

N = 40


# --- ranking -------------------------------------------------------------------------------------------------------


def test_ranking_by_kind_of_item() -> None:
    """Three users who all rank item 0 first and item 29 last."""
    scores = np.tile(np.arange(30, 0, -1, dtype=np.float32), (3, 1))
    test = np.array([[0, 0], [0, 25], [1, 25], [2, 1]])
    ranks = rank_all(lambda rows: scores[rows], test, np.array([[0, 2], [1, 2], [2, 2]]))
    level = np.zeros(30, dtype=np.int64)
    level[25], level[1] = 2, 1
    found = ranking_by_level(ranks, level)
    assert found["recall@20"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert found["recall@20[level=0]"] == 1  # user 0 with item 0
    assert found["recall@20[level=1]"] == 1  # user 2 with item 1
    assert found["recall@20[level=2]"] == 0  # users 0 and 1 with item 25: ranked among all items, not among its kind
    assert found["recall@50[level=2]"] == 1
    new = ranking_of_new(ranks, np.array([1, 25]))
    assert new["recall@20[new]"] == pytest.approx(1 / 3)  # users 0, 1 miss item 25, user 2 finds item 1
    assert new["recall@20"] == found["recall@20"] == recall(ranks, 20)
    assert set(ranking_of_new(ranks, np.array([9]))) == {name for name in found if "[" not in name}


# --- retrieval -----------------------------------------------------------------------------------------------------


def world(noise: float = 1.0) -> tuple[ModalBatch, ModalBatch, dict[str, Tensor]]:
    """Complete features (but a natural hole), what is left of them, and guesses that are the truth plus noise."""
    complete = linear_batch((6, 5), n=N, missing=0, noise=0.5)
    hole = torch.zeros(N, 2, dtype=torch.bool)
    hole[3, 0] = True
    complete = complete.masked(hole)
    missing = torch.zeros(N, 2, dtype=torch.bool)
    missing[:10, 0], missing[:14, 1] = True, True
    batch = complete.masked(missing)
    generator = torch.Generator().manual_seed(0)
    filled = {
        name: torch.where(
            batch.observed[:, [column]],
            feature,
            feature + noise * torch.randn(feature.shape, generator=generator),
        )
        for column, (name, feature) in enumerate(complete.features.items())
    }
    return complete, batch, filled


def slow(
    complete: ModalBatch, batch: ModalBatch, filled: dict[str, Tensor], name: str, items: list[int]
) -> list[float]:
    """cosine, neighbourhood_hit@5, self_hit@10, self_mrr of some cells, without ties in mind."""
    column = batch.names.index(name)
    mean = observed_means(batch)[name]
    truth, made = ((x[name] - mean).double().numpy() for x in (complete.features, filled))
    truth, made = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (truth, made))
    known = complete.observed[:, column].numpy()
    rows = []
    for item in items:
        others = [j for j in range(N) if j != item and known[j]]
        near = sorted(others, key=lambda j: -(truth[item] @ truth[j]))[:5]
        found = sorted(others, key=lambda j: -(made[item] @ truth[j]))[:5]
        place = 1 + sum(truth[item] @ made[j] > truth[item] @ made[item] + 1e-9 for j in range(N))
        rows.append((truth[item] @ made[item], bool(set(near) & set(found)), place <= 10, 1 / place))
    return [float(np.mean(values)) for values in zip(*rows, strict=True)]


@pytest.mark.parametrize("cells", [4_000_000, 3 * N])
def test_retrieval(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(module, "CELLS", cells)
    complete, batch, filled = world()
    found = retrieval(complete, batch, filled)
    figures = ("cosine", "neighbourhood_hit@5", "self_hit@10", "self_mrr")
    # Item 3 has a natural hole in m0: its truth is unknown, it counts as lacking both, and is no one's neighbour.
    asked = {
        "[m0]": [item for item in range(10) if item != 3],
        "[m0][level=2]": [item for item in range(10) if item != 3],
        "[m1]": list(range(14)),
        "[m1][level=1]": list(range(10, 14)),
        "[m1][level=2]": list(range(10)),
    }
    for label, items in asked.items():
        expected = slow(complete, batch, filled, label[1:3], items)
        assert [found[f"{figure}{label}"] for figure in figures] == pytest.approx(expected, abs=1e-5), label
    assert {name[name.index("[") :] for name in found} == set(asked)
    assert 0 < found["self_hit@10[m0]"] <= 1


def test_a_perfect_guess() -> None:
    found = retrieval(*world(noise=0.0))
    for name in ("m0", "m1"):
        for figure in ("cosine", "neighbourhood_hit@5", "self_hit@10", "self_mrr"):
            assert found[f"{figure}[{name}]"] == pytest.approx(1)


def test_a_constant_guess_hits_nothing_by_ties() -> None:
    """All masked items look alike: they share a place, and that is not among the first."""
    complete, batch, _ = world()
    means = observed_means(batch)
    filled = {
        name: torch.where(batch.observed[:, [column]], feature, means[name])
        for column, (name, feature) in enumerate(complete.features.items())
    }
    found = retrieval(complete, batch, filled)
    for name in ("m0", "m1"):
        assert found[f"cosine[{name}]"] == 0
        assert found[f"neighbourhood_hit@10[{name}]"] == 0  # the other 39 tie, at place 20
        assert found[f"self_mrr[{name}]"] < 1 / 5


def test_average_places() -> None:
    cosines = torch.tensor([[0.5, 0.5 + 1e-8, 0.9, 0.1], [0.2, 0.2, 0.2, 0.2]])
    assert module.average_places(cosines, torch.tensor([0, 3])).tolist() == [2.5, 2.5]
    assert module.average_places(cosines, torch.tensor([2, 0])).tolist() == [1.0, 2.5]


def test_calibration() -> None:
    complete, batch, filled = world()
    generator = torch.Generator().manual_seed(1)
    confidence = {name: torch.rand(N, generator=generator) for name in batch.names}
    found = retrieval(complete, batch, filled, confidence)
    served, measured = [], []
    for column, name in enumerate(batch.names):
        rows = complete.observed[:, column] & ~batch.observed[:, column]
        mean = observed_means(batch)[name]
        cosine = torch.cosine_similarity(filled[name] - mean, complete.features[name] - mean, dim=1)
        served.append(confidence[name][rows].numpy())
        measured.append(cosine[rows].numpy())
        assert found[f"calibration_error[{name}]"] == pytest.approx(calibration_error(served[-1], measured[-1]))
    assert found["calibration_error"] == pytest.approx(
        calibration_error(np.concatenate(served), np.concatenate(measured))
    )
    assert "calibration_error" not in retrieval(complete, batch, filled)


def test_nothing_withheld_nothing_measured() -> None:
    complete, _, filled = world()
    assert retrieval(complete, complete, filled) == {}
