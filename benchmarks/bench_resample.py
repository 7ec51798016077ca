"""Halving and enlarging in the ADM U-Net: PyTorch, resample."""

from __future__ import annotations

from typing import Any

from ddsm_ext.bench.shapes import ADM_IMAGENET64

NETWORK = ADM_IMAGENET64
OP = "resample"


def test_resample(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
