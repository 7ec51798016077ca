"""The diffusion process as a frozen config; imports no torch."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from ddsm_ext.settings import Refusal, Settings, is_int

SCHEDULES = ("linear", "cosine", "scaled_linear", "edm")
PARAMETERISATIONS = ("epsilon", "x0", "v", "edm", "vp", "ve", "iddpm", "flow")
# Sampling starts from noise alone. At this log-SNR the last training images still have 8 % of the
# clean image's scale; the usual 1000 linear steps end at -10.1, with 0.6 %.
GREATEST_LAST_LOG_SNR = -5.0
_MOST_TERMS = 1000  # of the sum over timesteps; of more, evenly spaced ones stand for all


@dataclass(frozen=True)
class DiffusionConfig(Settings):
    """Noise schedule and what the network predicts.

    Args:
        schedule: "linear" in beta (Ho et al. 2020, section 4), "cosine" in alpha-bar (Nichol &
            Dhariwal 2021, eq. 17), "scaled_linear" in the root of beta (latent diffusion), or
            "edm": noise is added without scaling the image, sigma even in log sigma (Karras et
            al. 2022).
        timesteps: T, at least 2; t = 0 is the least noisy step.
        beta_start: beta at t = 0 (linear schedules only), 0 < beta_start <= beta_end.
        beta_end: beta at t = T - 1 (linear schedules only), below 1; used as given for every T, as
            published checkpoints were trained. The defaults are for T = 1000: a schedule that does
            not end in noise is warned about.
        parameterisation: "epsilon" (the noise), "x0" (the image), "v" (Salimans & Ho 2022), "flow"
            (noise minus image, Lipman et al. 2023), or the preconditioning of an EDM network:
            "edm", "vp", "ve", "iddpm" (Karras et al. 2022, table 1).
        rescale_timesteps: the network is given t 1000 / T, as improved-diffusion trains it
            ("epsilon", "x0" and "v" only).
        sigma_min: sigma at t = 0 ("edm" schedule only), 0 < sigma_min < sigma_max.
        sigma_max: sigma at t = T - 1 ("edm" schedule only).
        sigma_data: standard deviation of the images ("edm" parameterisation only), above 0.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of range.
    """

    schedule: str = "linear"
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    parameterisation: str = "epsilon"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rescale_timesteps: bool = False

    def __post_init__(self) -> None:
        self._check_choice("schedule", SCHEDULES)
        self._check_choice("parameterisation", PARAMETERISATIONS)
        self._check_type("timesteps", is_int(self.timesteps), "an int >= 2")
        self._check("timesteps", self.timesteps >= 2, "at least 2")
        for name in ("beta_start", "beta_end"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            self._check_type(name, number, "a number in (0, 1)")
            self._check(name, 0 < value < 1, "a number in (0, 1)")
        if self.beta_start > self.beta_end:
            raise Refusal(
                f"DiffusionConfig: beta_start is {self.beta_start}, beta_end is {self.beta_end}; "
                "need beta_start <= beta_end"
            )
        for name in ("sigma_min", "sigma_max", "sigma_data"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            self._check_type(name, number, "a number in [1e-6, 1e6]")
            self._check(name, 1e-6 <= value <= 1e6, "a number in [1e-6, 1e6]")
        rescaled = self.rescale_timesteps
        self._check_type("rescale_timesteps", isinstance(rescaled, bool), "True or False")
        if rescaled and self.parameterisation not in ("epsilon", "x0", "v"):
            raise Refusal(
                "DiffusionConfig: rescale_timesteps is True with parameterisation "
                f"{self.parameterisation!r}; need 'epsilon', 'x0' or 'v', whose networks take t"
            )
        if self.sigma_min >= self.sigma_max:
            raise Refusal(
                f"DiffusionConfig: sigma_min is {self.sigma_min}, sigma_max is {self.sigma_max}; "
                "need sigma_min < sigma_max"
            )
        warn_unless_noise(self.timesteps, self._last_log_snr())

    def _last_log_snr(self) -> float:
        """Log-SNR at t = T - 1; the cosine's is below -6.9 for every T."""
        if self.schedule == "cosine":
            return -math.inf
        if self.schedule == "edm":
            return -2.0 * math.log(self.sigma_max)
        power = 2.0 if self.schedule == "scaled_linear" else 1.0
        first, last = self.beta_start ** (1.0 / power), self.beta_end ** (1.0 / power)
        terms = min(self.timesteps, _MOST_TERMS)
        step = (last - first) / (terms - 1)
        each = math.fsum(math.log1p(-((first + step * t) ** power)) for t in range(terms)) / terms
        log_alpha_bar = self.timesteps * each
        return log_alpha_bar - math.log(-math.expm1(log_alpha_bar))


def warn_unless_noise(timesteps: int, last_log_snr: float) -> None:
    """Warn of a schedule whose noisiest images still show the clean one; once for each text."""
    if last_log_snr > GREATEST_LAST_LOG_SNR:
        warnings.warn(
            f"the noise schedule of {timesteps} timesteps ends at log-SNR {last_log_snr:.2f}, "
            f"where images are not noise yet, and sampling starts from noise; need "
            f"{GREATEST_LAST_LOG_SNR:g} or less: more timesteps, larger betas (for fewer timesteps "
            "than 1000 by as much) or sigma_max, or the cosine schedule",
            stacklevel=1,
        )
