"""Loads what lies in benchmarks/, which is on no import path: its names are too common for one."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load(name: str, file: Path, folder: Path | None = None) -> ModuleType:
    """Import a file as the module `name`; as a package, if `folder` holds its other modules."""
    places = None if folder is None else [str(folder)]
    spec = spec_from_file_location(name, file, submodule_search_locations=places)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


for package in ("published", "gpu_suite", "gpu_train", "step_aware"):
    folder = ROOT / "benchmarks" / package
    load(package, folder / "__init__.py", folder)
