"""The samplers by name: functions `(denoise, x, levels, noise, **options) -> x`. Imports no torch.

denoise(x, level) is the predicted image x0; levels run from noisy to clean and end with `CLEAN`;
noise() draws the next standard normal of x's shape; x starts as noise of the first level. A sampler
also runs on a single number with a denoiser that notes its calls: so is known what it evaluates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddsm_ext.sampling.ancestral import ddim, ddpm, dpmpp_2s_ancestral, euler_ancestral
from ddsm_ext.sampling.method import Method
from ddsm_ext.sampling.multistep import VARIANTS, dpm_multistep, dpmpp_2m
from ddsm_ext.sampling.sigma_steps import dpm_2, euler, heun
from ddsm_ext.sampling.singlestep import dpm_singlestep
from ddsm_ext.sampling.unipc import VARIANTS as UNIPC_VARIANTS
from ddsm_ext.sampling.unipc import unipc

if TYPE_CHECKING:
    from ddsm_ext.sampling.config import SamplerConfig

_CHURN = ("s_churn", "s_min", "s_max", "s_noise")
_MULTISTEP = ("order", "form", "variant", "restart_on_width_change")


@dataclass(frozen=True)
class Row:
    """A sampler that `SamplerConfig.kind` names.

    Args:
        method: the function.
        options: which settings of `SamplerConfig` it takes, by the names of its arguments.
        variants: values of the setting `variant`, where it takes that.
        between: whether it evaluates between the levels visited, and so takes `level_at`.
        eta: what the setting `eta` is where nobody says it.
        moves_mean: whether a classifier's gradient moves its mean; else it moves x0.
        by_sigma: whether, with these settings, a step fails that leads over a great ratio of sigma.
    """

    method: Method
    options: tuple[str, ...]
    variants: tuple[str, ...] = ()
    between: bool = False
    eta: float = 0.0
    moves_mean: bool = False
    by_sigma: Callable[[SamplerConfig], bool] = lambda sampler: False


def _always(_: SamplerConfig) -> bool:
    return True


def _continues_noise(sampler: SamplerConfig) -> bool:
    return sampler.form == "noise" and sampler.order != 1


SAMPLERS: dict[str, Row] = {
    "ddpm": Row(ddpm, ("variance",), moves_mean=True),
    "ddim": Row(ddim, ("eta",)),
    "euler": Row(euler, _CHURN, between=True),
    "heun": Row(heun, _CHURN, between=True, by_sigma=_always),
    "dpm_2": Row(dpm_2, _CHURN, between=True, by_sigma=_always),
    "euler_ancestral": Row(euler_ancestral, ("eta",), eta=1.0),
    "dpmpp_2s_ancestral": Row(dpmpp_2s_ancestral, ("eta",), between=True, eta=1.0),
    "dpmpp_2m": Row(dpmpp_2m, ("variant", "restart_on_width_change"), VARIANTS),
    "dpm_multistep": Row(dpm_multistep, _MULTISTEP, VARIANTS),
    "dpm_singlestep": Row(dpm_singlestep, ("order", "form"), by_sigma=_continues_noise),
    "unipc": Row(unipc, ("order", "variant", "restart_on_width_change"), UNIPC_VARIANTS),
}
