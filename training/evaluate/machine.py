"""What a result ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, threads, versions and the accelerator if one was used, as every result carries them."""
    packages = ("torch", "numpy", "scipy", "lacuna")
    versions: Mapping[str, str] = {"python": platform.python_version()} | {name: version(name) for name in packages}
    facts = {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": dict(versions),
    }
    return facts if device == "cpu" else facts | {"accelerator": torch.cuda.get_device_name(device)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
