"""Calibrating a confidence on pairs of what was forecast and what came true."""

from __future__ import annotations

import numpy as np
import pytest

from models.calibration import FORMS, IDENTITY, ISOTONIC, LINEAR, calibration_error, choose, isotonic, linear


def pairs_of(count: int, truth: object = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and cosines that spread around `truth` of them."""
    rng = np.random.default_rng(seed)
    raw = rng.uniform(0.1, 0.9, count)
    return raw, np.asarray(truth(raw) if callable(truth) else raw) + rng.normal(scale=0.1, size=count)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_never_falls_and_stays_in_bounds(form: str) -> None:
    grid = np.linspace(0, 1, 1001)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        raw, true = np.round(rng.random(200), 2), rng.uniform(-1, 1, 200)
        served = FORMS[form](raw, true)(grid)
        assert (np.diff(served) >= 0).all()
        assert ((served >= 0) & (served <= 1)).all()


def test_isotonic_regression_finds_a_step() -> None:
    raw, true = pairs_of(2000, lambda raw: np.where(raw < 0.5, 0.2, 0.8))
    served = isotonic(raw, true)
    assert served(np.array([0.3, 0.7])) == pytest.approx([0.2, 0.8], abs=0.03)


def test_the_linear_form_is_cut_off_where_it_leaves_the_bounds() -> None:
    raw, true = pairs_of(2000, lambda raw: 2 * raw - 0.5)
    served = linear(raw, true)
    assert served(np.array([0.0, 0.2, 0.5, 0.7, 1.0])) == pytest.approx([0, 0, 0.5, 0.9, 1], abs=0.05)


def test_all_alike_is_no_ground_for_a_slope() -> None:
    raw, true = np.full(100, 0.5), np.full(100, 0.3)
    for fit in (isotonic, linear):
        assert fit(raw, true)(np.array([0.5])) == pytest.approx([0.3], abs=0.03)


@pytest.mark.parametrize(
    ("truth", "form"),
    [
        (lambda raw: raw, IDENTITY),
        (lambda raw: 0.5 * raw + 0.05, LINEAR),
        (lambda raw: np.where(raw < 0.5, 0.2, 0.8), ISOTONIC),
    ],
)
def test_the_form_that_fits_is_chosen_and_brings_the_error_down(truth: object, form: str) -> None:
    chosen = choose(*pairs_of(1000, truth))
    assert chosen.map.form == form
    assert chosen.error_after < 0.04
    if form == IDENTITY:
        assert chosen.error_after == chosen.error_before
    else:
        assert chosen.error_before > 0.1
    raw, true = pairs_of(5000, truth, seed=1)
    assert calibration_error(chosen.map(raw), true) < 0.03


def test_the_same_pairs_give_the_same_map() -> None:
    raw, true = pairs_of(300, lambda raw: raw**2)
    assert choose(raw, true) == choose(raw.tolist(), true.tolist())


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 5 pairs"):
        choose([0.5] * 4, [0.5] * 4)
