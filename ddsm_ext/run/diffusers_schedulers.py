"""A run's process and sampler as a scheduler of diffusers, and a scheduler's as sections of a run.

Nothing here imports diffusers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.run.config import RunConfig
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.settings import Refusal, TypeRefusal, check_choice, shown

_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
_VARIANCES = {"fixed_large": "fixed_large", "fixed_small": "fixed_small",
              "learned": "learned_range"}  # fmt: skip
_SPACINGS = ("linspace", "leading", "trailing")
# Of sigmas: our name -> the switch there
_SIGMAS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas",
           "log_snr": "use_exponential_sigmas"}  # fmt: skip
_EDM_LEVELS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
_FLOW_LEVELS = {"sigma_min": 1e-3, "sigma_max": 1e3}  # shares of noise of .001 to .999
_FEW_STEPS, _DDIM_STEPS = 20, 50
log = logging.getLogger(__name__)
# Settings of a scheduler that no sampler of ours has, and what they do nothing at
_WITHOUT: dict[str, tuple[object, ...]] = {
    "thresholding": (False,), "use_lu_lambdas": (False,),
    "use_beta_sigmas": (False,), "use_flow_sigmas": (False,), "shift": (1.0,),
    "use_dynamic_shifting": (False,), "shift_terminal": (None,), "invert_sigmas": (False,),
    "stochastic_sampling": (False,), "skip_prk_steps": (True,), "solver_p": (None,),
    "disable_corrector": ([],), "predict_x0": (True,),
    "algorithm_type": ("dpmsolver", "dpmsolver++"), "timestep_type": ("discrete",),
    "interpolation_type": ("linear",),
}  # fmt: skip


@dataclass(frozen=True)
class Scheduler:
    """What a stock pipeline samples a run with.

    Args:
        name: the scheduler's class.
        settings: its arguments.
        pipeline: class of the pipeline.
        call: what the pipeline is to be called with.
        notes: what differs from the run's own sampler, a sentence each.
    """

    name: str
    settings: dict[str, Any]
    pipeline: str
    call: dict[str, Any]
    notes: tuple[str, ...]


def scheduler_of(config: RunConfig, *, latents: bool) -> Scheduler:
    """Return the scheduler that fits a run's process and sampler, and the pipeline that takes it.

    Args:
        config: the run's.
        latents: an autoencoder decodes what the network makes: LDMPipeline.

    Raises:
        ValueError: no scheduler, or no stock pipeline with it, samples as the run does.
    """
    sampler = config.sampler
    of_betas = config.diffusion.parameterisation in _PREDICTIONS
    name, settings = (_of_betas if of_betas else _of_sigmas)(config, latents)
    _check_variance(name, settings, config)
    small = "DDIMPipeline" if name == "DDIMScheduler" else "DDPMPipeline"
    call: dict[str, Any] = {"num_inference_steps": sampler.steps or config.diffusion.timesteps}
    pipeline = "LDMPipeline" if latents else small
    if sampler.kind == "ddim" and sampler.eta:
        call["eta"] = sampler.eta
    if pipeline == "DDIMPipeline" and sampler.clip_denoised:  # noise is of the clipped image, too
        call["use_clipped_model_output"] = True
    return Scheduler(name, settings, pipeline, call, tuple(_notes(config, pipeline, settings)))


def _process(diffusion: DiffusionConfig) -> dict[str, Any]:
    if diffusion.schedule not in _SCHEDULES:
        raise Refusal(
            f"export: diffusion.schedule is {diffusion.schedule!r} with parameterisation "
            f"{diffusion.parameterisation!r}; need a schedule of betas, or parameterisation 'edm'"
        )
    return {
        "num_train_timesteps": diffusion.timesteps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": _SCHEDULES[diffusion.schedule],
        "prediction_type": _PREDICTIONS[diffusion.parameterisation],
    }


def _ddpm(sampler: SamplerConfig) -> dict[str, Any]:
    variance = {"variance_type": _VARIANCES[sampler.variance]}
    return {**variance, "clip_sample": sampler.clip_denoised, **_spaced(sampler)}


def _ddim(sampler: SamplerConfig) -> dict[str, Any]:
    spaced = _spaced(sampler)
    if sampler.spacing == "linspace":  # its steps have one length, which ends of both kinds do not
        spaced["timestep_spacing"] = "trailing"
    ends = {"set_alpha_to_one": sampler.final == "zero"}
    return {**ends, "clip_sample": sampler.clip_denoised, **spaced}


def _dpm(sampler: SamplerConfig) -> dict[str, Any]:
    algorithm = "dpmsolver" if sampler.form == "noise" else "dpmsolver++"
    if sampler.form == "noise" and sampler.final == "zero":
        raise Refusal("export: sampler.form is 'noise' with final 'zero'; need final 'sigma_min'")
    return {
        "solver_order": sampler.order or 2,
        "algorithm_type": algorithm,
        "solver_type": sampler.variant or "midpoint",
        "final_sigmas_type": sampler.final,
        **_spaced(sampler, sigmas=True),
    }


def _unipc(sampler: SamplerConfig) -> dict[str, Any]:
    if sampler.variant == "bh1" and sampler.final == "zero":  # gives NaN there
        raise Refusal("export: sampler.variant is 'bh1' with final 'zero'; need final 'sigma_min'")
    solver = {"solver_order": sampler.order or 2, "solver_type": sampler.variant or "bh2"}
    return {**solver, "final_sigmas_type": sampler.final, **_spaced(sampler, sigmas=True)}


def _euler(sampler: SamplerConfig) -> dict[str, Any]:
    return {"final_sigmas_type": sampler.final, **_spaced(sampler, sigmas=True)}


def _heun(sampler: SamplerConfig) -> dict[str, Any]:
    if sampler.final == "sigma_min":
        raise Refusal(
            "export: sampler.final is 'sigma_min', HeunDiscreteScheduler ends at 0; need 'zero'"
        )
    return _spaced(sampler, sigmas=True)


# Sampler -> the scheduler's class, its arguments, and whether it runs in pipelines of pixels.
_KINDS: dict[str, tuple[str, Callable[[SamplerConfig], dict[str, Any]], bool]] = {
    "ddpm": ("DDPMScheduler", _ddpm, True),
    "ddim": ("DDIMScheduler", _ddim, True),
    "dpm_multistep": ("DPMSolverMultistepScheduler", _dpm, True),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", _dpm, True),
    "unipc": ("UniPCMultistepScheduler", _unipc, False),
    "euler": ("EulerDiscreteScheduler", _euler, False),
    "heun": ("HeunDiscreteScheduler", _heun, False),
}


# Schedulers that are read and not written
_READ = {
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "KDPM2DiscreteScheduler": "dpm_2",
    "DPMSolverSinglestepScheduler": "dpm_singlestep",
    **{there: kind for kind, (there, _, _) in _KINDS.items() if kind != "dpmpp_2m"},
}
_WITHOUT_BETAS = ("CMStochasticIterative", "KarrasVe", "ScoreSdeVe", "ScoreSdeVp")


def _of_betas(config: RunConfig, latents: bool) -> tuple[str, dict[str, Any]]:
    sampler = config.sampler
    kinds = [kind for kind, (_, _, pixels) in _KINDS.items() if pixels or latents]
    if sampler.kind not in kinds:
        who = "LDMPipeline takes" if latents else "the stock pipelines of pixels take"
        raise Refusal(
            f"export: sampler.kind is {sampler.kind!r}; need one whose scheduler {who}: "
            f"{', '.join(map(repr, kinds))}"
        )
    name, settings, _ = _KINDS[sampler.kind]
    return name, {**_process(config.diffusion), **settings(sampler)}


def _of_sigmas(config: RunConfig, latents: bool) -> tuple[str, dict[str, Any]]:
    row, kind = config.diffusion.parameterisation, config.sampler.kind
    if row not in ("edm", "flow") or kind != "euler":
        need = "sampler.kind 'euler'" if row in ("edm", "flow") else "'epsilon', 'x0', 'v' or 'edm'"
        raise Refusal(
            f"export: diffusers has no scheduler of parameterisation {row!r} with sampler.kind "
            f"{kind!r}; need {need}"
        )
    name = "EDMEulerScheduler" if row == "edm" else "FlowMatchEulerDiscreteScheduler"
    if latents is (row == "flow"):
        where = "pixels" if row == "edm" else "latents"
        raise Refusal(
            f"export: no stock pipeline of {where} takes {name}; need the network in a loop of "
            "your own (ddsm_ext.SlimmableUNet2D)"
        )
    return name, _edm(config) if row == "edm" else {"num_train_timesteps": 1000}


def _spaced(sampler: SamplerConfig, *, sigmas: bool = False) -> dict[str, Any]:
    """The arguments of the levels that are visited."""
    for name in ("sigma_min", "sigma_max", "rho"):
        if getattr(sampler, name) is not None:
            raise Refusal(
                f"export: sampler.{name} is {getattr(sampler, name)}; need none, as diffusers "
                "takes the schedule's"
            )
    known = (*_SPACINGS, *_SIGMAS) if sigmas else _SPACINGS
    check_choice("export: sampler.spacing", sampler.spacing, known)
    if sampler.spacing in _SIGMAS:
        return {_SIGMAS[sampler.spacing]: True}
    return {"timestep_spacing": sampler.spacing, "steps_offset": sampler.steps_offset}


def _edm(config: RunConfig) -> dict[str, Any]:
    sampler, diffusion = config.sampler, config.diffusion
    spacing = "exponential" if sampler.spacing == "log_snr" else sampler.spacing
    check_choice("export: sampler.spacing", spacing, ("karras", "exponential"))
    return {
        "sigma_min": sampler.sigma_min or diffusion.sigma_min,
        "sigma_max": sampler.sigma_max or diffusion.sigma_max,
        "sigma_data": diffusion.sigma_data,
        "sigma_schedule": spacing,
        "rho": sampler.rho or 7.0,
        "final_sigmas_type": sampler.final,
    }


def _check_variance(name: str, settings: dict[str, Any], config: RunConfig) -> None:
    """Set how a predicted variance is used; refuse a scheduler that cannot tell it apart."""
    if not config.model.predicts_variance:
        return
    if name == "DPMSolverMultistepScheduler":
        settings["variance_type"] = "learned_range"
    elif settings.get("variance_type") != "learned_range":
        raise Refusal(
            f"export: the network predicts variances, which {name} does not know; need "
            "sampler.kind 'ddpm' with variance 'learned', or 'dpm_multistep'"
        )


def _notes(config: RunConfig, pipeline: str, settings: Mapping[str, Any]) -> list[str]:
    sampler, model, notes = config.sampler, config.model, []
    if model.label_count:
        what = "makes images of no class" if model.null_label is not None else "does not run it"
        notes.append(f"{pipeline} passes no labels and {what}; a loop of your own may pass them")
    elif sampler.guidance != 1.0:
        notes.append(f"{pipeline} guides nothing; the run's sampler does")
    if sampler.clip_denoised and not settings.get("clip_sample"):
        notes.append("its scheduler does not clip predicted images; the run's sampler does")
    if sampler.s_churn:
        notes.append(f"{pipeline} adds no noise; the run's sampler does (sampler.s_churn)")
    return notes


def read_scheduler(content: Any, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the sections diffusion and sampler that a scheduler stands for.

    What the sampler lacks of a scheduler is said.

    Args:
        content: of a scheduler_config.json.
        source: what errors call it.

    Raises:
        TypeError, ValueError: it is none, or its process is of another kind than a run's.
    """
    if not isinstance(content, Mapping):
        raise TypeRefusal(f"{source}: holds {shown(content)}; need the settings of a scheduler")
    name, given = str(content.get("_class_name", "DDPMScheduler")), content.get
    if name.startswith("EDM"):
        _say_lost(content, source, _WITHOUT)
        return _edm_sections(name, content, source)
    if name.startswith("FlowMatch"):
        _say_lost(content, source, _WITHOUT)
        kind = "heun" if "Heun" in name else "euler"
        log.warning("%s: %s has other steps; %s at karras levels is taken", source, name, kind)
        sampler = {"kind": kind, "steps": _FEW_STEPS, "spacing": "karras", "clip_denoised": False}
        return {"schedule": "edm", "parameterisation": "flow", **_FLOW_LEVELS}, sampler
    if name.removesuffix("Scheduler") in _WITHOUT_BETAS:
        raise Refusal(f"{source}: {name} has no betas; need a scheduler of betas, EDM or FlowMatch")
    clips = {"clip_sample_range": (1.0,)} if given("clip_sample", True) else {}
    _say_lost(content, source, {**_WITHOUT, **clips, "sigma_min": (None,), "sigma_max": (None,)})
    for key, usual in (("trained_betas", None), ("rescale_betas_zero_snr", False)):
        if given(key, usual) != usual:
            raise Refusal(f"{source}: {key} is {shown(given(key))}; need {usual}")
    betas = _key(_SCHEDULES, given("beta_schedule", "linear"), f"{source}: beta_schedule")
    row = _key(_PREDICTIONS, given("prediction_type", "epsilon"), f"{source}: prediction_type")
    diffusion = {
        "schedule": betas,
        "parameterisation": row,
        "timesteps": given("num_train_timesteps", 1000),
        "beta_start": given("beta_start", 1e-4),
        "beta_end": given("beta_end", 0.02),
    }
    return diffusion, _sampler(name, content, source)


