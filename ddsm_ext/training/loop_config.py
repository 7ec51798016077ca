"""Frozen settings that every training has; no torch, so that `--dry-run` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

from ddsm_ext.settings import Settings, is_number


@dataclass(frozen=True)
class LoopConfig(Settings):
    """Steps, optimiser, averaging and what is written when; `training.session` runs by them."""

    # What errors advise where a checkpoint is of other settings, or of other steps on which the
    # rate depends
    anew: ClassVar[str] = "a new run (--new)"
    longer: ClassVar[str] = anew

    steps: int = 2000  # optimiser steps
    batch_size: int = 128  # images a step and rank
    seed: int = 0  # every random number derives from (seed, rank, step)

    optimizer: str = "adam"  # "adam" or "adamw"
    lr: float = 4e-4  # after warm-up
    warmup_steps: int = 100  # linear from lr / warmup_steps
    lr_final: float = 1.0  # factor on lr that half a cosine reaches after the last step; 1: none
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float | None = 1.0  # largest norm of the summed gradients; None: no clip
    ema_decay: float = 0.9999  # of the averaged weights
    ema_ramp: bool = True  # decay at step n is at most (1 + n) / (10 + n), for short runs

    autocast: str = "none"  # "none" or "bf16"
    workers: int = 0  # loader processes; 0: this one. The batches are the same
    max_bad_steps: int = 5  # non-finite steps in a row before training stops

    log_every: int = 10  # steps a row of log.jsonl averages
    sample_every: int = 500  # steps between pictures; 0: only at the end
    checkpoint_every: int = 500
    keep: int = 2  # checkpoints kept

    def __post_init__(self) -> None:
        for name in (
            "steps", "batch_size", "checkpoint_every", "keep", "log_every", "max_bad_steps",
        ):  # fmt: skip
            self._check_int(name, 1)
        for name in ("seed", "warmup_steps", "workers", "sample_every"):
            self._check_int(name, 0)
        self._check("lr", is_number(self.lr, 0) and self.lr > 0, "a number > 0")
        self._check("lr_final", is_number(self.lr_final, 0, 1), "a number from 0 to 1")
        self._check("weight_decay", is_number(self.weight_decay, 0), "a number >= 0")
        self._check("ema_decay", is_number(self.ema_decay, 0, 1), "a number from 0 to 1")
        clip_ok = self.grad_clip is None or (is_number(self.grad_clip, 0) and self.grad_clip > 0)
        self._check("grad_clip", clip_ok, "None or a number > 0")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        betas_ok = pair and all(is_number(beta, 0, 0.99999) for beta in self.betas)
        self._check("betas", betas_ok, "two numbers in [0, 1)")
        self._check_choice("optimizer", ("adam", "adamw"))
        self._check_choice("autocast", ("none", "bf16"))

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then constant or half a cosine to `lr_final`.

        The cosine reaches `lr * lr_final` after the last step, at `step = steps`, as torch's
        CosineAnnealingLR over the steps after the warm-up does: a last step at 0 would do nothing.

        Args:
            step: 0-based.
        """
        return self._rate(step, self.warmup_steps, self.lr, self.steps)

    def _rate(self, step: int, first: int, high: float, last: int) -> float:
        """Warm-up, then half a cosine from `high` to `lr * lr_final`, or none where that is more.

        Args:
            step: 0-based.
            first: step at which the cosine begins.
            high: rate there.
            last: step after the cosine's last.
        """
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - first) / max(1, last - first)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        final = min(1.0, self.lr_final * (self.lr / high))
        return high * (final + (1 - final) * cosine)

    @property
    def falls(self) -> bool:
        """Whether a rate depends on the number of steps."""
        return self.lr_final < 1

    def continues(self, saved: Self, step: int) -> bool:
        """Whether a checkpoint of `saved` after `step` steps leads to these steps and rates.

        More or fewer steps change no rate where it does not fall.
        """
        return self.steps == saved.steps or not self.falls

    def ema_decay_at(self, step: int) -> float:
        """Decay of the averaged weights after `step` (0-based)."""
        return min(self.ema_decay, (1 + step) / (10 + step)) if self.ema_ramp else self.ema_decay
