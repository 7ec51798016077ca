"""Linear layers of the CIFAR-10 U-Net: PyTorch slicing, dense weights, sliced_linear."""

from __future__ import annotations

from typing import Any

OP = "linear"


def test_linear(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
