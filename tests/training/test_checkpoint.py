"""Checkpoints: the same tree comes back, damage is told, a crash leaves the old one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from training import checkpoint
from training.checkpoint import CheckpointError


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right) and type(left) is type(right)


def test_round_trip(tmp_path: Path) -> None:
    tree = {
        "weights": {"a": torch.randn(3, 2), "b": torch.tensor(1.5), "none": torch.zeros(0, 4)},
        "kinds": [torch.arange(3), torch.tensor([True, False]), torch.ByteTensor([1, 255])],
        "state": {0: {"step": torch.tensor(3.0)}, 1: {}},  # optimisers number their parameters
        "numbers": {"big": 2**127 + 1, "small": -1e-9, "off": None, "on": True, "far": math.inf},
        "words": ["", "dict", "list", "ü"],
        "empty": {},
        "nothing": [],
    }
    checkpoint.save(tmp_path / "deep" / "run.checkpoint", tree)
    assert same(tree, checkpoint.load(tmp_path / "deep" / "run.checkpoint"))
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["run.checkpoint"]


def test_a_tree_without_tensors(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", {"epoch": 3})
    assert checkpoint.load(tmp_path / "c") == {"epoch": 3}


def test_shared_and_strided_tensors(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    checkpoint.save(tmp_path / "c", {"whole": whole, "part": whole[:, 1:], "turned": whole.T, "again": whole})
    tree = checkpoint.load(tmp_path / "c")
    assert torch.equal(tree["turned"], whole.T)
    assert torch.equal(tree["part"], whole[:, 1:])
    assert torch.equal(tree["again"], whole)


@pytest.mark.parametrize("name", ["Adam", "generator", "rng"])
def test_what_training_keeps(tmp_path: Path, name: str) -> None:
    """Each goes on exactly as the original does."""
    weights = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([weights], lr=0.1)
    weights.grad = torch.tensor([1.0, 2.0, 3.0])
    adam.step()
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    rng = np.random.default_rng(3)
    rng.random(5)
    states = {"Adam": adam.state_dict(), "generator": generator.get_state(), "rng": rng.bit_generator.state}
    checkpoint.save(tmp_path / "c", {"state": states[name], "weights": weights})
    tree = checkpoint.load(tmp_path / "c")
    if name == "Adam":
        copy = torch.nn.Parameter(tree["weights"])
        other = torch.optim.Adam([copy], lr=0.5)
        other.load_state_dict(tree["state"])
        for optimiser, parameter in ((adam, weights), (other, copy)):
            parameter.grad = torch.tensor([3.0, -1.0, 0.5])
            optimiser.step()
        assert torch.equal(copy, weights)
    elif name == "generator":
        assert torch.equal(
            torch.rand(4, generator=torch.Generator().set_state(tree["state"])), torch.rand(4, generator=generator)
        )
    else:
        other_rng = np.random.default_rng()
        other_rng.bit_generator.state = tree["state"]
        assert other_rng.random() == rng.random()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "foreign", "no tree"])
def test_damaged_file(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "c"
    checkpoint.save(file, {"a": torch.ones(100)})
    match damage:
        case "empty":
            file.write_bytes(b"")
        case "cut":
            file.write_bytes(file.read_bytes()[:-50])
        case "text":
            file.write_text("hello, this is no checkpoint")
        case "foreign":
            save_file({"a": torch.ones(2)}, file)
        case "no tree":
            save_file({"a": torch.ones(2)}, file, metadata={"tree": "3"})
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        checkpoint.load(file)


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c"
    checkpoint.save(file, {"epoch": 1})
    with pytest.raises(TypeError):
        checkpoint.save(file, {"epoch": object()})
    assert checkpoint.load(file) == {"epoch": 1}
    monkeypatch.setattr(checkpoint, "save_file", _half_written)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(file, {"epoch": 2})
    assert checkpoint.load(file) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [file]


def _half_written(_tensors: object, file: Path, **_: object) -> None:
    file.write_bytes(b"half of a checkpoint")
    raise OSError(28, "No space left on device")
