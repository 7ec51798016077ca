"""Sampler settings as a frozen config; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddsm_ext.sampling.ancestral import VARIANCES
from ddsm_ext.sampling.guidance import Guidance
from ddsm_ext.sampling.method import FORMS, GREATEST_ORDER
from ddsm_ext.sampling.samplers import SAMPLERS
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal, Settings, is_int, is_number, shown

# Spacing -> the settings that it takes.
SPACINGS: dict[str, tuple[str, ...]] = {
    "linspace": (),
    "leading": ("steps_offset",),
    "trailing": (),
    "quadratic": (),
    "uniform": (),
    "karras": ("sigma_min", "sigma_max", "rho"),
    "exponential": ("sigma_min", "sigma_max"),
    "log_snr": ("sigma_min", "sigma_max"),
}
FINALS = ("zero", "sigma_min")
DTYPES = ("float32", "bfloat16")
# Number -> least and greatest value.
_NUMBERS = {
    "eta": (0.0, 1.0),
    "s_churn": (0.0, 1e6),
    "s_min": (0.0, 1e6),
    "s_max": (0.0, 1e6),
    "s_noise": (0.0, 2.0),
    "sigma_min": (1e-6, 1e6),
    "sigma_max": (1e-6, 1e6),
    "rho": (0.1, 100.0),
}
# What each setting that belongs to some kinds or spacings is where nobody says it.
_UNSAID: dict[str, dict[str, Any]] = {
    "kind": {
        "eta": None,
        "order": None,
        "form": None,
        "variant": None,
        "s_churn": None,
        "s_min": None,
        "s_max": None,
        "s_noise": None,
        "restart_on_width_change": False,
    },
    "spacing": {"steps_offset": 0, "sigma_min": None, "sigma_max": None, "rho": None},
}

_OF_GUIDANCE = ("guidance_weak", "guidance_interval", "guidance_widths", "guidance_cuts")


@dataclass(frozen=True)
class SamplerConfig(Settings):
    """Which sampler runs over which noise levels.

    Settings that belong to some kinds or spacings are refused with others; None takes the default
    of the sampler. sigma counts in units of the image's scale alpha, as in Karras et al. 2022.

    Args:
        kind: a row of `samplers.SAMPLERS`: "ddpm" (ancestral sampling, Ho et al. 2020, algorithm
            2), "ddim" (Song et al. 2021), "euler", "heun" (Karras et al. 2022), "dpm_2",
            "euler_ancestral", "dpmpp_2s_ancestral" (k-diffusion), "dpmpp_2m", "dpm_multistep",
            "dpm_singlestep" (Lu et al. 2022) or "unipc" (Zhao et al. 2023).
        steps: noise levels visited, 1 <= steps <= T; None takes all T. Fewer steps stride the
            chain (Nichol & Dhariwal 2021, section 4). "heun", "dpm_2" and "dpmpp_2s_ancestral"
            evaluate the network twice a step.
        eta: 0 <= eta <= 1, the share of noise that is renewed: DDIM, 0 unless said, is
            deterministic with 0 and equals "ddpm" with "fixed_small" with 1; the ancestral
            samplers of k-diffusion, 1 unless said.
        variance: DDPM only: "fixed_large" (beta_t), "fixed_small" (posterior variance) or
            "learned", between the two by what the network says (Nichol & Dhariwal 2021, eq. 15).
        clip_denoised: clip each predicted x0 to [-1, 1]. False clips nothing at all, as latents
            need and as the published DDSM results were made (their code computes the clipped image
            but does not use it); pixels are clipped where they become uint8.
        spacing: which levels are visited, K = steps. Of the T timesteps
            "linspace": round(i (T - 1) / (K - 1)), both ends included (K = 1: T - 1);
            "leading": floor(i T / K) + steps_offset; "trailing": ceil((i + 1) T / K) - 1, ends at
            T - 1; "quadratic": both ends, spaced as i² (Song et al. 2021, appendix D.2). Between
            timesteps, both ends included,
            "uniform": evenly in t (dpm-solver's "time_uniform"); "karras": evenly in
            sigma^(1 / rho) (Karras et al. 2022, eq. 5); "exponential" or "log_snr", the same:
            evenly in log sigma (k-diffusion's exponential, dpm-solver's "logSNR").
        dtype: "float32" or "bfloat16", in which the network and its weights compute; the image
            itself stays in float32.
        classes: labels of the images, in turn by their seeds, for a network that takes labels; ():
            all that it knows.
        final: where the last step leads: "zero", the clean image, or "sigma_min", the cleanest
            level, of which the image keeps the noise: of the K + 1 levels of a spacing with both
            ends the last one then is not evaluated, other spacings are continued to t = 0.
        steps_offset: "leading" only, added to each timestep; latent diffusion has 1.
        sigma_min: "karras", "exponential" and "log_snr" only: least sigma; None takes t = 0's.
        sigma_max: the same of the greatest sigma; None takes t = T - 1's.
        rho: "karras" only; None takes 7.
        order: of "dpm_multistep", "dpm_singlestep" and "unipc", 1 to 3; None takes 2.
        form: what the "dpm_" solvers integrate: "data" (DPM-Solver++), which None takes, or
            "noise" (DPM-Solver).
        variant: of "dpmpp_2m" and "dpm_multistep" "midpoint" or "heun", of "unipc" "bh2" or "bh1";
            None takes the first.
        s_churn: of "euler", "heun" and "dpm_2": noise added on the way (Karras et al. 2022,
            algorithm 2); None takes 0.
        s_min: least sigma at which it is added; None takes 0.
        s_max: greatest one; None for no bound.
        s_noise: standard deviation of what is added; None takes 1.
        guidance: scale of guidance: weak + scale (strong - weak), where the network is the strong
            model (Ho & Salimans 2022, with 1 + w); 1: none.
        guidance_weak: which the weak model is: "null", the network with the label that stands for
            no class, or "width", the network with the image's label at `guidance_widths`
            (autoguidance, Karras et al. 2024).
        guidance_interval: least and greatest log-SNR at which it is done; None: at all.
        guidance_widths: widths of the weak model, from noisy to clean; (): the strong model's.
        guidance_cuts: log-SNRs between these, one fewer.
        restart_on_width_change: samplers that use outputs of earlier steps begin anew, with order
            1, where the width changes.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of range, or belongs to another kind or spacing.
    """

    kind: str = "ddpm"
    steps: int | None = None
    eta: float | None = None
    variance: str = "fixed_large"
    clip_denoised: bool = True
    spacing: str = "linspace"
    dtype: str = "float32"
    classes: tuple[int, ...] = ()
    final: str = "zero"
    steps_offset: int = 0
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None
    order: int | None = None
    form: str | None = None
    variant: str | None = None
    s_churn: float | None = None
    s_min: float | None = None
    s_max: float | None = None
    s_noise: float | None = None
    restart_on_width_change: bool = False
    guidance: float = 1.0
    guidance_weak: str = "null"
    guidance_interval: tuple[float, float] | None = None
    guidance_widths: tuple[float, ...] = ()
    guidance_cuts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._check_choice("kind", SAMPLERS)
        self._check_choice("variance", VARIANCES)
        self._check_choice("spacing", SPACINGS)
        self._check_choice("dtype", DTYPES)
        self._check_choice("final", FINALS)
        self._check_values()
        kinds = {name: row.options for name, row in SAMPLERS.items()}
        for choice, owned in (("kind", kinds), ("spacing", SPACINGS)):
            self._check_owners(choice, owned)
        row = SAMPLERS[self.kind]
        if self.variant is not None:
            self._check_choice("variant", row.variants)
        if self.variance == "learned" and "variance" not in row.options:
            # The others are passed over: files of earlier versions have them with "ddim".
            raise Refusal(
                f"SamplerConfig: variance is 'learned' with kind {self.kind!r}; need kind 'ddpm', "
                "to which variance belongs"
            )
        if self.eta is None:  # a number from here on, as files of earlier versions have it
            object.__setattr__(self, "eta", row.eta)
        self._check_guidance()
        low, high = self.sigma_min, self.sigma_max
        if low is not None and high is not None and low >= high:
            raise Refusal(
                f"SamplerConfig: sigma_min is {low}, sigma_max is {high}; need sigma_min < "
                "sigma_max"
            )

    def _check_guidance(self) -> None:
        self._check("guidance", is_number(self.guidance, 0, 1e3), "a number from 0 to 1000")
        self._check_choice("guidance_weak", ("null", "width"))
        interval = self.guidance_interval
        if interval is not None:
            pair = isinstance(interval, tuple | list) and len(interval) == 2
            ok = pair and all(is_number(v, -1e3, 1e3) for v in interval)
            need = "two log-SNRs from -1000 to 1000, the lower one first"
            self._check("guidance_interval", ok and interval[0] < interval[1], need)
            object.__setattr__(self, "guidance_interval", tuple(interval))
        if self.guidance_widths or self.guidance_cuts:
            widths = Strategy(self.guidance_widths, self.guidance_cuts)
            object.__setattr__(self, "guidance_widths", widths.widths)
            object.__setattr__(self, "guidance_cuts", widths.cuts)
        if self.guidance_weak == "width" and self.guidance != 1.0 and not self.guidance_widths:
            raise Refusal(
                f"SamplerConfig: guidance is {self.guidance} by width without guidance_widths; "
                "need the width of the weak model"
            )
        given = [n for n in ("guidance_interval", "guidance_widths") if getattr(self, n)]
        if given and self.guidance == 1.0:
            raise Refusal(
                f"SamplerConfig: {given[0]} is {shown(getattr(self, given[0]))} with guidance 1, "
                "which is none; need another guidance, or no such setting"
            )

    def guidance_by(self, null_label: int | None) -> Guidance | None:
        """Return the guidance of a network; None: there is none.

        Args:
            null_label: the network's label that stands for no class; None: it has none.

        Raises:
            ValueError: it guides away from no class, and the network has no such label.
        """
        if self.guidance == 1.0:
            return None
        if self.guidance_weak == "null" and null_label is None:
            raise Refusal(
                f"sampler.guidance is {self.guidance}, the network has no label for no class; need "
                "one trained with null_class, guidance_weak 'width', or guidance 1"
            )
        own = self.guidance_widths
        widths = Strategy(own, self.guidance_cuts) if own else None
        label = null_label if self.guidance_weak == "null" else None
        return Guidance(self.guidance, self.guidance_interval, widths, label)

    def _check_values(self) -> None:
        if self.steps is not None:
            self._check_type("steps", is_int(self.steps), "an int >= 1 or None")
            self._check("steps", self.steps >= 1, "at least 1")
        self._check_int("order", 1, GREATEST_ORDER, optional=True)
        self._check_int("steps_offset", 0)
        for name, (low, high) in _NUMBERS.items():
            value = getattr(self, name)
            if value is not None:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                self._check_type(name, number, f"a number in [{low:g}, {high:g}]")
                self._check(name, is_number(value, low, high), f"{low:g} <= {name} <= {high:g}")
        if self.form is not None:
            self._check_choice("form", FORMS)
        labels = isinstance(self.classes, tuple | list) and all(is_int(v, 0) for v in self.classes)
        self._check("classes", labels, "labels of classes, each 0 or more")
        object.__setattr__(self, "classes", tuple(self.classes))
        for name in ("clip_denoised", "restart_on_width_change"):
            self._check_type(name, isinstance(getattr(self, name), bool), "True or False")

    def _check_owners(self, choice: str, owned: Mapping[str, tuple[str, ...]]) -> None:
        """Refuse a setting that belongs to another kind, or spacing."""
        chosen = getattr(self, choice)
        for name, unsaid in _UNSAID[choice].items():
            value = getattr(self, name)
            # eta 0 is what files of earlier versions have with every kind.
            if value in (unsaid, 0.0 if name == "eta" else unsaid) or name in owned[chosen]:
                continue
            owners = " or ".join(repr(one) for one, names in owned.items() if name in names)
            raise Refusal(
                f"SamplerConfig: {name} is {shown(value)} with {choice} {chosen!r}; need {choice} "
                f"{owners}, to which {name} belongs"
            )


def unsaid(changes: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a change of kind, spacing or guidance takes along, as unsaid ones.

    Args:
        changes: settings of a sampler that are changed.
        before: its settings before; a missing one counts as its default.
    """
    defaults, reset = SamplerConfig().to_dict(), {}
    for choice, names in _UNSAID.items():
        old = before.get(choice, defaults[choice])
        if changes.get(choice, old) != old:
            reset.update(names)
            if choice == "kind" and before.get("variance") == "learned":
                reset["variance"] = defaults["variance"]
    if changes.get("guidance") == 1:
        reset.update({name: defaults[name] for name in _OF_GUIDANCE})
    return reset
