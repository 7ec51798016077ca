"""Noise levels and schedules, what a network predicts, and counter-based noise."""

from __future__ import annotations

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "CLEAN": "schedule",
        "DiffusionConfig": "config",
        "Level": "schedule",
        "NoiseSchedule": "schedule",
        "PREDICTIONS": "prediction",
        "add_noise": "schedule",
        "make_schedule": "schedule",
        "mse_per_image": "prediction",
        "noise": "noise",
        "training_target": "prediction",
    },
)
