"""Which measurements make up the published tables, how long they take, and one of them run.

And a network that is timed beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ddsm_ext.bench.conditions import REFERENCE_CIFAR10, Setting, config_at
from ddsm_ext.bench.ops import run_ops
from ddsm_ext.bench.steps import prepare_steps
from ddsm_ext.bench.training_step import SANDWICH, run_training_step
from ddsm_ext.bench.unet_step import run_unet_step
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.count import macs as macs_of
from ddsm_ext.models.adm import ADMConfig
from ddsm_ext.models.edm import SongUNetConfig

# Guided diffusion's 64x64 class-conditional network, of what the CIFAR-10 U-Net has not: norms with
# a scale and a shift an image, halved and enlarged images, labels, several heads.
ADM_IMAGENET64 = ADMConfig(image_size=64, num_classes=1000)
# What `--network` names. ADM's U-Net at 64x64, EDM's DDPM++ and latent diffusion's of classes, of a
# size that is timed, and by torch.compile compiled, in minutes.
NETWORKS: dict[str, NetworkConfig] = {
    "cifar10": REFERENCE_CIFAR10,
    "adm64": ADMConfig(image_size=64, ch=64, num_res_blocks=1, dropout=0.0, num_classes=1000),
    "ddpmpp": SongUNetConfig(image_size=32, ch=64, num_res_blocks=2, dropout=0.0, groups=16),
    "ldm32": ADMConfig(
        image_size=32,
        image_channels=4,
        ch=96,
        ch_mult=(1, 2, 4),
        attn=(1, 2),
        num_res_blocks=1,
        head_channels=32,
        scale_shift=False,
        resample_blocks=False,
        learned_sigma=False,
        dropout=0.0,
        context_channels=512,
        num_classes=1000,
        null_class=True,
    ),
}
# 60 and 120 channels, which fill no block of 16 or 32: what a kernel pays for any width.
ODD_WIDTH = 0.46875
MODES = ("inference", "training", "layers")
GRID_WIDTHS = (1.0, 0.75, 0.5, ODD_WIDTH, 0.25)
GRID_CANDIDATES = ("slicing", "dense_cl", "compiled", "ours", "ours_module")
_COMPILE_S = 75.0  # a width, of the CIFAR-10 network on two cores of a Zen 3 EPYC


@dataclass(frozen=True)
class Job:
    """One measurement: `mode` is one of MODES; `candidates` and `widths` are for inference."""

    mode: str
    batch: int
    dtype: str
    threads: int
    rounds: int
    widths: tuple[float, ...] = GRID_WIDTHS
    candidates: tuple[str, ...] = GRID_CANDIDATES
    config: NetworkConfig = REFERENCE_CIFAR10
    device: str = "cpu"
    network: str = ""  # name of the config in results and texts; "": the one of the README

    def __str__(self) -> str:
        where = "a GPU" if self.device == "cuda" else f"{self.threads} threads"
        of = f" of {self.network}" if self.network else ""
        return f"{self.mode}{of}, batch {self.batch}, {self.dtype}, {where}"

    @property
    def setting(self) -> Setting:
        """Device, threads and arithmetic."""
        return Setting(self.dtype, self.threads, self.device)

    def run(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        limit_s: float = math.inf,
    ) -> dict[str, Any]:
        """Measure; returns what `run_unet_step`, `run_training_step` or `run_ops` does.

        Args:
            progress: called with (done, in all); None for silence.
            limit_s: layers that are not begun, and widths that are not compiled, in so many seconds
                are left out.
        """
        shared: dict[str, Any] = {
            "batch": self.batch,
            "rounds": self.rounds,
            "setting": self.setting,
            "config": self.config,
            "progress": progress,
        }
        result = self._run(limit_s, shared)
        if self.network:
            result["conditions"]["name"] = self.network
        return result

    def _run(self, limit_s: float, shared: dict[str, Any]) -> dict[str, Any]:
        if self.mode == "training":
            return run_training_step(**shared)
        if self.mode == "layers":
            return run_ops(self.widths, limit_s=limit_s, **shared)
        return run_unet_step(
            self.widths, candidates=self.candidates, compile_limit_s=limit_s, **shared
        )

    def estimate_s(self, macs_per_s: float) -> float:
        """Rough seconds that `run` takes where a slicing step makes so many MACs a second."""
        runs = self.rounds + 3  # warm-up, comparison, and peak memory or slack
        if self.mode == "training":
            macs = 2 * 3 * sum(macs_of(self.config, width) for width in SANDWICH)
            return runs * self.batch * macs / macs_per_s
        macs = sum(macs_of(config_at(self.config, width), width) for width in self.widths)
        candidates = 3 if self.mode == "layers" else len(self.candidates)
        compiled = self.mode == "inference" and "compiled" in self.candidates
        compile_s = _COMPILE_S * len(self.widths) if compiled else 0.0
        return runs * self.batch * candidates * macs / macs_per_s + compile_s


def grid_jobs(name: str, threads: int) -> list[Job]:
    """Return the jobs of a grid, the most telling ones first.

    Args:
        name: "quick" (float32, batch 1 and 8, three rounds) or "full" (also bfloat16 and batch 64,
            nine rounds up to batch 8).
        threads: torch threads.
    """
    if name not in ("quick", "full"):
        raise ValueError(f"grid is {name!r}; need quick or full")
    parts = [("inference", 8), ("inference", 1), ("training", 8), ("layers", 8), ("layers", 1)]
    if name == "quick":
        return [Job(mode, batch, "float32", threads, 3) for mode, batch in parts]
    return [
        Job(mode, batch, dtype, threads, 3 if batch == 64 else 9)
        for dtype in ("float32", "bfloat16")
        for mode, batch in [*parts, ("inference", 64)]
    ]


def slicing_macs_per_s(setting: Setting) -> float:
    """Return MACs a second of a slicing step at half width, from which a job is estimated."""
    batch, width, config = 8, 0.5, REFERENCE_CIFAR10
    with setting.active(), torch.no_grad():
        steps = prepare_steps(config, [width], ["slicing"], batch, setting)
        call = steps.ready[width, "slicing"].call
        call()
        clock = setting.timing["clock"]
        start = clock()
        call()
        return batch * macs_of(config, width) / (clock() - start)
