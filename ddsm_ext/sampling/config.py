"""Sampler settings as a frozen config; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ddsm_ext.sampling.samplers import SAMPLERS
from ddsm_ext.settings import Refusal, Settings, is_int

VARIANCES = ("fixed_large", "fixed_small", "learned")
SPACINGS = ("linspace", "leading", "trailing", "quadratic")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class SamplerConfig(Settings):
    """Which sampler runs over which timesteps.

    Args:
        kind: a row of `samplers.SAMPLERS`: "ddpm" (ancestral sampling, Ho et al. 2020, algorithm 2)
            or "ddim" (Song et al. 2021).
        steps: noise levels visited, 1 <= steps <= T; None takes all T. Fewer steps stride the
            chain (Nichol & Dhariwal 2021, section 4).
        eta: DDIM only, 0 <= eta <= 1: 0 is deterministic, 1 equals "ddpm" with "fixed_small".
        variance: DDPM only: "fixed_large" (beta_t), "fixed_small" (posterior variance) or
            "learned", between the two by what the network says (Nichol & Dhariwal 2021, eq. 15).
        clip_denoised: clip each predicted x0 to [-1, 1]. False clips nothing at all, as latents
            need and as the published DDSM results were made (their code computes the clipped image
            but does not use it); pixels are clipped where they become uint8.
        spacing: which `steps` of the T timesteps are used, K = steps:
            "linspace": round(i (T - 1) / (K - 1)), both ends included (K = 1: T - 1);
            "leading": floor(i T / K), starts from 0; "trailing": ceil((i + 1) T / K) - 1, ends at
            T - 1; "quadratic": both ends, spaced as i² (Song et al. 2021, appendix D.2).
        dtype: "float32" or "bfloat16", in which the network and its weights compute; the image
            itself stays in float32.
        classes: labels of the images, in turn by their seeds, for a network that takes labels; ():
            all that it knows.

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
    dtype: str = "float32"
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._check_choice("kind", SAMPLERS)
        self._check_choice("variance", VARIANCES)
        self._check_choice("spacing", SPACINGS)
        self._check_choice("dtype", DTYPES)
        if self.steps is not None:
            self._check_type("steps", is_int(self.steps), "an int >= 1 or None")
            self._check("steps", self.steps >= 1, "at least 1")
        number = isinstance(self.eta, int | float) and not isinstance(self.eta, bool)
        self._check_type("eta", number, "a number in [0, 1]")
        self._check("eta", 0 <= self.eta <= 1, "0 <= eta <= 1")
        owners = [kind for kind, row in SAMPLERS.items() if "eta" in row.options]
        if self.eta != 0.0 and self.kind not in owners:
            raise Refusal(
                f"SamplerConfig: eta is {self.eta} with kind {self.kind!r}; eta belongs to kind "
                f"{' or '.join(map(repr, owners))}"
            )
        labels = isinstance(self.classes, tuple | list) and all(is_int(v, 0) for v in self.classes)
        self._check("classes", labels, "labels of classes, each 0 or more")
        object.__setattr__(self, "classes", tuple(self.classes))
        self._check_type("clip_denoised", isinstance(self.clip_denoised, bool), "True or False")
