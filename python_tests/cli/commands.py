"""Command lines that several test files use: a run of seconds, and the package to run them with."""

from __future__ import annotations

from pathlib import Path

import ddsm_ext

PACKAGE_ROOT = str(Path(ddsm_ext.__file__).resolve().parent.parent)
TINY = [
    "model.ch=8", "model.groups=4", "model.widths=1,0.5", "train.steps=3", "train.batch_size=8",
    "train.log_every=1", "train.warmup_steps=0", "sampler.steps=4", "search.pool=4",
    "search.population=4", "search.generations=2", "search.samples=8", "search.most_samples=8",
    "search.finalists=1", "search.final_samples=8", "search.budget_macs=0.6", "eval.images=32",
    "eval.ranges=1", "eval.batch_size=32",
]  # fmt: skip


# What the preset trained by when the first runs were made
EARLIER_RECIPE = ["train.distill_weight=0.5", "train.shared_noise=true"]


def sets(values: list[str]) -> list[str]:
    return [word for value in values for word in ("--set", value)]
