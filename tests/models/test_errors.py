"""What a command says of an error is one line, whoever raised it."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.bundle import BundleError, read_manifest
from models.errors import sentence_of
from models.vocabulary import Vocabulary


def raised(work: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any
        work()
    return caught.value


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (BundleError("it is\n damaged"), "it is damaged"),
        (BundleError(), "BundleError"),
        (FloatingPointError("training diverged in epoch 3"), "training diverged in epoch 3"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EACCES, "Permission denied", "a"), "a: Permission denied"),
        (OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), "a -> b: Cross-device link"),
        (FileNotFoundError("x does not exist"), "x does not exist"),
        (TimeoutError(), "TimeoutError"),
        (MemoryError(), "there is not enough memory"),
        (KeyError("x"), "a fault of Lacuna itself, KeyError: 'x'"),
        (sqlite3.OperationalError("no such\ntable"), "a fault of Lacuna itself, OperationalError: no such table"),
        (AssertionError(), "a fault of Lacuna itself, AssertionError"),
    ],
)
def test_an_error_in_one_line(error: Exception, sentence: str) -> None:
    assert sentence_of(error) == sentence


def test_errors_as_they_are_raised(tmp_path: Path) -> None:
    assert sentence_of(raised(lambda: (tmp_path / "x").read_bytes())) == f"{tmp_path}/x: No such file or directory"
    assert sentence_of(raised(lambda: read_manifest(tmp_path))) == f"{tmp_path} is no bundle: it has no manifest.json"
    assert sentence_of(raised(lambda: torch.empty(1 << 58))) == "there is not enough memory"


def test_a_fault_says_where_in_lacuna_it_is() -> None:
    fault = sentence_of(raised(lambda: Vocabulary([["not", "hashable"]])))  # type: ignore[list-item]
    assert fault.startswith("a fault of Lacuna itself, TypeError at models/vocabulary.py, line ")
    foreign = sentence_of(raised(lambda: json.loads("{")))
    assert foreign.startswith("a fault of Lacuna itself, JSONDecodeError: Expecting ")
