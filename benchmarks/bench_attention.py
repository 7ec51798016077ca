"""Attention of the CIFAR-10 U-Net: bmm and softmax, torch's fused attention, sliced_attention."""

from __future__ import annotations

from typing import Any

OP = "attention"


def test_attention(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
