"""LRMM: what is missing reaches nothing, and what is known of nobody is the offset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import Bundle, BundleError, EncoderRef
from models.losses import sparsity
from models.lrmm.config import LRMMConfig
from models.lrmm.factors import LatentFactors
from models.lrmm.model import ITEM, LRMM, USER
from models.lrmm.profiles import Biases, Prior, Reviewed, Scale
from models.lrmm.reviews import Projection
from models.lrmm.serving import Intervals, LRMMServing, TrainedSides
from models.vocabulary import Vocabulary
from tests.models.bundles import bundle_of
from tests.models.test_reviews import encoder

SIZES = {USER: 17, ITEM: 17, "metadata": 3}
CONFIG = LRMMConfig(members=3, hidden=8, rating_hidden=6, word_embedding_size=4, lstm_hidden=5, review_words=6)
NONE = torch.zeros(50)  # no affinity


def model(**changes: object) -> LRMM:
    torch.manual_seed(0)
    made = LRMM(CONFIG.model_copy(update=changes), SIZES, 4.0)
    with torch.no_grad():  # as if it had learned something
        for layer in (made.linear, made.outer):
            layer.weight.normal_(0, 0.1)
    return made.eval()


def batch(n: int = 50, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    embeddings = {name: torch.randn(n, size, generator=made) for name, size in SIZES.items()}
    return embeddings, torch.rand(n, len(SIZES), generator=made) < 0.6


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("impute", [True, False])
def test_a_withheld_modality_may_hold_noise(joint: bool, impute: bool) -> None:
    embeddings, present = batch()
    noisy = {
        name: torch.where(present[:, [column]], one, torch.full_like(one, 1e6))
        for column, (name, one) in enumerate(embeddings.items())
    }
    made = model(joint=joint, impute=impute)
    torch.testing.assert_close(
        made.predict(embeddings, present, NONE), made.predict(noisy, present, NONE), rtol=0, atol=0
    )


def test_of_nobody_and_nothing_only_the_offset_is_known() -> None:
    embeddings, present = batch()
    assert (model().predict(embeddings, torch.zeros_like(present), NONE + 1) == 4.0).all()


def test_a_missing_modality_is_read_off_the_others_only_jointly() -> None:
    embeddings, present = batch()
    present[:] = torch.tensor([False, True, True])
    for joint, differ in ((True, True), (False, False)):
        rebuilt = model(joint=joint)(embeddings, present, NONE).rebuilt[USER]
        assert (rebuilt.std(dim=1).max() > 1e-6) == differ  # the literal form can only return a constant


def test_it_can_start_at_the_biases() -> None:
    """A number of a side's embedding, taken back to what it was before it was scaled, is added to the offset."""
    embeddings, present = batch()
    torch.manual_seed(0)
    made = LRMM(CONFIG, SIZES, 4.0).eval()
    made.start_at(ITEM, 2, 0.1, 0.05)
    present[:] = True
    expected = (4.05 + 0.1 * embeddings[ITEM][:, 2]).clamp(1, 5)
    torch.testing.assert_close(made.predict(embeddings, present, NONE), expected)


def test_affinity_counts_where_both_sides_are_known() -> None:
    embeddings, present = batch()
    made = model()
    without, liked = (made.predict(embeddings, present, NONE + one) for one in (0.0, 0.1))
    both = present[:, 0] & present[:, 1]
    assert both.any()
    torch.testing.assert_close(liked - without, 0.1 * both)


def test_rates_of_m_drop() -> None:
    made = model(drop=0.3)
    present = torch.ones(4000, 3, dtype=torch.bool)
    present[:2000, 0] = False
    kept = made.drop(present, torch.Generator().manual_seed(0))
    assert kept.shape == (3, 4000, 3)
    assert not kept[:, :2000, 0].any()
    assert kept[:, 2000:].float().mean((1,)).sub(0.7).abs().max() < 0.04  # each member, each modality
    assert not torch.equal(kept[0], kept[1])
    assert model(drop=0.0).drop(present, torch.Generator()).equal(present.expand(3, -1, -1))


def test_predictions_stay_on_the_scale() -> None:
    embeddings, present = batch()
    loud = {name: one * 1e3 for name, one in embeddings.items()}
    found = model().predict(loud, present, NONE)
    assert found.min() >= 1
    assert found.max() <= 5


def test_the_loss_teaches_ratings_and_reconstruction() -> None:
    embeddings, present = batch(200)
    present[:] = True
    embeddings["metadata"] = embeddings[USER][:, :3]
    rating = 3 + embeddings[USER][:, 0].clamp(-1, 1)
    made = model().train()
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    losses = []
    for _ in range(150):
        loss = made.loss(embeddings, present, torch.zeros(200), rating, made.drop(present, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    made.eval()
    without = torch.tensor([False, True, True]).expand(200, 3)
    error = (made.predict(embeddings, without, torch.zeros(200)) - rating).pow(2).mean()
    assert error < 0.8 * rating.var()  # the user's side is read off the metadata


def test_sparsity_is_least_at_rho() -> None:
    assert sparsity(torch.full((4, 5), 0.05), 0.05) == pytest.approx(0, abs=1e-6)
    assert sparsity(torch.full((4, 5), 0.5), 0.05) > 0.4


# --- as it is served -------------------------------------------------------------------------------------------------


def lrmm_serving(*, texts: bool = True) -> LRMMServing:
    rng = np.random.default_rng(0)
    read = encoder() if texts else None
    width = 10 + (read.dim - 1 if read else 0)
    torch.manual_seed(0)
    made = LRMM(CONFIG, {USER: width, ITEM: width, "metadata": 3}, 4.2)
    with torch.no_grad():
        made.linear.weight.normal_(0, 0.1)
    scale = Scale(rng.normal(size=width).astype(np.float32), np.ones(width, np.float32))
    return LRMMServing(
        made,
        sides=TrainedSides(
            users=Vocabulary(["ann", "bob"]),
            items=Vocabulary(["pick"]),
            biases=Biases(4.2, np.array([0.3, -0.2]), np.array([0.1])),
            factors=LatentFactors(np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[0.5, -1.0]])),
        ),
        prior=Prior(4.2, np.array([0.1, 0.2, 0.7]), 0.8),
        scales={USER: scale, ITEM: scale},
        encoder=(read, EncoderRef(kind="text", id="test", dim=4, weights_sha256="0")) if read else None,
        contents={"text": Projection(np.zeros(4, np.float32), rng.normal(size=(4, 3)).astype(np.float32))},
        intervals=Intervals(np.tile([2.0, 5.0], (4, 1)), rng.uniform(0.5, 1, size=(4, 3))),
    )


