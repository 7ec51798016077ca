"""Demos: small trained networks that the package holds, each made a run of the user's by name."""

from __future__ import annotations

import shutil
from pathlib import Path

from ddsm_ext.run.folder import CONFIG_FILE, config_of, list_runs
from ddsm_ext.run.importing import new_run
from ddsm_ext.settings import check_choice

DEMOS = Path(__file__).parents[1] / "demos"
WEIGHTS_FILE = "weights.safetensors.index.json"


def demo_names() -> list[str]:
    """Names of the demos."""
    return sorted(path.parent.name for path in DEMOS.glob(f"*/{CONFIG_FILE}"))


def demo_folder(name: str) -> Path:
    """Return the folder of a demo: that of a run, with packed weights for checkpoints.

    Raises:
        ValueError: there is no such demo.
    """
    return DEMOS / check_choice("demo", name, demo_names())


def demo_run(root: str | Path, name: str) -> Path:
    """Return the run of a demo, made where there is none of the same weights.

    Args:
        root: folder of runs; made when missing.
        name: of the demo, and of the run.

    Raises:
        ValueError: there is no such demo.
    """
    from ddsm_ext.io.checkpoint import load_newest
    from ddsm_ext.io.weights import load_shards

    folder = demo_folder(name)
    tensors, about = load_shards(folder / WEIGHTS_FILE)
    (weights,) = about["sha256"]  # a file that is named by its content
    for run in reversed(list_runs(root)):
        if run.name.partition("-")[2] == name:
            newest = load_newest(run, (), on_damage=lambda _: None)
            if newest is not None and newest.state.get("source") == weights:
                return run

    def add(run: Path) -> None:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.copytree(path, run / path.name)
            elif path.suffix == ".json" and path.name not in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(path, run / path.name)

    floats = {key: tensor.float() for key, tensor in tensors.items()}
    return new_run(root, name, config_of(folder), floats, about["step"], weights, add)
