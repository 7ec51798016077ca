"""The demos of the package: weights of a study in bfloat16, with what its search found."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from gpu_train.shards import save_shards

from ddsm_ext.io.checkpoint import load_newest
from ddsm_ext.io.digest import sealed
from ddsm_ext.io.files import write_json
from ddsm_ext.run import Run
from ddsm_ext.run.config import merge
from ddsm_ext.run.demos import WEIGHTS_FILE
from ddsm_ext.settings import plain
from step_aware.study import Study

_LARGEST = 8_000_000  # bytes of a file of weights
# What a demo has of a run's search: the others say how it was found
_SEARCH = ("strategy.json", "steps.json", "front.json", "costs.json", "reverse.json",
           "two-segments.json")  # fmt: skip


def pack(study: Study, folder: Path) -> None:
    """Write the demos "photographs", tuned for its strategy, and "photographs-supernet"."""
    study.choose_sampler()
    strategy = study.searched(study.preset.targets[-1])
    for name, run in (
        ("photographs", study.tuned(strategy)),
        ("photographs-supernet", study.run),
    ):
        _pack(run, study, folder / name)


def _pack(run: Run, study: Study, folder: Path) -> None:
    """Write a run's averaged weights, settings and search."""
    (folder / "search").mkdir(parents=True, exist_ok=True)
    checkpoint = load_newest(run.folder, ("ema",))
    assert checkpoint is not None
    weights = {name: each.to(torch.bfloat16) for name, each in checkpoint.tensors["ema"].items()}
    about = {"step": checkpoint.step}
    save_shards(folder / WEIGHTS_FILE, weights, max_bytes=_LARGEST, about=about)
    # the name of the images, not where they lay
    source = {"data": {"source": study.run.dataset.name, "cache": None}}
    write_json(folder / "config.json", sealed(merge(plain(run.config), source)))
    for name in ("classes.json", *(f"search/{name}" for name in _SEARCH)):
        if (run.folder / name).exists():
            shutil.copy(run.folder / name, folder / name)
