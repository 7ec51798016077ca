"""The ADM U-Net's norms with a scale and a shift an image: PyTorch slicing, dense weights, ours."""

from __future__ import annotations

from typing import Any

from published.grid import ADM_IMAGENET64

from ddsm_ext.graph.shapes import NormShape

NETWORK = ADM_IMAGENET64
OP = "group_norm"


def wanted(shape: NormShape) -> bool:
    """True for the shapes that are timed."""
    return shape.modulated


def test_modulated_norm(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
