"""Labels of the ADM U-Net: PyTorch slicing, dense tables, sliced_embedding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from published.grid import ADM_IMAGENET64

from ddsm_ext.bench.candidates import Call
from ddsm_ext.graph.shapes import EmbeddingShape
from ddsm_ext.ops import sliced_embedding

NETWORK = ADM_IMAGENET64
OP = "embedding"


def candidates(shape: EmbeddingShape, batch: int, dtype: torch.dtype) -> dict[str, Call]:
    """Return name -> call of the same function on the same values."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(shape.rows, shape.c_max, generator=generator).to(dtype)
    y = torch.arange(batch) * 7919 % shape.rows  # [N], spread over the rows
    dense_table = table[:, : shape.c].contiguous()
    return {
        "slicing": lambda: F.embedding(y, table[:, : shape.c]),
        "dense_cl": lambda: F.embedding(y, dense_table),
        "ours": lambda: sliced_embedding(table, y, shape.c),
    }


def test_embedding(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
