"""Frozen settings of training and tuning; no torch, so that `--dry-run` is quick."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal, Settings, is_int, is_number
from ddsm_ext.width import sorted_widths

AUGMENT_LABELS = 9  # numbers that tell how an image was augmented
LOSS_WEIGHTINGS = ("uniform", "min_snr", "min_snr_soft", "p2", "edm")
# The profile of the present time alone weighs nothing, and that of equal weights deviates by 0.289.
LEAST_EMA_LENGTH, GREATEST_EMA_LENGTH = 0.001, 0.28


@dataclass(frozen=True)
class TrainConfig(Settings):
    """One training run: sandwich rule, optimiser, averaging and what is written when."""

    steps: int = 2000  # optimiser steps
    batch_size: int = 128  # images a step and rank
    micro_batches: int = 1  # parts of a batch that run one after the other, for less memory
    seed: int = 0  # every random number derives from (seed, rank, step)
    start_from: str | None = None  # run whose averaged weights training begins with; None: random

    widths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)  # the first is the full width
    width_weights: tuple[float, ...] | None = None  # of each width's loss; None: 1 each
    middle_widths: int = 1  # random widths a step between the largest and the smallest
    middle_choice: str = "uniform"  # among them, or "budget": by a uniform share of the cost
    # One (t, noise) for all widths of a step, or its own for each, as every narrow one has where
    # `t_importance` draws its t.
    shared_noise: bool = True
    distill_weight: float = 0.0  # weight w of the distance d to the teacher at narrow widths
    distill_balanced: bool = False  # (loss + w d) / (1 + w), which weighs as the full width's loss
    teacher: str = "live"  # "live": the step's weights, "ema": their average, "origin": tuned from
    t_importance: float = 0.0  # share of a narrow width's t drawn by its error to the teacher
    loss_weighting: str = "uniform"  # one of LOSS_WEIGHTINGS, see `training.losses.WEIGHTINGS`
    min_snr_gamma: float = 5.0  # clip of the signal-to-noise ratio in "min_snr" and "min_snr_soft"
    p2_gamma: float = 1.0  # of "p2"
    p2_k: float = 1.0
    edm_sigma_data: float = 0.5  # standard deviation of the images, of "edm"
    variance_weight: float = 0.001  # lambda of the variational bound, of learned variances
    # Drawn "uniform" over t, or "log_normal": log(sigma / alpha) from N(p_mean, p_std^2)
    noise_levels: str = "uniform"
    p_mean: float = -1.2
    p_std: float = 1.2
    augment: float = 0.0  # probability of each of EDM's augmentations, of which the network is told
    # Share of the images that a network with a null class sees as of that (arXiv 2207.12598)
    label_dropout: float = 0.1

    optimizer: str = "adam"  # "adam" or "adamw"
    lr: float = 4e-4  # after warm-up
    warmup_steps: int = 100  # linear from lr / warmup_steps
    lr_final: float = 1.0  # factor on lr that half a cosine reaches after the last step; 1: none
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float | None = 1.0  # largest norm of the summed gradients; None: no clip
    ema_decay: float = 0.9999  # of the averaged weights
    ema_ramp: bool = True  # decay at step n is at most (1 + n) / (10 + n), for short runs
    # More averages, by the deviation of each one's profile over the training (arXiv 2312.02696)
    ema_lengths: tuple[float, ...] = ()

    autocast: str = "none"  # "none" or "bf16"
    accumulate_grad: bool = False  # let the network add into the prefix of p.grad itself
    workers: int = 0  # loader processes; 0: this one. The batches are the same
    max_bad_steps: int = 5  # non-finite steps in a row before training stops
    # (step, steps until then, lr) where a run was given more steps: see `extended`
    extensions: tuple[tuple[int, int, float], ...] = ()

    log_every: int = 10  # steps a row of log.jsonl averages
    sample_every: int = 500  # steps between sample grids; 0: only at the end
    checkpoint_every: int = 500
    keep: int = 2  # checkpoints kept

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "micro_batches",
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
        self._check("micro_batches", self.micro_batches <= self.batch_size, "at most batch_size")
        self._check_widths()
        self._check("lr", is_number(self.lr, 0) and self.lr > 0, "a number > 0")
        self._check("lr_final", is_number(self.lr_final, 0, 1), "a number from 0 to 1")
        self._check("weight_decay", is_number(self.weight_decay, 0), "a number >= 0")
        self._check("distill_weight", is_number(self.distill_weight, 0), "a number >= 0")
        self._check("augment", is_number(self.augment, 0, 1), "a number from 0 to 1")
        self._check("label_dropout", is_number(self.label_dropout, 0, 1), "a number from 0 to 1")
        self._check("min_snr_gamma", is_number(self.min_snr_gamma, 1e-3), "a number > 0")
        self._check("ema_decay", is_number(self.ema_decay, 0, 1), "a number from 0 to 1")
        lengths = self.ema_lengths
        lengths_ok = isinstance(lengths, tuple) and all(
            is_number(length, LEAST_EMA_LENGTH, GREATEST_EMA_LENGTH) for length in lengths
        )
        need = f"numbers from {LEAST_EMA_LENGTH} to {GREATEST_EMA_LENGTH} that differ in 6 digits"
        different = lengths_ok and len({f"{length:g}" for length in lengths}) == len(lengths)
        self._check("ema_lengths", different, need)
        clip_ok = self.grad_clip is None or (is_number(self.grad_clip, 0) and self.grad_clip > 0)
        self._check("grad_clip", clip_ok, "None or a number > 0")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        betas_ok = pair and all(is_number(beta, 0, 0.99999) for beta in self.betas)
        self._check("betas", betas_ok, "two numbers in [0, 1)")
        self._check_choice("optimizer", ("adam", "adamw"))
        self._check_choice("autocast", ("none", "bf16"))
        self._check_choice("loss_weighting", LOSS_WEIGHTINGS)
        self._check_choice("noise_levels", ("uniform", "log_normal"))
        for name in ("p2_gamma", "variance_weight"):
            self._check(name, is_number(getattr(self, name), 0), "a number >= 0")
        for name in ("p2_k", "edm_sigma_data", "p_std"):
            self._check(name, is_number(getattr(self, name), 1e-6), "a number > 0")
        self._check("p_mean", is_number(self.p_mean, -20, 20), "a number from -20 to 20")
        self._check_choice("middle_choice", ("uniform", "budget"))
        self._check_choice("teacher", ("live", "ema", "origin"))
        share_ok = is_number(self.t_importance, 0) and self.t_importance < 1
        self._check("t_importance", share_ok, "a number >= 0 and below 1")
        if self.distill_weight and self.teacher == "live" and not self.shared_noise:
            raise Refusal(
                f"TrainConfig: distill_weight is {self.distill_weight} with shared_noise False; "
                "need shared_noise True or teacher='ema', as the live full width predicts from its "
                "own noise"
            )
        if self.t_importance and self.teacher != "ema":
            raise Refusal(
                f"TrainConfig: t_importance is {self.t_importance} with teacher {self.teacher!r}; "
                "need teacher='ema', which predicts at each width's own t"
            )
        if self.t_importance and self.noise_levels != "uniform":
            raise Refusal(
                f"TrainConfig: t_importance is {self.t_importance} with noise_levels "
                f"{self.noise_levels!r}; need 'uniform', from which it departs"
            )
        self._check_extensions()

    def _check_widths(self) -> None:
        """Sort the widths, and their weights with them."""
        given = tuple(self.widths) if isinstance(self.widths, tuple | list) else self.widths
        object.__setattr__(self, "widths", sorted_widths("TrainConfig", self.widths))
        weights = self.width_weights
        if weights is None:
            return
        count = len(self.widths)
        listed = isinstance(weights, tuple) and len(weights) == count
        ok = listed and all(is_number(weight, 0) for weight in weights) and any(weights)
        self._check("width_weights", ok, f"None or {count} numbers >= 0, one a width, not all 0")
        by_width = dict(zip(map(float, given), weights, strict=True))
        object.__setattr__(self, "width_weights", tuple(by_width[w] for w in self.widths))

    def _check_extensions(self) -> None:
        need = "(step, steps until then, lr) each, in the order of their steps"
        rows = self.extensions
        triples = isinstance(rows, tuple) and all(
            isinstance(row, tuple | list) and len(row) == 3 for row in rows
        )
        self._check("extensions", triples, need)
        object.__setattr__(self, "extensions", tuple(tuple(row) for row in rows))
        last, totals = 0, [*(row[1] for row in rows), self.steps]
        for (step, before, lr), after in zip(rows, totals[1:], strict=True):
            ok = is_int(step, last) and is_int(before, max(1, step)) and is_int(after, before + 1)
            self._check("extensions", ok and is_number(lr, 0) and lr > 0, need)
            last = step

    def weight_of(self, width: float) -> float:
        """Weight of a width's loss; 1 of a width of a strategy that is none of `widths`."""
        weights = self.width_weights or ()
        return dict(zip(self.widths, weights, strict=False)).get(width, 1.0)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then constant or half a cosine to `lr_final`.

        The cosine reaches `lr * lr_final` after the last step, at `step = steps`, as torch's
        CosineAnnealingLR over the steps after the warm-up does: a last step at 0 would do nothing.
        Each extension begins another half cosine at its own rate, which stays where that is below
        `lr * lr_final`: no rate rises after the warm-up but where an extension begins.

        Args:
            step: 0-based.
        """
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        first, high, last = self.warmup_steps, self.lr, self.steps
        for start, steps_before, lr in self.extensions:
            if step < start:
                last = steps_before
                break
            first, high = max(start, self.warmup_steps), lr
        done = (step - first) / max(1, last - first)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        final = min(1.0, self.lr_final * (self.lr / high))
        return high * (final + (1 - final) * cosine)

    def extended(self, step: int, steps: int, lr: float | None = None) -> TrainConfig:
        """Return these settings with more steps, of a run that has done `step` steps.

        Args:
            step: where the learning rate begins to fall again.
            steps: in all, more than now.
            lr: rate there; None takes half of `lr`, or what the schedule has there if that is more.

        Raises:
            ValueError: there would be no more steps than now, or the rate is refused.
        """
        if steps <= self.steps:
            raise Refusal(f"extend: steps is {steps}, the run has {self.steps}; need more")
        if lr is None:
            lr = max(0.5 * self.lr, self.lr_at(max(step, self.warmup_steps)))
        more = (*self.extensions, (step, self.steps, lr))
        return dataclasses.replace(self, steps=steps, extensions=more)

    @property
    def falls(self) -> bool:
        """Whether a rate depends on the number of steps."""
        return self.lr_final < 1 or any(lr > self.lr for _, _, lr in self.extensions)

    def continues(self, saved: TrainConfig, step: int) -> bool:
        """Whether a checkpoint of `saved` after `step` steps leads to these steps and rates.

        More or fewer steps change no rate where it does not fall; otherwise an extension from that
        step on, or from a later one, has to say so.
        """
        known = len(saved.extensions)
        if self.extensions[:known] != saved.extensions:
            return False
        later = self.extensions[known:]
        if later:
            same = later[0][1] == saved.steps or not saved.falls
            return same and later[0][0] >= step
        return self.steps == saved.steps or not self.falls

    def ema_decay_at(self, step: int) -> float:
        """Decay of the averaged weights after `step` (0-based)."""
        return min(self.ema_decay, (1 + step) / (10 + step)) if self.ema_ramp else self.ema_decay


@dataclass(frozen=True)
class TuneConfig(Settings):
    """What a run is tuned for; without widths it is a training of all widths.

    Args:
        origin: the run that it begins with, a folder beside it; its averaged weights count.
        origin_step: step of that run's checkpoint.
        origin_weights: SHA-256 of the weights.
        widths: of the strategy, from noisy to clean; none: no tuning.
        cuts: of the strategy, log-SNR.
        sandwich_share: share of the steps that train by the sandwich rule, for the other widths.

    Raises:
        ValueError: a value is out of range, or widths and cuts make no strategy.
    """

    origin: str | None = None
    origin_step: int | None = None
    origin_weights: str | None = None
    widths: tuple[float, ...] = ()
    cuts: tuple[float, ...] = ()
    sandwich_share: float = 0.1

    def __post_init__(self) -> None:
        self._check("sandwich_share", is_number(self.sandwich_share, 0, 1), "a number from 0 to 1")
        self._check_int("origin_step", 0, optional=True)
        for name in ("origin", "origin_weights"):
            value = getattr(self, name)
            self._check(name, value is None or isinstance(value, str), "None or a text")
        if self.widths or self.cuts:
            strategy = Strategy(self.widths, self.cuts)
            object.__setattr__(self, "widths", strategy.widths)
            object.__setattr__(self, "cuts", strategy.cuts)

    @property
    def strategy(self) -> Strategy | None:
        """The strategy; None: no tuning."""
        return Strategy(self.widths, self.cuts) if self.widths else None
