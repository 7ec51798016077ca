"""Sandwich rule, averaged weights and the training loop; the network is a callable."""

from __future__ import annotations

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Ema": "state",
        "TrainConfig": "config",
        "TrainResult": "session",
        "train": "loop",
    },
)
