"""Norms of transformer blocks, some with a scale and a shift an image: PyTorch slicing, ours."""

from __future__ import annotations

from typing import Any

from ddsm_ext.graph.shapes import LayerNormShape

OP = "layer_norm"
# Of LDM-4 ImageNet's transformers and of DiT's blocks (XL/2 and S/2), at full width.
FULL = (
    LayerNormShape(1152, 1152, 256, modulated=True),
    LayerNormShape(384, 384, 1024),
    LayerNormShape(960, 960, 64),
    LayerNormShape(576, 576, 256),
    LayerNormShape(384, 384, 256, modulated=True),
)


def shapes(width: float) -> list[LayerNormShape]:
    """Return the shapes at a width, the one most worth its time first."""
    return [LayerNormShape(round(s.c * width), s.c_max, s.rows, s.modulated) for s in FULL]


def test_layer_norm(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
