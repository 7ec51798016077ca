"""NCSN++'s filter of 4 taps, both ways, with a ring and what is added: PyTorch, resample."""

from __future__ import annotations

from typing import Any

from bench_resample import OP, candidates

from ddsm_ext.graph.shapes import ResampleShape
from ddsm_ext.models import PRESETS

__all__ = ["OP", "candidates"]

NETWORK = PRESETS["edm-cifar10-ve"]


def wanted(shape: ResampleShape) -> bool:
    """True for the shapes that are timed."""
    return shape.taps == 4


def test_filter(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
