"""The noise levels that a sampler visits, and what it evaluates there."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddsm_ext.diffusion.level import CLEAN, Level
from ddsm_ext.diffusion.prediction import Prediction, prediction_named
from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.denoiser import Evaluation, evaluation_at
from ddsm_ext.sampling.guidance import Guidance
from ddsm_ext.sampling.method import Method
from ddsm_ext.sampling.samplers import SAMPLERS
from ddsm_ext.sampling.strategy import Strategy, as_strategy
from ddsm_ext.settings import Refusal, TypeRefusal

_ANY_LABEL = 0  # what a dry run guides away from, of no network
# Of a step's sigmas, in units of the images where they are more or less than 1. Measured with the
# exact denoiser of a mixture: Heun's images have up to 1.1 times their standard deviation at 20, 4
# times at 35; at the cosine schedule's first step of ten, 600, they are noise.
_GREATEST_RATIO = 25.0
# A power of two, so that multiplying by it and dividing by it again is exact
_SMALL = 2.0**-20


def noise_levels(schedule: NoiseSchedule, sampler: SamplerConfig) -> list[Level]:
    """Return the levels a sampler visits, from noisy to clean, and where it ends: `CLEAN`, or with
    `final` "sigma_min" the cleanest level.

    Raises:
        ValueError: the sampler's steps, offset or sigmas do not fit the schedule.
    """
    steps = schedule.timesteps if sampler.steps is None else sampler.steps
    if steps > schedule.timesteps:
        raise Refusal(
            f"sample: steps is {steps}, the schedule has {schedule.timesteps} timesteps; "
            f"need steps <= {schedule.timesteps}"
        )
    ends_noisy = sampler.final == "sigma_min"
    # Of a spacing with both ends the last level takes the place of the clean image.
    to_the_end = sampler.spacing not in ("leading", "trailing")
    count = steps + (ends_noisy and to_the_end)
    if sampler.spacing in ("karras", "exponential", "log_snr"):
        levels = [schedule.level_at(log_snr) for log_snr in _log_snrs(schedule, sampler, count)]
    else:
        levels = [schedule.level(t) for t in _timesteps(schedule.timesteps, sampler, count)]
    if ends_noisy and not to_the_end:
        if levels[-1].t == 0:
            offset = "a steps_offset, " * (sampler.spacing == "leading")
            raise Refusal(
                f"sample: spacing {sampler.spacing!r} with {steps} steps visits t = 0, where final "
                f"'sigma_min' ends; need fewer steps, {offset}or final 'zero'"
            )
        levels.append(schedule.level(0))
    _warn_of_ratio(sampler, levels)
    return levels if ends_noisy else [*levels, CLEAN]


def _warn_of_ratio(sampler: SamplerConfig, levels: Sequence[Level]) -> None:
    """Warn of the first step that the sampler does not bear."""
    if not SAMPLERS[sampler.kind].by_sigma(sampler):
        return
    sigmas = [math.exp(-0.5 * level.log_snr) for level in levels]
    for here, there in itertools.pairwise(sigmas):
        if here * min(here, 1.0) > _GREATEST_RATIO * there * max(there, 1.0):
            warnings.warn(
                f"{sampler.kind}: a step leads from sigma {here:.3g} to {there:.3g}, which takes "
                "more than its order; need sampler.spacing 'karras' with a sigma_max of about 80, "
                "more steps, or another sampler",
                stacklevel=3,
            )
            return


def _timesteps(timesteps: int, sampler: SamplerConfig, count: int) -> list[float]:
    """`count` of the timesteps 0 to T - 1, or between them, from noisy to clean."""
    last = timesteps - 1
    if count > timesteps and sampler.spacing != "uniform":
        raise Refusal(
            f"sample: final is 'sigma_min' with {count - 1} steps and one level more to end at, "
            f"the schedule has {timesteps} timesteps; need steps < {timesteps}"
        )
    if sampler.spacing == "leading":
        chosen = [i * timesteps // count + sampler.steps_offset for i in range(count)]
        if chosen[-1] > last:
            raise Refusal(
                f"sample: steps_offset is {sampler.steps_offset} with {count} steps, the first at "
                f"t = {chosen[-1]}; need t <= {last}"
            )
    elif sampler.spacing == "trailing":
        chosen = [-(-(i + 1) * timesteps // count) - 1 for i in range(count)]
    elif count == 1:
        chosen = [last]
    elif sampler.spacing == "uniform":
        return [last * i / (count - 1) for i in reversed(range(count))]
    elif sampler.spacing == "linspace":
        # Integer rounding half up: spacing >= 1, so that no two of them coincide.
        chosen = [(2 * i * last + count - 1) // (2 * (count - 1)) for i in range(count)]
    else:
        square = (count - 1) ** 2
        chosen = [(2 * i * i * last + square) // (2 * square) for i in range(count)]
        # The first squares lie closer than 1 when steps > sqrt(T): move repeats up to the next.
        # Squares are convex, so that the last one stays T - 1.
        for i in range(1, count):
            chosen[i] = max(chosen[i], chosen[i - 1] + 1)
    return [*reversed(chosen)]


def _log_snrs(schedule: NoiseSchedule, sampler: SamplerConfig, count: int) -> list[float]:
    """`count` log-SNRs from that of `sigma_max` to that of `sigma_min`, or of the schedule's ends.

    Source: Karras et al. 2022, eq. 5; evenly in log sigma, it is the limit of an infinite rho.
    """
    noisy, clean = (schedule.level(t).log_snr for t in (schedule.timesteps - 1, 0))
    least, greatest = math.exp(-0.5 * clean), math.exp(-0.5 * noisy)
    for name in ("sigma_min", "sigma_max"):
        value = getattr(sampler, name)
        if value is not None and not least * (1 - 1e-9) <= value <= greatest * (1 + 1e-9):
            raise Refusal(
                f"sample: {name} is {value:g}; need {least:.4g} <= {name} <= {greatest:.4g}, the "
                "schedule's"
            )
    if sampler.sigma_max is not None:
        noisy, greatest = -2.0 * math.log(sampler.sigma_max), sampler.sigma_max
    if sampler.sigma_min is not None:
        clean, least = -2.0 * math.log(sampler.sigma_min), sampler.sigma_min
    if least >= greatest:
        raise Refusal(
            f"sample: sigma_min is {least:.4g}, sigma_max is {greatest:.4g}; need sigma_min < "
            "sigma_max"
        )
    if count == 1:
        return [noisy]
    shares = [i / (count - 1) for i in range(1, count - 1)]  # the ends stay exact
    if sampler.spacing != "karras":
        return [noisy, *(noisy + share * (clean - noisy) for share in shares), clean]
    rho = 7.0 if sampler.rho is None else float(sampler.rho)
    start, end = greatest ** (1.0 / rho), least ** (1.0 / rho)
    sigmas = [(start + share * (end - start)) ** rho for share in shares]
    return [noisy, *(-2.0 * math.log(sigma) for sigma in sigmas), clean]


def check_levels(levels: Sequence[Level]) -> list[Level]:
    """Return `levels` as a list if they run from noisy to clean and end with the clean image.

    Raises:
        TypeError: one is no level.
        ValueError: naming what is wrong.
    """
    levels = list(levels) if isinstance(levels, Iterable) else [levels]
    if not all(isinstance(level, Level) for level in levels):
        raise TypeRefusal(
            f"sample: levels is {levels!r}; need Levels, as `schedule.level(t)` gives"
        )
    if len(levels) < 2 or levels[-1].variance != 0.0:
        end = f"end at sigma {levels[-1].sigma:g}" if levels else "are none"
        raise Refusal(f"sample: levels {end}; need one or more noisy ones, then CLEAN")
    for here, there in itertools.pairwise(levels):
        if not here.log_snr < there.log_snr:
            raise Refusal(
                f"sample: a level of log-SNR {here.log_snr:g} is followed by {there.log_snr:g}; "
                "need it rising, noisy to clean"
            )
    return levels


def configured(sampler: SamplerConfig, schedule: NoiseSchedule) -> Method:
    """Return the function that `sampler.kind` names, with its options set.

    What it evaluates between levels, or with noise added at the first one, is a level of the
    schedule; beyond the schedule's noise the network is told the last timestep.
    """
    row = SAMPLERS[sampler.kind]
    options = {name: getattr(sampler, name) for name in row.options}
    said = {name: value for name, value in options.items() if value is not None}
    if row.between:
        said["level_at"] = functools.partial(schedule.level_at, clamp=True)
    return functools.partial(row.method, **said)


def dry_run(
    method: Method,
    levels: Sequence[Level],
    strategy: Strategy | float = 1.0,
    guidance: Guidance | None = None,
) -> list[Evaluation]:
    """Run a sampler on a single number: what it evaluates."""
    zero = torch.zeros((), dtype=torch.float64, device="cpu")
    denoise = _DryDenoiser(as_strategy(strategy), zero, guidance=guidance)
    with torch.no_grad():
        method(denoise, zero.clone(), levels, lambda: zero)
    return denoise.found


@dataclass
class _DryDenoiser:
    """Notes the evaluations that a sampler asks for.

    Args:
        strategy: width per noise level.
        like: the learned variance is of its shape, halfway.
        image: (x, level) -> x0; None for 0 times x, of which a sampler may ask for the gradient.
        guidance: what runs beside the network.
    """

    strategy: Strategy
    like: Tensor
    image: Callable[[Tensor, Level], Tensor] | None = None
    guidance: Guidance | None = None
    found: list[Evaluation] = field(default_factory=list)

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        x0 = 0.0 * x if self.image is None else self.image(x, level)
        evaluation = evaluation_at(len(self.found), level, self.strategy, self.guidance)
        self.found.append(evaluation)
        return x0

    def width_at(self, level: Level) -> float:
        return self.strategy.width_at(level.log_snr)

    def variance_fraction(self) -> Tensor:
        return torch.full_like(self.like, 0.5)

    def gradient(self) -> None:
        return None


def evaluations(
    schedule: NoiseSchedule,
    sampler: SamplerConfig,
    strategy: Strategy | float = 1.0,
    *,
    method: Method | None = None,
    levels: Sequence[Level] | None = None,
) -> list[Evaluation]:
    """Return the network evaluations of one image in their order: t, log-SNR and widths of each.

    Args:
        schedule: the noise schedule that the network was trained with.
        sampler: kind, step count and spacing.
        strategy: width per noise level, or one width for all.
        method: a sampler function of your own, in place of the one that `sampler.kind` names.
        levels: noise levels of your own, in place of the sampler's steps and spacing.

    Raises:
        ValueError: the sampler's steps do not fit the schedule, or the levels do not end clean.
    """
    levels = noise_levels(schedule, sampler) if levels is None else check_levels(levels)
    method = method or configured(sampler, schedule)
    return dry_run(method, levels, strategy, sampler.guidance_by(_ANY_LABEL))


def prediction_gains(
    schedule: NoiseSchedule,
    sampler: SamplerConfig,
    parameterisation: str | Prediction,
    *,
    method: Method | None = None,
    levels: Sequence[Level] | None = None,
) -> list[float]:
    """Return what the sampler makes of the network's output at each evaluation of an image.

    The gain is the derivative of the image that the next evaluation sees (after the last one: the
    image that is returned) by this evaluation's output, the image in units in which its signal and
    noise have a variance of 1. For DDIM and DDPM this is the coefficient of x0 in the step times
    that of the output in x0. An error e of the output thus moves the next image by gain x e. Where
    it is guided the gain has the scale as a factor: errors of the two halves are not the same (on
    the digits their correlation is 0.1 to 0.7, and what guidance makes of them 0.7 to 1.2 times
    scale x e).

    Args:
        schedule: the noise schedule that the network was trained with.
        sampler: kind, step count and spacing.
        parameterisation: what the network predicts, as in `sample`.
        method: a sampler function of your own, in place of the one that `sampler.kind` names.
        levels: noise levels of your own, in place of the sampler's steps and spacing.

    Returns:
        [S] one an evaluation, in their order.

    Raises:
        ValueError: the sampler's steps do not fit the schedule, or the levels do not end clean.
    """
    levels = noise_levels(schedule, sampler) if levels is None else check_levels(levels)
    method = method or configured(sampler, schedule)
    row = prediction_named("prediction_gains: parameterisation", parameterisation)
    count = len(dry_run(method, levels))
    # Pixel i's output is other than 0 at evaluation i alone, and too small to be clipped: what the
    # pixel is next is the gain. No derivative is taken, which a sampler may have switched off.
    outputs = _SMALL * torch.eye(count, dtype=torch.float64, device="cpu")  # [S, S]
    zero = torch.zeros(count, dtype=torch.float64, device="cpu")  # [S]
    gains: list[float] = []  # the first says nothing, as no evaluation was before it

    def note(x: Tensor, level: Level) -> None:
        pixel = float(x[len(gains) - 1])
        gains.append(pixel / (_SMALL * math.hypot(level.alpha, level.sigma)))

    def image(x: Tensor, level: Level) -> Tensor:
        output = outputs[len(gains)]
        note(x, level)
        from_x, from_prediction = row.x0_map(level)
        return from_x * x + from_prediction * output

    denoise = _DryDenoiser(Strategy.constant(1.0), zero, image)
    with torch.no_grad():
        note(method(denoise, zero.clone(), levels, lambda: zero), levels[-1])
    guided = dry_run(method, levels, guidance=sampler.guidance_by(_ANY_LABEL))
    factors = [1.0 if run.weak_width is None else sampler.guidance for run in guided]
    return [gain * factor for gain, factor in zip(gains[1:], factors, strict=True)]
