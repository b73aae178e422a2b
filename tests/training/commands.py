"""The `lacuna` command in this process (the fixture `lacuna`), and what it says."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]  # exit code, standard output, standard error


def refused(answer: tuple[int, str, str]) -> str:
    """The sentence of a refusal."""
    code, out, err = answer
    assert code == 2, err
    assert out == ""
    said = [line for line in err.splitlines() if line.startswith("lacuna: ")]
    assert len(said) == 1, err
    assert "Traceback" not in err
    assert "fault of Lacuna" not in err
    return said[0]
