"""Frozen settings of data and training; no torch, so that `--dry-run` is quick."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


class _Config:
    """Dict round trip shared by the frozen settings below."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object; tuples become lists."""
        values = asdict(self)  # type: ignore[call-overload]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Settings of a JSON object.

        Raises:
            ValueError: a key is unknown, or a value is out of range.
        """
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"need one of {', '.join(known)}"
                raise ValueError(f"{cls.__name__}: unknown setting {key!r}; {hint}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _check(config: object, name: str, ok: bool, need: str) -> None:
    if not ok:
        value = getattr(config, name)
        raise ValueError(f"{type(config).__name__}: {name} is {value!r}; need {need}")


def _is_int(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_number(value: object, low: float, high: float = math.inf) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and low <= value <= high


@dataclass(frozen=True)
class DataConfig(_Config):
    """Which images, and how they become [C, image_size, image_size] uint8."""

    source: str = "digits"  # "digits", or a path: image folder, .zip, .tar[.gz|.xz|.bz2], CIFAR-10
    image_size: int | None = None  # pixels a side; None: as in the source (all must agree)
    channels: int | None = None  # 1 or 3; None: as in the source
    split: str = "train"  # "train", "test" or "all"
    held_out: float = 0.0  # fraction kept for "test" where the source has no test part of its own
    split_seed: int = 0  # which images are held out
    flip: bool | None = None  # random horizontal flips; None: all but digits
    limit: int | None = None  # first images only; None: all
    cache: str | None = None  # folder of decoded images, named by content; None: decode every time

    def __post_init__(self) -> None:
        size, channels = self.image_size, self.channels
        _check(self, "source", isinstance(self.source, str) and bool(self.source), "a name or path")
        _check(self, "image_size", size is None or _is_int(size, 4), "None or an int >= 4")
        _check(self, "channels", channels in (None, 1, 3), "None, 1 or 3")
        _check(self, "split", self.split in ("train", "test", "all"), "'train', 'test' or 'all'")
        _check(self, "held_out", _is_number(self.held_out, 0, 0.9), "a fraction from 0 to 0.9")
        _check(self, "split_seed", _is_int(self.split_seed, 0), "an int >= 0")
        _check(self, "flip", self.flip in (None, True, False), "None, True or False")
        _check(self, "limit", self.limit is None or _is_int(self.limit, 1), "None or an int >= 1")
        _check(self, "cache", self.cache is None or isinstance(self.cache, str), "None or a path")

    @property
    def flips(self) -> bool:
        """Whether training mirrors images: digits read differently in a mirror, photographs not."""
        return self.source != "digits" if self.flip is None else self.flip


@dataclass(frozen=True)
class TrainConfig(_Config):
    """One training run: sandwich rule, optimiser, averaging and what is written when."""

    steps: int = 2000  # optimiser steps
    batch_size: int = 128  # images a step and rank
    seed: int = 0  # every random number derives from (seed, rank, step)

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
        for name in ("steps", "batch_size", "checkpoint_every", "keep", "log_every"):
            _check(self, name, _is_int(getattr(self, name), 1), "an int >= 1")
        for name in ("seed", "middle_widths", "warmup_steps", "workers", "sample_every"):
            _check(self, name, _is_int(getattr(self, name), 0), "an int >= 0")
        _check(self, "max_bad_steps", _is_int(self.max_bad_steps, 1), "an int >= 1")
        object.__setattr__(self, "widths", self._sorted_widths())
        _check(self, "lr", _is_number(self.lr, 0) and self.lr > 0, "a number > 0")
        _check(self, "lr_final", _is_number(self.lr_final, 0, 1), "a number from 0 to 1")
        _check(self, "weight_decay", _is_number(self.weight_decay, 0), "a number >= 0")
        _check(self, "distill_weight", _is_number(self.distill_weight, 0), "a number >= 0")
        _check(self, "min_snr_gamma", _is_number(self.min_snr_gamma, 1e-3), "a number > 0")
        _check(self, "ema_decay", _is_number(self.ema_decay, 0, 1), "a number from 0 to 1")
        clip_ok = self.grad_clip is None or (_is_number(self.grad_clip, 0) and self.grad_clip > 0)
        _check(self, "grad_clip", clip_ok, "None or a number > 0")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        betas_ok = pair and all(_is_number(beta, 0, 0.99999) for beta in self.betas)
        _check(self, "betas", betas_ok, "two numbers in [0, 1)")
        _check(self, "optimizer", self.optimizer in ("adam", "adamw"), "'adam' or 'adamw'")
        _check(self, "autocast", self.autocast in ("none", "bf16"), "'none' or 'bf16'")
        weightings = ("uniform", "min_snr")
        _check(self, "loss_weighting", self.loss_weighting in weightings, "'uniform' or 'min_snr'")
        if self.distill_weight and not self.shared_noise:
            raise ValueError(
                f"TrainConfig: distill_weight is {self.distill_weight} with shared_noise False; "
                "need shared_noise True, as the full width's prediction is the target"
            )

    def _sorted_widths(self) -> tuple[float, ...]:
        widths = self.widths
        ok = isinstance(widths, tuple) and widths and all(_is_number(w, 0, 1) for w in widths)
        _check(self, "widths", bool(ok) and min(widths) > 0, "one or more numbers in (0, 1]")
        _check(self, "widths", len(set(widths)) == len(widths), "each width once")
        return tuple(sorted((float(w) for w in widths), reverse=True))

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
