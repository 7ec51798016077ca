"""Noise levels and schedules, what a network predicts, and counter-based noise."""

from __future__ import annotations

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "CLEAN": "level",
        "DiffusionConfig": "config",
        "ExplodingSchedule": "schedule",
        "Level": "level",
        "NoiseSchedule": "schedule",
        "PREDICTIONS": "prediction",
        "Prediction": "prediction",
        "PreservingSchedule": "schedule",
        "add_noise": "schedule",
        "edm_prediction": "prediction",
        "make_schedule": "schedule",
        "mse_per_image": "prediction",
        "network_input": "prediction",
        "noise": "noise",
        "prediction_of": "prediction",
        "training_target": "prediction",
    },
)
