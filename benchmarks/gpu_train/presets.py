"""What is trained, searched and scored: settings over those of `ddsm train --preset cifar10`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Settings = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Preset:
    """Settings of a run, and how its samples are scored."""

    name: str
    about: str
    settings: Settings
    equal_width: float  # the constant width whose MACs a strategy may have, and is compared with
    ranges: int  # ranges of `eval.images` seeds, on each of which every sampler is scored
    needs_gpu: bool = True
    threads: int | None = None  # of the processor; None: as many as it has

    def resolved(self, data: Path, features: Path, work: Path, equal_cost: float) -> Settings:
        """Return the settings with the paths of one run.

        Args:
            data: archive or folder of images.
            features: classifier file.
            work: folder of decoded images and their statistics.
            equal_cost: MACs of `equal_width` as a share of the full width's.
        """
        values = copy.deepcopy(self.settings)
        values["data"] |= {"source": str(data), "cache": str(work / "cache")}
        reference = str(work / "reference.npz")
        values["eval"] |= {"features": f"classifier:{features}", "reference": reference}
        values["search"] |= {"budget_macs": equal_cost}
        return values


# Rates of change and noise for minutes, not days: v and min-SNR-5 (arXiv 2303.09556) learn faster
# than the paper's epsilon; a constant rate and an average let a run end at any step and go on.
_CIFAR10: Settings = {
    "model": {"ch": 96, "dropout": 0.0},
    "diffusion": {"schedule": "cosine", "parameterisation": "v"},
    "data": {"split": "train", "image_size": 32, "channels": 3},
    "train": {
        "steps": 1_000_000,
        "batch_size": 512,
        "lr": 5e-4,
        "warmup_steps": 200,
        "ema_decay": 0.9995,
        "loss_weighting": "min_snr",
        "autocast": "bf16",
        "accumulate_grad": True,
        "workers": 2,
        "log_every": 25,
        "sample_every": 0,
        "checkpoint_every": 300,
        "keep": 2,  # the newest is read while the next is written
    },
    "sampler": {"kind": "ddim", "steps": 50, "dtype": "bfloat16"},
    "search": {"pool": 24, "population": 8, "generations": 3, "finalists": 6},
    "eval": {"images": 4096, "sensitivity_images": 512, "batch_size": 512},
}

_TINY: Settings = {
    "model": {
        "ch": 8,
        "ch_mult": [1, 2],
        "attn": [],
        "num_res_blocks": 1,
        "groups": 4,
        "dropout": 0.0,
    },
    "diffusion": _CIFAR10["diffusion"],
    "data": _CIFAR10["data"],
    "train": _CIFAR10["train"]
    | {"batch_size": 16, "warmup_steps": 20, "workers": 0, "log_every": 5, "checkpoint_every": 20},
    "sampler": {"kind": "ddim", "steps": 6, "dtype": "bfloat16"},
    "search": {
        "pool": 8,
        "population": 4,
        "generations": 2,
        "samples": 32,
        "most_samples": 32,
        "finalists": 2,
        "final_samples": 32,
    },
    "eval": {"images": 128, "sensitivity_images": 16, "batch_size": 32},
}

CIFAR10 = Preset("cifar10", "96 channels, 20 M parameters, batch 512", _CIFAR10, 0.75, 3)
# Its layers are too small for two threads to share, the more so on a machine that is not idle.
TINY = Preset("tiny", "a trial of the plan on a CPU, no result", _TINY, 0.75, 2, False, threads=1)
PRESETS = (CIFAR10, TINY)