def _say_lost(
    content: Mapping[str, Any], source: str, without: Mapping[str, tuple[object, ...]]
) -> None:
    for key, usual in without.items():
        value = content.get(key, usual[0])
        if value not in usual:
            log.warning("%s: %s is %s, which no sampler has here", source, key, shown(value))


def _edm_sections(
    name: str, content: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    given, solver = content.get, "DPM" in name
    predicted = given("prediction_type", "epsilon")
    check_choice(f"{source}: prediction_type", predicted, ("epsilon",))
    levels = {key: given(key, default) for key, default in _EDM_LEVELS.items()}
    sampler: dict[str, Any] = {
        "kind": "dpm_multistep" if solver else "euler",
        "spacing": given("sigma_schedule", "karras"),
        "steps": _FEW_STEPS,
        "clip_denoised": False,
    }
    if sampler["spacing"] == "karras":
        sampler["rho"] = given("rho", 7.0)
    if given("final_sigmas_type") == "sigma_min":
        sampler["final"] = "sigma_min"
    if solver:
        sampler |= {"order": given("solver_order", 2), "variant": given("solver_type", "midpoint")}
    return {"schedule": "edm", "parameterisation": "edm", **levels}, sampler


def _key(names: Mapping[str, str], value: object, what: str) -> str:
    """Our name of theirs."""
    theirs = check_choice(what, value, names.values())
    return next(ours for ours, other in names.items() if other == theirs)


def _sampler(name: str, content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The sampler of a scheduler of betas; DDIM, which is said, of one that is not read."""
    kind, given = _READ.get(name, "ddim"), content.get
    if name not in _READ:
        log.warning("%s: %s is not read; ddim is taken (sampler.kind)", source, name)
    sampler: dict[str, Any] = {"kind": kind, "clip_denoised": False}
    if kind in ("ddpm", "ddim"):
        sampler["clip_denoised"] = given("clip_sample", name in _READ)
    steps = {"ddpm": None, "ddim": _DDIM_STEPS}.get(kind, _FEW_STEPS)
    sampler["steps"] = steps
    if kind == "ddpm":
        usual = str(given("variance_type", "fixed_small")).removesuffix("_log")
        sampler["variance"] = _key(_VARIANCES, usual, f"{source}: variance_type")
    switches = [ours for ours, there in _SIGMAS.items() if given(there)]
    usual = "leading" if kind in ("ddpm", "ddim") else "linspace"
    sampler["spacing"] = switches[0] if switches else given("timestep_spacing", usual)
    if sampler["spacing"] == "leading":
        sampler["steps_offset"] = given("steps_offset", 0)
    if kind == "ddim" and given("set_alpha_to_one", name in _READ) is False:
        sampler["final"] = "sigma_min"
    if given("final_sigmas_type") == "sigma_min":
        sampler["final"] = "sigma_min"
    if kind in ("dpm_multistep", "dpm_singlestep", "unipc"):
        sampler["order"] = given("solver_order", 2)
    if kind in ("dpm_multistep", "unipc"):
        sampler["variant"] = given("solver_type")
    if kind.startswith("dpm_") and given("algorithm_type") == "dpmsolver":
        sampler["form"] = "noise"
    return sampler
