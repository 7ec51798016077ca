"""The machine and the versions that a run or a measurement was made with; imports none of them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
from datetime import UTC, datetime
from typing import Any

_PACKAGES = ("ddsm_ext", "torch", "numpy", "safetensors", "Pillow", "pymoo", "scikit-learn")


def machine_info(*, command: bool = True) -> dict[str, Any]:
    """Machine, interpreter and package versions, read without importing any of the packages.

    Args:
        command: whether to say the command line too, with the paths that it names.
    """
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "machine": platform.node(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        **({"command": sys.argv} if command else {}),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def memory_bytes() -> int:
    """Return the size of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
