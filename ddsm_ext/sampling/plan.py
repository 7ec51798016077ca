"""The plan of a sampling run: which timesteps, noise levels and widths, with all coefficients.

Everything here is computed once per run in float64; a sampler only multiplies and adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddsm_ext.diffusion.config import PARAMETERISATIONS
from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.strategy import Strategy, as_strategy
from ddsm_ext.settings import Refusal, check_choice


@dataclass(frozen=True)
class Step:
    """One network evaluation of a sampler.

    Args:
        t: timestep that the network is given.
        t_prev: timestep that the step arrives at, below `t`; None for the clean image.
        log_snr: noise level at `t`.
        width: width that the strategy gives this noise level.
    """

    t: int
    t_prev: int | None
    log_snr: float
    width: float


@dataclass(frozen=True)
class Coefficients:
    """A step as two linear maps around the network's prediction p of (x_t, t).

    x0 = x0_from_x · x_t + x0_from_prediction · p, clipped if the sampler clips, then
    x_prev = x · x_t + x0 · x0 + noise · z with standard normal z.
    """

    x0_from_x: float
    x0_from_prediction: float
    x: float
    x0: float
    noise: float


def plan_timesteps(timesteps: int, sampler: SamplerConfig) -> list[int]:
    """Return the timesteps a sampler visits, from noisy to clean.

    Args:
        timesteps: T of the schedule.
        sampler: its `steps` and `spacing` choose among 0 .. T - 1.

    Raises:
        ValueError: more steps than T.
    """
    count = timesteps if sampler.steps is None else sampler.steps
    if count > timesteps:
        raise Refusal(
            f"plan_timesteps: steps is {count}, the schedule has {timesteps} timesteps; "
            f"need steps <= {timesteps}"
        )
    last = timesteps - 1
    if sampler.spacing == "leading":
        chosen = [i * timesteps // count for i in range(count)]
    elif sampler.spacing == "trailing":
        chosen = [-(-(i + 1) * timesteps // count) - 1 for i in range(count)]
    elif count == 1:
        chosen = [last]
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
    return chosen[::-1]


def plan_steps(
    schedule: NoiseSchedule, strategy: Strategy | float, sampler: SamplerConfig
) -> list[Step]:
    """Return the steps of a sampler in the order in which they run.

    Args:
        strategy: width per noise level, or one width for all.
        sampler: kind, step count and spacing.

    Raises:
        ValueError: the sampler's steps do not fit the schedule.
    """
    strategy = as_strategy(strategy)
    visited = plan_timesteps(schedule.timesteps, sampler)
    steps = []
    for t, t_prev in zip(visited, [*visited[1:], None], strict=True):
        log_snr = schedule.log_snrs[t].item()
        steps.append(Step(t, t_prev, log_snr, strategy.width_at(log_snr)))
    return steps


def plan_log_snrs(schedule: NoiseSchedule, sampler: SamplerConfig) -> list[float]:
    """Return the noise level of each step of a sampler, noisy to clean."""
    return [schedule.log_snrs[t].item() for t in plan_timesteps(schedule.timesteps, sampler)]


def plan_coefficients(
    schedule: NoiseSchedule,
    steps: list[Step],
    sampler: SamplerConfig,
    parameterisation: str,
) -> list[Coefficients]:
    """Return the float64 coefficients of every step of a plan.

    Args:
        schedule: the noise schedule that the plan was made for.
        steps: `plan_steps` output.
        sampler: kind, variance and eta.
        parameterisation: what the network predicts: "epsilon", "x0" or "v".
    """
    check_choice("plan_coefficients: parameterisation", parameterisation, PARAMETERISATIONS)
    log_ab = schedule.log_alphas_bar
    result = []
    for step in steps:
        log_ab_t = log_ab[step.t].item()
        from_x, from_prediction = _x0_map(log_ab_t, parameterisation)
        if step.t_prev is None:  # alpha-bar of the clean image is 1: both samplers return x0
            result.append(Coefficients(from_x, from_prediction, 0.0, 1.0, 0.0))
            continue
        log_ab_prev = log_ab[step.t_prev].item()
        move = _ancestral_move if sampler.kind == "ddpm" else _ddim_move
        result.append(Coefficients(from_x, from_prediction, *move(log_ab_t, log_ab_prev, sampler)))
    return result


def _x0_map(log_ab: float, parameterisation: str) -> tuple[float, float]:
    """Coefficients of x_t and of the prediction in x0 (see `diffusion.parameterisation`)."""
    alpha, sigma = math.exp(0.5 * log_ab), math.sqrt(-math.expm1(log_ab))
    if parameterisation == "epsilon":
        return 1.0 / alpha, -sigma / alpha
    if parameterisation == "v":
        return alpha, -sigma
    return 0.0, 1.0


def _ancestral_move(
    log_ab_t: float, log_ab_prev: float, sampler: SamplerConfig
) -> tuple[float, float, float]:
    """Coefficients of x_t, x0 and the noise in an ancestral step, strided ones included.

    Source: Ho et al. 2020, eq. 7 with beta = 1 - alpha-bar_t / alpha-bar_prev (Nichol & Dhariwal
    2021, eq. 19); variance as in section 3.2 there.
    """
    var_t, var_prev = -math.expm1(log_ab_t), -math.expm1(log_ab_prev)
    beta = -math.expm1(log_ab_t - log_ab_prev)
    variance = beta if sampler.variance == "fixed_large" else beta * var_prev / var_t
    coef_x = math.exp(0.5 * (log_ab_t - log_ab_prev)) * var_prev / var_t
    coef_x0 = math.exp(0.5 * log_ab_prev) * beta / var_t
    return coef_x, coef_x0, math.sqrt(variance)


def _ddim_move(
    log_ab_t: float, log_ab_prev: float, sampler: SamplerConfig
) -> tuple[float, float, float]:
    """Coefficients of x_t, x0 and the noise in a DDIM step.

    epsilon is (x_t - sqrt(alpha-bar_t) x0) / sqrt(1 - alpha-bar_t) with the x0 that is used, so
    that a clipped x0 and its epsilon still add up to x_t.

    Source: Song et al. 2021, eq. 12 and 16.
    """
    var_t, var_prev = -math.expm1(log_ab_t), -math.expm1(log_ab_prev)
    noise_variance = sampler.eta**2 * var_prev / var_t * -math.expm1(log_ab_t - log_ab_prev)
    coef_x = math.sqrt(max(var_prev - noise_variance, 0.0) / var_t)
    coef_x0 = math.exp(0.5 * log_ab_prev) - coef_x * math.exp(0.5 * log_ab_t)
    return coef_x, coef_x0, math.sqrt(noise_variance)
