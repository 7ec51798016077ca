from __future__ import annotations

import numpy as np
import pytest
import torch

from ddsm_ext.diffusion.losses import mse_per_image


def test_equals_numpy_per_image() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 4, 3, 5, 5)).astype(np.float32)
    expected = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    loss = mse_per_image(torch.from_numpy(a), torch.from_numpy(b))
    assert loss.shape == (4,)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)


def test_half_precision_accumulates_in_float32() -> None:
    ones = torch.ones(2, 1, 64, 64, dtype=torch.bfloat16)
    loss = mse_per_image(ones * 3, ones)
    assert loss.dtype == torch.float32
    assert loss.tolist() == [4.0, 4.0]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\), target has \(1, 1, 4, 4\)"):
        mse_per_image(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))
