"""What a command says of an error: one sentence, whoever raised it."""

from __future__ import annotations

import traceback
from pathlib import Path

HOME = Path(__file__).parents[1]
OURS = ("models", "training", "service")


def sentence_of(error: BaseException) -> str:
    """One line. Lacuna's own errors are sentences; what else reaches this far is a fault of Lacuna: what, and where."""
    text = " ".join(str(error).split())
    if type(error).__module__.partition(".")[0] in (*OURS, "__main__") or isinstance(
        error, FloatingPointError
    ):  # training diverged
        return text or type(error).__name__
    if isinstance(error, OSError):
        return _of_system(error) or text or type(error).__name__
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:  # torch has its own
        return "there is not enough memory"
    return f"a fault of Lacuna itself, {type(error).__name__}{_place(error)}: {text}".rstrip(": ")


def _of_system(error: OSError) -> str:
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return ": ".join(filter(None, (names, error.strerror)))


def _place(error: BaseException) -> str:
    ours = [HOME / name for name in OURS]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if any(Path(frame.filename).is_relative_to(folder) for folder in ours):
            return f" at {Path(frame.filename).relative_to(HOME)}, line {frame.lineno}"
    return ""
