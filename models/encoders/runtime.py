"""Runs a torch network through ONNX Runtime, which is 2-5 times faster than torch on one CPU core.

The graph is exported from the torch module itself, checked against it, and kept in a cache folder under a name that
carries its own checksum. Where the exporter or ONNX Runtime is missing or fails, torch computes the same vectors.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.arrays import Array
from models.bundle import file_sha256
from models.encoders.base import Network
from models.files import replacing

log = logging.getLogger(__name__)

_OPSET = 17
_TOLERANCE = 1e-3  # of the largest output value: float32 noise is 1e-6, a wrongly traced graph is off by far more
_exporting = Lock()  # the exporter and the warning filters are process-wide state


def compile_network(
    build: Callable[[], nn.Module],
    examples: Sequence[NDArray[Any]],
    *,
    key: str,
    dynamic_axes: Mapping[int, str] | None = None,
    cache_dir: Path | None = None,
) -> Network:
    """A function that computes a network of one input and one output on one core.

    Args:
        build: makes the torch module; only called where no usable graph is cached.
        examples: inputs to trace with (the first) and to compare torch and ONNX Runtime on (all).
        key: file name of the cached graph; must change with the weights and with the network's code.
        dynamic_axes: the input's axes whose length varies, by number.
        cache_dir: folder of exported graphs, made where needed; None exports anew at every start.
    """
    with _exporting:
        cached = _cached_graph(key, cache_dir)
        if cached is not None:
            return cached
        module = build().eval()
        try:
            return _export(module, examples, key, dict(dynamic_axes or {}), cache_dir)
        except Exception as error:  # noqa: BLE001 - whatever the exporter chokes on, torch gives the same vectors
            log.warning("%s runs on torch, which is slower: no ONNX graph could be made (%s)", key, error)
            return _torch_network(module)


def _cached_graph(key: str, cache_dir: Path | None) -> Network | None:
    if cache_dir is None or not cache_dir.is_dir():
        return None
    for file in cache_dir.glob(f"{key}.*.onnx"):
        try:
            if file_sha256(file) == file.name.split(".")[-2]:
                return _onnx_network(str(file))
        except Exception as error:  # noqa: BLE001 - an unreadable cache entry or no ONNX Runtime: start afresh
            log.warning("the cached graph %s cannot be used (%s)", file, error)
            continue
        log.warning("the cached graph %s is damaged and is made again", file)
        file.unlink(missing_ok=True)
    return None


def _export(
    module: nn.Module,
    examples: Sequence[NDArray[Any]],
    key: str,
    dynamic_axes: dict[int, str],
    cache_dir: Path | None,
) -> Network:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter is deprecated; its successor needs onnxscript
        torch.onnx.export(
            module,
            (torch.from_numpy(examples[0]),),
            buffer,  # type: ignore[arg-type]  # the TorchScript exporter takes a buffer, the stub does not say so
            dynamo=False,
            opset_version=_OPSET,
            input_names=["input"],
            output_names=["vector"],
            dynamic_axes={"input": dynamic_axes},
        )
    graph = buffer.getvalue()
    network, reference = _onnx_network(graph), _torch_network(module)
    for example in examples:
        expected = reference(example)
        if np.abs(network(example) - expected).max() > _TOLERANCE * np.abs(expected).max():
            raise RuntimeError("the exported graph computes something else")
    if cache_dir is not None:
        _store(graph, key, cache_dir)
    return network


def _store(graph: bytes, key: str, cache_dir: Path) -> None:
    """Put the graph in place in one step; a folder that cannot be written only costs the next start some time."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with replacing(cache_dir / f"{key}.{sha256(graph).hexdigest()}.onnx") as file:
            file.write_bytes(graph)
    except OSError as error:
        log.warning("the graph of %s was not cached (%s)", key, error)


def _onnx_network(graph: bytes | str) -> Network:
    import onnxruntime  # here, since without it torch takes over

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(value: NDArray[Any]) -> Array:
        vector: Array = session.run(None, {name: value})[0]
        return vector

    return run


def _torch_network(module: nn.Module) -> Network:
    """The fallback. Here one item uses as many cores as torch has been given."""

    def run(value: NDArray[Any]) -> Array:
        with torch.inference_mode():
            vector: Array = module(torch.from_numpy(value)).numpy()
        return vector

    return run
