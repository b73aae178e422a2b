"""The short form of `python -m tests.service.soak`, and whether its eyes are good."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest

from tests.service.running import Running
from tests.service.soak import TOLERATED, complaints, steady_load, trend

MINUTES = [number / 4 for number in range(120)]


@pytest.mark.parametrize(
    ("slope", "noise", "grows"),
    [
        (0.0, 5.0, False),
        (-1.0, 5.0, False),
        (0.05, 1.0, False),  # 1.5 of 500 in half an hour
        (0.5, 0.0, True),
        (1.0, 5.0, True),  # 30 of 500 in half an hour, under noise
    ],
)
def test_growth_is_told_from_noise(slope: float, noise: float, grows: bool) -> None:
    rng = np.random.default_rng(1)
    series = [500 + slope * minute + noise * rng.standard_normal() for minute in MINUTES]
    found = trend(MINUTES, series)
    assert found["grows"] is grows
    assert found["interval"][0] <= slope <= found["interval"][1]


def test_a_run_is_complained_of_that_grew_failed_or_was_too_slow() -> None:
    def run(**changed: Any) -> dict[str, Any]:
        trends = {name: {"grows": False} for name in TOLERATED}
        fine = {"trends": trends, "server_errors": 0, "requests_per_second": 98, "wanted_requests_per_second": 100}
        return fine | changed

    grown = {name: {"grows": name == "held_mib"} for name in TOLERATED}
    assert complaints(run()) == []
    assert complaints(run(trends=grown)) == ["held_mib grew"]
    assert len(complaints(run(server_errors=1))) == len(complaints(run(requests_per_second=90))) == 1


def test_a_steady_load_of_everything_is_answered(running: Running) -> None:
    vectors = {modality.name: modality.dim for modality in running.engine.active.manifest.modalities}
    window = asyncio.run(steady_load(running.url, random.Random(1), vectors, 3.0, 60.0))
    assert window.statuses.total() == 180
    assert set(window.statuses) <= {"200", "201", "204", "404", "409", "422"}
    assert window.statuses["200"] > 100
    running.wait_until_idle()
    running.check_index()
