"""Step-aware sampling: strategies (noise level -> width), step plans and samplers."""

from __future__ import annotations

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "SamplerConfig": "config",
        "Step": "plan",
        "Strategy": "strategy",
        "plan_coefficients": "plan",
        "plan_log_snrs": "plan",
        "plan_steps": "plan",
        "sample": "samplers",
    },
)
