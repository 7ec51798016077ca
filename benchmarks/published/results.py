"""Benchmark results as JSON files: one a processor, dtype, network and mode (CPU: also threads)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddsm_ext.io.files import read_json, write_json

_PRIVATE = ("machine", "command")  # host name and paths: results are published


def save_result(
    folder: Path, mode: str, machine: Mapping[str, Any], result: Mapping[str, Any]
) -> Path:
    """Write a result into its file, in place of an earlier one of the same network and batch.

    Args:
        folder: folder of results.
        mode: "inference", "training", "layers" or "width-curve".
        machine: `machine_info()` of the run, of which host name and command line are left out.
        result: what the benchmark returned.

    Returns:
        The file: {"mode": mode, "results": [result with "machine", by network and batch]}.
    """
    about = result["conditions"]
    if about["device"] == "cuda":
        name = f"{_slug(about['gpu'])}-{about['dtype']}"
    else:
        name = f"{_slug(machine['cpu'])}-{about['isa']}-{about['dtype']}-{about['threads']}t"
    # width curves of all networks are one table
    network = "" if mode == "width-curve" else about.get("name", "")
    path = Path(folder) / f"{'-'.join(filter(None, (name, network, mode)))}.json"
    kept = read_json(path)["results"] if path.exists() else []
    kept = [other for other in kept if _key(other) != _key(result)]
    machine = {key: value for key, value in machine.items() if key not in _PRIVATE}
    results = [*kept, {**result, "machine": machine}]
    results.sort(key=_key)
    return write_json(path, {"mode": mode, "results": results})


def _key(result: Mapping[str, Any]) -> tuple[str, int]:
    about = result["conditions"]
    return about.get("name", ""), about["batch"]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def load_results(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return (file, content) of every result in a folder, by name."""
    return [(path, read_json(path)) for path in sorted(Path(folder).glob("*.json"))]
