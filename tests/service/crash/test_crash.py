"""Five rounds of dying on each database; `python -m tests.service.crash.long` does many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.crash.harness import Harness


@pytest.mark.parametrize(("database", "workers"), [("sqlite", 1), ("postgresql", 1), ("postgresql", 3)])
def test_nothing_acknowledged_is_lost_when_the_service_is_killed(
    request: pytest.FixtureRequest, demo_bundle: Path, tmp_path: Path, database: str, workers: int
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/lacuna.db"
    if database == "postgresql":
        url = request.getfixturevalue("postgres_url")
    harness = Harness(demo_bundle, tmp_path, url, seed=workers, workers=workers)
    report = harness.run(2 if workers > 1 else 5, 6.0 if workers > 1 else 2.0)
    assert report.violations == []
    assert report.kills["service"] >= 3
    assert sum(report.acknowledged.values()) > 5
    assert report.answers_compared > 100