@pytest.mark.parametrize("texts", [True, False])
def test_a_bundle_brings_the_same_ratings_back(tmp_path: Path, texts: bool) -> None:
    made = lrmm_serving(texts=texts)
    found = LRMMServing.load(bundle_of(tmp_path / "bundle", "lrmm", made))
    assert found is not None
    assert found.names == made.names
    assert (found.sides.users, found.sides.items) == (made.sides.users, made.sides.items)
    sentences = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    vectors = [
        one.encoder.encode(["Good\nstrings, bad", "unheard"], sentences)
        if one.encoder
        else np.zeros((2, 1), np.float32)
        for one in (made, found)
    ]
    np.testing.assert_array_equal(*vectors)
    told = np.array([texts, texts])
    reviewed = Reviewed(np.array([0, 0]), np.array([5.0, 2.0]), np.zeros(2), np.ones((2, 2)), vectors[0], told)
    answers = []
    for one in (made, found):
        user = one.profile(USER, reviewed, 1)
        item = one.profile(ITEM, Reviewed(*(part[:0] for part in vars(reviewed).values())), 1)
        assert user.factors.any()
        assert not item.factors.any()
        content = one.content("text", np.ones((1, 4), np.float32))
        present = np.array([[user.known[0], item.known[0], True]])
        assert present.tolist() == [[True, False, True]]
        embeddings = {USER: user.embedding, ITEM: item.embedding, "metadata": content}
        answers.append(one.rate(embeddings, present, np.zeros(1), np.array([2.0])))
    for name in ("rating", "low", "high"):
        np.testing.assert_array_equal(getattr(answers[0], name), getattr(answers[1], name))
    assert 1 <= answers[0].low[0] < answers[0].rating[0] < answers[0].high[0] <= 5
    for one in (made, found):
        bias, factors = one.sides.others(USER, [("ann", "pick"), ("ann", "new")])
        assert bias.tolist() == [0.1, 0]
        assert factors.tolist() == [[0.5, -1], [0, 0]]
        bias, factors = one.sides.others(ITEM, [("bob", "pick"), ("nobody", "pick")])
        assert bias.tolist() == [-0.2, 0]
        assert factors.tolist() == [[0, 1], [0, 0]]


def test_a_bundle_without_or_with_a_damaged_one(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", "lrmm", lrmm_serving())
    without = bundle.manifest.model_copy(update={"models": {}})
    assert LRMMServing.load(Bundle(bundle.path, without)) is None
    entry = bundle.manifest.models["lrmm"]
    for name, sentence in (
        ("mispelt", r"the lrmm model of .* does not fit this Lacuna"),
        ("taste_size", r"the setting 'taste_size' is called 'factor_size' now"),
        ("tone_folds", r"the setting 'tone_folds' is gone"),
    ):
        odd = entry.model_copy(update={"config": {**entry.config, "model": {"hidden": 8, name: 1}}})
        with pytest.raises(BundleError, match=sentence):
            LRMMServing.load(Bundle(bundle.path, bundle.manifest.model_copy(update={"models": {"lrmm": odd}})))


def test_intervals_cover_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    n = 20_000
    pattern, amount = rng.integers(0, 4, n), rng.integers(0, 30, n).astype(float)
    residual = np.abs(rng.normal(size=n)) * (1 + (pattern == 1)) / (1 + amount / 10)
    half = n // 2
    intervals = Intervals.fit(pattern[:half], amount[:half], residual[:half])
    covered = residual[half:] <= intervals(pattern[half:], amount[half:])
    assert 0.88 <= covered.mean() <= 0.92
    for one in range(4):
        assert 0.87 <= covered[pattern[half:] == one].mean() <= 0.93
    assert (Intervals.fit(pattern[:0], amount[:0], residual[:0]).width == 4.0).all()  # nothing is promised


def test_equal_errors_are_covered_as_near_to_the_promise_as_can_be() -> None:
    """Of a pair of which nothing is known only the mean is told, whose errors take as many values as ratings do."""
    ratings = np.repeat([5.0, 4.0, 3.0, 2.0, 1.0], [676, 203, 75, 24, 22])
    errors = np.abs(ratings - ratings.mean())
    pattern, amount = np.zeros(len(errors), np.int64), np.zeros(len(errors))
    half = Intervals.fit(pattern, amount, errors)(pattern, amount)
    assert (errors <= half).mean() == pytest.approx(0.879)  # the next that could be covered is 0.954
    few = errors[400:]  # here 0.798 or 0.923
    half = Intervals.fit(pattern[400:], amount[400:], few)(pattern[400:], amount[400:])
    assert (few <= half).mean() == pytest.approx(0.923, abs=1e-3)
