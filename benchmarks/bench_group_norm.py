"""Group norms and SiLU of the CIFAR-10 U-Net: PyTorch slicing, dense weights, sliced_group_norm."""

from __future__ import annotations

from typing import Any

OP = "group_norm"


def test_group_norm(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
