"""Checkpoints as one safetensors file: a tree of dicts, lists, numbers, strings and tensors; nothing is pickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.files import replacing

_TENSOR = "tensor:"


class CheckpointError(ValueError):
    """A file that is no usable checkpoint."""


def save(path: Path, tree: dict[str, Any]) -> None:
    """Write a tree atomically: a crash leaves the previous checkpoint or the new one, never half of one."""
    tensors: dict[str, Tensor] = {}
    skeleton = _strip(tree, "", tensors)
    metadata = {"tree": json.dumps(skeleton)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(tensors or {"empty": torch.zeros(1)}, temporary, metadata=metadata)


def load(path: Path) -> dict[str, Any]:
    """Read a tree back.

    Raises:
        CheckpointError: the file is damaged or none of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            skeleton = json.loads((file.metadata() or {})["tree"])
            # Copies: inside the file tensors lie unaligned, and matrix products of those round differently.
            tree = _fill(skeleton, {key: file.get_tensor(key).clone() for key in file.keys()})  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is no usable checkpoint: {error}") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} is no usable checkpoint: it holds no tree")
    return tree


def _strip(node: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        tensors[name] = node.detach().cpu().clone().contiguous()
        return _TENSOR + name
    if isinstance(node, dict):
        # JSON has string keys only; optimisers number their parameters.
        return {
            "dict": [[key, _strip(value, f"{name}/{key}", tensors)] for key, value in node.items()],
        }
    if isinstance(node, list | tuple):
        return {"list": [_strip(value, f"{name}/{place}", tensors) for place, value in enumerate(node)]}
    return node


def _fill(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, str) and node.startswith(_TENSOR):
        return tensors[node.removeprefix(_TENSOR)]
    if isinstance(node, dict):
        if "dict" in node:
            return {key: _fill(value, tensors) for key, value in node["dict"]}
        return [_fill(value, tensors) for value in node["list"]]
    return node
