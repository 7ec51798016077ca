"""Sampler settings as a frozen config; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ddsm_ext.diffusion.config import check_choice, check_keys

KINDS = ("ddpm", "ddim")
VARIANCES = ("fixed_large", "fixed_small")
SPACINGS = ("linspace", "leading", "trailing", "quadratic")


@dataclass(frozen=True)
class SamplerConfig:
    """Which sampler runs over which timesteps.

    Args:
        kind: "ddpm" (ancestral sampling, Ho et al. 2020, algorithm 2) or "ddim" (Song et al. 2021).
        steps: network evaluations an image, 1 <= steps <= T; None takes all T. Fewer steps stride
            the chain (Nichol & Dhariwal 2021, section 4).
        eta: DDIM only, 0 <= eta <= 1: 0 is deterministic, 1 equals "ddpm" with "fixed_small".
        variance: DDPM only: "fixed_large" (beta_t) or "fixed_small" (posterior variance).
        clip_denoised: clip each predicted x0 to [-1, 1]. False reproduces the published DDSM
            results, whose code computes the clipped image but does not use it.
        spacing: which `steps` of the T timesteps are used, K = steps:
            "linspace": round(i (T - 1) / (K - 1)), both ends included (K = 1: T - 1);
            "leading": floor(i T / K), starts from 0; "trailing": ceil((i + 1) T / K) - 1, ends at
            T - 1; "quadratic": both ends, spaced as i² (Song et al. 2021, appendix D.2).

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of range.
    """

    kind: str = "ddpm"
    steps: int | None = None
    eta: float = 0.0
    variance: str = "fixed_large"
    clip_denoised: bool = True
    spacing: str = "linspace"

    def __post_init__(self) -> None:
        check_choice("SamplerConfig: kind", self.kind, KINDS)
        check_choice("SamplerConfig: variance", self.variance, VARIANCES)
        check_choice("SamplerConfig: spacing", self.spacing, SPACINGS)
        if self.steps is not None:
            if isinstance(self.steps, bool) or not isinstance(self.steps, int):
                raise TypeError(f"SamplerConfig: steps is {self.steps!r}; need an int >= 1 or None")
            if self.steps < 1:
                raise ValueError(f"SamplerConfig: steps is {self.steps}; need at least 1")
        if isinstance(self.eta, bool) or not isinstance(self.eta, (int, float)):
            raise TypeError(f"SamplerConfig: eta is {self.eta!r}; need a number in [0, 1]")
        if not (math.isfinite(self.eta) and 0.0 <= self.eta <= 1.0):
            raise ValueError(f"SamplerConfig: eta is {self.eta}; need 0 <= eta <= 1")
        if self.kind == "ddpm" and self.eta != 0.0:
            raise ValueError(
                f"SamplerConfig: eta is {self.eta} with kind 'ddpm'; eta belongs to kind 'ddim'"
            )
        if not isinstance(self.clip_denoised, bool):
            raise TypeError(
                f"SamplerConfig: clip_denoised is {self.clip_denoised!r}; need True or False"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplerConfig:
        """Build a config from `to_dict()` output; missing keys take their defaults.

        Raises:
            ValueError: for an unknown key, with the closest known one.
        """
        check_keys("SamplerConfig", values, tuple(f.name for f in fields(cls)))
        return cls(**values)
