"""Schedulers of diffusers: what a run's process and sampler become, and what a scheduler says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers_there import diffusers

from ddsm_ext.diffusion import make_schedule
from ddsm_ext.run import configure
from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.diffusers_schedulers import read_scheduler, scheduler_of
from ddsm_ext.sampling import noise_levels

MODEL = {
    "family": "adm", "image_size": 8, "image_channels": 1, "ch": 16, "ch_mult": [1], "attn": [],
    "num_res_blocks": 1, "groups": 8, "head_channels": 8, "learned_sigma": False,
}  # fmt: skip
EDM = {"schedule": "edm", "parameterisation": "edm", "sigma_min": 0.01, "sigma_max": 50.0}


def config(
    sampler: dict[str, Any], diffusion: dict[str, Any] | None = None, **model: Any
) -> RunConfig:
    plain = {"clip_denoised": False, **sampler}
    return configure(model={**MODEL, **model}, diffusion=diffusion or {}, sampler=plain)


# Sampler -> class and settings that are other than the class's own.
CASES: list[tuple[dict[str, Any], bool, str, str, dict[str, Any]]] = [
    ({"kind": "ddpm"}, False, "DDPMPipeline", "DDPMScheduler",
     {"variance_type": "fixed_large", "timestep_spacing": "linspace", "clip_sample": False}),
    ({"kind": "ddpm", "variance": "fixed_small", "spacing": "leading", "steps": 50,
      "clip_denoised": True}, False, "DDPMPipeline", "DDPMScheduler",
     {"variance_type": "fixed_small", "timestep_spacing": "leading", "clip_sample": True}),
    ({"kind": "ddim", "spacing": "leading", "steps": 20, "steps_offset": 1, "final": "sigma_min"},
     False, "DDIMPipeline", "DDIMScheduler",
     {"set_alpha_to_one": False, "timestep_spacing": "leading", "steps_offset": 1}),
    ({"kind": "dpm_multistep", "order": 3, "steps": 20}, False, "DDPMPipeline",
     "DPMSolverMultistepScheduler", {"solver_order": 3, "algorithm_type": "dpmsolver++"}),
    ({"kind": "dpmpp_2m", "variant": "heun", "spacing": "karras", "steps": 20}, False,
     "DDPMPipeline", "DPMSolverMultistepScheduler",
     {"solver_type": "heun", "use_karras_sigmas": True}),
    ({"kind": "unipc", "steps": 10, "spacing": "exponential"}, True, "LDMPipeline",
     "UniPCMultistepScheduler", {"solver_type": "bh2", "use_exponential_sigmas": True}),
    ({"kind": "euler", "steps": 10}, True, "LDMPipeline", "EulerDiscreteScheduler",
     {"timestep_spacing": "linspace"}),
    ({"kind": "heun", "steps": 10, "spacing": "karras"}, True, "LDMPipeline",
     "HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ({"kind": "ddim", "spacing": "trailing", "steps": 10}, True, "LDMPipeline", "DDIMScheduler",
     {"timestep_spacing": "trailing"}),
]  # fmt: skip


@pytest.mark.parametrize(("sampler", "latents", "pipeline", "name", "settings"), CASES)
def test_schedulers_of_samplers(
    sampler: dict[str, Any], latents: bool, pipeline: str, name: str, settings: dict[str, Any]
) -> None:
    run = config(sampler, {"schedule": "scaled_linear", "parameterisation": "v"})
    found = scheduler_of(run, latents=latents)
    assert (found.pipeline, found.name) == (pipeline, name)
    assert found.settings.items() >= settings.items()
    assert found.call["num_inference_steps"] == (run.sampler.steps or 1000)
    made = getattr(diffusers(), name)(**found.settings)
    schedule = make_schedule(run.diffusion)
    torch.testing.assert_close(made.betas.double(), schedule.betas, rtol=1e-5, atol=1e-8)
    made.set_timesteps(run.sampler.steps or 1000)
    visited = list(dict.fromkeys(made.timesteps.tolist()))
    ours = [level.t for level in noise_levels(schedule, run.sampler)[:-1]]
    solver = "Multistep" in name and "timestep_spacing" in found.settings
    if not solver:  # of whose evenly spaced timesteps the last is left out
        assert visited == pytest.approx(ours[: len(visited)], abs=1)
    # What is read back is the same process and sampler, but for what a scheduler does not say.
    content = {"_class_name": name, **made.config}
    diffusion, back = read_scheduler(content, "s.json")
    assert configure(model=MODEL, diffusion=diffusion).diffusion == run.diffusion
    again = config({**back, "steps": run.sampler.steps}).sampler.to_dict()
    wanted = run.sampler.to_dict()
    if run.sampler.kind == "dpmpp_2m":
        wanted |= {"kind": "dpm_multistep", "order": 2}
    for key in ("order", "variant", "form"):
        wanted[key], again[key] = wanted[key] or again[key], again[key] or wanted[key]
    assert again == wanted


def test_edm_and_flow() -> None:
    run = config({"kind": "euler", "spacing": "karras", "steps": 12, "sigma_max": 20.0}, EDM)
    found = scheduler_of(run, latents=True)
    made = diffusers().EDMEulerScheduler(**found.settings)
    made.set_timesteps(12)
    sigmas = [level.sigma for level in noise_levels(make_schedule(run.diffusion), run.sampler)]
    assert made.sigmas.tolist() == pytest.approx(sigmas, rel=1e-4)
    diffusion, sampler = read_scheduler({"_class_name": "EDMEulerScheduler", **EDM}, "s")
    assert configure(model=MODEL, diffusion=diffusion, sampler=sampler).diffusion == run.diffusion
    given = {"_class_name": "EDMDPMSolverMultistepScheduler", "rho": 5.0, "solver_order": 3}
    sampler = configure(model=MODEL, diffusion=diffusion, sampler=read_scheduler(given, "s")[1])
    assert sampler.sampler.rho == 5.0
    assert (sampler.sampler.kind, sampler.sampler.order) == ("dpm_multistep", 3)
    flow = config({"kind": "euler", "steps": 9}, {"parameterisation": "flow"})
    assert scheduler_of(flow, latents=False).pipeline == "DDPMPipeline"
    diffusion, sampler = read_scheduler({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "s")
    assert configure(model=MODEL, diffusion=diffusion, sampler=sampler).sampler.steps == 20


def test_learned_variances() -> None:
    learned = {"kind": "ddpm", "variance": "learned"}
    found = scheduler_of(config(learned, learned_sigma=True), latents=False)
    assert found.settings["variance_type"] == "learned_range"
    found = scheduler_of(
        config({"kind": "dpmpp_2m", "steps": 9}, learned_sigma=True), latents=False
    )
    assert found.settings["variance_type"] == "learned_range"
    for kind in ("ddpm", "ddim"):
        with pytest.raises(
            ValueError, match=r"predicts variances, which DD.MScheduler does not kno"
        ):
            scheduler_of(config({"kind": kind}, learned_sigma=True), latents=False)
    _, sampler = read_scheduler({"variance_type": "learned_range"}, "s")
    assert sampler["variance"] == "learned"
    # there another formula
    with pytest.raises(ValueError, match=r"^s: variance_type is 'learned'; need one of"):
        read_scheduler({"variance_type": "learned"}, "s")


def test_notes_say_what_is_lost() -> None:
    clipped = scheduler_of(
        config({"kind": "dpmpp_2m", "steps": 9, "clip_denoised": True}), latents=False
    )
    assert clipped.notes == (
        "its scheduler does not clip predicted images; the run's sampler does",
    )
    labelled = config({"kind": "ddim", "eta": 0.5, "steps": 9}, num_classes=3, null_class=True)
    found = scheduler_of(labelled, latents=False)
    assert found.call == {"num_inference_steps": 9, "eta": 0.5}
    (note,) = found.notes
    assert note.startswith("DDIMPipeline passes no labels and makes images of no class")
    stochastic = {"kind": "heun", "spacing": "karras", "s_churn": 4.0, "steps": 9}
    (note,) = scheduler_of(config(stochastic), latents=True).notes
    assert note == "LDMPipeline adds no noise; the run's sampler does (sampler.s_churn)"


def test_what_no_sampler_has_is_said(caplog: pytest.LogCaptureFixture) -> None:
    for content, text in (
        ({"_class_name": "PNDMScheduler"}, "s: PNDMScheduler is not read; ddim is taken"),
        ({"_class_name": "EulerDiscreteScheduler", "sigma_max": 9.0}, "s: sigma_max is 9.0, which"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "heun at karras levels is taken"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
         "s: algorithm_type is 'sde-dpmsolver++', which no sampler has here"),
        ({"thresholding": True}, "s: thresholding is True, which no sampler has here"),
        ({"clip_sample_range": 2.0}, "s: clip_sample_range is 2.0, which no sampler has here"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
         "s: shift is 3.0, which no sampler has here"),
    ):  # fmt: skip
        caplog.clear()
        read_scheduler(content, "s")
        assert text in caplog.text
    caplog.clear()
    for name, kind in (
        ("DDPM", "ddpm"), ("DDIM", "ddim"), ("DPMSolverMultistep", "dpm_multistep"),
        ("UniPCMultistep", "unipc"), ("EulerDiscrete", "euler"), ("HeunDiscrete", "heun"),
        ("EulerAncestralDiscrete", "euler_ancestral"), ("KDPM2Discrete", "dpm_2"),
        ("DPMSolverSinglestep", "dpm_singlestep"), ("EDMEuler", "euler"),
        ("EDMDPMSolverMultistep", "dpm_multistep"),
    ):  # fmt: skip
        scheduler = getattr(diffusers(), f"{name}Scheduler")()
        content = {**scheduler.config, "_class_name": type(scheduler).__name__}
        diffusion, sampler = read_scheduler(content, "s")
        found = configure(model=MODEL, diffusion=diffusion, sampler=sampler).sampler
        assert found.kind == kind
    read_scheduler({"clip_sample": False, "clip_sample_range": 4.0}, "s")  # does nothing
    assert not caplog.text


@pytest.mark.parametrize(
    ("sampler", "diffusion", "latents", "message"),
    [
        (
            {"kind": "euler"},
            {},
            False,
            "sampler.kind is 'euler'; need one whose scheduler the stock",
        ),
        ({"kind": "euler_ancestral"}, {}, True, "'euler_ancestral'; need one .* LDMPipeline takes"),
        (
            {"kind": "euler", "spacing": "karras"},
            EDM,
            False,
            "no stock pipeline of pixels takes EDM",
        ),
        (
            {"kind": "euler"},
            {"parameterisation": "flow"},
            True,
            "no stock pipeline of latents takes",
        ),
        (
            {"kind": "heun", "spacing": "karras"},
            EDM,
            True,
            "'edm' with sampler.kind 'heun'; need sa",
        ),
        ({"kind": "ddim"}, {**EDM, "parameterisation": "vp"}, True, "no scheduler of .* 'vp'"),
        (
            {"kind": "ddim"},
            {**EDM, "parameterisation": "v"},
            True,
            "diffusion.schedule is 'edm' wit",
        ),
        ({"kind": "ddim", "spacing": "karras"}, {}, False, "sampler.spacing is 'karras'; need one"),
        (
            {"kind": "dpmpp_2m", "spacing": "uniform"},
            {},
            False,
            "sampler.spacing is 'uniform'; nee",
        ),
        (
            {"kind": "dpmpp_2m", "spacing": "karras", "rho": 5.0},
            {},
            False,
            "sampler.rho is 5.0; nee",
        ),
        ({"kind": "heun", "final": "sigma_min"}, {}, True, "HeunDiscreteScheduler ends at 0; need"),
        ({"kind": "dpm_multistep", "form": "noise"}, {}, False, "'noise' with final 'zero'; need"),
        ({"kind": "unipc", "variant": "bh1"}, {}, True, "'bh1' with final 'zero'; need final 'si"),
    ],
)
def test_what_no_scheduler_does_is_refused(
    sampler: dict[str, Any], diffusion: dict[str, Any], latents: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_of(config({**sampler, "steps": 9}, diffusion), latents=latents)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "s.json: holds .*; need the settings of a scheduler"),
        ({"beta_schedule": "sigmoid"}, "s.json: beta_schedule is 'sigmoid'; need one of 'linear'"),
        (
            {"_class_name": "ScoreSdeVeScheduler"},
            "s.json: ScoreSdeVeScheduler has no betas; need a",
        ),
        (
            {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"},
            "s.json: prediction_type is 'v_prediction'; need",
        ),
        ({"prediction_type": "flow"}, "s.json: prediction_type is 'flow'; need one of 'epsilon'"),
        ({"trained_betas": [0.1]}, r"s.json: trained_betas is \[0.1\]; need None"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True; need False"),
        ({"variance_type": "fixed"}, "s.json: variance_type is 'fixed'; need one of"),
        ({"variance_type": 3}, "s.json: variance_type is '3'; need one of"),
    ],
)
def test_schedulers_that_are_refused(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_scheduler(content, "s.json")


def test_files_of_the_hub() -> None:
    """google/ddpm-cifar10-32 and CompVis/ldm-celebahq-256 as they lie there."""
    diffusion, sampler = read_scheduler(
        {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02,
         "beta_schedule": "linear", "beta_start": 0.0001, "clip_sample": True,
         "num_train_timesteps": 1000, "variance_type": "fixed_large"}, "s",
    )  # fmt: skip
    assert diffusion["schedule"] == "linear"
    assert sampler == {
        "kind": "ddpm", "clip_denoised": True, "steps": None, "variance": "fixed_large",
        "spacing": "leading", "steps_offset": 0,
    }  # fmt: skip
    diffusion, sampler = read_scheduler(
        {"_class_name": "DDIMScheduler", "beta_end": 0.0195, "beta_schedule": "scaled_linear",
         "beta_start": 0.0015, "clip_sample": False, "num_train_timesteps": 1000,
         "timestep_values": None, "trained_betas": None}, "s",
    )  # fmt: skip
    assert (diffusion["schedule"], diffusion["beta_end"]) == ("scaled_linear", 0.0195)
    assert sampler["kind"] == "ddim"
    assert not sampler["clip_denoised"]
    _, other = read_scheduler({"_class_name": "PNDMScheduler", "set_alpha_to_one": False}, "s")
    assert (other["kind"], other["clip_denoised"], other["final"]) == ("ddim", False, "sigma_min")
