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
        "ddim": "samplers",
        "ddpm": "samplers",
        "evaluations": "levels",
        "noise_levels": "levels",
        "sample": "images",
    },
)
