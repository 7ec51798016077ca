"""Pixels between files and networks."""

from __future__ import annotations

import pytest
import torch

from ddsm_ext.data.pixels import from_uint8, to_uint8


def test_to_uint8() -> None:
    values = torch.tensor([-1.5, -1.0, -0.996, 0.0, 0.999, 1.0, 3.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 128, 255, 255, 255]
    with pytest.raises(TypeError, match="need floating point"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))


def test_from_uint8() -> None:
    images = torch.tensor([[0, 255, 51]], dtype=torch.uint8)
    assert from_uint8(images).tolist() == [[-1.0, 1.0, pytest.approx(-0.6)]]
    assert from_uint8(images, dtype=torch.float64).dtype is torch.float64
    with pytest.raises(TypeError, match="need uint8"):
        from_uint8(torch.zeros(3))


def test_every_pixel_comes_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every)), every)
