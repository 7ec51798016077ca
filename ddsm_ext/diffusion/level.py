"""A noise level as plain numbers. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """A noise level, as plain numbers: x = alpha x0 + sigma epsilon.

    log alpha and sigma² are kept, and not alpha and sigma: alpha_t / alpha_s and sigma_t² are then
    exact to the last bits where squares of roots are not.

    Args:
        t: timestep of the schedule; an int, or a float between two timesteps.
        log_snr: log(alpha² / sigma²), by which a strategy chooses the width; inf for `CLEAN`.
        log_alpha: log of the image's scale; 0 throughout where noise is added without scaling.
        variance: sigma² of the noise.
    """

    t: float
    log_snr: float
    log_alpha: float
    variance: float

    @property
    def alpha(self) -> float:
        """Scale of the image."""
        return math.exp(self.log_alpha)

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise; 0 for the clean image."""
        return math.sqrt(self.variance)

    @property
    def total_variance(self) -> float:
        """alpha² + sigma², the variance of x for images of variance 1."""
        return math.exp(2.0 * self.log_alpha) + self.variance

    @property
    def preserves_variance(self) -> bool:
        """True where sigma² is 1 - alpha², but for rounding."""
        return math.isclose(self.variance, -math.expm1(2.0 * self.log_alpha), rel_tol=1e-6)


# The image itself, where every sampler ends: one step below t = 0, the least noisy timestep.
CLEAN = Level(t=-1, log_snr=math.inf, log_alpha=0.0, variance=0.0)
