"""The diffusion process as a frozen config; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ddsm_ext.settings import Refusal, Settings, is_int

SCHEDULES = ("linear", "cosine")
PARAMETERISATIONS = ("epsilon", "x0", "v")


@dataclass(frozen=True)
class DiffusionConfig(Settings):
    """Noise schedule and what the network predicts.

    Args:
        schedule: "linear" in beta (Ho et al. 2020, section 4) or "cosine" in alpha-bar (Nichol &
            Dhariwal 2021, eq. 17).
        timesteps: T, at least 2; t = 0 is the least noisy step.
        beta_start: beta at t = 0 (linear schedule only), 0 < beta_start <= beta_end.
        beta_end: beta at t = T - 1 (linear schedule only), below 1; used as given for every T.
        parameterisation: "epsilon" (the noise), "x0" (the image) or "v" (Salimans & Ho 2022).

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of range.
    """

    schedule: str = "linear"
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    parameterisation: str = "epsilon"

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
