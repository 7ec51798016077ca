"""Step-aware sampling: strategies (noise level -> width), samplers, and what they evaluate."""

from __future__ import annotations

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Denoiser": "denoiser",
        "Evaluation": "denoiser",
        "SAMPLERS": "samplers",
        "SamplerConfig": "config",
        "Strategy": "strategy",
        "ddim": "ancestral",
        "ddpm": "ancestral",
        "dpm_2": "sigma_steps",
        "dpm_multistep": "multistep",
        "dpm_singlestep": "singlestep",
        "dpmpp_2m": "multistep",
        "dpmpp_2s_ancestral": "ancestral",
        "euler": "sigma_steps",
        "euler_ancestral": "ancestral",
        "evaluations": "levels",
        "heun": "sigma_steps",
        "noise_levels": "levels",
        "sample": "images",
        "unipc": "unipc",
    },
)
