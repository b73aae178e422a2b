"""`python -m benchmarks.fuzz`, one round of it: what half an hour of made-up requests is held to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz import CEILING_MIB, STALL_MS, faults, growth
from tests.security.watching import ENOUGH_TRIES
from tests.service.processes import REPOSITORY

GOOD = {
    "server_errors": 0,
    "failures": 0,
    "tracebacks_in_the_log": 0,
    "own_stall_ms": STALL_MS,
    "peak_mib": CEILING_MIB,
    "growth": 0.02,
}


def one_round(bundle: Path, folder: Path) -> dict[str, Any]:
    file = folder / "fuzz.json"
    command = [sys.executable, "-m", "benchmarks.fuzz", "--bundle", bundle, "--minutes", "0", "--examples", "1"]
    subprocess.run([*command, "--json", file], cwd=REPOSITORY, stdout=subprocess.DEVNULL, timeout=300, check=False)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_a_round_of_made_up_requests_is_within_the_limits(plain_bundle: Path, tmp_path: Path) -> None:
    for _ in range(ENOUGH_TRIES):  # the machine may have other work at the time of any one
        result = one_round(plain_bundle, tmp_path)
        wrong = faults(result)
        if wrong != [f"a stall above {STALL_MS:g} ms"]:
            break
    assert not wrong, result["first_failures"]
    assert result["requests"] >= result["operations"] >= 30
    assert result["stall_ms"] > 0
    assert len(result["resident_mib"]) == result["rounds"] == 1


@pytest.mark.parametrize("name", GOOD)
def test_what_is_beyond_a_limit_is_found(name: str) -> None:
    assert faults(GOOD) == []
    assert len(faults(GOOD | {name: GOOD[name] + 0.01})) == 1


def test_growth_is_of_the_last_third_over_the_middle() -> None:
    assert growth([100.0]) == 0
    assert growth([50, 60, 100, 100, 100, 100]) == 0
    assert growth([50, 60, 100, 100, 110, 110]) == pytest.approx(0.1)
