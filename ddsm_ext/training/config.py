"""Frozen settings of training and tuning; no torch, so that `--dry-run` is quick."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal, Settings, is_int, is_number
from ddsm_ext.training.loop_config import LoopConfig
from ddsm_ext.width import sorted_widths

AUGMENT_LABELS = 9  # numbers that tell how an image was augmented
LOSS_WEIGHTINGS = ("uniform", "min_snr", "min_snr_soft", "p2", "edm")
# The profile of the present time alone weighs nothing, and that of equal weights deviates by 0.289.
LEAST_EMA_LENGTH, GREATEST_EMA_LENGTH = 0.001, 0.28


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """One training run: what every training has, the sandwich rule and its losses."""

    longer: ClassVar[str] = (
        "`--extend {steps}` (Run.extend), which records where the rate restarts"
    )

    micro_batches: int = 1  # parts of a batch that run one after the other, for less memory
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

    # More averages, by the deviation of each one's profile over the training (arXiv 2312.02696)
    ema_lengths: tuple[float, ...] = ()

    accumulate_grad: bool = False  # let the network add into the prefix of p.grad itself
    # (step, steps until then, lr) where a run was given more steps: see `extended`
    extensions: tuple[tuple[int, int, float], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_int("micro_batches", 1)
        self._check_int("middle_widths", 0)
        start = self.start_from
        self._check("start_from", start is None or isinstance(start, str), "None or a run folder")
        self._check("micro_batches", self.micro_batches <= self.batch_size, "at most batch_size")
        self._check_widths()
        self._check("distill_weight", is_number(self.distill_weight, 0), "a number >= 0")
        self._check("augment", is_number(self.augment, 0, 1), "a number from 0 to 1")
        self._check("label_dropout", is_number(self.label_dropout, 0, 1), "a number from 0 to 1")
        self._check("min_snr_gamma", is_number(self.min_snr_gamma, 1e-3), "a number > 0")
        lengths = self.ema_lengths
        lengths_ok = isinstance(lengths, tuple) and all(
            is_number(length, LEAST_EMA_LENGTH, GREATEST_EMA_LENGTH) for length in lengths
        )
        need = f"numbers from {LEAST_EMA_LENGTH} to {GREATEST_EMA_LENGTH} that differ in 6 digits"
        different = lengths_ok and len({f"{length:g}" for length in lengths}) == len(lengths)
        self._check("ema_lengths", different, need)
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
        """Learning rate of a step, as of `LoopConfig` where the run has no extensions.

        Each extension begins another half cosine at its own rate, which stays where that is below
        `lr * lr_final`: no rate rises after the warm-up but where an extension begins.

        Args:
            step: 0-based.
        """
        first, high, last = self.warmup_steps, self.lr, self.steps
        for start, steps_before, lr in self.extensions:
            if step < start:
                last = steps_before
                break
            first, high = max(start, self.warmup_steps), lr
        return self._rate(step, first, high, last)

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
        return super().falls or any(lr > self.lr for _, _, lr in self.extensions)

    def continues(self, saved: Self, step: int) -> bool:
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
        return super().continues(saved, step)


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
