"""The diffusion process as a frozen config; imports no torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

SCHEDULES = ("linear", "cosine")
PARAMETERISATIONS = ("epsilon", "x0", "v")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`.

    Raises:
        ValueError: naming the argument, the value, the choices and the closest one.
    """
    if isinstance(value, str) and value in choices:
        return value
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{name} is {value!r}; need one of {', '.join(map(repr, choices))}{hint}")


def check_keys(what: str, values: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse keys outside `known`.

    Raises:
        ValueError: naming the first unknown key and the closest known one.
    """
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(known)}"
            raise ValueError(f"{what} has no setting {key!r}{hint}")


@dataclass(frozen=True)
class DiffusionConfig:
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
        check_choice("DiffusionConfig: schedule", self.schedule, SCHEDULES)
        check_choice("DiffusionConfig: parameterisation", self.parameterisation, PARAMETERISATIONS)
        if isinstance(self.timesteps, bool) or not isinstance(self.timesteps, int):
            raise TypeError(f"DiffusionConfig: timesteps is {self.timesteps!r}; need an int >= 2")
        if self.timesteps < 2:
            raise ValueError(f"DiffusionConfig: timesteps is {self.timesteps}; need at least 2")
        for name in ("beta_start", "beta_end"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"DiffusionConfig: {name} is {value!r}; need a number in (0, 1)")
            if not (math.isfinite(value) and 0.0 < value < 1.0):
                raise ValueError(f"DiffusionConfig: {name} is {value}; need a number in (0, 1)")
        if self.beta_start > self.beta_end:
            raise ValueError(
                f"DiffusionConfig: beta_start is {self.beta_start}, beta_end is {self.beta_end}; "
                "need beta_start <= beta_end"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiffusionConfig:
        """Build a config from `to_dict()` output; missing keys take their defaults.

        Raises:
            ValueError: for an unknown key, with the closest known one.
        """
        check_keys("DiffusionConfig", values, tuple(f.name for f in fields(cls)))
        return cls(**values)
