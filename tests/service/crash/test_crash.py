"""Five rounds of dying; `python -m tests.service.crash.long` does many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.crash.harness import Harness


@pytest.mark.parametrize(("database", "workers", "rounds"), [("sqlite", 1, 2), ("postgresql", 3, 3)])
def test_nothing_acknowledged_is_lost_when_the_service_is_killed(
    request: pytest.FixtureRequest, demo_bundle: Path, data_dir: Path, database: str, workers: int, rounds: int
) -> None:
    url = f"sqlite+aiosqlite:///{data_dir}/lacuna.db"
    if database == "postgresql":
        url = request.getfixturevalue("postgres_url")
    harness = Harness(demo_bundle, data_dir, url, seed=workers, workers=workers)
    report = harness.run(rounds, 3.0)
    assert report.violations == []
    assert report.kills["service"] == rounds + 1
    assert sum(report.acknowledged.values()) > 5
    assert report.answers_compared > 30
