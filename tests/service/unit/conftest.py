"""The fake of the engine, in the place of the pipeline's functions."""

from __future__ import annotations

import pytest

from tests.service.unit import fake_engine
from tests.service.unit.fake_engine import FakeEngine


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake_engine.install(monkeypatch)
    return FakeEngine()
