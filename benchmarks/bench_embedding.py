"""Labels of the ADM U-Net: PyTorch slicing, dense tables, sliced_embedding."""

from __future__ import annotations

from typing import Any

from ddsm_ext.bench.shapes import ADM_IMAGENET64

NETWORK = ADM_IMAGENET64
OP = "embedding"


def test_embedding(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
