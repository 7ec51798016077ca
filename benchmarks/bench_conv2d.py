"""Convolutions of the CIFAR-10 U-Net: PyTorch slicing, dense weights, sliced_conv2d."""

from __future__ import annotations

from typing import Any

OP = "conv2d"


def test_conv2d(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
