"""Devices: peak bytes of calls whose buffers can be counted by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ddsm_ext.bench.device import Cpu

X = torch.zeros(1000)  # 4000 bytes


def two_at_once() -> torch.Tensor:
    y = X + X
    z = y * X
    del y
    return z + X


def test_peak_counts_what_is_held_together() -> None:
    peaks = Cpu().peak_bytes({"two": two_at_once, "five": lambda: [X + X for _ in range(5)]})
    assert peaks == {"two": 2 * 4000, "five": 5 * 4000}


def test_a_call_does_not_pay_for_what_was_there_before() -> None:
    before = [X + X]
    assert Cpu().peak_bytes({"frees first": lambda: (before.clear(), X + X)}) == {
        "frees first": 4000
    }


def test_copies_inside_an_op_count() -> None:
    """A matrix product of a slice whose rows and columns both have gaps needs a copy of it."""
    x, weight = torch.zeros(2, 32, 8, 8), torch.zeros(64, 64, 3, 3)
    out_bytes, slice_bytes = 2 * 32 * 64 * 4, 32 * 32 * 9 * 4
    with torch.no_grad():
        peaks = Cpu().peak_bytes({"conv": lambda: F.conv2d(x, weight[:32, :32], padding=1)})
    assert peaks["conv"] >= out_bytes + slice_bytes
