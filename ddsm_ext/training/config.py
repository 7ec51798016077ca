"""Frozen settings of training; no torch, so that `--dry-run` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddsm_ext.settings import Refusal, Settings, is_number
from ddsm_ext.width import sorted_widths


@dataclass(frozen=True)
class TrainConfig(Settings):
    """One training run: sandwich rule, optimiser, averaging and what is written when."""

    steps: int = 2000  # optimiser steps
    batch_size: int = 128  # images a step and rank
    seed: int = 0  # every random number derives from (seed, rank, step)
    start_from: str | None = None  # run whose averaged weights training begins with; None: random

    widths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)  # the first is the full width
    middle_widths: int = 1  # random widths a step between the largest and the smallest
    shared_noise: bool = True  # one (t, noise) for all widths of a step, or its own for each
    distill_weight: float = 0.0  # weight of the error to the full width's detached prediction
    loss_weighting: str = "uniform"  # "uniform", or "min_snr" (arXiv 2303.09556)
    min_snr_gamma: float = 5.0  # clip of the signal-to-noise ratio in "min_snr"

    optimizer: str = "adam"  # "adam" or "adamw"
    lr: float = 4e-4  # after warm-up
    warmup_steps: int = 100  # linear from lr / warmup_steps
    lr_final: float = 1.0  # factor on lr that a cosine reaches at the last step; 1: constant
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float | None = 1.0  # largest norm of the summed gradients; None: no clip
    ema_decay: float = 0.9999  # of the averaged weights
    ema_ramp: bool = True  # decay at step n is at most (1 + n) / (10 + n), for short runs

    autocast: str = "none"  # "none" or "bf16"
    accumulate_grad: bool = False  # let the network add into the prefix of p.grad itself
    workers: int = 0  # loader processes; 0: this one. The batches are the same
    max_bad_steps: int = 5  # non-finite steps in a row before training stops

    log_every: int = 10  # steps a row of log.jsonl averages
    sample_every: int = 500  # steps between sample grids; 0: only at the end
    checkpoint_every: int = 500
    keep: int = 2  # checkpoints kept

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "checkpoint_every",
            "keep",
            "log_every",
            "max_bad_steps",
        ):
            self._check_int(name, 1)
        for name in ("seed", "middle_widths", "warmup_steps", "workers", "sample_every"):
            self._check_int(name, 0)
        start = self.start_from
        self._check("start_from", start is None or isinstance(start, str), "None or a run folder")
        object.__setattr__(self, "widths", sorted_widths("TrainConfig", self.widths))
        self._check("lr", is_number(self.lr, 0) and self.lr > 0, "a number > 0")
        self._check("lr_final", is_number(self.lr_final, 0, 1), "a number from 0 to 1")
        self._check("weight_decay", is_number(self.weight_decay, 0), "a number >= 0")
        self._check("distill_weight", is_number(self.distill_weight, 0), "a number >= 0")
        self._check("min_snr_gamma", is_number(self.min_snr_gamma, 1e-3), "a number > 0")
        self._check("ema_decay", is_number(self.ema_decay, 0, 1), "a number from 0 to 1")
        clip_ok = self.grad_clip is None or (is_number(self.grad_clip, 0) and self.grad_clip > 0)
        self._check("grad_clip", clip_ok, "None or a number > 0")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        betas_ok = pair and all(is_number(beta, 0, 0.99999) for beta in self.betas)
        self._check("betas", betas_ok, "two numbers in [0, 1)")
        self._check_choice("optimizer", ("adam", "adamw"))
        self._check_choice("autocast", ("none", "bf16"))
        self._check_choice("loss_weighting", ("uniform", "min_snr"))
        if self.distill_weight and not self.shared_noise:
            raise Refusal(
                f"TrainConfig: distill_weight is {self.distill_weight} with shared_noise False; "
                "need shared_noise True, as the full width's prediction is the target"
            )

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then constant or half a cosine to `lr_final`.

        Args:
            step: 0-based.
        """
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.lr * (self.lr_final + (1 - self.lr_final) * cosine)

    def ema_decay_at(self, step: int) -> float:
        """Decay of the averaged weights after `step` (0-based)."""
        return min(self.ema_decay, (1 + step) / (10 + step)) if self.ema_ramp else self.ema_decay
