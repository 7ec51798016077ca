"""Forward process, noise schedules, parameterisations and counter-based noise."""

from __future__ import annotations

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "DiffusionConfig": "config",
        "NoiseSchedule": "schedule",
        "add_noise": "process",
        "make_schedule": "schedule",
        "mse_per_image": "losses",
        "noise": "noise",
        "training_target": "parameterisation",
    },
)
