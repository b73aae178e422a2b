"""Settings that the validation part chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.tiny import CONFIG, TRAINER, checkerboard
from training.dgmrec import choice
from training.dgmrec.choice import CLOSED, TRAINED, Chooser, Trial, sample_of_users, small_batch
from training.dgmrec.task import TopNData

EPOCHS = 6
SETTINGS = TRAINER.model_copy(update={"epochs": EPOCHS})


def chooser(budget: float = 1000.0, pinned: frozenset[str] = frozenset(), **more: Any) -> Chooser:
    return Chooser(checkerboard(), (CONFIG, SETTINGS), pinned, budget, **more)


def scripted(monkeypatch: pytest.MonkeyPatch, score: Any) -> list[tuple[dict[str, Any], int]]:
    """Trials that score as a function of their settings and epochs says; answers what was tried."""
    tried = []

    def fit(self: Chooser, settings: dict[str, Any], epochs: int) -> Trial:
        tried.append((dict(settings), epochs))
        trial = Trial(dict(settings), epochs, score(settings, epochs), score(settings, epochs), 1.0)
        self.trials.append(trial)
        return trial

    monkeypatch.setattr(Chooser, "fit", fit)
    return tried


def test_it_is_as_good_as_the_best_that_was_tried() -> None:
    found = chooser().choose()
    assert len(found.trials) > len(TRAINED) + len(CLOSED)
    full = [trial for trial in found.trials if trial.epochs >= EPOCHS or trial.epochs == 1]
    best = max(full, key=lambda trial: trial.score)
    chosen = next(t for t in found.trials if t.settings == {k: v for k, v in found.settings.items() if k != "epochs"})
    assert max(chosen.score, best.score) <= best.score
    assert best.score <= max(t.score for t in full if t.settings == chosen.settings) * (1 + choice.GAIN)
    config, trainer = found.apply(CONFIG, SETTINGS)
    assert config.modal
    for name, value in found.settings.items():
        assert getattr(config if name in type(config).model_fields else trainer, name) == value
    assert len(found.table) == len(found.trials) + 2


def test_without_a_budget_nothing_is_tried() -> None:
    assert chooser(0).choose().trials == ()
    assert chooser(0).choose().apply(CONFIG, SETTINGS) == (CONFIG, SETTINGS)


def test_what_is_pinned_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = scripted(monkeypatch, lambda settings, epochs: 0.1 + 0.01 * len(settings) + 0.001 * epochs)
    pinned = frozenset({"collaborative", "embedding_size", "epochs"})
    chooser(pinned=pinned).choose()
    assert tried
    assert not any(settings.keys() & pinned for settings, _ in tried)
    assert all(epochs <= EPOCHS for _, epochs in tried)


def test_inner_products_have_no_closed_form_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = scripted(monkeypatch, lambda settings, epochs: 0.1 + 0.01 * len(settings))  # noqa: ARG005
    config = CONFIG.model_copy(update={"ranking": "bpr"})
    found = Chooser(checkerboard(), (config, SETTINGS), frozenset({"ranking"}), 1000.0).choose()
    assert tried
    assert not any("linear_size" in settings for settings, _ in tried)
    assert found.apply(config, SETTINGS)[0].ranking == "bpr"


def test_it_ends_with_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = scripted(monkeypatch, lambda settings, epochs: 0.1)  # noqa: ARG005
    found = chooser(3.0).choose()
    assert len(tried) == 3  # of a second each
    assert found.settings == {}


def test_the_best_goes_on_for_as_long_as_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = scripted(monkeypatch, lambda settings, epochs: 0.1 * min(epochs, 2 * EPOCHS) * (not settings))
    found = chooser().choose()
    assert found.settings == {"epochs": 2 * EPOCHS}
    assert [epochs for settings, epochs in tried if not settings] == [EPOCHS // 3, EPOCHS, 2 * EPOCHS, 4 * EPOCHS]


def test_a_closed_form_may_win(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, lambda settings, epochs: 1.0 + (settings.get("linear_penalty") == 1000.0))  # noqa: ARG005
    chosen = {"collaborative": "linear", "linear_penalty": 1000.0}
    assert chooser().choose().settings == {**chosen, "epochs": EPOCHS // 3}
    assert chooser(pinned=frozenset({"epochs"})).choose().settings == chosen


def test_an_interrupted_choice_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "choice"
    whole = chooser().choose()
    begun = chooser(fingerprint="a", file=file)
    for trial in whole.trials[:4]:
        begun.trials.append(trial)
    begun.keep()
    tried = scripted(monkeypatch, lambda settings, epochs: 0.01)  # noqa: ARG005
    again = chooser(fingerprint="a", file=file).choose()
    assert again.trials[:4] == whole.trials[:4]
    assert not any((trial.settings, trial.epochs) in tried for trial in whole.trials[:4])
    tried.clear()
    other = chooser(fingerprint="b", file=file).choose()
    assert len(tried) == len(other.trials)


def test_batches_leave_small_data_their_steps() -> None:
    assert small_batch(100, 4096) == {"batch_size": choice.SMALLEST_BATCH}
    assert small_batch(40_000, 4096) == {"batch_size": 40_000 // choice.FEWEST_STEPS}
    assert small_batch(40_000, 1000) == small_batch(10**6, 4096) == {}


def test_a_sample_holds_whole_users() -> None:
    data = checkerboard()
    assert sample_of_users(data.parts, 10**6, np.random.default_rng(0)) is data.parts
    some = sample_of_users(data.parts, len(data.parts.train) // 2, np.random.default_rng(0))
    users = np.unique(some.train[:, 0])
    assert 0.3 < len(some.train) / len(data.parts.train) < 0.7
    for part, whole in zip(
        (some.train, some.valid, some.test), (data.parts.train, data.parts.valid, data.parts.test), strict=True
    ):
        assert np.array_equal(part, whole[np.isin(whole[:, 0], users)])
    assert isinstance(replace(data, parts=some), TopNData)
